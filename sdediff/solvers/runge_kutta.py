"""Runge-Kutta methods for the probability flow, in any coordinates (y = x/scale, dy/dclock = velocity).

`k_i = velocity(y + h sum_j a_ij k_j, clock + c_i h)`, `y' = y + h sum_i b_i k_i`. In Sigma coordinates Euler is DDIM and Heun is EDM's
deterministic sampler; RK in Sigma coordinates is DEIS's rhoRK. A step that ends at sigma = 0 (the data itself) is an Euler step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import Linear, linear
from ..coordinates import Angle, Coordinates, Sigma, checked
from ..names import UserError
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Step
from ..runge_kutta import embedded_step, runge_kutta_calls, runge_kutta_step, tableau_named
from ..schedule import Knot
from ..solver import Facts, OneStep, Solver
from ..weights import PAIRS, TABLEAUX, Tableau


@dataclass(frozen=True)
class Euler(OneStep):
    """y' = y + h velocity(y). Order 1, one call a step. In Sigma coordinates this is DDIM (eta = 0). Song et al. 2021, eq. 13."""

    coordinates: Coordinates = Sigma()

    def __post_init__(self) -> None:
        checked(self.coordinates)

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return Facts("Euler; Song et al. 2021 (score-SDE), eq. 13", ode=1, inverse="approximate")

    def calls(self, knots: Sequence[Knot]) -> int:
        return len(knots) - 1

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return runge_kutta_step(model, x, t, s, TABLEAUX["euler"], self.coordinates)


@dataclass(frozen=True)
class Heun(OneStep):
    """y* = y + h k1, y' = y + h (k1 + velocity(y*))/2. Order 2, two calls a step, one at sigma = 0. Karras et al. 2022, alg. 1."""

    coordinates: Coordinates = Sigma()

    def __post_init__(self) -> None:
        checked(self.coordinates)

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("Heun; Karras et al. 2022 (EDM), algorithm 1", ode=2, inverse="approximate", evals=2)

    def calls(self, knots: Sequence[Knot]) -> int:
        return runge_kutta_calls(knots, 2)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return runge_kutta_step(model, x, t, s, TABLEAUX["heun"], self.coordinates)


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """An explicit Runge-Kutta method: `tableau` is a name ("midpoint", "ralston", "heun3", "rk3", "rk4", "rk4_38", ...) or a `Tableau`.

    Its order, its number of stages calls a step (one at sigma = 0). In Sigma coordinates: rhoRK of DEIS (Zhang & Chen 2023, sec. 3.4).
    """

    tableau: str | Tableau = "rk4"
    coordinates: Coordinates = Sigma()

    def __post_init__(self) -> None:
        checked(self.coordinates)
        tableau_named(self.tableau)

    @property
    def _tableau(self) -> Tableau:
        return tableau_named(self.tableau)

    @property
    def order(self) -> int:
        return self._tableau.order

    @property
    def facts(self) -> Facts:
        reference = "Hairer, Norsett & Wanner I, II.1; Zhang & Chen 2023 (DEIS), rhoRK"
        return Facts(reference, ode=self.order, inverse="approximate", evals=self._tableau.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return runge_kutta_calls(knots, self._tableau.stages)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return runge_kutta_step(model, x, t, s, self._tableau, self.coordinates)


@dataclass(frozen=True)
class EmbeddedRungeKutta(Solver[Tensor | None]):
    """An embedded pair: `y' = y + h sum_i b_i k_i` and the error estimate `h sum_i (b_i - l_i) k_i`. For `PID`; as good on fixed knots.

    pair: "heun_euler" 2(1), "bosh3" 3(2), "dopri5" or "tsit5" 5(4), or a `Tableau` with lower weights. On mixtures bosh3
    needs fewest calls for errors down to 1e-3, dopri5 for smaller ones.
    Memory: the slope at (x, t), the last stage of the step before. So the run begins with one call, and a step costs stages - 1
    (heun_euler 2, bosh3 3, the others 6), whether it is accepted or not; one of no length none. To sigma = 0 it is the midpoint rule with
    Euler's error estimate, one call. Upward it encodes, approximately.
    Hairer, Norsett & Wanner I, II.4 and II.5; Bogacki & Shampine 1989; Dormand & Prince 1980; Tsitouras 2011.
    """

    pair: str | Tableau = "bosh3"
    coordinates: Coordinates = Angle()

    def __post_init__(self) -> None:
        checked(self.coordinates)
        if tableau_named(self.pair, PAIRS).lower is None:
            raise UserError(f"{self.pair!r} has no lower weights: an embedded pair is a Tableau(a, b, order, lower=...).")

    @property
    def _pair(self) -> Tableau:
        return tableau_named(self.pair, PAIRS).with_last_first()

    @property
    def order(self) -> int:
        return self._pair.order

    @property
    def facts(self) -> Facts:
        reference = "Hairer, Norsett & Wanner I, II.4"
        return Facts(reference, ode=self.order, inverse="approximate", evals=self._pair.stages - 1)

    @property
    def embedded(self) -> bool:
        return True

    @property
    def inverse(self) -> Solver:
        return self

    def calls(self, knots: Sequence[Knot]) -> int:
        count, known = 1, True
        for t, s in pairwise(knots):
            if t.time != s.time:
                count += (not known) + (1 if s.sigma == 0.0 else self._pair.stages - 1)
                known = s.sigma != 0.0
        return count

    def init(self, model: Model, x: Tensor, t: Knot) -> Tensor:
        return self.coordinates.velocity(model(x, t)).tensor()

    def velocity(self, memory: Tensor | None, x: Tensor, t: Knot) -> Linear | None:
        if memory is None or self.coordinates not in (Angle(), Sigma()):
            return None
        return linear(memory) if self.coordinates == Angle() else Prediction(x, t, memory, "eps").v

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Tensor | None, noise: Noise | None = None) -> Step:
        if isinstance(t.time, float) and t.time == s.time:
            return Step(x, memory, linear(x, 0.0), self.order)
        slope = self.init(model, x, t) if memory is None else memory
        return Step(*embedded_step(model, x, slope, t, s, self._pair, self.coordinates))
