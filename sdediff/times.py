"""Which times a batch of training sees, and how much each counts.

A distribution of times is its quantile function, a frozen value: `at(schedule, u)` is the time below which a share u of them lies. The
uniform numbers u are independent, or spread evenly over the batch, u_i = (u + i/B) mod 1 (low discrepancy: Kingma et al. 2021, appendix I).
All times lie on [t_min, t_max] of the schedule. `Importance` draws times of large losses more often, and weights them so that the mean
over them is that of the distribution it began with; what it remembers is a tensor that comes in and goes out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit, ndtr, ndtri
from torch import Tensor

from .names import UserError, choose, positive
from .schedule import Schedule
from .schedules import DiscreteVP

STEPS = 1000  # of a chain, where the schedule does not say how many


class Draw(NamedTuple):
    """Times (B,), float64, and the weights (B,) of their losses that keep the mean (None: all 1)."""

    t: np.ndarray
    weight: np.ndarray | None


@dataclass(frozen=True)
class TimeDistribution(ABC):
    """A distribution of times. low_discrepancy: its quantiles are spread evenly over the batch instead of drawn one by one."""

    low_discrepancy: bool = field(default=False, kw_only=True)

    @abstractmethod
    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        """The times at the quantiles u in [0, 1), float64, on [t_min, t_max]; t_min: of the schedule by default."""

    def draw(
        self, schedule: Schedule, n: int, generator: torch.Generator, memory: Tensor | None = None, t_min: float | None = None
    ) -> Draw:
        """n times. Only `Importance` reads the memory."""
        return Draw(self.at(schedule, self._uniform(n, generator), t_min), None)

    def memory(self, schedule: Schedule, t_min: float | None = None) -> Tensor | None:
        """What `remember` begins with; None if there is nothing to remember."""
        return None

    def remember(self, memory: Tensor, t: np.ndarray, losses: Tensor) -> Tensor:
        """The memory after these losses (B,), before their weights, at the times t (B,)."""
        return memory

    def _uniform(self, n: int, generator: torch.Generator) -> np.ndarray:
        u = torch.rand(1 if self.low_discrepancy else n, generator=generator, dtype=torch.float64).numpy()
        return (u + np.arange(n) / n) % 1.0 if self.low_discrepancy else u


@dataclass(frozen=True)
class UniformTimes(TimeDistribution):
    """Uniform in the schedule's time."""

    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        low = lowest(schedule, t_min)
        return low + u * (schedule.t_max - low)


@dataclass(frozen=True)
class Indices(TimeDistribution):
    """The indices of a DiscreteVP, all equally likely (DDPM, algorithm 1); on other schedules `steps` even times (None: 1000)."""

    steps: int | None = None

    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        times = chain_times(schedule, self.steps, t_min)
        place = np.floor(u * len(times) + 1e-9).astype(np.int64)  # i/n times n may be rounded to below i
        return times[np.minimum(place, len(times) - 1)]


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """ln(sigma/alpha) is normal: EDM's noise levels (Karras et al. 2022, table 1), on any schedule; cut off at its ends."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal(self)

    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        ends = -schedule.knot(lowest(schedule, t_min)).lam, -schedule.knot(schedule.t_max).lam
        return np.asarray(schedule.time_at(-_between(self, u, *ends)))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """ln(t/(t_max - t)) is normal (Esser et al. 2024, for flow matching, where it is `LogNormal(mean, std)`), on [t_min, t_max]."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal(self)

    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        low = logit(lowest(schedule, t_min) / schedule.t_max)
        return schedule.t_max * expit(_between(self, u, low, np.inf))


@dataclass(frozen=True)
class Importance(TimeDistribution):
    """Times of large losses more often (Nichol & Dhariwal 2021, eq. 18): p proportional to sqrt(E L^2), weights 1/(p N).

    base: the distribution whose mean is kept, a name or a value; None: the indices of a DiscreteVP, elsewhere uniform times. It is cut into
    `bins` equally likely parts (None: one for each index, or 100); E L^2 of each is over its last `history` losses, and until all have
    as many, p is uniform. floor: the share of p that stays uniform, so that no weight exceeds 1/floor.
    The memory, float64 (bins, 2 + history): where the bin begins, how many losses it saw, and the last of them.
    """

    base: str | TimeDistribution | None = None
    bins: int | None = None
    history: int = 10
    floor: float = 1e-3

    def __post_init__(self) -> None:
        positive("history", self.history)
        if self.bins is not None:
            positive("bins", self.bins)
        if not 0 < self.floor <= 1:
            raise UserError(f"floor is the share of times drawn as before, above 0 and at most 1, not {self.floor!r}.")
        if self.base is not None:
            times_named(self.base)

    def at(self, schedule: Schedule, u: np.ndarray, t_min: float | None = None) -> np.ndarray:
        return self._base(schedule).at(schedule, u, t_min)

    def draw(
        self, schedule: Schedule, n: int, generator: torch.Generator, memory: Tensor | None = None, t_min: float | None = None
    ) -> Draw:
        if memory is None:
            return Draw(self.at(schedule, self._uniform(n, generator), t_min), None)
        p = self.probabilities(memory)
        cuts, u = np.append(0.0, np.cumsum(p)), self._uniform(n, generator)
        j = np.clip(np.searchsorted(cuts, u, side="right") - 1, 0, len(p) - 1)
        inside = np.clip((u - cuts[j]) / p[j], 0.0, 1.0 - 1e-12)
        return Draw(self.at(schedule, (j + inside) / len(p), t_min), 1 / (len(p) * p[j]))

    def memory(self, schedule: Schedule, t_min: float | None = None) -> Tensor:
        bins = self._count(schedule, t_min)
        empty = torch.zeros(bins, 2 + self.history, dtype=torch.float64)
        begins = self.at(schedule, np.arange(bins) / bins, t_min)
        if not (np.diff(begins) > 0).all():
            raise UserError(
                f"{bins} bins are more than the {len(np.unique(begins))} times: some would never see a loss, and importance sampling "
                "would never begin; leave bins out for one a time."
            )
        empty[:, 0] = torch.from_numpy(begins)
        return empty

    def remember(self, memory: Tensor, t: np.ndarray, losses: Tensor) -> Tensor:
        new, values = memory.numpy(force=True).copy(), losses.detach().double().cpu().numpy()
        j = np.clip(np.searchsorted(new[:, 0], t, side="right") - 1, 0, len(new) - 1)
        order = np.argsort(j, kind="stable")
        j, values = j[order], values[order]
        begins, sizes = (np.unique(j, return_index=True, return_counts=True))[1:]
        rank = np.arange(len(j)) - np.repeat(begins, sizes)  # which loss of this batch in its bin
        kept = rank >= np.repeat(sizes, sizes) - self.history
        slot = (new[j, 1].astype(np.int64) + rank) % self.history
        new[j[kept], 2 + slot[kept]] = values[kept]
        new[j[begins], 1] += sizes
        return torch.from_numpy(new)

    def probabilities(self, memory: Tensor) -> np.ndarray:
        """How often each bin is drawn, (bins,)."""
        known = memory.numpy(force=True)
        size = np.sqrt(np.mean(known[:, 2:] ** 2, axis=1))
        if known[:, 1].min() < self.history or not size.sum() > 0:
            return np.full(len(known), 1 / len(known))
        return (1 - self.floor) * size / size.sum() + self.floor / len(known)

    def _base(self, schedule: Schedule) -> TimeDistribution:
        if self.base is None:
            return Indices() if isinstance(schedule, DiscreteVP) else UniformTimes()
        return times_named(self.base)

    def _count(self, schedule: Schedule, t_min: float | None) -> int:
        base = self._base(schedule)
        if self.bins is None and isinstance(base, Indices):
            return len(chain_times(schedule, base.steps, t_min))
        return self.bins or 100


def times_named(times: str | TimeDistribution) -> TimeDistribution:
    """The distribution of this name, or itself. `UserError` for another."""
    if isinstance(times, TimeDistribution):
        return times
    choose("times", times, TIMES)
    return TIMES[times]


def lowest(schedule: Schedule, t_min: float | None) -> float:
    """Where times begin. `UserError` unless that is on the schedule."""
    low = schedule.t_min if t_min is None else t_min
    if not 0 <= low < schedule.t_max:
        raise UserError(f"times begin at t_min = {low!r}, which must be at least 0 and below t_max = {schedule.t_max:g}.")
    return low


def of_chain(what: str, times: TimeDistribution, steps: int | None) -> TimeDistribution:
    """These times as draws of the chain of `steps` steps (what: whose). `UserError` unless they are, or leave the steps open."""
    base = times.base if isinstance(times, Importance) else times
    base = times_named(base) if isinstance(base, str) else base
    if not isinstance(base, Indices | None) or (base is not None and base.steps not in (None, steps)):
        raise UserError(
            f"{what} is over a chain of {'steps=None' if steps is None else f'{steps} steps'}, and {times!r} draws other times: take "
            f"'index' or Importance(Indices()), and say steps in VLB."
        )
    chain = Indices(steps) if base is None else replace(base, steps=steps)
    return replace(times, base=chain) if isinstance(times, Importance) else chain


def chain_times(schedule: Schedule, steps: int | None = None, t_min: float | None = None) -> np.ndarray:
    """The times of a chain of N steps, cleanest first: the indices of a DiscreteVP, or N even times from t_min to t_max."""
    if isinstance(schedule, DiscreteVP):
        if steps not in (None, schedule.n) or t_min is not None:
            raise UserError(f"this DiscreteVP has a chain of its own, its {schedule.n} indices: leave steps and t_min out.")
        return (np.arange(schedule.n) + 1) / schedule.n
    n = STEPS if steps is None else positive("steps", steps)
    if n < 2:
        raise UserError(f"a chain has at least 2 steps, not {n}.")
    return np.linspace(lowest(schedule, t_min), schedule.t_max, n)


def _between(normal: LogNormal | LogitNormal, u: np.ndarray, low: float, high: float) -> np.ndarray:
    """The quantiles of a normal number that is cut off at `low` and `high`."""
    first, last = (ndtr((end - normal.mean) / normal.std) for end in (low, high))
    if not last - first > 1e-6:
        raise UserError(f"{normal!r} has no probability where the schedule is, from {low:.4g} to {high:.4g}: move its mean there.")
    return np.clip(normal.mean + normal.std * ndtri(first + u * (last - first)), low, high)


def _check_normal(normal: LogNormal | LogitNormal) -> None:
    if not (np.isfinite(normal.mean) and 0 < normal.std < np.inf):
        raise UserError(f"{type(normal).__name__} needs a finite mean and a positive std, not {normal.mean!r} and {normal.std!r}.")


TIMES = {
    "low_discrepancy": UniformTimes(low_discrepancy=True),
    "uniform": UniformTimes(),
    "index": Indices(),
    "log_normal": LogNormal(),
    "logit_normal": LogitNormal(),
    "importance": Importance(),
}
