"""Pure float64 numbers that define methods: Butcher tableaux.

A tableau (a, b, c) of s stages: `k_i = f(y + h sum_j a_ij k_j, t + c_i h)`, `y' = y + h sum_i b_i k_i` (Hairer, Norsett & Wanner I, II.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from .names import UserError


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: strictly lower triangular `a` (rows of growing length), weights `b`, nodes `c`, its order.

    `UserError` unless it is explicit and consistent (rows of a sum to c, b sums to 1).
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        explicit = len(self.a) == len(self.b) and all(len(row) == i for i, row in enumerate(self.a))
        if not explicit or abs(sum(self.b) - 1) > 1e-12:
            raise UserError("an explicit tableau has rows a[i] of length i, as many as weights b, and weights that sum to 1.")

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes: row sums of a."""
        return tuple(sum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.b)


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
