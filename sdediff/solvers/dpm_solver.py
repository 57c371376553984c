"""DPM-Solver and DPM-Solver++, single step: quadrature of the exact probability flow over one step of h = lam_s - lam_t.

Noise form `x_s = (alpha_s/alpha_t) x - alpha_s int e^{-l} eps(l) dl`, data form `x_s = (sigma_s/sigma_t) x + sigma_s int e^l x0(l) dl`.
With the reading m at t alone both are DDIM's step. Stages at t + r1 h and t + r2 h (on lam) give differences m_i - m_0, that enter with
`c h phi_k(z)`: c = -sigma_s, z = h for m = eps, and c = alpha_s, z = -h for m = x0 (phi_1 h = e^h - 1 and 1 - e^{-h}).
Lu et al. 2022 (DPM-Solver, algorithms 1, 2, 4 and 5; DPM-Solver++, 2S).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..combine import Linear, combine
from ..names import UserError, choose, positive
from ..noise import Noise
from ..phi import phi
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot
from ..solver import Facts, OneStep


def dpm_solver_orders(calls: int, order: int = 3) -> tuple[int, ...]:
    """The orders of single steps that spend exactly `calls` network calls: (3, ..., 3, 2, 1) or what remains, for `Fixed(knots, orders=)`.

    The grid needs as many steps: `LogSNR().knots(schedule, len(orders))`. DPM-Solver, section 3.4; k-diffusion's dpm_fast.
    """
    positive("calls", calls)
    choose("order", order, (1, 2, 3))
    whole, rest = divmod(calls, order)
    if rest:
        return (order,) * whole + (rest,)
    return (3,) * (whole - 1) + (2, 1) if order == 3 else (order,) * whole


@dataclass(frozen=True)
class _SingleStep(OneStep):
    """What the noise and the data form share: the stages and the weights of the differences."""

    order: int = 3  # type: ignore[assignment]
    r1: float | None = None
    r2: float | None = None
    kind: str = "dpmsolver"
    inner: str = "lam"

    def __post_init__(self) -> None:
        choose("order", self.order, (1, 2, 3))
        choose("kind", self.kind, ("dpmsolver", "taylor"))
        choose("inner", self.inner, ("lam", "time", "quadratic"))
        given = [r for r in (self.r1, self.r2) if r is not None]
        if any(not (isinstance(r, int | float) and 0 < r <= 1) for r in given):
            raise UserError(f"r1 and r2 are fractions of the step in lam, in (0, 1], not {self.r1!r} and {self.r2!r}.")
        if given and self.inner != "lam":
            raise UserError(f"inner={self.inner!r} places the stages by itself: leave r1 and r2 out.")
        if self.order == 3 and self._fraction(1) == self._fraction(2):
            raise UserError(f"order 3 needs two different stages: r1 and r2 are both {self._fraction(1)}.")

    @abstractmethod
    def _reading(self, p: Prediction) -> Linear:
        """What is integrated: eps or x0."""

    @abstractmethod
    def _scale(self, s: Knot) -> float:
        """c, the factor before the integral."""

    @property
    @abstractmethod
    def _sign(self) -> float:
        """z / h."""

    @property
    def facts(self) -> Facts:
        # stage 1 is of first order: only at r2 = 2/3 does its error drop out, of the Taylor weights, too
        exact = self.order < 3 or abs(self._fraction(2) - 2 / 3) < 1e-9
        reference = "Lu et al. 2022 (DPM-Solver, DPM-Solver++)"
        return Facts(reference, ode=self.order if exact else 2, inverse="approximate", evals=self.order)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._stages(t, s) for t, s in pairwise(knots))

    @property
    def embedded(self) -> bool:
        return self.order > 1

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        return self._solutions(model, x, t, s)[0]

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        """With the difference from the order below through the same stages (DPM-Solver-12 and 23); none where the step is DDIM's."""
        new, error = self._solutions(model, x, t, s)
        return Step(new, None, error, self.order)

    def _solutions(self, model: Model, x: Tensor, t: Knot, s: Knot) -> tuple[Tensor, Linear | None]:
        """(x_s, x_s minus the solution of one order less)."""
        p = model(x, t)
        if self._stages(t, s) == 1:
            return combine(p.mixed(s.alpha, s.sigma)), None
        h = s.lam - t.lam
        z, (first, r1), m0 = self._sign * h, self._inner(t, s, 1), self._reading(p)
        d1 = self._reading(model(combine(p.mixed(first.alpha, first.sigma)), first)) - m0
        base, c = p.mixed(s.alpha, s.sigma), self._scale(s) * h
        weight = phi(2, z) if self.kind == "taylor" else 0.5 * phi(1, z)
        one = c * weight / r1 * d1
        if self.order == 2:
            return combine(base + one), one
        second, r2 = self._inner(t, s, 2)
        weight = self._scale(second) * r2 * h * phi(2, r2 * z) * r2 / r1
        d2 = self._reading(model(combine(p.mixed(second.alpha, second.sigma) + weight * d1), second)) - m0
        if self.kind == "dpmsolver":
            two = c * phi(2, z) / r2 * d2
            return combine(base + two), two - one
        slope1, slope2 = d1 / r1, d2 / r2  # chords; their line gives h m' and h^2 m'' at t
        straight, bent = (r2 * slope1 - r1 * slope2) / (r2 - r1), (slope2 - slope1) * 2 / (r2 - r1)
        straight, bent = c * phi(2, z) * straight, c * phi(3, z) * bent
        return combine(base + straight + bent), straight + bent - one

    def _stages(self, t: Knot, s: Knot) -> int:
        """Calls of this step: one where there is no inner point in lam (an end at sigma = 0 or alpha = 0) or nothing to do."""
        if isinstance(t.lam, float):
            return self.order if math.isfinite(t.lam) and math.isfinite(s.lam) and t.lam != s.lam else 1
        if not (np.isfinite(t.lam) & np.isfinite(s.lam)).all():
            raise UserError(
                f"{self!r} has no error estimate at sigma = 0 or alpha = 0: end the run short of it, or take EmbeddedExponential()."
            )
        return self.order

    def _fraction(self, i: int) -> float:
        """r_i: as given, or i/order."""
        given = (self.r1, self.r2)[i - 1]
        return i / self.order if given is None else given

    def _inner(self, t: Knot, s: Knot, i: int) -> tuple[Knot, float]:
        """The knot of stage i and its fraction of the step in lam."""
        r = self._fraction(i)
        if self.inner == "lam":
            return t.toward(s, r), r
        if self.inner == "time":
            at = t.toward(s, r, "time")
        else:
            root = math.sqrt if isinstance(t.time, float) else np.sqrt
            at = t.at(time=((1 - r) * root(t.time) + r * root(s.time)) ** 2)
        return at, (at.lam - t.lam) / (s.lam - t.lam)


@dataclass(frozen=True)
class DPMSolver(_SingleStep):
    """x_s = alpha_s x0 + sigma_s eps - sigma_s h [phi_1 (eps_1 - eps)/(2 r1)] (order 2) or [phi_2 (eps_2 - eps)/r2] (order 3), phi at h.

    Order 1 is DDIM. kind: "taylor" uses the Taylor weights, phi_2/r1 at order 2, first and second differences at order 3. Stages at
    fractions r1 (1/2; 1/3 at order 3) and r2 (2/3) of the step in lam, or inner="time"|"quadratic": equally spaced in t or sqrt(t).
    Order as asked, but 3 needs r2 = 2/3 (else it is 2); as many calls a step, one at sigma = 0 and alpha = 0, where it is DDIM.
    Upward it encodes, approximately. Lu et al. 2022 (DPM-Solver), algorithms 1, 2, 4.
    """

    def _reading(self, p: Prediction) -> Linear:
        return p.eps

    def _scale(self, s: Knot) -> float:
        return -s.sigma

    @property
    def _sign(self) -> float:
        return 1.0


@dataclass(frozen=True)
class DPMSolverPP(_SingleStep):
    """x_s = alpha_s x0 + sigma_s eps + alpha_s h [phi_1 (x0_1 - x0)/(2 r1)] (2S) or [phi_2 (x0_2 - x0)/r2] (3S), phi at -h.

    The data form of `DPMSolver`, with the same options, orders and calls. Upward it encodes, approximately.
    Lu et al. 2022 (DPM-Solver++), algorithm 1; DPM-Solver, algorithm 5 for 3S.
    """

    def _reading(self, p: Prediction) -> Linear:
        return p.x0

    def _scale(self, s: Knot) -> float:
        return s.alpha

    @property
    def _sign(self) -> float:
        return -1.0
