"""A fingerprint of a model: a few numbers of its answer to one fixed question. The same on any machine but for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .latent_diffusion import LatentDiffusion
from .names import UserError
from .noise import White
from .prediction import Counted, Model

_KEY, _MANY, _CLOSE = 12, 16, 1e-3  # which draw; how many numbers; how far the same network may be off on another machine


@torch.no_grad()
def fingerprint(model: Model, like: Tensor) -> tuple[float, ...]:
    """Of v that it answers for its first sample at one fixed state, shaped and typed like a row of `like`, and time.

    One call for one sample, which `Counted` does not count. Of a latent model also of the image that it decodes from that v.
    """
    model = model.model if isinstance(model, Counted) else model
    t = model.schedule.knot(0.5 * (model.schedule.t_min + model.schedule.t_max))
    z = White(0).on(like[:1]).fresh(_KEY) * float(np.hypot(t.alpha, t.sigma))
    v = model.rows(torch.zeros(1, dtype=torch.int64))(z, t).v.tensor()
    return (*_numbers(v), *(_numbers(model.images(v)) if isinstance(model, LatentDiffusion) else ()))


def _numbers(v: Tensor) -> tuple[float, ...]:
    v = v.flatten().double()
    return (float(v.mean()), float(v.square().mean().sqrt()), *v[:: max(len(v) // _MANY, 1)][:_MANY].tolist())


def check_fingerprint(model: Model, like: Tensor, mark: Sequence[float]) -> None:
    """`UserError` unless the model answers as `mark` says; an empty mark fits every model."""
    if not mark:
        return
    now, then = np.array(fingerprint(model, like)), np.array(mark)
    if len(now) != len(then) or np.abs(now - then).max() > _CLOSE * max(1.0, np.abs(then).max()):
        raise UserError(
            "this latent was encoded with another model (or other labels): it answers the fixed question differently. Decode with the "
            "model that encoded it, or, to edit on purpose, pass check=False."
        )
