"""The asynchronous leapfrog: a one-step method that carries its velocity, and is undone to the last bit on any knots.

z is half a step on by the old velocity v; f(z) is the velocity there, and 2 f - v the mirror image of v; y' is half a step on by that.
Three lines that each add to one number a function of another. Symmetric, so steps of lengths w h, sum w = 1, sum w^3 = 0, make order 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..additive import Additive
from ..combine import combine, linear
from ..invertible import Kept
from ..names import choose
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot, Number

_FOUR = 0.28, 0.6254664284676701  # McLachlan 1995: (a, b, 1 - 2a - 2b, b, a), 2 (a^3 + b^3) + (1 - 2a - 2b)^3 = 0
_FRACTIONS = {2: (1.0,), 4: (*_FOUR, 1 - 2 * sum(_FOUR), *_FOUR[::-1])}


@dataclass(frozen=True)
class AsynchronousLeapfrog(Additive):
    """z = y + v h/2, v' = 2 f(z) - v, y' = z + v' h/2, with f in the middle of the step: a leapfrog that carries its velocity v.

    order 2: one call a step, and one at the start of a run. order 4: five such steps, of lengths w h with sum w = 1 and sum w^3 = 0
    (w1 = 0.28), five calls a step. Any knots, also each sample its own (`PID`, order 2). data_std: of the data, the d of
    `Angle`; clock: what h is measured on. Kept: y, v, and for the error estimate (the difference from an Euler step) the last f and knot.
    Mutze 2013 (asynchronous leapfrog); Zhuang et al. 2021 (MALI); McLachlan 1995 (composition). Bits: Levesque & Verlet 1993.
    """

    order: int = 2  # type: ignore[assignment]
    data_std: float = 1.0
    clock: str = "roots"
    bits: bool = True

    def __post_init__(self) -> None:
        choose("order", self.order, tuple(_FRACTIONS))
        Additive.__post_init__(self)

    @property
    def _reference(self) -> str:
        return "Mutze 2013; Zhuang et al. 2021 (MALI); McLachlan 1995"

    @property
    def _evals(self) -> int:
        return len(_FRACTIONS[self.order])

    @property
    def embedded(self) -> bool:
        return self.order == 2

    def calls(self, knots: Sequence[Knot]) -> int:
        return 1 + self._evals * sum(self.reading(t) != self.reading(s) for t, s in pairwise(knots))

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        y = self._from(x, t)
        f = self._velocity(model, y, t, x)
        return Kept((y, self._write(f), f), (t,))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        (y, v, before), (r,) = memory.tensors, memory.knots
        here, there = self.reading(t), self.reading(s)
        if isinstance(here, float) and here == there:
            return Step(self._to(y, s, x), memory, linear(x, 0.0), 2)
        f = before
        for low, weight in self._parts(here, there):  # the same floats upward and downward
            h = weight * abs(there - here) * np.sign(there - here)
            middle = self._at(t, low)
            z = y + self._moved(v, 0.5 * h)
            f = self._velocity(model, z, middle, x)
            v = self._write(2 * f) - v
            y = z + self._moved(v, 0.5 * h)
        x, error = self._to(y, s, x), None
        if self.order == 2:
            off = _bend(f, before, there - here, here - self.reading(r))
            error = linear(off.to(x.dtype), self._angle.scale(s))
        return Step(x, Kept((y, v, f), (t,)), error, 2)

    def _parts(self, here: Number, there: Number) -> list[tuple[Number, float]]:
        """(middle on the clock, share of the step) of each part."""
        low, length, done, parts = np.minimum(here, there), abs(there - here), 0.0, []
        for w in _FRACTIONS[self.order]:
            parts.append((low + (done + 0.5 * w) * length, w))
            done += w
        return parts if np.all(here <= there) else parts[::-1]

    def _moved(self, v: Tensor, h: Number) -> Tensor:
        return self._write(combine(linear(self._read(v), h)))


def _bend(f: Tensor, before: Tensor, h: Number, last: Number) -> Tensor:
    """h^2 y''/2, by which the Euler step differs, from the velocities in the middle of this step and of the last (or, without one, at t).

    Not from v, which alternates: a step size that changes would excite it.
    """
    apart = np.where(last * h > 0, 0.5 * (h + last), 0.5 * h)
    c = np.divide(h**2, 2 * apart, out=np.zeros_like(apart), where=apart != 0)
    return combine(linear(f - before, float(c) if isinstance(h, float) else c))
