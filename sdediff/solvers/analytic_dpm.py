"""Analytic-DPM: the ancestral step with the variance that is optimal, in KL divergence, among all Gaussian steps (Bao et al. 2022).

With n^2 = lambda^2 the noise of DDIM's family and c = sqrt(sigma_s^2 - lambda^2), the step alpha_s x0 + c eps + lambda z takes the mean
E[x0 | x] for x0. What is unknown about x0 belongs into the noise (theorem 1; a = alpha_t/alpha_s):
`variance = lambda^2 + (sigma_t/a - c)^2 (1 - sigma_t^2 Gamma_t)`, Gamma_t = E|score|^2/d, one number a time, estimated from data.
(sigma_t/alpha_t)^2 (1 - sigma_t^2 Gamma_t) is the mean posterior variance of a component of x0. On Gaussian data of one variance in all
directions the step is exact in law for any step size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..combine import combine
from ..names import UserError, positive
from ..noise import Noise, White
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts


@dataclass(frozen=True)
class ScorePower:
    """sigma_t^2 Gamma_t = E|eps(x_t, t)|^2/d at these times: a number between 0 (the data is known) and 1 (nothing is)."""

    times: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(map(float, self.times)))
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        if len(self.times) != len(self.values) or not all(v >= 0 for v in self.values):
            raise UserError("ScorePower needs one value of at least 0 for each time: len(times) == len(values).")

    @classmethod
    def fit(cls, model: Model, data: Tensor, knots: Sequence[Knot], *, draws: int = 1, batch: int = 1024, seed: int = 0) -> ScorePower:
        """Estimated on `data` (N, ...), noised `draws` times for each knot but the last; `draws` N network calls a sample and knot.

        The last knot of a run is where no step begins. Point i gets noise that depends on (seed, i) alone.
        """
        positive("draws", draws)
        if not len(data):
            raise UserError("ScorePower.fit needs at least one data point.")
        values = []
        with torch.no_grad():
            for number, t in enumerate(knots[:-1]):
                total = 0.0
                for first in range(0, len(data), positive("batch", batch)):
                    x0 = data[first : first + batch]
                    rows = torch.arange(first, first + len(x0))
                    noise, part = White(seed).on(x0, rows), model.rows(rows)
                    for draw in range(draws):
                        x = t.schedule.forward(x0, t, noise.fresh(number * draws + draw))
                        total += float(part(x, t).eps.tensor().double().square().sum())
                values.append(total / (draws * data.numel()))
        return cls(tuple(k.time for k in knots[:-1]), tuple(values))

    @cached_property
    def _of(self) -> dict[float, float]:
        return dict(zip(self.times, self.values, strict=True))

    def at(self, t: Knot) -> float:
        """The value at t's time. `UserError` if the table has none."""
        if t.time not in self._of:
            raise UserError(
                f"ScorePower has no value at time {t.time:g}; make it on the knots of the run: ScorePower.fit(model, data, knots)."
            )
        return min(self._of[t.time], 1.0)


@dataclass(frozen=True)
class AnalyticDPM(Ancestral):
    """x_s = alpha_s x0 + c eps + sqrt(variance) z, lambda^2 = eta^2 (sigma_s/sigma_t)^2 v, the variance as above. Analytic-DDPM: eta = 1.

    data: what is known of the data: `ScorePower.fit(model, data, knots)`, or its standard deviation (then Gamma is that of N(m, d^2 I)).
    eta: 1 DDPM's step, 0 DDIM's with noise in place of what its x0 does not know. half_range: of the data, e.g. 1 for images in [-1, 1];
    no component of x0 varies by more (theorem 2). No noise is added where s is the data. One call a step, no memory, no inverse; strong
    and weak order 1 to the SDE of noise level eta (eta > 0); eta = 0 goes to the flow in law, weak order 1. Bao et al. 2022, theorems 1, 2.
    """

    data: float | ScorePower = 1.0
    eta: float = 1.0
    half_range: float = math.inf

    def __post_init__(self) -> None:
        number = isinstance(self.data, int | float) and 0 <= self.data < math.inf
        if not (number or isinstance(self.data, ScorePower)):
            raise UserError(f"AnalyticDPM(data) needs a standard deviation of at least 0 or a ScorePower, not {self.data!r}.")
        if not 0 <= self.eta <= 1:
            raise UserError(f"AnalyticDPM(eta) lies between 0 (DDIM) and 1 (DDPM), not {self.eta!r}.")
        if not self.half_range > 0:
            raise UserError(f"half_range must be positive, not {self.half_range!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        reference = "Bao et al. 2022 (Analytic-DPM), theorems 1 and 2"
        return Facts(reference, strong=1 if self.eta else None, weak=1, stochastic=True, clock="snr")

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        h = s.lam - t.lam
        part = -math.expm1(-2 * h)
        left = math.sqrt(1 - self.eta**2 + self.eta**2 * math.exp(-2 * h))  # c / sigma_s
        # how far x0 enters: alpha_s - alpha_t c / sigma_t = alpha_s (1 - e^-h left), free of cancellation
        gain = s.alpha * part * (1 + self.eta**2 * math.exp(-2 * h)) / (1 + math.exp(-h) * left)
        mean = model(x, t).mixed(s.alpha, s.sigma * left)
        if s.sigma == 0.0:
            return Step(combine(mean))
        variance = self.eta**2 * part * s.sigma**2 + gain**2 * self._unknown(t)
        return Step(combine(mean + math.sqrt(variance) * self.drawn(noise, t, s)))

    def _unknown(self, t: Knot) -> float:
        """The posterior variance of a component of x0: at most half_range^2."""
        if isinstance(self.data, ScorePower):
            if t.alpha == 0.0:
                raise UserError(f"ScorePower says nothing of the data at time {t.time:g}, where alpha is 0: start short of it.")
            unknown = t.u**2 * (1 - self.data.at(t))
        else:
            known = (self.data * t.alpha) ** 2 + t.sigma**2
            unknown = (self.data * t.sigma) ** 2 / known if known else 0.0
        return min(unknown, self.half_range**2)
