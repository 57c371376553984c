"""SEEDS: exponential Runge-Kutta methods for the reverse SDE (Gonzalez et al. 2023), noise exact in every stage.

From t to any instant k between t and s, with H = lam_k - lam_t, the variation of constants is
`x_k = c_k/c_t x_t + C_k int_0^H e^{z (1 - r/H)} m dr + c_k (W_k - W_t)`. Predicting eps: c = alpha, C = -2 sigma, z = H, W a Brownian
motion on the clock u^2; predicting x0: c = sigma^2/alpha, C = 2 alpha, z = -2H, W on the clock snr = 1/u^2. All stages read increments of
one W, so that their noises are correlated as in the exact solution (the paper's variances e^{2 r_i h} - e^{2 r_j h}).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import Linear, combine, linear
from ..names import UserError, choose
from ..noise import Noise
from ..phi import phi
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts

_NODES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class SEEDS(Ancestral):
    """x_s = c_s/c_t x + C_s h (phi_1 m_j + h phi_2 m') + c_s (W_s - W_t), phi at z = h (eps) or -2h (x0).

    Order 1: m_j = m_t. Order 2: m_j = m at the middle of [lam_t, lam_s]. Order 3: stages at 1/3 and 2/3, m_j = m_t and m' the slope
    (m_2 - m_t)/(2h/3). `order` calls a step (one, and x0, at sigma = 0), no memory, no inverse; upward the forward SDE. As measured:
    strong order 1 for all; weak order 1 for `order` 1 and 2 for 2 and 3. Gonzalez et al. 2023 (SEEDS), algorithms 1 to 4.
    """

    order: int = 3  # type: ignore[assignment]
    predicts: str = "eps"

    def __post_init__(self) -> None:
        if self.order not in _NODES:
            raise UserError(f"SEEDS(order) is 1, 2 or 3, not {self.order!r}.")
        choose("predicts", self.predicts, ("eps", "x0"))

    @property
    def facts(self) -> Facts:
        clock = "u2" if self.predicts == "eps" else "snr"
        return Facts("Gonzalez et al. 2023 (SEEDS)", strong=1, weak=min(self.order, 2), stochastic=True, clock=clock, evals=self.order)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum((self.order if s.sigma else 1) * (t.lam < s.lam) for t, s in pairwise(knots))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        if s.sigma == 0.0:
            return Step(combine(s.alpha * model(x, t).x0))
        value, slope, path, before = self._reading(model(x, t)), Linear(()), Linear(()), t
        for r in _NODES[self.order]:
            stage = t.toward(s, r)
            path = path + self._increment(noise, before, stage)
            answer = self._reading(model(combine(self._exact(x, t, stage, value, slope, path)), stage))
            if self.order == 2:
                value = answer
            else:
                slope = (answer - value) / (stage.lam - t.lam)
            before = stage
        return Step(combine(self._exact(x, t, s, value, slope, path + self._increment(noise, before, s))))

    def _exact(self, x: Tensor, t: Knot, k: Knot, value: Linear, slope: Linear, path: Linear) -> Linear:
        """The state at k if m is `value + slope (lam - lam_t)` between."""
        h = k.lam - t.lam
        if self.predicts == "eps":
            c, kept, weight, z = k.alpha, k.alpha / t.alpha, -2 * k.sigma * h, h
        else:
            c, kept, weight, z = k.sigma * k.u, k.sigma * k.u / (t.sigma * t.u), 2 * k.alpha * h, -2 * h
        return linear(x, kept) + weight * phi(1, z) * value + weight * h * phi(2, z) * slope + c * path

    def _reading(self, p: Prediction) -> Linear:
        return p.eps if self.predicts == "eps" else p.x0

    def _increment(self, noise: Noise | None, a: Knot, b: Knot) -> Linear:
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        return linear(noise(a.clock(self.facts.clock), b.clock(self.facts.clock)))
