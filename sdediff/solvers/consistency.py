"""Multistep sampling with models that jump to the data in one call: consistency models (Song et al. 2023), LCM (Luo et al. 2023).

Such a model's x0 is a sample at the end of the flow through (x, t), not the mean of what x may have been. Nothing is integrated: noise is
put back on it, up to the next level, and it is asked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..combine import combine
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts


@dataclass(frozen=True)
class Consistency(Ancestral):
    """x_s = alpha_s (x0 + sqrt(u_s^2 - u_min^2) z), u = sigma/alpha: x0 with fresh noise up to level s; no noise where s is the data.

    u_min: the level at which the model's x0 lives (its boundary, 0.002 in the paper; 0: the data, as in LCM). With a grid that ends at
    u_min, or at time 0, the end state is the model's answer itself. One call a step, no memory, no inverse, and no order: with an exact
    consistency function every step is exact in law, whatever its size. A denoiser that answers with the mean (any ordinary
    network) loses variance here. Song et al. 2023 (Consistency Models), algorithm 1; Luo et al. 2023 (LCM).
    """

    u_min: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.u_min, int | float) and 0 <= self.u_min < math.inf):
            raise UserError(f"Consistency(u_min) needs a level sigma/alpha of at least 0, not {self.u_min!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return Facts("Song et al. 2023 (Consistency Models), algorithm 1", stochastic=True, clock="snr")

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        x0 = s.alpha * model(x, t).x0
        # alpha_s^2 (u_s^2 - u_min^2); an end knot placed at u_min may fall below it by rounding
        variance = s.sigma**2 - (s.alpha * self.u_min) ** 2
        return Step(combine(x0 if variance <= 0.0 else x0 + math.sqrt(variance) * self.drawn(noise, t, s)))
