"""Leapfrog and Milne's rule: multistep methods that add to the oldest state what the states between say, undone to the last bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..additive import Additive
from ..combine import combine, linear
from ..invertible import Kept
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot


class Window(Additive):
    """Rules on the last `width` states, y_new = y_oldest + sum w_j f_j over the velocities of the others.

    Kept.tensors: `width` neighbouring states on the way and the velocities of all but the one made last; Kept.knots: their instants;
    Kept.turn: which of them is the state. A step to a neighbour costs nothing (so begins a run that goes back); one beyond the end is the
    rule; before there are enough of them, and after a turn of the grid, it is a Runge-Kutta step from the state alone.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """How many states."""

    @property
    @abstractmethod
    def _start(self) -> tuple[tuple[float, ...], ...]:
        """The rows of a Runge-Kutta tableau for a start, its weights last."""

    @abstractmethod
    def _next(self, f: Sequence[Tensor], r: Sequence[float]) -> Tensor:
        """y_new - y_oldest from the velocities between, and the clock at all states, the new one last."""

    @property
    def _evals(self) -> int:
        return 1

    def calls(self, knots: Sequence[Knot]) -> int:
        count, known, at = 0, tuple(knots[:1]), 0
        for s in knots[1:]:
            kind, known, at = _arranged(known, at, s, self.width)
            count += {"start": len(self._start), "rule": 1}.get(kind, 0)
            if kind in ("start", "rule", "back"):
                known = (*known[kind != "start" :], s)
                at = len(known) - 1
        return count

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        if not memory.knots:
            memory = Kept((self._from(x, t),), (t,))
        kind, known, at = _arranged(memory.knots, memory.turn, s, self.width)
        n = len(memory.knots)
        states, f = memory.tensors[:n], memory.tensors[n:]
        if kind == "known":
            return Step(self._to(states[at], s, x), memory._replace(turn=at))
        if kind == "start":
            states, f = (states, f) if len(known) == n else (states[memory.turn : memory.turn + 1], ())
            first = self._velocity(model, states[-1], t, x)
            new, f, known = states[-1] + self._write(self._begun(model, states[-1], first, t, s, x)), (*f, first), (*known, s)
            states = (*states, new)
        else:
            if kind == "back":
                states, f = states[::-1], (f[0], *f[::-1])
            else:
                f = (*f, self._velocity(model, states[-1], t, x))
            new = states[0] + self._write(self._next(f[1:], [self.reading(k) for k in (*known, s)]))
            states, f, known = (*states[1:], new), f[1:], (*known[1:], s)
        return Step(self._to(new, s, x), Kept((*states, *f), known, len(states) - 1))

    def _begun(self, model: Model, y: Tensor, first: Tensor, t: Knot, s: Knot, like: Tensor) -> Tensor:
        """The increment of a Runge-Kutta step of y from t, where the velocity is `first`, to s."""
        here, f = self.reading(t), [first]
        h = self.reading(s) - here
        for row in self._start[:-1]:
            r = here + sum(row) * h
            at = s if sum(row) == 1.0 else self._at(t, r)
            stage = y + self._write(combine([(h * a, k) for a, k in zip(row, f, strict=True)]))
            f.append(self._velocity(model, stage, at, like))
        return combine([(h * b, k) for b, k in zip(self._start[-1], f, strict=True)])


def _arranged(known: tuple[Knot, ...], at: int, s: Knot, width: int) -> tuple[str, tuple[Knot, ...], int]:
    """(kind, instants, place) of the step from known[at] to s: "known", "rule", "back" (the rule at the other end), "start"."""
    for near in (at, at - 1, at + 1):
        if 0 <= near < len(known) and known[near].time == s.time:
            return "known", known, near
    last, full = len(known) - 1, len(known) == width
    if at == last and (last == 0 or (s.lam - known[at].lam) * (known[at].lam - known[at - 1].lam) > 0):
        return ("rule" if full else "start"), known, at
    if at == 0 and full and (s.lam - known[0].lam) * (known[0].lam - known[1].lam) > 0:
        return "back", known[::-1], last
    return "start", known[at : at + 1], 0


@dataclass(frozen=True)
class Leapfrog(Window):
    """y[n+1] = y[n-1] + (r[n+1] - r[n-1]) f(y[n]): two steps at once by the midpoint rule. Starts with one explicit midpoint step.

    Order 2 on grids that are smooth on the clock, one call a step. Its second solution alternates from step to step and grows where
    the flow contracts. On irregular knots take `AsynchronousLeapfrog`. Hairer, Lubich & Wanner, VIII.5; bits: Levesque & Verlet 1993.
    """

    data_std: float = 1.0
    clock: str = "roots"
    bits: bool = True

    @property
    def order(self) -> int:
        return 2

    @property
    def width(self) -> int:
        return 2

    @property
    def _reference(self) -> str:
        return "Hairer, Lubich & Wanner, XV.3; Levesque & Verlet 1993 (bits)"

    @property
    def _start(self) -> tuple[tuple[float, ...], ...]:
        return ((0.5,), (0.0, 1.0))

    def _next(self, f: Sequence[Tensor], r: Sequence[float]) -> Tensor:
        return combine(linear(f[0], r[2] - r[0]))


@dataclass(frozen=True)
class Milne(Window):
    """y[n+4] = y[n] + h (8 f[n+3] - 4 f[n+2] + 8 f[n+1])/3: four steps at once by Milne's open rule, on any knots by its weights there.

    Order 4 on grids that are smooth on the clock, one call a step; starts with three steps of the classical Runge-Kutta method. Its three
    other solutions grow where the flow contracts: accurate at many steps, unstable at few. Milne 1926; Hairer, Norsett & Wanner III.1.
    """

    data_std: float = 1.0
    clock: str = "roots"
    bits: bool = True

    @property
    def order(self) -> int:
        return 4

    @property
    def width(self) -> int:
        return 4

    @property
    def _reference(self) -> str:
        return "Milne 1926; Hairer, Norsett & Wanner I, III.1"

    @property
    def _start(self) -> tuple[tuple[float, ...], ...]:
        return ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

    def _next(self, f: Sequence[Tensor], r: Sequence[float]) -> Tensor:
        a, p, q, b = (r[i] - r[2] for i in (0, 1, 3, 4))  # around the middle; the other way round they are the same floats

        def integral(c: float, d: float) -> float:
            """Of (r - c)(r - d) from a to b."""
            return (b**3 - a**3) / 3 - (c + d) * (b**2 - a**2) / 2 + c * d * (b - a)

        outer = f[0] * (integral(0.0, q) / (p * (p - q))) + f[2] * (integral(p, 0.0) / (q * (q - p)))  # two products: a sum that commutes
        return outer + f[1] * (integral(p, q) / (p * q))
