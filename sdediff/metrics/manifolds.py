"""Precision, recall, density and coverage: of balls around samples, as wide as to their k-th nearest neighbour in their own set.

precision: share of the generated samples in some real ball; recall: of the real ones in some generated ball; density: mean number of real
balls around a generated sample, over k; coverage: share of the real balls with a generated sample inside. Balls are open. A perfect
sampler scores less than 1 in three of them: compare with real data against real data. Precision and density are means over generated
samples of numbers of their own; recall and coverage are not, and a group of consecutive samples is the unit of their jackknife, whose
variance is too large rather than too small (Efron & Stein 1981): here standard errors 1.5 to 2.3 times what they are for recall, 1.1
to 1.4 times for coverage, so its intervals cover more than they promise. Sources: Kynkaanniemi et al. 2019; Naeem et al. 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.metrics.blocks import Rows, nearest, slices, squared_distances
from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Manifold:
    """Real samples and the squared distances (m, most) of each to its nearest others, ascending: what needs to be computed once only."""

    rows: Rows
    near: Tensor

    @staticmethod
    def of(real: Tensor, most: int = 5) -> Manifold:
        """Of real features (m, ...), m > most: the largest k that will be asked for. Costs m^2 d operations."""
        _positive("most", most)
        rows = Rows.of(real, "Real features", most + 1)
        return Manifold(rows, nearest(rows, None, most)[0])

    def radii(self, k: int) -> Tensor:
        """(m,) squared distances to the k-th nearest."""
        _positive("k", k)
        if k > self.near.shape[1]:
            raise MetricError(f"k = {k} of a Manifold of {self.near.shape[1]} neighbours. Make it with Manifold.of(real, most={k}).")
        return self.near[:, k - 1]


class PrecisionRecall(NamedTuple):
    precision: Estimate
    recall: Estimate


class DensityCoverage(NamedTuple):
    density: Estimate
    coverage: Estimate


class PRDC(NamedTuple):
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(features: Tensor, real: Tensor | Manifold, k: int = 3, groups: int = 50) -> PrecisionRecall:
    """Of features (n, ...) and real ones (m, ...), n, m > k; in [0, 1].

    The error is that of the n samples, the real ones being given. Influence: of each sample on precision, of each of `groups` groups
    (fewer for n < 2 groups) of consecutive samples on recall. Costs (n^2 + n m) d operations, and m^2 d for real features that are no
    `Manifold`: n = m = 50000, d = 2048 takes 3e13; memory is (n + m) groups numbers and a block. Raises MetricError.
    """
    rows, manifold, count = _start(features, real, k, groups)
    inside, recalled = _Inside(manifold, k, len(rows), count), _Recalled.of(rows, len(manifold.rows), k, count)
    _compare(rows, manifold.rows, count, [inside, recalled])
    return PrecisionRecall(inside.precision, recalled.recall)


def density_coverage(features: Tensor, real: Tensor | Manifold, k: int = 5, groups: int = 50) -> DensityCoverage:
    """Of features (n, ...) and real ones (m, ...), n, m > k; density may exceed 1. Costs n m d operations; else as `precision_recall`."""
    rows, manifold, count = _start(features, real, k, groups)
    inside = _Inside(manifold, k, len(rows), count)
    _compare(rows, manifold.rows, count, [inside])
    return DensityCoverage(inside.density, inside.coverage)


def prdc(features: Tensor, real: Tensor | Manifold, k: int = 3, k_density: int = 5, groups: int = 50) -> PRDC:
    """All four of one set of distances: precision and recall with k, density and coverage with k_density."""
    real = real if isinstance(real, Manifold) else Manifold.of(real, max(k, k_density))
    rows, manifold, count = _start(features, real, max(k, k_density), groups)
    inside, denser = (_Inside(manifold, each, len(rows), count) for each in (k, k_density))
    recalled = _Recalled.of(rows, len(manifold.rows), k, count)
    _compare(rows, manifold.rows, count, [inside, denser, recalled])
    return PRDC(inside.precision, recalled.recall, denser.density, denser.coverage)


# --- one pass over the distances ------------------------------------------------------------------------------------


class _Inside:
    """The real balls: how many are around each generated sample, and which hold one of each group."""

    def __init__(self, manifold: Manifold, k: int, n: int, groups: int) -> None:
        self.k, self.radii = k, manifold.radii(k)
        self.around = torch.zeros(n, dtype=torch.int64)
        self.covered = torch.zeros(len(self.radii), groups, dtype=torch.bool)

    def take(self, distances: Tensor, real: slice, samples: slice, group: int) -> None:
        hit = distances < self.radii[real, None]
        self.around[samples] += hit.sum(0)
        self.covered[real, group] = hit.any(1)

    @property
    def precision(self) -> Estimate:
        return _mean((self.around > 0).double())

    @property
    def density(self) -> Estimate:
        return _mean(self.around.double() / self.k)

    @property
    def coverage(self) -> Estimate:
        left = self.covered.sum(1, keepdim=True) - self.covered.long() > 0
        return _jackknife(self.covered.any(1), left)


class _Recalled:
    """The generated balls: which groups have one around each real sample. `wider` (n, groups): the radii once a group is left out."""

    def __init__(self, radii: Tensor, wider: Tensor, m: int) -> None:
        self.radii, self.wider, self.widest = radii, wider, wider.amax(1)
        self.covered = torch.zeros(m, wider.shape[1], dtype=torch.bool)
        self.left = torch.zeros(m, wider.shape[1], dtype=torch.bool)  # reached only by a ball that grew

    @staticmethod
    def of(rows: Rows, m: int, k: int, groups: int) -> _Recalled:
        near, label = _near_by_group(rows, k, groups)
        wider = torch.stack([near.masked_fill(label == g, torch.inf).sort(1).values[:, k - 1] for g in range(groups)], 1)
        for g, part in enumerate(_groups(len(rows), groups)):
            wider[part, g] = 0  # a sample that is left out has no ball
        return _Recalled(near[:, k - 1], wider, m)

    def take(self, distances: Tensor, real: slice, samples: slice, group: int) -> None:
        self.covered[real, group] = (distances < self.radii[samples]).any(1)
        j, i = ((distances >= self.radii[samples]) & (distances < self.widest[samples])).nonzero(as_tuple=True)
        for part in slices(len(j)):
            which, grown = (distances[j[part], i[part], None] < self.wider[samples][i[part]]).nonzero(as_tuple=True)
            self.left[real.start + j[part][which], grown] = True

    @property
    def recall(self) -> Estimate:
        others = self.covered.sum(1, keepdim=True) - self.covered.long() > 0
        return _jackknife(self.covered.any(1), others | self.left)


def _compare(rows: Rows, real: Rows, groups: int, takers: list[_Inside | _Recalled]) -> None:
    """Show each taker the squared distances (real, samples) of every block of real samples and group of samples."""
    parts = _groups(len(rows), groups)
    for block in slices(len(real)):
        here = real[block]
        for g, part in enumerate(parts):
            distances = squared_distances(here, rows[part])
            for taker in takers:
                taker.take(distances, block, part, g)


def _near_by_group(rows: Rows, k: int, groups: int) -> tuple[Tensor, Tensor]:
    """Squared distances (n, 2k or less) of each to its nearest, ascending, with their groups; no group has more than k of them.

    At least k are left when any one group is taken out.
    """
    parts = _groups(len(rows), groups)
    near, label = [], []
    for block in slices(len(rows)):
        here, found, of = rows[block], [], []
        for g, part in enumerate(parts):
            distances = squared_distances(here, rows[part])
            first = max(block.start, part.start)
            own = torch.arange(first, max(first, min(block.stop, part.stop)))
            distances[own - block.start, own - part.start] = torch.inf
            found.append(distances.topk(min(k, distances.shape[1]), largest=False).values)
            of.append(torch.full_like(found[-1], g, dtype=torch.int64))
        every = torch.cat(found, 1)
        values, order = every.topk(min(2 * k, every.shape[1]), largest=False)
        near.append(values)
        label.append(torch.cat(of, 1).gather(1, order))
    return torch.cat(near), torch.cat(label)


def _groups(n: int, groups: int) -> list[slice]:
    """Consecutive slices, of the sizes of np.array_split."""
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(n), groups)]).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def _mean(each: Tensor) -> Estimate:
    return Estimate(float(each.mean()), each.numpy())


def _jackknife(reached: Tensor, left: Tensor) -> Estimate:
    """The mean of `reached` (m,), where `left` (m, groups) is what remains of it without each group."""
    without = left.double().mean(0).numpy()
    return Estimate(float(reached.double().mean()), (len(without) - 1) * (without.mean() - without))


def _start(features: Tensor, real: Tensor | Manifold, k: int, groups: int) -> tuple[Rows, Manifold, int]:
    _positive("k", k)
    manifold = real if isinstance(real, Manifold) else Manifold.of(real, k)
    manifold.radii(k)
    if groups < 2:
        raise MetricError(f"groups = {groups}; expected 2 or more groups to leave out.")
    rows = Rows.of(features, "Features", k + 2, manifold.rows)
    count = min(groups, len(rows) // 2)
    if len(rows) - -(-len(rows) // count) <= k:
        raise MetricError(
            f"{len(rows)} samples in {count} groups leave {k} or fewer without one of the groups; expected more than k = {k}. "
            "Give more samples, or more groups."
        )
    return rows, manifold, count


def _positive(name: str, given: int) -> None:
    if given < 1 or given != int(given):
        raise MetricError(f"{name} = {given}; expected a whole number of neighbours, 1 or more.")
