"""What a bound comes back as: the value of each sample, its three parts, and a table of the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..batch import mean_with_error


class Parts(NamedTuple):
    """The three parts (B,), nats: KL to the prior, the sum of the KLs of the steps, and E ln p(x0 | x_{t_N})."""

    prior: Tensor
    consistency: Tensor
    reconstruction: Tensor


class Term(NamedTuple):
    """One row of the table: from `time` to `to` (cleaner), the signal-to-noise ratios there, and the nats it costs.

    nats: the mean over the samples; standard_error: of that mean, from the noise drawn. With `times=n` a row is one of n equal parts.
    """

    time: float
    to: float
    snr: float
    snr_to: float
    nats: float
    standard_error: float


@dataclass(frozen=True)
class Bound:
    """A lower bound on ln p(x0), nats, of each sample: `value` = reconstruction - prior - consistency, float64 (B,).

    standard_error (B,): of `value`, from the noise and the steps drawn (NaN where a single draw tells nothing of it); steps: the
    consistency, row by row; calls: network calls, each for a batch; discrete: the value is the log of a probability (of grey levels), not
    of a density.
    """

    value: Tensor
    standard_error: Tensor
    parts: Parts
    steps: tuple[Term, ...]
    calls: int
    dimension: int
    discrete: bool

    def bits_per_dim(self) -> Tensor:
        """-value / (d ln 2), (B,): an upper bound. With a Gaussian decoder it is of a density in the units of x and may be negative."""
        return -self.value / (self.dimension * math.log(2.0))

    def mean(self) -> tuple[float, float]:
        """The mean bound over the samples and its standard error, which has the spread of the samples and the noise drawn in it."""
        return mean_with_error(self.value, self.standard_error)

    def __str__(self) -> str:
        (value, error), scale = self.mean(), 1 / (self.dimension * math.log(2.0))
        of = "ln P of grey levels" if self.discrete else "ln p"
        prior, consistency, reconstruction = (float(part.mean()) for part in self.parts)
        lines = [
            f"{of} >= {value:.6g} +- {error:.2g} nats, mean of {len(self.value)} samples "
            f"({-value * scale:.5g} +- {error * scale:.1g} bits/dim; {self.calls} calls)",
            f"  reconstruction {reconstruction:.6g} - prior {prior:.6g} - consistency {consistency:.6g}",
            f"  {'time':>9} {'to':>9} {'SNR':>10} {'to':>10} {'nats':>10} {'+-':>8}",
        ]
        shown = np.unique(np.linspace(0, len(self.steps) - 1, min(12, len(self.steps))).round().astype(int))
        for i in shown:
            row = self.steps[i]
            lines.append(f"  {row[0]:9.4g} {row[1]:9.4g} {row[2]:10.4g} {row[3]:10.4g} {row[4]:10.4g} {row[5]:8.1g}")
        if len(shown) < len(self.steps):
            lines.append(f"  ({len(shown)} of {len(self.steps)} rows)")
        return "\n".join(lines)
