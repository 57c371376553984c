"""Runge-Kutta methods for the probability flow, in any coordinates (y = x/scale, dy/dclock = velocity).

`k_i = velocity(y + h sum_j a_ij k_j, clock + c_i h)`, `y' = y + h sum_i b_i k_i`. In Sigma coordinates Euler is DDIM and Heun is EDM's
deterministic sampler; RK in Sigma coordinates is DEIS's rhoRK. A step that ends at sigma = 0 (the data itself) is an Euler step,
as in EDM: there is no noise left to predict at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..combine import combine, linear
from ..coordinates import Coordinates, Sigma, checked
from ..names import UserError, choose
from ..prediction import Model
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import TABLEAUX, Tableau


def _move(model: Model, x: Tensor, t: Knot, s: Knot, tableau: Tableau, coordinates: Coordinates) -> Tensor:
    """One Runge-Kutta step; stage states are written in x, so that the first costs nothing."""
    if s.sigma == 0.0:
        tableau = TABLEAUX["euler"]
    start, scale = coordinates.clock(t), coordinates.scale(t)
    h = coordinates.clock(s) - start
    slopes = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        if c == 0.0:
            at, y = t, x
        else:
            at = s if c == 1.0 else coordinates.knot(t, start + c * h)
            y = combine(_sum(x, scale, slopes, row, h, coordinates.scale(at)))
        slopes.append(coordinates.velocity(model(y, at)))
    return combine(_sum(x, scale, slopes, tableau.b, h, coordinates.scale(s)))


def _sum(x, scale, slopes, weights, h, new_scale):
    """new_scale (x/scale + h sum_i w_i k_i)."""
    total = linear(x, new_scale / scale)
    for w, k in zip(weights, slopes, strict=False):
        if w:
            total = total + new_scale * h * w * k
    return total


def _calls(knots: Sequence[Knot], stages: int) -> int:
    """`stages` calls a step, one for a step that ends at sigma = 0."""
    return sum(1 if s.sigma == 0.0 else stages for s in knots[1:])


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
        return _move(model, x, t, s, TABLEAUX["euler"], self.coordinates)


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
        return _calls(knots, 2)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return _move(model, x, t, s, TABLEAUX["heun"], self.coordinates)


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """An explicit Runge-Kutta method: `tableau` is a name ("midpoint", "ralston", "heun3", "rk3", "rk4", "rk4_38", ...) or a `Tableau`.

    Its order, its number of stages calls a step (one at sigma = 0). In Sigma coordinates: rhoRK of DEIS (Zhang & Chen 2023, sec. 3.4).
    """

    tableau: str | Tableau = "rk4"
    coordinates: Coordinates = Sigma()

    def __post_init__(self) -> None:
        checked(self.coordinates)
        if isinstance(self.tableau, str):
            choose("tableau", self.tableau, TABLEAUX)
        elif not isinstance(self.tableau, Tableau):
            raise UserError(f"tableau must be a name or a Tableau, not {self.tableau!r}; names: {', '.join(TABLEAUX)}.")

    @property
    def _tableau(self) -> Tableau:
        return TABLEAUX[self.tableau] if isinstance(self.tableau, str) else self.tableau

    @property
    def order(self) -> int:
        return self._tableau.order

    @property
    def facts(self) -> Facts:
        reference = "Hairer, Norsett & Wanner I, II.1; Zhang & Chen 2023 (DEIS), rhoRK"
        return Facts(reference, ode=self.order, inverse="approximate", evals=self._tableau.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return _calls(knots, self._tableau.stages)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return _move(model, x, t, s, self._tableau, self.coordinates)
