"""The distances against their closed forms, above all where the usual formula (sqrtm of S1 S2) breaks."""

import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff.metrics import MetricError, Moments, frechet_distance, moments, noise_floor, sliced_wasserstein

SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def test_moments_are_those_of_numpy() -> None:
    x = normal(50, 4, seed=0).float()
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.cov, np.cov(x.double().numpy().T), rtol=1e-12)
    assert found.n == 50
    assert found.mean.dtype == found.cov.dtype == torch.float64


@given(seed=SEEDS, d=st.integers(1, 8), rank=st.integers(0, 8), other=st.integers(0, 8))
@settings(deadline=None, max_examples=60)
def test_frechet_of_commuting_covariances(seed: int, d: int, rank: int, other: int) -> None:
    """S_i = Q diag(w_i) Q^T: d^2 = |m1 - m2|^2 + sum (sqrt w1 - sqrt w2)^2, any of the w zero."""
    w1, w2 = (normal(d, seed=seed + k).square() * (torch.arange(d) < r) for k, r in ((0, rank), (1, other)))
    q, m1, m2 = rotation(d, seed + 2), normal(d, seed=seed + 3), normal(d, seed=seed + 4)
    a, b = Moments(m1, q * w1 @ q.T, 9), Moments(m2, q * w2 @ q.T, 9)
    exact = float((m1 - m2).square().sum() + (w1.sqrt() - w2.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-10, abs=1e-10)


@given(seed=SEEDS, d=st.integers(2, 12), rank=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_frechet_of_rank_deficient_covariances(seed: int, d: int, rank: int) -> None:
    """S1 = A A^T, S2 = B B^T with A, B (d, rank) and no common eigenvectors: tr (S1 S2)^(1/2) is the sum of the singular
    values of B^T A, here of a (rank, rank) matrix that has full rank."""
    a, b = normal(d, min(rank, d), seed=seed), normal(d, min(rank, d), seed=seed + 1)
    zero = torch.zeros(d)
    exact = float(a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(b.T @ a).sum())
    found = frechet_distance(Moments(zero, a @ a.T, 9), Moments(zero, b @ b.T, 9))
    assert found == pytest.approx(exact, rel=1e-10, abs=1e-10)


def test_frechet_agrees_with_scipy_where_the_covariances_are_regular() -> None:
    x, y = normal(500, 6, seed=0) @ normal(6, 6, seed=1), normal(300, 6, seed=2) @ normal(6, 6, seed=3) + 0.5
    (m1, s1, _), (m2, s2, _) = ([v if isinstance(v, int) else v.numpy() for v in moments(z)] for z in (x, y))
    root = scipy.linalg.sqrtm(s1 @ s2)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(x), y) == frechet_distance(x, y)


@given(seed=SEEDS, n=st.integers(2, 30), m=st.integers(2, 30), d=st.integers(1, 40), low=st.booleans())
@settings(deadline=None, max_examples=60)
def test_frechet_laws_for_samples(seed: int, n: int, m: int, d: int, low: bool) -> None:
    """Zero for identical samples, symmetric, never negative, invariant to rotations and shifts; also d > n and samples
    in a subspace."""
    x, y = normal(n, d, seed=seed), 2 * normal(m, d, seed=seed + 1)
    if low:
        x[:, d // 2 :], y[:, d // 2 :] = 0, 0
    found = frechet_distance(x, y)
    assert 0 <= frechet_distance(x, x) <= 1e-10
    assert 0 <= frechet_distance(x, x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]) <= 1e-10
    assert found >= 0
    assert frechet_distance(y, x) == pytest.approx(found, rel=1e-9, abs=1e-10)
    q = rotation(d, seed + 2)
    assert frechet_distance(x @ q + 3, y @ q + 3) == pytest.approx(found, rel=1e-9, abs=1e-10)
    assert frechet_distance(x + 1, x) == pytest.approx(d, rel=1e-10)


def test_frechet_of_half_precision_is_computed_in_float64() -> None:
    x, y = normal(100, 5, seed=0).bfloat16(), normal(100, 5, seed=1).bfloat16()
    assert frechet_distance(x, y) == frechet_distance(x.double(), y.double())


def test_frechet_refuses_what_it_is_not_defined_for() -> None:
    x = normal(10, 3, seed=0)
    bad = x.clone()
    bad[2, 1], bad[5, 0] = torch.nan, torch.inf
    with pytest.raises(MetricError, match="2 of 10 samples have features that are not finite"):
        frechet_distance(bad, x)
    with pytest.raises(MetricError, match="of 3 and of 2 numbers"):
        frechet_distance(x, x[:, :2])
    with pytest.raises(MetricError, match=r"1 sample\(s\)"):
        frechet_distance(x, x[:1])
    with pytest.raises(MetricError, match="flatten"):
        frechet_distance(x[:, :, None], x)
    good = moments(x)
    with pytest.raises(MetricError, match=r"expected \(d,\) and \(d, d\)"):
        frechet_distance(good._replace(mean=good.cov), x)
    with pytest.raises(MetricError, match="not finite"):
        frechet_distance(good._replace(cov=good.cov * torch.nan), x)
    with pytest.raises(MetricError, match="not symmetric"):
        frechet_distance(good._replace(cov=good.cov.triu() + torch.eye(3).triu(1)), x)
    with pytest.raises(MetricError, match="none below zero"):
        frechet_distance(good._replace(cov=-good.cov), x)


def test_noise_floor_of_gaussian_features() -> None:
    """Between halves of n/2 standard normal samples E d^2 is 2 d/(n/2) for the means plus d (d+1)/(2 n/2) for the
    covariances, to leading order in 1/n: 2 * 8/500 + 8 * 9/1000 = 0.104."""
    x = normal(1000, 8, seed=0)
    mean, std = noise_floor(x, repeats=20)
    assert mean == pytest.approx(0.104, rel=0.15)
    assert 0 < std < 0.05
    assert noise_floor(x, repeats=20) == (mean, std)
    assert noise_floor(x, repeats=20, seed=1) != (mean, std)
    with pytest.raises(MetricError, match="at least 4 samples"):
        noise_floor(x[:3])
    with pytest.raises(MetricError, match="2 repeats"):
        noise_floor(x, repeats=1)
    for size in (1, len(x) - 1, len(x)):
        with pytest.raises(MetricError, match="size"):
            noise_floor(x, size=size)
    assert noise_floor(x, repeats=5, size=len(x) // 2) == noise_floor(x, repeats=5)
    # sets of m and m': (d + d (d+1)/4) (1/m + 1/m')
    assert noise_floor(x, repeats=40, size=100)[0] == pytest.approx(26 * (1 / 100 + 1 / 900), rel=0.15)


def test_noise_floor_halves_are_disjoint() -> None:
    """Four points in general position: disjoint pairs differ, whatever the halves."""
    mean, _ = noise_floor(torch.tensor([[0.0], [1.0], [10.0], [100.0]]))
    pairs = [((0, 1), (10, 100)), ((0, 10), (1, 100)), ((0, 100), (1, 10))]
    possible = [frechet_distance(torch.tensor([a]).T.float(), torch.tensor([b]).T.float()) for a, b in pairs]
    assert min(possible) <= mean <= max(possible)
    assert noise_floor(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))[0] < 1


@given(seed=SEEDS, n=st.integers(1, 20), d=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_sliced_wasserstein_of_a_shift(seed: int, n: int, d: int) -> None:
    """Every projection moves by <c, direction>: exactly |c| for d = 1; in the mean |c|/sqrt(d)."""
    x, c = normal(n, d, seed=seed), normal(d, seed=seed + 1)
    found = sliced_wasserstein(x, x + c, projections=64, seed=seed)
    directions = np.random.default_rng(seed).standard_normal((d, 64))
    exact = np.sqrt(((c.numpy() @ (directions / np.linalg.norm(directions, axis=0))) ** 2).mean())
    assert found == pytest.approx(exact, rel=1e-7)
    if d == 1:
        assert found == pytest.approx(float(c.abs()), rel=1e-7)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x[order], seed=seed) <= 1e-7


def test_sliced_wasserstein_of_images_and_many_directions() -> None:
    x = normal(40, 1, 4, 4, seed=0).float()
    found = sliced_wasserstein(x, x + 2, projections=4000)
    assert found == pytest.approx(2.0, rel=0.05)  # |c| = 2 sqrt(16), sqrt(d) = 4
    assert sliced_wasserstein(x, x + 2, projections=4000) == found
    assert sliced_wasserstein(x, x + 2, projections=4000, seed=1) != found
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sliced_wasserstein(x, x[:7])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_sliced_wasserstein_refuses_what_it_is_not_defined_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(5, 3, seed=0)
    with pytest.raises(MetricError, match="same shape"):
        sliced_wasserstein(x, x[:, :2])
    with pytest.raises(MetricError, match="at least one"):
        sliced_wasserstein(x, x[:0])
    with pytest.raises(MetricError, match="at least one"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(MetricError, match="5 of 5 samples are not finite"):
        sliced_wasserstein(x, x * torch.nan)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MetricError, match=r"pip install 'sdediff\[study\]'"):
        sliced_wasserstein(x, x)
