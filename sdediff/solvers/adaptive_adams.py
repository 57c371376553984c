"""Exponential Adams with variable steps and variable order: predict, evaluate, correct. One call a step, and an error estimate with each.

With r the axis of interpolation, 0 at t and 1 at s, and the linear part exact, x_s = A x_t + INT m(r) dmu(r). In Newton's form through the
last k readings m_0 (at t), m_1, ... with g_i = INT prod_{l<i} (r - r_l) dmu(r)

    predicted = A x_t + sum_{i<k} g_i m[r_0 .. r_i],    corrected = predicted + E_k,    E_k = g_k m[r_0 .. r_{k-1}, 1],

m[...] being divided differences, the last one with the reading at the predicted state. E_k ~ h^(k+1) is the error of the prediction (what
the step is judged by), and E_{k-1}, E_{k+1} say what other orders would have had (Krogh 1969; Shampine & Gordon 1975; Hairer, Norsett &
Wanner I, III.5 to 7). All numbers are arrays, one entry a sample: each sample has its own steps and its own order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..combine import Linear, combine, linear
from ..exponential import kept, reading
from ..names import UserError, choose, positive
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Choice, Step
from ..schedule import Knot
from ..solver import Facts, Solver
from ..weights import AXES, READINGS, adams_measure, axis_reading

MOST = 8


class History(NamedTuple):
    """What is remembered at (x, t), newest first: readings of the axis and of the network, and how many of them there are.

    at: numbers, or arrays (B,); values: tensors like the state; count: a number, or an array (B,). Places not yet filled repeat the oldest.
    """

    at: tuple[Any, ...]
    values: tuple[Tensor, ...]
    count: Any


@dataclass(frozen=True)
class AdaptiveAdams(Solver[History]):
    """x_s = A x_t + sum_j c_j m_j through up to `order` past readings and the new one, each sample at its own order, judged by E_k.

    predicts: "x0", "eps", "v" or "flow"; axis, in which m is a polynomial: "lam", "u", "angle", "fraction" or "t"; data_std: of v and of
    the angle. evaluations: 1 keeps the reading at the predicted state (PEC), 2 evaluates the corrected one again (PECE).
    `evaluations` calls a step and one at the start. Under `PID` steps and orders are chosen; on fixed knots the order rises from 1 to
    `order`: convergence of order order + 1 apart from the first steps. Memory: `order` readings. Upward it encodes.
    Shampine & Gordon 1975; Hairer, Norsett & Wanner I, III.5 to 7; Hochbruck & Ostermann 2010 for the exponential form.
    """

    order: int = 6  # type: ignore[assignment]
    predicts: str = "v"
    axis: str = "angle"
    data_std: float = 1.0
    evaluations: int = 1

    def __post_init__(self) -> None:
        if positive("order", self.order) > MOST:
            raise UserError(f"AdaptiveAdams(order) goes up to {MOST}, not {self.order}: longer histories only amplify errors.")
        choose("predicts", self.predicts, READINGS)
        choose("axis", self.axis, AXES)
        choose("evaluations", self.evaluations, (1, 2))
        if not (0 < self.data_std < math.inf):
            raise UserError(f"data_std must be positive, not {self.data_std!r}.")

    @property
    def facts(self) -> Facts:
        reference = "variable-step variable-order Adams; Shampine & Gordon 1975; Hairer, Norsett & Wanner I, III.5 to 7"
        return Facts(reference, ode=self.order + 1, inverse="approximate", evals=self.evaluations)

    @property
    def embedded(self) -> bool:
        return True

    @property
    def varies(self) -> bool:
        return True

    @property
    def inverse(self) -> Solver:
        return self

    def at_order(self, order: Any) -> Solver:
        return _Ordered(self, order)

    def calls(self, knots: Sequence[Knot]) -> int:
        return 1 + self.evaluations * sum(t.lam != s.lam for t, s in pairwise(knots))

    def init(self, model: Model, x: Tensor, t: Knot) -> History:
        value = self._value(model, x, t)
        at = axis_reading(self.axis, t, self.data_std)
        n = self.order + 1
        return History((at,) * n, (value,) * n, np.ones(len(x), int) if isinstance(t.time, np.ndarray) else 1)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: History, noise: Noise | None = None) -> Step:
        return self.advance(model, x, t, s, memory, self.order)

    def advance(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: History, order: Any) -> Step:
        """A step that uses at most `order` (a number, or one a sample) past readings."""
        if isinstance(t.time, float) and s.lam == t.lam:
            return Step(x, memory)
        a, b = (axis_reading(self.axis, k, self.data_std) for k in (t, s))
        self._check(t, s, a, b)
        r, have = _behind([(at - a) / (b - a) for at in memory.at], memory.count)
        k = np.minimum(np.minimum(order, self.order), have)
        keep, measure = adams_measure(self.predicts, self.axis, t, s, self.data_std, self.order)
        rule = _Rule.through(r, measure, int(np.max(k)) + 1)
        values = memory.values
        predicted = combine([(keep, x), *zip(rule.predictor(k), values, strict=False)])
        value = self._value(model, predicted, s)
        error = combine(rule.correction(k, value, values))
        x = predicted + error
        choices = tuple(
            Choice(k + d, rule.correction(np.clip(k + d, 1, rule.most), value, values), allowed)
            for d, allowed in ((-1, k > 1), (1, (k < have) & (k < self.order)))
            if np.any(allowed)
        )
        if self.evaluations == 2:
            value = self._value(model, x, s)
        n = len(values)
        new = History((b, *memory.at[: n - 1]), (value, *values[: n - 1]), np.minimum(have + 1, n))
        return Step(x, new, error, k + 1, choices)

    def velocity(self, memory: History, x: Tensor, t: Knot) -> Linear | None:
        if (self.predicts == "v" and self.data_std != 1.0) or np.any(np.minimum(t.alpha, t.sigma) == 0):
            return None
        return Prediction(x, t, memory.values[0], self.predicts).v

    def _check(self, t: Knot, s: Knot, a: Any, b: Any) -> None:
        """`UserError` where the axis is infinite, or lam, on which the kernels of x0 and eps live."""
        on = (a, b, t.lam, s.lam) if self.predicts in ("x0", "eps") else (a, b)
        finite = [np.isfinite(v) for v in on]
        if not np.all(finite):
            bad = int(np.argmin(np.all(finite, axis=0)))
            raise UserError(
                f"{self!r} has no step from time {np.ravel(t.time)[bad]:g} to {np.ravel(s.time)[bad]:g}, where {self.axis} or lam is "
                f"infinite: take v in the angle, or start or end short of it."
            )

    def _value(self, model: Model, x: Tensor, t: Knot) -> Tensor:
        return kept(reading(model(x, t), self.predicts, self.data_std))


@dataclass(frozen=True)
class _Ordered(Solver[History]):
    """The same solver with at most `limit` past readings: a number, or one a sample."""

    solver: AdaptiveAdams
    limit: Any

    @property
    def order(self) -> Any:
        return self.limit

    @property
    def facts(self) -> Facts:
        return self.solver.facts

    def calls(self, knots: Sequence[Knot]) -> int:
        return self.solver.calls(knots)

    def init(self, model: Model, x: Tensor, t: Knot) -> History:
        return self.solver.init(model, x, t)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: History, noise: Noise | None = None) -> Step:
        return self.solver.advance(model, x, t, s, memory, self.limit)


def _behind(r: list[Any], count: Any) -> tuple[list[Any], Any]:
    """The past instants on the scaled axis (0 at t, 1 at s), and how many lie in order behind t; the others are put out of the way."""
    found, have, valid = [0.0 * r[0]], 1, True
    for i in range(1, len(r)):
        valid = valid & (i < count) & (r[i] < found[-1])
        found.append(np.where(valid, r[i], found[-1] - 1.0) if isinstance(r[i], np.ndarray) else r[i] if valid else found[-1] - 1.0)
        have = have + valid
    return found, have


class _Rule(NamedTuple):
    """Newton's form over the past instants r: g_i, and the divided differences as weights of the readings."""

    g: list[Any]
    ahead: list[Any]  # 1 / prod_{l<j} (1 - r_l)
    differences: list[list[Any]]  # [j][i]: weight of m_i in m[r_0 .. r_{j-1}]
    r: list[Any]

    @classmethod
    def through(cls, r: list[Any], measure: list[tuple[Any, Any]], most: int) -> _Rule:
        """Up to order `most`, with INT f dmu = sum_q w_q f(r_q) for `measure` = [(r_q, w_q), ...]."""
        g, products = [], [w for _, w in measure]
        ahead, differences, at = [1.0 + 0.0 * r[0]], [[]], [1.0 + 0.0 * r[0]]
        for j in range(most + 1):
            g.append(_sum(products))
            if j == most or j == len(r):
                break
            products = [p * (q - r[j]) for p, (q, _) in zip(products, measure, strict=True)]
            ahead.append(ahead[-1] / (1.0 - r[j]))
            at = [w / (r[i] - r[j]) for i, w in enumerate(at[:j])] + [_inverse(r, j)] if j else at
            differences.append(at)
        return cls(g, ahead, differences, r)

    @property
    def most(self) -> int:
        """The highest order of a correction."""
        return len(self.differences) - 1

    def predictor(self, k: Any) -> list[Any]:
        """The weights of the past readings at order k."""
        most = int(np.max(k))
        return [_sum([self.g[m] * self.differences[m + 1][i] * (m < k) for m in range(i, most)]) for i in range(most)]

    def correction(self, k: Any, value: Tensor, values: Sequence[Tensor]) -> Linear:
        """E_k, with the new reading `value`."""
        most, least = int(np.max(k)), int(np.min(k))
        terms = linear(value, _sum([self.g[j] * self.ahead[j] * (j == k) for j in range(least, most + 1)]))
        for i in range(most):
            weights = [self.g[j] * self.differences[j][i] * (j == k) for j in range(max(i + 1, least), most + 1)]
            terms = terms + linear(values[i], _sum(weights) / (self.r[i] - 1.0))
        return terms


def _inverse(r: list[Any], j: int) -> Any:
    product = 1.0
    for l in range(j):
        product = product * (r[j] - r[l])
    return 1.0 / product


def _sum(parts: Sequence[Any]) -> Any:
    """One after the other, so that no sample's sum depends on how many there are."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
