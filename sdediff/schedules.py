"""The schedules: VP linear, cosine and discrete; sub-VP, VE, EDM, flow matching; and the shift of any of them.

Each is `log_alpha(t)` (and `log_sigma(t)` unless sigma^2 = 1 - alpha^2), its rates in closed form, and the inverse of lam.
Everything is written so that it is exact to rounding at both ends: `expm1`, `log1p`, sines of the distance from the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.interpolate import make_interp_spline

from .names import UserError
from .schedule import Knot, Number, Schedule

# --- variance preserving ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VPLinear(Schedule):
    """beta(t) = beta_min + t (beta_max - beta_min) on [0, 1]: log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2.

    The VP-SDE of score-SDE (Song et al. 2021, eq. 32), the limit of DDPM's linear betas.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"VPLinear needs 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}.")

    def log_alpha(self, t: Number) -> Number:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        return _vp_rates(-0.5 * beta, self.log_alpha(t), self.log_sigma(t))

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return _linear_beta_time(self.log_alpha_of(lam), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class VPCosine(Schedule):
    """alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (improved DDPM, eq. 17), used on [0, 0.9946] as DPM-Solver does.

    Written with sines of the distance from either end, so that it is exact to rounding near t = 0 and near t = 1.
    """

    s: float = 0.008
    t_max: ClassVar[float] = 0.9946  # type: ignore[misc]

    def __post_init__(self) -> None:
        if not self.s > 0:
            raise UserError(f"VPCosine needs s > 0, not {self.s}.")

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    def log_alpha(self, t: Number) -> Number:
        k, start = self._rate, self._rate * self.s
        near_data = np.log1p(-2 * np.sin(0.5 * k * t) ** 2 - math.tan(start) * np.sin(k * t))
        return np.where(np.real(t) < 0.5, near_data, np.log(np.sin(k * (1 - t))) - math.log(math.cos(start)))

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        f = -self._rate / np.tan(self._rate * (1 - t))
        return _vp_rates(f, self.log_alpha(t), self.log_sigma(t))

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        k, start = self._rate, self._rate * self.s
        return (np.arccos(np.exp(self.log_alpha_of(lam)) * math.cos(start)) - start) / k


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    """DDPM's betas as a schedule: index i of N is the time (i+1)/N, alpha_i^2 = prod_{j<=i} (1 - beta_j), and time 0 is the data.

    Between the indices log alpha is interpolated in time: "linear" (DPM-Solver's choice; f jumps at every index, so no method is of
    order above 1 to 2 on it) or "spline" (quintic, smooth: for high orders). At an index, linear's f is that of the interval before it.
    """

    betas: tuple[float, ...] = field(repr=False)
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if self.interpolation not in ("linear", "spline"):
            raise UserError(f'interpolation {self.interpolation!r} does not exist; choose "linear" or "spline".')
        if len(self.betas) < 2 or not all(0 < b < 1 for b in self.betas):
            raise UserError("DiscreteVP needs at least two betas, each between 0 and 1 (alpha_i^2 = prod (1 - beta_j)).")
        if self.interpolation == "spline" and np.any(self._spline.derivative()(np.linspace(0, 1, 8 * len(self.betas) + 1)) >= 0):
            raise UserError("these betas are too uneven for a spline (log alpha would not decrease); use interpolation='linear'.")

    @staticmethod
    def linear(n: int = 1000, first: float = 1e-4, last: float = 0.02, interpolation: str = "linear") -> DiscreteVP:
        """DDPM's betas: n equally spaced from `first` to `last`."""
        return DiscreteVP(tuple(np.linspace(first, last, n)), interpolation)

    @staticmethod
    def cosine(n: int = 1000, s: float = 0.008, cap: float = 0.999, interpolation: str = "linear") -> DiscreteVP:
        """Improved DDPM's betas: 1 - (alpha_{i+1}/alpha_i)^2 of the cosine, at most `cap`."""
        bar = np.cos((np.arange(n + 1) / n + s) / (1 + s) * math.pi / 2) ** 2
        return DiscreteVP(tuple(np.minimum(1 - bar[1:] / bar[:-1], cap)), interpolation)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.betas, self.interpolation))

    @property
    def n(self) -> int:
        """How many indices there are."""
        return len(self.betas)

    @cached_property
    def _times(self) -> np.ndarray:
        return np.arange(self.n + 1) / self.n

    @cached_property
    def _log_alphas(self) -> np.ndarray:
        return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.asarray(self.betas)))])

    @cached_property
    def _spline(self):
        return make_interp_spline(self._times, self._log_alphas, k=min(5, self.n))

    def time_of(self, index: int) -> float:
        """The time of a DDPM index: (index + 1)/N; -1 is the data."""
        if not -1 <= index < self.n:
            raise UserError(f"index {index} is outside this schedule: it has -1 (data) to {self.n - 1}.")
        return (index + 1) / self.n

    def log_alpha(self, t: Number) -> Number:
        return np.interp(t, self._times, self._log_alphas) if self.interpolation == "linear" else self._spline(t)

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        if self.interpolation == "spline":
            f = self._spline.derivative()(t)
        else:
            after = np.clip(np.searchsorted(self._times, t, side="left"), 1, self.n)
            f = (self._log_alphas[after] - self._log_alphas[after - 1]) * self.n
        return _vp_rates(f, self.log_alpha(t), self.log_sigma(t))

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        if self.interpolation == "linear":
            return np.interp(-self.log_alpha_of(lam), -self._log_alphas, self._times)
        return super()._time_at(lam)

    def __repr__(self) -> str:
        return f"DiscreteVP(<{self.n} betas from {self.betas[0]:g} to {self.betas[-1]:g}>, {self.interpolation!r})"


def _vp_rates(f: Number, log_alpha: Number, log_sigma: Number) -> tuple[Number, Number, Number, Number]:
    """(f, g2, dalpha, dsigma) when sigma^2 = 1 - alpha^2: g2 = -2 f, dsigma = -f alpha^2/sigma."""
    return f, -2 * f, f * np.exp(log_alpha), -f * np.exp(2 * log_alpha - log_sigma)


def _linear_beta_time(log_alpha: np.ndarray, beta_min: float, beta_max: float) -> np.ndarray:
    """The positive root of t^2 (beta_max - beta_min)/4 + t beta_min/2 + log alpha = 0, without cancellation."""
    return -2 * log_alpha / (0.5 * beta_min + np.sqrt(0.25 * beta_min**2 - (beta_max - beta_min) * log_alpha))


# --- the relatives ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubVP(Schedule):
    """sub-VP SDE of score-SDE (eq. 29): alpha of VPLinear, sigma = 1 - alpha^2, g2 = beta (1 - alpha^4)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        VPLinear(self.beta_min, self.beta_max)

    def log_alpha(self, t: Number) -> Number:
        return VPLinear.log_alpha(self, t)  # type: ignore[arg-type]

    def log_sigma(self, t: Number) -> Number:
        return np.log(-np.expm1(2 * self.log_alpha(t)))

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        beta, log_alpha = self.beta_min + t * (self.beta_max - self.beta_min), self.log_alpha(t)
        alpha2 = np.exp(2 * log_alpha)
        return -0.5 * beta, -beta * np.expm1(4 * log_alpha), -0.5 * beta * np.exp(log_alpha), beta * alpha2

    def log_alpha_of(self, lam: Number) -> Number:
        return -np.arcsinh(0.5 * np.exp(-lam))

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return _linear_beta_time(self.log_alpha_of(lam), self.beta_min, self.beta_max)


class _Exploding(Schedule):
    """alpha = 1: the variance explodes."""

    def log_alpha(self, t: Number) -> Number:
        return 0.0 * t

    def log_alpha_of(self, lam: Number) -> Number:
        return np.zeros_like(lam)


@dataclass(frozen=True)
class VE(_Exploding):
    """sigma = sigma_min (sigma_max/sigma_min)^t on [0, 1] (score-SDE, eq. 30): x = x0 + sigma eps, so t = 0 still has sigma_min."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: ClassVar[float] = 0.0  # type: ignore[misc]

    def __post_init__(self) -> None:
        _sigmas(self)

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_sigma(self, t: Number) -> Number:
        return math.log(self.sigma_min) + t * self._log_ratio

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        sigma = np.exp(self.log_sigma(t))
        return 0.0 * t, 2 * self._log_ratio * sigma**2, 0.0 * t, self._log_ratio * sigma

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return (-lam - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class EDM(_Exploding):
    """sigma = t (Karras et al. 2022): time IS sigma, from sigma_max down to sigma_min (and 0, the data). g2 = 2 t."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _sigmas(self)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def log_sigma(self, t: Number) -> Number:
        return np.log(t)

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        return 0.0 * t, 2.0 * t, 0.0 * t, 0.0 * t + 1.0

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return np.exp(-lam)


def _sigmas(schedule: VE | EDM) -> None:
    if not 0 < schedule.sigma_min < schedule.sigma_max:
        raise UserError(f"{type(schedule).__name__} needs 0 < sigma_min < sigma_max, not {schedule.sigma_min} and {schedule.sigma_max}.")


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """alpha = 1 - t, sigma = t: rectified flow, t = 0 at the data. At t = 1 alpha = 0: a network that predicts eps says nothing there."""

    def log_alpha(self, t: Number) -> Number:
        return np.log1p(-t)

    def log_sigma(self, t: Number) -> Number:
        return np.log(t)

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        one = 0.0 * t + 1.0
        left = np.asarray(1.0 - t)
        return -1 / left, 2 * t / left, -one, one

    def log_alpha_of(self, lam: Number) -> Number:
        return -np.logaddexp(0.0, -lam)

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return np.exp(-np.logaddexp(0.0, lam))


@dataclass(frozen=True)
class Shifted(Schedule):
    """`schedule` with u = sigma/alpha multiplied by `s` at every time: the family (VP stays VP) is kept, the clock is shifted.

    The resolution shift of simple diffusion (Hoogeboom et al. 2023: s = new side/old side moves log-SNR by -2 log s) and, for
    `FlowMatching`, the time shift t' = s t/(1 + (s-1) t) of Stable Diffusion 3 (Esser et al. 2024, eq. 23).
    """

    schedule: Schedule
    s: float

    def __post_init__(self) -> None:
        if not self.s > 0:
            raise UserError(f"Shifted needs a shift s > 0, not {self.s}.")
        if isinstance(self.schedule, Shifted):  # a shift of a shift is one shift
            object.__setattr__(self, "s", self.s * self.schedule.s)
            object.__setattr__(self, "schedule", self.schedule.schedule)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.schedule.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.schedule.t_max

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.schedule.prior_std * (self.s if isinstance(self.schedule, VE | EDM) else 1.0)

    def _base(self, t: Number) -> Knot:
        return self.schedule.knot(t)

    def log_alpha(self, t: Number) -> Number:
        return self.schedule.log_alpha_of(self._lam(t))

    def log_sigma(self, t: Number) -> Number:
        with np.errstate(invalid="ignore"):
            shifted = self.log_alpha(t) - self._lam(t)
        return np.where(np.isneginf(self._lam(t)), self._base(t).log_sigma, shifted)

    def _lam(self, t: Number) -> Number:
        return np.asarray(self._base(t).lam - math.log(self.s))

    def rates(self, t: Number) -> tuple[Number, Number, Number, Number]:
        """With R = alpha'/alpha: g2' = g2 (s R)^2 in any family, and f' = f times the ratio of d log alpha/d lam, which the family fixes.

        R is taken from sigma where alpha = 0, and s R from alpha where sigma = 0, so that both ends are finite.
        """
        base, log_alpha, log_sigma = self._base(t), self.log_alpha(t), self.log_sigma(t)
        by_alpha, by_sigma = np.exp(log_alpha - base.log_alpha), np.exp(log_sigma - base.log_sigma) / self.s
        ratio = np.where(np.isfinite(by_alpha), by_alpha, by_sigma)
        g2 = base.g2 * (self.s * ratio) ** 2
        stretch = np.where(base.f == 0, 1.0, self._family_ratio(base, log_alpha, self.s * ratio))
        f = base.f * stretch
        dalpha = np.where(np.isfinite(f), base.dalpha * ratio * stretch, base.dalpha * self.s * ratio**2)
        if isinstance(self.schedule, FlowMatching):
            return f, g2, dalpha, -dalpha
        return f, g2, dalpha, f * np.exp(log_sigma) + self.s * ratio * (base.dsigma - base.f * base.sigma)

    def _family_ratio(self, base: Knot, log_alpha: Number, sigma_ratio: Number) -> Number:
        """d log alpha/d lam, shifted over base: it is sigma^2 (VP), sigma (flow), q/sqrt(1+q^2) with q = u/2 (sub-VP)."""
        if isinstance(self.schedule, FlowMatching):
            return sigma_ratio
        if isinstance(self.schedule, SubVP):
            return self.s * np.sqrt((1 + 0.25 * base.u**2) / (1 + 0.25 * (self.s * base.u) ** 2))
        return sigma_ratio**2

    def log_alpha_of(self, lam: Number) -> Number:
        return self.schedule.log_alpha_of(lam)

    def _time_at(self, lam: np.ndarray) -> np.ndarray:
        return np.asarray(self.schedule.time_at(lam + math.log(self.s)))
