"""DDIM: the whole family of Song, Meng & Ermon 2021 (Denoising Diffusion Implicit Models).

Generative step from t to s (eq. 12): `x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z`, with x0 and eps the network's readings at t.
Any n between 0 and sigma_s leaves every marginal q(x_s | x0) as it is (lemma 1), so one network serves all. With
v = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, `n = eta (sigma_s/sigma_t) sqrt(v)` (eq. 16): eta = 0 is deterministic (Euler in Sigma
coordinates), eta = 1 is DDPM's ancestral step with the small variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..combine import combine
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts, Solver


@dataclass(frozen=True)
class Sigmas:
    """The paper's free choice: the noise n added in each step, by the times it goes between. `times` has one more entry than `values`."""

    times: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(map(float, self.times)))
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        if len(self.times) != len(self.values) + 1 or any(not v >= 0 for v in self.values):
            raise UserError("Sigmas needs one value of at least 0 for each step: len(times) == len(values) + 1.")

    @cached_property
    def _of(self) -> dict[tuple[float, float], float]:
        return dict(zip(zip(self.times, self.times[1:], strict=False), self.values, strict=True))

    def between(self, t: Knot, s: Knot) -> float:
        """n for the step from t to s. `UserError` if these are not neighbouring times of the table, or n exceeds sigma_s."""
        if (t.time, s.time) not in self._of:
            raise UserError(f"Sigmas has no value for the step from time {t.time:g} to {s.time:g}; make it on the knots of the run.")
        n = self._of[t.time, s.time]
        if n > s.sigma * (1 + 1e-12):
            raise UserError(f"the noise {n:g} of the step to time {s.time:g} exceeds sigma there ({s.sigma:g}): keep it below.")
        return n


@dataclass(frozen=True)
class DDIM(Ancestral):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, n = eta (sigma_s/sigma_t) sqrt(v), or n from `Sigmas`, one for every step.

    One call a step. Order 1 to the probability flow (eta = 0), strong and weak order 1 to the SDE of noise level eta otherwise.
    Upward with eta = 0 it is DDIM inversion (the answer at the cleaner end), approximate to order 1. Song et al. 2021, eq. 12 and 16.
    """

    eta: float | Sigmas = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.eta, Sigmas) and not (isinstance(self.eta, int | float) and 0 <= self.eta < math.inf):
            raise UserError(f"DDIM(eta) needs a number of at least 0 or Sigmas(times, values), not {self.eta!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        reference = "Song, Meng & Ermon 2021 (DDIM), eq. 12 and 16"
        if self.eta == 0:
            return Facts(reference, ode=1, inverse="approximate", clock="snr")
        order = None if isinstance(self.eta, Sigmas) else 1
        return Facts(reference, strong=order, weak=order, stochastic=True, clock="snr")

    @property
    def inverse(self) -> Solver:
        return self if self.eta == 0 else super().inverse

    def calls(self, knots: Sequence[Knot]) -> int:
        return len(knots) - 1 if self.eta == 0 else super().calls(knots)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if self.eta == 0:
            return Step(combine(model(x, t).mixed(s.alpha, s.sigma)))
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        n = self._added(t, s)
        if n == 0:
            return Step(combine(model(x, t).mixed(s.alpha, s.sigma)))
        p, z = model(x, t), self.drawn(noise, t, s)
        return Step(combine(p.mixed(s.alpha, math.sqrt(max(s.sigma**2 - n**2, 0.0))) + n * z))

    def _added(self, t: Knot, s: Knot) -> float:
        """The standard deviation n of the noise that is added; never the square root of a rounding-negative number."""
        if isinstance(self.eta, Sigmas):
            return min(self.eta.between(t, s), s.sigma)
        return min(self.eta * s.sigma * math.sqrt(-math.expm1(2 * (t.lam - s.lam))), s.sigma)
