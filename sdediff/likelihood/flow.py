"""The log-likelihood of data under the probability flow, with a budget of its errors.

The flow maps the marginal at t_min onto that at t_max. With y = x/r, r = sqrt(alpha^2 + sigma^2), theta = atan(sigma/alpha), x_T the end
of the flow from x at t_min and D dimensions (instantaneous change of variables; Chen et al. 2018; Song et al. 2021, section 4.3 and D.2)

    log p_tmin(x) = log prior(x_T) + INT div_y v dtheta + D log(r_T/r_tmin).

`trace` finds the divergence, `carried` integrates it, `ends` says what x and the prior are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..adaptive import PID
from ..checks import check_data
from ..control import Fixed
from ..grid import AsinhLogSNR, Grid
from ..guidance import check_flow
from ..names import UserError, choose, positive
from ..noise import White, WhiteNoise
from ..prediction import Model
from ..result import Solution
from ..sampling import recommend
from ..schedule import Knot
from ..solve import solve
from ..solver import Delegate, Solver
from ..solvers import AdaptiveAdams
from .budget import Budget, LogLikelihood
from .carried import FRAME, Carried
from .dequantise import KINDS, Levels
from .ends import SKETCH, STARTS, Begun, Density, Prior, first_knot
from .trace import TRACES, ExactTrace, Hutchinson, Trace

_SMALL = 64  # up to so many dimensions the exact trace is the default
_SUMS = 5.0  # errors of a sum add up on the way, where those of a state decay: by so much more than `PID` counts on (docs/likelihood.md)
_COARSER = 10.0  # the tolerance of the run that others are compared with


def log_likelihood(
    model: Model,
    x: Tensor,
    *,
    trace: str | Trace | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    solver: Solver | Delegate | None = None,
    grid: Grid | None = None,
    start: str = "clean",
    levels: Levels | None = None,
    dequantise: str = "uniform",
    prior: Density | None = None,
    t_min: float | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int | None = None,
) -> LogLikelihood:
    """The log-likelihood of each of the data x (B, ...), which the network sees in x's dtype; all else is float64.

    trace: "exact", "hutchinson", "hutch++", or `ExactTrace()`, `Hutchinson(probes, kind)`, `HutchPP(probes)`; by default exact up to 64
    dimensions, else Hutchinson(8). tolerance: of the log-density per dimension, in nats, and of the state, RMS (default 1e-5), by
    `AdaptiveAdams()` or the solver named, each sample with its own steps; steps instead: that many, with what `recommend` says or the
    solver named, on `grid`. start: "clean", the density of data blurred by sigma/alpha at t_min, or "noised", a bound nearer to
    that of the data. levels: the data are images of these grey levels: dequantised, "uniform" or "truncated_normal" (the noise of t_min,
    clean by itself). prior: the marginal at t_max (default N(0, prior_std^2)): of an oracle, or of a `Gaussian` with the data's moments.
    t_min: where the flow begins (default the schedule's; for the truncated normal where sigma/alpha is a sixth of a bin). seed: sample i
    depends on it and on first + i alone, whatever `batch` (samples at a time).
    A sample that does not get to t_max (`reached` false, and a warning) has the value nan. Raises `UserError`, `ModelError`.
    """
    _check(model, x, start, dequantise, prior)
    inside = levels if dequantise == "truncated_normal" else None
    if inside is not None and start == "noised":
        raise UserError("truncated normal noise is the noise of t_min: take start='clean' with it.")
    how = _trace(trace, x[0].numel())
    low = first_knot(model, t_min, inside)
    runner = _runner(model, solver, low, tolerance, steps, grid)
    size, parts = len(x) if batch is None else positive("batch", batch), []
    with torch.inference_mode(False), torch.no_grad():
        for i in range(0, len(x), size):
            part = x.detach()[i : i + size].clone()
            index = range(i, i + len(part))
            noise = White(seed).on(part.double(), index=range(first + i, first + i + len(part)))
            begun = Begun.of(part, low, start, levels, dequantise, noise)
            done = _one(model.rows(torch.tensor(index)), begun, how, runner, prior, part.dtype, noise)
            if not done.reached:
                warnings.warn(f"from sample {first + i} on: {done.reason}", stacklevel=2)
            parts.append(done)
    return LogLikelihood.joined(parts)


def _one(
    model: Model, begun: Begun, how: Trace, runner: _Runner, given: Density | None, dtype: torch.dtype, noise: WhiteNoise
) -> LogLikelihood:
    """Of one batch."""
    t, top = begun.t, model.schedule.knot(model.schedule.t_max)
    bare = Carried(model, how, begun.x.new_empty(0), tuple(begun.x.shape[1:]), dtype)
    carried = replace(bare, probes=how.draw(noise, bare.sketch(begun.data, noise.fresh(SKETCH), t)))
    prior = Prior(model, top, given)
    state, d = carried.start(begun.x), carried.dimension

    def found(run: Solution) -> tuple[Tensor, Tensor]:
        """x_T, and log p_t(x) of each probe (B, columns)."""
        latent, grown = carried.end(run.x, top)
        scale = d * math.log(FRAME.scale(top) / FRAME.scale(t))
        return latent, grown + prior.log_density(latent)[:, None] + scale

    eps, spread = begun.read(carried, state)
    run = solve(runner.solver, carried, state, runner.controller)
    latent, each = found(run)
    calls = 1 + run.calls
    if runner.coarser is None:
        assert run.error is not None
        ode = _SUMS * d * run.error.double() / FRAME.scale(top)
    else:
        coarse = solve(runner.solver, carried, state, runner.coarser)
        ode = (each - found(coarse)[1]).mean(1).abs()
        calls += coarse.calls
    each = each + begun.extra(eps)[:, None]
    arrived = torch.tensor(np.broadcast_to(run.knots[-1].time == np.float64(top.time), (len(each),)), device=each.device)
    value, error = torch.where(arrived, each.mean(1), math.nan), _standard_error(each, how)
    budget = Budget(error, ode, *begun.gaps(eps, spread), prior.mismatch(begun.data, latent))
    levels = None if begun.box is None else begun.box.levels
    return LogLikelihood(value, error, budget, latent, each, d, calls, levels, run.reached, run.reason)


def _standard_error(each: Tensor, how: Trace) -> Tensor:
    if isinstance(how, ExactTrace):
        return torch.zeros_like(each[:, 0])
    return each.std(1) / math.sqrt(each.shape[1]) if each.shape[1] > 1 else torch.full_like(each[:, 0], math.nan)


# --- who solves ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runner:
    """A solver and where it steps; `coarser`: the run it is compared with if it brings no estimate that was calibrated for this."""

    solver: Solver | Delegate
    controller: PID | Fixed
    coarser: PID | Fixed | None


def _runner(
    model: Model, solver: Solver | Delegate | None, low: Knot, tolerance: float | None, steps: int | None, grid: Grid | None
) -> _Runner:
    schedule = model.schedule
    if solver is not None and (solver.facts.stochastic or (isinstance(solver, Solver) and solver.facts.ode is None)):
        raise UserError(f"{solver!r} does not solve the probability flow, whose likelihood this is: take AdaptiveAdams(), Heun(), SciPy().")
    if steps is None:
        if grid is not None:
            raise UserError("a grid needs steps=; with a tolerance each sample chooses its own.")
        tolerance = 1e-5 if tolerance is None else tolerance
        if not (isinstance(tolerance, float | int) and 0 < tolerance < math.inf):
            raise UserError(f"the tolerance must be a positive number, not {tolerance!r}.")
        last = schedule.knot(schedule.t_max)
        # errors are judged in the units of the last state, which is its scale times one of unit variance
        pid = PID(atol=tolerance / _SUMS * FRAME.scale(last), times=(low.time, last.time))
        solver = AdaptiveAdams() if solver is None else solver
        return _Runner(solver, pid, None if isinstance(solver, AdaptiveAdams) else replace(pid, atol=_COARSER * pid.atol))
    if tolerance is not None:
        raise UserError("give tolerance= or steps=, not both.")
    if positive("steps", steps) < 2:
        raise UserError("two steps are the least, since the error is estimated against half of them.")
    if isinstance(solver, Delegate) and solver.adaptive:
        raise UserError(f"{solver!r} chooses its own steps: give tolerance= instead of steps=.")
    knots = _upward(model, steps, grid, low)
    return _Runner(recommend(schedule, steps)[0] if solver is None else solver, Fixed(knots), Fixed((*knots[:-1:2], knots[-1])))


def _upward(model: Model, steps: int, grid: Grid | None, low: Knot) -> Sequence[Knot]:
    """The knots of the grid, or those of `recommend`, from t_min up to t_max."""
    schedule = model.schedule
    if grid is not None:
        return grid.knots(schedule, steps, end=low.time)[::-1]
    top = schedule.knot(schedule.t_max)
    begin = None if top.lam > -math.inf else schedule.knot_at("lam", -5.0).time
    return (*AsinhLogSNR(0.75, 1.75).knots(schedule, steps, start=begin, end=low.time)[:0:-1], top)


# --- what was asked -----------------------------------------------------------------------------------------------


def _check(model: Model, x: Tensor, start: str, dequantise: str, prior: Density | None) -> None:
    choose("start", start, STARTS)
    choose("dequantise", dequantise, KINDS)
    check_data(model, x)
    check_flow(model, "log_likelihood")
    if prior is not None and not isinstance(prior, Density):
        raise UserError(f"prior must know its log_density(x, t): Gaussian(mean, cov, schedule=...), or the oracle, not {prior!r}.")


def _trace(trace: str | Trace | None, d: int) -> Trace:
    if trace is None:
        trace = ExactTrace() if d <= _SMALL else Hutchinson()
    if isinstance(trace, str):
        choose("trace", trace, TRACES)
        trace = TRACES[trace]
    if not isinstance(trace, Trace):
        raise UserError(
            f"trace must be 'exact', 'hutchinson', 'hutch++', ExactTrace(), Hutchinson(probes) or HutchPP(probes), not {trace!r}."
        )
    trace.check(d)
    return trace
