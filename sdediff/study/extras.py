"""What else the probability flow gives: round trips of real images, and interpolation between latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..coordinates import Angle
from ..external import TorchDiffEq
from ..grid import LogSNR
from ..inversion import decode, encode, interpolate
from ..solvers import DDIM, Heun
from .problem import Judge, Problem
from .settings import Settings
from .sweep import converge, starts


def round_trips(problem: Problem, settings: Settings) -> Iterator[dict[str, Any]]:
    """Real images encoded and decoded again: the RMS error in [-1, 1] units for each method and number of steps."""
    images = problem.real[: min(settings.samples, 500)]
    methods = [(s, n) for s in (DDIM(), Heun(Angle())) for n in settings.round_trip]
    methods += [(TorchDiffEq("dopri5", tol, tol, Angle()), 1) for tol in (1e-3, 1e-5)]
    for solver, steps in methods:
        latent = encode(problem.model, images, steps=steps, solver=solver, grid=LogSNR())
        back = decode(problem.model, latent)
        error = float((back - images).square().mean().sqrt()) * problem.scale
        fixed = not isinstance(solver, TorchDiffEq)
        yield {"solver": repr(solver), "steps": steps if fixed else None, "error": error, "latent_std": float(latent.x.std())}


def paths(problem: Problem, settings: Settings, pairs: int = 6, points: int = 9) -> Tensor:
    """(points, pairs, ...): images along the great circle between the latents of the first `pairs` pairs of samples."""
    x = starts(problem, settings, seed=0)[: 2 * pairs]
    along = interpolate((x[:pairs], x[pairs : 2 * pairs]), points)
    return converge(problem, along.flatten(0, 1), settings.reference_steps).unflatten(0, along.shape[:2])


@torch.no_grad()
def midpoints(problem: Problem, settings: Settings, judge: Judge) -> Iterator[dict[str, Any]]:
    """Slerp against linear midpoints of random pairs of latents: the latents' norm, and the Frechet distance of what they decode to."""
    x = starts(problem, settings, seed=0)
    other = x.roll(1, dims=0)
    for kind in ("none", "slerp", "linear"):
        z = x if kind == "none" else interpolate((x, other), 3, kind)[1]
        images = converge(problem, z, settings.reference_steps)
        yield {"midpoint": kind, "latent_norm": float(z.flatten(1).norm(dim=1).mean()), "frechet": judge.distances(images)["frechet"]}
