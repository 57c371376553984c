"""Gotta Go Fast: stochastic improved Euler for the reverse SDE in raw time, with Euler-Maruyama as its embedded method.

The reverse SDE `dx = [f x - g2 score] dt + g dW` has additive noise (g depends on the time alone), so that the trapezoidal rule on drift
and diffusion has weak order 2; its strong order stays 1, for want of the path's integral over the step.
The step choice that was published with it is `GottaGoFastControl`; any other adaptive controller will do as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..combine import Linear, combine, linear
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Facts, Solver


class Eulers(NamedTuple):
    """The Euler-Maruyama states x' of the last step and of the one before it (the start, where there was none)."""

    last: Tensor
    before: Tensor


@dataclass(frozen=True)
class GottaGoFast(Solver[Eulers]):
    """x' = x + h F(x, t) + g_t W, x'' = (x' + x + h F(x', s) + g_s W)/2 with the same W = W_s - W_t; goes on from x''.

    F = f x - (1 + eta^2)/2 g2 score, h = s - t < 0 in the schedule's time, g times eta. Error x'' - x'. Two calls a step (one at
    sigma = 0, where only x' is defined), strong order 1 and weak order 2, as measured; memory: the last two x', for the published scale of
    the error. Upward it is the forward SDE. As published: `solve(GottaGoFast(), model, x, GottaGoFastControl(), noise=White(0))`, which
    draws again after a rejection: that selects the noise and biases the samples (docs/adaptive_sde.md). Corrected, on one path:
    `solve(GottaGoFast(), model, x, GottaGoFastControl(), noise=Brownian(0, (0, 1)))`. Jolicoeur-Martineau et al. 2021, algorithm 1.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, int | float) and 0 < self.eta < math.inf):
            raise UserError(f"GottaGoFast(eta) needs a positive number, not {self.eta!r} (without noise it is Heun(Time())).")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("Jolicoeur-Martineau et al. 2021 (Gotta Go Fast), algorithm 1", strong=1, weak=2, stochastic=True, evals=2)

    @property
    def embedded(self) -> bool:
        return True

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum((2 if s.sigma else 1) * (t.lam < s.lam) for t, s in pairwise(knots))

    def init(self, model: Model, x: Tensor, t: Knot) -> Eulers:
        return Eulers(x, x)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Eulers, noise: Noise | None) -> Step:
        h = s.time - t.time
        if np.all(h >= 0):
            moved = self.upward(x, t, s, noise) if np.any(h > 0) else x
            return Step(moved, Eulers(moved, memory.last), 0.0 * linear(x), 1.5)
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        w = linear(noise(t.time, s.time), self.eta)
        start = linear(x)
        euler = combine(start + self._move(model, x, t, h, w))
        ends = s.sigma == 0
        if np.all(ends):
            return Step(euler, Eulers(euler, memory.last), 0.0 * start, 1.5)
        if np.any(ends):  # of some samples: they stay with x'
            half, s = np.where(ends, 0.0, 0.5), t.schedule.knot(np.where(ends, t.time, s.time))
        else:
            half = 0.5
        change = half * (start + self._move(model, euler, s, h, w) - euler)
        return Step(combine(euler + change), Eulers(euler, memory.last), change, 1.5)

    def _move(self, model: Model, x: Tensor, t: Knot, h: Any, w: Linear) -> Linear:
        """The increment with drift and diffusion of (x, t): f x - g2 score/2 = dalpha x0 + dsigma eps."""
        p = model(x, t)
        return h * (p.mixed(t.dalpha, t.dsigma) + 0.5 * self.eta**2 * t.g2 / t.sigma * p.eps) + t.g2**0.5 * w
