"""The grey levels of images: how many, from where to where, and the bin of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .names import UserError


@dataclass(frozen=True)
class Levels:
    """`count` grey levels, equally spaced from `low` to `high`, both included: bins of width w = (high - low)/(count - 1).

    place: where in its bin a level lies, 0.5 the middle. Bytes as x/127.5 - 1: Levels(-1, 1, 256), w = 2/255. Bytes as x/256, with the
    bin [x/256, (x + 1)/256): Levels(0, 255/256, 256, place=0), w = 1/256. Digits as x/8 - 1: Levels(-1, 1, 17).
    """

    low: float
    high: float
    count: int
    place: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high and self.count >= 2 and 0 <= self.place <= 1):
            raise UserError(f"Levels(low, high, count) needs low < high, at least two levels and 0 <= place <= 1, not {self!r}.")

    @property
    def width(self) -> float:
        """w, of a bin."""
        return (self.high - self.low) / (self.count - 1)

    def bits(self, log_density: Tensor, d: int) -> Tensor:
        """Bits per dimension of a log-density in d dimensions: -(log p + d log w)/(d log 2), that is -log p/(d log 2) - log2 w."""
        return -(log_density / d + math.log(self.width)) / math.log(2)

    def check(self, x: Tensor, instead: str = "leave levels= out, and ask the result for .bits(levels)") -> None:
        """`UserError` unless every value of x is one of the levels; instead: what to do with data of a density."""
        low, high = float(x.min()), float(x.max())
        slack = 1e-3 * self.width
        if low < self.low - slack or high > self.high + slack:
            raise UserError(
                f"the images range from {low:.4g} to {high:.4g}, but the {self.count} grey levels from {self.low:g} to {self.high:g}: "
                f"give the data as the model knows it, and the first and last level in those units. For data of a density {instead}."
            )
        place = (x.double() - self.low) / self.width
        if float((place - place.round()).abs().max()) > 0.02:
            raise UserError(
                f"the images have values between the {self.count} levels: are they scaled, resized or noised? For data of a density "
                f"{instead}."
            )

    def edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper edge of each value's bin, float64."""
        level = self.low + self.width * ((x.double() - self.low) / self.width).round()
        lower = level - self.place * self.width
        return lower, lower + self.width
