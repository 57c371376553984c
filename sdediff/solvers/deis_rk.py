"""rhoRK of DEIS: explicit Runge-Kutta for `dy/drho = eps`, y = x/alpha, rho = sigma/alpha (Zhang & Chen 2023, sec. 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..coordinates import Sigma
from ..prediction import Model
from ..runge_kutta import runge_kutta_calls, runge_kutta_step, tableau_named
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import Tableau


@dataclass(frozen=True)
class DEISRungeKutta(OneStep):
    """k_i = eps at rho + c_i h and y + h sum_j a_ij k_j; y' = y + h sum_i b_i k_i. It is `RungeKutta(tableau, Sigma())`.

    tableau: a name or a `Tableau`; the paper's 2heun, 3kutta and 4rk are "heun", "rk3" and "rk4". Its tableau's order, its stages calls a
    step, one (Euler) at sigma = 0. Upward it encodes, approximately. Zhang & Chen 2023 (DEIS), sec. 3.4.
    """

    tableau: str | Tableau = "rk3"

    def __post_init__(self) -> None:
        tableau_named(self.tableau)

    @property
    def _tableau(self) -> Tableau:
        return tableau_named(self.tableau)

    @property
    def order(self) -> int:
        return self._tableau.order

    @property
    def facts(self) -> Facts:
        return Facts("Zhang & Chen 2023 (DEIS), sec. 3.4", ode=self.order, inverse="approximate", evals=self._tableau.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return runge_kutta_calls(knots, self._tableau.stages)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return runge_kutta_step(model, x, t, s, self._tableau, Sigma())
