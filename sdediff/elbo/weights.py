"""All steps of a bound at once (the algebra of one is in `variational`), and what each step weighs as a noise error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from ..decoders import GaussianDecoder
from ..names import UserError, choose
from ..schedule import Knot, Number
from ..solvers import Sigmas
from ..variational import VARIANCES, move, share_of_new, stacked, width_kl


class NoiseWeights(NamedTuple):
    """DDIM's theorem 1, J_sigma = L_gamma + C: `-bound = sum gamma |eps - eps_hat|^2 + d sum constant + prior`, float64 (N + 1,).

    One entry for each step and a last one for the decoder, whose noise is that of the last knot.
    """

    gamma: np.ndarray
    constant: np.ndarray


def noise_weights(
    knots: Sequence[Knot],
    *,
    variance: str = "small",
    sigma: float | Sigmas = 1.0,
    decoder: GaussianDecoder | None = None,
) -> NoiseWeights:
    """What each step weighs in the bound, as weights of the noise error and constants for each component; arguments as of `elbo`.

    A step: gamma = (alpha_s u_t - sqrt(sigma_s^2 - n^2))^2 / (2 V), constant = (n^2/V - 1 - ln n^2/V)/2; with DDPM's q and small variance
    gamma = (SNR_s/SNR_t - 1)/2, DDPM's eq. 12. The decoder: u^2/(2 V) and ln(2 pi V)/2.
    """
    chain, v = Chain.of(knots, variance, sigma), (decoder or GaussianDecoder()).variance_at(knots[-1])
    if variance == "learned":
        raise UserError('a learned variance differs from state to state, so its weights are no table: take variance="small" or "large".')
    return NoiseWeights(
        np.append(chain.gamma * np.exp(-chain.log_p), 0.5 * knots[-1].u2 / v),
        np.append(chain.constant(chain.log_p), 0.5 * math.log(2 * math.pi * v)),
    )


@dataclass(frozen=True)
class Chain:
    """All steps of a bound at once, float64 (N,): what stands in q(x_s | x_t, x0) and p(x_s | x_t).

    added: (n/sigma_s)^2; pull: k in mean(q) - mean(p) = k (x0 - x0_hat); log_q: ln n^2; log_small, log_large: of DDPM's two variances;
    gamma: V times the weight of |eps - eps_hat|^2; share: of each step in lam from t_0 to t_N, how often it is drawn.
    """

    knots: tuple[Knot, ...]
    variance: str
    added: np.ndarray
    pull: np.ndarray
    gamma: np.ndarray
    log_q: np.ndarray
    log_small: np.ndarray
    log_large: np.ndarray
    share: np.ndarray

    @staticmethod
    def of(knots: Sequence[Knot], variance: str, sigma: float | Sigmas) -> Chain:
        choose("variance", variance, VARIANCES)
        knots = checked(knots)
        t, s = stacked(knots[:-1]), stacked(knots[1:])
        steps = move(t, s, _added(knots, sigma, share_of_new(t, s)))
        return Chain(knots, variance, *steps, _share(s.lam - t.lam))

    def __len__(self) -> int:
        return len(self.pull)

    @property
    def log_p(self) -> np.ndarray:
        """ln V where it is fixed: "small" is q's own variance."""
        return self.log_large if self.variance == "large" else self.log_q

    def constant(self, log_p: np.ndarray) -> np.ndarray:
        """(n^2/V - 1 - ln n^2/V)/2."""
        return width_kl(torch.from_numpy(self.log_q - log_p)).numpy()

    @cached_property
    def times(self) -> np.ndarray:
        return np.array([t.time for t in self.knots])

    @cached_property
    def cuts(self) -> np.ndarray:
        """Where each step begins in [0, 1], cut by the shares; N + 1 entries."""
        return np.append(0.0, np.cumsum(self.share))

    def reached(self, r: Any) -> Any:
        """The step that r in [0, 1] falls into."""
        return np.clip(np.searchsorted(self.cuts, r, side="right") - 1, 0, len(self) - 1)

    def row(self, i: Any) -> Row:
        """The numbers of step i: a number, or an int64 array with one step a sample."""
        t = self.knots[i] if isinstance(i, int) else self.knots[0].schedule.knot(self.times[i])
        return Row(t, *(a[i] for a in (self.added, self.pull, self.gamma, self.log_q, self.log_p, self.log_small, self.log_large)))


class Row(NamedTuple):
    """One step (or one a sample) of a `Chain`."""

    t: Knot
    added: Number
    pull: Number
    gamma: Number
    log_q: Number
    log_p: Number
    log_small: Number
    log_large: Number


def _added(knots: Sequence[Knot], sigma: float | Sigmas, part: np.ndarray) -> np.ndarray:
    """(n/sigma_s)^2 of each step."""
    if isinstance(sigma, Sigmas):
        n = np.array([sigma.between(t, s) for t, s in pairwise(knots)])
        added = np.minimum((n / [s.sigma for s in knots[1:]]) ** 2, 1.0)
    elif isinstance(sigma, int | float) and 0 <= sigma < math.inf:
        added = np.minimum(sigma**2 * part, 1.0)
    else:
        raise UserError(f"sigma is a number eta of at least 0 (1: DDPM) or Sigmas(times, values), not {sigma!r}.")
    if not (added > 0).all():
        raise UserError("a step of q that adds no noise is infinitely far from every p: the bound needs sigma above 0 in every step.")
    return added


def _share(h: np.ndarray) -> np.ndarray:
    """h/sum(h). A step from alpha = 0 is infinitely long: it gets as much as the longest other one."""
    finite = np.isfinite(h)
    h = np.where(finite, h, h[finite].max(initial=0.0) or 1.0)
    return h / h.sum()


def checked(knots: Sequence[Knot]) -> tuple[Knot, ...]:
    """The knots of a bound, from noise to data, as a tuple. `UserError` if they are none."""
    knots = tuple(knots)
    if len(knots) < 2 or not all(isinstance(k, Knot) and isinstance(k.time, float) for k in knots):
        raise UserError("a bound needs at least two knots, each one time for all samples: Uniform().knots(model.schedule, 1000).")
    if knots[-1].sigma == 0:
        raise UserError(
            "the last knot has sigma = 0: the decoder makes the last step, from noise. End the knots at a positive sigma, such as t_min."
        )
    for t, s in pairwise(knots):
        if not s.lam > t.lam:
            raise UserError(f"knots go from noise to data, but {s.time:g} follows {t.time:g}: reverse them, and drop repetitions.")
    return knots
