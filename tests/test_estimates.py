"""Errors of metrics: influences against finite differences and the jackknife, intervals, streamed statistics, the Frechet distance."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.image.fid import _compute_fid

from sdediff.metrics import (
    Estimate,
    FrechetTo,
    MetricError,
    Moments,
    Statistics,
    frechet_distance,
    frechet_estimates,
    grouped,
    mean_of,
    moments,
)

SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return normal(n, d, seed=seed) @ normal(d, d, seed=seed + 1) + normal(d, seed=seed + 2)


def streamed(x: torch.Tensor, size: int) -> Callable[[], Iterator[torch.Tensor]]:
    return lambda: iter(x.split(size))


# An estimate


def test_a_mean_has_the_textbook_error() -> None:
    x = normal(300, seed=0).numpy()
    e = Estimate(x.mean(), x - x.mean())
    assert e.se == pytest.approx(stats.sem(x), rel=1e-12)
    assert e.interval(0.9) == pytest.approx(stats.t.interval(0.9, 299, x.mean(), stats.sem(x)), rel=1e-12)
    assert e.p_value == pytest.approx(stats.ttest_1samp(x, 0).pvalue, rel=1e-9)


def test_a_difference_is_paired() -> None:
    x, y = normal(300, seed=0).numpy(), normal(300, seed=1).numpy()
    a, b = Estimate(x.mean(), x), Estimate((x + 0.01 * y).mean(), x + 0.01 * y)
    assert (b - a).p_value == pytest.approx(stats.ttest_rel(x + 0.01 * y, x).pvalue, rel=1e-9)
    assert (b - a).se < 0.02 * math.hypot(a.se, b.se)
    assert ((a - a).value, (a - a).se, (a - a).p_value) == (0, 0, 1)
    assert Estimate(1.0, np.zeros(5)).p_value == 0


def test_a_difference_subtracts_within_halves_too() -> None:
    x, y, u, v = (normal(50, seed=k).numpy() for k in range(4))
    found = Estimate(1, x, 3 * u) - Estimate(2, y, 3 * v)
    assert found.halves is not None
    np.testing.assert_allclose(found.halves, 3 * (u - u.mean()) - 3 * (v - v.mean()), atol=1e-13)
    mixed = Estimate(1, x, 3 * u) - Estimate(2, y)
    assert mixed.halves is not None
    np.testing.assert_allclose(mixed.halves, 3 * (u - u.mean()) - (y - y.mean()), atol=1e-13)


def test_the_variance_loses_half_the_rise_within_halves_but_keeps_enough() -> None:
    x = normal(100, seed=0).numpy()
    plain = Estimate(1, x).se ** 2
    left = ((0.5, 1.0), (1.2, 0.9), (1.8, 0.6), (2.0, 0.5), (2.5, 0.5), (4.0, 0.9), (5.0, 1.0))  # V_halves/V_full, share of V_full
    for factor, share in left:
        assert Estimate(1, x, x * factor**0.5).se ** 2 == pytest.approx(share * plain, rel=1e-12)


def test_the_interval_of_a_scaled_estimate_is_that_of_its_logarithm() -> None:
    x = normal(400, seed=0).numpy()
    e = Estimate(0.2, x, scale=0.2)
    t = stats.t.ppf(0.975, 399) * e.se / 0.2
    assert e.interval() == pytest.approx((0.2 * math.exp(-t), 0.2 * math.exp(t)))
    shifted = Estimate(0.05, x, scale=0.2).interval()
    assert shifted == pytest.approx((e.interval()[0] - 0.15, e.interval()[1] - 0.15))
    lost = Estimate(0.001, x, scale=0.001)  # an error of 50 times the value
    assert lost.interval()[1] == pytest.approx(Estimate(0.001, x).interval()[1], rel=0.02)
    assert (e - e).scale is None


def test_the_mean_of_seeds() -> None:
    parts = [
        Estimate(k, (k + 1) * normal(40 + k, seed=k).numpy(), (k + 2) * normal(40 + k, seed=9 + k).numpy(), scale=k + 1) for k in range(3)
    ]
    plain = [Estimate(e.value, e.influence) for e in parts]
    assert mean_of(plain).value == 1
    assert mean_of(plain).se == pytest.approx(math.sqrt(sum(e.se**2 for e in plain)) / 3, rel=1e-12)
    assert (mean_of(parts).seeds, mean_of(parts).units, mean_of(parts).scale) == (3, 123, 2)
    assert mean_of(parts).halves is not None
    assert (mean_of(plain) - mean_of(plain)).se == 0
    nested = mean_of([mean_of(plain[:1]), mean_of(plain[1:2]), mean_of(plain[2:])])
    assert nested.se == pytest.approx(mean_of(plain).se, rel=1e-12)


def test_groups_of_a_mean_are_exact_and_of_a_median_close() -> None:
    x = normal(1000, seed=0).numpy()
    e = grouped(lambda i: float(x[i].mean()), 1000, groups=20)
    assert e.se == pytest.approx(stats.sem(x.reshape(20, 50).mean(1)), rel=1e-10)
    assert e.interval() == pytest.approx(stats.t.interval(0.95, 19, x.mean(), e.se), rel=1e-10)
    spread = grouped(lambda i: float(np.quantile(x[i], 0.5)), 1000).se
    assert spread == pytest.approx(math.sqrt(math.pi / 2 / 1000), rel=0.3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Estimate(0, np.zeros(1)),
        lambda: Estimate(0, np.array([0, np.nan])),
        lambda: Estimate(0, np.zeros((2, 2))),
        lambda: Estimate(0, np.zeros(3), np.zeros(4)),
        lambda: Estimate(0, np.zeros(3)) - Estimate(0, np.zeros(4)),
        lambda: Estimate(0, np.zeros(3)).interval(95),
        lambda: grouped(len, 10, groups=6),
        lambda: grouped(len, 10, groups=1),
        lambda: mean_of([]),
    ],
)
def test_what_is_no_estimate_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(MetricError, match=r"expected"):
        wrong()


# Streamed statistics


@given(seed=SEEDS, d=st.integers(1, 6), cuts=st.lists(st.integers(0, 60), max_size=6), far=st.sampled_from([0.0, 1e3, 1e6]))
@settings(deadline=None, max_examples=60)
def test_statistics_do_not_depend_on_the_cuts(seed: int, d: int, cuts: list[int], far: float) -> None:
    x = features(60, d, seed) + far
    edges = [0, *sorted(cuts), 60]
    parts = [Statistics() for _ in range(2)]
    for k in range(len(edges) - 1):
        parts[k % 2].update(x[edges[k] : edges[k + 1]])
    parts[0].merge(parts[1])
    found, exact = parts[0].moments(), moments(x)
    assert found.n == 60
    rounding = 1e-12 * float(exact.cov.abs().max()) + 4e-16 * far * float(exact.cov.diag().max()) ** 0.5  # of x + far itself
    torch.testing.assert_close(found.cov, exact.cov, rtol=0, atol=rounding)
    torch.testing.assert_close(found.mean, exact.mean, rtol=1e-12, atol=1e-13)


def test_statistics_of_far_features_keep_their_digits() -> None:
    """Sums of squares would lose 12 of the 16 digits at 1e6; batches of 1 and of all agree to rounding of the features."""
    x = features(500, 4, 0)
    near, away = Statistics(), Statistics()
    for row in x:
        near.update(row[None])
        away.update(row[None] + 2.0**20)
    torch.testing.assert_close(near.moments().cov, moments(x).cov, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(away.moments().cov, moments(x).cov, rtol=1e-8, atol=1e-8)


def test_statistics_repeat_bit_for_bit_and_leave_what_they_merge() -> None:
    x = features(90, 5, 0).float()

    def run() -> Moments:
        a, b = Statistics(), Statistics()
        for part in x[:50].split(16):
            a.update(part)
        b.update(x[50:])
        kept = b.moments()
        a.merge(b)
        a.merge(Statistics())
        assert torch.equal(b.moments().cov, kept.cov)
        return a.moments()

    first, second = run(), run()
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.cov, second.cov)
    assert torch.equal(first.cov, first.cov.T)
    torch.testing.assert_close(first.cov, moments(x).cov, rtol=1e-12, atol=1e-12)


def test_statistics_refuse() -> None:
    s = Statistics()
    with pytest.raises(MetricError, match="of 0 sample"):
        s.moments()
    s.update(normal(3, 4, seed=0))
    with pytest.raises(MetricError, match="of 5 numbers a sample after 3 of 4"):
        s.update(normal(3, 5, seed=0))
    bad = normal(6, 4, seed=0)
    bad[1, 2], bad[4] = math.nan, math.inf
    with pytest.raises(MetricError, match="2 of 6 samples"):
        s.update(bad)
    with pytest.raises(MetricError, match=r"expected \(n, d\)"):
        s.update(normal(4, seed=0))
    assert s.n == 3


MEMORY = """
import resource, torch
from sdediff.metrics import Statistics
torch.set_num_threads(1)
s, n, d = Statistics(), {n}, {d}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for k in range(0, n, 500):
    s.update(torch.randn(500, d))
    if k == 500: early = peak()
assert s.moments().n == n
print(early, peak())
"""


def peak(n: int, d: int) -> tuple[float, float]:
    """Peak MB after 1000 and after all n features of d numbers, in a process of its own."""
    found = subprocess.run([sys.executable, "-c", MEMORY.format(n=n, d=d)], capture_output=True, text=True, check=True)
    early, late = found.stdout.split()
    return float(early), float(late)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_memory_does_not_grow_with_the_samples() -> None:
    early, late = peak(40_000, 256)  # 82 MB of features in float64
    assert late - early < 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_statistics_of_fifty_thousand_inception_features_stay_under_a_gigabyte() -> None:
    assert peak(50_000, 2048)[1] < 1000


# The Frechet distance


def reweighted(x: torch.Tensor, i: int, epsilon: float) -> Moments:
    n = len(x)
    w = torch.full((n,), (1 - epsilon) / n, dtype=torch.float64)
    w[i] += epsilon
    mean = w @ x
    return Moments(mean, ((x - mean) * w[:, None]).T @ (x - mean) * n / (n - 1), n)


@given(seed=SEEDS, n=st.integers(4, 30), d=st.integers(1, 6), rank=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_influence_is_the_change_by_reweighting_a_sample(seed: int, n: int, d: int, rank: int) -> None:
    """Also for fewer samples than dimensions, and for real features of less than full rank."""
    x = features(n, d, seed)
    to = FrechetTo(moments(normal(50, min(rank, d), seed=seed + 5) @ normal(min(rank, d), d, seed=seed + 6)))
    psi, e = to(x).at_n.influence, 1e-5
    changes = [(to.distance(reweighted(x, i, e)) - to.distance(reweighted(x, i, -e))) / (2 * e) for i in range(n)]
    np.testing.assert_allclose(psi, changes, rtol=2e-4, atol=1e-4 * (1 + np.abs(psi).max()))


def test_influence_in_one_dimension_is_its_closed_form() -> None:
    x, to = features(51, 1, 0), FrechetTo(Moments(torch.full((1,), 0.25), torch.full((1, 1), 4.0), 99))

    def psi(y: torch.Tensor) -> torch.Tensor:
        c, n = (y - y.mean())[:, 0], len(y)
        raw = 2 * (y.mean() - 0.25) * c + (1 - 2 / y.std()) * c.square() * n / (n - 1)
        return raw - raw.mean()

    found = to(x).at_n
    assert found.value == pytest.approx(float((x.mean() - 0.25) ** 2 + (x.std() - 2) ** 2), rel=1e-12)
    np.testing.assert_allclose(found.influence, psi(x), rtol=1e-10, atol=1e-10)
    assert found.halves is not None
    np.testing.assert_allclose(found.halves, torch.cat((psi(x[:25]) * 51 / 50, psi(x[25:]) * 51 / 52)), rtol=1e-10, atol=1e-10)


def test_influence_agrees_with_the_jackknife() -> None:
    x, to, n = features(400, 3, 0), FrechetTo(moments(features(400, 3, 10))), 400
    found = to(x).at_n
    left_out = np.array([to.distance(moments(torch.cat((x[:i], x[i + 1 :])))) for i in range(n)])
    jackknife = (n - 1) * (left_out.mean() - left_out)
    assert np.abs(found.influence - jackknife).max() < 0.03 * np.abs(jackknife).max()
    assert Estimate(0, found.influence).se == pytest.approx(math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()), rel=0.02)


@given(seed=SEEDS, n=st.integers(8, 40), d=st.integers(1, 5), size=st.integers(1, 40), c=st.sampled_from([0.5, -1.0, 3.0]))
@settings(deadline=None, max_examples=40)
def test_frechet_estimates_do_not_depend_on_position_units_or_batches(seed: int, n: int, d: int, size: int, c: float) -> None:
    x, y = features(n, d, seed), features(50, d, seed + 5)
    first = frechet_estimates(x, moments(y))
    turn, shift = torch.linalg.qr(normal(d, d, seed=seed + 8))[0], normal(d, seed=seed + 9)
    second = frechet_estimates(streamed(c * x @ turn + shift, size), moments(c * y @ turn + shift))
    assert first.at_n.value == pytest.approx(frechet_distance(x, y), rel=1e-9)
    for a, b in ((first.at_n, second.at_n), (first.at_infinity, second.at_infinity)):
        unit = c * c * (np.abs(a.influence).max() + abs(first.at_n.value))
        assert b.value == pytest.approx(c * c * a.value, abs=1e-7 * unit)
        np.testing.assert_allclose(b.influence, c * c * a.influence, rtol=1e-6, atol=1e-7 * unit)
        assert a.halves is not None
        assert b.halves is not None
        np.testing.assert_allclose(b.halves, c * c * a.halves, rtol=1e-6, atol=1e-7 * c * c * (np.abs(a.halves).max() + unit))


@given(seed=SEEDS, n=st.integers(20, 60), d=st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_frechet_agrees_with_torchmetrics(seed: int, n: int, d: int) -> None:
    x, y = features(n, d, seed), features(2 * n, d, seed + 5)
    (m1, s1, _), (m2, s2, _) = moments(x), moments(y)
    exact = float(_compute_fid(m1, s1, m2, s2))
    assert frechet_estimates(x, moments(y)).at_n.value == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_extrapolation_leaves_out_one_quarter_at_a_time() -> None:
    x, to = features(41, 3, 0), FrechetTo(moments(features(90, 3, 5)))
    parts = x.split([10, 10, 10, 11])
    fewer = [torch.cat(parts[:k] + parts[k + 1 :]) for k in range(4)]
    at_fewer, rate = np.mean([to.distance(moments(part)) for part in fewer]), np.mean([1 / len(part) for part in fewer])
    line = np.polyfit([1 / 41, rate], [to(x).at_n.value, at_fewer], 1)
    assert to(x).at_infinity.value == pytest.approx(line[1], rel=1e-9)


def test_errors_and_extrapolation_near_the_floor() -> None:
    """400 sets of samples of the very distribution: psi alone overstates the variance, with `halves` it is right; the bias goes."""
    d, n = 8, 200
    to, generator = FrechetTo(Moments(torch.zeros(d), torch.eye(d), 99)), torch.Generator().manual_seed(0)
    found = [to(torch.randn(n, d, generator=generator, dtype=torch.float64)) for _ in range(400)]
    spread = np.var([f.at_n.value for f in found])
    assert np.mean([Estimate(0, f.at_n.influence).se ** 2 for f in found]) > 1.6 * spread
    assert 0.85 * spread < np.mean([f.at_n.se**2 for f in found]) < 1.35 * spread
    beyond = np.array([f.at_infinity.value for f in found])
    assert 0.8 * beyond.var() < np.mean([f.at_infinity.se**2 for f in found]) < 1.35 * beyond.var()
    assert np.mean([f.at_n.value for f in found]) > 0.12
    assert abs(beyond.mean()) < 0.01


def test_a_difference_of_the_same_latents_is_resolved() -> None:
    x, to = features(2000, 4, 0), FrechetTo(moments(features(2000, 4, 5)))
    a, b = to(x), to(1.001 * x)
    gap = b.at_n - a.at_n
    assert gap.se < 0.05 * math.hypot(a.at_n.se, b.at_n.se)
    assert gap.value == pytest.approx(frechet_distance(1.001 * x, to.real) - frechet_distance(x, to.real), rel=1e-9)
    assert gap.p_value < 1e-6
    assert (a.at_n - a.at_n).p_value == 1


def test_fewer_samples_than_features_are_told() -> None:
    to = FrechetTo(Moments(torch.zeros(9), torch.eye(9), 99))
    few, enough = to(features(9, 9, 0)), to(features(10, 9, 0))
    assert "rank 8 at most" in few.note
    assert "biased upward" in few.note
    assert enough.note == ""
    same = to(torch.ones(5, 9))  # a sampler that collapsed to one point: no covariance at all
    assert same.at_n.value == pytest.approx(18)
    assert same.at_n.se == 0


def test_frechet_estimates_refuse() -> None:
    to, x = FrechetTo(Moments(torch.zeros(3), torch.eye(3), 99)), features(20, 3, 0)
    with pytest.raises(MetricError, match="at least 4"):
        to(x[:3])
    with pytest.raises(MetricError, match="Features of 2 and of 3"):
        to(x[:, :2])
    with pytest.raises(MetricError, match="has 20 samples; expected 24"):
        to(streamed(x, 7), n=24)
    with pytest.raises(MetricError, match="has 20 samples; expected 12"):
        to(streamed(x, 7), n=12)
    once = iter(x.split(7))
    with pytest.raises(MetricError, match="same batches each time"):
        to(lambda: once, n=20)
    x[3, 1] = math.nan
    with pytest.raises(MetricError, match="1 of 20 samples"):
        to(x)
