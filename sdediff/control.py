"""Who decides the next step: a controller. `Fixed(knots)` walks given knots; adaptive ones judge each step by its error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .names import UserError
from .prediction import Model
from .result import Step
from .schedule import Knot
from .solver import Solver


class Verdict(NamedTuple):
    """Of one step: accepted (True, or one bool a sample), the next target (None: done), the controller's plan, and the rows that stay."""

    accept: Any
    following: Knot | None
    plan: Any
    keep: Tensor | None = None


class Controller(ABC):
    """Decides where the next step goes. A frozen value; what it remembers travels as `plan`."""

    @abstractmethod
    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Any]:
        """(first knot, first target, plan)."""

    @abstractmethod
    def use(self, solver: Solver, plan: Any) -> Solver:
        """The solver for the next step (lower order at the end, for example)."""

    @abstractmethod
    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Any) -> Verdict:
        """What to do with the step from (t, x) to s."""


@dataclass(frozen=True)
class Fixed(Controller):
    """These knots, one after the other; every step is accepted. They may go down (sample), up (encode) or both ways."""

    knots: tuple[Knot, ...]

    def __init__(self, knots: Sequence[Knot]):
        object.__setattr__(self, "knots", tuple(knots))
        if len(self.knots) < 2 or not all(isinstance(k, Knot) for k in self.knots):
            raise UserError("Fixed(knots) needs at least two knots: take them from a grid, e.g. LogSNR().knots(schedule, steps=20).")

    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Any]:
        return self.knots[0], self.knots[1], 2

    def use(self, solver: Solver, plan: Any) -> Solver:
        return solver

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Any) -> Verdict:
        return Verdict(True, self.knots[plan] if plan < len(self.knots) else None, plan + 1)
