"""Exactly invertible DDIM: a second state is kept, so that each half of a step can be undone without solving an equation.

EDICT couples two states: each takes its DDIM step with the noise read at the other. BDIA and O-BELM keep the state one step before:
`x_s` is linear in `x_r` (r before t before s) and in one answer of the network at t, so either end follows from the other. Their start,
for want of an `x_r`, is a DDIM step. Turned round, a run begins with a swap: the state kept is the next one, for no call. So the end of
a run over k_0 .. k_N, (x_N; x_{N-1}), is the beginning of its inverse over k_N .. k_0.
DDIM: `x_s = (alpha_s/alpha_t) x + alpha_s (u_s - u_t) eps`, u = sigma/alpha.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..combine import Linear, combine, linear
from ..invertible import Invertible, Kept, Symmetric
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..schedule import Knot
from ..solver import Facts


@dataclass(frozen=True)
class EDICT(Invertible):
    """x' = a x + b eps(y), y' = a y + b eps(x'), then x = p x' + (1 - p) y' and y = p y' + (1 - p) x; a, b of DDIM, eps asked at t.

    p = 1 leaves out the mixing, which shrinks what x and y differ by to p^2 of it in a step, and lets it grow on the way back.
    leapfrog: y moves first in every second step, as in the authors' code; a run without memory begins with x, its inverse as if the run
    had had an even number of steps. Order 1, two calls a step, also one of no length (it mixes). Memory: y, and whose turn it is.
    The pair is kept in float64, as the authors do: in float32 rounding errors grow to 1e-4 in 10 steps. So for states of another type the
    memory is y in float64 and what rounding left off x. Wallace, Gokul & Naik 2022, eq. 12 to 15.
    """

    p: float = 0.93
    leapfrog: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.p, int | float) and 0 < self.p <= 1):
            raise UserError(f"EDICT(p) mixes with a weight in (0, 1], not {self.p!r}.")

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return Facts("Wallace, Gokul & Naik 2022 (EDICT), eq. 12 to 15", ode=1, inverse="exact", evals=2)

    def calls(self, knots: Sequence[Knot]) -> int:
        return 2 * (len(knots) - 1)

    def init(self, model: Model, x: Tensor, t: Knot) -> Kept:
        return _narrow(x.double(), x.double(), x.dtype, 0).memory

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        pair, first = _wide(x, memory), self._first(memory.turn)
        for i in (first, 1 - first):
            pair[i] = combine(linear(pair[i], s.alpha / t.alpha) + _span(t, s) * model(pair[1 - i].to(x.dtype), t).eps)
        mixed = combine(linear(pair[0], self.p) + linear(pair[1], 1 - self.p))
        other = combine(linear(pair[1], self.p) + linear(mixed, 1 - self.p))
        return _narrow(mixed, other, x.dtype, memory.turn + 1)

    def back(self, model: Model, x: Tensor, s: Knot, t: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        pair, first = _wide(x, memory), self._first(memory.turn - 1)
        for i in (1, 0):
            pair[i] = combine((linear(pair[i]) + linear(pair[1 - i], self.p - 1)) / self.p)
        for i in (1 - first, first):
            pair[i] = combine((linear(pair[i]) - _span(t, s) * model(pair[1 - i].to(x.dtype), t).eps) * (t.alpha / s.alpha))
        return _narrow(pair[0], pair[1], x.dtype, memory.turn - 1)

    def _first(self, turn: int) -> int:
        """Which of the pair moves first."""
        return turn % 2 if self.leapfrog else 0


def _wide(x: Tensor, memory: Kept) -> list[Tensor]:
    """[x, y] in float64."""
    y, *rounded = memory.tensors
    return [x.double() + rounded[0] if rounded else x.double(), y.double()]


def _narrow(x: Tensor, y: Tensor, dtype: torch.dtype, turn: int) -> Step:
    """x in its own type; what that leaves off goes to memory."""
    new = x.to(dtype)
    return Step(new, Kept((y,) if dtype == torch.float64 else (y, (x - new).to(dtype)), (), turn))


def _span(t: Knot, s: Knot) -> float:
    """alpha_s (u_s - u_t), the weight of the noise in DDIM's step."""
    return s.sigma - t.sigma * (s.alpha / t.alpha)


class _TwoSteps(Invertible):
    """x_s from x_t, x_r and one answer at t; memory: x_r and r, nothing at the start. See the module."""

    @abstractmethod
    def _rule(self, model: Model, x: Tensor, t: Knot, s: Knot, before: Tensor, r: Knot, undo: bool) -> Linear:
        """x_s; undo: by the rule that undoes the step from s over t to r."""

    def calls(self, knots: Sequence[Knot]) -> int:
        count, before = 0, None
        for t, s in pairwise(knots):
            if t.time != s.time:
                count += before != s.time
                before = t.time
        return count

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        return self._step(model, x, t, s, memory, undo=False)

    def back(self, model: Model, x: Tensor, s: Knot, t: Knot, memory: Kept, noise: Noise | None = None) -> Step:
        return self._step(model, x, s, t, memory, undo=True)

    def _step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Kept, undo: bool) -> Step:
        if t.time == s.time:
            return Step(x, memory)
        kept = Kept((x,), (t,))
        if not memory.tensors:
            return Step(combine(_start(model, x, t, s)), kept)
        (before,), (r,) = memory.tensors, memory.knots
        if r.time == s.time:
            return Step(before, kept)
        return Step(combine(self._rule(model, x, t, s, before, r, undo)), kept)


def _start(model: Model, x: Tensor, t: Knot, s: Knot) -> Linear:
    """DDIM's step. From the data itself, where no network knows noise, the noise is asked at s, as published."""
    if t.sigma == 0.0:
        return linear(x, s.alpha / t.alpha) + s.sigma * model(x, s).eps
    return model(x, t).mixed(s.alpha, s.sigma)


@dataclass(frozen=True)
class BDIA(_TwoSteps):
    """x_s = gamma (x_r - D_r) + D_s, where D_r and D_s are DDIM's steps from (x, t) to r and to s. Undone: x_r = (x_s - D_s)/gamma + D_r.

    gamma = 1 is of order 2, less of order 1 with (1 - gamma)/(1 + gamma) of DDIM's error. What x_r and D_r differ by shrinks by gamma a
    step, and grows by 1/gamma a step under the inverse: 2^40 = 1e12 in 40 steps of gamma = 0.5, which the way back takes away again, but
    which no latent survives that is not kept to the last digit. gamma = 1 has no such growth.
    One call a step, none for the swap. Memory: the state one step before. Zhang, Lewis & Kleijn 2023, eq. 14.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, int | float) and 0 < self.gamma <= 1):
            raise UserError(f"BDIA(gamma) needs a number in (0, 1], not {self.gamma!r}; gamma = 0 is DDIM(), which has no exact inverse.")

    @property
    def order(self) -> int:
        return 2 if self.gamma == 1 else 1

    @property
    def facts(self) -> Facts:
        return Facts("Zhang, Lewis & Kleijn 2023 (BDIA), eq. 14", ode=self.order, inverse="exact")

    def _rule(self, model: Model, x: Tensor, t: Knot, s: Knot, before: Tensor, r: Knot, undo: bool) -> Linear:
        p, gamma = model(x, t), 1 / self.gamma if undo else self.gamma
        return gamma * (linear(before) - p.mixed(r.alpha, r.sigma)) + p.mixed(s.alpha, s.sigma)


@dataclass(frozen=True)
class OBELM(_TwoSteps, Symmetric):
    """y_s = q^2 y_r + (1 - q^2) y + h (1 + q) eps in y = x/alpha, h = u_s - u_t, q = h/(u_t - u_r): the one such rule of order 2.

    With r and s changed over, q is 1/q and the rule is the same: it is its own inverse. A deviation from the smooth solution is
    multiplied by -q^2 in a step: it dies out where steps in u shrink, and grows on the way back, by ((u_0 - u_1)/(u_{N-1} - u_N))^2 in all.
    One call a step, none for the swap. Memory: the state one step before. Wang, Yin et al. 2024 (BELM), eq. 18.
    """

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("Wang, Yin et al. 2024 (BELM), eq. 18", ode=2, inverse="exact")

    def _rule(self, model: Model, x: Tensor, t: Knot, s: Knot, before: Tensor, r: Knot, undo: bool) -> Linear:
        if 0.0 in (r.alpha, t.alpha, s.alpha):
            raise UserError(
                f"{self!r} steps in sigma/alpha, which is infinite at one of the times {r.time:g}, {t.time:g}, {s.time:g}: start or end "
                f"the grid short of it, or take BDIA() or Reversible()."
            )
        h = s.u - t.u
        q = h / (t.u - r.u)
        kept = q**2 * (s.alpha / r.alpha) * linear(before) + (1 - q**2) * (s.alpha / t.alpha) * linear(x)
        return kept + s.alpha * h * (1 + q) * model(x, t).eps
