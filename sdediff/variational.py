"""The algebra of one step of the variational bound: what `elbo` sums up and what the variational losses train.

For knots t (noisier) and s, q(x_s | x_t, x0) = N(alpha_s x0 + sqrt(sigma_s^2 - n^2) eps, n^2); p(x_s | x_t) has x0_hat for x0 and
a variance V. Their divergence is, for each component,

    KL(q || p) = (n^2/V - 1 - ln n^2/V)/2 + k^2 (x0 - x0_hat)^2 / (2 V),

with n^2 = sigma_s^2 (1 - u_s^2/u_t^2) for DDPM. V lies between this small variance and the large one, sigma_t^2 (1 - u_s^2/u_t^2); learned,
it is exp(w ln large + (1 - w) ln small) with w = (p.variance + 1)/2 (Nichol & Dhariwal 2021, eq. 15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .combine import spread
from .names import UserError
from .prediction import Prediction
from .schedule import Knot, Number

VARIANCES = ("small", "large", "learned")


class Move(NamedTuple):
    """One step, or arrays of them: what stands in q(x_s | x_t, x0) and p(x_s | x_t).

    added: (n/sigma_s)^2; pull: k in mean(q) - mean(p) = k (x0 - x0_hat); gamma: V times the weight of |eps - eps_hat|^2; log_q: ln n^2;
    log_small, log_large: of DDPM's two variances.
    """

    added: Number
    pull: Number
    gamma: Number
    log_q: Number
    log_small: Number
    log_large: Number


def share_of_new(t: Knot, s: Knot) -> Number:
    """1 - (u_s/u_t)^2: the share of sigma_t^2 that is new between s and t."""
    return -np.expm1(2 * (t.lam - s.lam))


def move(t: Knot, s: Knot, added: Number = None) -> Move:
    """The step from t to the cleaner s (knots that hold numbers or arrays). added: (n/sigma_s)^2, DDPM's by default."""
    h, part = s.lam - t.lam, share_of_new(t, s)
    added = part if added is None else added
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        pull = -s.alpha * np.expm1(0.5 * np.log1p(-added) - h)
        offset = s.sigma * (np.expm1(h) + added / (1 + np.sqrt(1 - added)))  # alpha_s u_t - sqrt(sigma_s^2 - n^2)
        log_part, log_q = np.log(part), np.log(added) + 2 * s.log_sigma
    return Move(added, pull, 0.5 * offset**2, log_q, log_part + 2 * s.log_sigma, log_part + 2 * t.log_sigma)


def stacked(knots: Sequence[Knot]) -> Knot:
    """Knots of one time each as one knot that holds arrays."""
    names = (f.name for f in fields(Knot) if f.name != "schedule")
    return Knot(*(np.array([getattr(k, name) for k in knots]) for name in names), schedule=knots[0].schedule)


def width_kl(ratio: Tensor) -> Tensor:
    """(e^r - 1 - r)/2 of r = ln n^2/V: the divergence of two Gaussians of the same mean, without cancellation near V = n^2."""
    return 0.5 * (torch.expm1(ratio) - ratio)


def kl(log_q: Tensor, log_p: Tensor, off: Tensor) -> Tensor:
    """KL(N(0, n^2) || N(off, V)) of each component, from ln n^2 and ln V."""
    return width_kl(log_q - log_p) + 0.5 * torch.exp(-log_p) * off.square()


def learned(p: Prediction, log_small: Number, log_large: Number) -> Tensor:
    """ln V of each component where the network puts it. `UserError` if it does not."""
    if p.variance is None:
        raise UserError('variance="learned" needs a model that answers with Prediction.variance (in [-1, 1]); use "small" or "large".')
    w = (p.variance + 1) / 2
    return w * spread(log_large, w) + (1 - w) * spread(log_small, w)
