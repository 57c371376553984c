"""One explicit Runge-Kutta step of the probability flow in any coordinates (y = x/scale, dy/dclock = velocity).

`k_i = velocity(y + h sum_j a_ij k_j, clock + c_i h)`, `y' = y + h sum_i b_i k_i`. A step that ends at sigma = 0 (the data itself) is an
Euler step, as in EDM: there is no noise left to predict at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .combine import combine, linear
from .coordinates import Coordinates
from .names import UserError, choose
from .prediction import Model
from .schedule import Knot
from .weights import TABLEAUX, Tableau


def tableau_named(tableau: str | Tableau) -> Tableau:
    """The tableau of this name, or the given one. Raises `UserError` for anything else."""
    if isinstance(tableau, Tableau):
        return tableau
    if not isinstance(tableau, str):
        raise UserError(f"tableau must be a name or a Tableau, not {tableau!r}; names: {', '.join(TABLEAUX)}.")
    choose("tableau", tableau, TABLEAUX)
    return TABLEAUX[tableau]


def runge_kutta_step(model: Model, x: Tensor, t: Knot, s: Knot, tableau: Tableau, coordinates: Coordinates) -> Tensor:
    """The state at s from x at t; stage states are written in x, so that the first costs nothing.

    Raises `UserError` where the coordinates have no clock: sigma/alpha at alpha = 0.
    """
    if s.sigma == 0.0:
        tableau = TABLEAUX["euler"]
    start, scale = coordinates.clock(t), coordinates.scale(t)
    h = coordinates.clock(s) - start
    if not np.isfinite(h).all():
        raise UserError(
            f"there is no Runge-Kutta step in {coordinates!r} from time {t.time:g} to {s.time:g}: their clock is infinite at one of them. "
            f"Start or end the grid short of it, or take Angle() or Time() coordinates."
        )
    slopes = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        if c == 0.0:
            at, y = t, x
        else:
            at = s if c == 1.0 else coordinates.knot(t, start + c * h)
            y = combine(_sum(x, scale, slopes, row, h, coordinates.scale(at)))
        slopes.append(coordinates.velocity(model(y, at)))
    return combine(_sum(x, scale, slopes, tableau.b, h, coordinates.scale(s)))


def _sum(x, scale, slopes, weights, h, new_scale):
    """new_scale (x/scale + h sum_i w_i k_i)."""
    total = linear(x, new_scale / scale)
    for w, k in zip(weights, slopes, strict=False):
        if w:
            total = total + new_scale * h * w * k
    return total


def runge_kutta_calls(knots: Sequence[Knot], stages: int) -> int:
    """`stages` calls a step, one for a step that ends at sigma = 0."""
    return sum(1 if s.sigma == 0.0 else stages for s in knots[1:])
