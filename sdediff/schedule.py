"""Noise schedules: the forward process `x_t = alpha_t x0 + sigma_t eps` of `dx = f x dt + g dW`, exact in float64.

`f = d log alpha / dt`, `g2 = d sigma^2/dt - 2 f sigma^2` (finite at sigma = 0), `lam = log(alpha/sigma)` (half log-SNR),
`u = sigma/alpha`. A `Knot` is one instant: everything a solver may ask about it, in float64. A schedule is one or two formulas
(`log_alpha`, `log_sigma`); the rates follow from them by the complex step `Im F(t + ih)/h`, exact to rounding, unless written out.
Time is the schedule's own: 0 is the data, `t_max` the noise. Formulas take and give float64 numbers or arrays.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.optimize import elementwise
from torch import Tensor

from .combine import combine
from .names import UserError, choose, nearest

Number = Any  # float, or a float64 array with one number a sample


def _function(scalar, array):
    """`scalar` (from math: fast) for Python floats, `array` (from numpy) for arrays."""
    return lambda x: scalar(x) if isinstance(x, float) else array(x)


_exp, _expm1, _atan, _tan = (_function(getattr(math, n), getattr(np, m)) for n, m in
                             (("exp", "exp"), ("expm1", "expm1"), ("atan", "arctan"), ("tan", "tan")))  # fmt: skip
_sqrt = _function(math.sqrt, np.sqrt)


@dataclass(frozen=True)
class Knot:
    """One instant of a schedule, in float64: Python floats on a grid, arrays with one number a sample in a per-sample solve.

    time: the schedule's own clock; f = d log alpha/dt; g2 = g^2; dalpha, dsigma: derivatives in time. Derived: alpha, sigma,
    lam = log(alpha/sigma), u = sigma/alpha, u2 = u^2, angle = atan(u), snr = (alpha/sigma)^2.
    """

    time: Number
    log_alpha: Number
    log_sigma: Number
    f: Number
    g2: Number
    dalpha: Number
    dsigma: Number
    schedule: Schedule = field(compare=False, repr=False)

    @cached_property
    def alpha(self) -> Number:
        return _exp(self.log_alpha)

    @cached_property
    def sigma(self) -> Number:
        return _exp(self.log_sigma)

    @cached_property
    def lam(self) -> Number:
        return self.log_alpha - self.log_sigma

    @cached_property
    def u(self) -> Number:
        return _exp(-self.lam)

    @cached_property
    def u2(self) -> Number:
        return _exp(-2 * self.lam)

    @cached_property
    def snr(self) -> Number:
        return _exp(2 * self.lam)

    @cached_property
    def angle(self) -> Number:
        return _atan(self.u)

    def clock(self, name: str) -> Number:
        """The reading of the clock `name`: time, lam, u, u2, angle or snr."""
        if name not in CLOCKS:
            raise UserError(f"no clock is called {name!r}; there are {', '.join(CLOCKS)}.{nearest(name, CLOCKS)}")
        return getattr(self, name)

    def at(self, **reading: Number) -> Knot:
        """Another instant of the same schedule: `t.at(time=0.3)`, `t.at(lam=0.)`, `t.at(u=1.)`, `t.at(angle=0.5)`, ..."""
        ((name, value),) = reading.items()
        return self.schedule.knot_at(name, value)

    def toward(self, s: Knot, r: float, clock: str = "lam") -> Knot:
        """The knot a fraction `r` of the way from this one to `s` on `clock`; exactly this one at r = 0 and `s` at r = 1."""
        if r in (0.0, 1.0):
            return s if r else self
        low, high = self.clock(clock), s.clock(clock)
        if not np.isfinite(low + high).all():
            raise UserError(
                f"there is no stage between the times {self.time:g} and {s.time:g} on {clock}, which is infinite at one of them: "
                f"start or end the grid short of it, or take a method without stages there."
            )
        return self.schedule.knot_at(clock, (1 - r) * low + r * high)


CLOCKS = ("time", "lam", "u", "u2", "angle", "snr")


class Posterior(NamedTuple):
    """Mean (tensor like x0) and variance (a float64 number, the same for each component) of q(x_s | x_t, x0)."""

    mean: Tensor
    variance: Number


class Schedule(ABC):
    """A forward process. Subclasses are frozen dataclasses that give `log_alpha(t)` and, unless sigma^2 = 1 - alpha^2, `log_sigma(t)`.

    t_max: where the noise is (the default start of sampling); t_min: the default end of sampling. Knots exist on [0, t_max].
    prior_std: the standard deviation of the noise that sampling starts from.
    """

    t_min: ClassVar[float] = 1e-3
    t_max: float = 1.0
    prior_std: float = 1.0

    @abstractmethod
    def log_alpha(self, t: Number) -> Number:
        """log alpha at time t: float64 or complex, number or array."""

    def log_sigma(self, t: Number) -> Number:
        """log sigma at time t; variance preserving unless overridden: sigma^2 = 1 - alpha^2."""
        return 0.5 * np.log(-np.expm1(2 * self.log_alpha(t)))

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        """(f, g2, dalpha, dsigma) at time t, by the complex step; subclasses with closed forms override it."""
        h = 1e-100
        z = np.asarray(t, dtype=np.float64) + 1j * h
        log_alpha, log_sigma = self.log_alpha(z), self.log_sigma(z)
        f = np.imag(log_alpha) / h
        dalpha, dsigma = np.imag(np.exp(log_alpha)) / h, np.imag(np.exp(log_sigma)) / h
        return f, np.imag(np.exp(2 * log_sigma)) / h - 2 * f * np.real(np.exp(2 * log_sigma)), dalpha, dsigma

    def log_alpha_of(self, lam: Number) -> Number:
        """log alpha as a function of lam: what the family of the schedule fixes. Variance preserving unless overridden."""
        return np.where(lam > 0, -0.5 * np.log1p(np.exp(-2 * np.abs(lam))), lam - 0.5 * np.log1p(np.exp(-2 * np.abs(lam))))

    # --- instants -------------------------------------------------------------------------------------------------
    def knot(self, t: Number) -> Knot:
        """The instant at time t (a number, or a float64 array with one time a sample). `UserError` outside [0, t_max]."""
        if isinstance(t, np.ndarray) and t.ndim:
            return self._make(np.asarray(t, dtype=np.float64))
        return _cached_knot(self, float(t))

    def _make(self, t: Number) -> Knot:
        low, high = np.min(t), np.max(t)
        if not (low >= 0.0 and high <= self.t_max):
            outside = high if high > self.t_max else low
            raise UserError(
                f"time {outside:.6g} is outside the schedule: {type(self).__name__} runs from 0 (data) to {self.t_max:g} (noise)."
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = (self.log_alpha(t), self.log_sigma(t), *self.rates(t))
        if np.ndim(t) == 0:
            return Knot(float(t), *map(float, values), schedule=self)
        return Knot(t, *(np.broadcast_to(np.asarray(v, dtype=np.float64), t.shape) for v in values), schedule=self)

    def knots(self, times: Iterable[float]) -> tuple[Knot, ...]:
        """One knot for each time, in the order given."""
        return tuple(self.knot(float(t)) for t in times)

    def knot_at(self, clock: str, value: Number) -> Knot:
        """The instant at which `clock` (time, lam, u, u2, angle or snr) reads `value`."""
        if clock == "time":
            return self.knot(value)
        return _cached_knot_at(self, clock, value) if isinstance(value, float) else self._knot_at(clock, value)

    def _knot_at(self, clock: str, value: Number) -> Knot:
        choose("clock", clock, CLOCKS)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_u = {
                "lam": lambda v: -v,
                "u": np.log,
                "u2": lambda v: 0.5 * np.log(v),
                "snr": lambda v: -0.5 * np.log(v),
                "angle": lambda v: np.log(np.tan(v)),
            }[clock](np.asarray(value, dtype=np.float64))
        return self.knot(self.time_at(-log_u))

    def time_at(self, lam: Number) -> Number:
        """The time at which log(alpha/sigma) is `lam`: float for a number, array for an array. `UserError` if it is never reached.

        The subclass's inverse (or a bracketing root finder) and one Newton step: `time_at(knot(t).lam) == t` to 1e-12.
        """
        lam = np.asarray(lam, dtype=np.float64)
        ends = self.knot(self.t_max).lam, self.knot(0.0).lam
        slack = 1e-12 * (1 + np.where(np.isinf(lam), 0.0, np.abs(lam)))
        if np.any(np.isnan(lam)) or np.any(lam < ends[0] - slack) or np.any(lam > ends[1] + slack):
            raise UserError(
                f"lam = log(alpha/sigma) = {lam} is never reached: {type(self).__name__} goes from {ends[0]:.6g} (noise) to {ends[1]:.6g}."
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = np.clip(self._time_at(lam), 0.0, self.t_max)
            log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
            slope = -0.5 * self.rates(t)[1] * np.exp(-2 * log_sigma)  # d lam/dt = -g2 / (2 sigma^2)
            better = t - (log_alpha - log_sigma - lam) / slope
        t = np.where(np.isfinite(better), np.clip(better, 0.0, self.t_max), t)
        return t if t.ndim else float(t)

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        """Closed form where the schedule has one; the default brackets the root in [0, t_max]."""
        with np.errstate(all="ignore"):
            found = elementwise.find_root(
                lambda t, lam: np.clip(self.log_alpha(t) - self.log_sigma(t), -1e4, 1e4) - lam,
                (np.zeros_like(lam), np.full_like(lam, self.t_max)),
                args=(np.clip(lam, -1e4, 1e4),),
            )
        return np.asarray(found.x)

    # --- the forward process --------------------------------------------------------------------------------------
    def forward(self, x0: Tensor, t: Knot | Number, noise: Tensor) -> Tensor:
        """`alpha_t x0 + sigma_t noise`: a draw of q(x_t | x0). t: a knot, a time, or an array with one time a sample."""
        t = self._knot(t)
        return combine(((t.alpha, x0), (t.sigma, noise)))

    def drift(self, x: Tensor, t: Knot | Number) -> Tensor:
        """`f x` of the forward SDE `dx = f x dt + g dW`."""
        return combine(((self._knot(t).f, x),))

    def diffusion(self, t: Knot | Number) -> Number:
        """`g` of the forward SDE, a float64 number."""
        return _sqrt(self._knot(t).g2)

    def transition(self, s: Knot | Number, t: Knot | Number) -> tuple[Number, Number]:
        """(scale, std) of `x_t | x_s ~ N(scale x_s, std^2)` from s to the noisier t: alpha_t/alpha_s, sigma_t sqrt(1 - (u_s/u_t)^2)."""
        s, t = self._knot(s), self._knot(t)
        if np.any(t.lam > s.lam):
            raise UserError(f"the forward process goes from cleaner to noisier times, not from {s.time} to {t.time}.")
        return _exp(t.log_alpha - s.log_alpha), t.sigma * _sqrt(_innovation(s, t))

    def posterior(self, x0: Tensor, x_t: Tensor, t: Knot | Number, s: Knot | Number) -> Posterior:
        """q(x_s | x_t, x0) for s cleaner than t. With a = alpha_t/alpha_s and v = sigma_t^2 - a^2 sigma_s^2 (DDPM, eq. 6 and 7):

        mean = (a sigma_s^2/sigma_t^2) x_t + (alpha_s v/sigma_t^2) x0, variance = v sigma_s^2/sigma_t^2.
        """
        t, s = self._knot(t), self._knot(s)
        if np.any(t.lam > s.lam):
            raise UserError(f"posterior(x0, x_t, t, s) needs s cleaner than t, not t = {t.time} and s = {s.time}.")
        part = _innovation(s, t)
        pull = _exp(t.log_alpha - s.log_alpha + 2 * (s.log_sigma - t.log_sigma))
        return Posterior(combine(((pull, x_t), (s.alpha * part, x0))), part * s.sigma**2)

    def _knot(self, t: Knot | Number) -> Knot:
        if isinstance(t, Tensor):
            t = t.detach().cpu().numpy().astype(np.float64)
        return t if isinstance(t, Knot) else self.knot(t)


def _innovation(s: Knot, t: Knot) -> Number:
    """`1 - (u_s/u_t)^2`: the share of sigma_t^2 that is new between s (cleaner) and t, without cancellation."""
    return -_expm1(2 * (t.lam - s.lam))


@lru_cache(maxsize=65536)
def _cached_knot(schedule: Schedule, t: float) -> Knot:
    return schedule._make(t)


@lru_cache(maxsize=65536)
def _cached_knot_at(schedule: Schedule, clock: str, value: float) -> Knot:
    return schedule._knot_at(clock, value)
