"""Strong order 1.5 for the reverse SDE with two calls a step.

In y = x/alpha on the clock q = u^2 (q falls while sampling) the reverse SDE of noise level eta has constant additive noise:
`dy = (1 + eta^2)/(2 u) eps dq + eta dW_q`, because eta sqrt(2u) dW_u is eta times an increment of a Brownian motion on q. The drift is
-(1 + eta^2)/2 times the score of y, smooth down to q = 0 for data with a density. Additive noise needs no Levy area between components,
only each component's increment W and space-time integral H (`noise.area`): `k_i = f(y + c_i (h k_1 + eta W) + eta v_i H, q + c_i h)` with
c_1 = 0, `y' = y + h (b_1 k_1 + b_2 k_2) + eta W`. Strong order 1.5 needs b_1 + b_2 = 1, b_2 c_2 = 1/2, b_1 v_1 + b_2 v_2 = 1 (int W dq) and
b_2 c_2^2 + (b_1 v_1^2 + b_2 v_2^2)/12 = 1/2 (the mean of int W^2 dq).

The embedded error is the distance to the step with k_1 alone, `h b_2 (k_2 - k_1)`: about h^1.5 (k_2 - k_1 is the drift's slope times
c eta W), h^2 without noise. The method's own strong error at the end is of order h^1.5, too: proportional to a tolerance on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from ..combine import Linear, combine, linear
from ..names import UserError
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts, Solver


class Additive(NamedTuple):
    """Coefficients of a two-stage method: node c of the second stage, weights v of H in the stages, weights b of the slopes."""

    c: float
    v: tuple[float, float]
    b: tuple[float, float]


@dataclass(frozen=True)
class _SpaceTime(Ancestral):
    eta: float = 1.0
    _coefficients: ClassVar[Additive]
    _reference: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, int | float) and 0 <= self.eta < math.inf):
            raise UserError(f"{type(self).__name__}(eta) needs a number of at least 0, not {self.eta!r}.")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        if self.eta == 0:
            return Facts(self._reference, ode=2, inverse="approximate", clock="u2", evals=2)
        return Facts(self._reference, strong=1.5, weak=2, stochastic=True, clock="u2", evals=2)

    @property
    def inverse(self) -> Solver:
        return self if self.eta == 0 else super().inverse

    @property
    def embedded(self) -> bool:
        return True

    def calls(self, knots: Sequence[Knot]) -> int:
        return 2 * sum(t.lam < s.lam or (self.eta == 0 and s.lam < t.lam) for t, s in pairwise(knots))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if _every(s.lam == t.lam):
            return Step(x, None, 0.0 * linear(x), self._error_order)
        if self.eta and _every(s.lam <= t.lam):
            return Step(self.upward(x, t, s, noise), None, 0.0 * linear(x), self._error_order)
        if not _every((t.u2 > 0) & (t.u2 < math.inf)):
            at, u = (float(np.ravel(v)[np.argmin((t.u2 > 0) & (t.u2 < math.inf))]) for v in (t.time, t.u))
            raise UserError(f"{self!r} cannot start a step at time {at:g}, where sigma/alpha is {u:g}: start the grid short of it.")
        c, v, b = self._coefficients
        h, start, (w, area) = s.u2 - t.u2, linear(x, 1 / t.alpha), self._noise(noise, t, s)
        first = combine(t.alpha * (start + v[0] * area)) if v[0] and self.eta else x
        slope = self._drift(model(first, t))
        middle = t.toward(s, c, "u2")
        second = combine(middle.alpha * (start + c * h * slope + c * w + v[1] * area))
        other = self._drift(model(second, middle))
        x = combine(s.alpha * (start + h * (b[0] * slope + b[1] * other) + w))
        return Step(x, None, (s.alpha * b[1] * h) * (other - slope), self._error_order)

    @property
    def _error_order(self) -> float:
        return 1.5 if self.eta else 2

    def _drift(self, p: Prediction) -> Linear:
        """dy/dq = (1 + eta^2)/(2 u) eps."""
        return (1 + self.eta**2) / (2 * p.at.u) * p.eps

    def _noise(self, noise: Noise | None, t: Knot, s: Knot) -> tuple[Linear, Linear]:
        """eta W and eta H of the step."""
        if self.eta == 0:
            return Linear(()), Linear(())
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        w, area = noise.area(t.u2, s.u2)
        return linear(w, self.eta), linear(area, self.eta)


def _every(condition: Any) -> bool:
    """Of one knot, or of the knots of every sample."""
    return condition if isinstance(condition, bool) else bool(np.all(condition))


@dataclass(frozen=True)
class SRA1(_SpaceTime):
    """k_2 at q + 3h/4 from y + 3/4 h k_1 + eta (3/4 W + 3/2 H); y' = y + h (k_1 + 2 k_2)/3 + eta W, on q = (sigma/alpha)^2.

    Strong order 1.5 and weak order 2 to the reverse SDE of noise level eta (eta = 0: order 2 to the probability flow); two calls a step,
    no memory; sigma = 0 is an ordinary end (no evaluation there) but no start. Upward it is the forward SDE. Roessler 2010, SRA1.
    """

    _coefficients = Additive(3 / 4, (0.0, 3 / 2), (1 / 3, 2 / 3))
    _reference = "Roessler 2010 (Runge-Kutta methods for the strong approximation of SDEs), SRA1"


@dataclass(frozen=True)
class ShARK(_SpaceTime):
    """y~ = y + eta H, k_1 = f(y~), k_2 at q + 5h/6 from y~ + 5/6 (h k_1 + eta W); y' = y + h (2 k_1 + 3 k_2)/5 + eta W, q = u^2.

    The shifted additive-noise Runge-Kutta method: strong order 1.5 and weak order 2 to the reverse SDE of noise level eta (eta = 0: order
    2 to the probability flow); two calls a step, no memory; sigma = 0 is an ordinary end (no evaluation there) but no start. Upward it is
    the forward SDE. Foster, dos Reis & Strange 2024 (High order splitting methods for SDEs satisfying a commutativity condition).
    """

    _coefficients = Additive(5 / 6, (1.0, 1.0), (2 / 5, 3 / 5))
    _reference = "Foster, dos Reis & Strange 2024 (High order splitting methods), ShARK"
