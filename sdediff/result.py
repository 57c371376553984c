"""What comes back: `Step` of one step, `Frame` of one turn of the loop, `Solution` of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .combine import Linear
from .dense import Dense
from .names import UserError
from .schedule import Knot


class Choice(NamedTuple):
    """What a method of variable order says about one order: the order, its local error estimate, and which samples could take it."""

    order: np.ndarray
    error: Tensor | Linear
    allowed: np.ndarray


class Step(NamedTuple):
    """One step: the new state, the memory to hand to the next step, and, of methods that have one, an error estimate and its order.

    error: of the state x at s, in its units; error_order: the power of the step size with which it shrinks, a number or an array (B,);
    choices: of methods of variable order, the same for the orders that the next step could have.
    """

    x: Tensor
    memory: Any = None
    error: Tensor | Linear | None = None
    error_order: Any = None
    choices: tuple[Choice, ...] = ()


class Frame(NamedTuple):
    """One turn of `march`: the instant, the state there, the solver's memory, whether the last step was accepted, and its error.

    Under a controller that steps each sample by itself: accepted (b,) and the knot's numbers hold one entry a sample, samples (b,) says
    which of the batch the rows are, keep which of them go on (None: all), plan what the controller has in mind.
    """

    t: Knot
    x: Tensor
    memory: Any = None
    accepted: Any = True
    error: Tensor | Linear | None = None
    samples: np.ndarray | None = None
    keep: np.ndarray | None = None
    plan: Any = None


@dataclass(frozen=True)
class Solution:
    """The end of a run.

    x: the state at `knots[-1]`; memory: the solver's, to go on from there; knots: every instant visited; calls: network calls made, each
    for a whole batch, counted; rejected: steps tried and not taken; reached: whether every sample got to the end, and `reason` if not;
    error: (B,) the sum over the steps of the RMS of each one's error estimate, if it was asked for; path: the state at each knot, if it was
    asked for. Where each sample has steps of its own (`PID`): each (B,) counts the calls of each sample, rejected (B,) its rejections;
    knots hold arrays (B,) and a sample that has ended repeats its last; finished (B,) says which reached the end; error (B,) estimates the
    error there; `recorded` is a controller that takes the same steps again.
    """

    x: Tensor
    knots: tuple[Knot, ...]
    calls: int
    memory: Any = None
    rejected: Any = 0
    reached: bool = True
    reason: str = ""
    error: Tensor | None = None
    path: tuple[Tensor, ...] | None = None
    each: np.ndarray | None = None
    finished: np.ndarray | None = None
    recorded: Any = None
    dense: Dense | None = None

    def at(self, t: Knot | float | np.ndarray) -> Tensor:
        """The states (B, ...) at any time on the way, one for all or one a sample, at the method's order. For `solve(..., path=True)`.

        Raises `UserError` if the states were not kept, if the method draws noise, or outside the times that were passed.
        """
        if self.dense is None:
            raise UserError(
                "the solution between knots needs the states at the knots: solve(..., path=True), with a method that draws no noise, "
                "on knots that go one way."
            )
        return self.dense.at(t)
