"""Pure float64 numbers that define methods: Butcher tableaux, and the weights of exponential Adams steps.

A tableau (a, b, c) of s stages: `k_i = f(y + h sum_j a_ij k_j, t + c_i h)`, `y' = y + h sum_i b_i k_i` (Hairer, Norsett & Wanner I, II.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from .names import UserError
from .schedule import Knot


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: strictly lower triangular `a` (rows of growing length), weights `b`, nodes `c`, its order.

    lower: weights of a solution of one order less through the same stages, which makes it an embedded pair: the difference of the two
    estimates the error of the lower one, of the power `order` of the step size.
    `UserError` unless it is explicit and consistent (rows of a sum to c, b and lower sum to 1).
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    lower: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        explicit = len(self.a) == len(self.b) and all(len(row) == i for i, row in enumerate(self.a))
        if not explicit or abs(sum(self.b) - 1) > 1e-12:
            raise UserError("an explicit tableau has rows a[i] of length i, as many as weights b, and weights that sum to 1.")
        if self.lower is not None and (len(self.lower) != len(self.b) or abs(sum(self.lower) - 1) > 1e-12):
            raise UserError("the lower weights of an embedded pair are as many as the weights b, and sum to 1, too.")

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes: row sums of a."""
        return tuple(sum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.b)

    @property
    def last_is_first(self) -> bool:
        """Whether the last stage is the slope at the new state (FSAL), with which the next step begins."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0.0

    def with_last_first(self) -> Tableau:
        """The same method with one more stage, the slope at the new state, unless it has that already."""
        if self.last_is_first:
            return self
        lower = None if self.lower is None else (*self.lower, 0.0)
        return Tableau((*self.a, self.b), (*self.b, 0.0), self.order, lower)


TABLEAUX = {
    "euler": Tableau(a=((),), b=(1.0,), order=1),
    "midpoint": Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), order=2),
    "heun": Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2),
    "ralston": Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2),
    "heun3": Tableau(a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), order=3),
    "rk3": Tableau(a=((), (1 / 2,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), order=3),
    "rk4": Tableau(a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4),
    "rk4_38": Tableau(a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4),
}

_BOSH3 = (2 / 9, 1 / 3, 4 / 9)
_DOPRI5 = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_TSIT5 = (
    0.09646076681806522951816731316512876333712,
    0.01,
    0.4798896504144995747752495322905965199130,
    1.379008574103741893192274821856872770756,
    -3.290069515436080679901047585711363850116,
    2.324710524099773982415355918398765796109,
)
_TSIT5_DIFFERENCE = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)
PAIRS = {
    "heun_euler": Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2, lower=(1.0, 0.0)),
    "bosh3": Tableau(
        a=((), (1 / 2,), (0.0, 3 / 4), _BOSH3),
        b=(*_BOSH3, 0.0),
        order=3,
        lower=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    ),
    "dopri5": Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            _DOPRI5,
        ),
        b=(*_DOPRI5, 0.0),
        order=5,
        lower=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
    "tsit5": Tableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356988544426874250230774675121, 0.3354806554923569885444268742502307746751),
            (
                2.897153057105493432130432594192938764925,
                -6.359448489975074843148159912383825625953,
                4.362295432869581411017727318190886861028,
            ),
            (
                5.325864828439256604428877920840511317836,
                -11.74888356406282787774717033978577296189,
                7.495539342889836208304604784564358155659,
                -0.0924950663617552492565020793320719161135,
            ),
            (
                5.861455442946420028659251486982647890394,
                -12.92096931784710929170611868178335939542,
                8.159367898576158643180400794539253485182,
                -0.07158497328140099722453054252582973869127,
                -0.02826905039406838290900305721271224146718,
            ),
            _TSIT5,
        ),
        b=(*_TSIT5, 0.0),
        order=5,
        lower=tuple(b + d for b, d in zip((*_TSIT5, 0.0), _TSIT5_DIFFERENCE, strict=True)),
    ),
}
"""Embedded pairs: Heun with Euler 2(1); Bogacki & Shampine 1989, 3(2); Dormand & Prince 1980, 5(4); Tsitouras 2011, 5(4)."""


# --- exponential Adams weights ------------------------------------------------------------------------------------
#
# With l = lam as the variable, h = lam_s - lam_t, theta = atan(sigma/(alpha d)), n = sqrt(alpha^2 d^2 + sigma^2), the exact solution of
# the SDE of noise level tau (0: probability flow) from t to s is, for each reading m of the network,
#   x0:  x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + (1+tau^2) alpha_s INT e^(-(1+tau^2)(lam_s - l)) x0 dl
#                                                                           + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
#   eps: x_s = (alpha_s/alpha_t) x_t - (1+tau^2) alpha_s INT e^(-l) eps dl  + tau alpha_s sqrt(u_t^2 - u_s^2) z
#   v:   x_s = (n_s/n_t) c_t x_t + (1+tau^2) n_s INT c v dtheta             + n_s sqrt(1 - c_t^2) z,   c = (cos theta/cos theta_s)^(tau^2)
# and for flow = eps - x0 the same as for v with n = alpha + sigma, w = sigma/n for theta, 1 - w for cos theta (noise: `_linear_part`).
# An Adams step puts the polynomial through the known values of m in its place. In the scaled variable r (0 at t, 1 at s) of the axis in
# which m is interpolated, its weights are sums of the moments INT r^k K(r) dr of the kernel K.


class Update(NamedTuple):
    """`x_s = keep x_t + sum_j weights[j] m_j + std z` with z ~ N(0, I)."""

    keep: float
    weights: tuple[float, ...]
    std: float = 0.0


AXES = ("lam", "u", "angle", "fraction", "t")
READINGS = ("x0", "eps", "v", "flow")
_LAM_CUT = 40.0  # kernels fall off as e^-|l|: beyond this nothing is left in float64


def exponential_moments(z: float, n: int) -> np.ndarray:
    """`INT_0^1 r^k e^(-z (1-r)) dr` for k = 0 .. n-1, to rounding for every real z (z = 0: 1/(k+1))."""
    k = np.arange(n)
    if z > 30.0:  # m_0 = (1 - e^-z)/z, m_k = (1 - k m_(k-1))/z: stable where z exceeds k
        found = [-math.expm1(-z) / z]
        for i in range(1, n):
            found.append((1.0 - i * found[-1]) / z)
        return np.array(found)
    if z >= 0.0:  # e^-z sum_j z^j / (j! (j+k+1)): all terms positive
        j = np.arange(int(40 + 3 * z))
        terms = np.cumprod(np.concatenate([[math.exp(-z)], z / j[1:]]))
        return (terms / (j + k[:, None] + 1)).sum(1)
    found = [1.0 / (k + 1)]  # sum_j |z|^j k!/(k+j+1)!: all terms positive
    for i in range(int(40 + 3 * -z)):
        found.append(found[-1] * -z / (k + i + 2))
    return np.sum(found, axis=0)


def power_moments(q: float, p: float, n: int) -> np.ndarray:
    """`INT_0^1 r^k (1 - q r)^(-p) dr = 2F1(p, k+1; k+2; q)/(k+1)` for k = 0 .. n-1 and q < 1."""
    k = np.arange(n)
    return special.hyp2f1(p, k + 1, k + 2, q) / (k + 1)


def lagrange(nodes: Sequence[float]) -> np.ndarray:
    """Row j holds the coefficients (of r^0, r^1, ...) of the polynomial that is 1 at nodes[j] and 0 at the others."""
    rows = []
    for j, node in enumerate(nodes):
        row = np.array([1.0])
        for i, other in enumerate(nodes):
            if i != j:
                row = np.convolve(row, [-other, 1.0]) / (node - other)
        rows.append(row)
    return np.array(rows)


def exponential_adams(
    predicts: str, axis: str, t: Knot, s: Knot, nodes: Sequence[Knot], *, tau: float = 0.0, data_std: float = 1.0
) -> Update:
    """The exponential Adams step from t to s through values of `predicts` ("x0", "eps", "v", "flow") at `nodes`, interpolated in `axis`.

    axis: "lam", "u" (= sigma/alpha), "angle" (= atan(u/data_std)), "fraction" (= sigma/(alpha + sigma)) or "t"; nodes: any distinct
    instants, s among them for a corrector; tau: noise level; data_std: of the angle and of v. Closed forms for x0 and eps in lam and in u,
    v in the angle and flow in the fraction (tau = 0); the other pairs have no elementary antiderivative and are integrated by composite
    Gauss-Legendre to rounding (`quadrature`).
    Where the axis is infinite (lam at both ends, u at alpha = 0), polynomials in it are not defined: a node there is left out, and a step
    that ends there uses the newest node only.
    """
    if s.lam == t.lam:
        return Update(1.0, (0.0,) * len(nodes))
    used = list(range(len(nodes)))
    if axis in ("lam", "u"):
        finite = [j for j in used if math.isfinite(_reading(axis, nodes[j], data_std))]
        used = finite or [0] if math.isfinite(_reading(axis, s, data_std)) else [0]
    keep, std = _linear_part(predicts, t, s, tau, data_std)
    found = np.zeros(len(nodes))
    found[used] = _integrals(predicts, axis, t, s, [nodes[j] for j in used], tau, data_std)
    return Update(keep, tuple(found.tolist()), std)


def _linear_part(predicts: str, t: Knot, s: Knot, tau: float, d: float) -> tuple[float, float]:
    """(factor of x_t, standard deviation of the noise)."""
    noise = tau * tau
    lost = noise * (s.lam - t.lam) if noise else 0.0  # lam may be infinite
    if predicts == "x0":
        return math.exp(s.log_sigma - t.log_sigma - lost), s.sigma * math.sqrt(max(-math.expm1(-2 * lost), 0.0))
    if predicts == "eps":
        return math.exp(s.log_alpha - t.log_alpha), tau * s.alpha * math.sqrt(max(t.u**2 - s.u**2, 0.0)) if noise else 0.0
    (n_t, share_t, _), (n_s, share_s, w_s) = (_frame(predicts, k, d) for k in (t, s))
    if not noise:
        return n_s / n_t, 0.0
    c = (share_t / share_s) ** noise
    variance = 1 - c * c
    if predicts == "flow":  # INT 2 tau^2 c^2 w/(1-w) dw, by parts
        variance = w_s - (1 - share_t) * c * c + (share_s - share_t * c * c) / (2 * noise + 1)
    return n_s / n_t * c, n_s * math.sqrt(max(variance, 0.0))


def _frame(predicts: str, t: Knot, d: float) -> tuple[float, float, float]:
    """(n, the share of alpha in it, the clock) of v: hypot(alpha d, sigma), cos theta, theta; of flow: alpha + sigma, 1 - w, w."""
    if predicts == "v":
        n = math.hypot(t.alpha * d, t.sigma)
        return n, t.alpha * d / n, math.atan2(t.sigma, t.alpha * d)
    n = t.alpha + t.sigma
    return n, t.alpha / n, t.sigma / n


def _reading(axis: str, t: Knot, d: float) -> float:
    return {"lam": t.lam, "u": t.u, "t": t.time, "angle": math.atan2(t.sigma, t.alpha * d), "fraction": t.sigma / (t.alpha + t.sigma)}[axis]


def _integrals(predicts: str, axis: str, t: Knot, s: Knot, nodes: Sequence[Knot], tau: float, d: float) -> np.ndarray:
    """The weights of the nodes."""
    n, more = len(nodes), 1 + tau * tau
    if n == 1 and (predicts in ("x0", "eps") or tau == 0):
        return np.array([_whole(predicts, t, s, tau, d)])
    if n == 1:
        return quadrature(predicts, axis, t, s, nodes, tau, d)
    a, b = _reading(axis, t, d), _reading(axis, s, d)
    basis = lagrange([(_reading(axis, k, d) - a) / (b - a) for k in nodes])
    h = s.lam - t.lam
    if predicts == "x0" and math.isinf(s.lam):  # the kernel is all at s
        return s.alpha * basis.sum(1)
    if (predicts, axis) == ("x0", "lam"):
        return s.alpha * more * h * (basis @ exponential_moments(more * h, n))
    if (predicts, axis) == ("eps", "lam"):
        return -s.sigma * more * h * (basis @ exponential_moments(-h, n))
    if (predicts, axis) == ("eps", "u"):
        return s.alpha * more * (b - a) * (basis @ (1.0 / np.arange(1, n + 1)))
    if (predicts, axis) == ("x0", "u") and math.isfinite(a):  # e^l dl = -du/u^2, and u_s^(1+tau^2) u_t^-(2+tau^2) in front
        front = s.alpha * more * (s.u / t.u) ** more * (1 - s.u / t.u)
        return front * (basis @ power_moments(1 - s.u / t.u, 1 + more, n))
    if (predicts, axis) in (("v", "angle"), ("flow", "fraction")) and tau == 0:
        return _frame(predicts, s, d)[0] * (b - a) * (basis @ (1.0 / np.arange(1, n + 1)))
    return quadrature(predicts, axis, t, s, nodes, tau, d)


def _whole(predicts: str, t: Knot, s: Knot, tau: float, d: float) -> float:
    """The sum of all weights: the step for a constant m."""
    more = 1 + tau * tau
    if predicts == "x0":
        return -s.alpha * math.expm1(-more * (s.lam - t.lam))
    if predicts == "eps":
        return more * (s.sigma - s.alpha * t.u)
    n_s, _, clock = _frame(predicts, s, d)
    return n_s * (clock - _frame(predicts, t, d)[2])


_GL_X, _GL_W = np.polynomial.legendre.leggauss(16)


def quadrature(predicts: str, axis: str, t: Knot, s: Knot, nodes: Sequence[Knot], tau: float = 0.0, d: float = 1.0) -> np.ndarray:
    """The same weights by composite 16-point Gauss-Legendre in lam, panels at most 1/2 wide: good to 1e-13, for every pair and axis."""
    more = 1 + tau * tau
    low, high = (max(min(k.lam, _LAM_CUT), -_LAM_CUT) for k in (t, s))
    if predicts == "x0":  # all that counts is near s when going down, near t when going up
        low, high = (max(low, high - _LAM_CUT), high) if s.lam > t.lam else (low, max(high, low - _LAM_CUT))
    elif predicts == "eps":
        low, high = (low, min(high, low + _LAM_CUT)) if s.lam > t.lam else (min(low, high + _LAM_CUT), high)
    edges = np.linspace(low, high, max(1, math.ceil(2 * abs(high - low))) + 1)
    half = 0.5 * np.diff(edges)
    l = (half[:, None] * (_GL_X + 1) + edges[:-1, None]).ravel()
    w = (half[:, None] * _GL_W).ravel()
    if predicts == "x0":
        kernel = s.alpha * more * np.exp(-more * (s.lam - l))
    elif predicts == "eps":
        kernel = -s.alpha * more * np.exp(-l)
    else:
        u = np.exp(-l)
        share, rate = (1 / np.hypot(1, u / d), u / d / (1 + (u / d) ** 2)) if predicts == "v" else (1 / (1 + u), u / (1 + u) ** 2)
        n_s, share_s, _ = _frame(predicts, s, d)
        kernel = -n_s * more * rate * ((share / share_s) ** (tau * tau) if tau else 1.0)
    if len(nodes) == 1:
        return np.array([np.sum(w * kernel)])
    a, b = _reading(axis, t, d), _reading(axis, s, d)
    at = {
        "lam": lambda: l,
        "u": lambda: np.exp(-l),
        "t": lambda: t.schedule.time_at(l),
        "angle": lambda: np.arctan(np.exp(-l) / d),
        "fraction": lambda: special.expit(-l),
    }[axis]()
    r = (at - a) / (b - a)
    basis = lagrange([(_reading(axis, k, d) - a) / (b - a) for k in nodes])
    return basis @ (np.vander(r, len(nodes), increasing=True).T @ (w * kernel))


# --- the same step for one instant a sample -------------------------------------------------------------------------


_POINTS = {n: np.polynomial.legendre.leggauss(n) for n in (5, 24)}
_NATURAL = {"v": "angle", "flow": "fraction"}


def axis_reading(axis: str, t: Knot, data_std: float = 1.0) -> Any:
    """The axis at an instant, a number or an array."""
    if isinstance(t.time, float):
        return _reading(axis, t, data_std)
    return {
        "lam": lambda: t.lam,
        "u": lambda: t.u,
        "t": lambda: t.time,
        "angle": lambda: np.arctan2(t.sigma, t.alpha * data_std),
        "fraction": lambda: t.sigma / (t.alpha + t.sigma),
    }[axis]()


def adams_measure(predicts: str, axis: str, t: Knot, s: Knot, data_std: float, degree: int) -> tuple[Any, list[tuple[Any, Any]]]:
    """(A, [(r_q, w_q), ...]) of `x_s = A x_t + INT m dmu = A x_t + sum_q w_q m(r_q)`, r = 0 at t and 1 at s on the axis; numbers or arrays.

    Exact for polynomials up to degree + 1 in the natural axis of v and flow, else Gauss-Legendre with 24 points, good to rounding for
    steps up to about 10 in lam. `UserError` where the axis is infinite.
    """
    a, b = (axis_reading(axis, k, data_std) for k in (t, s))
    if not np.isfinite(a + b).all():
        raise UserError(f"a polynomial in {axis} is not defined from time {t.time} to {s.time}: take v in the angle, or end short of it.")
    natural = _NATURAL.get(predicts)
    x, w = _POINTS[5 if natural == axis and degree <= 8 else 24]
    low, high = (axis_reading(natural or "lam", k, data_std) for k in (t, s))
    at = [low + (high - low) * (0.5 * p + 0.5) for p in x]
    if predicts == "v":
        keep, factor = _norm(s, data_std) / _norm(t, data_std), [_norm(s, data_std)] * len(x)
    elif predicts == "flow":
        keep, factor = (s.alpha + s.sigma) / (t.alpha + t.sigma), [s.alpha + s.sigma] * len(x)
    elif predicts == "x0":
        keep, factor = np.exp(s.log_sigma - t.log_sigma), [s.alpha * np.exp(l - high) for l in at]
    else:
        keep, factor = np.exp(s.log_alpha - t.log_alpha), [-s.alpha * np.exp(-l) for l in at]
    weights = [0.5 * v * (high - low) * f for v, f in zip(w, factor, strict=True)]
    if natural == axis:
        return keep, [(0.5 * p + 0.5, v) for p, v in zip(x, weights, strict=True)]
    lam = {"v": lambda c: -np.log(data_std * np.tan(c)), "flow": lambda c: np.log((1 - c) / c)}.get(predicts, lambda l: l)
    on = {
        "lam": lambda l: l,
        "u": lambda l: np.exp(-l),
        "t": lambda l: t.schedule.time_at(l),
        "angle": lambda l: np.arctan(np.exp(-l) / data_std),
        "fraction": lambda l: special.expit(-l),
    }[axis]
    return keep, [((on(lam(c)) - a) / (b - a), v) for c, v in zip(at, weights, strict=True)]


def _norm(t: Knot, data_std: float) -> Any:
    return np.sqrt((t.alpha * data_std) ** 2 + t.sigma**2)
