"""The Frechet distance between Gaussians fitted to two sets of features, exact for rank-deficient covariances.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Write S = F F^T. Then tr (S1 S2)^(1/2) is the nuclear norm of
F2^T F1, and the covariance part is min over orthogonal U of |F1 - F2 U|^2, reached at the polar factor U of F2^T F1.
This sum of squares is what is computed: it cannot be negative or complex, identical inputs give zero without
cancellation, and no square root is taken of the rounding noise of null eigenvalues (`sqrtm(S1 @ S2)` takes it: 1e-16
becomes 1e-8 in each null direction). Sources: Dowson & Landau 1982; Heusel et al. 2017 (FID); Bhatia, Jain & Lim 2019
(the minimum over U).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.metrics.errors import MetricError


class Moments(NamedTuple):
    """What the Frechet distance needs of n features: mean (d,), unbiased covariance (d, d), both float64 on the CPU."""

    mean: Tensor
    cov: Tensor
    n: int


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance (divisor n - 1) of features (n, d), n >= 2, computed in float64.

    Raises MetricError for another shape, fewer than two samples, or values that are not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise MetricError(f"Features have shape {tuple(features.shape)}; expected (n, d). Use x.flatten(1) for images.")
    n = len(features)
    if n < 2:
        raise MetricError(f"Features of {n} sample(s); a covariance needs at least 2. Give more samples.")
    values = _float64(features)
    wrong = int((~values.isfinite()).any(1).sum())
    if wrong:
        raise MetricError(
            f"{wrong} of {n} samples have features that are not finite; expected finite numbers. "
            "Look for a diverged sampler, or drop these samples and report their number."
        )
    mean = values.mean(0)
    centred = values - mean
    return Moments(mean, centred.T @ centred / (n - 1), n)


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared 2-Wasserstein distance of the fitted Gaussians; >= 0.

    a, b: features (n, d) of any float dtype, or their Moments (keep those of the real data: they are the costly half).
    In units of the features squared. Raises MetricError for features that `moments` refuses, for Moments that are no
    mean and covariance, and when the two have different d.
    """
    first = _checked(a) if isinstance(a, Moments) else moments(a)
    second = _checked(b) if isinstance(b, Moments) else moments(b)
    if len(first.mean) != len(second.mean):
        raise MetricError(
            f"Features of {len(first.mean)} and of {len(second.mean)} numbers a sample; expected the same. "
            "Compute both with the same feature extractor."
        )
    factor1, factor2 = _factor(first.cov), _factor(second.cov)
    left, _, right = torch.linalg.svd(factor2.T @ factor1)
    residual = factor1 - factor2 @ (left @ right)
    return float((first.mean - second.mean).square().sum() + residual.square().sum())


def noise_floor(features: Tensor, repeats: int = 10, seed: int = 0, size: int | None = None) -> tuple[float, float]:
    """Mean and standard deviation of the Frechet distance between random halves of features (n, d), n >= 4.

    size: of the first set, the others being the second: the floor of `size` samples against data of about n. The distance is biased
    upward by about 1/n, so the floor of halves is that of n/2 samples against n/2; larger sets have a lower one.
    Raises MetricError for features that `moments` refuses, n < 4, repeats < 2, or a size that leaves fewer than 2 in either set.
    """
    n = len(features)
    if n < 4 or repeats < 2:
        raise MetricError(f"{n} samples, {repeats} repeats; expected at least 4 samples (2 a half) and 2 repeats.")
    first, most = (n // 2, 2 * (n // 2)) if size is None else (size, n)
    if not 2 <= first <= n - 2:
        raise MetricError(f"size = {size} of {n} samples leaves fewer than 2 in one of the sets; expected 2 to {n - 2}.")
    generator = torch.Generator().manual_seed(seed)
    values, distances = features.detach().cpu(), []
    for _ in range(repeats):
        order = torch.randperm(n, generator=generator)
        distances.append(frechet_distance(values[order[:first]], values[order[first:most]]))
    found = torch.tensor(distances, dtype=torch.float64)
    return float(found.mean()), float(found.std())


def _float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _checked(given: Moments) -> Moments:
    """The same Moments in float64 on the CPU, if they are a finite mean (d,) and a finite symmetric matrix (d, d)."""
    mean, cov = _float64(given.mean), _float64(given.cov)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or len(mean) == 0:
        raise MetricError(
            f"Moments with mean {tuple(mean.shape)} and covariance {tuple(cov.shape)}; expected (d,) and (d, d). "
            "Make them with moments(features)."
        )
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise MetricError("Moments that are not finite; expected finite numbers. Look for a diverged sampler.")
    if not torch.allclose(cov, cov.T, rtol=0, atol=1e-6 * float(cov.abs().max())):
        raise MetricError("The covariance is not symmetric; expected S = S^T. Make it with moments(features).")
    return Moments(mean, cov, given.n)


def _factor(cov: Tensor) -> Tensor:
    """F (d, d) with F F^T = cov, where eigenvalues below d * eps * max, rounding noise, count as zero."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    largest = float(values.abs().max())
    if float(values.min()) < -1e-6 * largest:
        raise MetricError(
            f"The covariance has the eigenvalue {float(values.min()):.3g}; expected none below zero. Make it with moments(features)."
        )
    noise = len(cov) * torch.finfo(torch.float64).eps * largest
    return vectors * values.where(values > noise, values.new_zeros(())).sqrt()
