"""One explicit Runge-Kutta step of the probability flow in any coordinates (y = x/scale, dy/dclock = velocity).

`k_i = velocity(y + h sum_j a_ij k_j, clock + c_i h)`, `y' = y + h sum_i b_i k_i`. A step that ends at sigma = 0 (the data itself) is an
Euler step, as in EDM: there is no noise left to predict at its end. An embedded pair also has `y' - lower = h sum_i (b_i - l_i) k_i`; its
step to sigma = 0 is the midpoint rule, and the error is its difference from the Euler step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .batch import select
from .combine import Linear, combine, linear
from .coordinates import Coordinates
from .names import UserError, choose
from .prediction import Model
from .schedule import Knot, Number
from .weights import TABLEAUX, Tableau


def tableau_named(tableau: str | Tableau, names: dict[str, Tableau] = TABLEAUX) -> Tableau:
    """The tableau of this name, or the given one. Raises `UserError` for anything else."""
    if isinstance(tableau, Tableau):
        return tableau
    if not isinstance(tableau, str):
        raise UserError(f"tableau must be a name or a Tableau, not {tableau!r}; names: {', '.join(names)}.")
    choose("tableau", tableau, names)
    return names[tableau]


def runge_kutta_step(model: Model, x: Tensor, t: Knot, s: Knot, tableau: Tableau, coordinates: Coordinates) -> Tensor:
    """The state at s from x at t; stage states are written in x, so that the first costs nothing.

    Raises `UserError` where the coordinates have no clock: sigma/alpha at alpha = 0.
    """
    if s.sigma == 0.0:
        tableau = TABLEAUX["euler"]
    start, h = _span(t, s, coordinates)
    scale, slopes = coordinates.scale(t), []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        if c == 0.0:
            at, y = t, x
        else:
            at = _stage(t, s, c, start, h, coordinates)
            y = combine(_sum(x, scale, slopes, row, h, coordinates.scale(at)))
        slopes.append(coordinates.velocity(model(y, at)))
    return combine(_sum(x, scale, slopes, tableau.b, h, coordinates.scale(s)))


def embedded_step(
    model: Model, x: Tensor, slope: Tensor, t: Knot, s: Knot, pair: Tableau, coordinates: Coordinates
) -> tuple[Tensor, Tensor | None, Linear, Any]:
    """(state at s, slope there, error, its order) from x and its slope at t, by a pair whose last stage is the slope at s.

    Of a step to sigma = 0 the slope at s is None or, of the samples that end there while others do not, another one.
    `UserError` as for `runge_kutta_step`.
    """
    assert pair.lower is not None
    start, h = _span(t, s, coordinates)
    a, b, lower, order = pair.a[1:], pair.b, pair.lower, pair.order
    nodes = [_stage(t, s, c, start, h, coordinates) for c in pair.c[1:]]
    ends = s.sigma == 0.0
    if np.any(ends):
        middle = coordinates.knot(t, start + 0.5 * h)
        if isinstance(ends, bool):
            a, b, lower, order, nodes = ((0.5,),), (0.0, 1.0), (1.0, 0.0), 2, [middle]
        else:  # the samples that end there take all their stages at the midpoint
            a = [[np.where(ends, 0.5 * (j == 0), w) for j, w in enumerate(row)] for row in a]
            b = [np.where(ends, 1.0 * (j == 1), w) for j, w in enumerate(b)]
            lower = [np.where(ends, 1.0 * (j == 0), w) for j, w in enumerate(lower)]
            order, nodes = np.where(ends, 2, order), [select(ends, middle, at) for at in nodes]
    y, scale, slopes = x, coordinates.scale(t), [linear(slope)]
    for row, at in zip(a, nodes, strict=True):
        y = combine(_sum(x, scale, slopes, row, h, coordinates.scale(at)))
        slopes.append(linear(coordinates.velocity(model(y, at)).tensor()))
    new_scale = coordinates.scale(s)
    if np.any(ends):
        y = combine(_sum(x, scale, slopes, b, h, new_scale))
    error = linear(x, 0.0)
    for high, low, k in zip(b, lower, slopes, strict=True):
        error = error + new_scale * h * (high - low) * k
    return y, None if ends is True else slopes[-1].terms[0][1], error, order


def _span(t: Knot, s: Knot, coordinates: Coordinates) -> tuple[Number, Number]:
    """(the clock at t, how far it is to s)."""
    start = coordinates.clock(t)
    h = coordinates.clock(s) - start
    if not np.isfinite(h).all():
        bad = np.argmin(np.isfinite(h))
        raise UserError(
            f"there is no Runge-Kutta step in {coordinates!r} from time {np.ravel(t.time)[bad]:g} to {np.ravel(s.time)[bad]:g}: their "
            f"clock is infinite at one of them. Start or end the grid short of it, or take Angle() or Time() coordinates."
        )
    return start, h


def _stage(t: Knot, s: Knot, c: float, start: Number, h: Number, coordinates: Coordinates) -> Knot:
    """The instant of a stage; a node of 1 may be off by rounding, and the end must not."""
    return s if abs(c - 1.0) < 1e-9 else coordinates.knot(t, start + c * h)


def _sum(x: Tensor, scale: Number, slopes: Sequence[Linear], weights: Sequence[Number], h: Number, new_scale: Number) -> Linear:
    """new_scale (x/scale + h sum_i w_i k_i)."""
    total = linear(x, new_scale / scale)
    for w, k in zip(weights, slopes, strict=False):
        if w.any() if isinstance(w, np.ndarray) else w:
            total = total + new_scale * h * w * k
    return total


def runge_kutta_calls(knots: Sequence[Knot], stages: int) -> int:
    """`stages` calls a step, one for a step that ends at sigma = 0."""
    return sum(1 if s.sigma == 0.0 else stages for s in knots[1:])
