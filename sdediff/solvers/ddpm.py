"""DDPM's ancestral sampling: a draw of the Gaussian posterior q(x_s | x_t, x0) with the network's x0 in the place of the data.

With a = alpha_t/alpha_s and v = sigma_t^2 - a^2 sigma_s^2 (Ho, Jain & Abbeel 2020, eq. 6, 7 and algorithm 2):
`x_s = (a sigma_s^2/sigma_t^2) x + (alpha_s v/sigma_t^2) x0 + sqrt(V) z`. No noise is added when s is the data itself (sigma_s = 0).
V is a choice between two bounds, or learned between them (Nichol & Dhariwal 2021, eq. 15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..combine import combine, linear
from ..names import UserError, choose
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts


@dataclass(frozen=True)
class DDPM(Ancestral):
    """The ancestral step with variance V: "small" v sigma_s^2/sigma_t^2, "large" v (the DDIM paper's sigma-hat), "none" 0, or "learned".

    "learned": exp(w log large + (1 - w) log small) with w = (p.variance + 1)/2 from the network (improved DDPM, guided-diffusion).
    One call a step, no memory, no inverse. "small" and "large" are of strong and weak order 1 to the reverse SDE. "none" keeps only
    the mean: it loses variance at every step and converges to nothing useful; it shows why noise is added.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        choose("variance", self.variance, ("small", "large", "none", "learned"))

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        order = None if self.variance in ("none", "learned") else 1
        reference = "Ho, Jain & Abbeel 2020 (DDPM), algorithm 2"
        return Facts(reference, strong=order, weak=order, stochastic=self.variance != "none", clock="snr")

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        part = -math.expm1(2 * (t.lam - s.lam))  # v / sigma_t^2
        keep = math.exp(t.log_alpha - s.log_alpha + 2 * (s.log_sigma - t.log_sigma))
        p = model(x, t)
        mean = linear(x, keep) + s.alpha * part * p.x0
        if self.variance == "learned" and s.sigma > 0.0:
            return Step(combine(mean + _learned(p, t, s, part) * self.drawn(noise, t, s).tensor()))
        variance = {"small": part * s.sigma**2, "large": part * t.sigma**2}.get(self.variance, 0.0)
        if variance == 0.0 or s.sigma == 0.0:
            return Step(combine(mean))
        return Step(combine(mean + math.sqrt(variance) * self.drawn(noise, t, s)))


def _learned(p: Prediction, t: Knot, s: Knot, part: float) -> Tensor:
    """The standard deviation between the small and the large one, on a logarithmic scale, where the network puts it."""
    if p.variance is None:
        raise UserError('DDPM("learned") needs a model that answers with Prediction.variance (in [-1, 1]); use "small" or "large".')
    w = (p.variance + 1) / 2
    return part**0.5 * torch.exp(w * t.log_sigma + (1 - w) * s.log_sigma)
