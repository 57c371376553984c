"""Restart sampling: jump up by fresh noise, come down by the flow again, and the errors made so far contract (Xu et al. 2023).

An interval (nodes, rounds, u_min, u_max) lives in u = sigma/alpha, EDM's sigma. Where a run down comes by u_min, it does `rounds` times:
up to u_max by the forward SDE, exact in law and with noise of its own, and back to u_min by the base solver on `nodes` Karras knots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import combine, linear
from ..coordinates import Sigma
from ..grid import Karras
from ..names import UserError
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..runge_kutta import runge_kutta_calls, runge_kutta_step
from ..schedule import Knot
from ..solver import Ancestral, Facts, OneStep
from ..weights import TABLEAUX

Interval = tuple[int, int, float, float]
_SAME = 1e-9  # u_min so near to a knot, relatively, is that knot
_JUMPS = 1 << 40  # keys of the jumps, apart from the small numbers that others use


@dataclass(frozen=True)
class Restart(Ancestral):
    """The base's step from t to s; on the way, at each u_min, `rounds` times up to u_max and down again on `nodes` Karras knots.

    intervals: (nodes, rounds, u_min, u_max), as published, but u_min is met exactly (a step across it is cut there), where the published
    code takes the nearest knot of the grid. base: a one-step method without noise; None is the published one, Heun in Sigma coordinates
    (EDM's). The base's calls, and rounds (nodes - 1) steps more for each interval that is passed. Round k of interval j draws
    `noise.fresh` under a key of (j, k), so there is no counter and no memory. The jumps are exact in law and what remains is the base's
    error; no order in the steps of the grid is promised, because the rounds have steps of their own. Xu et al. 2023, algorithm 1.
    """

    intervals: tuple[Interval, ...] = ((4, 2, 0.06, 0.3),)
    base: OneStep | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "intervals", tuple((int(n), int(k), float(a), float(b)) for n, k, a, b in self.intervals))
        except (TypeError, ValueError):
            raise UserError(
                f"intervals are tuples (nodes, rounds, u_min, u_max), e.g. ((4, 2, 0.06, 0.3),), not {self.intervals!r}."
            ) from None
        for nodes, rounds, low, high in self.intervals:
            if nodes < 2 or rounds < 0 or not 0 <= low < high:
                raise UserError(
                    f"the interval {(nodes, rounds, low, high)} needs at least 2 nodes, no negative number of rounds, and "
                    "0 <= u_min < u_max, in u = sigma/alpha."
                )
        if not (self.base is None or isinstance(self.base, OneStep)):
            raise UserError(
                f"Restart(base) needs a one-step method without noise and memory, e.g. Heun() or DDIM's Euler(), not {self.base!r}."
            )

    @property
    def order(self) -> int:
        return 2 if self.base is None else self.base.order

    @property
    def facts(self) -> Facts:
        evals = 2 if self.base is None else self.base.facts.evals
        return Facts("Xu et al. 2023 (Restart), algorithm 1", stochastic=True, clock="snr", evals=evals)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._calls(run) for t, s in pairwise(knots) if t.lam < s.lam for _, run in self._runs(t, s))

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        if s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        at = t
        for key, run in self._runs(t, s):
            if key is not None:
                scale, std = t.schedule.transition(at, run[0])
                x = combine(scale * linear(x) + std * linear(noise.fresh(key)))
            for at, to in pairwise(run):
                x = self._move(model, x, at, to)
            at = run[-1]
        return Step(x)

    def _runs(self, t: Knot, s: Knot) -> Iterator[tuple[int | None, tuple[Knot, ...]]]:
        """The runs down that make up the step from t to s, each with the key of the jump before it (None: there is none)."""
        at = t
        passed = [(i, j) for j, i in enumerate(self.intervals) if s.u * (1 - _SAME) <= i[2] < t.u * (1 - _SAME)]
        for (nodes, rounds, low, high), j in sorted(passed, key=lambda p: -p[0][2]):
            bottom = s if low <= s.u * (1 + _SAME) else t.at(u=low)
            if bottom.lam > at.lam:
                yield None, (at, bottom)
            down = Karras().knots(t.schedule, nodes - 1, start=t.at(u=high).time, end=bottom.time)
            yield from ((_JUMPS + (j << 20) + k, down) for k in range(rounds))
            at = bottom
        if at is not s:
            yield None, (at, s)

    def _move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return runge_kutta_step(model, x, t, s, TABLEAUX["heun"], Sigma()) if self.base is None else self.base.move(model, x, t, s)

    def _calls(self, run: Sequence[Knot]) -> int:
        return runge_kutta_calls(run, 2) if self.base is None else self.base.calls(run)
