"""Adaptive steps, one sample at a time: `PID` chooses them by an error estimate.

A step of size h has a local error of size E ~ C h^q. It is taken if E does not exceed the tolerance, and the next size is
h (tol/E)^(1/q), smoothed by the errors of the two steps before (Gustafsson 1991; Hairer & Wanner II, IV.2; Soderlind 2003). Each sample has
its own time, its own step and, with a method of variable order, its own order; a sample that has reached the end leaves the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batch import rms, select
from .control import Controller, Outcome, Verdict
from .names import UserError, choose
from .noise import WhiteNoise
from .prediction import Model
from .result import Step
from .schedule import Knot, Schedule
from .solver import Solver

CLOCKS = ("root", "lam", "angle", "time")
_FAR = 7.0  # steps on lam begin where |lam| is this, if a run begins or ends farther out (lam is infinite at alpha = 0 and sigma = 0)
_KAPPA = 2.5  # a step with an error of order h^q may be wrong by kappa q tol: then the end is wrong by about tol (docs/adaptive.md)
_SEEN = 3.0  # the error at the end over the root mean square of (weighed error times tolerance), as measured (docs/adaptive.md)
_PATIENCE, _MANY, _OFTEN = 10, 50, 0.2  # rejections in a row; tries from which on, and the share of them, that is too many
_SHORT = 1e-4  # of the whole way: NaN in a step as short as that is not the step's fault
_PARTS = 32  # step factors are powers of 2^(1/32): the last bits of an error, which depend on the batch, do not move the knots


class Whole(NamedTuple):
    """Of the whole batch: the last knot, its reading of the clock, the calls of a step, whether orders vary, and the way in all."""

    last: Knot
    end: float
    evals: float
    varies: bool
    length: float


class Plan(NamedTuple):
    """What `PID` keeps for each sample, arrays (b,).

    step: the next step on the clock, positive; before: weighed errors of the last two accepted steps, (b, 2); tries, taken: steps tried
    and accepted; refused: rejections in a row; square: the sum of (weighed error times tolerance)^2 over the accepted ones; order: of the
    next step, if the solver has a choice; why: of a sample that stopped short.
    """

    step: np.ndarray
    before: np.ndarray
    tries: np.ndarray
    taken: np.ndarray
    refused: np.ndarray
    square: np.ndarray
    order: np.ndarray
    why: np.ndarray
    all: Whole


@dataclass(frozen=True)
class PID(Controller):
    """Steps of each sample's own such that the error at the end is about `atol + rtol rms(x)`, per component (root mean square).

    atol is in units of the data at the end (one grey level of images in [-1, 1] is 2/255); rtol is relative to the size of the state.
    times: (first, last), by default the schedule's t_max and t_min; (t_min, t_max) encodes. first: the first step on `clock` (default: from
    the tolerance). clock: what steps are measured on: "lam", "angle" = atan(sigma/(alpha data_std)), its fourth "root" (nearly its
    logarithm, finite at both ends) or "time". coefficients: (p, i, d) of the controller, (0, 1, 0) is the elementary one, (0.4, 0.3, 0) PI,
    (0.3, 0.3, 0.05) PID. safety, shrink, grow: h' = h min(grow, max(shrink, safety (1/err)^..)). data_std: of the data; an error made at
    noise is weighed by the standard deviations at the end over those there, by which the flow of such data shrinks it.
    most_calls: of each sample; one that needs more stops there, `reached` false, as does one of which ten steps in a row were rejected.
    floor: what no solver can undercut on this model, `time_roughness(model, x).floor`; a smaller tolerance is not refined for: the run goes
    on at the floor, and `reached` is false for the reason "rough in time".
    Raises `UserError` for tolerances that are not positive, or below what the state's dtype can hold.
    """

    rtol: float = 0.0
    atol: float = 1e-3
    times: tuple[float, float] | None = None
    first: float | None = None
    clock: str = "root"
    coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0)
    safety: float = 0.7
    shrink: float = 0.3
    grow: float = 5.0
    most_calls: int = 1000
    data_std: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        choose("clock", self.clock, CLOCKS)
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise UserError(
                f"tolerances must be positive, not rtol={self.rtol!r} and atol={self.atol!r}: atol is the error accepted at the end, "
                f"in units of the data (one grey level of images in [-1, 1] is 2/255)."
            )
        if not (0 < self.safety <= 1 and 0 < self.shrink < 1 < self.grow):
            raise UserError(
                f"PID needs 0 < safety <= 1 and shrink < 1 < grow, not safety={self.safety}, shrink={self.shrink}, grow={self.grow}."
            )
        if len(self.coefficients) != 3 or not sum(self.coefficients[:2]) > 0:
            raise UserError(f"coefficients are three numbers (p, i, d) with p + i > 0, such as (0, 1, 0), not {self.coefficients!r}.")
        if self.times is not None and len({*self.times}) != 2:
            raise UserError(f"times are two different times (first, last), not {self.times!r}.")
        if not (0 < self.data_std < math.inf and (self.first is None or 0 < self.first < math.inf) and self.most_calls >= 1):
            raise UserError(
                f"PID needs a positive data_std and first step, and at least one call, not data_std={self.data_std!r}, "
                f"first={self.first!r} and most_calls={self.most_calls!r}."
            )

    def span(self, schedule: Schedule) -> tuple[Knot, Knot]:
        """The first and the last knot."""
        first, last = self.times or (schedule.t_max, schedule.t_min)
        return schedule.knot(float(first)), schedule.knot(float(last))

    def check(self, solver: Solver, x: Tensor, noise: Any) -> None:
        if not solver.embedded:
            raise UserError(
                f"{solver!r} gives no error estimate with each step: take AdaptiveAdams(), an embedded pair, or ShARK() for the SDE; "
                f"or fixed knots."
            )
        if not len(x):
            raise UserError("there are no samples to step: the state has a batch of 0.")
        if x.dtype in (torch.float16, torch.bfloat16):
            raise UserError(f"the state is {x.dtype}: keep it in float32 or float64 (the network alone may run in low precision).")
        least = 30 * torch.finfo(x.dtype).eps
        if self.atol + self.rtol < least:
            raise UserError(
                f"{x.dtype} cannot hold a tolerance of {self.atol + self.rtol:.1g}: give at least {least:.1g}, or a state in float64."
            )
        if solver.facts.stochastic and (noise is None or isinstance(noise, WhiteNoise)):
            raise UserError(
                f"{solver!r} draws noise, and White would draw it again after a rejected step, which biases: follow one path, e.g. "
                f"noise=Brownian(seed, range) on its clock {solver.facts.clock!r}."
            )

    # --- the protocol ---------------------------------------------------------------------------------------------
    def start(self, solver: Solver, model: Model, x: Tensor) -> tuple[Knot, Knot, Plan]:
        first, last = self.span(model.schedule)
        n = len(x)
        zeros = np.zeros(n)
        step = np.full(n, self._first(first, last) if self.first is None else self.first)
        end = self._reading(last)
        whole = Whole(last, end, solver.facts.evals, solver.varies, abs(end - self._reading(first)))
        plan = Plan(step, np.ones((n, 2)), zeros, zeros, zeros, zeros, np.ones(n), np.full(n, "", object), whole)
        t = model.schedule.knot(np.full(n, first.time))
        return t, self._target(t, plan), plan

    def use(self, solver: Solver, plan: Plan) -> Solver:
        return solver.at_order(plan.order) if solver.varies else solver

    def judge(self, t: Knot, s: Knot, x: Tensor, step: Step, plan: Plan) -> Verdict:
        last = plan.all.last
        with np.errstate(invalid="ignore"):  # of a state that is infinite; its step will be rejected
            asked = np.maximum(self.atol + self.rtol * rms(step.x), self.floor)
        tolerance = self._local(asked) * self._norm(s) / self._norm(last)
        assert step.error is not None
        error = rms(step.error) / (tolerance * step.error_order)
        accept = error <= 1.0  # NaN is not
        factor, order = self._following(accept, error, tolerance, step, plan)
        tried = np.abs(self._reading(s) - self._reading(t))
        h = np.minimum(tried, plan.step) * factor
        refused = np.where(accept, 0, plan.refused + 1)
        tries = plan.tries + 1
        arrived = accept & (s.time == last.time)
        plan = Plan(
            h,
            np.where(accept[:, None], np.stack([np.maximum(error, 1e-10), plan.before[:, 0]], 1), plan.before),
            tries,
            plan.taken + accept,
            refused,
            plan.square + np.where(accept, (error * asked) ** 2, 0.0),
            order,
            plan.why,
            plan.all,
        )
        why = self._why(plan, arrived, asked <= self.floor, np.isnan(error) | np.isinf(error), tried)
        plan = plan._replace(why=why)
        going = ~arrived & (why == "")
        if not going.any():
            return Verdict(accept, None, plan, going)
        return Verdict(accept, self._target(select(accept, s, t), plan), plan, None if going.all() else going)

    def outcome(self, plan: Plan) -> Outcome:
        return Outcome(np.maximum(_SEEN * np.sqrt(plan.square / np.maximum(plan.taken, 1)), self.floor), plan.why)

    def next_order(self, plan: Plan) -> np.ndarray:
        return plan.order

    # --- the law of the steps -------------------------------------------------------------------------------------
    def _following(self, accept, error, tolerance, step: Step, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """(factor of the next step, its order)."""
        power = step.error_order
        p, i, d = self.coefficients
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            now = np.maximum(error, 1e-10)
            smooth = now ** (-(p + i + d) / power) * plan.before[:, 0] ** ((p + 2 * d) / power) * plan.before[:, 1] ** (-d / power)
            smooth = smooth * self.safety ** (i - 1)  # in all safety^i: then every (p, i, d) settles at an error of safety^power
            factor = np.where(accept, smooth, now ** (-1.0 / power))
            order = plan.order
            if plan.all.varies:
                order = power - 1
                for choice in step.choices:
                    other = np.maximum(rms(choice.error) / (tolerance * (choice.order + 1)), 1e-10) ** (-1.0 / (choice.order + 1))
                    better = choice.allowed & (other > factor)
                    factor, order = np.where(better, other, factor), np.where(better, choice.order, order)
                begins = accept & (power - 1 == plan.taken + 1) & (order == power - 1)  # on all readings there are, none too many
                order = np.where(begins, power, order)
            factor = np.where(np.isfinite(error), factor, 0.0)
        factor = np.exp2(np.floor(np.log2(np.maximum(self.safety * factor, 1e-9)) * _PARTS) / _PARTS)
        low = np.where(plan.refused > 1, 0.1, self.shrink)
        most = np.where(plan.refused > 0, 1.0, self.grow)  # where the step before was rejected it has found its size
        factor = np.where(accept, np.clip(factor, self.shrink, most), np.clip(factor, low, 0.9))
        return factor, order

    def _why(self, plan: Plan, arrived, rough, broken, tried) -> np.ndarray:
        """Why a sample stops here, or is not to be trusted; "" if all is well."""
        why = np.full(len(arrived), "", object)
        often = plan.all.varies & (plan.tries > _MANY) & (plan.tries - plan.taken > _OFTEN * plan.tries)
        why[arrived & often] = "a fifth of the steps were rejected: the model seems rough in time (see time_roughness, smooth_time)"
        if self.floor:
            why[arrived & rough] = f"rough in time, so it was solved to {self.floor:.2g} only (see time_roughness, smooth_time)"
        why[~arrived & ((plan.tries + 1) * plan.all.evals + 1 > self.most_calls)] = f"limit of {self.most_calls} calls"
        why[plan.refused >= _PATIENCE] = f"{_PATIENCE} steps in a row were rejected: the model is not smooth here (fixed knots do not mind)"
        nothing = broken & ((plan.refused >= _PATIENCE) | (tried < _SHORT * plan.all.length))
        why[nothing] = "the model answers NaN or infinity, however short the step"
        return why

    def _target(self, t: Knot, plan: Plan) -> Knot:
        """The next instant: a step on, two equal ones if that leaves less than another step, never past the end."""
        last, end = plan.all.last, plan.all.end
        here = self._reading(t)
        left = np.abs(end - here)
        h = np.where(left <= plan.step * 1.001, left, np.where(left < 2 * plan.step, 0.5 * left, plan.step))
        time, inside = np.full(len(h), last.time), ~(h >= left)
        if inside.any():
            time[inside] = self._time(last.schedule, (here + np.sign(end - here) * h)[inside])
        return last.schedule.knot(time)

    def _reading(self, t: Knot) -> Any:
        """Of the clock; "root" is the fourth root of the angle atan(sigma/(alpha d)): nearly its logarithm, but finite at both ends."""
        if self.clock == "lam":
            return np.clip(t.lam, -_FAR, _FAR)
        if self.clock == "time":
            return t.time
        angle = np.arctan2(t.sigma, t.alpha * self.data_std)
        return angle if self.clock == "angle" else angle**0.25

    def _time(self, schedule: Schedule, reading: np.ndarray) -> np.ndarray:
        """The times at which the clock reads so."""
        if self.clock in ("lam", "time"):
            return schedule.knot_at(self.clock, reading).time
        angle = reading if self.clock == "angle" else reading**4
        return schedule.time_at(-np.log(self.data_std * np.tan(angle)))

    def _first(self, first: Knot, last: Knot) -> float:
        """The first step: in Angle coordinates the velocity turns about once a radian, so Euler's step dtheta is wrong by dtheta^2/2."""
        theta = math.atan2(first.sigma, first.alpha * self.data_std)
        turn = min(math.sqrt(4 * self._local(max(self.atol + self.rtol * self.data_std, self.floor))), 0.5)
        to = min(max(theta - turn if last.lam > first.lam else theta + turn, 0.01), math.pi / 2 - 0.01)
        if self.clock == "angle":
            return turn
        if self.clock == "time":
            return abs(first.time - last.schedule.time_at(-math.log(self.data_std * math.tan(to))))
        return abs((-math.log(self.data_std * math.tan(to)) if self.clock == "lam" else to**0.25) - self._reading(first))

    def _local(self, tolerance: Any) -> Any:
        """The tolerance of one step that leads to `tolerance` at the end."""
        return _KAPPA * tolerance

    def _norm(self, t: Knot) -> Any:
        """The standard deviation at t if the data has `data_std`: errors shrink with it on their way to the end."""
        return np.sqrt((t.alpha * self.data_std) ** 2 + t.sigma**2)
