"""What is asked of a model and of a batch of tensors before any work, and of what a model answers: said once, for all who ask it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .latent_diffusion import LatentDiffusion
from .names import UserError
from .prediction import Model, ModelError
from .schedule import Knot


def check_model(model: Any) -> None:
    """`UserError` unless this is a model."""
    if not isinstance(model, Model):
        raise UserError(
            f"a model needs schedule, shape, rows(index) and a call (x, knot) -> Prediction, which {type(model).__name__} lacks: "
            "wrap a network as ScoreNet(net, schedule, predicts=...)."
        )


def check_shape(model: Model, x: Tensor, what: str, cure: str = "") -> None:
    """`UserError` unless the samples of x (B, ...) have the shape that the model works on; what: "the images have shape"."""
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        expected = ", ".join(map(str, model.shape))
        cure = ", the latents of an autoencoder: model.states(images)" if isinstance(model, LatentDiffusion) else cure
        raise UserError(f"{what} {tuple(x.shape)}, but the model works on (batch, {expected}){cure}.")


def check_data(model: Any, x: Any) -> None:
    """`UserError` unless x is a batch of at least one sample of finite numbers that the model works on."""
    check_model(model)
    if isinstance(model, LatentDiffusion):
        raise UserError(
            "a latent model has no density of images, because its decoder has none: ask model.inner about model.states(images)."
        )
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"the data must be a floating point tensor (batch, ...) of at least one sample, not {given}.")
    check_shape(model, x, "the data have shape")
    bad = broken(x)
    if bad:
        raise UserError(f"the data are NaN or infinite in {bad}: take them out.")


def check_answer(value: Tensor, t: Knot) -> None:
    """`ModelError` if what a model answered at t is not finite."""
    if not bool(torch.isfinite(value).all()):
        when = f"at time {t.time:g}" if isinstance(t.time, float) else f"at times in [{t.time.min():g}, {t.time.max():g}]"
        raise ModelError(f"the model returned NaN or infinity {when}: check the network there, or start or end short of it.")


def broken(x: Tensor) -> str:
    """Which samples of x (B, ...) hold NaN or infinity, at most five of them: "samples [0, 3]", or "" if none does."""
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    return f"samples {bad[:5]}{' ...' if len(bad) > 5 else ''}" if bad else ""
