"""Euler-Maruyama for the reverse SDE `dx = [f x - (1 + eta^2)/2 g2 score] dt + eta g dW`, time running backward.

eta = 1 is Anderson's reverse SDE, eta = 0 Euler on the probability flow in Time coordinates. All share the marginals p_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..combine import combine, linear
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts


@dataclass(frozen=True)
class EulerMaruyama(Ancestral):
    """x_s = x + h [f x - (1 + eta^2)/2 g2 score] + eta g (W_s - W_t), h = s - t < 0 in the schedule's time.

    One call a step. In raw time the noise is additive too (g depends on t alone), so strong and weak order are 1.
    Song et al. 2021 (score-SDE), eq. 6 and appendix D; Kloeden & Platen, 10.2.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, int | float) and 0 <= self.eta < math.inf):
            raise UserError(f"EulerMaruyama(eta) needs a number of at least 0, not {self.eta!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        reference = "Song et al. 2021 (score-SDE), eq. 6; Kloeden & Platen 1992, 10.2"
        if self.eta == 0:
            return Facts(reference, ode=1)
        return Facts(reference, strong=1, weak=1, stochastic=True)

    def calls(self, knots: Sequence[Knot]) -> int:
        return len(knots) - 1 if self.eta == 0 else super().calls(knots)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        h = s.time - t.time
        if self.eta and h >= 0:
            return self.forward(x, t, s, noise) if h else Step(x)
        p = model(x, t)
        # f x - g2 score/2 = dalpha x0 + dsigma eps stays finite where f or g2 do not
        moved = linear(x) + h * p.mixed(t.dalpha, t.dsigma)
        if not self.eta:
            return Step(combine(moved))
        moved = moved + 0.5 * h * self.eta**2 * t.g2 / t.sigma * p.eps
        return Step(combine(moved + self.eta * math.sqrt(t.g2 * -h) * self.drawn(noise, t, s)))
