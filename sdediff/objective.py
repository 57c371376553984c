"""What a network is trained for: denoising losses, and the variational bound of a chain of steps with its variances.

The squared errors of all readings of one answer differ by known factors: an error e of x0 is -e/u of eps, and of a reading
`p x0 + q eps` it is (p - q/u) e. So a weighting is defined once, as w(t) of |x0 - x0_hat|^2, and divided by that factor squared for the
reading that is compared: the same weighting is the same loss, whichever reading that is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .combine import Linear, combine, linear, spread
from .decoders import Decoder, DiscretizedDecoder, GaussianDecoder
from .names import UserError, choose, from_repr
from .prediction import KINDS, Model, Prediction, parts
from .schedule import Knot, Number, Schedule
from .score import DATA_STD, ScoreNet
from .times import (
    Draw,
    Importance,
    Indices,
    LogitNormal,
    LogNormal,
    TimeDistribution,
    UniformTimes,
    chain_times,
    of_chain,
    times_named,
)
from .variational import VARIANCES, kl, learned, move

NORMS = ("l2", "l1", "huber")

# --- weightings ---------------------------------------------------------------------------------------------------


@runtime_checkable
class Weighting(Protocol):
    """How much an error counts at each time: said of x0 and of eps, each with its limits, because SNR u^2 is 0 times infinity at an end."""

    def of_x0(self, t: Knot) -> Number:
        """w(t) of |x0 - x0_hat|^2."""
        ...

    def of_eps(self, t: Knot) -> Number:
        """The same of |eps - eps_hat|^2: w(t) u^2."""
        ...


@dataclass(frozen=True)
class LikelihoodWeight:
    """g2/2 of |score error|^2, that is g2/(2 sigma^2) SNR: the bound of continuous time, for times drawn uniformly (Song et al. 2021b)."""

    def of_x0(self, t: Knot) -> Number:
        return np.divide(t.alpha * self._rate(t), t.sigma**3)

    def of_eps(self, t: Knot) -> Number:
        return np.divide(self._rate(t), t.alpha * t.sigma)

    def _rate(self, t: Knot) -> Number:
        """g2 alpha/(2 sigma), finite at alpha = 0 where g2 is not."""
        return t.alpha * t.dsigma - t.dalpha * t.sigma


@dataclass(frozen=True)
class SNRWeight:
    """SNR: 1 of eps, DDPM's L_simple."""

    def of_x0(self, t: Knot) -> Number:
        return t.snr

    def of_eps(self, t: Knot) -> Number:
        return np.ones_like(t.snr)


@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, least) (Salimans & Ho 2022, section 4): of eps it is max(1, least/SNR)."""

    least: float = 1.0

    def of_x0(self, t: Knot) -> Number:
        return np.maximum(t.snr, self.least)

    def of_eps(self, t: Knot) -> Number:
        return np.maximum(1.0, self.least * t.u2)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma): of eps min(SNR, gamma)/SNR, of v min(SNR, gamma)/(SNR + 1) (Hang et al. 2023)."""

    gamma: float = 5.0

    def of_x0(self, t: Knot) -> Number:
        return np.minimum(t.snr, self.gamma)

    def of_eps(self, t: Knot) -> Number:
        return np.minimum(1.0, self.gamma * t.u2)


@dataclass(frozen=True)
class P2:
    """SNR/(k + SNR)^gamma: of eps 1/(k + SNR)^gamma (Choi et al. 2022, times L_simple)."""

    k: float = 1.0
    gamma: float = 1.0

    def of_x0(self, t: Knot) -> Number:
        low = t.snr / np.power(self.k + t.snr, self.gamma)
        return np.where(t.snr < 1, low, np.power(t.snr, 1.0 - self.gamma) / (self.k * t.u2 + 1) ** self.gamma)

    def of_eps(self, t: Knot) -> Number:
        return np.power(self.k + t.snr, -self.gamma)


@dataclass(frozen=True)
class EDMWeight:
    """(u^2 + d^2)/(u d)^2 = 1/c_out^2: 1 of the F of preconditioning "edm" with the same data_std d (Karras et al. 2022, table 1).

    data_std: d; None: that of the network's preconditioning, 0.5 of a network without.
    """

    data_std: float | None = None

    def of_x0(self, t: Knot) -> Number:
        return t.snr + 1 / self._d**2

    def of_eps(self, t: Knot) -> Number:
        return 1 + t.u2 / self._d**2

    @property
    def _d(self) -> float:
        return DATA_STD if self.data_std is None else self.data_std


WEIGHTINGS: dict[str, Weighting | None] = {
    "simple": None,  # 1 of the reading that is compared
    "likelihood": LikelihoodWeight(),
    "snr": SNRWeight(),
    "truncated_snr": TruncatedSNR(),
    "min_snr": MinSNR(),
    "p2": P2(),
    "edm": EDMWeight(),
}


def x0_error(kind: str, t: Knot, data_std: float = 1.0) -> Number:
    """The error of x0 for an error 1 of the reading `kind`."""
    p, q = parts(kind, t, data_std)
    error = t.sigma / (p * t.sigma - q * t.alpha)
    return -t.sigma * error if kind == "score" else error


# --- losses -------------------------------------------------------------------------------------------------------


class Loss(ABC):
    """A loss of each sample, and its times: a training loop calls `draw`, `per_sample` and, with a memory, `remember`."""

    @property
    @abstractmethod
    def drawn(self) -> TimeDistribution:
        """The distribution of the times."""

    @property
    @abstractmethod
    def begin(self) -> float | None:
        """Where times begin (None: t_min of the schedule)."""

    @abstractmethod
    def per_sample(self, model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        """The loss of each sample, (B,), for data x0 (B, ...), times t (B,) float64, and noise like x0; before `Draw.weight`."""

    def draw(self, schedule: Schedule, n: int, generator: torch.Generator, memory: Tensor | None = None) -> Draw:
        """Times for n samples, and the weights of their losses."""
        return self.drawn.draw(schedule, n, generator, memory, self.begin)

    def memory(self, schedule: Schedule) -> Tensor | None:
        """What importance sampling begins with; None for all others."""
        return self.drawn.memory(schedule, self.begin)

    def remember(self, memory: Tensor, t: np.ndarray, losses: Tensor) -> Tensor:
        """The memory after losses (B,), before their weights, at times t (B,)."""
        return self.drawn.remember(memory, t, losses)

    def draw_times(self, schedule: Schedule, n: int, generator: torch.Generator) -> np.ndarray:
        """n times (float64) for n samples."""
        return self.draw(schedule, n, generator).t

    def __call__(self, model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        """The mean of `per_sample`, a scalar."""
        return self.per_sample(model, x0, t, noise).mean()


@dataclass(frozen=True)
class Objective(Loss):
    """`E_t,x0,eps  w(t) mean |reading - truth|` over the components of a sample.

    target: the reading that is compared, "eps", "x0", "v", "score" or "flow"; None: what the network predicts (of EDM's, F). weighting:
    "simple" w = 1 (with eps: DDPM's L_simple, eq. 14; with flow: flow matching); "likelihood", "snr", "truncated_snr", "min_snr", "p2",
    "edm", or such a value with other numbers, MinSNR(gamma=1): the weight of the squared error of x0, converted. norm: "l2" (squared),
    "l1", or "huber" (smooth l1 with threshold `delta`). times: "low_discrepancy" or "uniform" in the schedule's time, "index",
    "log_normal", "logit_normal", "importance", or such a value; from t_min on (None: of the schedule).
    """

    target: str | None = None
    weighting: str | Weighting = "simple"
    norm: str = "l2"
    times: str | TimeDistribution = "low_discrepancy"
    t_min: float | None = None
    delta: float = 0.1

    def __post_init__(self) -> None:
        choose("target", self.target, (None, *KINDS))
        if isinstance(self.weighting, str) or not isinstance(self.weighting, Weighting):
            choose("weighting", self.weighting, WEIGHTINGS)
        choose("norm", self.norm, NORMS)
        times_named(self.times)

    @property
    def drawn(self) -> TimeDistribution:
        return times_named(self.times)

    @property
    def begin(self) -> float | None:
        return self.t_min

    def per_sample(self, model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        return self.of(_answer(model, x0, t, noise), x0, noise, _preconditioned(model))

    def of(self, p: Prediction, x0: Tensor, noise: Tensor, network_std: float | None = None) -> Tensor:
        """The loss of each sample, (B,), of an answer about alpha x0 + sigma noise. network_std: of the network's preconditioning."""
        target, data_std = (self.target, 1.0) if self.target else (p.kind, p.data_std)
        reading = getattr(p, target) if self.target else linear(p.value)
        off = combine(reading - _truth(target, data_std, p.at, x0, noise))
        loss = self._size(off).flatten(1).mean(1)
        if self.weighting == "simple":
            return loss
        weight = self.weight(target, p.at, data_std, network_std)
        if not np.isfinite(weight).all():
            time = np.ravel(p.at.time)[np.argmin(np.isfinite(np.ravel(weight)))]
            raise UserError(
                f"the weighting {self.weighting!r} of {target} is infinite at time {time:g}: compare another reading, e.g. 'v' or 'flow'."
            )
        return spread(weight, loss) * loss

    def weight(self, target: str, t: Knot, data_std: float = 1.0, network_std: float | None = None) -> np.ndarray:
        """w(t) of the squared error of the reading `target`, float64. data_std: of a "v" of such data; network_std: see `of`."""
        weighting = WEIGHTINGS[self.weighting] if isinstance(self.weighting, str) else self.weighting
        if weighting is None:
            return np.ones_like(t.time)
        if isinstance(weighting, EDMWeight) and weighting.data_std is None:
            weighting = EDMWeight(network_std)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            if target in ("eps", "score"):
                return weighting.of_eps(t) * (t.sigma**2 if target == "score" else 1.0)
            of_x0 = weighting.of_x0(t)
            if target == "x0":
                return of_x0
            p, q = parts(target, t, data_std)
            det = p * t.sigma - q * t.alpha
            return np.where(t.lam < 0, of_x0 * (t.sigma / det) ** 2, weighting.of_eps(t) * (t.alpha / det) ** 2)

    def _size(self, off: Tensor) -> Tensor:
        if self.norm == "l2":
            return off.square()
        if self.norm == "l1":
            return off.abs()
        return nn.functional.huber_loss(off, torch.zeros_like(off), reduction="none", delta=self.delta) / self.delta


@dataclass(frozen=True)
class VLB(Loss):
    """The variational bound of a chain, in bits/dim, without its prior, which nothing trains: N times the term of the step that t is.

    A step to a next one costs KL(q(x_s | x_t, x0) || p(x_s | x_t)), the last one -ln p(x0 | x_t) of the decoder. variance of p: "learned",
    or DDPM's "small" or "large". steps: N of the chain (None: the indices of a DiscreteVP, or 1000 even times from t_min to t_max).
    decoder: its variance, if it names none, is learned between the small one of the step before and (sigma/alpha)^2, or the latter.
    times: "index", or `Importance(Indices())`, which Nichol & Dhariwal (2021, section 3.3) need here: times of the chain, whose uniform
    mean is the bound (others are refused). `per_sample` takes a time between those as the noisier end of a step of the same length.
    """

    variance: str = "learned"
    steps: int | None = None
    decoder: Decoder = field(default_factory=DiscretizedDecoder)
    times: str | TimeDistribution = "index"
    t_min: float | None = None

    def __post_init__(self) -> None:
        choose("variance", self.variance, VARIANCES)
        of_chain("VLB", times_named(self.times), self.steps)

    @property
    def drawn(self) -> TimeDistribution:
        return of_chain("VLB", times_named(self.times), self.steps)

    @property
    def begin(self) -> float | None:
        return self.t_min

    def per_sample(self, model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        return self.of(_answer(model, x0, t, noise), x0)

    def of(self, p: Prediction, x0: Tensor) -> Tensor:
        """The loss of each sample, (B,), of an answer about a noised x0."""
        self._check_range(x0)
        chain = chain_times(p.at.schedule, self.steps, self.t_min)
        last = p.at.time < 0.5 * (chain[0] + chain[1])
        log_q, log_p, pull = self._step(p, chain, last)
        mean = p.x0.tensor()
        nats = kl(log_q, log_p, pull * (x0 - mean))
        if last.any():
            rows = torch.as_tensor(np.flatnonzero(last), device=x0.device)
            nats = nats.index_copy(0, rows, -self._decoded(p, x0[rows], mean[rows], log_p, rows))
        return nats.flatten(1).mean(1) * (len(chain) / math.log(2))

    def _check_range(self, x0: Tensor) -> None:
        """`UserError` for data beyond the decoder's grey levels. On the CPU only: elsewhere it would make the device wait."""
        decoder = self.decoder
        if not isinstance(decoder, DiscretizedDecoder) or x0.device.type != "cpu" or not x0.numel():
            return
        (low, high), half = (float(v) for v in x0.aminmax()), 0.5 * decoder.width + 1e-6
        if low < decoder.low - half or high > decoder.high + half:
            raise UserError(
                f"the data range from {low:.4g} to {high:.4g}, but the {decoder.levels} grey levels of the decoder from {decoder.low:g} to "
                f"{decoder.high:g}: give DiscretizedDecoder(levels, low, high) those of the data, or take GaussianDecoder()."
            )

    def _step(self, p: Prediction, chain: np.ndarray, last: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """ln n^2, ln V and k of the step from p.at. Of the last one the large V is (sigma/alpha)^2, the small one as before it."""
        t, knot = p.at, p.at.schedule.knot
        noisier = np.where(last, chain[1], t.time)
        numbers = move(knot(noisier), knot(np.maximum(noisier - (chain[1] - chain[0]), chain[0])))
        large = np.where(last, -2 * t.lam, numbers.log_large)
        log_q, pull, log_large = (torch.as_tensor(spread(a, p.x)) for a in (numbers.log_q, numbers.pull, large))
        if self.variance == "learned":
            return log_q, learned(p, numbers.log_small, large), pull
        return log_q, log_q if self.variance == "small" else log_large, pull

    def _decoded(self, p: Prediction, x0: Tensor, mean: Tensor, log_p: Tensor, rows: Tensor) -> Tensor:
        """ln p(x0 | x_t) of each component of these rows."""
        if self.variance == "learned" and self.decoder.variance is None:
            return self.decoder.log_densities(x0, mean, torch.exp(log_p[rows]))
        variance = np.broadcast_to(self.decoder.variance_at(p.at), np.shape(p.at.time))
        return self.decoder.log_densities(x0, mean, variance[rows.cpu().numpy()])


@dataclass(frozen=True)
class Hybrid(Loss):
    """L_simple + weight L_vlb, where L_vlb trains the variance only: its mean is held (Nichol & Dhariwal 2021, eq. 16).

    L_vlb is `VLB`, the sum over the N steps in bits/dim; so with N = 1000 a term counts N weight = 1. `simple` says which times are drawn,
    of the bound's chain; where it leaves steps or t_min open, they are the bound's.
    """

    simple: Objective = Objective(times="index")
    weight: float = 1e-3
    bound: VLB = VLB()

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"the weight of L_vlb is a number of at least 0, not {self.weight!r}.")
        if self.bound.variance != "learned":
            raise UserError(
                f"L_vlb trains the variance alone, and that of VLB({self.bound.variance!r}) is fixed: take VLB() or Objective()."
            )
        if self.bound.times != "index":
            raise UserError(f"the times of Hybrid are those of simple: write Objective(times={self.bound.times!r}), and VLB without times.")
        if self.simple.t_min not in (None, self.bound.t_min):
            begin = "that of the schedule" if self.bound.t_min is None else self.bound.t_min
            raise UserError(f"times begin at t_min = {self.simple.t_min}, but the bound's chain at {begin}: say t_min in VLB alone.")
        of_chain("the bound of Hybrid", self.simple.drawn, self.bound.steps)

    @property
    def drawn(self) -> TimeDistribution:
        return of_chain("the bound of Hybrid", self.simple.drawn, self.bound.steps)

    @property
    def begin(self) -> float | None:
        return self.bound.t_min

    def per_sample(self, model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        p = _answer(model, x0, t, noise)
        return self.simple.of(p, x0, noise, _preconditioned(model)) + self.weight * self.bound.of(replace(p, value=p.value.detach()), x0)


def _answer(model: Model, x0: Tensor, t: np.ndarray, noise: Tensor) -> Prediction:
    """What the model says of x0 noised to the times t."""
    knot = model.schedule.knot(t)
    return model(model.schedule.forward(x0, knot, noise), knot)


def _preconditioned(model: Model) -> float | None:
    """The data_std of a network's preconditioning, None where there is none."""
    return model.data_std if isinstance(model, ScoreNet) and model.preconditioning is not None else None


def _truth(kind: str, data_std: float, t: Knot, x0: Tensor, noise: Tensor) -> Linear:
    """The reading `kind` of a sample whose x0 and noise are known."""
    of_x0, of_noise = (0.0, -1 / t.sigma) if kind == "score" else parts(kind, t, data_std)
    return of_x0 * linear(x0) + of_noise * linear(noise)


# --- from text ----------------------------------------------------------------------------------------------------

OBJECTIVES = {made.__name__: made for made in (Objective, Hybrid, VLB)}
_VALUES = (
    *(UniformTimes, Indices, LogNormal, LogitNormal, Importance),
    *(LikelihoodWeight, SNRWeight, TruncatedSNR, MinSNR, P2, EDMWeight),
    *(DiscretizedDecoder, GaussianDecoder),
)
VALUES = {made.__name__: made for made in _VALUES}


def objective_named(text: str) -> Loss:
    """The objective whose `repr` is `text`: "Objective('eps', times='index')", "Hybrid()". `UserError` for another text."""
    return from_repr(text, OBJECTIVES, "objective", VALUES)
