"""Memorisation: how near every sample is to the training set, measured by how near the training samples are to one another.

A sample is called a copy where its nearest training sample is nearer than the `quantile` of the distances of training samples to their own
nearest others: of a sampler of the data's distribution about that share is. `nearer` is Meehan et al. 2020's data-copying statistic, the
probability that a sample is nearer to the training set than a reference (held-out data, or training samples left out): 1/2 for fresh
samples. `ratio` is Carlini et al. 2023's, the distance to the nearest over the mean of those to the nearest `neighbours`, which allows
for regions where everything is near: they call less than 1/2 memorised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from sdediff.metrics.blocks import Rows, nearest
from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate
from sdediff.metrics.manifolds import Manifold


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Of n samples.

    share: of copies, those nearer than `threshold`; nearer: the probability to be nearer than a reference, ties counting half; index (n,):
    of the nearest training sample; distance (n,) to it; ratio (n,): that over the mean distance to the nearest `neighbours` (1 for 0/0).
    """

    share: Estimate
    nearer: Estimate
    threshold: float
    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray

    @property
    def copies(self) -> np.ndarray:
        """(n,) whether the sample is one."""
        return self.distance < self.threshold

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's, of the share: it holds also for few copies or none, where that of the Estimate is too short."""
        found = stats.binomtest(int(self.copies.sum()), len(self.copies)).proportion_ci(level, "wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        (low, high), (least, most) = self.interval(), self.nearer.interval()
        return (
            f"{100 * self.share.value:.2g} % copies ({100 * low:.2g} to {100 * high:.2g}) nearer than {self.threshold:.4g} to a training "
            f"sample; nearer than a reference with probability {self.nearer.value:.3f} ({least:.3f} to {most:.3f}), 0.5 for fresh samples"
        )


def memorisation(
    x: Tensor, train: Tensor | Manifold, held_out: Tensor | None = None, quantile: float = 0.05, neighbours: int = 50
) -> Memorisation:
    """Of samples x (n, ...), n >= 2, against all training samples (m, ...), of pixels or features; Euclidean distances, in units of x.

    held_out: data (h, ...) that the network has not seen, the reference instead of the training samples among themselves: fairer where
    the training set has duplicates. neighbours: of `ratio`, m or fewer. The errors are those of the n samples, all else being given.
    Costs n m d operations, and m^2 d without held_out unless train is a `Manifold`; memory is that of a block. Raises MetricError.
    """
    if not 0 < quantile < 1 or neighbours < 2:
        raise MetricError(f"quantile {quantile}, neighbours {neighbours}; expected a quantile between 0 and 1 and 2 or more neighbours.")
    if isinstance(train, Manifold):
        rows = train.rows
    else:
        rows = Rows.of(train, "Training samples", 2)
    samples = Rows.of(x, "Samples", 2, rows)
    if held_out is not None:
        reference = nearest(Rows.of(held_out, "Held-out samples", 1, rows), rows, 1)[0]
    else:
        reference = train.near[:, :1] if isinstance(train, Manifold) else nearest(rows, None, 1)[0]
    apart = np.sort(reference[:, 0].sqrt().numpy())
    squared, index = nearest(samples, rows, min(neighbours, len(rows)))
    every = squared.sqrt().numpy()
    distance, threshold = every[:, 0], float(np.quantile(apart, quantile))
    below, upto = (np.searchsorted(apart, distance, side=side) for side in ("left", "right"))
    rank = 1 - (below + upto) / (2 * len(apart))
    mean = every.mean(1)
    ratio = np.divide(distance, mean, out=np.ones_like(mean), where=mean > 0)
    copies = (distance < threshold).astype(np.float64)
    return Memorisation(Estimate(copies.mean(), copies), Estimate(rank.mean(), rank), threshold, index[:, 0].numpy(), distance, ratio)
