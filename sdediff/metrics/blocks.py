"""Rows of numbers read a block at a time in float64, and their distances: what the metrics over pairs of samples share.

A distance is |a|^2 + |b|^2 - 2 a.b, a matrix product, of rows shifted to a common centre so that little cancels; what remains of
rounding counts as zero, so that a copy is at distance zero from its original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.metrics.errors import MetricError

BLOCK = 2048  # rows of a block: 32 MiB for the distances between two


@dataclass(frozen=True, eq=False)
class Rows:
    """n samples of d finite numbers, in the precision given; `rows[slice]` is float64, less the centre."""

    x: Tensor
    centre: Tensor

    @staticmethod
    def of(x: Tensor, name: str = "Samples", least: int = 1, like: Rows | None = None) -> Rows:
        """Samples (n, ...), flattened, about their mean or that of others. MetricError for fewer than `least`, another d, or not finite."""
        if x.ndim < 2 or len(x) < least or x[:1].numel() == 0:
            raise MetricError(
                f"{name} of shape {tuple(x.shape)}; expected (n, ...) with n >= {least} and one or more numbers in each. Give more samples."
            )
        flat = x.detach().cpu().flatten(1)
        if like is not None and flat.shape[1] != like.x.shape[1]:
            raise MetricError(
                f"{name} of {flat.shape[1]} numbers a sample against {like.x.shape[1]}; expected the same. "
                "Compute both with the same feature extractor."
            )
        wrong = sum(int((~flat[part].isfinite()).any(1).sum()) for part in slices(len(flat)))
        if wrong:
            raise MetricError(
                f"{wrong} of {len(flat)} samples ({name.lower()}) are not finite; expected finite numbers. "
                "Look for a diverged sampler, or drop these samples and report their number."
            )
        if like is not None:
            return Rows(flat, like.centre)
        total = flat.new_zeros(flat.shape[1], dtype=torch.float64)
        for part in slices(len(flat)):
            total += flat[part].double().sum(0)
        return Rows(flat, total / len(flat))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: slice) -> Tensor:
        return self.x[part].double() - self.centre


def slices(stop: int, first: int = 0, block: int | None = None) -> Iterator[slice]:
    """Consecutive slices of first, ..., stop - 1."""
    size = BLOCK if block is None else block
    for start in range(first, stop, size):
        yield slice(start, min(start + size, stop))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of a (n, d) and b (m, d), float64."""
    scale = a.square().sum(1)[:, None] + b.square().sum(1)
    found = torch.addmm(scale, a, b.T, alpha=-2)
    rounding = (a.shape[1] + 8) * torch.finfo(torch.float64).eps
    return found.masked_fill_(found <= rounding * scale, 0)


def nearest(a: Rows, b: Rows | None, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances (n, k) of each of a to its k nearest in b, ascending, and their indices; b None: in a, without itself."""
    others = a if b is None else b
    distances, indices = [], []
    for part in slices(len(a)):
        rows = a[part]
        best, where = rows.new_full((len(rows), k), torch.inf), torch.full((len(rows), k), -1)
        for columns in slices(len(others)):
            between = squared_distances(rows, others[columns])
            if b is None and columns == part:
                between.fill_diagonal_(torch.inf)
            here = torch.arange(columns.start, columns.stop).expand(len(rows), -1)
            best, order = torch.cat([best, between], 1).topk(k, largest=False)
            where = torch.cat([where, here], 1).gather(1, order)
        distances.append(best)
        indices.append(where)
    return torch.cat(distances), torch.cat(indices)
