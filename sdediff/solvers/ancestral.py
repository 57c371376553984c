"""k-diffusion's ancestral samplers: a step of the probability flow from u to u_d, below u_s, then noise up to u_s (u = sigma/alpha).

`u_up = eta u_s sqrt(1 - (u_s/u)^2)` (DDIM's), `u_d^2 = u_s^2 - u_up^2`, `y_s = flow(y; u -> u_d) + u_up z` with y = x/alpha. Going up from
u_d is the forward process, so that every marginal is kept to the (weak) order of the flow's step, for any eta; the path follows the
reverse SDE of noise level eta to strong order 1. Noise enters as increments on the clock snr = 1/u^2, on which the
noise integral of the reverse SDE is `u_s^2 (W_s - W_t)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from ..combine import Linear, combine, linear
from ..names import UserError
from ..noise import Noise
from ..prediction import Model, Prediction
from ..result import Step
from ..schedule import Knot
from ..solver import Ancestral, Facts, Solver


class _Down(NamedTuple):
    """Where the flow's step ends: keep = u_d/u_s, lam = -log u_d; up = u_up/u_s, the noise from there to s. keep^2 + up^2 = 1."""

    keep: float
    lam: float
    up: float


def _down(t: Knot, s: Knot, eta: float) -> _Down:
    if eta == 0:
        return _Down(1.0, s.lam, 0.0)
    if s.sigma == 0.0:
        return _Down(0.0, math.inf, 0.0)
    rest = (1 - eta**2) + eta**2 * math.exp(2 * (t.lam - s.lam))  # (u_d/u_s)^2
    if rest <= 0.0:  # eta asks for more noise than s has
        return _Down(0.0, math.inf, 1.0)
    return _Down(math.sqrt(rest), s.lam - 0.5 * math.log(rest), eta * math.sqrt(-math.expm1(2 * (t.lam - s.lam))))


def _checked(eta: float) -> None:
    if not (isinstance(eta, int | float) and 0 <= eta < math.inf):
        raise UserError(f"eta is the share of new noise in a step, a number of at least 0, not {eta!r}.")


@dataclass(frozen=True)
class _Ancestral(Ancestral):
    """What all share: upward the forward SDE (eta > 0) or the same step (eta = 0), downward `_moved`."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.eta)

    @abstractmethod
    def _moved(self, model: Model, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Linear:
        """The new state, s cleaner than t or eta = 0."""

    @abstractmethod
    def _stages(self, t: Knot, s: Knot) -> int:
        """Calls of such a step."""

    def _promise(self, reference: str) -> Facts:
        if self.eta == 0:
            return Facts(reference, ode=self.order, inverse="approximate", clock="snr", evals=self.order)
        return Facts(reference, strong=1, weak=self.order, stochastic=True, clock="snr", evals=self.order)

    @property
    def inverse(self) -> Solver:
        return super().inverse if self.eta else self

    def calls(self, knots: Sequence[Knot]) -> int:
        return sum(self._stages(t, s) for t, s in pairwise(knots) if t.lam < s.lam or self.eta == 0)

    def step(self, model: Model, x: Tensor, t: Knot, s: Knot, memory: None = None, noise: Noise | None = None) -> Step:
        if self.eta and s.lam <= t.lam:
            return self.forward(x, t, s, noise) if s.lam < t.lam else Step(x)
        return Step(combine(self._moved(model, x, t, s, noise)))

    def _euler(self, p: Prediction, t: Knot, s: Knot, down: _Down, noise: Noise | None) -> Linear:
        """alpha_s (x0 + u_d eps + u_up z)."""
        moved = p.mixed(s.alpha, s.sigma * down.keep)
        return moved + s.sigma * down.up * self.drawn(noise, t, s) if down.up else moved


@dataclass(frozen=True)
class EulerAncestral(_Ancestral):
    """x_s = alpha_s (x0 + u_d eps + u_up z): Euler to u_d, noise up to u_s. The same step as `DDIM(eta)`.

    One call a step. Strong and weak order 1; eta = 0: order 1 to the probability flow, and upward it encodes. eta = 1 is `DDPM("small")`.
    k-diffusion, sample_euler_ancestral.
    """

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return self._promise("k-diffusion, sample_euler_ancestral; Song et al. 2021 (DDIM), eq. 16")

    def _stages(self, t: Knot, s: Knot) -> int:
        return 1

    def _moved(self, model: Model, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Linear:
        return self._euler(model(x, t), t, s, _down(t, s, self.eta), noise)


@dataclass(frozen=True)
class _Midway(_Ancestral):
    """A second-order step of the flow to u_d, with a stage midway in lam; Euler where u_d = 0 or the start has alpha = 0."""

    @property
    def order(self) -> int:
        return 2

    @abstractmethod
    def _second(self, p: Prediction, p_m: Prediction, h: float) -> Linear:
        """What the stage changes in y, for a step of h in lam."""

    def _stages(self, t: Knot, s: Knot) -> int:
        return 2 if math.isfinite(t.lam) and math.isfinite(_down(t, s, self.eta).lam) else 1

    def _moved(self, model: Model, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Linear:
        p, down = model(x, t), _down(t, s, self.eta)
        moved = self._euler(p, t, s, down, noise)
        if self._stages(t, s) == 1:
            return moved
        middle = t.at(lam=0.5 * (t.lam + down.lam))
        p_m = model(combine(p.mixed(middle.alpha, middle.sigma)), middle)
        return moved + s.alpha * self._second(p, p_m, down.lam - t.lam)


@dataclass(frozen=True)
class DPM2Ancestral(_Midway):
    """y_d = y + (u_d - u) eps_m, eps_m from an Euler stage at sqrt(u u_d); x_s = alpha_s (y_d + u_up z). `DPM2` with noise.

    Two calls a step, one (Euler) at sigma = 0. It keeps the marginals to weak order 2 for any eta; strong order 1. eta = 0: order 2 to
    the probability flow, and upward it encodes. k-diffusion, sample_dpm_2_ancestral.
    """

    @property
    def facts(self) -> Facts:
        return self._promise("k-diffusion, sample_dpm_2_ancestral; Lu et al. 2022 (DPM-Solver), algorithm 1")

    def _second(self, p: Prediction, p_m: Prediction, h: float) -> Linear:
        return p.at.u * math.expm1(-h) * (p_m.eps - p.eps)


@dataclass(frozen=True)
class DPMSolverPP2SAncestral(_Midway):
    """y_d = (u_d/u) y + (1 - u_d/u) x0_m, x0_m from a stage midway in lam; x_s = alpha_s (y_d + u_up z). DPM-Solver++(2S) with noise.

    Two calls a step, one (Euler) at sigma = 0. It keeps the marginals to weak order 2 for any eta; strong order 1. eta = 0: order 2 to
    the probability flow, and upward it encodes. k-diffusion, sample_dpmpp_2s_ancestral.
    """

    @property
    def facts(self) -> Facts:
        return self._promise("k-diffusion, sample_dpmpp_2s_ancestral; Lu et al. 2022 (DPM-Solver++), algorithm 1")

    def _second(self, p: Prediction, p_m: Prediction, h: float) -> Linear:
        return -math.expm1(-h) * (p_m.x0 - p.x0)


@dataclass(frozen=True)
class DPMSolverPPSDE(_Ancestral):
    """x_m by an ancestral Euler step to m = t + r h (in lam); y_s = (u_d/u) y + (1 - u_d/u) [(1 - 1/(2r)) x0 + x0_m/(2r)] + u_up z.

    The noise of the stage is the first part of that of the step, as on one Brownian path. Two calls a step, one (Euler) at sigma = 0.
    Weak order 2, strong order 1; eta = 0 is DPM-Solver++(2S): order 2 to the probability flow, and upward it encodes.
    Lu et al. 2022 (DPM-Solver++), section 5; k-diffusion, sample_dpmpp_sde.
    """

    r: float = 0.5

    def __post_init__(self) -> None:
        _checked(self.eta)
        if not (isinstance(self.r, int | float) and 0 < self.r <= 1):
            raise UserError(f"r is the place of the stage, a fraction of the step in lam in (0, 1], not {self.r!r}.")

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return self._promise("Lu et al. 2022 (DPM-Solver++), section 5; k-diffusion, sample_dpmpp_sde")

    def _stages(self, t: Knot, s: Knot) -> int:
        return 2 if math.isfinite(t.lam) and math.isfinite(s.lam) else 1

    def _moved(self, model: Model, x: Tensor, t: Knot, s: Knot, noise: Noise | None) -> Linear:
        p, down = model(x, t), _down(t, s, self.eta)
        if self._stages(t, s) == 1:
            return self._euler(p, t, s, down, noise)
        m = t.toward(s, self.r)
        down_m = _down(t, m, self.eta)
        stage, moved = p.mixed(m.alpha, m.sigma * down_m.keep), p.mixed(s.alpha, s.sigma * down.keep)
        if self.eta:
            first, rest = self._increment(noise, t, m), self._increment(noise, m, s)
            stage = stage + m.sigma * down_m.up * (m.snr - t.snr) ** -0.5 * first
            moved = moved + s.sigma * down.up * (s.snr - t.snr) ** -0.5 * (first + rest)
        bend = s.alpha * -math.expm1(t.lam - down.lam) / (2 * self.r)
        return moved + bend * (model(combine(stage), m).x0 - p.x0)

    def _increment(self, noise: Noise | None, a: Knot, b: Knot) -> Linear:
        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        return linear(noise(a.snr, b.snr))
