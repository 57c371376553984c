"""Step controllers as published, beside `PID`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batch import rms, select
from .combine import Linear
from .control import Controller, Outcome, Verdict
from .names import UserError
from .prediction import Model
from .result import Step
from .schedule import Knot
from .solver import Solver
from .solvers import GottaGoFast


class Steps(NamedTuple):
    """For each sample the next step in time, the steps tried, and why it stopped short; the last knot, for all."""

    step: np.ndarray
    tries: np.ndarray
    why: np.ndarray
    last: Knot


@dataclass(frozen=True)
class GottaGoFastControl(Controller):
    """Accept where err = rms((x'' - x')/max(atol, rtol max(|x'|, |x'_before|))) <= 1; then, accepted or not, h <- safety h err^-exponent.

    Steps in the schedule's time, each sample its own, no limits on their growth; the maximum is elementwise, x' is the Euler-Maruyama state
    and x'_before that of the last accepted step. The defaults are the paper's for images in [-1, 1] on a VP schedule (rtol from 0.02 to 0.5
    trades quality for speed). For `GottaGoFast()` only. most_calls: of each sample; one that needs more stops there.
    With noise=White(seed) a rejected step is drawn again, as published: that keeps noise that moved the state little, and biases the
    samples (docs/adaptive_sde.md). With noise=Brownian(seed, (t_min, t_max)) a shorter step follows the same path. Not part of it: the
    published sampler's last denoising, `x + sigma^2 score` at the end. Jolicoeur-Martineau et al. 2021, algorithm 1.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    times: tuple[float, float] | None = None
    first: float = 0.01
    safety: float = 0.9
    exponent: float = 0.9
    most_calls: int = 10_000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and 0 < self.atol < math.inf and self.rtol < math.inf):
            raise UserError(f"GottaGoFastControl needs atol > 0 and rtol >= 0, not rtol={self.rtol!r} and atol={self.atol!r}.")
        if not (0 < self.safety <= 1 and self.exponent > 0 and self.first > 0):
            given = f"safety={self.safety}, exponent={self.exponent} and first={self.first}"
            raise UserError(f"GottaGoFastControl needs 0 < safety <= 1, exponent > 0 and first > 0, not {given}.")
        if self.times is not None and not self.times[0] > self.times[1]:
            raise UserError(f"times are (first, last) with first > last: this samples, it does not encode; not {self.times!r}.")

    def check(self, solver: Solver, x: Tensor, noise: Any) -> None:
        if not isinstance(solver, GottaGoFast):
            raise UserError(f"GottaGoFastControl drives GottaGoFast(), not {solver!r}: take PID(atol=...).")

    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Steps]:
        first, last = map(float, self.times or (model.schedule.t_max, model.schedule.t_min))
        n = len(x)
        plan = Steps(np.full(n, min(self.first, first - last)), np.zeros(n), np.full(n, "", object), model.schedule.knot(last))
        t = model.schedule.knot(np.full(n, first))
        return t, self._target(t, plan), plan

    def use(self, solver: Solver, plan: Steps) -> Solver:
        return solver

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Steps) -> Verdict:
        now, before = step.memory
        error = step.error.tensor() if isinstance(step.error, Linear) else step.error
        assert error is not None
        error = rms(error / torch.maximum(now.abs(), before.abs()).mul_(self.rtol).clamp_(min=self.atol))
        accept = error <= 1.0  # NaN is not
        with np.errstate(divide="ignore"):
            factor = np.where(np.isnan(error), 0.1, self.safety * error**-self.exponent)
        t = select(accept, s, t)
        arrived, tries = t.time == plan.last.time, plan.tries + 1
        why = np.full(len(tries), "", object)
        why[~arrived & (2 * (tries + 1) > self.most_calls)] = f"limit of {self.most_calls} calls"
        plan = Steps(plan.step * factor, tries, why, plan.last)
        going = ~arrived & (why == "")
        target = self._target(t, plan)
        return Verdict(accept, target if going.any() else None, plan._replace(step=t.time - target.time), None if going.all() else going)

    def outcome(self, plan: Steps) -> Outcome:
        return Outcome(np.full(len(plan.why), math.nan), plan.why)

    def _target(self, t: Knot, plan: Steps) -> Knot:
        """The next instant: a step on, but no farther than the end."""
        end = plan.last.time
        return t.schedule.knot(np.where(plan.step >= t.time - end, end, np.maximum(t.time - plan.step, end)))
