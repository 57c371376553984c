"""Explicit one-step methods made exactly invertible by a second state z (McCallum & Foster), and Rex, which is that in Lawson's variables.

In coordinates y = x/scale of the flow, with M_h the method and Psi_h(z) = M_h(z) - z its increment,
`y' = l y + (1 - l) z + Psi_h(z)`, `z' = z - Psi_{-h}(y')`. Undone: `z = z' + Psi_{-h}(y')`, `y = (y' - Psi_h(z))/l + (1 - 1/l) z`.
With M in x and c = scale_s/scale_t this is `x' = l c (x - z) + M(z)`, `z' = c z + x' - c M(x')`: of the coordinates only c is left.
What y and z differ by shrinks by l a step, and grows by 1/l on the way back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..combine import Linear, combine, linear
from ..coordinates import Angle, Coordinates, Sigma, checked
from ..invertible import Invertible, Kept
from ..names import UserError, choose
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Step
from ..runge_kutta import runge_kutta_calls, runge_kutta_step, tableau_named
from ..schedule import Knot, Number
from ..solver import Facts, OneStep
from ..weights import Tableau


class _Coupled(Invertible):
    """The coupling of a move from knot to knot with its reverse. Memory: z, a second state like x, at the start x itself."""

    couple: float

    @abstractmethod
    def _scale(self, t: Knot, s: Knot) -> Coordinates:
        """The coordinates in which a step between t and s is coupled."""

    @abstractmethod
    def _move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        """M: the state at s, from x at t."""

    @abstractmethod
    def _move_calls(self, t: Knot, s: Knot) -> int:
        """The network calls of `_move`."""

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._move_calls(t, s) + self._move_calls(s, t) for t, s in pairwise(knots) if t.time != s.time)

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        return Kept((x,))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        if t.time == s.time:
            return Step(x, memory)
        (z,), c = memory.tensors, self._ratio(t, s)
        new = combine(self.couple * c * (linear(x) - z) + self._move(model, z, t, s))
        z = combine(c * linear(z) + new - c * linear(self._move(model, new, s, t)))
        return Step(new, Kept((self._finite(z, t, s),)))

    def back(self, model: Model, x: Tensor, s: Knot, t: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        if t.time == s.time:
            return Step(x, memory)
        (z,), c = memory.tensors, self._ratio(t, s)
        z = self._finite(combine((linear(z) - x) / c + self._move(model, x, s, t)), t, s)
        old = combine((linear(x) - self._move(model, z, t, s)) / (self.couple * c) + z)
        return Step(old, Kept((z,)))

    def _finite(self, z: Tensor, t: Knot, s: Knot) -> Tensor:
        """z, or `UserError`: at the ends of a schedule a slope may be infinite that the state itself does not need."""
        if 0.0 in (t.sigma, s.sigma, t.alpha, s.alpha) and not bool(torch.isfinite(z).all()):
            raise UserError(
                f"{self!r} has no way back from time {s.time:g} to {t.time:g}, where a slope is infinite: start or end the grid "
                f"short of it."
            )
        return z

    def _ratio(self, t: Knot, s: Knot) -> Number:
        coordinates = self._scale(t, s)
        old, new = coordinates.scale(t), coordinates.scale(s)
        if old == 0.0 or new == 0.0:
            raise UserError(
                f"{self!r} divides by alpha or sigma, which is 0 at time {(t if old == 0.0 else s).time:g}: start or end the grid short "
                f"of it, or couple in Angle() coordinates."
            )
        return new / old


def _weight(couple: object) -> None:
    if not (isinstance(couple, int | float) and 0 < couple <= 1):
        raise UserError(f"couple is the weight of a state in its own next one, in (0, 1], not {couple!r}; 0.999 is usual.")


@dataclass(frozen=True)
class Reversible(_Coupled):
    """x' = l c (x - z) + M(z), z' = c z + x' - c M(x'), l = `couple`, c the ratio of the scales of `coordinates` at s and t.

    base: M, the name of a Runge-Kutta tableau ("euler", "midpoint", "rk4", ...) or a `Tableau`, taken in `coordinates`, or any explicit
    one-step method that draws no noise, such as `DDIM`'s `Euler()`, `DPMSolverPP(order=2)`, `ExponentialRungeKutta("ho4")`. It keeps its
    order, at twice its calls; where l is near 1 that shows from some 1/(1 - l) steps on, and before them the order seen is a higher one
    (euler 1.2, odd tableaux) or lies around. Angle (unit variance) and Time coordinates couple alike where alpha^2 + sigma^2 = 1; in
    Sigma coordinates a float32 way up and down comes back to 1e-3 only, whatever the base is taken in.
    Memory: the second state. McCallum & Foster 2024, section 3.
    """

    base: str | Tableau | OneStep = "midpoint"
    couple: float = 0.999
    coordinates: Coordinates = Angle()

    def __post_init__(self) -> None:
        checked(self.coordinates)
        _weight(self.couple)
        if not isinstance(self.base, OneStep):
            if not isinstance(self.base, str | Tableau):
                raise UserError(
                    f"Reversible(base) needs an explicit method without memory and noise, or a tableau's name, not {self.base!r}."
                )
            tableau_named(self.base)

    @property
    def order(self) -> int:
        return self.base.order if isinstance(self.base, OneStep) else tableau_named(self.base).order

    @property
    def facts(self) -> Facts:
        ode, evals = (self.base.facts.ode, self.base.facts.evals) if isinstance(self.base, OneStep) else _orders(self.base)
        return Facts("McCallum & Foster 2024 (Efficient, accurate and stable gradients for neural ODEs), sec. 3",
                     ode=ode, inverse="exact", evals=2 * evals)  # fmt: skip

    def _scale(self, t: Knot, s: Knot) -> Coordinates:
        return self.coordinates

    def _move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        if isinstance(self.base, OneStep):
            return self.base.move(model, x, t, s)
        return runge_kutta_step(model, x, t, s, tableau_named(self.base), self.coordinates)

    def _move_calls(self, t: Knot, s: Knot) -> int:
        if isinstance(self.base, OneStep):
            return self.base.calls((t, s))
        return runge_kutta_calls((t, s), tableau_named(self.base).stages)


@dataclass(frozen=True)
class _Signal(Coordinates):
    """y = x/sigma in alpha/sigma, dy/dclock = x0: infinite at sigma = 0."""

    def scale(self, t: Knot) -> Number:
        return t.sigma

    def clock(self, t: Knot) -> Number:
        return np.exp(t.lam)

    def velocity(self, p: Prediction) -> Linear:
        return p.x0

    def knot(self, t: Knot, clock: Number) -> Knot:
        return t.schedule.knot_at("lam", float(np.log(clock)))


@dataclass(frozen=True)
class Rex(_Coupled):
    """`Reversible` after Lawson's change of variable: Runge-Kutta for y = x/sigma in alpha/sigma, where its slope is x0 (predicts="x0"),
    or for y = x/alpha in sigma/alpha, where it is eps; that one is `Reversible(tableau, couple, Sigma())`.

    A tableau of order 1 is DDIM in either. Its tableau's order, twice its stages calls a step. A step that touches the end where its
    variable is infinite (x0: sigma = 0, eps: alpha = 0) is DDIM's, two calls, coupled in Angle coordinates. In float32 a way up and
    down again comes back to 1e-6 for x0, to 1e-3 for eps. Memory: the second state. Blasingame & Liu 2025 (Rex), section 3.
    """

    tableau: str | Tableau = "midpoint"
    predicts: str = "x0"
    couple: float = 0.999

    def __post_init__(self) -> None:
        tableau_named(self.tableau)
        choose("predicts", self.predicts, ("x0", "eps"))
        _weight(self.couple)

    @property
    def order(self) -> int:
        return tableau_named(self.tableau).order

    @property
    def facts(self) -> Facts:
        ode, evals = _orders(self.tableau)
        return Facts("Blasingame & Liu 2025 (Rex), sec. 3", ode=ode, inverse="exact", evals=2 * evals)

    def _infinite(self, t: Knot, s: Knot) -> bool:
        return 0.0 in ((t.sigma, s.sigma) if self.predicts == "x0" else (t.alpha, s.alpha))

    def _scale(self, t: Knot, s: Knot) -> Coordinates:
        return Angle() if self._infinite(t, s) else self._variable

    @property
    def _variable(self) -> Coordinates:
        return _Signal() if self.predicts == "x0" else Sigma()

    def _move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        if self._infinite(t, s):
            return combine(model(x, t).mixed(s.alpha, s.sigma))
        return runge_kutta_step(model, x, t, s, tableau_named(self.tableau), self._variable)

    def _move_calls(self, t: Knot, s: Knot) -> int:
        return 1 if self._infinite(t, s) else runge_kutta_calls((t, s), tableau_named(self.tableau).stages)


def _orders(tableau: str | Tableau) -> tuple[int, int]:
    """(order, stages)."""
    return tableau_named(tableau).order, tableau_named(tableau).stages
