"""Runs in which each sample takes its own steps: `Log` writes one down, `Recorded` takes the same steps again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import merge, rows
from .combine import combine
from .control import Controller, Verdict
from .dense import Dense
from .names import UserError
from .prediction import Counted, Model
from .result import Frame, Solution, Step
from .schedule import Knot, Schedule
from .solver import Solver


@dataclass(frozen=True, eq=False)
class Recorded(Controller):
    """The steps of an earlier run again, each sample its own: times (N + 1, B), a sample that has ended repeats its last; orders (N, B) or
    None; the schedule. A deterministic solver gives the same states; with noise the same path is needed.
    """

    times: np.ndarray
    orders_taken: np.ndarray | None
    schedule: Schedule

    def check(self, solver: Solver, x: Tensor, noise: Any) -> None:
        if not solver.embedded:
            raise UserError(
                f"{solver!r} takes knots that are the same for all samples: recorded steps are for the methods that `PID` drives."
            )

    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Any]:
        if len(x) != self.times.shape[1]:
            raise UserError(f"these steps were recorded for {self.times.shape[1]} samples, not for {len(x)}.")
        if len(self.times) < 2:
            raise UserError("no sample took a step in the run that was recorded: there is nothing to take again.")
        plan = (np.arange(len(x)), np.zeros(len(x), int))
        return self.schedule.knot(self.times[0]), self.schedule.knot(self.times[1]), plan

    def use(self, solver: Solver, plan: Any) -> Solver:
        if not solver.varies or self.orders_taken is None:
            return solver
        return solver.at_order(self.orders_taken[plan[1], plan[0]])

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Any) -> Verdict:
        sample, done = plan[0], plan[1] + 1
        following = self.times[np.minimum(done + 1, len(self.times) - 1), sample]
        going = (done + 1 < len(self.times)) & (following != s.time)
        plan, stays = (sample, done), s.time == t.time  # a sample that had stopped before its first step
        accept = ~stays if stays.any() else True
        if not going.any():
            return Verdict(accept, None, plan, going)
        return Verdict(accept, self.schedule.knot(following), plan, None if going.all() else going)

    def next_order(self, plan: Any) -> np.ndarray | None:
        if self.orders_taken is None:
            return None
        sample, done = plan
        return self.orders_taken[np.minimum(done, len(self.orders_taken) - 1), sample]

    @property
    def reverse(self) -> Recorded:
        """The same instants from last to first (for the inverse of a solver)."""
        count = 1 + (np.diff(self.times, axis=0) != 0).sum(0)
        place = np.maximum(count - 1 - np.arange(len(self.times))[:, None], 0)
        return Recorded(np.take_along_axis(self.times, place, 0), None, self.schedule)


class Log:
    """What is written down of such a run, frame by frame; path: the states at the knots, too."""

    def __init__(self, solver: Solver, controller: Controller, x: Tensor, path: bool):
        n = len(x)
        self.solver, self.controller, self.x = solver, controller, torch.empty_like(x)
        self.times: list[np.ndarray] = []  # (B,) each; NaN where a step was rejected or the sample had left
        self.orders: list[np.ndarray] = []
        self.following: np.ndarray | None = None  # the order of each sample's next step
        self.rejected, self.error, self.why = np.zeros(n, np.int64), np.full(n, np.nan), np.full(n, "", object)
        self.path = Path(solver, x) if path else None
        self.schedule: Schedule | None = None
        self.memories: list[tuple[np.ndarray, Any]] = []  # of the samples that have left, by their places

    @property
    def tried(self) -> int:
        """The steps tried so far."""
        return len(self.times) - 1

    def write(self, frame: Frame) -> None:
        """One turn of the loop."""
        index = np.arange(len(self.x)) if frame.samples is None else frame.samples
        accept = np.broadcast_to(np.asarray(frame.accepted), index.shape)
        self.schedule = frame.t.schedule
        self.times.append(_placed(index[accept], frame.t.time[accept], len(self.x)))
        self.orders.append(np.full(len(self.x), np.nan) if self.following is None else self.following)
        self.rejected[index[~accept]] += 1
        if self.path is not None:
            self.path.write(index[accept], *rows(np.flatnonzero(accept), (frame.x, frame.t, frame.memory)))
        orders = self.controller.next_order(frame.plan)
        self.following = None if orders is None else _placed(index, orders, len(self.x))
        if frame.keep is not None and not frame.keep.all():
            self._close(frame, index, np.flatnonzero(~frame.keep))

    def _close(self, frame: Frame, index: np.ndarray, leaving: np.ndarray) -> None:
        """Some samples leave."""
        gone, x, plan, memory = rows(leaving, (index, frame.x, frame.plan, frame.memory))
        self.memories.append((gone, memory))
        self.x = self.x.index_copy(0, torch.as_tensor(gone, device=x.device), x)
        outcome = self.controller.outcome(plan)
        if outcome is not None:
            self.error[gone], self.why[gone] = outcome

    def solution(self, counted: Counted) -> Solution:
        """The end of the run."""
        assert self.schedule is not None
        times = np.array(self.times)
        taken = ~np.isnan(times)
        count = taken.sum(0)
        steps = np.minimum(np.arange(count.max())[:, None], count - 1)
        place = np.take_along_axis(np.argsort(~taken, axis=0, kind="stable"), steps, 0)
        times, orders = np.take_along_axis(times, place, 0), np.take_along_axis(np.array(self.orders), place, 0)[1:]
        finished = self.why == ""
        return Solution(
            self.x,
            tuple(self.schedule.knot(row) for row in times),
            counted.calls,
            merge(self.memories),
            rejected=self.rejected,
            reached=bool(finished.all()),
            reason=_told(self.why),
            error=torch.as_tensor(self.error),
            path=None if self.path is None else tuple(self.path.states(steps).unbind()),
            each=counted.each,
            finished=finished,
            recorded=Recorded(times, None if np.isnan(orders).all() else np.nan_to_num(orders, nan=1.0), self.schedule),
            dense=None if self.path is None else self.path.dense(self.schedule, times, steps),
        )


class Path:
    """The states at the knots of each sample, and, where the solver remembers the network's answers, dy/dtheta there."""

    def __init__(self, solver: Solver, x: Tensor):
        self.solver, self.like = solver, x
        self.count = np.zeros(len(x), np.int64)
        self.parts: list[tuple[np.ndarray, np.ndarray, Tensor, Tensor | None]] = []

    def write(self, index: np.ndarray, x: Tensor, t: Knot, memory: Any) -> None:
        """The samples `index` have come to the states x at t."""
        slope = None if memory is None else self.solver.velocity(memory, x, t)
        self.parts.append((self.count[index], index, x, None if slope is None else combine(slope)))
        self.count[index] += 1

    def states(self, steps: np.ndarray) -> Tensor:
        """(N + 1, B, ...): a sample that has ended repeats its last."""
        return self._gathered([(n, i, x) for n, i, x, _ in self.parts], steps)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """The states of a batch that went together, as they came."""
        return tuple(x for _, _, x, _ in self.parts)

    def between(self, knots: Sequence[Knot]) -> Dense | None:
        """The same as `dense` for a batch that went together."""
        times = np.repeat(np.array([k.time for k in knots])[:, None], len(self.like), 1)
        return self.dense(knots[0].schedule, times, np.repeat(np.arange(len(knots))[:, None], len(self.like), 1))

    def dense(self, schedule: Schedule, times: np.ndarray, steps: np.ndarray) -> Dense | None:
        """The solution between the knots; None where there is none: with noise, or if the knots do not go one way."""
        one_way = (np.diff(times, axis=0) * np.sign(times[-1] - times[0]) >= 0).all()
        if self.solver.facts.stochastic or not one_way:
            return None
        slopes = [(n, i, v) for n, i, _, v in self.parts if v is not None]
        whole = len(slopes) == len(self.parts)
        return Dense(schedule, times, self.states(steps), self.solver.order, self._gathered(slopes, steps) if whole else None)

    def _gathered(self, parts: list[tuple[np.ndarray, np.ndarray, Tensor]], steps: np.ndarray) -> Tensor:
        device = self.like.device
        out = self.like.new_empty((len(steps), *self.like.shape))
        for position, index, x in parts:
            out[torch.as_tensor(position, device=device), torch.as_tensor(index, device=device)] = x.detach()
        return out[torch.as_tensor(steps, device=device), torch.arange(len(self.like), device=device)]


def _placed(index: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(n,): the values at these places, NaN elsewhere."""
    out = np.full(n, np.nan)
    out[index] = values
    return out


def _told(why: np.ndarray) -> str:
    """ "3 of 256 samples stopped short: limit of 100 calls (samples 4, 7, 9)"."""
    parts = []
    for reason in dict.fromkeys(why[why != ""]):
        who = np.flatnonzero(why == reason)
        shown = ", ".join(map(str, who[:5])) + (", ..." if len(who) > 5 else "")
        parts.append(f"{len(who)} of {len(why)} samples: {reason} (sample{'s' * (len(who) > 1)} {shown})")
    return "; ".join(parts)
