"""The answer about a log-likelihood: values, error bars, and a budget of the five errors that it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from scipy import special
from torch import Tensor

from ..batch import mean_with_error
from ..names import UserError
from .dequantise import Levels


@dataclass(frozen=True)
class Budget:
    """Sizes of the errors of each sample's log-likelihood, in nats, (B,), none negative; nan where it cannot be known.

    probes: standard error of the trace. ode: what the steps are off by, estimated. truncation: between the density at t_min and that of the
    data, to first order in sigma^2, (sigma^2/2) |tr H + |s|^2| of the score s and its Jacobian H at t_min ("noised": the gap of the bound
    for a Gaussian posterior); of the size of D/2 or more, the data has structure finer than u. dequantisation: gap of the bound,
    KL(q || p in the box) for p locally Gaussian. prior: |log p_T - log prior| at x_T, known for an oracle, else K + sqrt(2 K) of
    K = KL(q(x_T | x) || prior), whose mean over data bounds the mean of the difference; 0 for a prior that was given.
    """

    probes: Tensor
    ode: Tensor
    truncation: Tensor
    dequantisation: Tensor
    prior: Tensor


PARTS = tuple(f.name for f in fields(Budget))


@dataclass(frozen=True)
class LogLikelihood:
    """Of a batch. `print` it for the table of means.

    value: (B,) nats: log-density of the data, or with `levels` a lower bound (in expectation) of the log-probability of the image.
    standard_error: (B,) from the probes: 0 for an exact trace, nan for one probe. budget: five sizes of errors. latent: x_T (B, ...).
    estimates: (B, m), each probe's own log-likelihood. dimension: D. calls: of the network, all batches together, each with a
    vector-Jacobian product for every probe. reached: whether the solver got to t_max for every sample, and `reason` if not.
    """

    value: Tensor
    standard_error: Tensor
    budget: Budget
    latent: Tensor
    estimates: Tensor
    dimension: int
    calls: int
    levels: Levels | None = None
    reached: bool = True
    reason: str = ""

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,), (B,) of the interval that holds what the exact trace would give, with this confidence.

        Student's t over the probes, corrected for their skewness by Hall's transformation (1992): e' J e is skewed where few directions
        matter, and the plain interval then holds for 82 to 92 % instead of 95 %.
        """
        if not 0 < level < 1:
            raise UserError(f"a confidence level lies between 0 and 1, not {level}.")
        n = self.estimates.shape[1]
        if n == 1:
            return self.value - self.standard_error, self.value + self.standard_error
        quantile = float(special.stdtrit(n - 1, 0.5 + level / 2))
        off = self.estimates - self.value[:, None]
        std = off.square().mean(1).sqrt().clamp(1e-300)
        skew = (off / std[:, None]).pow(3).mean(1) * (math.sqrt(n * (n - 1)) / (n - 2) if n > 2 else 0.0)
        low, high = (self.value - self.standard_error * _untransformed(y, skew, n) for y in (quantile, -quantile))
        return low, high

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,): -log2 P / D of images of grey levels. `UserError` without levels: a density has no bits; see `bits`."""
        if self.levels is None:
            raise UserError("bits per dimension need the grey levels: log_likelihood(..., levels=Levels(-1, 1, 256)), or .bits(levels).")
        return -self.value / (self.dimension * math.log(2))

    def bits(self, levels: Levels) -> Tensor:
        """(B,): of data already dequantised by the caller to bins of that width."""
        if self.levels is not None:
            raise UserError("these are probabilities of images already: take .bits_per_dim.")
        return levels.bits(self.value, self.dimension)

    @property
    def mean(self) -> tuple[float, float]:
        """(mean over the samples, its standard error: their scatter and that of the probes), in nats."""
        return mean_with_error(self.value, self.standard_error)

    @property
    def mean_bits(self) -> tuple[float, float]:
        """The same in bits per dimension, of images."""
        return float(self.bits_per_dim.mean()), self.mean[1] / (self.dimension * math.log(2))

    @staticmethod
    def joined(parts: Sequence[LogLikelihood]) -> LogLikelihood:
        """Several batches as one."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(p, name) for p in parts])

        budget = Budget(*(torch.cat([getattr(p.budget, name) for p in parts]) for name in PARTS))
        return replace(
            parts[0],
            **{name: cat(name) for name in ("value", "standard_error", "latent", "estimates")},
            budget=budget,
            calls=sum(p.calls for p in parts),
            reached=all(p.reached for p in parts),
            reason="; ".join(p.reason for p in parts if not p.reached),
        )

    def __str__(self) -> str:
        nat = self.dimension * math.log(2)
        (value, error), n = self.mean, len(self.value)
        rows = [f"log-likelihood, mean of {n} samples in {self.dimension} dimensions: {value:.4f} +- {error:.2g} nats"]
        if self.levels is not None:
            rows += [f"bits per dimension: {-value / nat:.4f} +- {error / nat:.2g}"]
        rows += [f"{'part of the budget':20}{'nats':>12}{'bits/dim':>12}   (mean size in one sample)"]
        for name in PARTS:
            size = float(getattr(self.budget, name).mean())
            rows.append(f"{name:20}{size:12.3g}{size / nat:12.3g}")
        return "\n".join(rows + ([] if self.reached else [self.reason]))


def _untransformed(y: float, skew: Tensor, n: int) -> Tensor:
    """T such that T + a T^2 + a^2 T^3/3 + a/2 = y, a = skew/(3 sqrt n): Hall's monotone transformation of a skewed t to Student's."""
    a = skew / (3 * math.sqrt(n))
    a = torch.where(a.abs() < 1e-8, 1e-8, a)
    z = 1 + 3 * a * (y - a / 2)
    return (z.sign() * z.abs() ** (1 / 3) - 1) / a
