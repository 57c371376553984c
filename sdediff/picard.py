"""Parallel in time: Picard iteration over the steps of any solver without memory (ParaDiGMS, Shih et al. 2023).

A run is x_{i+1} = step_i(x_i). Given guesses of all states of a window, all its steps are made at once, and
`x_{i+1} <- x_base + sum_{j <= i} (step_j(x_j) - x_j)`, from the first state that is final. After a sweep the state after the base is final,
too, so it ends after as many sweeps as steps at most; the window slides past all states that have stopped to move. Noise is a pure function
of the knots, so that ancestral steps are functions as well.
The network is asked for a whole window in one batch, one knot a row. For that a step is replayed: it is run on the answers that there are
until it asks for one more (a step is a pure function, so this costs arithmetic only), and what all steps ask for is one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .combine import combine, linear
from .control import Fixed
from .names import UserError, positive
from .noise import Noise, NoiseSource
from .prediction import Around, Model, ModelError, Prediction
from .result import Solution
from .schedule import Knot
from .solve import bound
from .solver import Solver


@dataclass(frozen=True)
class ParallelSolution(Solution):
    """A `Solution` by Picard iteration. calls: of the sample that took most; rounds: batched evaluations, one after the other; sweeps."""

    rounds: int = 0
    sweeps: int = 0


class _Asked(Exception):  # a message to the replay, not an error
    """A step asks the network for one more answer."""

    def __init__(self, x: Tensor, t: Knot):
        self.x, self.t = x, t


@dataclass
class _Replay(Around):
    """A model that gives the answers there are, in order, and then asks."""

    model: Model
    answers: list[Prediction] = field(default_factory=list)
    given: int = 0

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        if self.given == len(self.answers):
            raise _Asked(x, t)
        self.given += 1
        return self.answers[self.given - 1]

    def rows(self, index: Tensor) -> Model:
        raise UserError("a solver that picks rows by itself cannot be run in parallel.")


@dataclass(frozen=True)
class _Drawn:
    """Some rows of a noise that remembers: a step is made many times, and its draws are the same each time."""

    noise: Noise
    index: Tensor | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return self._mine(self._once((a, b, key), lambda: self.noise(a, b, key)))

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        w, h = self._once(("area", a, b, key), lambda: self.noise.area(a, b, key))
        return self._mine(w), self._mine(h)

    def fresh(self, key: int) -> Tensor:
        return self._mine(self._once(key, lambda: self.noise.fresh(key)))

    def rows(self, index: Tensor) -> _Drawn:
        return _Drawn(self.noise, index if self.index is None else self.index[index], self.kept)

    def _mine(self, z: Tensor) -> Tensor:
        return z if self.index is None else z[self.index]

    def _once(self, name: Any, draw: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = draw()
        return self.kept[name]


class _Task(NamedTuple):
    """Step number j, for some rows of the batch: where it begins, and its noise."""

    j: int
    rows: Tensor
    x: Tensor
    noise: _Drawn | None


def picard(
    solver: Solver,
    model: Model,
    x: Tensor,
    knots: Sequence[Knot],
    *,
    window: int | None = None,
    tolerance: float = 1e-3,
    noise: Noise | NoiseSource | None = None,
    together: bool = True,
    path: bool = False,
) -> ParallelSolution:
    """The run of `solve(solver, model, x, knots)`, by Picard iteration over `window` steps at once (None: all).

    tolerance: a state has settled when a sweep moves it by no more than this, root mean square over its components, in units of
    sqrt(alpha^2 + sigma^2); 0 gives the sequential run itself. Each sample has its own window and does not depend on its batch. solver:
    any without memory, with noise or without. together: ask the model once for a whole window, with one knot a sample (its numbers are
    float64 arrays); False: knot by knot, for networks that cannot; answers and counts are the same. No gradients.
    Raises `UserError`, `ModelError`.
    """
    knots = Fixed(knots).knots
    n, window = len(knots) - 1, positive("window", len(knots) - 1 if window is None else window)
    if not tolerance >= 0:
        raise UserError(f"tolerance must be at least 0, not {tolerance!r}.")
    with torch.no_grad():
        if solver.init(model, x, knots[0]) is not None:
            raise UserError(f"{solver!r} has a memory, so that its steps cannot be made at once: take a one-step or an ancestral method.")
        network, source, drawn, sweeps = _Network(model, together, [0] * len(x)), bound(noise, x), {}, 0
        states = torch.stack([x] * (n + 1))
        done = torch.zeros(len(x), dtype=torch.int64)  # of each sample: how many states after the start are final
        while int(done.min()) < n:
            drawn = {j: drawn.get(j, _Drawn(source)) for j in range(int(done.min()), n)} if source is not None else {}
            tasks = _tasks(states, done, window, drawn)
            moved = _moves(solver, network, tasks, knots)
            before, done, sweeps = done, _update(states, done, tasks, moved, knots, tolerance), sweeps + 1
            _slide(states, (before + window).clamp(max=n), (done + window).clamp(max=n))
    if not bool(torch.isfinite(states[-1]).all()):
        raise ModelError(f"{solver!r} ended in NaN or infinity: run `solve` on the same arguments, it says at which step.")
    calls = max(network.calls, default=0)
    return ParallelSolution(states[-1].clone(), knots, calls, path=tuple(states) if path else None, rounds=network.rounds, sweeps=sweeps)


def _tasks(states: Tensor, done: Tensor, window: int, drawn: dict[int, _Drawn]) -> list[_Task]:
    """The steps of the windows: from the last final state of each sample, `window` steps on."""
    tasks = []
    for j in range(int(done.min()), min(int(done.max()) + window, len(states) - 1)):
        rows = ((done <= j) & (j < done + window)).nonzero().flatten()
        if len(rows):
            tasks.append(_Task(j, rows, states[j, rows], drawn[j].rows(rows) if drawn else None))
    return tasks


def _slide(states: Tensor, before: Tensor, reach: Tensor) -> None:
    """States that the window has reached now begin as the last one that it had reached before, in place."""
    for j in range(int(before.min()) + 1, int(reach.max()) + 1):
        rows = ((before < j) & (j <= reach)).nonzero().flatten()
        states[j, rows] = states[before[rows], rows]


def _update(states: Tensor, done: Tensor, tasks: list[_Task], moved: list[Tensor], knots: Sequence[Knot], tolerance: float) -> Tensor:
    """One Picard sweep on `states`, in place; the new number of final states of each sample.

    Written by the shift of each state, x_{j+1}' = step_j(x_j) + (x_j' - x_j): the same sum, and exact to the bit where nothing moves.
    """
    shift, settled, final = torch.zeros_like(states[0]), torch.ones(len(done), dtype=torch.bool), done.clone()
    for (j, rows, *_), y in zip(tasks, moved, strict=True):
        new = combine(linear(y) + shift[rows])
        shift[rows] = new - states[j + 1, rows]
        states[j + 1, rows] = new
        s = knots[j + 1]
        moved_by = shift[rows].flatten(1).square().mean(1).sqrt().cpu() / (s.alpha**2 + s.sigma**2) ** 0.5
        settled[rows] &= moved_by <= tolerance
        final[rows] += settled[rows] | (done[rows] == j)  # the first of the window began at a final state
    return final


def _moves(solver: Solver, network: _Network, tasks: list[_Task], knots: Sequence[Knot]) -> list[Tensor]:
    """The steps of all tasks, side by side."""
    answers: list[list[Prediction]] = [[] for _ in tasks]
    moved: dict[int, Tensor] = {}
    waiting = list(range(len(tasks)))
    while waiting:
        asked = {}
        for i in waiting:
            j, _, x, noise = tasks[i]
            try:
                moved[i] = solver.step(_Replay(network.model, answers[i]), x, knots[j], knots[j + 1], None, noise).x
            except _Asked as question:
                asked[i] = question
        for i, answer in zip(asked, network.answers([(a, tasks[i].rows) for i, a in asked.items()]), strict=True):
            answers[i].append(answer)
        waiting = list(asked)
    return [moved[i] for i in range(len(tasks))]


@dataclass
class _Network:
    """The model, asked at several instants in one batch; counts the calls of each sample and the rounds."""

    model: Model
    together: bool
    calls: list[int]
    rounds: int = 0

    def answers(self, asked: list[tuple[_Asked, Tensor]]) -> list[Prediction]:
        if not asked:
            return []
        self.rounds += 1
        found = self._at_once(asked) if self.together else [self.model.rows(rows)(a.x, a.t) for a, rows in asked]
        for p, (_, rows) in zip(found, asked, strict=True):
            for b, cost in zip(rows.tolist(), np.broadcast_to(p.cost, len(rows)).tolist(), strict=True):
                self.calls[b] += cost
        return found

    def _at_once(self, asked: list[tuple[_Asked, Tensor]]) -> list[Prediction]:
        if len(asked) == 1:
            return [self.model.rows(asked[0][1])(asked[0][0].x, asked[0][0].t)]
        sizes = [len(rows) for _, rows in asked]
        t = Knot(*(np.repeat([getattr(a.t, name) for a, _ in asked], sizes) for name in _NUMBERS), schedule=self.model.schedule)
        p = self.model.rows(torch.cat([rows for _, rows in asked]))(torch.cat([a.x for a, _ in asked]), t)
        parts = [(v.split(sizes) if v is not None else [None] * len(asked)) for v in (p.value, p.variance, p.eps_used)]
        costs = np.split(np.broadcast_to(p.cost, sum(sizes)), np.cumsum(sizes)[:-1])
        found = zip(asked, *parts, costs, strict=True)
        return [Prediction(a.x, a.t, v, p.kind, var, eps, cost, p.data_std) for (a, _), v, var, eps, cost in found]


_NUMBERS = tuple(f.name for f in fields(Knot) if f.name != "schedule")
