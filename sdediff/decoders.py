"""The last step of a bound, from x_{t_N} to the data: a density, or a probability of grey levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .batch import total
from .combine import spread
from .levels import Levels
from .names import UserError
from .schedule import Knot, Number


class Decoder(Protocol):
    """p(x0 | x_{t_N}), given the model's x0 as its mean."""

    @property
    def discrete(self) -> bool: ...

    @property
    def variance(self) -> float | None: ...

    def check(self, x: Tensor) -> None:
        """`UserError` for data that this decoder cannot have made."""
        ...

    def variance_at(self, t: Knot) -> Number:
        """Its own variance after x_t."""
        ...

    def log_densities(self, x: Tensor, mean: Tensor, variance: Number | Tensor) -> Tensor:
        """ln p of each component of x, where its mean and its variance (a number, one a sample, or like x) are these."""
        ...

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        """ln p(x | x_t), (B,), where the model's x0 is `mean`."""
        ...


@dataclass(frozen=True)
class GaussianDecoder:
    """N(x0; x0_hat, variance): a density. variance None: (sigma/alpha)^2 of the last knot, how far x_{t_N} itself blurs the data."""

    variance: float | None = None

    def __post_init__(self) -> None:
        _check_variance(self)

    @property
    def discrete(self) -> bool:
        return False

    def check(self, x: Tensor) -> None:
        """Any data will do."""

    def variance_at(self, t: Knot) -> Number:
        return t.u2 if self.variance is None else self.variance

    def log_densities(self, x: Tensor, mean: Tensor, variance: Number | Tensor) -> Tensor:
        v = _like(x, variance)
        return -0.5 * (x - mean).square() / v - 0.5 * torch.log(2 * math.pi * v)

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        return total(self.log_densities(x, mean, self.variance_at(t)))


@dataclass(frozen=True)
class DiscretizedDecoder:
    """N(x0_hat, variance) integrated over the bin of each grey level, the end bins open (DDPM, eq. 13): a probability.

    levels: how many there are, evenly spaced from `low` to `high`, both included: 256 for 8-bit images in [-1, 1], 17 for our digits.
    variance None: (sigma/alpha)^2 of the last knot.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0
    variance: float | None = None

    def __post_init__(self) -> None:
        _check_variance(self)
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2 or not self.low < self.high:
            raise UserError(f"DiscretizedDecoder needs at least 2 levels and low < high, not {self.levels}, {self.low} and {self.high}.")

    @property
    def discrete(self) -> bool:
        return True

    @property
    def width(self) -> float:
        """The distance of two levels."""
        return self._bins.width

    @property
    def _bins(self) -> Levels:
        return Levels(self.low, self.high, self.levels)

    def check(self, x: Tensor) -> None:
        self._bins.check(x, "take GaussianDecoder()")

    def variance_at(self, t: Knot) -> Number:
        return t.u2 if self.variance is None else self.variance

    def log_densities(self, x: Tensor, mean: Tensor, variance: Number | Tensor) -> Tensor:
        std, half = _like(x, variance).sqrt(), 0.5 * self.width
        low = torch.where(x < self.low + half, -_FAR, (x - half - mean) / std)
        high = torch.where(x > self.high - half, _FAR, (x + half - mean) / std)
        upper = low + high > 0  # the upper tail mirrored: the difference of two numbers near 1 is one of two small ones
        low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
        top = torch.special.log_ndtr(high)
        return top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        return total(self.log_densities(x, mean, self.variance_at(t)))


_FAR = 1e8  # standard deviations, for infinity: its probability is nothing, and so is its gradient, not 0 times infinity


def _like(x: Tensor, variance: Number | Tensor) -> Tensor:
    """A variance, one a sample or one a component, so that it multiplies x."""
    return torch.as_tensor(spread(variance, x), dtype=x.dtype, device=x.device)


def _check_variance(decoder: GaussianDecoder | DiscretizedDecoder) -> None:
    if decoder.variance is not None and not 0 < decoder.variance < math.inf:
        raise UserError(f"the variance of a decoder is a positive number or None, not {decoder.variance!r}.")
