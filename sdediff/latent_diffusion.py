"""Diffusion of an autoencoder's codes, for verbs that speak images (Rombach et al. 2022).

    z = (encode(image) - shift) * scale,        image = decode(z / scale + shift).

A `LatentDiffusion` is a Model of z, so every solver runs on it as on any other; `sample`, `encode`, `decode`, `round_trip` and the study
take images to z and back at their ends. What they promise of z (to the bit) holds for z; images come back up to what the autoencoder
loses. `model.inner` is the model of z alone, for raw latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .data import InMemory, Source
from .names import UserError, positive
from .networks import Autoencoder
from .noise import White
from .prediction import Model, Prediction
from .schedule import Knot, Schedule

_AT_ONCE = 256  # images that the verbs give the autoencoder at a time
_KEY = 13  # of the draw from the prior


class Scaling(NamedTuple):
    """z = (code - shift) * scale."""

    scale: float
    shift: float


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A model `inner` of the scaled codes of an autoencoder; z = (encode(image) - shift) * scale.

    scale, shift: as `latent_scale` or `encode_source` measure them. To change what solvers see (guidance, thresholds), wrap the inner
    model: `replace(model, inner=clipped(model.inner))`.
    Raises `UserError` for a scale that is not positive, or codes of another shape than the inner model's.
    """

    inner: Model
    autoencoder: Autoencoder
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Model) or isinstance(self.inner, LatentDiffusion):
            raise UserError(f"inner must be a model of the latents, such as ScoreNet(...), not {type(self.inner).__name__}.")
        if not isinstance(self.autoencoder, Autoencoder):
            raise UserError(f"autoencoder must be a sdediff.networks.Autoencoder, not {type(self.autoencoder).__name__}.")
        if not (0 < self.scale < math.inf and math.isfinite(self.shift)):
            raise UserError(f"scale must be a positive number and shift a finite one, not {self.scale!r} and {self.shift!r}.")
        shape, latent = self.inner.shape, self.autoencoder.latent
        if shape is not None and (len(shape) != 3 or shape[0] != latent):
            raise UserError(
                f"the autoencoder's codes have shape ({latent}, h, w), but the inner model works on {tuple(shape)}: train one anew."
            )

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one z."""
        return self.inner.shape

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        if self.shape is None:
            return None
        factor = self.autoencoder.factor
        return self.autoencoder.channels, self.shape[1] * factor, self.shape[2] * factor

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        return self.inner(x, t)

    def rows(self, index: Tensor) -> LatentDiffusion:
        return replace(self, inner=self.inner.rows(index))

    def states(self, images: Tensor) -> Tensor:
        """z of images (B, c, h, w), in the autoencoder's own precision."""
        if self.image_shape is not None and tuple(images.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise UserError(f"the images have shape {tuple(images.shape)}, but this latent model's autoencoder takes (batch, {expected}).")
        return (self.autoencoder.encode(images.to(self._dtype)) - self.shift) * self.scale

    def images(self, states: Tensor) -> Tensor:
        """The images of z (B, latent, h, w)."""
        return self.autoencoder.decode(states.to(self._dtype) / self.scale + self.shift)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype


# --- for verbs: of any model ----------------------------------------------------------------------------------------


def data_shape(model: Model) -> tuple[int, ...] | None:
    """Of one of the data that verbs take and give: images, where the model is one of latents."""
    return model.image_shape if isinstance(model, LatentDiffusion) else model.shape


@torch.no_grad()
def to_states(model: Model, data: Tensor) -> Tensor:
    """The model's states of data: themselves, or the latents of images."""
    if not isinstance(model, LatentDiffusion):
        return data
    return torch.cat([model.states(part) for part in data.split(_AT_ONCE)])


@torch.no_grad()
def to_data(model: Model, states: Tensor) -> Tensor:
    """The data of the model's states: themselves, or the images of latents."""
    if not isinstance(model, LatentDiffusion):
        return states
    return torch.cat([model.images(part) for part in states.split(_AT_ONCE)])


def around(model: Model, wrap: Callable[[Model], Model]) -> Model:
    """The model with something around it that sees every call: of a latent model around the one inside, so that it stays one."""
    return replace(model, inner=wrap(model.inner)) if isinstance(model, LatentDiffusion) else wrap(model)


# --- an autoencoder by itself ---------------------------------------------------------------------------------------


@torch.no_grad()
def from_prior(autoencoder: Autoencoder, n: int, size: tuple[int, int], *, seed: int = 0, first: int = 0) -> Tensor:
    """n images of this size (H, W) by one call of the decoder, from z of N(0, I), the prior of a VAE: one giant step beside diffusion's.

    Image i is a function of (seed, first + i). The mean of the decoder's Gaussian, without its noise. Good only as far as the codes of
    data are N(0, I): for an autoencoder trained with kl_weight near 1. Raises `UserError` for one without "kl".
    """
    if autoencoder.regulariser != "kl":
        raise UserError(f"only an autoencoder with regulariser='kl' has a prior to draw from, not one with {autoencoder.regulariser!r}.")
    positive("n", n)
    weight = next(autoencoder.parameters())
    like = weight.new_empty(n, *_latent_shape(autoencoder, (autoencoder.channels, *size)))
    z = White(seed).on(like, index=range(first, first + n)).fresh(_KEY)
    return torch.cat([autoencoder.decode(part) for part in z.split(_AT_ONCE)])


def _latent_shape(autoencoder: Autoencoder, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return autoencoder.latent_shape(shape)
    except ValueError as wrong:
        raise UserError(f"{wrong}.") from None


# --- data sets of latents -------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """source: latents z (N, latent, h, w) in memory, of mean 0 and standard deviation 1 over all their values, with the images' labels, for
    `fit`; scale, shift: how they were made of codes, for `LatentDiffusion(inner, autoencoder, scale, shift)`.
    """

    source: InMemory
    scale: float
    shift: float


@torch.no_grad()
def encode_source(autoencoder: Autoencoder, source: Source, *, batch: int = _AT_ONCE, mirrored: bool = False) -> Encoded:
    """The codes of all images of a source (of "kl": the means), encoded once and scaled: what `fit` trains the inner model on.

    mirrored: with each image its mirror image is encoded too, (N + i) beside i. A mirrored latent is no latent of the mirrored image, so
    this stands for `Training(flip=True)`, which is for images. Raises `UserError` for images that do not fit, or codes all alike.
    """
    device = next(autoencoder.parameters()).device
    _latent_shape(autoencoder, source.shape)
    codes, labels = [], []
    for rows in torch.arange(len(source)).split(positive("batch", batch)):
        x, told = source.batch(rows)
        codes.append([autoencoder.encode(part.to(device)).float().cpu() for part in ((x, x.flip(-1)) if mirrored else (x,))])
        labels.append(told)
    z = torch.cat([torch.cat(part) for part in zip(*codes, strict=True)])
    scale, shift = _scaling(z)
    told = None if any(part is None for part in labels) else torch.cat(labels * (2 if mirrored else 1))
    return Encoded(InMemory((z - shift) * scale, told, f"latents of {source.name}", source.classes), scale, shift)


def latent_scale(autoencoder: Autoencoder, source: Source, *, batch: int = _AT_ONCE) -> Scaling:
    """The scale and shift with which the codes of a source have mean 0 and standard deviation 1 over all their values."""
    found = encode_source(autoencoder, source, batch=batch)
    return Scaling(found.scale, found.shift)


def _scaling(codes: Tensor) -> Scaling:
    std, mean = torch.std_mean(codes.double(), correction=0)
    if not 1e-6 < float(std) < math.inf:
        raise UserError(
            f"the codes of these images have standard deviation {float(std):.2g}: train the autoencoder first (or less regularised)."
        )
    return Scaling(1 / float(std), float(mean))
