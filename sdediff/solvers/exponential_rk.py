"""Exponential Runge-Kutta for the probability flow in lam: `y = x/alpha` obeys `dy/dlam = -y + x0(y)`, its linear part is solved exactly.

Stages `Y_i = e^{-c_i h} y + h sum_j a_ij(-h) N_j` with N = x0 and h = lam_s - lam_t (Hochbruck & Ostermann 2010, sec. 2.3; Luan 2021).
By the row sums this is DDIM's step to each node plus weighted differences of x0. The weights are sums of phi functions (phi.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..batch import select
from ..combine import Linear, combine, linear
from ..names import UserError, choose
from ..noise import Noise
from ..phi import EXPONENTIAL_PAIRS, EXPONENTIAL_TABLEAUX, ExponentialTableau
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot, Number
from ..solver import Facts, OneStep, Solver


@dataclass(frozen=True)
class ExponentialRungeKutta(OneStep):
    """x_s = alpha_s x0 + sigma_s eps + alpha_s h sum_j b_j(-h) (x0_j - x0), x0_j read at stages of the same form.

    tableau: "euler" (DDIM), "midpoint" (DPM-Solver++(2S)), "heun", "etd2rk", "res2", "etd3rk", "ho3", "res3", "krogstad", "ho4", or an
    `ExponentialTableau`. RES 2s and 3s of k-diffusion's forks are "res2" and "res3", or `res2(c2)`, `res3(c2, c3)`.
    Its tableau's order, its number of stages calls a step; one (DDIM) at sigma = 0 and alpha = 0. Upward it encodes, approximately.
    Hochbruck & Ostermann 2010, eq. 2.39, 2.40, 5.8, 5.9; 2005, eq. 5.19; Krogstad 2005; Cox & Matthews 2002.
    """

    tableau: str | ExponentialTableau = "ho4"

    def __post_init__(self) -> None:
        _named(self.tableau, EXPONENTIAL_TABLEAUX)

    @property
    def _tableau(self) -> ExponentialTableau:
        return _named(self.tableau, EXPONENTIAL_TABLEAUX)

    @property
    def order(self) -> int:
        return self._tableau.order

    @property
    def facts(self) -> Facts:
        reference = "Hochbruck & Ostermann 2010, sec. 2.3; Luan 2021"
        return Facts(reference, ode=self.order, inverse="approximate", evals=self._tableau.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._tableau.stages if _finite(t, s) else 1 for t, s in pairwise(knots))

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        p, tableau = model(x, t), self._tableau
        if tableau.stages == 1 or not _finite(t, s):
            return combine(p.mixed(s.alpha, s.sigma))
        h, differences = s.lam - t.lam, []
        a, b = tableau.weights(-h)

        def reached(at: Knot, weights: Sequence[float]) -> Tensor:
            total = p.mixed(at.alpha, at.sigma)
            for weight, difference in zip(weights, differences, strict=True):
                if weight:
                    total = total + at.alpha * h * weight * difference
            return combine(total)

        for c, row in zip(tableau.c, a, strict=True):
            at = t.toward(s, c)
            differences.append(model(reached(at, row), at).x0 - p.x0)
        return reached(s, b)


@dataclass(frozen=True)
class EmbeddedExponential(Solver[Tensor | None]):
    """An embedded exponential pair: `ExponentialRungeKutta`'s step, and the error alpha_s h sum_j (b_j - l_j)(-h) (x0_j - x0).

    pair: "etd2rk" or "res2" 2(1), "ho3" or "etd3rk" 3(2), "krogstad" or "ho4" 4(3), or an `ExponentialTableau` with lower weights.
    Memory: x0 at (x, t), the last answer of the step before. So the run begins with one call, and a step costs as many as the tableau has
    stages, whether it is accepted or not (2, 3, 4; ho4 5); one of no length none.
    To sigma = 0, and from alpha = 0, where lam is infinite, it is the midpoint rule in sigma/alpha, and in alpha/sigma, with DDIM's error
    estimate: one call (and one at s, if sigma > 0 there). Upward it encodes, approximately, between them.
    Hochbruck & Ostermann 2010, sec. 2.3; the lower solutions: `phi.EXPONENTIAL_PAIRS`.
    """

    pair: str | ExponentialTableau = "krogstad"

    def __post_init__(self) -> None:
        if _named(self.pair, EXPONENTIAL_PAIRS).lower is None:
            raise UserError(f"{self.pair!r} has no lower weights: an embedded pair is an ExponentialTableau(c, a, b, order, lower=...).")

    @property
    def _pair(self) -> ExponentialTableau:
        return _named(self.pair, EXPONENTIAL_PAIRS)

    @property
    def order(self) -> int:
        return self._pair.order

    @property
    def facts(self) -> Facts:
        return Facts("Hochbruck & Ostermann 2010, sec. 2.3", ode=self.order, inverse="approximate", evals=self._pair.stages)

    @property
    def embedded(self) -> bool:
        return True

    @property
    def inverse(self) -> Solver:
        return self

    def calls(self, knots: Sequence[Knot]) -> int:
        count, known = 1, True
        for t, s in pairwise(knots):
            if t.time != s.time:
                count += (not known) + ((s.sigma > 0) + 1 if s.sigma == 0 or t.alpha == 0 else self._pair.stages)
                known = s.sigma > 0
        return count

    def init(self, model: Model, x: Tensor, t: Knot) -> Tensor:
        return model(x, t).x0.tensor()

    def velocity(self, memory: Tensor | None, x: Tensor, t: Knot) -> Linear | None:
        return None if memory is None or np.any(t.sigma == 0) else Prediction(x, t, memory, "x0").v

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: Tensor | None, noise: Noise | None = None) -> Step:
        if isinstance(t.time, float) and t.time == s.time:
            return Step(x, memory, linear(x, 0.0), self.order)
        x0 = self.init(model, x, t) if memory is None else memory
        nodes, a, b, lower, order = self._weights(t, s)
        differences: list[Linear] = []

        def reached(at: Knot, weights: Sequence[Number]) -> Tensor:
            total = linear(x, np.exp(at.log_sigma - t.log_sigma)) + linear(x0, -at.alpha * np.expm1(t.lam - at.lam))
            return combine(total + _weighed(x0, at.alpha, weights, differences))

        y = x
        for at, row in zip(nodes, a, strict=True):
            y = reached(at, row)
            differences.append(model(y, at).x0 - x0)
        new, last = reached(s, b), None
        if not (isinstance(t.time, float) and s.sigma == 0):
            # a sample that ends at sigma = 0 has no use for x0 there: it is asked where it was asked before
            at, y = select(s.sigma == 0, (nodes[-1], y), (s, new))
            last = model(y, at).x0.tensor()
            differences.append(linear(last) - x0)
        error = _weighed(x0, s.alpha, [high - low for high, low in zip((*b, 0.0), lower, strict=True)], differences)
        return Step(new, last, error, order)

    def _weights(self, t: Knot, s: Knot) -> tuple[list[Knot], Sequence[Sequence[Number]], Sequence[Number], Sequence[Number], Number]:
        """(nodes, h a, h b, h lower, the power of the error)."""
        if np.any((t.sigma == 0) | (s.alpha == 0)):
            raise UserError(f"{self!r} cannot begin at sigma = 0 or end at alpha = 0: take knots short of it, or EmbeddedRungeKutta().")
        pair, log2 = self._pair, math.log(2.0)
        infinite = (s.sigma == 0) | (t.alpha == 0)
        if isinstance(infinite, bool) and infinite:
            lam, gain = (t.lam + log2, 2.0) if t.alpha > 0 else (s.lam - log2, 1.0) if s.sigma > 0 else (0.0, 1.0)
            return [t.at(lam=lam)], ((),), (gain,), (0.0, 0.0), 2
        if not np.any(infinite):
            h = s.lam - t.lam
            a, b, lower = pair.pair_weights(-h)
            return (
                [t.toward(s, c) for c in pair.c],
                [[h * w for w in row] for row in a],
                [h * w for w in b],
                [h * w for w in lower],
                pair.order,
            )
        # some samples are at such an end: their first stage is at the midpoint, and the others are there, too
        with np.errstate(invalid="ignore"):
            middle = np.where(t.alpha > 0, t.lam + log2, np.where(s.sigma > 0, s.lam - log2, 0.0))
            h, gain = np.where(infinite, 0.0, s.lam - t.lam), np.where(t.alpha > 0, 2.0, 1.0)
            nodes = [t.at(lam=np.where(infinite, middle, (1 - c) * t.lam + c * s.lam)) for c in pair.c]
        nodes = [select(infinite, at, s) if c == 1 else at for at, c in zip(nodes, pair.c, strict=True)]
        a, b, lower = pair.pair_weights(-h)
        b = [h * w + (gain * infinite if j == 0 else 0.0) for j, w in enumerate(b)]
        return nodes, [[h * w for w in row] for row in a], b, [h * w for w in lower], np.where(infinite, 2, pair.order)


def _weighed(x0: Tensor, scale: Number, weights: Sequence[Number], differences: Sequence[Linear]) -> Linear:
    """scale sum_j w_j d_j."""
    total = linear(x0, 0.0)
    for weight, difference in zip(weights, differences, strict=False):
        if weight.any() if isinstance(weight, np.ndarray) else weight:
            total = total + scale * weight * difference
    return total


def _named(tableau: str | ExponentialTableau, names: dict[str, ExponentialTableau]) -> ExponentialTableau:
    """The tableau of this name, or the given one. Raises `UserError` for anything else."""
    if isinstance(tableau, ExponentialTableau):
        return tableau
    if not isinstance(tableau, str):
        raise UserError(f"tableau must be a name or an ExponentialTableau, not {tableau!r}; names: {', '.join(names)}.")
    choose("tableau", tableau, names)
    return names[tableau]


def _finite(t: Knot, s: Knot) -> bool:
    """Whether the step has a length in lam; to sigma = 0 or from alpha = 0 it has none, and is DDIM's."""
    return math.isfinite(t.lam) and math.isfinite(s.lam)
