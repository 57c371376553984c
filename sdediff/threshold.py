"""Models that correct what a model says of the data: static and dynamic thresholding, and the analytic first step. Model -> Model.

Data that lies in [-1, 1] cannot have an x0 outside; guidance and large steps push it there. Thresholding changes x0, and with it the eps
that goes with the same state, unless the noise is to be put back with the eps that the model gave (`original_eps`). At sigma = 0 the
state is the data and nothing is changed. Of a `LatentDiffusion` it is the model of the latents that is wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .combine import combine, linear
from .latent_diffusion import LatentDiffusion
from .names import UserError
from .prediction import Around, Model, Prediction
from .schedule import Knot


@dataclass(frozen=True)
class Limited(Around):
    """A model whose x0 goes through `limit`, a function of x0 (B, ...) alone, elementwise or sample by sample."""

    model: Model
    limit: Callable[[Tensor], Tensor]
    original_eps: bool = False

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        p = self.model(x, t)
        if isinstance(t.sigma, float) and t.sigma == 0.0:
            return p
        eps = p.eps.tensor() if self.original_eps and p.eps_used is None else p.eps_used
        return Prediction(x, t, self.limit(p.x0.tensor()), "x0", p.variance, eps, p.cost, ran=p.ran)

    def rows(self, index: Tensor) -> Limited:
        return Limited(self.model.rows(index), self.limit, self.original_eps)


def clipped(model: Model, low: float = -1.0, high: float = 1.0, *, original_eps: bool = False) -> Model:
    """The model with its x0 clamped to [low, high] (static thresholding; Ho et al. 2020).

    original_eps: noise is put back with the eps that the model gave, not with the one that belongs to the clamped x0.
    """
    if not low < high:
        raise UserError(f"clipped(low, high) needs low below high, not {low} and {high}.")
    return _limited(model, lambda x0: x0.clamp(low, high), original_eps)


def dynamic_threshold(
    model: Model, quantile: float = 0.995, max: float = math.inf, *, bound: float = 1.0, original_eps: bool = False
) -> Model:
    """x0 clamped to [-s, s] and scaled to the bound: s is the quantile of |x0| in each sample, at least `bound`, at most `max`.

    For data in [-bound, bound]. With max = bound it is static thresholding. Saharia et al. 2022 (Imagen), section 2.3.
    """
    if not (0 <= quantile <= 1 and 0 < bound <= max):
        raise UserError(f"dynamic_threshold needs a quantile in [0, 1] and 0 < bound <= max, not {quantile}, {bound} and {max}.")

    def limit(x0: Tensor) -> Tensor:
        sizes = torch.stack([torch.quantile(row.float() if row.element_size() < 4 else row, quantile) for row in x0.abs().flatten(1)])
        s = sizes.to(x0).clamp(bound, max).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -s), s) * (bound / s)

    return _limited(model, limit, original_eps)


def _limited(model: Model, limit: Callable[[Tensor], Tensor], original_eps: bool) -> Model:
    if isinstance(model, LatentDiffusion):
        return replace(model, inner=_limited(model.inner, limit, original_eps))
    return Limited(model, limit, original_eps)


@dataclass(frozen=True)
class AnalyticFirstStep(Around):
    """A model that is not asked at one knot: there the answer is that of data N(0, data_std^2), without a network call."""

    model: Model
    knot: Knot
    data_std: float = 1.0

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        here = np.asarray(t.time == self.knot.time)
        if here.all():
            return Prediction(x, t, self._v(x, t), "v", cost=0)
        p = self.model(x, t)
        if not here.any():
            return p
        rows = torch.as_tensor(here, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        v = torch.where(rows, self._v(x, t), replace(p, eps_used=None).v.tensor())
        return Prediction(x, t, v, "v", p.variance, p.eps_used, p.cost, ran=p.ran)

    def rows(self, index: Tensor) -> AnalyticFirstStep:
        return AnalyticFirstStep(self.model.rows(index), self.knot, self.data_std)

    def _v(self, x: Tensor, t: Knot) -> Tensor:
        """cos eps - sin x0, with x0 = alpha d^2 x/V, eps = sigma x/V, V = alpha^2 d^2 + sigma^2; d = 1: zero."""
        known = (t.alpha * self.data_std) ** 2 + t.sigma**2
        r = (t.alpha**2 + t.sigma**2) ** 0.5
        return combine(linear(x, t.alpha * t.sigma * (1 - self.data_std**2) / (r * known)))


def analytic_first_step(model: Model, knot: Knot, data_std: float = 1.0) -> Model:
    """The model with its answer at `knot` (the first of a run) replaced by that of Gaussian data of standard deviation `data_std`.

    Near pure noise every data set looks Gaussian, so the first call of a run is saved: `run.calls` is one less than `solver.calls(knots)`
    for a solver that evaluates there once. Zhou et al. 2024 (AMED), analytical first step; Dockhorn et al. 2022.
    """
    if not data_std >= 0:
        raise UserError(f"analytic_first_step(data_std) needs a standard deviation of at least 0, not {data_std}.")
    if isinstance(model, LatentDiffusion):
        return replace(model, inner=analytic_first_step(model.inner, knot, data_std))
    return AnalyticFirstStep(model, knot, float(data_std))
