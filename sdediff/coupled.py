"""Published adaptive step sizes, as published: one step for the whole batch. For comparison; `PID` is the one to use.

Both judge a step by the difference of two DPM-Solver solutions, of orders p and p - 1, relative to
`delta = max(atol, rtol max(|lower|, |lower of the step before|))` componentwise, and both let all samples of a batch decide on the steps of
each: the same latent ends elsewhere in another batch (alone or among 128, on a ring of Gaussians: by 0.002 to 0.01 in the median, by 0.03
to 0.8 at most), and all pay for the most difficult one. Neither tolerance says what the error at the end will be.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .combine import Linear
from .control import Controller, Verdict
from .names import UserError
from .prediction import Model, ModelError
from .result import Step
from .schedule import Knot
from .solver import Solver


class Plan(NamedTuple):
    """The next step on lam, the lower solution of the last accepted step, the end, and 1/error of the last two accepted steps."""

    h: float
    lower: Tensor
    end: Knot
    before: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Coupled(Controller):
    """What the two share: the tolerances, the ends and the scaled difference."""

    rtol: float = 0.05
    atol: float = 0.0078
    times: tuple[float, float] | None = None
    first: float = 0.05

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf and 0 < self.first < math.inf):
            raise UserError(
                f"rtol, atol and first (the first step on lam) must be positive, not {self.rtol!r}, {self.atol!r}, {self.first!r}."
            )

    @abstractmethod
    def _goes(self, t: Knot, end: Knot) -> bool:
        """Whether there is a way from t to the end."""

    def check(self, solver: Solver, x: Tensor, noise: Any) -> None:
        if not solver.embedded or solver.facts.stochastic:
            raise UserError(
                f"{type(self).__name__} needs a method with an error estimate and without noise: DPMSolver(3), DPMSolver(2), "
                f"DPMSolverPP(2), or an embedded pair, not {solver!r}."
            )

    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Plan]:
        first, last = self.times or (model.schedule.t_max, model.schedule.t_min)
        t, end = model.schedule.knot(float(first)), model.schedule.knot(float(last))
        if not (math.isfinite(t.lam) and math.isfinite(end.lam) and self._goes(t, end)):
            raise UserError(
                f"{self!r} cannot go from time {t.time:g} to {end.time:g} (lam {t.lam:.4g} to {end.lam:.4g}): give times=(first, last), "
                f"both short of alpha = 0 and sigma = 0; KDiffusionPID also encodes."
            )
        plan = Plan(math.copysign(self.first, end.lam - t.lam), self._state(x, t), end)
        return t, self._target(t, plan), plan

    def use(self, solver: Solver, plan: Plan) -> Solver:
        return solver

    def _state(self, x: Tensor, t: Knot) -> Tensor:
        """What the tolerances are about."""
        return x

    def _target(self, t: Knot, plan: Plan) -> Knot:
        """A step on, or the end."""
        whole = plan.end.lam - t.lam
        return plan.end if plan.h == whole else t.at(lam=t.lam + plan.h)

    def _scaled(self, s: Knot, step: Step, plan: Plan) -> tuple[Tensor, Tensor]:
        """(the difference of the two solutions over delta, the lower solution)."""
        if step.error is None:
            raise UserError(f"there is no error estimate at time {s.time:g}: start or end the run short of it.")
        error = step.error.tensor() if isinstance(step.error, Linear) else step.error
        if not bool(torch.isfinite(error).all()):
            raise ModelError(f"the step to time {s.time:g} became NaN or infinite: check the network there, or give a smaller first step.")
        error, higher = self._state(error, s), self._state(step.x, s)
        lower = higher - error
        return error / torch.clamp(self.rtol * torch.maximum(lower.abs(), plan.lower.abs()), min=self.atol), lower


@dataclass(frozen=True)
class DPMSolverAdaptive(_Coupled):
    """DPM-Solver's adaptive steps (its orders 12 and 23): `DPMSolver(2)`, `DPMSolver(3)`, or the same of `DPMSolverPP`.

    E = max over the batch of the RMS of the scaled difference; accepted if E <= 1; then h' = min(theta h E^(-1/order), what is left), the
    power rounded to float32. It stops within `margin` of the end, in time. times: (first, last), from noise to data only; by default the
    schedule's t_max and t_min.
    As published it couples the batch, its first step may pass the end (the next one goes back), and it may stop a little before it.
    Lu et al. 2022 (DPM-Solver), appendix C and algorithm 3.
    """

    theta: float = 0.9
    margin: float = 1e-5

    def _goes(self, t: Knot, end: Knot) -> bool:
        return t.lam < end.lam

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Plan) -> Verdict:
        scaled, lower = self._scaled(s, step, plan)
        worst = scaled.square().flatten(1).mean(1).sqrt().max()
        accept = bool(worst <= 1.0)
        here = s if accept else t
        factor = float(torch.float_power(worst, -1.0 / step.error_order).float())
        plan = plan._replace(h=min(self.theta * plan.h * factor, plan.end.lam - here.lam), lower=lower if accept else plan.lower)
        done = abs(here.time - plan.end.time) <= self.margin
        return Verdict(accept, None if done else self._target(here, plan), plan)


@dataclass(frozen=True)
class KDiffusionPID(_Coupled):
    """k-diffusion's `dpm_adaptive`: `DPMSolver(3)` or `DPMSolver(2)` with a PID controller, on y = x/alpha.

    e = RMS of the scaled difference over the WHOLE batch, w = 1/(e + 1e-8) of this step and of the last two accepted ones:
    factor = 1 + atan(w^((p+i+d)/order) w_1^(-(p+2d)/order) w_2^(d/order) - 1), accepted if factor >= safety, h' = h factor, never past the
    end. coefficients: (p, i, d). times: (first, last), by default the schedule's t_max and t_min; it goes both ways.
    As published it couples the batch: a difficult sample among many easy ones is hardly seen.
    Crowson's k-diffusion; Soderlind 2003.
    """

    coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0)
    safety: float = 0.81

    def _goes(self, t: Knot, end: Knot) -> bool:
        return t.lam != end.lam

    def _state(self, x: Tensor, t: Knot) -> Tensor:
        return x / t.alpha

    def _target(self, t: Knot, plan: Plan) -> Knot:
        whole = plan.end.lam - t.lam
        return plan.end if abs(plan.h) >= abs(whole) else super()._target(t, plan)

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Plan) -> Verdict:
        scaled, lower = self._scaled(s, step, plan)
        now = 1.0 / (float(scaled.square().mean().sqrt()) + 1e-8)
        one, two = plan.before or (now, now)
        p, i, d = (c / step.error_order for c in self.coefficients)
        factor = 1.0 + math.atan(now ** (p + i + d) * one ** -(p + 2 * d) * two**d - 1.0)
        if factor < self.safety:
            plan = plan._replace(h=plan.h * factor, before=(one, two))
            return Verdict(False, self._target(t, plan), plan)
        plan = Plan(plan.h * factor, lower, plan.end, (now, one))
        return Verdict(True, None if abs(plan.end.lam - s.lam) <= 1e-5 else self._target(s, plan), plan)
