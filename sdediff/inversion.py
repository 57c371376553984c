"""Encode and decode through the probability flow, and interpolate between latents.

`encode` runs the inverse of a solver upward, from data at t_min to noise at t_max; `decode` runs the solver down, on the same knots and
from the same memory. By default the solver is `AsynchronousLeapfrog`, and an image comes back to the bit; docs/inversion.md compares
them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from .adaptive import PID
from .additive import Additive
from .bits import DTYPES
from .checks import broken
from .coordinates import Angle
from .fingerprint import fingerprint
from .grid import AngleUniform, Grid, LogSNR
from .guidance import check_flow
from .invertible import Kept
from .latent import STARTS, Latent, Origin
from .latent_diffusion import LatentDiffusion, to_data, to_states
from .names import UserError, choose
from .prediction import InPlace, Model
from .recorded import Recorded
from .result import Solution
from .sampling import knots_for
from .schedule import Knot, Schedule
from .solve import solve
from .solver import Delegate, Solver
from .solvers import AsynchronousLeapfrog, Heun

_NARROW = 0.03  # the standard deviation of a mode that an upward tolerance reckons with: errors made near the data grow as it widens to 1
_ENOUGH = 60  # network calls from which on five of the leapfrog's steps are better taken as one of order 4


def encode(
    model: Model,
    x: Tensor,
    *,
    steps: int | None = None,
    calls: int | None = None,
    tolerance: float | None = None,
    solver: Solver | Delegate | None = None,
    grid: Grid | None = None,
    start: str = "clean",
    limits: tuple[float, float] | None = None,
    seed: int = 0,
    first: int = 0,
    compact: bool = False,
) -> Latent:
    """The latents of images x (B, ...): float16, bfloat16, float32, float64 in the model's own units, or uint8.

    steps, calls, or tolerance (root mean square, in units of the latents; each sample takes its own steps, and decoding the same). solver
    names the decoder, its inverse is run: default `AsynchronousLeapfrog()`, of order 4 from 60 calls on. grid: even on that solver's
    clock, else `LogSNR()`. start: "clean" takes the image as the state at t_min; "noised" adds the noise of t_min first (of `seed`, for
    samples first, first + 1, ...), which `decode` removes: only then are the latents of sharp images Gaussian. limits: the values of 0 and
    255 of uint8 images (default -1 and 1), and where float images should lie. compact: keep one tensor, and packed integers for what one
    tensor does not give back (one decode more); by default with `Heun(Angle())`, as one tensor is all that its decoder starts from.
    Of a `LatentDiffusion` images go through its autoencoder first: what comes back to the bit are its latents, not the images.
    Warns if values lie outside the limits. Raises `UserError` for NaN, a stochastic solver, other dtypes; `ModelError`.
    """
    check_flow(model, "encode")
    choose("start", start, STARTS)
    if limits is not None and not limits[0] < limits[1]:
        raise UserError(f"limits=(low, high) are the values of black and white, low below high, e.g. (-1, 1), not {limits!r}.")
    if solver is not None and not isinstance(solver, Solver | Delegate):
        raise UserError(f"solver must be a solver, such as DDIM() or AsynchronousLeapfrog(4), not {solver!r}.")
    _check_images(x, limits)
    origin, outer = Origin(x.dtype, (-1.0, 1.0) if limits is None else limits, start, seed, first), None
    if isinstance(model, LatentDiffusion):
        outer = Origin(x.dtype, origin.limits)
        x = _coded(model, x, outer)
        origin = Origin(x.dtype, start=start, seed=seed, first=first)
    solver = _decoder(calls, tolerance, compact) if solver is None else solver
    if solver.facts.inverse is None:
        raise UserError(
            f"{solver!r} has no inverse: it draws noise. Encode with AsynchronousLeapfrog(), DDIM(), ..., or encode_noise(...)."
        )
    up = solver.inverse if isinstance(solver, Solver) else solver
    schedule = model.schedule
    if tolerance is not None:
        if steps is not None or calls is not None or grid is not None:
            raise UserError("tolerance= chooses the steps by itself: leave out steps=, calls= and grid=.")
        way = upward(schedule, tolerance)
    else:
        places = grid or even_on(solver)
        way = knots_for(schedule, solver, places, steps=steps, calls=calls)[::-1]
    begin = schedule.knot(schedule.t_min) if isinstance(way, PID) else way[0]
    state = origin.state(x, begin)
    run = solve(up, _steady(model, solver, way, len(x)), state, way)
    if not run.reached:
        warnings.warn(f"encoding: {run.reason}", stacklevel=2)
    knots = run.recorded.reverse if run.recorded is not None else run.knots[::-1]
    if isinstance(solver, Additive) and solver.bits:
        origin = origin.completed(x, solver.held(state, begin), begin)
    memory = run.memory if isinstance(run.memory, Kept) else None
    latent = Latent(run.x, knots, solver, memory, origin, fingerprint(model, state), run.calls, outer)
    return _compacted(model, latent, x) if compact else latent


def _decoder(calls: int | None, tolerance: float | None, compact: bool) -> Solver:
    if compact and tolerance is None:
        return Heun(Angle())
    return AsynchronousLeapfrog(4 if tolerance is None and calls is not None and calls >= _ENOUGH else 2)


def upward(schedule: Schedule, tolerance: float) -> PID:
    """Steps for encoding with an error of the latents of about `tolerance`, root mean square (measured in docs/inversion.md)."""
    return PID(atol=tolerance, data_std=_NARROW, times=(schedule.t_min, schedule.t_max))


def even_on(solver: Solver | Delegate) -> Grid:
    """The grid that is even on the clock of a solver which has one, else even in lam."""
    return AngleUniform(solver.clock) if isinstance(solver, Additive) and solver.clock != "lam" else LogSNR()


def _check_images(x: Tensor, limits: tuple[float, float] | None) -> None:
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        raise UserError(f"images must be a tensor of {', '.join(str(d)[6:] for d in DTYPES)}, not {getattr(x, 'dtype', type(x).__name__)}.")
    if x.ndim < 2 or not len(x):
        raise UserError(f"images come as a batch (B, ...) of at least one, not in shape {tuple(x.shape)}.")
    if x.dtype == torch.uint8:
        return
    bad = broken(x)
    if bad:
        raise UserError(f"the images hold NaN or infinity ({bad}): clean them first.")
    low, high = limits or (-3.0, 3.0)
    if float(x.min()) < low - 1e-6 or float(x.max()) > high + 1e-6:
        said = f"outside the range ({low:g}, {high:g})" + ("" if limits else " that normalised images have")
        warnings.warn(
            f"the images hold values from {float(x.min()):g} to {float(x.max()):g}, {said}: scale them as in training.", stacklevel=3
        )


def decode(
    model: Model, latent: Latent, *, solver: Solver | Delegate | None = None, knots: Sequence[Knot] | None = None, check: bool = True
) -> Tensor:
    """The images of a latent, in their own dtype: to the bit, exactly or approximately, as its solver promises and its memory allows.

    solver, knots: another decoder, for a latent of a single tensor only. check: that the model is the one that encoded (one more call); to
    edit with another on purpose, decode `latent.single()` with check=False: what is kept beside the tensor belongs to the first.
    The images of a `LatentDiffusion` are what its autoencoder makes of latents that come back so.
    Raises `UserError` for another model, schedule or shape, or another solver or other knots than those that the memory belongs to.
    """
    if not isinstance(latent, Latent):
        raise UserError(f"decode takes what encode gives, a Latent, not {type(latent).__name__}: of a file, load_latent(path).")
    if check:
        latent.check(model)
    other_knots = knots is not None and (isinstance(latent.knots, Recorded) or tuple(knots) != latent.knots)
    kept = latent.memory is not None or latent.origin.rest is not None
    if kept and (other_knots or (solver is not None and solver != latent.solver)):
        raise UserError(
            f"this latent is exact for {latent.solver!r} on the knots it was encoded on: leave out solver= and knots=, or decode the one "
            "tensor only, latent.single()."
        )
    return shown(model, latent, latent.origin.image(state_of(model, latent, solver, knots).x, latent.end if knots is None else knots[-1]))


def shown(model: Model, latent: Latent, data: Tensor) -> Tensor:
    """The images of the model's data to which a latent decodes: themselves, or what an autoencoder makes of them."""
    if not isinstance(model, LatentDiffusion):
        return data
    return (latent.outer or Origin(data.dtype)).image(to_data(model, data), latent.end)


def data_of(model: Model, latent: Latent, x: Tensor) -> Tensor:
    """The model's data of images x, as they were encoded: themselves, or their codes."""
    return _coded(model, x, latent.outer) if latent.outer is not None else x


def _coded(model: Model, x: Tensor, outer: Origin) -> Tensor:
    return to_states(model, outer.state(x, model.schedule.knot(model.schedule.t_min)))


def state_of(model: Model, latent: Latent, solver: Solver | Delegate | None = None, knots: Sequence[Knot] | None = None) -> Solution:
    """The run that decodes a latent: its end is the state that `latent.origin` reads as images."""
    solver, way = latent.solver if solver is None else solver, latent.knots if knots is None else knots
    return solve(solver, _steady(model, solver, way, len(latent)), latent.x, way, memory=latent.memory)


def _steady(model: Model, solver: Solver | Delegate, way: Any, n: int) -> Model:
    """The model for a run that is to be undone to the bit: where samples leave one by one, asked about all of them all along."""
    own = isinstance(way, PID | Recorded)
    return InPlace(model, n) if own and isinstance(solver, Additive) and solver.bits else model


def _compacted(model: Model, latent: Latent, images: Tensor) -> Latent:
    """One tensor, and what decoding it lacks of the images."""
    one = latent.single()
    return replace(one, origin=one.origin.completed(images, state_of(model, one).x, one.end))


# --- between latents ------------------------------------------------------------------------------------------------


@overload
def interpolate(latents: tuple[Tensor, Tensor], n: int, kind: str = "slerp") -> Tensor: ...
@overload
def interpolate(latents: tuple[Latent, Latent], n: int, kind: str = "slerp") -> Latent: ...
def interpolate(latents: tuple[Any, Any], n: int, kind: str = "slerp") -> Any:
    """n states on the way from each sample of the first batch to the same of the second, ends included.

    latents: two batches of states (B, ...), which give (n, B, ...), or two `Latent`s of one decoder, which give a latent of n B single
    tensors in that order: `decode(model, interpolate((a, b), 9)).unflatten(0, (9, -1))`.
    kind: "slerp", along the great circle, sin((1-r) w)/sin w a + sin(r w)/sin w b (DDIM, appendix D.5), which keeps the norm of Gaussian
    latents; "linear", the straight line, whose midpoint is too short by sqrt(2). The angle w is each sample's own.
    """
    choose("kind", kind, ("slerp", "linear"))
    if not isinstance(latents, tuple | list) or len(latents) != 2:
        raise UserError(f"interpolate takes two batches in one argument, interpolate((a, b), n), not {type(latents).__name__}.")
    a, b = latents
    if isinstance(a, Latent) and isinstance(b, Latent):
        own = isinstance(a.knots, Recorded) and isinstance(b.knots, Recorded)  # steps of each sample's own, which nothing between has
        if a.solver != b.solver or not (own or a.knots == b.knots):
            raise UserError("these latents have different decoders: encode both batches with the same solver and steps.")
        between = _between(a.x, b.x, n, kind)
        return a.of(between.flatten(0, 1))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        raise UserError("interpolate takes two batches, both tensors or both Latents: interpolate((a, b), n).")
    return _between(a, b, n, kind)


def _between(a: Tensor, b: Tensor, n: int, kind: str) -> Tensor:
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
