"""The two ends of the flow of a likelihood: the state that it starts from at t_min, the prior at t_max, and what each of them costs.

With u = sigma/alpha at t_min and v the data (dequantised, if they are images of grey levels):

- "clean": x = alpha v, log p = log p_tmin(alpha v) + D log alpha: the density at v of data blurred by u, which is that of samples of the
  flow at t_min, over alpha. It is a density, exactly. By the heat equation it differs from that of the data by (|eps|^2 - sigma div eps)/2
  = (sigma^2/2)(tr H + |s|^2), s the score at t_min and H its Jacobian, to first order in u^2.
- "noised": x = alpha v + sigma e, and the density of the samples at t_min sent through the decoder N(x0(x), u^2), x0 the denoiser (Song et
  al. 2021b, theorem 3, corrected at t_min), by the bound

      log p_decoded(v) >= E [ log p_tmin(x) + log N(v; x0(x), u^2) - log N(x; alpha v, sigma^2) ],

  of which one draw is taken. With log N(v; posterior) in it, it would be log p_0(v), draw by draw. So for a posterior of variance rho u^2
  it is below log p_0, on average over the data, by D/2 (rho - 1 - log rho), of the order u^4 for smooth data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..batch import total
from ..names import UserError
from ..noise import WhiteNoise
from ..prediction import Model
from ..schedule import Knot
from .carried import FRAME, Carried
from .dequantise import TAU, Dequantised, Levels, dequantised

STARTS = ("clean", "noised")
_DEQUANTISE, _NOISE, SKETCH = range(3)  # keys of draws


@runtime_checkable
class Density(Protocol):
    """What knows a marginal's density in closed form: `Gaussian`, `Mixture`, `Empirical`."""

    def log_density(self, x: Tensor, t: Knot) -> Tensor: ...


def first_knot(model: Model, t_min: float | None, inside: Levels | None) -> Knot:
    """Where the flow begins; `inside`: the levels whose bins the noise of t_min must not leave."""
    schedule = model.schedule
    if t_min is not None or inside is None:
        low = schedule.knot(schedule.t_min if t_min is None else t_min)
    else:
        low = schedule.knot_at("u", inside.width / (2 * TAU))
    if not low.time < schedule.t_max:
        raise UserError(f"the flow begins at t_min, below t_max = {schedule.t_max:g}, not at {low.time:g}.")
    if inside is not None and not low.sigma > 0:
        raise UserError("truncated normal noise needs sigma > 0 at t_min: give a larger t_min, or take dequantise='uniform'.")
    return low


@dataclass(frozen=True)
class Begun:
    """A batch at t: the data v (B, ...), the state x, the noise e of x = alpha v + sigma e (None: clean), the box of v if dequantised."""

    data: Tensor
    x: Tensor
    t: Knot
    noise: Tensor | None
    box: Dequantised | None

    @staticmethod
    def of(x: Tensor, t: Knot, start: str, levels: Levels | None, kind: str, noise: WhiteNoise) -> Begun:
        """Of the data x, by noise that is a function of each sample's seed and number."""
        uniform = torch.special.ndtr(noise.fresh(_DEQUANTISE))
        box = None if levels is None else dequantised(x, levels, kind, uniform, t.u)
        v = x.double() if box is None else box.v
        if start == "clean":
            return Begun(v, t.alpha * v, t, None, box)
        e = noise.fresh(_NOISE)
        return Begun(v, t.alpha * v + t.sigma * e, t, e, box)

    def read(self, carried: Carried, state: Tensor) -> tuple[Tensor, Tensor]:
        """eps (B, D) and sigma div eps (B,) of the model here: with y = x/r, eps = sin y + cos v, so r div eps = sin D + cos div_y v."""
        p, d, r = carried(state, self.t), carried.dimension, FRAME.scale(self.t)
        c, s = self.t.alpha / r, self.t.sigma / r
        eps = p.eps.tensor() if s else torch.zeros_like(state)
        return eps[:, :d], s * (s * d + c * p.value[:, d:].mean(1) / carried.weight)

    def extra(self, eps: Tensor) -> Tensor:
        """(B,): the log-likelihood less log p_t(x). Noised: v - x0(x) = u (eps - e)."""
        total = eps.new_full((len(eps),), eps.shape[1] * self.t.log_alpha)
        if self.noise is not None:
            e = self.noise.flatten(1)
            total = total + 0.5 * (e.square() - (eps - e).square()).sum(1)
        return total if self.box is None else total + self.box.entropy

    def gaps(self, eps: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes (truncation, dequantisation), each (B,), from eps and spread = sigma div eps."""
        t, d = self.t, eps.shape[1]
        if t.sigma == 0:
            return torch.zeros_like(spread), torch.full_like(spread, 0.0 if self.box is None else math.nan)
        if self.noise is None:
            truncation = 0.5 * (eps.square().sum(1) - spread).abs()
        else:
            rho = (1 - spread / d).clamp(1e-6)
            truncation = 0.5 * d * (rho - 1 - rho.log())
        if self.box is None:
            return truncation, torch.zeros_like(spread)
        return truncation, self.box.gap(-eps / t.u, -spread / d / t.u2)


@dataclass(frozen=True)
class Prior:
    """The density at t_max: N(0, prior_std^2), or the marginal of an oracle that was given for it."""

    model: Model
    t: Knot
    given: Density | None

    def log_density(self, x: Tensor) -> Tensor:
        """(B,) of states x (B, ...)."""
        if self.given is not None:
            return self.given.log_density(x.flatten(1), self.t).to(x)
        std = self.model.schedule.prior_std
        return -0.5 * total((x / std).square()) - x[0].numel() * math.log(std * math.sqrt(2 * math.pi))

    def mismatch(self, data: Tensor, x: Tensor) -> Tensor:
        """|log p_T - log prior| at x, if the model knows its own density, else K + sqrt(2 K) of K = KL(q(x_T | data) || N(0, prior_std^2)).

        log q/prior at a draw of q has the mean K and, if its variances are right, the variance 2 K.
        """
        if self.given is not None:
            return x.new_zeros(len(x))
        if isinstance(self.model, Density):
            return (self.model.log_density(x.flatten(1), self.t).to(x) - self.log_density(x)).abs()
        kl = prior_kl(data, self.t)
        return kl + torch.sqrt(2 * kl)


def prior_kl(x: Tensor, t: Knot) -> Tensor:
    """KL(N(alpha x, sigma^2) || N(0, prior_std^2)) of data x (B, ...), float64 (B,)."""
    std = t.schedule.prior_std
    log_ratio = 2 * (t.log_sigma - math.log(std))
    constant = 0.5 * (math.expm1(log_ratio) - log_ratio)
    return total(0.5 * (t.alpha / std) ** 2 * x.double().square() + constant)
