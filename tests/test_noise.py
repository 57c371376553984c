"""Noise: a pure function of (seed, sample, arguments), standard normal, and one Brownian path a sample whatever is asked first."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdediff import Brownian, UserError, White

SOURCES = {"white": White(3), "brownian": Brownian(3, (0.0, 1.0)), "wide": Brownian(3, (1e-4, 1e4))}
sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
WIDE = (1e-4, 1e4)
wide_times = st.floats(math.log(1e-4), math.log(1e4)).map(lambda v: min(max(math.exp(v), 1e-4), 1e4))
FEW = torch.zeros(3, 2, dtype=torch.float64)
MANY = torch.zeros(20_000, 2, dtype=torch.float64)


def state(n, *shape, dtype=torch.float64):
    return torch.zeros(n, *shape, dtype=dtype)


def looks_normal(z):
    """Moments up to the fourth within 4.5 standard errors, and the Kolmogorov distance."""
    z = np.asarray(z, dtype=np.float64).ravel()
    n = len(z)
    moments = (z.mean(), z.var() - 1, stats.skew(z), stats.kurtosis(z))
    errors = np.sqrt(np.array([1, 2, 6, 24]) / n)
    assert (np.abs(moments) < 4.5 * errors).all(), moments / errors
    assert stats.kstest(z, "norm").pvalue > 1e-4


def uncorrelated(a, b):
    """Neither the numbers nor their squares are correlated, to 4.5 standard errors."""
    a, b = a.double().flatten(), b.double().flatten()
    for x, y in ((a, b), (a**2, b**2), (a.abs(), b)):
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4.5 / math.sqrt(len(a))


# --- a pure function of the sample ------------------------------------------------------------------------------------


@sources
@settings(max_examples=30, deadline=None)
@given(index=st.lists(st.integers(0, 2**40), min_size=1, max_size=8), key=st.integers(0, 5))
def test_a_sample_has_its_noise_in_any_batch(source, index, key):
    together = source.on(state(len(index), 3, 2), torch.tensor(index))
    for i, sample in enumerate(index):
        alone = source.on(state(1, 3, 2), range(sample, sample + 1))
        assert torch.equal(together(0.2, 0.7, key)[i], alone(0.2, 0.7, key)[0])
        assert torch.equal(together.fresh(key)[i], alone.fresh(key)[0])


@sources
def test_rows_and_order(source):
    noise = source.on(state(6, 2))
    for rows in (torch.tensor([4, 0, 5]), torch.tensor([True, False, True, True, False, False]), torch.arange(6).flip(0)):
        assert torch.equal(noise.rows(rows)(0.9, 0.3), noise(0.9, 0.3)[rows])
        assert torch.equal(noise.rows(rows).fresh(1), noise.fresh(1)[rows])
    twice = noise.rows(torch.tensor([5, 3, 1])).rows(torch.tensor([2, 0]))
    assert torch.equal(twice(0.1, 0.2), noise(0.1, 0.2)[torch.tensor([1, 5])])
    assert torch.equal(source.on(state(3, 2), range(2, 5))(0.1, 0.2), noise(0.1, 0.2)[2:5])


@sources
def test_the_same_call_gives_the_same_bits(source):
    noise = source.on(FEW)
    first = noise(0.3, 0.5), noise.fresh(0)
    assert torch.equal(noise(0.3, 0.5), first[0])
    assert torch.equal(noise.fresh(0), first[1])
    assert torch.equal(type(source)(*vars(source).values()).on(FEW)(0.3, 0.5), first[0])
    first[0].zero_()  # what a caller does with it is not our business
    assert torch.equal(source.on(FEW)(0.3, 0.5), noise(0.3, 0.5))
    assert noise(0.3, 0.5).abs().max() > 0


@sources
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_noise_is_like_the_state(source, dtype):
    noise, exact = source.on(state(4, 1, 3, 3, dtype=dtype)), source.on(state(4, 1, 3, 3))
    for mine, its in ((noise(0.25, 0.5), exact(0.25, 0.5)), (noise.fresh(0), exact.fresh(0))):
        assert mine.dtype == dtype
        assert mine.shape == (4, 1, 3, 3)
        assert torch.equal(mine, its.to(dtype))


@sources
def test_wrong_number_of_indices_is_refused(source):
    with pytest.raises(UserError, match="needs 3 sample indices"):
        source.on(FEW, range(2))


@sources
def test_noise_does_not_touch_the_global_generator(source):
    before = torch.get_rng_state()
    source.on(FEW)(0.1, 0.4)
    source.on(FEW).fresh(0)
    assert torch.equal(torch.get_rng_state(), before)


# --- white ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345, -7, 2**70])
def test_white_is_standard_normal_times_the_root_of_the_interval(seed):
    noise = White(seed).on(MANY)
    looks_normal(noise.fresh(0))
    for a, b in ((0.0, 1.0), (7.0, 3.0), (1e-6, 2e-6)):
        looks_normal(noise(a, b) / math.sqrt(abs(b - a)))
    looks_normal(White(seed).on(state(2, 200, 211)).fresh(5))  # along the components
    assert noise(0.5, 0.5).abs().max() == 0


def test_white_normals_are_normal_far_out():
    z = White(0).on(state(1, 2_000_000)).fresh(0).flatten()
    for q in (1.0, 2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(q) * len(z)
        assert abs(float((z.abs() > q).sum()) - expected) < 4.5 * math.sqrt(expected)
    assert z.abs().max() < 6.8


def test_white_draws_differ_in_every_argument():
    noise = White(0).on(MANY)
    base = noise(0.0, 1.0)
    others = [noise(1.0, 0.0), noise(0.0, 0.5), noise(0.5, 1.0), noise(0.0, 1.0, key=1), noise.fresh(0), noise.fresh(1)]
    others += [White(1).on(MANY)(0.0, 1.0), White(2**32).on(MANY)(0.0, 1.0)]
    others += [White(0).on(MANY, range(20_000, 40_000))(0.0, 1.0), base.roll(1, 0), base.flip(1)]
    for other in others:
        uncorrelated(base, other)
    uncorrelated(noise.fresh(0), noise.fresh(1))
    wide = White(0).on(state(2, 20_001)).fresh(0)
    uncorrelated(wide[0], wide[1])
    uncorrelated(wide[0, :10_000], wide[0, 10_001:])  # the two halves of Box-Muller


# --- Brownian ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(times=st.lists(wide_times, min_size=3, max_size=3), key=st.integers(0, 2))
def test_brownian_telescopes_and_has_a_direction(times, key):
    a, b, c = times
    noise = Brownian(0, WIDE).on(FEW)
    torch.testing.assert_close(noise(a, b, key) + noise(b, c, key), noise(a, c, key), rtol=1e-12, atol=1e-12)
    assert torch.equal(noise(b, a, key), -noise(a, b, key))
    assert noise(a, a).abs().max() == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_brownian_does_not_depend_on_what_was_asked_before(data):
    depth = data.draw(st.sampled_from([3, 24]))
    times = data.draw(st.lists(st.one_of(wide_times, st.sampled_from([*WIDE, 1.0, 0.01])), min_size=2, max_size=10))
    path = Brownian(5, WIDE, depth)
    in_order = path.on(FEW)
    values = {t: in_order.at(t).clone() for t in times}
    shuffled = path.on(FEW)
    for t in data.draw(st.permutations(times)):
        assert torch.equal(shuffled.at(t), values[t])
        assert torch.equal(path.on(FEW).at(t), values[t])


@pytest.mark.parametrize("depth", [2, 24])
def test_brownian_has_the_law_of_brownian_motion(depth):
    low, high = WIDE
    noise = Brownian(1, WIDE, depth).on(MANY)
    for t in (2e-4, 1e-3, 0.7, 1.0, 99.0, 8e3, high):
        looks_normal(noise(low, t) / math.sqrt(t - low))
    if depth == 24:
        for a, b in ((1e-3, 1.0001e-3), (1.0, 1.0001), (0.3, 50.0), (9e3, 9e3 + 1e-2), (1e-4, 1e4)):
            looks_normal(noise(a, b) / math.sqrt(b - a))
        for first, second in (((1e-4, 1.0), (1.0, 3.0)), ((0.3, 0.31), (0.31, 0.4)), ((5.0, 6.0), (7e3, 9e3))):
            uncorrelated(noise(*first), noise(*second))
    assert noise.at(low).abs().max() == 0


def test_brownian_paths_differ_in_seed_key_and_sample():
    base = Brownian(0, (0.0, 1.0)).on(MANY)
    for other in (Brownian(1, (0.0, 1.0)).on(MANY), Brownian(0, (0.0, 1.0)).on(MANY, range(20_000, 40_000))):
        uncorrelated(base(0.0, 1.0), other(0.0, 1.0))
        uncorrelated(base(0.2, 0.3), other(0.2, 0.3))
    uncorrelated(base(0.2, 0.9), base(0.2, 0.9, key=1))
    uncorrelated(base.fresh(0), base(0.0, 1.0))
    uncorrelated(base(0.0, 1.0)[:, 0], base(0.0, 1.0)[:, 1])


def test_brownian_refusals():
    noise = Brownian(0, (0.5, 2.0)).on(FEW)
    for a, b in ((0.4, 1.0), (1.0, 2.1), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(UserError, match="give a wider range"):
            noise(a, b)
    for bad in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(UserError, match="finite range"):
            Brownian(0, bad)


# --- space-time integrals ----------------------------------------------------------------------------------------------


@sources
def test_the_area_has_the_increment_and_an_independent_integral(source):
    noise = source.on(MANY)
    for a, b in ((0.125, 0.5), (0.9, 0.3), (0.2, 0.2001), (0.3, 0.7001)):
        w, h = noise.area(a, b)
        assert torch.equal(w, noise(a, b))
        looks_normal(w / math.sqrt(abs(b - a)))
        looks_normal(h / math.sqrt(abs(b - a) / 12))
        uncorrelated(w, h)
        uncorrelated(h, noise.area(a, b, key=1)[1])
        uncorrelated(h, noise.fresh(0))
        uncorrelated(h[:, 0], h[:, 1])
    assert all(part.abs().max() == 0 for part in noise.area(0.5, 0.5))


@sources
def test_the_area_is_a_pure_function_of_the_sample(source):
    noise = source.on(state(6, 2, 3))
    w, h = noise.area(0.2, 0.7, 1)
    assert w.shape == h.shape == (6, 2, 3)
    again = source.on(state(6, 2, 3)).rows(torch.tensor([4, 1]))
    again.area(0.3, 0.65, 1)
    for mine, its in zip(again.area(0.2, 0.7, 1), (w, h), strict=True):
        assert torch.equal(mine, its[[4, 1]])
    for mine, its in zip(source.on(state(6, 2, 3, dtype=torch.float32)).area(0.2, 0.7, 1), (w, h), strict=True):
        assert torch.allclose(mine.double(), its, rtol=1e-6)
        assert mine.dtype == torch.float32
    h.zero_()
    assert noise.area(0.2, 0.7, 1)[1].abs().min() > 0


def chasles(first, second, h1, h2):
    """(W, H) over adjoining intervals of (signed) lengths h1 and h2."""
    (w1, i1), (w2, i2), h = first, second, h1 + h2
    return w1 + w2, (h1 * i1 + h2 * i2 + 0.5 * (h2 * w1 - h1 * w2)) / h


@settings(max_examples=100, deadline=None)
@given(data=st.data(), depth=st.sampled_from([2, 24]), key=st.integers(0, 1))
def test_areas_of_one_path_add_up(data, depth, key):
    times = st.one_of(wide_times, st.sampled_from([*WIDE, 1.0, 0.01, 5000.00005]), st.floats(2.0, 2.0001))
    a, b, c = data.draw(st.lists(times, min_size=3, max_size=3))
    noise = Brownian(0, WIDE, depth).on(FEW)
    w, h = noise.area(a, c, key)
    back = noise.area(c, a, key)
    assert torch.equal(back[0], -w)
    assert torch.equal(back[1], h)
    if abs(c - a) < 1e-9 * max(a, c):
        return  # formulas in b - a have no digits left
    sums = chasles(noise.area(a, b, key), noise.area(b, c, key), b - a, c - b)
    scale = math.sqrt(abs(b - a) + abs(c - b)) * max(1.0, (abs(b - a) + abs(c - b)) / abs(c - a))
    for mine, its in zip(sums, (w, h), strict=True):
        assert float((mine - its).abs().max()) < 1e-7 * scale if depth == 2 else 1e-10 * scale


@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.123, 0.911), (0.71, 0.70001)])
def test_the_integral_is_that_of_the_path(n, a, b):
    """Against the trapezoidal rule on n pieces: what it misses is N(0, h/(12 n^2)), neither more nor less."""
    noise = Brownian(7, (0.0, 1.0)).on(MANY[:5000])
    times = np.linspace(a, b, n + 1)
    steps = torch.stack([noise(s, t) for s, t in pairwise(times)])
    path = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    w, h = noise.area(a, b)
    assert torch.allclose(path[-1], w, rtol=0, atol=1e-12)
    mean = (path[1:] + path[:-1]).mean(0) / 2 - w / 2
    looks_normal((h - mean) / math.sqrt(abs(b - a) / 12) * n)


def test_areas_of_neighbours_are_independent():
    """The whole covariance of (W, H) over neighbouring pieces, most of which are no nodes of the tree."""
    cuts = [1e-4, 3e-4, 0.01, 0.5, 0.51, 0.6, 7.0, 100.0, 101.0, 4000.0, 9e3, 1e4]
    noise = Brownian(11, WIDE).on(MANY)
    parts = []
    for a, b in pairwise(cuts):
        w, h = noise.area(a, b)
        parts += [w / math.sqrt(b - a), h / math.sqrt((b - a) / 12)]
    z = torch.stack(parts).flatten(1)
    off = (z @ z.T / z.shape[1] - torch.eye(len(z))) * math.sqrt(z.shape[1])
    assert float(off.abs().max()) < 4.5 * math.sqrt(2)
    off = ((z**2 - 1) @ (z**2 - 1).T / z.shape[1])[~torch.eye(len(z), dtype=torch.bool)] * math.sqrt(z.shape[1]) / 2
    assert float(off.abs().max()) < 5


@pytest.mark.parametrize("t", [2e-4, 0.7, 3.0, 9.9e3])
def test_inside_the_last_level_the_area_from_a_leaf_s_end_has_its_law(t):
    noise = Brownian(1, WIDE, depth=1).on(MANY)
    for a, b in ((WIDE[0], t), (t, WIDE[1]), (1.0, t)):
        w, h = noise.area(a, b)
        looks_normal(w / math.sqrt(abs(b - a)))
        looks_normal(h / math.sqrt(abs(b - a) / 12))
        uncorrelated(w, h)


# --- one interval a sample ---------------------------------------------------------------------------------------------


def sample_by_sample(source, index, a, b, key=0):
    """What the float calls of each sample alone give: (W, H)."""
    parts = [source.on(state(1, 2), index[i : i + 1]).area(float(a[i]), float(b[i]), key) for i in range(len(index))]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), key=st.integers(0, 2), low=st.sampled_from([1e-4, -1.0]), depth=st.sampled_from([24, 60]))
def test_a_query_for_each_sample_is_that_of_the_same_path(data, key, low, depth):
    """To rounding: the interval a sample has is cut as the float call cuts it, at the same nodes with the same normal numbers."""
    source, n = Brownian(5, (low, 1e4), depth), data.draw(st.integers(1, 6))
    times = st.one_of(wide_times, st.sampled_from([low, 1e4, 1.0, 0.01, 0.5 * (low + 1e4)]), st.floats(2.0, 2.001))
    index = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n)))
    noise = source.on(state(n, 2), index)
    for _ in range(3):  # what was asked before must not matter
        a, b = (np.array(data.draw(st.lists(times, min_size=n, max_size=n))) for _ in "ab")
        w, h = noise.area(a, b, key)
        assert torch.equal(w, noise(a, b, key))
        for mine, its in zip((w, h), sample_by_sample(source, index, a, b, key), strict=True):
            inside_a_leaf = 1e-15 / np.maximum(np.abs(b - a), 1e-300)  # there the formulas in b - a have no digits left
            allowed = 1e-12 * np.sqrt(np.abs(b - a)) + inside_a_leaf
            assert ((mine - its).abs().amax(1) <= torch.from_numpy(allowed)).all()


@sources
@settings(max_examples=12, deadline=None)
@given(data=st.data(), key=st.integers(0, 2))
def test_a_sample_has_its_own_interval_in_any_batch(source, data, key):
    """Bitwise, whatever the others ask, and after samples have left."""
    n = 7
    a, b = (np.array(data.draw(st.lists(st.floats(1e-4, 1.0), min_size=n, max_size=n))) for _ in "ab")
    noise = source.on(state(n, 3))
    w, h = noise.area(a, b, key)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)))
    for part in (source.on(state(len(rows), 3), rows), noise.rows(rows), source.on(state(n, 3)).rows(rows)):
        for _ in range(2):
            mine = part.area(a[rows.numpy()], b[rows.numpy()], key)
            assert torch.equal(mine[0], w[rows])
            assert torch.equal(mine[1], h[rows])
            part(b[rows.numpy()], np.sqrt(a[rows.numpy()]), key)
    assert torch.equal(noise(a, b, key), w)


def test_parts_of_a_large_batch_are_the_samples_of_small_ones(monkeypatch):
    """Queries go through a batch part by part, and samples that leave take what is known with them."""
    monkeypatch.setattr("sdediff.noise._ROWS", 4)
    source, n = Brownian(2, WIDE, 12), 11
    a, b = np.linspace(0.1, 3.0, n), np.linspace(0.2, 700.0, n)
    noise = source.on(state(n, 3))
    w, h = noise.area(a, b)
    for rows in (torch.tensor([10, 0, 3, 4, 7]), torch.arange(n) % 3 == 0):
        left = noise.rows(rows)
        for which in (rows.numpy(),) * 2:
            assert all(torch.equal(x, y) for x, y in zip(left.area(a[which], b[which]), (w[rows], h[rows]), strict=True))
    alone = [source.on(state(1, 3), range(i, i + 1)).area(a[i : i + 1], b[i : i + 1]) for i in range(n)]
    assert torch.equal(torch.cat([part[0] for part in alone]), w)
    assert torch.equal(torch.cat([part[1] for part in alone]), h)


@sources
def test_one_end_for_all_and_one_interval_for_all(source):
    noise, low = source.on(state(5, 2)), source.range[0] if isinstance(source, Brownian) else 0.0
    a, b = np.linspace(0.1, 0.5, 5), np.full(5, 0.7)
    assert torch.equal(noise(a, 0.7), noise(a, b))
    assert torch.equal(noise(0.7, a), noise(b, a))
    together = noise(np.full(5, 0.2), b)
    assert torch.allclose(together, noise(0.2, 0.7), rtol=0, atol=1e-14)
    same = noise.area(a, np.where(np.arange(5) == 2, a, b))
    assert all(part[2].abs().max() == 0 and part[[0, 1, 3, 4]].abs().min() > 0 for part in same)
    with pytest.raises(UserError, match="needs 5 ends"):
        noise(a[:3], 0.7)
    if isinstance(source, Brownian):
        with pytest.raises(UserError, match="not at 20000"):
            noise(np.where(np.arange(5) == 2, 2e4, a), b)
        assert torch.allclose(noise.at(a), noise(np.full(5, low), a).flatten(1), rtol=0, atol=0)
        assert torch.equal(noise(b, a), -noise(a, b))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), key=st.integers(0, 5))
def test_white_for_each_sample_is_the_float_call_of_each(data, key):
    n, times = data.draw(st.integers(1, 6)), st.one_of(st.floats(-10, 10), st.sampled_from([0.0, -0.0]))
    a, b = (np.array(data.draw(st.lists(times, min_size=n, max_size=n))) for _ in "ab")
    index = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n)))
    w, h = White(-3).on(state(n, 2), index).area(a, b, key)
    its = sample_by_sample(White(-3), index, a, b, key)
    assert torch.equal(w, its[0])
    assert torch.equal(h, its[1])


@pytest.mark.parametrize("depth", [3, 24])
def test_own_intervals_have_their_law_and_add_up(depth):
    """Every sample its own cuts; W and H of the pieces are normal, independent, and put together are those of the whole."""
    rng = np.random.default_rng(0)
    cuts = np.sort(np.exp(rng.uniform(math.log(1e-4), math.log(1e4), (4, len(MANY)))), axis=0)
    noise, parts = Brownian(11, WIDE, depth).on(MANY), []
    whole, sums = noise.area(cuts[0], cuts[3]), None
    for a, b in pairwise(cuts):
        w, h = noise.area(a, b)
        if depth == 24:
            parts += [w / torch.from_numpy(np.sqrt(b - a))[:, None], h / torch.from_numpy(np.sqrt((b - a) / 12))[:, None]]
        lengths = [torch.from_numpy(v)[:, None] for v in (a - cuts[0], b - a)]
        sums = (w, h) if sums is None else chasles(sums, (w, h), *lengths)
    scale = torch.from_numpy(np.sqrt(cuts[3] - cuts[0]))[:, None]
    for mine, its in zip(sums, whole, strict=True):
        assert float(((mine - its) / scale).abs().max()) < (1e-11 if depth == 24 else 1e-7)
    for part in parts:
        looks_normal(part)
    for i, j in ((0, 1), (0, 2), (1, 3), (2, 3), (2, 5), (4, 5)) if parts else ():
        uncorrelated(parts[i], parts[j])


# --- once broken --------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1, 2), (-0.0, 1.0), (1.0, 2)])
def test_equal_readings_give_the_same_noise(a, b):
    assert torch.equal(White(0).on(FEW)(a, b), White(0).on(FEW)(a + 0.0, b + 0.0))
