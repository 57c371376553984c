"""The engine of multistep methods: `x_s = A x_t + sum_j c_j m_j + N z`, m_j the network's readings at the last instants.

A method is a reading (x0, eps, v), a rule for the weights (A, c, N) given the instants, and, if it has one, a corrector. Fixed grids run
PEC (predict, evaluate, correct): a step from t to s begins with the evaluation at t, corrects x_t from the state one step before with
the new value among the nodes, and then predicts s. So N steps take N calls, and the last state stays uncorrected, as published.
Values count as history while they lie behind t as seen from s, so the order rises by itself at the start and after a turn of the grid.
`start`: a one-step solver that takes the steps for which there is not enough history yet (else the first steps are of lower order).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from .combine import Linear, combine, linear
from .coordinates import Angle
from .names import UserError
from .noise import Noise
from .prediction import Model, Prediction
from .result import Step
from .schedule import Knot, Schedule
from .solver import OneStep, Solver
from .weights import Update


class Past(NamedTuple):
    """What a multistep method remembers at (x, t): earlier values, newest first, and the last step for the corrector.

    knots, values: the instants and the readings there; x: the state at knots[0] from which the last step was made, or None if that step
    is not to be corrected; z: the draw of that step; correct: how many values, the new one included, will correct it.
    """

    knots: tuple[Knot, ...] = ()
    values: tuple[Tensor, ...] = ()
    x: Tensor | None = None
    z: Linear | None = None
    correct: int = 0


class Multistep(Solver[Past]):
    """A method `x_s = A x_t + sum_j c_j m_j + N z`. Subclasses are frozen dataclasses that give `reading`, `update` and `facts`.

    One call a step, those of `start` at the beginning. Upward (s noisier than t) a deterministic one runs as it does downward; one that
    draws noise is the forward SDE there, without a call.
    """

    start: OneStep | None = None

    @abstractmethod
    def reading(self, p: Prediction) -> Linear:
        """What is kept of an answer: x0, eps or v."""

    @abstractmethod
    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        """The weights of a step from t to s; nodes[0] is t, or s for the corrector."""

    @property
    def history(self) -> int:
        """The number of values that a step uses, the newest included."""
        return self.order

    @property
    def corrected_by(self) -> int:
        """The number of values, the new one included, that correct a step; 0 without corrector."""
        return 0

    @property
    def estimates(self) -> bool:
        return self.corrected_by > 0

    @property
    def started(self) -> int:
        """The number of values from which on `start` is not needed."""
        return self.history

    def init(self, model: Model, x: Tensor, t: Knot) -> Past:
        return Past()

    def calls(self, knots: Sequence[Knot]) -> int:
        count = 0
        nodes: list[Knot] = []
        for t, s in pairwise(knots):
            if s.lam <= t.lam and self.facts.stochastic:
                nodes = [] if s.lam < t.lam else nodes
                continue
            nodes = [t, *behind(t, s, nodes)]
            count += self.start.calls((t, s)) if self.start and len(nodes) < self.started and s.sigma > 0 else 1
        return count

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Past, noise: Noise | None = None) -> Step:
        if s.lam <= t.lam and self.facts.stochastic:
            return Step(self.upward(x, t, s, noise) if s.lam < t.lam else x, Past() if s.lam < t.lam else memory)
        if self.start is not None and 1 + len(behind(t, s, memory.knots)) < self.started and s.sigma > 0:
            return self._begin(model, x, t, s, memory)
        value = kept(self.reading(model(x, t)))
        predicted = x
        if memory.x is not None:
            x = self._correct(memory, t, value)
        past = behind(t, s, memory.knots)
        knots, values = (t, *past), (value, *memory.values[: len(past)])
        plan = _planned(self, t, s, knots[: self.history], False, t.schedule)
        z = self.drawn(noise, t, s) if plan.std else None
        after = apply(plan, x, values, z)
        longest, correct = max(self.history, self.corrected_by - 1), min(self.corrected_by, len(knots) + 1)
        new = Past(knots[:longest], values[:longest], x if correct else None, z, correct)
        return Step(after, new, linear(x) - predicted if x is not predicted else None)

    def _correct(self, memory: Past, t: Knot, value: Tensor) -> Tensor:
        """The state at t again, now that the value there is known."""
        nodes = (t, *memory.knots)[: memory.correct]
        plan = _planned(self, memory.knots[0], t, nodes, True, t.schedule)
        assert memory.x is not None
        return apply(plan, memory.x, (value, *memory.values), memory.z)

    def _begin(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Past) -> Step:
        """A step of `start`, whose first evaluation enters the history."""
        assert self.start is not None
        watched = _First(model)
        after = self.start.move(watched, x, t, s)
        assert watched.answer is not None
        past = behind(t, s, memory.knots)
        return Step(after, Past((t, *past), (kept(self.reading(watched.answer)), *memory.values[: len(past)])))

    @property
    def inverse(self) -> Solver:
        return super().inverse if self.facts.inverse is None else self


def behind(t: Knot, s: Knot, knots: Sequence[Knot]) -> tuple[Knot, ...]:
    """The instants of a history (newest first) that lie behind t as seen from s, up to the first that does not."""
    down, found, last = s.lam > t.lam, [], t
    for k in knots:
        if not (k.lam < last.lam if down else k.lam > last.lam):
            break
        found.append(k)
        last = k
    return tuple(found)


def reading(p: Prediction, predicts: str, data_std: float = 1.0) -> Linear:
    """x0, eps, flow = eps - x0, or the velocity in Angle coordinates of this data standard deviation."""
    if predicts == "v":
        return Angle(data_std).velocity(p)
    return getattr(p, predicts)


def kept(reading: Linear) -> Tensor:
    """The reading as a tensor; the network's own answer as it is, without a copy."""
    ((c, value), *rest) = reading.terms
    return value if not rest and isinstance(c, float) and c == 1.0 else combine(reading)


def apply(plan: Update, x: Tensor, values: Sequence[Tensor], z: Linear | None) -> Tensor:
    """`keep x + sum_j weights[j] values[j] + std z`, in one pass a tensor."""
    terms = [(plan.keep, x), *zip(plan.weights, values, strict=False)]
    if z is not None:
        terms += [(plan.std * c, v) for c, v in z.terms]
    return combine(terms)


@lru_cache(maxsize=65536)
def _planned(solver: Multistep, t: Knot, s: Knot, nodes: tuple[Knot, ...], corrector: bool, schedule: Schedule) -> Update:
    """The weights, made once for each grid (the schedule is part of the key: knots do not compare it)."""
    return solver.update(t, s, nodes, corrector)


class _First:
    """A model that keeps its first answer."""

    def __init__(self, model: Model):
        self.model, self.schedule, self.shape = model, model.schedule, model.shape
        self.answer: Prediction | None = None

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        p = self.model(x, t)
        self.answer = p if self.answer is None else self.answer
        return p

    def rows(self, index: Tensor) -> Model:
        return _First(self.model.rows(index))


def finite(t: Knot, s: Knot, nodes: Sequence[Knot]) -> Sequence[Knot]:
    """The nodes between which differences in lam are defined: a step from or to infinite lam has the newest only."""
    if math.isinf(s.lam) or math.isinf(t.lam):
        return nodes[:1]
    count = next((j for j, k in enumerate(nodes) if math.isinf(k.lam)), len(nodes))
    return nodes[: max(count, 1)]


def check_start(start: object) -> None:
    """`UserError` unless this is a one-step solver, or None."""
    if start is not None and not isinstance(start, OneStep):
        raise UserError(f"start= takes a deterministic one-step solver such as Heun() or RungeKutta('rk4'), not {start!r}.")
