"""Draw samples in one line: `sample(model, n, steps=...)`. Everything it does is a few calls of `solve` that a script could make."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .adaptive import PID
from .combine import combine, linear
from .control import Fixed
from .grid import AsinhLogSNR, Grid, LogSNR
from .guidance import noise_apart
from .latent_diffusion import to_data
from .names import UserError, positive
from .noise import Brownian, White
from .prediction import Model
from .result import Solution
from .schedule import Knot, Schedule
from .solve import solve
from .solver import Delegate, Solver
from .solvers import DDIM, AdaptiveAdams, EulerAncestral, ExponentialAdams

_AS_DDIM = (DDIM, EulerAncestral)  # all they ask of an answer is a x0 + b eps, which is all that CFG++ says


def latents(model: Model, n: int, *, seed: int = 0, shape: tuple[int, ...] | None = None, first: int = 0, dtype=torch.float32) -> Tensor:
    """n start states N(0, prior_std^2), (n, *shape): row i is a function of (seed, first + i) alone.

    `shape` (of one sample) defaults to the model's own; `UserError` if neither is known.
    """
    shape = tuple(model.shape or ()) if shape is None else tuple(shape)
    if not shape:
        raise UserError("the model does not say which shape its samples have: pass shape=(channels, height, width).")
    like = torch.empty(n, *shape, dtype=dtype)
    z = White(seed).on(like, index=range(first, first + n)).fresh(key=0)
    return combine(linear(z, float(model.schedule.prior_std)))


def knots_for(
    schedule: Schedule, solver: Solver | Delegate, grid: Grid, *, steps: int | None = None, calls: int | None = None
) -> tuple[Knot, ...]:
    """The grid's knots for `steps` steps, or for as many as fit into `calls` network calls (as `solver.calls` counts them).

    Raises `UserError` unless exactly one of the two is given, and if not even one step fits.
    """
    _one_of(steps, calls)
    if steps is not None:
        return grid.knots(schedule, positive("steps", steps))
    assert calls is not None
    if not isinstance(solver, Solver):
        raise UserError(f"{solver!r} counts its own calls: give steps= (adaptive methods use only the two ends), or tolerances.")
    for n in range(positive("calls", calls), 0, -1):
        knots = grid.knots(schedule, n)
        if solver.calls(knots) <= calls:
            return knots
    raise UserError(f"one step of {solver!r} takes {solver.calls(grid.knots(schedule, 1))} calls; {calls} are too few.")


def _one_of(steps: int | None, calls: int | None) -> int:
    if (steps is None) == (calls is None):
        raise UserError("give steps= (how many steps) or calls= (how many network calls): one of the two.")
    return positive("steps", steps) if calls is None else positive("calls", calls)


def recommend(schedule: Schedule, calls: int) -> tuple[Solver, Fixed]:
    """(solver, knots) for a model of which nothing is known, at this many network calls: what `sample` takes when no solver is named.

    One rule: Adams on flow in lam with corrector, on knots dense around lam = 0.75; the more calls, the higher the order. Few calls end
    with a step of order 1, many do not. Where t_max has no signal (lam = -inf), the first step goes from there to where it would have
    gone from lam = -5. The evidence is in docs/default.md, made by `benchmarks/default.py`. Raises `UserError` for less than one call.
    """
    order = 1 + sum(positive("calls", calls) >= least for least in (7, 18, 36))
    first = schedule.knot(schedule.t_max)
    start = None if first.lam > -math.inf else schedule.knot_at("lam", -5.0).time
    knots = (first, *AsinhLogSNR(0.75, 1.75).knots(schedule, calls, start=start)[1:])
    return ExponentialAdams(order, "flow", "lam", corrector=True), Fixed(knots, lower_final=order <= 2)


def sample(
    model: Model,
    n: int,
    *,
    steps: int | None = None,
    calls: int | None = None,
    tolerance: float | None = None,
    solver: Solver | Delegate | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int | None = None,
    start: tuple[Tensor, Knot] | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """n samples (n, *shape) of the model, from noise at t_max to t_min.

    steps or calls: how many; solver: by default what `recommend` says for so many calls (of a CFG++ model `DDIM()`, and others than
    `DDIM` and `EulerAncestral` are refused: they take other steps than it is made of); grid: the recommended one, or `LogSNR()` where a
    solver is named. tolerance instead: the error at the end that you accept, root mean square in units of the data; each sample then takes
    the steps that it needs, by `AdaptiveAdams()` or the solver named, and a warning says which did not get there. seed: sample i depends on
    it and on i alone, whatever `batch` (samples at a time); first: draw the samples first, first + 1, ... of this seed; start = (x, t):
    begin at these states and this knot instead. Of a `LatentDiffusion` the samples are images; start, shape and tolerance are its latents'.
    Raises `UserError`, `ModelError`.
    """
    positive("n", n)
    solver = as_ddim(solver, tolerance) if noise_apart(model) else solver
    batch = n if batch is None else positive("batch", batch)
    if start is not None and len(start[0]) != n:
        raise UserError(f"start has {len(start[0])} states, but n = {n} samples were asked for.")
    knots: PID | Fixed
    if tolerance is not None:
        if steps is not None or calls is not None or grid is not None:
            raise UserError("tolerance= chooses the steps by itself: leave out steps=, calls= and grid=.")
        solver, knots = AdaptiveAdams() if solver is None else solver, PID(atol=tolerance)
    elif solver is None:
        solver, knots = recommend(model.schedule, _one_of(steps, calls))
        knots = knots if grid is None else Fixed(grid.knots(model.schedule, len(knots) - 1), knots.lower_final)
    else:
        knots = Fixed(knots_for(model.schedule, solver, LogSNR() if grid is None else grid, steps=steps, calls=calls))
    if start is not None and isinstance(knots, PID):
        knots = replace(knots, times=(start[1].time, model.schedule.t_min))
    elif start is not None:
        assert isinstance(knots, Fixed)
        below = [k for k in knots if k.time < start[1].time]
        if not below:
            raise UserError(f"start is at time {start[1].time:g}, below the whole grid, which ends at {knots[-1].time:g}.")
        knots = Fixed((start[1], *below), knots.lower_final)
    done = []
    for at in range(first, first + n, batch):
        size = min(batch, first + n - at)
        x = latents(model, size, seed=seed, shape=shape, first=at, dtype=dtype) if start is None else start[0][at - first :][:size]
        found = run(solver, model.rows(torch.arange(at, at + size)), x.to(device), knots, seed=seed, first=at)
        if not found.reached:
            warnings.warn(f"from sample {at} on: {found.reason}", stacklevel=2)
        done.append(to_data(model, found.x))
    return torch.cat(done)


def as_ddim(solver: Solver | Delegate | None, tolerance: float | None) -> Solver:
    """The solver of a CFG++ model; `UserError` for one that takes other steps than it is made of."""
    if tolerance is not None:
        raise UserError("CFG++ has no limit of small steps, so no tolerance: give steps=, or take ClassifierFree(scale).")
    if solver is None:
        return DDIM()
    if not isinstance(solver, _AS_DDIM):
        raise UserError(
            f"CFG++ is a way of taking DDIM steps, s.alpha x0 + s.sigma eps, and {solver!r} is not known to take them: take DDIM(), "
            "DDIM(1.0) or EulerAncestral(), or ClassifierFree(scale), which goes with any solver."
        )
    return solver


def run(solver: Solver | Delegate, model: Model, x: Tensor, knots: PID | Sequence[Knot], *, seed: int = 0, first: int = 0) -> Solution:
    """`solve` with noise of `seed` for the samples first, first + 1, ... (only if the solver draws any): white, or, for steps that may be
    rejected, one Brownian path a sample.
    """
    noise = None
    if solver.facts.stochastic:
        ends = [k.clock(solver.facts.clock) for k in knots.span(model.schedule)] if isinstance(knots, PID) else None
        source = White(seed) if ends is None else Brownian(seed, (min(ends), max(ends)))
        noise = source.on(x, index=range(first, first + len(x)))
    return solve(solver, model, x, knots, noise=noise)
