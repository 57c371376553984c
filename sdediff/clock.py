"""Clocks on which steps of the probability flow are even: smooth functions r of the angle theta = atan(sigma/(alpha d)) in [0, pi/2].

| clock | r | dtheta/dr | even steps |
|---|---|---|---|
| angle | theta | 1 | few near the data |
| root | theta^(1/4) | 4 theta^(3/4) | nearly even in its logarithm near the data, few near the noise |
| roots | I_x(1/4, 1/4), x = 2 theta/pi, the incomplete beta function | pi/2 B(1/4, 1/4) (x - x^2)^(3/4) | dense at both ends |

All are finite at both ends. "root" needs least steps where x0 is known at t_max; a network that predicts eps knows it there only up to
1/alpha, and "roots" takes the short steps that this asks for. Numbers or float64 arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import beta, betainc, betaincinv

Number = Any
ANGLE_CLOCKS = ("angle", "root", "roots")
_HALF = 0.5 * math.pi
_SCALE = _HALF * float(beta(0.25, 0.25))


def clock_reading(clock: str, angle: Number) -> Number:
    """r of the angle."""
    if clock == "angle":
        return angle
    return angle**0.25 if clock == "root" else _plain(betainc(0.25, 0.25, np.minimum(angle / _HALF, 1.0)))


def angle_at(clock: str, r: Number) -> Number:
    """The angle at which the clock reads r."""
    if clock == "angle":
        return r
    return r**4 if clock == "root" else _plain(_HALF * betaincinv(0.25, 0.25, r))


def clock_slope(clock: str, angle: Number) -> Number:
    """dtheta/dr at the angle."""
    if clock == "angle":
        return 1.0
    x = angle / _HALF
    return 4 * angle**0.75 if clock == "root" else _SCALE * np.maximum(x - x**2, 0.0) ** 0.75


def _plain(value: Any) -> Number:
    return value if np.ndim(value) else float(value)
