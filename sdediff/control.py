"""Who decides the next step: a controller. `Fixed(knots)` walks given knots; adaptive ones judge each step by its error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .names import UserError
from .prediction import Model
from .result import Step
from .schedule import Knot
from .solver import Solver


class Verdict(NamedTuple):
    """Of one step: accepted (True, or one bool a sample), the next target (None: done), the controller's plan, and the samples that go on.

    keep: a bool array (b,), or None if all do.
    """

    accept: Any
    following: Knot | None
    plan: Any
    keep: np.ndarray | None = None


class Outcome(NamedTuple):
    """Of samples whose run is over, arrays (b,): estimates of the errors there, and why they stopped ("": they reached the end)."""

    error: np.ndarray
    why: np.ndarray


class Controller(ABC):
    """Decides where the next step goes. A frozen value; what it remembers travels as `plan`, a tree of rows (`batch.rows`)."""

    @abstractmethod
    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Any]:
        """(first knot, first target, plan)."""

    @abstractmethod
    def use(self, solver: Solver, plan: Any) -> Solver:
        """The solver for the next step (lower order at the end, for example)."""

    @abstractmethod
    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Any) -> Verdict:
        """What to do with the step from (t, x) to s."""

    def check(self, solver: Solver, x: Tensor, noise: Any) -> None:
        """Raise `UserError` if this controller cannot drive this solver on this state and noise."""
        return

    def outcome(self, plan: Any) -> Outcome | None:
        """Of the samples of this plan, if each is judged by itself."""
        return None

    def next_order(self, plan: Any) -> np.ndarray | None:
        """The order of each sample's next step, if this controller chooses it."""
        return None


@dataclass(frozen=True, init=False)
class Fixed(Controller, Sequence[Knot]):
    """These knots, one after the other; every step is accepted. They may go down (sample), up (encode) or both ways.

    It is a sequence of its knots, and stands wherever knots do. lower_final: the k-th step from the end has at most order k (published
    codes do so to keep few steps stable); orders: the order of each step instead, e.g. (3, 3, 2, 1). Both use `solver.at_order`.
    """

    knots: tuple[Knot, ...]
    lower_final: bool = False
    orders: tuple[int, ...] | None = None

    def __init__(self, knots: Sequence[Knot], lower_final: bool = False, orders: Sequence[int] | None = None):
        object.__setattr__(self, "knots", tuple(knots))
        object.__setattr__(self, "lower_final", lower_final)
        object.__setattr__(self, "orders", None if orders is None else tuple(orders))
        if len(self.knots) < 2 or not all(isinstance(k, Knot) for k in self.knots):
            raise UserError("Fixed(knots) needs at least two knots: take them from a grid, e.g. LogSNR().knots(schedule, steps=20).")
        if self.orders is not None and (lower_final or len(self.orders) != len(self.knots) - 1):
            raise UserError(
                f"orders= gives one order for each of the {len(self.knots) - 1} steps and decides the last ones too: "
                f"not {len(self.orders)} orders{', and not with lower_final' if lower_final else ''}."
            )

    def __len__(self) -> int:
        return len(self.knots)

    def __getitem__(self, i: Any) -> Any:
        return self.knots[i]

    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Any]:
        return self.knots[0], self.knots[1], 2

    def use(self, solver: Solver, plan: Any) -> Solver:
        return self._using(solver, plan - 2)

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Any) -> Verdict:
        return Verdict(True, self.knots[plan] if plan < len(self.knots) else None, plan + 1)

    def _using(self, solver: Solver, step: int) -> Solver:
        """The solver of the step number `step` (from 0)."""
        if self.orders is not None:
            return solver.at_order(self.orders[step])
        left = len(self.knots) - 1 - step
        return solver.at_order(left) if self.lower_final and left < solver.order else solver
