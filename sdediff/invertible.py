"""Methods whose steps can be undone exactly: what they keep beside the state, and the solver that walks back.

An exact latent is the state AND what the method keeps beside it: the other half of a coupled pair, the state one step before, a velocity.
`run = solve(solver.inverse, model, x, knots_up)` encodes, `solve(solver, model, run.x, knots_up[::-1], memory=run.memory)` decodes. Without
the memory a run starts afresh, from the state alone, and the way back is then as approximate as the start.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .combine import Linear
from .noise import Noise
from .prediction import Model
from .result import Step
from .schedule import Knot
from .solver import Facts, Solver


class Kept(NamedTuple):
    """What an exactly invertible method keeps at (x, t) beside x: tensors shaped like x, instants, and how many steps it has taken.

    Empty at the start of a run without memory.
    """

    tensors: tuple[Tensor, ...] = ()
    knots: tuple[Knot, ...] = ()
    turn: int = 0


class Invertible(Solver[Kept]):
    """A method whose step can be undone: `back` takes what `step` gave and returns what `step` was given."""

    @abstractmethod
    def back(self, model: Model, x: Tensor, s: Knot, t: Knot, memory: Kept, noise: Noise | None) -> Step:
        """The step from t to s undone: the state and memory at t from x and memory at s."""

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        return Kept()

    def calls_back(self, knots: Sequence[Knot]) -> int:
        """Exactly how many network calls the inverse makes over `knots`, in the order in which it passes them."""
        return self.calls(knots)

    @property
    def estimates_back(self) -> bool:
        """Whether the steps of the inverse come with an error estimate."""
        return self.estimates

    def smooth(self, memory: Kept) -> tuple[Solver, Kept]:
        """The same method and memory in a form that can be differentiated: what is kept in integers becomes floats."""
        return self, memory

    @property
    def inverse(self) -> Solver:
        return Inverse(self)


class Symmetric(Invertible):
    """A method whose step from s to t undoes its step from t to s: it is its own inverse."""

    def back(self, model: Model, x: Tensor, s: Knot, t: Knot, memory: Kept, noise: Noise | None) -> Step:
        return self.step(model, x, s, t, memory, noise)

    @property
    def inverse(self) -> Solver:
        return self


@dataclass(frozen=True)
class Inverse(Solver[Kept]):
    """`base` undone: its step from t to s is the base's step from s to t, backwards. What the base promises."""

    base: Invertible

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def facts(self) -> Facts:
        return self.base.facts

    @property
    def embedded(self) -> bool:
        return self.base.embedded

    @property
    def inverse(self) -> Solver:
        return self.base

    @property
    def estimates(self) -> bool:
        return self.base.estimates_back

    def calls(self, knots: Sequence[Knot]) -> int:
        return self.base.calls_back(knots)

    def smooth(self, memory: Kept) -> tuple[Solver, Kept]:
        base, memory = self.base.smooth(memory)
        return base.inverse, memory

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        return self.base.init(model, x, t)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        return self.base.back(model, x, t, s, memory, noise)

    def velocity(self, memory: Kept, x: Tensor, t: Knot) -> Linear | None:
        return self.base.velocity(memory, x, t)
