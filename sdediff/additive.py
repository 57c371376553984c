"""The base of methods that are undone to the last bit: the probability flow by sums alone, in 64-bit fixed point.

In Angle coordinates y = x/scale obeys dy/dr = f(y, r) on a clock r, a smooth function of the angle theta = atan(sigma/(alpha d)):
"roots" (dense at both ends), "root" (dense at the data), "angle" (clock.py), or "lam" (r = -lam). A rule whose new value
is an old one plus a function of values that both directions know, `y[n+1] = y[n-1] + g(y[n])`, is undone by subtracting the same; kept as
integers (bits.py) nothing is rounded. The same knots, the same floats and the same answers of the network are needed: the same batch on
the same machine. All are symmetric: each is its own inverse. They do not damp: what a rough step adds in the second solution of a
two-step rule stays, and where the flow contracts it grows (docs/inversion.md).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .bits import to_fixed, to_float
from .clock import ANGLE_CLOCKS, angle_at, clock_reading, clock_slope
from .combine import combine, linear
from .coordinates import Angle
from .invertible import Kept, Symmetric
from .names import UserError, choose
from .prediction import Model, ModelError
from .schedule import Knot, Number
from .solver import Facts, Solver

CLOCKS = (*ANGLE_CLOCKS, "lam")


class Additive(Symmetric):
    """What the rules share: the chart (data_std, clock), and states as integers (`bits`) or as float64.

    Kept.tensors hold y; the x that a step returns is its reading in the dtype of the x it was given.
    """

    data_std: float
    clock: str
    bits: bool

    def __post_init__(self) -> None:
        choose("clock", self.clock, CLOCKS)
        Angle(self.data_std)

    @property
    @abstractmethod
    def _reference(self) -> str:
        """Where the rule comes from."""

    @property
    @abstractmethod
    def _evals(self) -> int:
        """Calls a step."""

    @property
    def facts(self) -> Facts:
        return Facts(self._reference, ode=self.order, inverse="bits" if self.bits else "exact", evals=self._evals)

    # --- the chart ------------------------------------------------------------------------------------------------
    @property
    def _angle(self) -> Angle:
        return Angle(self.data_std)

    def reading(self, t: Knot) -> Number:
        """The clock r at t; it grows with the noise."""
        if self.clock == "lam":
            if not np.all(np.isfinite(t.lam)):
                raise UserError(f"the clock 'lam' is infinite at the end of this grid: take clock='roots' in {self!r}, or end short of it.")
            return -t.lam
        return clock_reading(self.clock, self._angle.clock(t))

    def _at(self, t: Knot, r: Number) -> Knot:
        """The instant at which the clock reads r."""
        return t.at(lam=-r) if self.clock == "lam" else self._angle.knot(t, angle_at(self.clock, r))

    def _slope(self, t: Knot) -> Number:
        """dtheta/dr."""
        angle = self._angle.clock(t)
        return 0.5 * np.sin(2 * angle) if self.clock == "lam" else clock_slope(self.clock, angle)

    def _velocity(self, model: Model, y: Tensor, t: Knot, like: Tensor) -> Tensor:
        """dy/dr at y, float64. `ModelError` if it is not finite: an integer cannot hold that."""
        x = combine(linear(self._read(y), self._angle.scale(t))).to(like.dtype)
        f = combine(self._angle.velocity(model(x, t)) * self._slope(t)).double()
        if not bool(torch.isfinite(f.detach().sum())):
            raise ModelError(
                f"the model's answer at time {np.max(t.time):g} is NaN or infinite: {type(self).__name__} cannot go on from it."
            )
        return f

    # --- states ---------------------------------------------------------------------------------------------------
    def _write(self, y: Tensor) -> Tensor:
        return to_fixed(y) if self.bits else y.double()

    def _read(self, y: Tensor) -> Tensor:
        return to_float(y) if self.bits else y

    def _from(self, x: Tensor, t: Knot) -> Tensor:
        """y of a state x."""
        if not bool(torch.isfinite(x.detach()).all()):
            raise UserError("the state holds NaN or infinity, which no fixed point can: clean it before encoding.")
        return self._write(combine(linear(x.double(), 1 / self._angle.scale(t))))

    def _to(self, y: Tensor, t: Knot, like: Tensor) -> Tensor:
        """x of y, in the dtype of `like`."""
        return combine(linear(self._read(y), self._angle.scale(t))).to(like.dtype)

    def smooth(self, memory: Kept) -> tuple[Solver, Kept]:
        """The same rule on floats, and this memory in floats."""
        floats = (to_float(p) if p.dtype == torch.int64 else p for p in memory.tensors)
        return replace(self, bits=False), memory._replace(tensors=tuple(floats))  # type: ignore[type-var]

    def held(self, x: Tensor, t: Knot) -> Tensor:
        """What comes back of a state x at t that goes there and back: x but for what the integers cannot hold."""
        return self._to(self._from(x, t), t, x)
