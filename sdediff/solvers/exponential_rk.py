"""Exponential Runge-Kutta for the probability flow in lam: `y = x/alpha` obeys `dy/dlam = -y + x0(y)`, its linear part is solved exactly.

Stages `Y_i = e^{-c_i h} y + h sum_j a_ij(-h) N_j` with N = x0 and h = lam_s - lam_t (Hochbruck & Ostermann 2010, sec. 2.3; Luan 2021).
By the row sums this is DDIM's step to each node plus weighted differences of x0. The weights are sums of phi functions (phi.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import combine
from ..names import UserError, choose
from ..phi import EXPONENTIAL_TABLEAUX, ExponentialTableau
from ..prediction import Model
from ..schedule import Knot
from ..solver import Facts, OneStep


@dataclass(frozen=True)
class ExponentialRungeKutta(OneStep):
    """x_s = alpha_s x0 + sigma_s eps + alpha_s h sum_j b_j(-h) (x0_j - x0), x0_j read at stages of the same form.

    tableau: "euler" (DDIM), "midpoint" (DPM-Solver++(2S)), "heun", "etd2rk", "res2", "etd3rk", "ho3", "res3", "krogstad", "ho4", or an
    `ExponentialTableau`. RES 2s and 3s of k-diffusion's forks are "res2" and "res3", or `res2(c2)`, `res3(c2, c3)`.
    Its tableau's order, its number of stages calls a step; one (DDIM) at sigma = 0 and alpha = 0. Upward it encodes, approximately.
    Hochbruck & Ostermann 2010, eq. 2.39, 2.40, 5.8, 5.9; 2005, eq. 5.19; Krogstad 2005; Cox & Matthews 2002.
    """

    tableau: str | ExponentialTableau = "ho4"

    def __post_init__(self) -> None:
        if isinstance(self.tableau, str):
            choose("tableau", self.tableau, EXPONENTIAL_TABLEAUX)
        elif not isinstance(self.tableau, ExponentialTableau):
            raise UserError(
                f"tableau must be a name or an ExponentialTableau, not {self.tableau!r}; names: {', '.join(EXPONENTIAL_TABLEAUX)}."
            )

    @property
    def _tableau(self) -> ExponentialTableau:
        return EXPONENTIAL_TABLEAUX[self.tableau] if isinstance(self.tableau, str) else self.tableau

    @property
    def order(self) -> int:
        return self._tableau.order

    @property
    def facts(self) -> Facts:
        reference = "Hochbruck & Ostermann 2010, sec. 2.3; Luan 2021"
        return Facts(reference, ode=self.order, inverse="approximate", evals=self._tableau.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._tableau.stages if _finite(t, s) else 1 for t, s in pairwise(knots))

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        p, tableau = model(x, t), self._tableau
        if tableau.stages == 1 or not _finite(t, s):
            return combine(p.mixed(s.alpha, s.sigma))
        h, differences = s.lam - t.lam, []
        a, b = tableau.weights(-h)

        def reached(at: Knot, weights: Sequence[float]) -> Tensor:
            total = p.mixed(at.alpha, at.sigma)
            for weight, difference in zip(weights, differences, strict=True):
                if weight:
                    total = total + at.alpha * h * weight * difference
            return combine(total)

        for c, row in zip(tableau.c, a, strict=True):
            at = t.toward(s, c)
            differences.append(model(reached(at, row), at).x0 - p.x0)
        return reached(s, b)


def _finite(t: Knot, s: Knot) -> bool:
    """Whether the step has a length in lam; to sigma = 0 or from alpha = 0 it has none, and is DDIM's."""
    return math.isfinite(t.lam) and math.isfinite(s.lam)
