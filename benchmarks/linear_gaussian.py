"""Exact mean and covariance of a solver on Gaussian data, without Monte-Carlo noise and for solvers with memory, too.

With a Gaussian oracle a solver whose coefficients do not depend on the state is affine in its start and in every noise that it draws:
`x = b + A x_start + sum_n C_n z_n`. One batch finds all of it: a row that starts at zero, rows that start at unit vectors, and for each
draw rows that start at zero and get unit impulses in that draw only. Then mean = b + A m and covariance = A S A^T + sum_n C_n C_n^T, at
every knot of one march. A last row with a random start and random draws must be their superposition, or the solver is not linear.
A diagonal Gaussian is elementwise: one row of ones does for the unit vectors of all components at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff import Fixed, Gaussian, Knot, Solver, march
from sdediff.control import Controller

TOLERANCE = 1e-10


class NotLinear(Exception):
    """The solver's coefficients depend on the state: its moments do not follow from the moments of its start."""


@dataclass
class Impulses:
    """Noise of which draw n is a unit impulse (times the standard deviation) in rows `1 + (n + 1) r ...` only, r = len(units).

    A draw is known by its arguments, as with `White`, and numbered as it is first asked for. The last row is the probe: it gets normal
    draws. A batch of one is the probe alone.
    """

    like: Tensor
    units: Tensor
    names: dict[tuple, int] = field(default_factory=dict)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return self._draw(("increment", a, b, key), abs(b - a) ** 0.5)

    def fresh(self, key: int) -> Tensor:
        return self._draw(("fresh", key), 1.0)

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        """(W, H): the increment and its space-time integral, H ~ N(0, |b - a|/12), independent."""
        return self(a, b, key), self._draw(("area", a, b, key), (abs(b - a) / 12) ** 0.5)

    def rows(self, index: Tensor) -> Impulses:
        raise NotLinear("it steps samples one by one")

    def _draw(self, name: tuple, std: float) -> Tensor:
        n, r, z = self.names.setdefault(name, len(self.names)), len(self.units), torch.zeros_like(self.like)
        z[-1] = std * probe(n + 1, z.shape[1])
        if len(z) > 1:
            z[1 + (n + 1) * r : 1 + (n + 2) * r] = std * self.units
        return z


@cache
def probe(n: int, d: int) -> Tensor:
    """The probe row's start (n = 0) and its draw number n - 1."""
    return torch.randn(d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


class Response(NamedTuple):
    """The affine map from the start and the draws to the state at a knot.

    zero (d,): b; start (r, d): the images of the units, A^T (one row, its diagonal, for diagonal Gaussians); draws (n r, d): the same of C.
    """

    knot: Knot
    zero: Tensor
    start: Tensor
    draws: Tensor


def alone(solver: Solver, model: Gaussian, knots: Sequence[Knot] | Controller) -> tuple[Tensor, dict[tuple, int]]:
    """The probe's end in a batch of its own, and the draws by their arguments: ("increment", a, b, key), ("area", ...), ("fresh", key)."""
    noise = Impulses(probe(0, len(model.mean))[None], _units(model))
    *_, last = march(solver, model, noise.like, knots, noise=noise)
    return last.x[0], noise.names


def responses(solver: Solver, model: Gaussian, knots: Sequence[Knot] | Controller) -> Iterator[Response]:
    """The affine map at every knot of one march. Raises `NotLinear` at its end if superposition does not hold to 1e-10."""
    units, (lonely, names) = _units(model), alone(solver, model, knots)
    r, d = units.shape
    x = torch.cat([torch.zeros(1, d), units, torch.zeros(len(names) * r, d), probe(0, d)[None]]).double()
    noise = Impulses(x, units, dict(names))
    state = x
    for frame in march(solver, model, x, knots, noise=noise):
        state = frame.x
        b = state[0]
        yield Response(frame.t, b, state[1 : 1 + r] - b, state[1 + r : -1] - b)
    weights = torch.stack([probe(n, d) for n in range(len(names) + 1)])  # (1 + draws, d)
    parts = (state[1:-1] - state[0]) * (weights if r == 1 else weights.reshape(-1, 1))
    scale = 1 + state[0].abs() + parts.abs().sum(0)
    for what, sum_ in ("misses the superposition", state[0] + parts.sum(0)), ("depends on its batch", lonely):
        off = (state[-1] - sum_).abs()
        if not bool((off <= TOLERANCE * scale).all()):
            raise NotLinear(f"a random start {what}, by {float(off.max()):.1e}")


def moments(
    solver: Solver, model: Gaussian, knots: Sequence[Knot] | Controller, start: tuple[Tensor, Tensor] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(mean (d,), covariance (d, d)) of the solver's state at every knot.

    start: those at the first knot, the exact marginal by default; diagonal if the model is.
    """
    knots = knots if isinstance(knots, Controller) else Fixed(knots)
    if model.axes is None:
        found = marginals(solver, model, knots, None if start is None else (start[0], start[1].diagonal()))
        return [(mean, torch.diag(variances)) for mean, variances in found]
    result = []
    for knot, zero, unit, drawn in responses(solver, model, knots):
        mean, cov = start = model.moments(knot) if start is None else start
        result.append((zero + mean @ unit, unit.T @ cov @ unit + drawn.T @ drawn))
    return result


def marginals(
    solver: Solver, model: Gaussian, knots: Sequence[Knot] | Controller, start: tuple[Tensor, Tensor] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(mean (d,), variances (d,)) at every knot, for a diagonal Gaussian; `start` as in `moments`."""
    assert model.axes is None, "give a Gaussian with a number or a diagonal as its covariance"
    result = []
    for knot, zero, (unit,), drawn in responses(solver, model, knots):
        if start is None:
            mean, cov = model.moments(knot)
            start = mean, cov.diagonal()
        result.append((zero + unit * start[0], unit**2 * start[1] + (drawn**2).sum(0)))
    return result


def overlapping(names: dict[tuple, int]) -> list[tuple]:
    """Increments that overlap another one of the same key: independent under `White`, not on a Brownian path."""
    found = []
    for key in {name[3] for name in names if name[0] == "increment"}:
        spans = sorted(tuple(sorted(name[1:3])) for name in names if name[0] == "increment" and name[3] == key)
        found += [(key, *s) for t, s in pairwise(spans) if s[0] < t[1]]
    return found


def _units(model: Gaussian) -> Tensor:
    d = len(model.mean)
    return torch.ones(1, d, dtype=torch.float64) if model.axes is None else torch.eye(d, dtype=torch.float64)
