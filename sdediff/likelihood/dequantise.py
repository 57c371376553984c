"""Images of few grey levels, and densities: noise inside the bin of a level, and what it costs.

A pixel has one of `count` levels, w apart, each in a bin of width w. The probability of an image is the integral of the density p over its
box of bins, and by Jensen, for any noise q inside the box (Theis et al. 2016; Ho et al. 2019, Flow++, eq. 4)

    log P(x) = log INT_box p(v) dv >= E_q [ log p(v) - log q(v | x) ],    gap = KL( q || p restricted to the box ).

"uniform": -log q = D log w. "truncated_normal" (Zheng et al. 2023, section 4): v = centre + u e, |e_i| <= tau = w/(2u), with
u = sigma/alpha at t_min: alpha v is a state of the diffusion at t_min, but for the tails; -log q = sum_i log(u Z sqrt(2 pi)) + e_i^2/2,
Z = erf(tau/sqrt 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import total
from ..levels import Levels
from ..names import choose

KINDS = ("uniform", "truncated_normal")
TAU = 3.0  # where t_min is free: the bin ends at three standard deviations of the noise
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(24))


@dataclass(frozen=True)
class Dequantised:
    """v (B, ...), -log q(v | x) (B,), the lower edges of the box, its levels, and the std u of the noise (inf: uniform)."""

    v: Tensor
    entropy: Tensor
    lower: Tensor
    levels: Levels
    u: float

    def gap(self, score: Tensor, curvature: Tensor) -> Tensor:
        """KL(q || p in the box), (B,), if log p is the parabola through v with gradient `score` (B, D) and second derivatives `curvature`
        (B,) in every coordinate: exact for an isotropic Gaussian; by quadrature, coordinate by coordinate.
        """
        v, lower, width = self.v.flatten(1), self.lower.flatten(1), self.levels.width
        nodes, weights = (a.to(v.device) for a in (_NODES, _WEIGHTS))
        at = 0.5 * width * nodes  # from the middle of the bin
        off = at + (lower + 0.5 * width - v)[..., None]
        log_p = off * score[..., None] + 0.5 * curvature[:, None, None] * off**2
        log_q = -0.5 * (at / self.u) ** 2
        log_w = torch.log(weights)
        log_q = log_q - torch.logsumexp(log_q + log_w, 0)
        kl = torch.logsumexp(log_p + log_w, -1) + (torch.exp(log_q + log_w) * (log_q - log_p)).sum(-1)
        return kl.sum(1)


def dequantised(x: Tensor, levels: Levels, kind: str, uniform: Tensor, u: float) -> Dequantised:
    """A point of each image's box. uniform: like x, in [0, 1); u: std of the truncated normal. `UserError` for other values than levels."""
    choose("dequantise", kind, KINDS)
    levels.check(x)
    lower, upper = levels.edges(x)
    d = x[0].numel()
    if kind == "uniform":
        entropy = torch.full((len(x),), d * math.log(levels.width), dtype=torch.float64, device=x.device)
        return Dequantised(lower + levels.width * uniform, entropy, lower, levels, math.inf)
    tau = levels.width / (2 * u)
    z = math.erf(tau / math.sqrt(2))
    e = math.sqrt(2) * torch.erfinv((2 * uniform - 1) * z)
    entropy = d * math.log(u * z * math.sqrt(2 * math.pi)) + 0.5 * total(e.square())
    v = torch.clamp(0.5 * (lower + upper) + u * e, lower, upper)
    return Dequantised(v, entropy, lower, levels, u)
