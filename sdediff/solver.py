"""What a solver is: a frozen value with a pure `step(model, x, t, s, memory, noise) -> Step` from knot t to knot s.

State is an argument and a result; nothing is hidden, so the same arguments give the same bits. `facts` is the promise that the test
suite measures: its order, strong and weak orders, what its inverse does. `repr(solver)` is its label and rebuilds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from .combine import Linear, combine, linear
from .names import UserError
from .noise import Noise
from .prediction import Model
from .result import Solution, Step
from .schedule import Knot

M = TypeVar("M")


@dataclass(frozen=True)
class Facts:
    """What a method promises: orders of convergence (None where it does not converge to that limit) and properties.

    ode: global order to the probability flow; strong, weak: orders to its SDE; stochastic: whether it draws noise; inverse: what the
    inverse solver undoes ("bits", "exact", "approximate", None); clock: the reading on which its noise increments live; evals: network
    calls a step; reference: paper and equation.
    """

    reference: str
    ode: float | None = None
    strong: float | None = None
    weak: float | None = None
    stochastic: bool = False
    inverse: str | None = None
    clock: str = "time"
    evals: float = 1


class Solver(ABC, Generic[M]):
    """A method with fixed options. Subclasses are frozen dataclasses, abstract or final; the type parameter is their memory."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The order as its paper counts it."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """The measured promise."""

    @abstractmethod
    def init(self, model: Model, x: Tensor, t: Knot) -> M:
        """The memory before the first step at (x, t); calls no network unless the method must."""

    @abstractmethod
    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: M, noise: Noise | None) -> Step:
        """One step of x (B, ...) from t to s, where memory describes (x, t). Raises `UserError` if it needs noise and has none."""

    @abstractmethod
    def calls(self, knots: Sequence[Knot]) -> int:
        """Exactly how many network calls a run over `knots` makes."""

    @property
    def estimates(self) -> bool:
        """Whether its steps come with an error estimate: of their own, or (multistep with corrector) of the step before."""
        return self.embedded

    @property
    def embedded(self) -> bool:
        """Whether every step brings an error estimate of its own (`Step.error`), so that an adaptive controller can judge it."""
        return False

    @property
    def varies(self) -> bool:
        """Whether `at_order` takes an array, one order a sample, and the steps offer `Step.choices`."""
        return False

    def velocity(self, memory: M, x: Tensor, t: Knot) -> Linear | None:
        """dy/dangle at (x, t) in `Angle()` coordinates, if the memory holds the network's answer there: for the solution between knots."""
        return None

    def drawn(self, noise: Noise | None, t: Knot, s: Knot) -> Linear:
        """A standard normal draw for the step from t to s: the increment on the solver's clock over the root of its variance."""
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        a, b = t.clock(self.facts.clock), s.clock(self.facts.clock)
        return linear(noise(a, b), abs(b - a) ** -0.5)

    def upward(self, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Tensor:
        """The state at the noisier s by the forward SDE, exact in law for any step size: `(alpha_s/alpha_t) x + std z`."""
        scale, std = t.schedule.transition(t, s)
        return combine(scale * linear(x) + std * self.drawn(noise, t, s))

    def at_order(self, order: Any) -> Solver:
        """The same method at another order, with the same memory: for steps of lower order (`Fixed(knots, lower_final=True)`).

        `UserError` if the method has no option `order`.
        """
        if order == self.order:
            return self
        if "order" not in {f.name for f in fields(self)}:  # type: ignore[arg-type]
            raise UserError(f"{self!r} has one order only ({self.order}): it cannot take a step of order {order}.")
        return replace(self, order=order)  # type: ignore[type-var]

    @property
    def inverse(self) -> Solver:
        """The solver that undoes this one when run over the reversed knots. `UserError` if there is none."""
        raise UserError(f"{self!r} has no inverse: it {'draws noise' if self.facts.stochastic else 'cannot be undone'}.")


class OneStep(Solver[None]):
    """A method without memory and noise: only `move`. What wrappers may wrap. Its inverse is itself run upward, to its order."""

    @abstractmethod
    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        """The state at s, from x at t."""

    def init(self, model: Model, x: Tensor, t: Knot) -> None:
        return None

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        return Step(self.move(model, x, t, s))

    @property
    def inverse(self) -> Solver:
        return self


class Ancestral(Solver[None]):
    """A method without memory that draws noise, one call a step. Upward (s noisier than t) it is the forward SDE, without a call."""

    def init(self, model: Model, x: Tensor, t: Knot) -> None:
        return None

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(t.lam < s.lam for t, s in pairwise(knots))

    def forward(self, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Step:
        """The forward SDE from t to the noisier s, exact in law for any step size."""
        return Step(self.upward(x, t, s, noise))


@runtime_checkable
class Delegate(Protocol):
    """A whole run handed to another library, accepted wherever a solver is."""

    @property
    def facts(self) -> Facts: ...

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps; of the knots only the ends count then."""
        ...

    def run(self, model: Model, x: Tensor, knots: Sequence[Knot], noise: Noise | None) -> Solution: ...
