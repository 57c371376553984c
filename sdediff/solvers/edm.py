"""EDM's stochastic sampler and k-diffusion's dpm_2, both in EDM's frame y = x/alpha, u = sigma/alpha, `dy/du = eps`.

EDM (Karras et al. 2022, algorithm 2) first raises the noise level from u to (1 + gamma) u with fresh noise, which is the forward process
and exact in law, and then takes a second-order step of the probability flow down from there. gamma = min(churn/steps, sqrt(2) - 1).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from ..combine import combine, linear
from ..coordinates import Coordinates, Sigma, checked
from ..names import UserError, positive
from ..noise import Noise
from ..prediction import Model
from ..result import Step
from ..runge_kutta import runge_kutta_calls, runge_kutta_step
from ..schedule import Knot
from ..solver import Ancestral, Facts, OneStep, Solver
from ..weights import Tableau


@dataclass(frozen=True)
class EDMHeun(Ancestral):
    """v = (1 + gamma) u, y_v = y + s_noise sqrt(v^2 - u^2) z; k at v, k* at v + alpha h; y' = y_v + h [(1 - 1/(2 alpha)) k + k*/(2 alpha)].

    churn: EDM's S_churn, a total over the `steps` of the run, spent where s_min <= u <= s_max. alpha: 1 Heun, 1/2 midpoint, 2/3 Ralston;
    coordinates: of the step down (EDM's ablation has `Time()` as "vp" scaling). Two calls a step, one at sigma = 0. Without churn of
    order 2 and invertible, approximately; with churn of weak order 2 if s_noise = 1 (else biased on purpose), its noise off any
    Brownian path. Upward with churn it is the forward SDE. Karras et al. 2022 (EDM), algorithms 1 and 2.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    alpha: float = 1.0
    steps: int | None = None
    coordinates: Coordinates = Sigma()

    def __post_init__(self) -> None:
        checked(self.coordinates)
        for name in ("churn", "s_min", "s_max", "s_noise"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value >= 0):
                raise UserError(f"{name} must be a number of at least 0, not {value!r}.")
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha <= 1):
            raise UserError(f"alpha is the place of the second slope in the step, in (0, 1] (1 is Heun), not {self.alpha!r}.")
        if self.steps is not None:
            positive("steps", self.steps)
        elif self.churn:
            raise UserError(f"churn={self.churn!r} is shared by all steps of a run: say how many there are, EDMHeun(churn=..., steps=18).")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        reference = "Karras et al. 2022 (EDM), algorithms 1 and 2"
        if not self.churn:
            return Facts(reference, ode=2, inverse="approximate", clock="snr", evals=2)
        return Facts(reference, weak=2 if self.s_noise == 1 else None, stochastic=True, clock="snr", evals=2)

    @property
    def inverse(self) -> Solver:
        return super().inverse if self.churn else self

    def calls(self, knots: Sequence[Knot]) -> int:
        if not self.churn:
            return runge_kutta_calls(knots, 2)
        return sum(1 if s.sigma == 0.0 else 2 for t, s in pairwise(knots) if t.lam < s.lam)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if self.churn and s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1) if self.steps and self.s_min <= t.u <= self.s_max else 0.0
        if gamma:
            x, t = self._raised(x, t, gamma, noise)
        return Step(runge_kutta_step(model, x, t, s, self._tableau, self.coordinates))

    def _raised(self, x: Tensor, t: Knot, gamma: float, noise: Noise | None) -> tuple[Tensor, Knot]:
        """The state with its noise raised to (1 + gamma) u. `UserError` above the schedule's end."""
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        most = t.schedule.knot(t.schedule.t_max).u
        if (1 + gamma) * t.u > most:
            raise UserError(
                f"churn raises sigma/alpha from {t.u:.6g} to {(1 + gamma) * t.u:.6g}, above the schedule's noisiest level {most:.6g}: set "
                f"s_max below {most / (1 + gamma):.6g}, or start the grid lower."
            )
        up = t.at(u=(1 + gamma) * t.u)
        z = noise.fresh(_bits(t.time))
        return combine(linear(x, up.alpha / t.alpha) + up.alpha * self.s_noise * t.u * math.sqrt(gamma * (2 + gamma)) * linear(z)), up

    @cached_property
    def _tableau(self) -> Tableau:
        second = 1 / (2 * self.alpha)
        return Tableau(a=((), (self.alpha,)), b=(1 - second, second), order=2)


def _bits(time: float) -> int:
    """A key for the draw of the step that starts at this time: fresh noise at every step, the same whatever else the run does."""
    return struct.unpack("<q", struct.pack("<d", time))[0]


@dataclass(frozen=True)
class DPM2(OneStep):
    """y_m = y + (u_m - u) eps, u_m = u^(1-r) u_s^r; y' = y + (u_s - u) [(1 - 1/(2r)) eps + eps_m/(2r)].

    k-diffusion's dpm_2 (r = 1/2: the midpoint in log sigma) and diff-sampler's: DPM-Solver-2 in EDM's frame. Order 2, two calls a step,
    one (Euler) at sigma = 0 and alpha = 0. Upward it encodes, approximately. Karras et al. 2022; Lu et al. 2022, algorithm 1.
    """

    r: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.r, int | float) and 0 < self.r <= 1):
            raise UserError(f"r is the place of the stage in the step, a fraction of log sigma in (0, 1], not {self.r!r}.")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("k-diffusion, sample_dpm_2; Lu et al. 2022, algorithm 1", ode=2, inverse="approximate", evals=2)

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(2 if _finite(t, s) else 1 for t, s in pairwise(knots))

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        p = model(x, t)
        if not _finite(t, s):
            return combine(p.mixed(s.alpha, s.sigma))
        middle = t.toward(s, self.r)
        p_m = model(combine(p.mixed(middle.alpha, middle.sigma)), middle)
        weight = s.alpha * t.u * math.expm1(t.lam - s.lam) / (2 * self.r)
        return combine(p.mixed(s.alpha, s.sigma) + weight * (p_m.eps - p.eps))


def _finite(t: Knot, s: Knot) -> bool:
    return math.isfinite(t.lam) and math.isfinite(s.lam)
