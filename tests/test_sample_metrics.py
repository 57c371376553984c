"""KID, Inception Score, precision to coverage, optimal transport and memorisation: against other packages, brute force and simulation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from scipy import stats
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from sdediff.metrics import (
    PRDC,
    Estimate,
    KernelReference,
    Manifold,
    MetricError,
    blocks,
    density_coverage,
    grouped,
    inception_score,
    inception_scores,
    kernel_distance,
    kernel_distance_subsets,
    memorisation,
    prdc,
    precision_recall,
    sliced_wasserstein,
    sliced_wasserstein_estimate,
    wasserstein,
)

SEEDS = st.integers(0, 2**32 - 10)


@pytest.fixture(params=[7, 2048], ids=["many blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", request.param)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# --- kernel distance ------------------------------------------------------------------------------------------------


def mmd(x: np.ndarray, y: np.ndarray, degree: int = 3, gamma: float | None = None, coef: float = 1.0) -> float:
    """Binkowski et al. 2018, eq. 4, written out."""

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T * (1 / a.shape[1] if gamma is None else gamma) + coef) ** degree

    def off(a: np.ndarray) -> float:
        return (k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1))

    return float(off(x) + off(y) - 2 * k(x, y).mean())


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("kernel", [(3, None, 1.0), (2, 0.3, 0.0), (1, None, 2.0)])
def test_kernel_distance_is_that_of_torchmetrics(kernel: tuple) -> None:
    x, y = normal(41, 16, seed=0) * 1.2, normal(41, 16, seed=1)
    assert kernel_distance(x, y, *kernel).value == pytest.approx(float(poly_mmd(y, x, *kernel)), rel=1e-9, abs=1e-12)
    assert kernel_distance(x[:17], y, *kernel).value == pytest.approx(mmd(x[:17].numpy(), y.numpy(), *kernel), rel=1e-9)
    reference = KernelReference.of(y, *kernel)
    assert kernel_distance(x, reference, *kernel).value == kernel_distance(x, y, *kernel).value
    assert kernel_distance(x, reference).value == kernel_distance(x, y, *kernel).value


def test_kernel_distance_of_subsets_is_that_of_torch_fidelity() -> None:
    x, y = normal(60, 8, seed=0) + 0.3, normal(50, 8, seed=1)
    draw = np.random.RandomState(2020)
    pairs = [(draw.choice(60, 20, replace=False), draw.choice(50, 20, replace=False)) for _ in range(6)]
    expected = [mmd(x[a].numpy(), y[b].numpy()) for a, b in pairs]
    found = kernel_distance_subsets(x, y, 6, 20)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    assert (found.mean, found.std) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9)
    a, b = (np.stack(each) for each in zip(*pairs, strict=True))
    given = kernel_distance_subsets(x, y, indices=(a, b))
    np.testing.assert_allclose(given.values, [float(poly_mmd(y[j], x[i])) for i, j in pairs], rtol=1e-9)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("n", [3, 20, 31])
def test_kernel_influence_is_what_leaving_a_sample_out_changes(n: int) -> None:
    """Exactly: of the part over pairs of samples (n - 1)/(n - 2) of the influence, of the other part all of it."""
    x, y = normal(n, 5, seed=0) + 0.5, normal(25, 5, seed=1)
    found = kernel_distance(x, y)
    kept = np.array([kernel_distance(x[np.arange(n) != i], y).value for i in range(n)])
    across = ((x @ y.T / 5 + 1) ** 3).mean(1).numpy()
    part = 2 * (across.mean() - across)
    np.testing.assert_allclose((n - 1) * (kept.mean() - kept), part + (found.influence - part) * (n - 1) / (n - 2), rtol=1e-8, atol=1e-10)
    if n < 4:
        assert found.halves is None
        return
    a, b = (kernel_distance(x[part], y).influence for part in (slice(n // 2), slice(n // 2, n)))
    np.testing.assert_allclose(found.halves, np.concatenate([a * n / (2 * len(a)), b * n / (2 * len(b))]), rtol=1e-8, atol=1e-10)


# --- Inception Score ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score_is_that_of_torchmetrics(splits: int) -> None:
    logits = 3 * normal(80, 7, seed=0)  # torchmetrics permutes, and divides as we do where splits divides n
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = InceptionScore(nn.Identity(), splits=splits)
        metric.update(logits)
        torch.manual_seed(3)
        mean, std = metric.compute()
    torch.manual_seed(3)
    mixed = logits[torch.randperm(80)]
    found = inception_scores(mixed, splits)
    assert inception_score(mixed, splits).value == pytest.approx(float(mean), rel=1e-9)
    assert found.mean() == pytest.approx(float(mean), rel=1e-9)
    if splits > 1:
        assert found.std(ddof=1) == pytest.approx(float(std), rel=1e-9)


def test_inception_score_of_parts_is_that_of_torch_fidelity() -> None:
    """Its parts are i n // splits to (i + 1) n // splits of the probabilities; here n is no multiple."""
    logits = 3 * normal(83, 7, seed=0)
    p, expected = logits.softmax(1).numpy(), []
    for i in range(10):
        part = p[i * 83 // 10 : (i + 1) * 83 // 10]
        expected += [np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), 1)))]
    np.testing.assert_allclose(inception_scores(logits), expected, rtol=1e-9)


def test_inception_score_where_probabilities_vanish() -> None:
    logits = torch.full((6, 4), -1e4)
    logits[torch.arange(6), torch.arange(6) % 2] = 1e4
    found = inception_score(logits)
    assert found.value == pytest.approx(2, rel=1e-12)
    assert found.se == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_influence_is_the_derivative_in_the_weights(splits: int) -> None:
    logits = 2 * normal(31, 5, seed=0)
    p = logits.softmax(1)
    found, ends = inception_score(logits, splits), [s * 31 // splits for s in range(splits + 1)]
    expected = []
    for a, b in pairwise(ends):
        weights = torch.full((b - a,), 1 / (b - a), dtype=torch.float64, requires_grad=True)
        w = weights / weights.sum()
        kl = (p[a:b] * (p[a:b] / (w @ p[a:b])).log()).sum(1)
        (gradient,) = torch.autograd.grad((w @ kl).exp() / splits, weights)
        expected.append(gradient * (31 / (b - a)))
    np.testing.assert_allclose(found.influence, torch.cat(expected), rtol=1e-9, atol=1e-12)
    assert found.halves is not None
    half = inception_score(logits[:15]).influence * 31 / 30
    if splits == 1:
        np.testing.assert_allclose(found.halves[:15], half, rtol=1e-9, atol=1e-12)


# --- precision to coverage ------------------------------------------------------------------------------------------


def clusters(n: int, d: int, seed: int) -> Tensor:
    """Of unequal widths, so that leaving a group out changes radii a lot, and some samples twice."""
    x = normal(n, d, seed=seed) * torch.logspace(-1, 0.5, n, dtype=torch.float64)[shuffled(n, seed)][:, None]
    x[1] = x[0]
    return x


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("n", "m", "d", "k"), [(40, 55, 3, 3), (55, 40, 20, 5), (23, 23, 2, 1)])
def test_the_four_are_those_of_the_prdc_package(n: int, m: int, d: int, k: int) -> None:
    x, y = normal(n, d, seed=0) * 1.3, normal(m, d, seed=1)
    expected = compute_prdc(y.numpy(), x.numpy(), k)
    found = {**precision_recall(x, y, k)._asdict(), **density_coverage(x, y, k)._asdict()}
    assert {name: each.value for name, each in found.items()} == pytest.approx(expected, rel=1e-12)
    together = prdc(x, Manifold.of(y, 6), k, k)
    for name, each in together._asdict().items():
        assert each.value == found[name].value
        np.testing.assert_array_equal(each.influence, found[name].influence)
    mixed = prdc(x, y, 2, 4)
    assert [e.value for e in mixed] == [e.value for e in (*precision_recall(x, y, 2), *density_coverage(x, y, 4))]


def four(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float, float]:
    real, made, apart = torch.cdist(y, y), torch.cdist(x, x), torch.cdist(y, x)
    r, rho = real.sort(1).values[:, k], made.sort(1).values[:, k]
    inside = apart < r[:, None]
    each = (inside.any(0), (apart < rho).any(1), inside.sum(0).double() / k, inside.any(1))
    return tuple(float(e.double().mean()) for e in each)  # type: ignore[return-value]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("groups", "k", "seed"), [(5, 3, 0), (8, 2, 1), (20, 5, 2), (3, 4, 3)])
def test_recall_and_coverage_are_jackknifed_as_if_computed_anew(groups: int, k: int, seed: int) -> None:
    x, y = clusters(43, 2, seed), clusters(37, 2, seed + 10) * 1.1
    found = prdc(x, y, k, k, groups)
    for i in (1, 3):
        expected = grouped(lambda index, i=i: four(x[index], y, k)[i], 43, groups)
        assert found[i].value == pytest.approx(expected.value, rel=1e-12)
        np.testing.assert_allclose(found[i].influence, expected.influence, atol=1e-9)
        assert found[i].units == groups


def test_precision_and_density_are_means_over_samples() -> None:
    x, y = normal(30, 2, seed=0), normal(40, 2, seed=1)
    found = prdc(x, y)
    for i, k in ((0, 3), (2, 5)):
        each = np.array([four(torch.cat([x[j : j + 1], x + 1e6]), y, k)[i] * 31 for j in range(30)])
        np.testing.assert_allclose(found[i].influence, each - each.mean(), atol=1e-9)


def test_copies_of_the_real_data_are_inside() -> None:
    y = normal(50, 4, seed=0)
    assert [e.value for e in prdc(y, y)][:2] == [1, 1]
    far = prdc(y + 100, y)
    assert [e.value for e in far] == [0, 0, 0, 0]


# --- transport ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3])
def test_wasserstein_is_that_of_sorting_on_a_line_and_of_a_shift(p: int) -> None:
    x, y = normal(30, 1, seed=0), normal(30, 1, seed=1) * 2
    expected = (x.sort(0).values - y.sort(0).values).abs().pow(p).mean() ** (1 / p)
    assert wasserstein(x, y, p).value == pytest.approx(float(expected), rel=1e-9)
    z = normal(20, 3, 2, seed=2)
    assert wasserstein(z, z[shuffled(20)] + 0.5, 2).value == pytest.approx(0.5 * 6**0.5, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_influence_is_the_derivative_in_the_weights(p: int) -> None:
    """Of 13 against 17 samples, coprime, the plan is not degenerate: the cost is linear in small changes of the weights."""
    x, y = normal(13, 3, seed=0), normal(17, 3, seed=1) + 0.2
    costs, even, e = torch.cdist(x, y).numpy() ** p, np.full(13, 1 / 13), 1e-6

    def distance(weights: np.ndarray) -> float:
        return float(ot.emd2(weights, np.full(17, 1 / 17), costs)) ** (1 / p)

    found = wasserstein(x, y, p)
    assert found.value == pytest.approx(distance(even), rel=1e-9)
    slopes = [(distance((1 - e) * even + e * np.eye(13)[i]) - distance((1 + e) * even - e * np.eye(13)[i])) / (2 * e) for i in range(13)]
    np.testing.assert_allclose(found.influence, slopes, atol=1e-5)
    assert found.halves is not None
    np.testing.assert_allclose(found.halves[:6], wasserstein(x[:6], y, p).influence * 13 / 12, atol=1e-9)


def test_sliced_influence_is_the_derivative_in_the_weights() -> None:
    x, y = normal(13, 3, seed=0), normal(17, 3, seed=1) + 0.2
    directions = np.random.default_rng(5).standard_normal((3, 8))
    directions /= np.linalg.norm(directions, axis=0)
    u, v, even, e = x.numpy() @ directions, y.numpy() @ directions, np.full(13, 1 / 13), 1e-6

    def distance(weights: np.ndarray) -> float:
        return float(np.mean([ot.wasserstein_1d(u[:, j], v[:, j], weights, np.full(17, 1 / 17), p=2) for j in range(8)])) ** 0.5

    found = sliced_wasserstein_estimate(x, y, 8, seed=5)
    assert found.value == pytest.approx(sliced_wasserstein(x, y, 8, seed=5), rel=1e-12)
    assert found.value == pytest.approx(distance(even), rel=1e-12)
    slopes = [(distance((1 - e) * even + e * np.eye(13)[i]) - distance((1 + e) * even - e * np.eye(13)[i])) / (2 * e) for i in range(13)]
    np.testing.assert_allclose(found.influence, slopes, atol=1e-5)
    assert found.halves is not None
    np.testing.assert_allclose(found.halves[6:], sliced_wasserstein_estimate(x[6:], y, 8, seed=5).influence * 13 / 14, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (300, 500)])
def test_sliced_influence_is_that_of_a_grouped_jackknife(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(n, 4, seed=0) * 1.2 + 0.1, normal(m, 4, seed=1)
    whole = sliced_wasserstein_estimate(x, y, 16)
    monkeypatch.setattr("sdediff.metrics.transport._NUMBERS", 5 * m)  # in blocks of five directions
    found = sliced_wasserstein_estimate(x, y, 16)
    np.testing.assert_allclose(found.influence, whole.influence, rtol=1e-9, atol=1e-12)
    assert found.value == pytest.approx(sliced_wasserstein(x, y, 16), rel=1e-12)
    by_group = grouped(lambda index: sliced_wasserstein(x[index], y, 16), n, 50)
    means = [part.mean() for part in np.array_split(found.influence, 50)]
    assert np.corrcoef(means, by_group.influence)[0, 1] > 0.98
    assert np.std(means) == pytest.approx(np.std(by_group.influence), rel=0.06)


def test_sliced_influence_of_a_shift_is_that_of_the_mean() -> None:
    x = normal(30, 1, seed=0)
    found = sliced_wasserstein_estimate(x, x + 0.3)
    assert found.value == pytest.approx(0.3, rel=1e-12)
    np.testing.assert_allclose(found.influence, (x.mean() - x)[:, 0], atol=1e-12)


def test_a_set_against_itself_is_at_distance_zero_without_error() -> None:
    x = normal(40, 6, seed=0)
    for found in (wasserstein(x, x[shuffled(40)]), sliced_wasserstein_estimate(x, x[shuffled(40)])):
        assert found.value == pytest.approx(0, abs=1e-7)
        assert found.se == 0
    assert sliced_wasserstein_estimate(x, x + 0.1 - 0.1).se == 0  # rounding is no distance


# --- memorisation ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("given", ["tensor", "manifold", "held out"])
def test_memorisation_by_hand(given: str) -> None:
    train, x, held = normal(60, 2, 3, seed=0), normal(30, 2, 3, seed=1), normal(25, 2, 3, seed=2)
    x[:6] = train[10:16] + 1e-3 * normal(6, 2, 3, seed=3)
    x[6] = train[20]
    found = memorisation(x, Manifold.of(train) if given == "manifold" else train, held if given == "held out" else None, 0.1, 8)
    apart = torch.cdist(x.flatten(1), train.flatten(1)).sort(1)
    own = torch.cdist(train.flatten(1), train.flatten(1)).sort(1).values[:, 1]
    reference = torch.cdist(held.flatten(1), train.flatten(1)).amin(1) if given == "held out" else own
    np.testing.assert_array_equal(found.index, apart.indices[:, 0])
    np.testing.assert_allclose(found.distance, apart.values[:, 0], rtol=1e-6, atol=1e-6)
    assert found.threshold == pytest.approx(np.quantile(reference, 0.1), rel=1e-9)
    np.testing.assert_allclose(found.ratio, apart.values[:, 0] / apart.values[:, :8].mean(1), rtol=1e-6, atol=1e-6)
    assert found.copies[:7].all()
    assert found.distance[6] == found.ratio[6] == 0
    assert found.share.value == found.copies.mean()
    wins = stats.mannwhitneyu(reference, apart.values[:, 0]).statistic
    assert found.nearer.value == pytest.approx(wins / (30 * len(reference)), rel=1e-9)
    assert "copies" in str(found)


def test_ties_with_the_reference_count_half() -> None:
    """Training samples 1 apart; of the samples one is 1 from the next, one farther."""
    found = memorisation(torch.tensor([[10.0], [20.0]]), torch.arange(10.0)[:, None])
    assert found.nearer.value == 0.25


def test_the_share_of_fresh_samples_is_the_quantile_and_few_copies_have_an_interval() -> None:
    train, x, held = normal(3000, 4, seed=0), normal(3000, 4, seed=1), normal(3000, 4, seed=2)
    for found in (memorisation(x, train), memorisation(x, train, held)):
        low, high = found.interval()
        assert low < 0.05 < high
        assert found.nearer.value == pytest.approx(0.5, abs=0.02)
    far = memorisation(x[:100] + 50, train)
    assert far.share.value == far.nearer.value == 0
    assert far.interval() == pytest.approx((0, 0.037), abs=1e-3)


@pytest.mark.usefixtures("_blocks")
def test_distances_are_exact_far_from_zero_and_of_copies() -> None:
    train, x = normal(40, 30, seed=0), normal(20, 30, seed=1)
    x[:10] = train[shuffled(40)[:10]]
    found = memorisation(x + 1e6, train + 1e6, neighbours=40)
    assert (found.distance[:10] == 0).all()
    apart = torch.cdist(x, train, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    np.testing.assert_allclose(found.distance[10:], apart[10:], rtol=1e-8)
    wide = memorisation(1e3 * x, 1e3 * train)
    assert (wide.distance[:10] == 0).all()


# --- laws of all ----------------------------------------------------------------------------------------------------

ALL: dict[str, Callable[[Tensor, Tensor], Estimate]] = {
    "kernel": kernel_distance,
    "inception": lambda x, y: inception_score(x),
    "precision": lambda x, y: prdc(x, y).precision,
    "recall": lambda x, y: prdc(x, y, groups=20).recall,
    "density": lambda x, y: prdc(x, y).density,
    "coverage": lambda x, y: prdc(x, y, groups=20).coverage,
    "wasserstein": wasserstein,
    "sliced": lambda x, y: sliced_wasserstein_estimate(x, y, 16),
    "copies": lambda x, y: memorisation(x, y, quantile=0.3).share,
    "nearer": lambda x, y: memorisation(x, y).nearer,
}
GEOMETRIC = [name for name in ALL if name not in ("inception", "kernel")]
GROUPED = ("recall", "coverage")


@given(seed=SEEDS, n=st.integers(12, 24), m=st.integers(12, 24), d=st.integers(2, 5))
@settings(deadline=None, max_examples=12)
@pytest.mark.parametrize("name", ALL)
def test_the_order_of_samples_means_nothing(name: str, seed: int, n: int, m: int, d: int) -> None:
    x, y, order = normal(n, d, seed=seed), normal(m, d, seed=seed + 1), shuffled(n, seed)
    one, other, real = ALL[name](x, y), ALL[name](x[order], y), ALL[name](x, y[shuffled(m, seed + 1)])
    assert one.value == pytest.approx(other.value, rel=1e-8, abs=1e-10)
    assert one.value == pytest.approx(real.value, rel=1e-8, abs=1e-10)
    if name not in (*GROUPED, "wasserstein"):  # whose potentials are not unique
        np.testing.assert_allclose(other.influence, one.influence[order], rtol=1e-7, atol=1e-9)


@given(seed=SEEDS, scale=st.sampled_from([0.01, 0.5, 8.0]), n=st.integers(12, 20), d=st.integers(2, 5))
@settings(deadline=None, max_examples=10)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_shifts_mean_nothing_and_scale_is_that_of_a_distance(name: str, seed: int, scale: float, n: int, d: int) -> None:
    x, y = normal(n, d, seed=seed), normal(17, d, seed=seed + 1)
    one, other = ALL[name](x, y), ALL[name](scale * x + 3, scale * y + 3)
    expected = scale if name in ("wasserstein", "sliced") else 1
    assert other.value == pytest.approx(expected * one.value, rel=1e-7, abs=1e-9)
    if name != "wasserstein":
        assert other.se == pytest.approx(expected * one.se, rel=1e-6, abs=1e-9)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=10)
def test_what_the_kernel_and_the_classes_do_not_see(seed: int) -> None:
    x, y = normal(20, 5, seed=seed), normal(30, 5, seed=seed + 1)
    q = torch.linalg.qr(normal(5, 5, seed=seed + 2))[0]
    assert kernel_distance(x @ q, y @ q).value == pytest.approx(kernel_distance(x, y).value, rel=1e-8, abs=1e-10)
    found = inception_score(x)
    assert inception_score(x[:, shuffled(5, seed)] + normal(20, 1, seed=seed)).value == pytest.approx(found.value, rel=1e-9)
    assert 1 <= found.value <= 5


def drawn(name: str, seed: int) -> Tensor:
    return 1.15 * normal(100, 32 if name == "kernel" else 4, seed=seed) + 0.15


@cache
def real_of_intervals(name: str) -> Tensor | Manifold:
    real = normal(100, 32 if name == "kernel" else 4, seed=10_000)
    return Manifold.of(real) if name in PRDC._fields else real


@cache
def simulated(seed: int) -> PRDC:
    return prdc(drawn("", seed), real_of_intervals("recall"), groups=20)


@pytest.mark.parametrize("name", ALL)
def test_intervals_cover_the_mean_of_the_metric(name: str) -> None:
    """200 sets of 100 samples of a worse distribution against one real set; the mean of the metric over them is taken for the truth.

    Recall and coverage have intervals that are too long (`manifolds`)."""
    every = name in PRDC._fields
    found = [getattr(simulated(seed), name) if every else ALL[name](drawn(name, seed), real_of_intervals(name)) for seed in range(200)]
    values = np.array([e.value for e in found])
    covers = np.mean([low <= values.mean() <= high for low, high in (e.interval() for e in found)])
    size = np.sqrt(np.mean([e.se**2 for e in found])) / values.std()
    low, high, longest = (0.95, 1.0, 2.5) if name in GROUPED else (0.9, 0.98, 1.25)
    assert low <= covers <= high, covers
    assert 0.85 < size < longest, size


def test_the_error_of_the_kernel_distance_is_right_also_at_its_floor() -> None:
    """Between equal distributions the influences alone would give 1.15 times the standard error."""
    reference = KernelReference.of(normal(300, 32, seed=10_000))
    found = [kernel_distance(normal(60, 32, seed=seed), reference) for seed in range(400)]
    assert np.sqrt(np.mean([e.se**2 for e in found])) / np.std([e.value for e in found]) == pytest.approx(1, abs=0.08)


def test_float32_and_images_are_computed_in_float64() -> None:
    x, y = normal(20, 3, 2, 2, seed=0).float() + 100, normal(30, 3, 2, 2, seed=1).float() + 100
    for name, metric in ALL.items():
        a, b = (x.flatten(1), y.flatten(1)) if name == "inception" else (x, y)
        assert metric(a, b).value == metric(a.double(), b.double()).value
        assert metric(a, b).influence.dtype == np.float64


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_bad_samples_are_refused_with_a_sentence(name: str) -> None:
    metric, x, y = ALL[name], normal(30, 4, seed=0), normal(30, 4, seed=1)
    bad = x.clone()
    bad[3, 1], bad[7, 0] = torch.nan, torch.inf
    with pytest.raises(MetricError, match=r"2 of 30 samples.*not finite.*diverged"):
        metric(bad, y)
    for few in (x[:0], x[:1], x[:, :0]):
        with pytest.raises(MetricError, match=r"expected|needs at least"):
            metric(few, y)
    if name == "inception":
        return
    with pytest.raises(MetricError, match="not finite"):
        metric(y, bad)
    with pytest.raises(MetricError, match=r"expected the same|same shape"):
        metric(x, y[:, :3])
    with pytest.raises(MetricError, match="expected"):
        metric(x, y[:0])


X, Y = normal(30, 4, seed=0), normal(20, 4, seed=1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: kernel_distance(X, Y, degree=0), "degree 0"),
        (lambda: kernel_distance(X, Y, gamma=-1), "gamma -1"),
        (lambda: kernel_distance(X, KernelReference.of(Y), degree=2), "expected the same kernel"),
        (lambda: kernel_distance(X, KernelReference.of(Y, 2), 3, 0.5), "expected the same kernel"),
        (lambda: kernel_distance_subsets(X, Y, 5, 21), "subsets, of 2 to 20"),
        (lambda: kernel_distance_subsets(X, Y, 0, 5), "0 subsets"),
        (lambda: inception_score(X[:, :1]), "2 or more classes"),
        (lambda: inception_score(X[None]), r"expected \(n, classes\)"),
        (lambda: inception_score(X, 16), "n >= 32"),
        (lambda: inception_score(X, 0), "splits = 0"),
        (lambda: precision_recall(X, Y, 0), "k = 0"),
        (lambda: precision_recall(X, Y, 20), "n >= 21"),
        (lambda: precision_recall(X[:4], Y, 3), "n >= 5"),
        (lambda: precision_recall(X[:10], Y, 5, groups=2), "more than k = 5"),
        (lambda: precision_recall(X, Manifold.of(Y, 2), 3), r"Manifold.of\(real, most=3\)"),
        (lambda: density_coverage(X, Y, groups=1), "groups = 1"),
        (lambda: Manifold.of(Y, 0), "most = 0"),
        (lambda: wasserstein(X, Y, 0.5), "p = 0.5"),
        (lambda: wasserstein(torch.zeros(5001, 1), Y[:, :1]), "5000 at most.*sliced"),
        (lambda: sliced_wasserstein_estimate(X, Y, 0), "at least one direction"),
        (lambda: memorisation(X, Y, quantile=1), "quantile 1"),
        (lambda: memorisation(X, Y, neighbours=1), "neighbours 1"),
        (lambda: memorisation(X, Y, X[:, :2]), "expected the same"),
        (lambda: memorisation(X, Y, X[:0]), "n >= 1"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(call: Callable[[], object], says: str) -> None:
    with pytest.raises(MetricError, match=says):
        call()
