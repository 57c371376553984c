"""Encode and decode through the probability flow, and interpolate between latents.

`encode` runs the flow upward, from data at t_min to noise at t_max, `decode` back. In this plain form both are approximate: DDIM inversion
(Euler in Sigma coordinates) returns to within O(h), Heun O(h^2), adaptive dopri5 to its tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import Grid, LogSNR
from .names import UserError, choose
from .prediction import Model
from .sampling import knots_for
from .schedule import Knot
from .solve import solve
from .solver import Delegate, Solver
from .solvers import DDIM


@dataclass(frozen=True)
class Latent:
    """An encoded batch: the state x (B, ...) at the noisy end, the knots used (noisiest first), and the solver that decodes it."""

    x: Tensor
    knots: tuple[Knot, ...]
    solver: Solver | Delegate


def encode(
    model: Model,
    x: Tensor,
    *,
    steps: int | None = None,
    calls: int | None = None,
    solver: Solver | Delegate | None = None,
    grid: Grid | None = None,
) -> Latent:
    """The latents of data x (B, ...), taken as states at t_min. solver (default `DDIM()`) names the decoder; its inverse is run upward.

    Raises `UserError` for a stochastic solver (it has no inverse).
    """
    solver, grid = DDIM() if solver is None else solver, LogSNR() if grid is None else grid
    if solver.facts.inverse is None:
        raise UserError(f"{solver!r} has no inverse: it draws noise. Encode with DDIM(), Heun(), TorchDiffEq(), ...")
    knots = knots_for(model.schedule, solver, grid, steps=steps, calls=calls)
    up = solver.inverse if isinstance(solver, Solver) else solver
    return Latent(solve(up, model, x, knots[::-1]).x, knots, solver)


def decode(model: Model, latent: Latent) -> Tensor:
    """The data at t_min of encoded latents, over the same knots with the solver they name."""
    return solve(latent.solver, model, latent.x, latent.knots).x


def interpolate(a: Tensor, b: Tensor, n: int, kind: str = "slerp") -> Tensor:
    """(n, B, ...): n states from a to b, ends included, each sample on its own.

    "slerp": along the great circle, sin((1-r) w)/sin w a + sin(r w)/sin w b (DDIM, appendix D.5), which keeps the norm of Gaussian
    latents; "linear": the straight line, whose midpoint is too short by sqrt(2).
    """
    choose("kind", kind, ("slerp", "linear"))
    if a.shape != b.shape or n < 2:
        raise UserError(f"interpolate needs two batches of one shape and n >= 2, not {tuple(a.shape)}, {tuple(b.shape)} and n = {n}.")
    r = torch.linspace(0, 1, n, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.ndim)
    if kind == "linear":
        return (1 - r) * a + r * b
    one, two = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(one, two).clamp(-1, 1)
    angle = torch.acos(cosine).reshape(-1, *[1] * (a.ndim - 1))
    near = torch.sin(angle).abs() < 1e-6
    safe = torch.where(near, 1.0, torch.sin(angle))
    first = torch.where(near, 1 - r, torch.sin((1 - r) * angle) / safe)
    second = torch.where(near, r, torch.sin(r * angle) / safe)
    return first * a + second * b
