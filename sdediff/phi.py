"""The phi functions and the tableaux of exponential Runge-Kutta methods.

`phi_0(z) = e^z`, `phi_{k+1}(z) = (phi_k(z) - 1/k!)/z`, `phi_k(0) = 1/k!`: `phi_k(z) = int_0^1 e^{(1 - r) z} r^{k-1}/(k-1)! dr`.
For `y' = z y/h + N` a method has stages at c_i h and weights that are sums of phi functions (Hochbruck & Ostermann 2010, sec. 2.3):
`Y_i = e^{c_i z} y + h sum_j a_ij(z) N_j`, `y' = e^z y + h sum_j b_j(z) N_j`. Rows satisfy `sum_j a_ij = c_i phi_1(c_i z)`, so only the
weights of `N_j - N_1`, j > 1, are written down, and what remains is the exponential Euler step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .names import UserError

_SERIES = 8.0  # below it the series, above it the recurrence, which no longer cancels for small k
_FACTORIAL = np.array([float(math.factorial(k)) for k in range(40)])


def phi(k: int, z: float | np.ndarray) -> float | np.ndarray:
    """phi_k(z) for k >= 0 to rounding: a number for a number, float64 array for an array."""
    return _phi(k, float(z)) if np.ndim(z) == 0 else _phis(k, np.asarray(z, dtype=np.float64))


def _phi(k: int, z: float) -> float:
    if k == 0:
        return math.exp(z)
    if abs(z) > _SERIES + k:
        return (_phi(k - 1, z) - 1 / math.factorial(k - 1)) / z
    # sum_n z^n/(n + k)!; for z < 0 its Kummer transform e^z/k! sum_n k/(k + n) (-z)^n/n!, whose terms are positive, too
    total = term = 1.0
    n = 0
    while abs(term) > 1e-18 * total:
        n += 1
        term *= -z / n if z < 0 else z / (n + k)
        total += term * k / (k + n) if z < 0 else term
    return total * (math.exp(z) if z < 0 else 1.0) / math.factorial(k)


def _phis(k: int | np.ndarray, z: np.ndarray) -> np.ndarray:
    """The same elementwise, k and z broadcast: terms that an element does not need any more are too small to change its sum."""
    k, z = np.broadcast_arrays(np.asarray(k), z)
    far, down = np.abs(z) > _SERIES + k, z < 0
    size, least = np.where(far, 0.0, np.abs(z)), np.where(down, 0.0, k)
    top, bottom, grows = np.where(down, k, 1.0), np.where(down, k, 1.0), np.where(down, 1.0, 0.0)
    total = term = np.ones_like(z)
    n = 0
    while n % 4 or np.any(term > 1e-18 * total):
        n += 1
        term = term * (size / (n + least))
        total = total + term * top / (bottom + n * grows)
    value = total * np.exp(np.where(down, -size, 0.0)) / _FACTORIAL[k]
    if far.any() or not k.all():
        climbed = np.exp(z)
        for j in range(1, int(k.max()) + 1):
            climbed = np.where(j <= k, (climbed - 1 / _FACTORIAL[j - 1]) / np.where(far, z, 1.0), climbed)
        value = np.where(far | (k == 0), climbed, value)
    return value


Entry = tuple[tuple[float, ...], ...]  # terms (weight, k, c): the sum of weight phi_k(c z)


@dataclass(frozen=True)
class ExponentialTableau:
    """An explicit exponential Runge-Kutta method by the weights of the differences N_j - N_1, j = 2 .. s.

    c: the nodes c_2 .. c_s; a: for stages 3 .. s the entries (a_i2, ..., a_i,i-1); b: the entries (b_2, ..., b_s). An entry is a tuple
    of terms (weight, k, c), weight times phi_k(c z); (weight, k) means c = 1. order: as measured on problems that are not stiff.
    lower: the entries (l_2, ..., l_s, l_new) of a solution of one order less, l_new being the weight of N at the new state, which the next
    step needs anyway: an embedded pair, whose error is h times the sum of (b_j - l_j) (N_j - N_1).
    """

    c: tuple[float, ...]
    a: tuple[tuple[Entry, ...], ...]
    b: tuple[Entry, ...]
    order: int
    lower: tuple[Entry, ...] | None = None

    def __post_init__(self) -> None:
        explicit = len(self.b) == len(self.c) == len(self.a) + bool(self.c) and all(len(row) == i + 1 for i, row in enumerate(self.a))
        if not explicit or any(c <= 0 for c in self.c):
            raise UserError(
                "an exponential tableau has positive nodes c_2 .. c_s, rows a_3 .. a_s of length 1 .. s - 2, and s - 1 weights b."
            )
        object.__setattr__(self, "c", tuple(map(float, self.c)))
        object.__setattr__(self, "a", tuple(tuple(_entry(e) for e in row) for row in self.a))
        object.__setattr__(self, "b", tuple(_entry(e) for e in self.b))
        if self.lower is not None:
            if len(self.lower) != len(self.b) + 1:
                raise UserError("the lower weights of an exponential pair are one more than b: the last one is that of N at the new state.")
            object.__setattr__(self, "lower", tuple(_entry(e) for e in self.lower))

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.c) + 1

    def weights(self, z: float | np.ndarray) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...]]:
        """(a, b) at z as numbers, or as arrays like z; row i of a belongs to stage i + 2, so that the first is empty."""
        a, b, _ = _compute(self, z) if isinstance(z, np.ndarray) else _weights(self, z)
        return a, b

    def pair_weights(self, z: float | np.ndarray) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...], tuple[Any, ...]]:
        """(a, b, lower) at z, in the same way. Only of an embedded pair."""
        return _compute(self, z) if isinstance(z, np.ndarray) else _weights(self, z)


def _entry(terms: Entry) -> Entry:
    return tuple((float(term[0]), int(term[1]), float(term[2]) if len(term) > 2 else 1.0) for term in terms)


def _compute(tableau: ExponentialTableau, z: float | np.ndarray) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...], tuple[Any, ...]]:
    lower = tableau.lower or ()
    used = {(int(k), c): None for row in (*tableau.a, tableau.b, lower) for entry in row for _, k, c in entry}
    if isinstance(z, np.ndarray) and used:
        ks, cs = (np.array(column)[:, None] for column in zip(*used, strict=True))
        values = dict(zip(used, _phis(ks, cs * z), strict=True))
    else:
        values = {(k, c): _phi(k, c * float(z)) for k, c in used}

    def row(entries: tuple[Entry, ...]) -> tuple[Any, ...]:
        return tuple(sum(weight * values[int(k), c] for weight, k, c in entry) for entry in entries)

    return tuple(map(row, ((), *tableau.a) if tableau.c else ())), row(tableau.b), row(lower)


_weights = lru_cache(maxsize=4096)(_compute)


def res2(c2: float) -> ExponentialTableau:
    """Order 2, stiff order 2: b_2 = phi_2/c_2 (Hochbruck & Ostermann 2010, eq. 2.39). RES 2s of k-diffusion's forks has c2 = 1/2."""
    _between(c2)
    return ExponentialTableau((c2,), (), (((1 / c2, 2),),), 2)


def res3(c2: float, c3: float) -> ExponentialTableau:
    """Order 3 with b_2 = gamma b_3 (Hochbruck & Ostermann 2010, eq. 5.9). RES 3s of k-diffusion's forks has c2 = 1/2, c3 = 1."""
    _between(c2)
    _between(c3)
    if abs(c2 - 2 / 3) < 1e-9 or abs(c3 - c2) < 1e-9:
        raise UserError(f"res3(c2, c3) exists for c2 other than 2/3 and for different nodes, not for {c2!r} and {c3!r}.")
    gamma = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))  # 2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2)
    last = 1 / (gamma * c2 + c3)
    return ExponentialTableau((c2, c3), ((((gamma * c2, 2, c2), (c3**2 / c2, 2, c3)),),), (((gamma * last, 2),), ((last, 2),)), 3)


def _between(c: float) -> None:
    if not 0 < c <= 1:
        raise UserError(f"nodes of an exponential tableau lie in (0, 1], not at {c!r}.")


EXPONENTIAL_TABLEAUX = {
    "euler": ExponentialTableau((), (), (), 1),
    "midpoint": ExponentialTableau((0.5,), (), (((1, 1),),), 2),
    "heun": ExponentialTableau((1.0,), (), (((0.5, 1),),), 2),
    "etd2rk": res2(1.0),
    "res2": res2(0.5),
    "ho3": ExponentialTableau((1 / 3, 2 / 3), ((((4 / 3, 2, 2 / 3),),),), ((), ((1.5, 2),)), 3),
    "res3": res3(0.5, 1.0),
    "etd3rk": ExponentialTableau((0.5, 1.0), ((((2, 1),),),), (((4, 2), (-8, 3)), ((-1, 2), (4, 3))), 3),
    "krogstad": ExponentialTableau(
        (0.5, 0.5, 1.0),
        ((((1, 2, 0.5),),), ((), ((2, 2),))),
        (((2, 2), (-4, 3)), ((2, 2), (-4, 3)), ((-1, 2), (4, 3))),
        4,
    ),
    "ho4": ExponentialTableau(
        (0.5, 0.5, 1.0, 0.5),
        (
            (((1, 2, 0.5),),),
            (((1, 2),), ((1, 2),)),
            (
                ((0.5, 2, 0.5), (-1, 3), (0.25, 2), (-0.5, 3, 0.5)),
                ((0.5, 2, 0.5), (-1, 3), (0.25, 2), (-0.5, 3, 0.5)),
                ((-0.25, 2, 0.5), (1, 3), (-0.25, 2), (0.5, 3, 0.5)),
            ),
        ),
        ((), (), ((-1, 2), (4, 3)), ((4, 2), (-8, 3))),
        4,
    ),
}
"""Exponential Euler; exponential midpoint (DPM-Solver++(2S)) and Heun; ETD2RK, ETD3RK (Cox & Matthews 2002); RES 2s and 3s; Hochbruck &
Ostermann's third order (2010, eq. 5.8) and their five stages of stiff order 4 (2005, eq. 5.19); Krogstad's ETDRK4 (2005)."""

_KROGSTAD, _HO4 = EXPONENTIAL_TABLEAUX["krogstad"], EXPONENTIAL_TABLEAUX["ho4"]
_END = ((-1, 2), (4, 3))  # the weight of N at the end of the step, of the quadrature through 0, 1/2 and 1
EXPONENTIAL_PAIRS = {
    "etd2rk": replace(EXPONENTIAL_TABLEAUX["etd2rk"], lower=((), ())),
    "res2": replace(EXPONENTIAL_TABLEAUX["res2"], lower=((), ())),
    "ho3": replace(EXPONENTIAL_TABLEAUX["ho3"], lower=(((3, 2),), (), ())),
    "etd3rk": replace(EXPONENTIAL_TABLEAUX["etd3rk"], lower=(((2, 2),), (), ())),
    "krogstad": replace(_KROGSTAD, lower=(*_KROGSTAD.b[:2], (), _END)),
    "ho4": replace(_HO4, lower=((), (), (), _HO4.b[3], _END)),
}
"""Embedded pairs 2(1), 3(2) and 4(3). The lower solution is the exponential Euler step (2(1)); DPM-Solver's second order through the first
stage (3(2)); or the method of order four with N at the new state in the place of N at the last stage that approximates it (4(3))."""
