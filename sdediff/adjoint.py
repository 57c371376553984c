"""Gradients through a run on fixed knots, in memory that does not grow with its steps.

"reversible": only the end (x_N, Kept) stays. Backward walks home by the solver's inverse, and at each knot takes the step again with a
graph for its vector-Jacobian product: the gradient of the run as it was computed, not of a continuous adjoint equation. An exact
inverse makes it exact to rounding. "checkpoint": any solver; the states at the ends of about sqrt(N) segments stay, and each segment
runs again with a graph. "graph": everything stays.
Two-step methods hold, on the way home, the state after where the way out held the one before: their walk goes some knots further and comes
back by steps that cost no call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .control import Controller, Fixed
from .invertible import Inverse, Invertible, Kept
from .names import UserError, choose
from .noise import Noise, NoiseSource
from .prediction import Counted, Model
from .result import Solution, Step
from .schedule import Knot
from .solve import bound, solve
from .solver import Solver

METHODS = ("reversible", "checkpoint", "graph")
Cotangents = list[Tensor | None]
_DRIFT = 1e-3  # relative difference of the states out and home from which on a run is not called reversed


def differentiable(
    solver: Solver,
    model: Model,
    x: Tensor,
    knots: Sequence[Knot],
    *,
    memory: Any = None,
    noise: Noise | NoiseSource | None = None,
    parameters: Sequence[Tensor] = (),
    method: str = "reversible",
) -> Solution:
    """`solve(solver, model, x, knots)` whose `x` (and floats of `memory`) can be differentiated by x, the given memory, and parameters.

    method: "reversible" (an `Invertible` solver or its `Inverse`, knots that go one way), "checkpoint" (any solver), or "graph". The
    calls counted are those of the way out; "reversible" makes about twice as many again on the way home, "checkpoint" once.
    parameters: the tensors of the network that get a gradient under "reversible" (a warning says if it has others that want one); the
    other methods reach all of them. Methods exact to the bit keep integers, which have no gradient: "reversible" walks on them and
    differentiates the same step in floats, the others run in floats.
    Example: `run = differentiable(ReversibleHeun(), model, x, knots, parameters=tuple(net.parameters()))`, then
    `loss(run.x).backward()`. Raises `UserError`; warns if the way home misses the way out.
    """
    choose("method", method, METHODS)
    fixed = _checked(solver, knots, noise, method)
    noise = bound(noise, x)
    if method == "reversible":
        return _reversible(_Job(solver, model, fixed, noise, memory, tuple(parameters)), x)
    if isinstance(solver, Invertible | Inverse):
        solver, floats = _smooth(solver, memory or Kept())
        memory = floats if memory else None
    if method == "graph":
        return solve(solver, model, x, fixed, memory=memory, noise=noise, grad=True)
    return _checkpointed(solver, model, x, fixed, memory, noise)


def _checked(solver: Solver, knots: Any, noise: Any, method: str) -> Fixed:
    if not isinstance(solver, Solver):
        raise UserError(f"gradients are taken through the steps of a solver of sdediff, e.g. ReversibleHeun(), not of {solver!r}.")
    fixed = knots if isinstance(knots, Fixed) else None if isinstance(knots, Controller) else Fixed(knots)
    if fixed is None or not all(isinstance(k.time, float) for k in fixed):
        raise UserError(
            "gradients need fixed knots, the same for all samples: take a grid, e.g. LogSNR().knots(schedule, 50), not "
            f"{type(knots).__name__}, or solve(..., grad=True), which keeps everything."
        )
    if solver.facts.stochastic and noise is None:
        raise UserError(f"{solver!r} draws noise: give it some, e.g. noise=White(seed=0).")
    if method != "reversible":
        return fixed
    if not isinstance(solver, Invertible | Inverse) or solver.facts.inverse not in ("exact", "bits"):
        raise UserError(
            f"{solver!r} has no exact inverse to walk home by: take method='checkpoint', or a reversible solver such as "
            "ReversibleHeun() or AsynchronousLeapfrog()."
        )
    if len({math.copysign(1.0, s.time - t.time) for t, s in pairwise(fixed) if s.time != t.time}) > 1:
        raise UserError("these knots turn round: differentiate each way by itself, handing on x and memory, or take method='checkpoint'.")
    return fixed


def _smooth(solver: Solver, memory: Kept) -> tuple[Solver, Kept]:
    """The solver and memory in floats. `UserError` if the solver knows no such form."""
    assert isinstance(solver, Invertible | Inverse)
    floats, memory = solver.smooth(memory)
    if floats.facts.inverse == "bits":
        raise UserError(f"{solver!r} keeps integers and has no form in floats to differentiate: take another solver.")
    return floats, memory


# --- checkpoints --------------------------------------------------------------------------------------------------


def _checkpointed(solver: Solver, model: Model, x: Tensor, knots: Fixed, memory: Any, noise: Any) -> Solution:
    counted, steps = Counted(model), len(knots) - 1
    length = math.isqrt(steps)

    def segment(x: Tensor, memory: Any, first: int) -> tuple[Tensor, Any]:
        memory = solver.init(counted, x, knots[0]) if memory is None and first == 0 else memory
        for i in range(first, min(first + length, steps)):
            x, memory = knots.use(solver, i + 2).step(counted, x, knots[i], knots[i + 1], memory, noise)[:2]
        return x, memory

    with torch.enable_grad():
        for first in range(0, steps, length):
            x, memory = checkpoint(segment, x, memory, first, use_reentrant=False)  # type: ignore[misc]
    return Solution(x, tuple(knots), counted.calls, memory)


# --- reversible ---------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A run to be taken and walked home: all that is not a tensor to autograd, and, after it ran, its end."""

    solver: Solver
    model: Model
    knots: Fixed
    noise: Any
    memory: Kept | None
    parameters: tuple[Tensor, ...]
    end: Solution | None = field(default=None)

    def at(self, i: int) -> Solver:
        """The solver of step i."""
        return self.knots.use(self.solver, i + 2)

    def step(self, i: int, x: Tensor, memory: Any) -> Step:
        return self.at(i).step(self.model, x, self.knots[i], self.knots[i + 1], memory, self.noise)

    def home(self, i: int, x: Tensor, memory: Any) -> Step:
        """Step i undone."""
        return self.at(i).inverse.step(self.model, x, self.knots[i + 1], self.knots[i], memory, self.noise)


def _reversible(job: _Job, x: Tensor) -> Solution:
    if job.memory is not None and not all(v.is_floating_point() for v in job.memory.tensors):
        raise UserError("the memory holds integers, through which no gradient flows: take (solver, memory) = solver.smooth(memory).")
    given = job.memory.tensors if job.memory is not None else ()
    end, *tensors = _Walk.apply(job, x, *given, *job.parameters)  # type: ignore[misc]
    assert job.end is not None
    run, job.end = job.end, None
    return Solution(end, run.knots, run.calls, run.memory._replace(tensors=tuple(tensors)))


class _Walk(torch.autograd.Function):
    """(x, memory's tensors, parameters) -> (x, memory's tensors) at the end."""

    @staticmethod
    def forward(ctx: Any, job: _Job, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = tensors[: len(tensors) - len(job.parameters)]
        start = None if job.memory is None else job.memory._replace(tensors=given)
        job.end = run = solve(job.solver, job.model, x, job.knots, memory=start, noise=job.noise)
        seen = {id(v) for v in (x, *tensors)}
        ends = []
        for v in (run.x, *run.memory.tensors):  # autograd wants outputs that are neither inputs nor one another
            ends.append(v.clone() if id(v) in seen else v)
            seen.add(id(v))
        ctx.job, ctx.count, ctx.about = job, len(given), run.memory._replace(tensors=())
        ctx.save_for_backward(x, *given, *ends)
        ctx.mark_non_differentiable(*(v for v in ends if not v.is_floating_point()))
        ctx.set_materialize_grads(False)
        return tuple(ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *rest = ctx.saved_tensors
        given, (end, *tensors) = rest[: ctx.count], rest[ctx.count :]
        wanted = [p for p, need in zip(ctx.job.parameters, ctx.needs_input_grad[2 + ctx.count :], strict=True) if need]
        back = _Back(ctx.job, wanted)
        of_start = back.run(x, given, end, ctx.about._replace(tensors=tuple(tensors)), list(cotangents))
        found = iter(back.gradients)
        return (None, *of_start, *(next(found) if need else None for need in ctx.needs_input_grad[2 + ctx.count :]))


class _Back:
    """The walk home, and the gradients of the parameters so far."""

    def __init__(self, job: _Job, parameters: Sequence[Tensor]):
        self.job, self.parameters = job, parameters
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.told = self.looked = False

    def run(self, x: Tensor, given: Sequence[Tensor], end: Tensor, memory: Kept, cotangents: Cotangents) -> Cotangents:
        """The cotangents of the start (x, *given), from those of the end (end, *memory.tensors).

        `here` is the walk at knot `at`; its memory is that of the way out only `lead` knots further on, reached by steps without a call.
        """
        if not all(v.is_floating_point() for v in memory.tensors):
            cotangents = cotangents[:1]
        i = at = len(self.job.knots) - 1
        here, lead = Step(end, memory), 0
        while i > max(lead, 1):
            while at > i - 1 - lead:
                at -= 1
                here = self.job.home(at, here.x, here.memory)
            there = here
            for j in range(at, i - 1):
                there = self.job.step(j, there.x, there.memory)
            solver, kept = _smooth(self.job.at(i - 1), there.memory)
            leaves = [_leaf(there.x), *map(_leaf, kept.tensors)]
            step, calls = self._again(solver, i - 1, leaves[0], kept._replace(tensors=tuple(leaves[1:])))
            if not calls and self.job.knots[i - 1].time != self.job.knots[i].time:
                lead += 1  # a swap: what the network said is in the memory already
                continue
            cotangents = self._pulled(step, end, cotangents, leaves)
            i, end = i - 1, there.x
        leaves = [_leaf(x), *map(_leaf, given)]
        return self._pulled(self._begun(leaves, i), end, cotangents, leaves)

    def _again(self, solver: Solver, i: int, x: Tensor, memory: Any) -> tuple[Step, int]:
        """Step i with a graph, and the calls it made."""
        model, job = Counted(self.job.model), self.job
        with torch.enable_grad():
            memory = solver.init(model, x, job.knots[i]) if memory is None else memory
            step = solver.step(model, x, job.knots[i], job.knots[i + 1], memory, job.noise)
        return step, model.calls

    def _begun(self, leaves: Sequence[Tensor], count: int) -> Step:
        """The first steps with a graph: those of which the way home does not know the way out's memory."""
        x, memory = leaves[0], None if self.job.memory is None else self.job.memory._replace(tensors=tuple(leaves[1:]))
        for i in range(count):
            x, memory = self._again(_smooth(self.job.at(i), Kept())[0], i, x, memory)[0][:2]
        return Step(x, memory)

    def _pulled(self, step: Step, known: Tensor, cotangents: Cotangents, leaves: Sequence[Tensor]) -> Cotangents:
        """The cotangents of the leaves of a step's graph, from those of what it gave; known: its state, from the walk."""
        off = float((step.x.detach() - known).square().mean().sqrt() / known.square().mean().sqrt().clamp(min=1e-30))
        if not (off < _DRIFT or self.told):
            self.told = True
            warnings.warn(
                f"{self.job.solver!r} missed the way it came by {off:.0e} of the state, and so do these gradients: take fewer or smaller "
                "steps, float64, or method='checkpoint'.",
                stacklevel=2,
            )
        outputs = (step.x, *step.memory.tensors)[: len(cotangents)]
        pairs = [(v, g) for v, g in zip(outputs, cotangents, strict=True) if g is not None and v.requires_grad]
        if not pairs:
            return [None] * len(leaves)
        values, gradients = zip(*pairs, strict=True)
        self._look(values, leaves)
        found = torch.autograd.grad(values, [*leaves, *self.parameters], gradients, allow_unused=True)
        for i, g in enumerate(found[len(leaves) :]):
            total = self.gradients[i]
            self.gradients[i] = total if g is None else g.clone() if total is None else total.add_(g)
        return list(found[: len(leaves)])

    def _look(self, values: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        """Warn, once, of tensors that want a gradient and are not among the parameters."""
        if self.looked:
            return
        self.looked, known = True, {id(v) for v in (*leaves, *self.job.parameters)}
        if others := [v for v in _sources(values) if id(v) not in known]:
            warnings.warn(
                f"{len(others)} tensors that want a gradient (the first of shape {tuple(others[0].shape)}) are not among parameters= and "
                "get none: pass parameters=tuple(net.parameters()), or freeze the network by net.requires_grad_(False).",
                stacklevel=2,
            )


def _leaf(v: Tensor) -> Tensor:
    return v.detach().requires_grad_()


def _sources(values: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the graph of these tensors that want a gradient."""
    found, seen, left = [], set(), [v.grad_fn for v in values]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(v := getattr(node, "variable", None), Tensor):
            found.append(v)
        left.extend(n for n, _ in node.next_functions)
    return found
