"""How Gaussian latents are: each coordinate's mean and standard deviation, and the distance of all values from N(0, 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from sdediff.metrics.errors import MetricError


@dataclass(frozen=True)
class Gaussianity:
    """Of n latents of d coordinates, which should be N(0, 1).

    mean: root mean square over the coordinates of each one's mean (expected for n draws: 1/sqrt(n)); std: of all values; lowest, highest:
    the coordinates' least and largest standard deviation; ks: the Kolmogorov-Smirnov distance of all values from N(0, 1); rejected:
    the share of coordinates that their own Kolmogorov-Smirnov test rejects at 5 % (expected: 0.05).
    """

    n: int
    mean: float
    std: float
    lowest: float
    highest: float
    ks: float
    rejected: float

    def __str__(self) -> str:
        return (
            f"mean {self.mean:.3f} ({self.n**-0.5:.3f} expected), std {self.std:.3f} ({self.lowest:.3f} to {self.highest:.3f} by "
            f"coordinate), KS {self.ks:.3f}, {100 * self.rejected:.0f} % of the coordinates rejected"
        )


def gaussianity(x: Tensor) -> Gaussianity:
    """Measure latents (n, ...) scaled to unit variance. `MetricError` if there are none or they are not finite."""
    z = x.detach().cpu().double().flatten(1).numpy()
    if not z.size or not np.isfinite(z).all():
        raise MetricError(f"gaussianity needs finite latents (n, ...), not {tuple(x.shape)} with NaN or infinity, or none.")
    std = z.std(0)
    each = stats.ks_1samp(z, stats.norm.cdf, axis=0, method="asymp").pvalue  # type: ignore[attr-defined]
    whole = float(stats.ks_1samp(z.ravel(), stats.norm.cdf, method="asymp").statistic)  # type: ignore[attr-defined]
    mean = float(np.sqrt((z.mean(0) ** 2).mean()))
    return Gaussianity(len(z), mean, float(z.std()), float(std.min()), float(std.max()), whole, float((each < 0.05).mean()))
