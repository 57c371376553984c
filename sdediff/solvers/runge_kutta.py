"""Runge-Kutta methods for the probability flow, in any coordinates (y = x/scale, dy/dclock = velocity).

`k_i = velocity(y + h sum_j a_ij k_j, clock + c_i h)`, `y' = y + h sum_i b_i k_i`. In Sigma coordinates Euler is DDIM and Heun is EDM's
deterministic sampler; RK in Sigma coordinates is DEIS's rhoRK. A step that ends at sigma = 0 (the data itself) is an Euler step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..coordinates import Coordinates, Sigma, checked
from ..prediction import Model
from ..runge_kutta import runge_kutta_calls, runge_kutta_step, tableau_named
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import TABLEAUX, Tableau


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
