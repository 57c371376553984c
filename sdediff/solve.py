"""The one loop. `march` yields every frame, `solve` runs to the end.

A step is tried, judged, and committed or not; the controller says where to go next. Nothing else happens here: no solver, schedule or
network has a special case in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adaptive import PID
from .batch import rows, select
from .checks import broken, check_model, check_shape
from .combine import Linear
from .control import Controller, Fixed
from .names import UserError
from .noise import Noise, NoiseSource
from .prediction import Counted, Model, ModelError
from .recorded import Log, Path
from .result import Frame, Solution
from .schedule import Knot
from .solver import Delegate, Solver


def march(
    solver: Solver,
    model: Model,
    x: Tensor,
    controller: Controller | Sequence[Knot],
    *,
    memory: Any = None,
    noise: Any = None,
) -> Iterator[Frame]:
    """Yield the start and then a `Frame` after each step. The gradient mode is the caller's.

    x (B, ...): the state at the first knot. controller: knots, or a `Controller`. noise: a source (`White(0)`), or one already bound.
    memory: of a previous run, to go on from it.
    """
    controller = controller if isinstance(controller, Controller) else Fixed(controller)
    noise = bound(noise, x)
    _keep_freed_blocks(x)
    controller.check(solver, x, noise)
    t, s, plan = controller.start(solver, model, x)
    memory = solver.init(model, x, t) if memory is None else memory
    index = None
    yield Frame(t, x, memory, plan=plan)
    while s is not None:
        try:
            step = controller.use(solver, plan).step(model, x, t, s, memory, noise)
        except ZeroDivisionError:
            if np.all([t.alpha, t.sigma, s.alpha, s.sigma]):
                raise
            raise UserError(f"{solver!r}: {_undefined(t, s)}") from None
        accept, following, plan, keep = controller.judge(t, s, x, step, plan)
        if accept is True:
            t, x, memory = s, step.x, step.memory
        else:
            t, x, memory = select(accept, (s, step.x, step.memory), (t, x, memory))
        if keep is not None and index is None:
            index = np.arange(len(x))
        yield Frame(t, x, memory, accept, step.error, index, keep, plan)
        s = following
        if keep is not None and s is not None:  # finished samples leave
            going = np.flatnonzero(keep)
            t, s, x, memory, plan, index = rows(going, (t, s, x, memory, plan, index))
            going = torch.as_tensor(going, device=x.device)
            model, noise = model.rows(going), None if noise is None else noise.rows(going)


def solve(
    solver: Solver | Delegate,
    model: Model,
    x: Tensor,
    controller: Controller | Sequence[Knot],
    *,
    memory: Any = None,
    noise: Noise | NoiseSource | None = None,
    grad: bool = False,
    path: bool = False,
    error: bool = False,
) -> Solution:
    """Run `solver` on `model` from the state x (B, ...) at the first knot to the last one; see `march` for the arguments.

    controller: knots, or `PID(atol=...)` for an error at the end instead, each sample with its own steps. grad: keep the graph; path: keep
    the state at every knot, and with it the solution between them, `Solution.at(t)`; error: on knots, sum each sample's error estimates
    into `Solution.error`, for methods that have one (a corrector: what it changed; docs/solvers.md says how far to trust the sum). A
    delegate (`TorchDiffEq(...)`) goes wherever a solver goes.
    Raises `ModelError`, naming time and step, if the model answers with another shape or dtype or the state becomes NaN or infinite;
    `UserError` for a state that does not fit the model, or a stochastic solver without noise.
    """
    _check_state(model, x)
    counted = Counted(model, each=np.zeros(len(x), np.int64))
    if error and not (isinstance(solver, Solver) and solver.estimates):
        raise UserError(f"{solver!r} has no error estimate: take a method with a corrector, such as UniPC(order=3).")
    with torch.set_grad_enabled(grad):
        if isinstance(solver, Delegate):
            return _delegated(solver, counted, x, controller, noise)
        return _solve(solver, counted, x, controller, memory, noise, path, error)


def _delegated(solver: Delegate, counted: Counted, x: Tensor, controller, noise) -> Solution:
    solver, knots = _asked(solver, counted, controller)
    solution = solver.run(counted, x, knots, bound(noise, x))
    solution = replace(solution, calls=counted.calls, each=counted.each if solution.each is None else solution.each)
    if not bool(torch.isfinite(solution.x).all()):
        raise ModelError(f"{solver!r} ended in NaN or infinity: check the model's answers, or loosen the tolerance.")
    return solution


def _asked(solver: Delegate, model: Model, controller) -> tuple[Delegate, Sequence[Knot]]:
    """The delegate and its knots; tolerances and ends may come from a `PID`."""
    if isinstance(controller, PID):
        if not solver.adaptive:
            raise UserError(f"{solver!r} does not choose its steps: give it knots, not {controller!r}.")
        tolerances = {"rtol": max(controller.rtol, 1e-13), "atol": controller.atol}  # they have no rtol of 0
        return replace(solver, **tolerances), controller.span(model.schedule)  # type: ignore[type-var]
    if isinstance(controller, Controller) and not isinstance(controller, Fixed):
        raise UserError(f"{solver!r} takes knots, or PID(...) for its tolerances and ends, not {controller!r}.")
    return solver, Fixed(controller).knots


def _solve(solver, counted, x, controller, memory, noise, path, error) -> Solution:
    knots, rejected, frame, log = [], 0, None, None
    passed = Path(solver, x) if path else None
    total = x.new_zeros(len(x)) if error else None
    try:
        for frame in march(solver, counted, x, controller, memory=memory, noise=noise):
            if log is None and isinstance(frame.t.time, np.ndarray):
                log = Log(solver, controller, x, path)
            if log is not None:
                log.write(frame)
                continue
            if frame.accepted is not True and not frame.accepted:
                rejected += 1
                continue
            knots.append(frame.t)
            if passed is not None:
                passed.write(np.arange(len(x)), frame.x, frame.t, frame.memory)
            if total is not None and frame.error is not None:
                total = total + torch.mean(_tensor(frame.error).square().flatten(1), 1).sqrt()
    except ModelError as wrong:
        raise ModelError(f"step {log.tried + 1 if log else max(len(knots), 1)}: {wrong}") from None
    if log is not None:
        return log.solution(counted)
    assert frame is not None
    if not bool(torch.isfinite(frame.x.detach().sum())) and not bool(torch.isfinite(frame.x).all()):
        _find_nan(solver, counted.model, x, controller, memory, noise)
    solution = Solution(frame.x, tuple(knots), counted.calls, frame.memory, rejected, error=total, each=counted.each)
    return solution if passed is None else replace(solution, path=passed.kept, dense=passed.between(knots))


def _tensor(error: Tensor | Linear) -> Tensor:
    return error.tensor() if isinstance(error, Linear) else error


class _Watched:
    """A model that stops at the first answer that is not finite. Used only after a run has failed."""

    def __init__(self, model: Model):
        self.model, self.schedule, self.shape = model, model.schedule, model.shape

    def __call__(self, x: Tensor, t: Knot):
        p = self.model(x, t)
        if not bool(torch.isfinite(p.value).all()):
            given = "finite" if bool(torch.isfinite(x).all()) else "already not finite"
            raise ModelError(
                f"the model returned NaN or infinity at time {t.time:g} ({broken(p.value)}; the state it "
                f"was given was {given}): check the network there, or start or end the grid short of it."
            )
        return p

    def rows(self, index: Tensor) -> Model:
        return _Watched(self.model.rows(index))


def _undefined(t: Knot, s: Knot) -> str:
    ends = f"alpha = {t.alpha:g} and {s.alpha:g}, sigma = {t.sigma:g} and {s.sigma:g}"
    return (
        f"it is not defined from time {t.time:g} to {s.time:g} ({ends}): start or end the grid short of it, or take a method "
        f"in x0 or v, such as DPMSolverPPMultistep() or ExponentialAdams(2, 'flow')."
    )


def _find_nan(solver, model, x, controller, memory, noise) -> None:
    """March again with a watch on, and raise with the step and time at which the run broke."""
    done, t = 0, None
    try:
        for frame in march(solver, _Watched(model), x, controller, memory=memory, noise=noise):
            if not bool(torch.isfinite(frame.x).all()):
                why = "take smaller steps." if t is None or (t.alpha and frame.t.sigma) else _undefined(t, frame.t)
                raise ModelError(f"the state became NaN or infinite at time {frame.t.time:g} under {solver!r}: {why}")
            done, t = done + 1, frame.t
    except ModelError as wrong:
        raise ModelError(f"step {max(done, 1)}: {wrong}") from None
    raise ModelError(f"{solver!r} ended in NaN or infinity once, but not when run again: the network is not deterministic (dropout on?).")


def _keep_freed_blocks(x: Tensor) -> None:
    """Make glibc keep freed blocks of the state's size: it returns none smaller than the largest it has seen freed.

    Without it every step's new state is paged in again, which costs as much as the arithmetic of a DDIM step.
    """
    if x.device.type == "cpu":
        x.new_empty((8, *x.shape))


def bound(noise: Any, x: Tensor) -> Any:
    """A noise source bound to the state; a noise already bound, or None, as it is."""
    return noise.on(x) if hasattr(type(noise), "on") else noise


def _check_state(model: Model, x: Tensor) -> None:
    check_model(model)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise UserError(f"the state must be a floating point tensor (batch, ...), not {getattr(x, 'dtype', type(x).__name__)}.")
    check_shape(model, x, "the state has shape", ": check the latents")
