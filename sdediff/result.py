"""What comes back: `Step` of one step, `Frame` of one turn of the loop, `Solution` of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .combine import Linear
from .schedule import Knot


class Step(NamedTuple):
    """One step: the new state, the memory to hand to the next step, and, of methods that have one, an error estimate and its order."""

    x: Tensor
    memory: Any = None
    error: Tensor | Linear | None = None
    error_order: float | None = None


class Frame(NamedTuple):
    """One turn of `march`: the instant, the state there, the solver's memory, whether the last step was accepted, and its error."""

    t: Knot
    x: Tensor
    memory: Any = None
    accepted: Any = True
    error: Tensor | Linear | None = None


@dataclass(frozen=True)
class Solution:
    """The end of a run.

    x: the state at `knots[-1]`; memory: the solver's, to go on from there; knots: every instant visited; calls: network calls made,
    counted; rejected: steps tried and not taken; reached: whether the end was reached, and `reason` if not; error: (B,) the sum over the
    steps of the RMS of each one's error estimate, if it was asked for; path: the state at each knot, if it was asked for.
    """

    x: Tensor
    knots: tuple[Knot, ...]
    calls: int
    memory: Any = None
    rejected: int = 0
    reached: bool = True
    reason: str = ""
    error: Tensor | None = None
    path: tuple[Tensor, ...] | None = None
