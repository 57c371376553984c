"""Look at a round trip: what comes back, how good the latents are, and whether the model answers the same bits twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .adaptive import PID
from .bits import missing
from .inversion import data_of, decode, encode, shown, state_of
from .latent import Latent, Origin
from .latent_diffusion import LatentDiffusion
from .metrics import Gaussianity, gaussianity
from .prediction import Model
from .solve import solve
from .solver import Delegate, Solver
from .solvers import AdaptiveAdams


@dataclass(frozen=True)
class Coded:
    """Of a latent diffusion model: whose part of the round trip's error is whose.

    autoencoder: root mean square error of images that only go through it, in units of the model's images; error, worst, differing: of the
    autoencoder's codes that come back from the diffusion (scaled to unit standard deviation), as in `RoundTrip`.
    """

    autoencoder: float
    error: float
    worst: float
    differing: int

    def __str__(self) -> str:
        return (
            f"of it          {self.autoencoder:.2g} is the autoencoder's own; its codes come back off by {self.error:.2g} "
            f"(largest {self.worst:.2g}), {self.differing} values differ in their bits"
        )


@dataclass(frozen=True)
class RoundTrip:
    """What a round trip of images costs and gives. Errors are root mean squares over all values, in units of the model's images.

    error, worst: of the images that come back, root mean square and largest; differing: how many values differ in any bit; single: the
    error if only one tensor is stored; latent: the latents against those of the converged flow, root mean square and median
    over the samples (None: not asked for); gaussian: of the latents; calls, back: network calls there and back; coded: of a latent
    diffusion model, which part of the error is its autoencoder's.
    """

    solver: Solver | Delegate
    error: float
    worst: float
    differing: int
    single: float
    latent: tuple[float, float] | None
    gaussian: Gaussianity
    calls: int
    back: int
    coded: Coded | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.solver!r}: {self.calls} calls there, {self.back} back",
            f"round trip     {self.error:.2g} (largest {self.worst:.2g}), {self.differing} values differ in their bits",
            f"one tensor     {self.single:.2g}",
        ]
        if self.coded is not None:
            lines.insert(2, str(self.coded))
        if self.latent is not None:
            lines.append(f"latent error   {self.latent[0]:.2g} (median {self.latent[1]:.2g}) against the converged flow")
        return "\n".join([*lines, f"latents        {self.gaussian}"])


def round_trip(model: Model, x: Tensor, *, converged: Tensor | bool = True, **options) -> RoundTrip:
    """Encode images x and decode them again; options as of `encode`.

    converged: the latents of the converged flow from the same states, or True: solved here by `AdaptiveAdams` at a tolerance of 1e-5, or
    False. Raises as `encode`.
    """
    latent = encode(model, x, **options)
    run = state_of(model, latent)
    data, data_back = data_of(model, latent, x), latent.origin.image(run.x, latent.end)
    image = shown(model, latent, data_back)
    alone = decode(model, latent.single(), check=False)
    if converged is True:
        converged = flow(model, latent.origin.state(data, latent.end))
    off = None if converged is False else (latent.x.double() - converged.double()).square().flatten(1).mean(1).sqrt()
    return RoundTrip(
        latent.solver,
        float(_difference(image, x, latent.images).square().mean().sqrt()),
        float(_difference(image, x, latent.images).abs().max()),
        int(missing(image, x).count_nonzero()),
        float(_difference(alone, x, latent.images).square().mean().sqrt()),
        None if off is None else (float(off.square().mean().sqrt()), float(off.median())),
        gaussianity(latent.x / model.schedule.prior_std),
        latent.calls,
        run.calls,
        _coded(model, x, latent, data, data_back),
    )


def _coded(model: Model, x: Tensor, latent: Latent, data: Tensor, back: Tensor) -> Coded | None:
    if not isinstance(model, LatentDiffusion):
        return None
    off = _difference(back, data, latent.origin)
    alone = _difference(shown(model, latent, data), x, latent.images)
    lost = int(missing(back, data).count_nonzero())
    return Coded(float(alone.square().mean().sqrt()), float(off.square().mean().sqrt()), float(off.abs().max()), lost)


def flow(model: Model, state: Tensor) -> Tensor:
    """The latents of states at t_min by the converged flow: `AdaptiveAdams`, tolerance 1e-5."""
    ends = (model.schedule.t_min, model.schedule.t_max)
    return solve(AdaptiveAdams(), model, state, PID(atol=1e-5, times=ends)).x


def _difference(a: Tensor, b: Tensor, origin: Origin) -> Tensor:
    """In units of the model's images."""
    unit = (origin.limits[1] - origin.limits[0]) / 255 if a.dtype == torch.uint8 else 1.0
    return (a.double() - b.double()) * unit


@dataclass(frozen=True)
class Determinism:
    """Whether a model answers the same bits to the same question, and whether a sample's answer depends on its company.

    repeats: the same batch twice gives the same bits, without which nothing is exact; alone: each sample gives the same bits without the
    others (else a latent must be decoded in the batch in which it was encoded); off: how far apart the answers are without them, relative
    to their size: 1e-6 is rounding, more is a network that mixes its batch (batch norm in training mode).
    """

    repeats: bool
    alone: bool
    off: float


@torch.no_grad()
def determinism(model: Model, x: Tensor) -> Determinism:
    """Ask a model about states x (B, ...) twice, and about each half of them, at the middle of its times."""
    t = model.schedule.knot(0.5 * (model.schedule.t_min + model.schedule.t_max))
    one, two = (model(x, t).value for _ in (0, 1))
    parts = torch.arange(len(x)).chunk(2)
    apart = torch.cat([model.rows(i)(x[i.to(x.device)], t).value for i in parts])
    off = (apart - one).double().square().mean().sqrt() / one.double().square().mean().sqrt()
    return Determinism(torch.equal(one, two), torch.equal(one, apart), float(off))
