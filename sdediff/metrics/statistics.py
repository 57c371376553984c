"""The first two moments of a stream of features, in memory that does not grow with the number of samples.

Kept are n, the mean and the scatter sum (x - mean)(x - mean)^T, all float64; a batch is centred by its own mean and joined by the rule
of Chan, Golub & LeVeque 1983, so nothing cancels however far the features are from zero, and however the stream was cut.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.metrics.errors import MetricError


class Moments(NamedTuple):
    """What the Frechet distance needs of n features: mean (d,), unbiased covariance (d, d), both float64 on the CPU."""

    mean: Tensor
    cov: Tensor
    n: int


class Statistics:
    """Mean and covariance of features that come in batches: d (d + 1) numbers, whatever n. The same cuts give the same bits.

    Any other cuts, and `merge` of the parts of other processes, agree to rounding (1e-12 of the largest covariance).
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (b, d), of any float dtype and device. MetricError if they are not finite (says how many), or of another d."""
        values = checked_features(features)
        if len(values):
            mean = values.mean(0)
            self._join(len(values), mean, values - mean)

    def merge(self, other: Statistics) -> None:
        """Add what another has seen; `other` stays as it is."""
        if other.n:
            self._join(other.n, other._mean, other._mean.new_zeros(0, len(other._mean)))
            self._scatter += other._scatter

    def moments(self) -> Moments:
        """Mean and unbiased covariance of all so far. MetricError before the second sample."""
        if self.n < 2:
            raise MetricError(f"Features of {self.n} sample(s); a covariance needs at least 2. Give more samples.")
        cov = self._scatter / (self.n - 1)
        return Moments(self._mean.clone(), (cov + cov.T) / 2, self.n)

    def _join(self, b: int, mean: Tensor, centred: Tensor) -> None:
        if self.n == 0:
            self._mean, self._scatter = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        if len(mean) != len(self._mean):
            raise MetricError(
                f"Features of {len(mean)} numbers a sample after {self.n} of {len(self._mean)}; expected the same. "
                "Compute all with the same feature extractor."
            )
        n, self.n = self.n, self.n + b
        apart = mean - self._mean
        rows = torch.cat((centred, (n * b / self.n) ** 0.5 * apart[None]))  # the distance of the two means is one more row
        self._scatter.addmm_(rows.T, rows)
        self._mean += apart * (b / self.n)


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance (divisor n - 1) of features (n, d), n >= 2, computed in float64.

    Raises MetricError for another shape, fewer than two samples, or values that are not finite.
    """
    values = checked_features(features)
    n = len(values)
    if n < 2:
        raise MetricError(f"Features of {n} sample(s); a covariance needs at least 2. Give more samples.")
    mean = values.mean(0)
    centred = values - mean
    return Moments(mean, centred.T @ centred / (n - 1), n)


def checked_features(features: Tensor) -> Tensor:
    """The same (n, d) in float64 on the CPU, if finite."""
    if features.ndim != 2 or features.shape[1] == 0:
        raise MetricError(f"Features have shape {tuple(features.shape)}; expected (n, d). Use x.flatten(1) for images.")
    values = float64(features)
    wrong = int((~values.isfinite()).any(1).sum())
    if wrong:
        raise MetricError(
            f"{wrong} of {len(values)} samples have features that are not finite; expected finite numbers. "
            "Look for a diverged sampler, or drop these samples and report their number."
        )
    return values


def float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
