"""Score-SDE's samplers: reverse diffusion, predictor-corrector, and NCSN's annealed Langevin dynamics.

Reverse diffusion turns the discrete forward process round (Song et al. 2021, appendix E): with the schedule's exact transition
x_t = a x_s + sqrt(v) z (a = alpha_t/alpha_s, v = sigma_t^2 - a^2 sigma_s^2) it is `x_s = (2 - a) x + v score + sqrt(v) z`. On discrete
betas v is beta_i and a is sqrt(1 - beta_i) (eq. 46); on a VE schedule a = 1 and v is the difference of the variances (eq. 47).
A corrector leaves the marginal p_t as it is while it moves the state towards it: Langevin dynamics `x' = x + e score + sqrt(2 e) z`.
Score-SDE calls it before the predictor at every knot, with e such that the ratio of the noise's size to the score's is fixed:
`e = 2 a^2 (snr |z|/|score|)^2` (algorithms 4 and 5). NCSN (Song & Ermon 2019) has no predictor: at each level it takes many steps of
size proportional to sigma^2. (One file, because reverse diffusion is the default predictor.)
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..combine import combine, linear
from ..names import UserError, positive
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts, Solver


@dataclass(frozen=True)
class ReverseDiffusion(Ancestral):
    """x_s = (2 - a) x + v score + sqrt(v) z; with probability_flow=True x_s = (2 - a) x + (v/2) score.

    One call a step, no memory. Strong and weak order 1 to the reverse SDE, order 1 to the flow (which may also be run upward). No noise
    is added when s is the data itself (the published `denoise`). Song et al. 2021 (score-SDE), eq. 46 and 47, algorithms 2 and 3.
    """

    probability_flow: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.probability_flow, bool):
            raise UserError(f"ReverseDiffusion(probability_flow) is True or False, not {self.probability_flow!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        reference = "Song et al. 2021 (score-SDE), eq. 46 and 47"
        if self.probability_flow:
            return Facts(reference, ode=1, inverse="approximate", clock="snr")
        return Facts(reference, strong=1, weak=1, stochastic=True, clock="snr")

    @property
    def inverse(self) -> Solver:
        return self if self.probability_flow else super().inverse

    def calls(self, knots: Sequence[Knot]) -> int:
        return len(knots) - 1 if self.probability_flow else super().calls(knots)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if not self.probability_flow and s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        a = math.exp(t.log_alpha - s.log_alpha)
        v = -(t.sigma**2) * math.expm1(2 * (t.lam - s.lam))
        score = model(x, t).score
        if self.probability_flow:
            return Step(combine((2 - a) * linear(x) + 0.5 * v * score))
        mean = (2 - a) * linear(x) + v * score
        return Step(combine(mean if s.sigma == 0.0 else mean + math.sqrt(v) * self.drawn(noise, t, s)))


class Corrector(ABC):
    """What moves a state at knot t towards its marginal there, before the predictor's step from t to s. A frozen value."""

    steps: int

    @abstractmethod
    def move(self, model: Model, x: Tensor, t: Knot, s: Knot, z: Tensor) -> Tensor:
        """One correction of x at t with the standard normal z: one network call."""

    def correct(self, model: Model, x: Tensor, t: Knot, s: Knot, noise: Noise) -> Tensor:
        """All `steps` corrections."""
        for i in range(self.steps):
            x = self.move(model, x, t, s, noise.fresh(_key(t, s, i)))
        return x


def _key(t: Knot, s: Knot, i: int) -> int:
    """A name for the i-th draw of the step from t to s: the same in every run over these knots, another one in any other step."""
    first, second = struct.unpack("<QQ", struct.pack("<dd", t.time, s.time))
    return (first * 0x9E3779B97F4A7C15 ^ (second + i) * 0xD1B54A32D192ED03) & 0x7FFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Langevin(Corrector):
    """x + e score + sqrt(2 e) z with e = 2 a^2 (snr |z|/|score|)^2: score-SDE's corrector, one call for each of its `steps`.

    Each sample has its own norms. coupled=True takes their means over the batch, as published: then a sample depends on the others in
    its batch, which is law 6 broken on purpose. Song et al. 2021, algorithms 4 and 5.
    """

    snr: float = 0.16
    steps: int = 1
    coupled: bool = False

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        if not (isinstance(self.snr, int | float) and 0 < self.snr < math.inf):
            raise UserError(f"Langevin(snr) needs a positive number, not {self.snr!r}.")

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot, z: Tensor) -> Tensor:
        score = model(x, t).score.tensor()
        of_score, of_z = (v.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for v in (score, z))
        if self.coupled:
            of_score, of_z = of_score.mean(), of_z.mean()
        a = math.exp(t.log_alpha - s.log_alpha)
        ratio = torch.where(of_score > 0, of_z / torch.where(of_score > 0, of_score, 1.0), 0.0)  # no score, no direction: no step
        size = a * self.snr * ratio
        return combine(linear(x) + 2.0 * (size**2 * score) + 2.0 * (size * z))


@dataclass(frozen=True)
class Renoise(Corrector):
    """alpha x0 + sigma (sqrt(1 - delta) eps + sqrt(delta) z): a share `delta` of the noise is drawn anew; one call for each of `steps`.

    To first order in delta a Langevin step of size delta sigma^2/2. It is the corrector of azula's predictor-corrector sampler.
    """

    delta: float = 0.01
    steps: int = 1

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        if not (isinstance(self.delta, int | float) and 0 <= self.delta <= 1):
            raise UserError(f"Renoise(delta) needs a share between 0 and 1, not {self.delta!r}.")

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot, z: Tensor) -> Tensor:
        kept = model(x, t).mixed(t.alpha, t.sigma * math.sqrt(1 - self.delta))
        return combine(kept + t.sigma * math.sqrt(self.delta) * linear(z))


@dataclass(frozen=True)
class PredictorCorrector(Ancestral):
    """At t the corrector, then the predictor's step from t to s. The predictor's calls and the corrector's `steps` a step.

    predictor: a public solver whose memory is empty, with noise or without; the others are refused, because the corrector moves the
    state that a memory (history, second state, slope at the state) belongs to. None: corrector only, the state goes from level to
    level as it is (the paper's C2000). No order is promised: for a fixed snr the corrector's error does not vanish with the steps.
    Song et al. 2021 (score-SDE), algorithm 1.
    """

    predictor: Solver | None = ReverseDiffusion()
    corrector: Corrector = Langevin()

    def __post_init__(self) -> None:
        if not (self.predictor is None or isinstance(self.predictor, Solver)):
            raise UserError(f"PredictorCorrector(predictor) needs a solver, e.g. Heun(), or None, not {self.predictor!r}.")
        if isinstance(self.predictor, PredictorCorrector):
            raise UserError("a PredictorCorrector as predictor would correct twice: give its corrector more steps instead.")
        if not isinstance(self.corrector, Corrector):
            raise UserError(f"PredictorCorrector(corrector) needs a corrector, e.g. Langevin(snr=0.16), not {self.corrector!r}.")

    @property
    def order(self) -> int:
        return 1 if self.predictor is None else self.predictor.order

    @property
    def facts(self) -> Facts:
        noisy = self.predictor is not None and self.predictor.facts.stochastic
        clock = self.predictor.facts.clock if self.predictor is not None and noisy else "snr"
        evals = self.corrector.steps + (self.predictor.facts.evals if self.predictor else 0)
        return Facts("Song et al. 2021 (score-SDE), algorithms 1, 4 and 5", stochastic=True, clock=clock, evals=evals)

    def init(self, model: Model, x: Tensor, t: Knot) -> None:
        if self.predictor is not None and self.predictor.init(model, x, t) is not None:
            raise UserError(
                f"{self.predictor!r} remembers what it saw before the corrector moved the state: as predictor take a solver without "
                "memory, e.g. DDIM(), Heun(), ReverseDiffusion() or DDPM()."
            )

    def calls(self, knots: Sequence[Knot]) -> int:
        down = [(t, s) for t, s in pairwise(knots) if t.lam < s.lam]
        return sum(self.corrector.steps + (self.predictor.calls((t, s)) if self.predictor else 0) for t, s in down)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        x = self.corrector.correct(model, x, t, s, noise)
        return Step(x if self.predictor is None else self.predictor.step(model, x, t, s, None, noise).x)


@dataclass(frozen=True)
class AnnealedLangevin(Ancestral):
    """The state is scaled to level s, x <- (alpha_s/alpha_t) x, and takes `steps` steps x + (a/2) score + sqrt(a) z there, a = r sigma_s^2.

    r = eps/sigma_min^2: NCSN's step size is a_i = eps sigma_i^2/sigma_L^2, and sigma_min is its last level sigma_L (eps and sigma_min
    enter only through r). On any schedule it is NCSN in x/alpha. `steps` calls a step, none where sigma_s = 0; no memory. It promises no
    order: it samples each level anew and is as good as its chain has mixed. Song & Ermon 2019, algorithm 1.
    """

    eps: float = 2e-5
    steps: int = 100
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        if not (self.eps > 0 and self.sigma_min > 0):
            raise UserError(f"AnnealedLangevin needs eps > 0 and sigma_min > 0, not {self.eps} and {self.sigma_min}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return Facts("Song & Ermon 2019 (NCSN), algorithm 1", stochastic=True, clock="snr", evals=self.steps)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self.steps for t, s in pairwise(knots) if t.lam < s.lam and s.sigma > 0)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        if t.alpha == 0.0:
            raise UserError(f"{self!r} scales the state by alpha_s/alpha_t, and alpha is 0 at time {t.time:g}: start short of it.")
        x = combine(linear(x, math.exp(s.log_alpha - t.log_alpha)))
        if s.sigma == 0.0:
            return Step(x)
        r = self.eps / self.sigma_min**2
        for i in range(self.steps):
            z = noise.fresh(_key(t, s, i))
            x = combine(linear(x) - (0.5 * r * s.sigma) * model(x, s).eps + math.sqrt(r) * s.sigma * linear(z))
        return Step(x)
