"""The kernel distance (KID): the unbiased squared maximum mean discrepancy of two sets of features, with a polynomial kernel.

With k(a, b) = (gamma a.b + coef)^degree, d = mean_{i != j} k(x_i, x_j) - 2 mean_{ij} k(x_i, y_j) + mean_{i != j} k(y_i, y_j). Its
expectation is the same for every n, zero for equal distributions, so it may be negative. Over all samples at once it has less
variance than the usual mean over random subsets, which `kernel_distance_subsets` gives. Source: Binkowski et al. 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.metrics.blocks import Rows, slices
from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate


@dataclass(frozen=True, eq=False)
class KernelReference:
    """Real features, their kernel, and the mean of k(y_i, y_j), i != j: the part that needs to be computed once only."""

    rows: Rows
    degree: int
    gamma: float
    coef: float
    within: float

    @staticmethod
    def of(real: Tensor, degree: int = 3, gamma: float | None = None, coef: float = 1.0) -> KernelReference:
        """Of features (m, d), m >= 2; gamma None: 1/d. Costs m^2 d operations."""
        rows = _rows(real, "Real features", None)
        scale = 1 / rows.x.shape[1] if gamma is None else float(gamma)
        if not (degree >= 1 and degree == int(degree) and 0 < scale < np.inf and 0 <= coef < np.inf):
            raise MetricError(f"degree {degree}, gamma {gamma}, coef {coef}; expected a whole degree >= 1, gamma > 0 and coef >= 0.")
        bare = KernelReference(rows, int(degree), scale, float(coef), 0.0)
        sums, diagonal = bare.sums(rows, None)
        return KernelReference(rows, bare.degree, scale, bare.coef, float((sums.sum() - diagonal.sum()) / (len(rows) * (len(rows) - 1))))

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.gamma * (a @ b.T) + self.coef) ** self.degree

    def sums(self, x: Rows, y: Rows | None) -> tuple[Tensor, Tensor]:
        """Of each x_i: the sums over y_j (n, 1), or, y None, those over the first x_j, j < n//2, and the rest (n, 2); and k(x_i, x_i)."""
        n = len(x)
        total, diagonal = torch.zeros(n, 2, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        parts = [*slices(n // 2), *slices(n, n // 2)]
        for i, rows in enumerate(parts):
            left, half = x[rows], int(rows.start >= n // 2)
            diagonal[rows] = (self.gamma * left.square().sum(1) + self.coef) ** self.degree
            if y is not None:
                for columns in slices(len(y)):
                    total[rows, 0] += self.kernel(left, y[columns]).sum(1)
                continue
            for columns in parts[i:]:
                between = self.kernel(left, x[columns])
                total[rows, int(columns.start >= n // 2)] += between.sum(1)
                if columns != rows:
                    total[columns, half] += between.sum(0)
        return total, diagonal


def kernel_distance(
    features: Tensor, real: Tensor | KernelReference, degree: int = 3, gamma: float | None = None, coef: float = 1.0
) -> Estimate:
    """The unbiased squared MMD of features (n, d) and real ones (m, d), n, m >= 2; gamma None: 1/d. In units of the kernel.

    The error is that of the n samples, the real ones being given. Influence: of the Hajek projection, 2 (mean_j k(x_i, x_j) -
    mean_j k(x_i, y_j)), centred. Costs (n^2/2 + n m) d operations and, of real features that are no `KernelReference`, m^2 d/2
    more; memory beyond the features is that of a block. Raises MetricError for other sizes, too few samples, or not finite.
    """
    reference = real if isinstance(real, KernelReference) else KernelReference.of(real, degree, gamma, coef)
    asked = (degree, 1 / reference.rows.x.shape[1] if gamma is None else gamma, coef)
    if isinstance(real, KernelReference) and (degree, gamma, coef) != (3, None, 1.0) and asked != (real.degree, real.gamma, real.coef):
        raise MetricError(
            f"The reference has degree {real.degree}, gamma {real.gamma}, coef {real.coef}, not {asked}; "
            "expected the same kernel. Leave these out, or make another KernelReference."
        )
    rows = _rows(features, "Features", reference.rows)
    n, m = len(rows), len(reference.rows)
    across = reference.sums(rows, reference.rows)[0].sum(1) / m
    sums, diagonal = reference.sums(rows, None)
    within = (sums.sum(1) - diagonal) / (n - 1)
    value = float(within.mean() - 2 * across.mean() + reference.within)
    halves = None
    if n >= 4:
        parts = (slice(0, n // 2), slice(n // 2, n))
        each = [_in_half(sums[part, h] - diagonal[part], across[part], n) for h, part in enumerate(parts)]
        halves = torch.cat(each).numpy()
    return Estimate(value, 2 * (within - across).numpy(), halves)


class Subsets(NamedTuple):
    """The mean over subsets, their standard deviation (divisor: their number), and each one's distance."""

    mean: float
    std: float
    values: np.ndarray


def kernel_distance_subsets(
    features: Tensor,
    real: Tensor,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    indices: tuple[np.ndarray, np.ndarray] | None = None,
) -> Subsets:
    """As published tables have it: the distance of `subsets` random subsets of `size` features to as many real ones.

    The subsets are drawn without replacement, features first, in the order and with the generator of torch-fidelity; or indices:
    (subsets, size) into the features and into the real ones. Their standard deviation is no error of their mean: subsets overlap.
    """
    x, y = _rows(features, "Features", None), _rows(real, "Real features", None)
    if indices is None:
        if not (subsets >= 1 and 2 <= size <= min(len(x), len(y))):
            raise MetricError(
                f"{subsets} subsets of {size} of {len(x)} features and {len(y)} real ones; expected one or more subsets, of 2 to "
                f"{min(len(x), len(y))}. Take a smaller size, or kernel_distance, which uses all."
            )
        draw = np.random.RandomState(seed)
        drawn = [[draw.choice(len(z), size, replace=False) for z in (x, y)] for _ in range(subsets)]
    else:
        drawn = [[np.asarray(a), np.asarray(b)] for a, b in zip(*indices, strict=True)]
    values = np.array([kernel_distance(x.x[a], y.x[b], degree, gamma, coef).value for a, b in drawn])
    return Subsets(float(values.mean()), float(values.std()), values)


def _rows(x: Tensor, name: str, like: Rows | None) -> Rows:
    """About zero, not the mean: the kernel is of the numbers themselves."""
    rows = Rows.of(x, name, 2, like)
    return Rows(rows.x, torch.zeros_like(rows.centre))


def _in_half(sums: Tensor, across: Tensor, n: int) -> Tensor:
    size = len(sums)
    own = 2 * (sums / (size - 1) - across)
    return (own - own.mean()) * (n / (2 * size))
