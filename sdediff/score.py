"""The score network as a Model, and the denoising-score-matching losses that train it.

A network learns from `x_t = alpha x0 + sigma eps` to predict eps, x0, v or the score; the score itself is E[-eps/sigma | x_t] (Vincent
2011), so one squared error trains them all, and one trained network serves every solver.
This is the one place where a network sees a tensor time: as the schedule's time, DDPM's index, lam = log(alpha/sigma), or EDM's
c_noise = log(u)/4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .combine import Linear, combine, linear, spread
from .names import UserError, choose
from .prediction import KINDS, ModelError, Prediction, cos_sin
from .schedule import Knot, Number, Schedule
from .schedules import DiscreteVP

CONDITIONS = ("time", "index", "lam", "c_noise")


class ScoreNet:
    """A plain network `net(x, condition)` (or `net(x, condition, labels)`) and a schedule, as a Model.

    predicts: what the network answers: "eps", "x0", "v", "score", or "mean" (DDPM's posterior mean of the index before; DiscreteVP only).
    condition: what it is fed, a tensor (B,) of x's dtype: "time", "index" (time N - 1), "lam", or "c_noise" = log(sigma/alpha)/4.
    labels: class labels (B,) that travel with the samples, or None. shape: of one sample, if known (checked by `solve`).
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str = "eps",
        condition: str = "time",
        labels: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        choose("predicts", predicts, (*KINDS, "mean"))
        choose("condition", condition, CONDITIONS)
        if (predicts == "mean" or condition == "index") and not isinstance(schedule, DiscreteVP):
            raise UserError(f"{predicts if predicts == 'mean' else condition!r} counts DDPM's indices: it needs a DiscreteVP schedule.")
        self.net, self.schedule, self.predicts, self.condition = net, schedule, predicts, condition
        self.labels, self.shape = labels, shape

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        """The network's answer at states x (B, ...) and instant t. Raises `ModelError` for an answer of another shape or dtype."""
        condition = self._condition(x, t)
        try:
            answer = self.net(x, condition) if self.labels is None else self.net(x, condition, self.labels)
        except RuntimeError:
            self._check_dtype(x)
            raise
        if self.predicts == "mean":
            return Prediction(x, t, self._from_mean(x, t, answer), "x0")
        return Prediction(x, t, answer, self.predicts)

    def _check_dtype(self, x: Tensor) -> None:
        """`ModelError` if the network's weights are of another float type than the state."""
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else ()
        own = next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)
        if own != x.dtype:
            raise ModelError(f"the network's weights are {own}, the state is {x.dtype}: convert one of them, e.g. x.to({own}).") from None

    def rows(self, index: Tensor) -> ScoreNet:
        """The model for a subset of the samples: their labels only."""
        if self.labels is None:
            return self
        labels = self.labels[index.to(self.labels.device)]
        return ScoreNet(self.net, self.schedule, self.predicts, self.condition, labels, self.shape)

    def _condition(self, x: Tensor, t: Knot) -> Tensor:
        value: Number
        if self.condition == "time":
            value = t.time
        elif self.condition == "lam":
            value = t.lam
        elif self.condition == "c_noise":
            value = -0.25 * t.lam
        else:
            assert isinstance(self.schedule, DiscreteVP)
            value = t.time * self.schedule.n - 1
        if isinstance(value, float):
            one = _one_for_all(value, len(x), x.dtype, x.device)
            return one if len(x) > 1 else one.clone()
        return torch.as_tensor(value, dtype=x.dtype, device=x.device)

    def _from_mean(self, x: Tensor, t: Knot, mean: Tensor) -> Tensor:
        """x0 = (mean - a x)/b, where a x + b x0 is the posterior mean at the index before t."""
        assert isinstance(self.schedule, DiscreteVP)
        s = self.schedule.knot(np.maximum(t.time - 1 / self.schedule.n, 0.0) if isinstance(t.time, np.ndarray) else self._before(t))
        part = -np.expm1(2 * (t.lam - s.lam))
        a, b = np.exp(t.log_alpha - s.log_alpha + 2 * (s.log_sigma - t.log_sigma)), s.alpha * part
        number = float if isinstance(t.time, float) else np.asarray
        return combine(linear(mean, number(1 / b)) - linear(x, number(a / b)))

    def _before(self, t: Knot) -> float:
        assert isinstance(self.schedule, DiscreteVP)
        return max(round(t.time * self.schedule.n - 1, 9) / self.schedule.n, 0.0)


@lru_cache(maxsize=4096)
def _one_for_all(value: float, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`value` as a tensor (n,), made once for each knot. For n > 1 it is expanded, and torch refuses to write to it.

    Our networks see from its stride of 0 that it is one number, and embed it once.
    """
    with torch.inference_mode(False):
        return torch.full((1,), value, dtype=dtype, device=device).expand(n)


# --- losses -------------------------------------------------------------------------------------------------------

WEIGHTINGS = ("simple", "likelihood")
NORMS = ("l2", "l1", "huber")
TIMES = ("low_discrepancy", "uniform")


@dataclass(frozen=True)
class Objective:
    """What is learned: `E_t,x0,eps  w(t) mean |reading - truth|` over the components of a sample.

    target: the reading that is compared, "eps", "x0", "v", "score" or "flow"; None: what the network predicts. weighting: "simple" w = 1
    (with eps: DDPM's L_simple, eq. 14); "likelihood" w such that the squared error is g2/2 |score error|^2 (Song et al. 2021b, eq. 7).
    norm: "l2" (squared), "l1", or "huber" (smooth l1 with threshold `delta`). times: "low_discrepancy" t_i = (u + i/B) mod 1
    (Kingma et al. 2021, appendix I) or "uniform", both on [t_min, t_max] of the schedule; t_min overrides where they begin.
    """

    target: str | None = None
    weighting: str = "simple"
    norm: str = "l2"
    times: str = "low_discrepancy"
    t_min: float | None = None
    delta: float = 0.1

    def __post_init__(self) -> None:
        choose("target", self.target, (None, *KINDS))
        choose("weighting", self.weighting, WEIGHTINGS)
        choose("norm", self.norm, NORMS)
        choose("times", self.times, TIMES)

    def draw_times(self, schedule: Schedule, n: int, generator: torch.Generator) -> np.ndarray:
        """n times (float64) for n samples."""
        u = torch.rand(1 if self.times == "low_discrepancy" else n, generator=generator, dtype=torch.float64).numpy()
        if self.times == "low_discrepancy":
            u = (u + np.arange(n) / n) % 1.0
        low = schedule.t_min if self.t_min is None else self.t_min
        return low + u * (schedule.t_max - low)

    def __call__(self, model: ScoreNet, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        """The loss, a scalar, for data x0 (B, ...), times t (B,) float64, and noise like x0."""
        return self.per_sample(model, x0, t, noise).mean()

    def per_sample(self, model: ScoreNet, x0: Tensor, t: np.ndarray, noise: Tensor) -> Tensor:
        """The weighted loss of each sample, (B,)."""
        knot = model.schedule.knot(t)
        p = model(model.schedule.forward(x0, knot, noise), knot)
        target = self.target or p.kind
        off = combine(getattr(p, target) - _truth(target, knot, x0, noise))
        return spread(self.weight(target, knot), x0).flatten() * self._size(off).flatten(1).mean(1)

    def weight(self, target: str, t: Knot) -> np.ndarray:
        """w(t), float64: an error e of eps is -(sigma/alpha) e of x0, e/cos(angle) of v, -e/sigma of score."""
        if self.weighting == "simple":
            return np.ones_like(t.time)
        cos2 = t.alpha**2 / (t.alpha**2 + t.sigma**2)
        flow = t.alpha**2 / (t.alpha + t.sigma) ** 2
        of_eps = {"eps": 1.0, "x0": (t.alpha / t.sigma) ** 2, "v": cos2, "score": t.sigma**2, "flow": flow}[target]
        return 0.5 * t.g2 / t.sigma**2 * of_eps

    def _size(self, off: Tensor) -> Tensor:
        if self.norm == "l2":
            return off.square()
        if self.norm == "l1":
            return off.abs()
        return nn.functional.huber_loss(off, torch.zeros_like(off), reduction="none", delta=self.delta) / self.delta


def _truth(target: str, t: Knot, x0: Tensor, noise: Tensor) -> Linear:
    """The reading `target` of a sample whose x0 and noise are known."""
    if target == "v":
        c, s = cos_sin(t)
        return c * linear(noise) - s * linear(x0)
    of_x0, of_noise = {"eps": (0.0, 1.0), "x0": (1.0, 0.0), "score": (0.0, -1 / t.sigma), "flow": (-1.0, 1.0)}[target]
    return of_x0 * linear(x0) + of_noise * linear(noise)
