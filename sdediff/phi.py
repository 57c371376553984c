"""The phi functions and the tableaux of exponential Runge-Kutta methods.

`phi_0(z) = e^z`, `phi_{k+1}(z) = (phi_k(z) - 1/k!)/z`, `phi_k(0) = 1/k!`: `phi_k(z) = int_0^1 e^{(1 - r) z} r^{k-1}/(k-1)! dr`.
For `y' = z y/h + N` a method has stages at c_i h and weights that are sums of phi functions (Hochbruck & Ostermann 2010, sec. 2.3):
`Y_i = e^{c_i z} y + h sum_j a_ij(z) N_j`, `y' = e^z y + h sum_j b_j(z) N_j`. Rows satisfy `sum_j a_ij = c_i phi_1(c_i z)`, so only the
weights of `N_j - N_1`, j > 1, are written down, and what remains is the exponential Euler step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .names import UserError

_SERIES = 8.0  # below it the series, above it the recurrence, which no longer cancels for small k


def phi(k: int, z: float | np.ndarray) -> float | np.ndarray:
    """phi_k(z) for k >= 0 to rounding: a number for a number, float64 array for an array."""
    return _phi(k, float(z)) if np.ndim(z) == 0 else np.vectorize(_phi, otypes=[np.float64])(k, z)


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


Entry = tuple[tuple[float, ...], ...]  # terms (weight, k, c): the sum of weight phi_k(c z)


@dataclass(frozen=True)
class ExponentialTableau:
    """An explicit exponential Runge-Kutta method by the weights of the differences N_j - N_1, j = 2 .. s.

    c: the nodes c_2 .. c_s; a: for stages 3 .. s the entries (a_i2, ..., a_i,i-1); b: the entries (b_2, ..., b_s). An entry is a tuple
    of terms (weight, k, c), weight times phi_k(c z); (weight, k) means c = 1. order: as measured on problems that are not stiff.
    """

    c: tuple[float, ...]
    a: tuple[tuple[Entry, ...], ...]
    b: tuple[Entry, ...]
    order: int

    def __post_init__(self) -> None:
        explicit = len(self.b) == len(self.c) == len(self.a) + bool(self.c) and all(len(row) == i + 1 for i, row in enumerate(self.a))
        if not explicit or any(c <= 0 for c in self.c):
            raise UserError(
                "an exponential tableau has positive nodes c_2 .. c_s, rows a_3 .. a_s of length 1 .. s - 2, and s - 1 weights b."
            )
        object.__setattr__(self, "c", tuple(map(float, self.c)))
        object.__setattr__(self, "a", tuple(tuple(_entry(e) for e in row) for row in self.a))
        object.__setattr__(self, "b", tuple(_entry(e) for e in self.b))

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.c) + 1

    def weights(self, z: float) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
        """(a, b) at z as numbers; row i of a belongs to stage i + 2, so that the first is empty."""
        return _weights(self, z)


def _entry(terms: Entry) -> Entry:
    return tuple((float(term[0]), int(term[1]), float(term[2]) if len(term) > 2 else 1.0) for term in terms)


@lru_cache(maxsize=4096)
def _weights(tableau: ExponentialTableau, z: float) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    def row(entries: tuple[Entry, ...]) -> tuple[float, ...]:
        return tuple(sum(weight * _phi(int(k), c * z) for weight, k, c in entry) for entry in entries)

    return tuple(map(row, ((), *tableau.a) if tableau.c else ())), row(tableau.b)


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
