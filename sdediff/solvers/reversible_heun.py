"""Reversible Heun: Heun's rule through a second state, one call a step and exactly invertible, for the flow and for the reverse SDE.

The slopes are read at z, which follows y by a leapfrog through it: `z' = 2 y - z + h f(z)`, `y' = y + h (f(z) + f(z'))/2`. With noise
`dy = f dt + g(t) dW` the same with f h + g dW in the place of f h, g of either end. Step back (-h, -dW) and it is undone: its own inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import Linear, combine, linear
from ..coordinates import Angle, Coordinates, Time, checked
from ..invertible import Kept, Symmetric
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Facts


@dataclass(frozen=True)
class ReversibleHeun(Symmetric):
    """z' = 2y - z + h f(z) + g_t dW, y' = y + h (f(z) + f(z'))/2 + (g_t + g_s) dW/2, in y = x/scale of `coordinates`; f the velocity.

    Order 2, weakly stable: y - z never dies out. One call a step and one at the start. Memory: z and f(z).
    eta > 0, in Time coordinates: the reverse SDE of that noise level, f = velocity - eta^2 g2 score/2, g = eta sqrt(g2). A step upward
    undoes the step down over the same interval of the same noise; it is not the forward SDE. What y and z differ by grows as the SDE
    contracts: its strong order 1 shows on short spans; down to the data it takes thousands of steps (weak order 2 shows at once).
    Kidger, Foster, Li & Lyons 2021, algorithm 1 and 2.
    """

    coordinates: Coordinates = Angle()
    eta: float = 0.0

    def __post_init__(self) -> None:
        checked(self.coordinates)
        if not (isinstance(self.eta, int | float) and 0 <= self.eta < math.inf):
            raise UserError(f"ReversibleHeun(eta=) needs a number of at least 0, not {self.eta!r}.")
        if self.eta and not isinstance(self.coordinates, Time):
            raise UserError(f"the reverse SDE is written in raw time: ReversibleHeun(Time(), eta={self.eta}).")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        reference = "Kidger, Foster, Li & Lyons 2021 (reversible Heun), algorithms 1 and 2"
        if self.eta:
            return Facts(reference, strong=1, weak=2, stochastic=True, inverse="exact")
        return Facts(reference, ode=2, inverse="exact")

    def calls(self, knots: Sequence[Knot]) -> int:
        return 1 + sum(t.time != s.time for t, s in pairwise(knots))

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        return Kept((x, self._slope(model, x, t).tensor()))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        if t.time == s.time:
            return Step(x, memory)
        z, f = memory.tensors
        h = self.coordinates.clock(s) - self.coordinates.clock(t)
        c, scale = self.coordinates.scale(s) / self.coordinates.scale(t), self.coordinates.scale(s)
        if not math.isfinite(c * h):
            raise UserError(f"{self!r} has no step from time {t.time:g} to {s.time:g}: start or end the grid short of it, or take Angle().")
        dz, dx = scale * h * linear(f), scale * h / 2 * linear(f)
        if self.eta:
            dw = self._increment(noise, t, s)
            dz, dx = dz + self._g(t) * dw, dx + (self._g(t) + self._g(s)) / 2 * dw
        z = combine(2 * c * linear(x) - c * linear(z) + dz)
        f = self._slope(model, z, s).tensor()
        return Step(combine(c * linear(x) + dx + scale * h / 2 * linear(f)), Kept((z, f)))

    def _slope(self, model: Model, x: Tensor, t: Knot) -> Linear:
        p = model(x, t)
        flow = self.coordinates.velocity(p)
        return flow + 0.5 * self.eta**2 * t.g2 / t.sigma * p.eps if self.eta else flow

    def _g(self, t: Knot) -> float:
        return self.eta * math.sqrt(t.g2)

    def _increment(self, noise: Noise | None, t: Knot, s: Knot) -> Linear:
        """W_s - W_t; asked for from the later time on in either direction, for a noise that tells the two apart."""
        if s.time > t.time:
            return -1.0 * self._increment(noise, s, t)
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        return linear(noise(t.time, s.time))
