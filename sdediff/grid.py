"""Where to put the knots of a run: a grid turns (schedule, number of steps, start, end) into a tuple of exact instants.

Each grid is uniform in some function of the instant; sampling runs from the noisy start to the clean end, strictly decreasing in time.
Both ends are hit exactly. To run upward (encode), reverse the tuple.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from .clock import ANGLE_CLOCKS, angle_at, clock_reading
from .names import UserError, choose, positive
from .schedule import Knot, Schedule
from .schedules import DiscreteVP


class Grid(ABC):
    """`grid.knots(schedule, steps)` -> steps + 1 knots from `start` (default t_max) down to `end` (default t_min), both times."""

    @abstractmethod
    def knots(self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> tuple[Knot, ...]:
        """The knots, noisiest first. Raises `UserError` for steps < 1 or ends outside the schedule or in the wrong order."""


class _Even(Grid):
    """Knots evenly spaced in a reading of the instant."""

    @abstractmethod
    def read(self, knot: Knot) -> float:
        """The reading that is evenly spaced."""

    @abstractmethod
    def place(self, schedule: Schedule, reading: float) -> Knot:
        """The instant with that reading."""

    def knots(self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> tuple[Knot, ...]:
        first, last = ends(schedule, steps, start, end)
        low, high = self.read(first), self.read(last)
        if not np.isfinite([low, high]).all():
            bad = first if not np.isfinite(low) else last
            raise UserError(
                f"{self!r} cannot reach time {bad.time:g} (alpha = {bad.alpha:g}, sigma = {bad.sigma:g}), where its reading is infinite: "
                f"start or end short of it, or use Uniform(), Power(p) or AngleUniform()."
            )
        inner = [self.place(schedule, float(r)) for r in np.linspace(low, high, steps + 1)[1:-1]]
        return checked((first, *inner, last))


@dataclass(frozen=True)
class Power(_Even):
    """Evenly spaced in time^(1/p): p = 1 uniform, 2 quadratic, 3 cubic in an even parameter."""

    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise UserError(f"Power(p) needs p > 0, not {self.p}.")

    def read(self, knot: Knot) -> float:
        return knot.time ** (1 / self.p)

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot(min(reading**self.p, schedule.t_max))


@dataclass(frozen=True)
class Uniform(_Even):
    """Evenly spaced in time."""

    def read(self, knot: Knot) -> float:
        return knot.time

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot(reading)


@dataclass(frozen=True)
class Quadratic(_Even):
    """Evenly spaced in the square root of time (DEIS, and DDIM's quadratic sub-sequence in the limit)."""

    def read(self, knot: Knot) -> float:
        return Power(2.0).read(knot)

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return Power(2.0).place(schedule, reading)


@dataclass(frozen=True)
class LogSNR(_Even):
    """Evenly spaced in lam = log(alpha/sigma) (DPM-Solver)."""

    def read(self, knot: Knot) -> float:
        return knot.lam

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot_at("lam", reading)


@dataclass(frozen=True)
class AsinhLogSNR(_Even):
    """Evenly spaced in asinh((lam - center)/width): dense within `width` of `center`, steps growing in proportion beyond; any schedule."""

    center: float = 0.0
    width: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center) and 0 < self.width < math.inf):
            raise UserError(f"AsinhLogSNR(center, width) needs a finite center and a positive width, not {self.center} and {self.width}.")

    def read(self, knot: Knot) -> float:
        return math.asinh((knot.lam - self.center) / self.width)

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot_at("lam", self.center + self.width * math.sinh(reading))


@dataclass(frozen=True)
class Karras(_Even):
    """Evenly spaced in u^(1/rho), u = sigma/alpha (Karras et al. 2022, eq. 5, with rho = 7)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise UserError(f"Karras(rho) needs rho > 0, not {self.rho}.")

    def read(self, knot: Knot) -> float:
        return knot.u ** (1 / self.rho)

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot_at("u", reading**self.rho)


@dataclass(frozen=True)
class AngleUniform(_Even):
    """Evenly spaced in the angle atan(sigma/alpha), or on a clock of it: "root" (dense at the data), "roots" (at both ends). clock.py."""

    clock: str = "angle"

    def __post_init__(self) -> None:
        choose("clock", self.clock, ANGLE_CLOCKS)

    def read(self, knot: Knot) -> float:
        return clock_reading(self.clock, knot.angle)

    def place(self, schedule: Schedule, reading: float) -> Knot:
        return schedule.knot_at("angle", angle_at(self.clock, reading))


@dataclass(frozen=True)
class Times(Grid):
    """These very times, strictly decreasing. `steps`, if given to `knots`, must be one less than their number."""

    times: tuple[float, ...] = field(default=())

    def __init__(self, *times: float | Sequence[float]):
        given: Any = times[0] if len(times) == 1 and not isinstance(times[0], int | float) else times
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        try:
            object.__setattr__(self, "times", tuple(float(t) for t in given))
        except (TypeError, ValueError):
            raise UserError(f"Times(...) takes numbers, not {given!r}.") from None
        if len(self.times) < 2:
            raise UserError("Times(...) needs at least two times: a start and an end.")

    def __repr__(self) -> str:
        return f"Times({', '.join(map(repr, self.times))})"

    def knots(self, schedule: Schedule, steps: int | None = None, start: float | None = None, end: float | None = None) -> tuple[Knot, ...]:
        if steps is not None and steps != len(self.times) - 1:
            raise UserError(f"{self!r} has {len(self.times) - 1} steps, but {steps} were asked for; leave steps out or change the times.")
        if (start, end) not in ((None, None), (self.times[0], self.times[-1])):
            raise UserError(f"Times fixes both ends ({self.times[0]:g} and {self.times[-1]:g}); leave start and end out.")
        return checked(schedule.knots(self.times))


@dataclass(frozen=True)
class DDPMSubsequence(Grid):
    """A sub-sequence of DDPM's indices and then the data (index -1, time 0): `steps` network calls, all at trained indices.

    spacing, for N indices and S steps: "leading" offset + i (N // S) (the DDIM paper's uniform; offset = 1 in Stable Diffusion);
    "trailing" round(N - i N/S) - 1; "linspace" round(linspace(0, N-1, S)); "quadratic" int(linspace(0, sqrt(0.8 N), S)^2) (DDIM).
    The paper's quadratic spacing repeats its smallest indices when S is large (S = 50 of N = 1000: index 0 twice); a repeated index is a
    step to itself and is left out, so there may be fewer than S steps: `solver.calls(knots)` says how many.
    Only on a `DiscreteVP`.
    """

    spacing: str = "leading"
    offset: int = 0

    def __post_init__(self) -> None:
        choose("spacing", self.spacing, ("leading", "trailing", "linspace", "quadratic"))
        if not isinstance(self.offset, int):
            raise UserError(f"offset must be a whole number, not {self.offset!r}.")

    def indices(self, n: int, steps: int) -> np.ndarray:
        """The indices, noisiest first, out of 0 .. n-1, each once. `UserError` for more steps than indices, or an offset past the end."""
        if positive("steps", steps) > n:
            raise UserError(f"{steps} steps were asked for, but the schedule has {n} indices; ask for at most {n}.")
        i = {
            "leading": lambda: np.arange(steps) * (n // steps) + self.offset,
            "trailing": lambda: (np.round(np.arange(n, 0, -n / steps)).astype(int) - 1)[:steps][::-1],
            "linspace": lambda: np.round(np.linspace(0, n - 1, steps)).astype(int),
            "quadratic": lambda: (np.linspace(0, np.sqrt(0.8 * n), steps) ** 2).astype(int),
        }[self.spacing]()
        distinct = np.unique(i)
        if i.max() >= n or i.min() < 0:
            raise UserError(
                f"the {self.spacing} sub-sequence with offset {self.offset} leaves the {n} indices at {steps} steps; "
                "ask for fewer steps, or a smaller offset."
            )
        return distinct[::-1]

    def knots(self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> tuple[Knot, ...]:
        if not isinstance(schedule, DiscreteVP):
            raise UserError(f"DDPMSubsequence picks indices of a DiscreteVP, and {type(schedule).__name__} has none; use Uniform().")
        if (start, end) != (None, None):
            raise UserError("DDPMSubsequence starts at its largest index and ends at the data; leave start and end out.")
        return schedule.knots([schedule.time_of(int(i)) for i in self.indices(schedule.n, steps)] + [0.0])


GRIDS = (Uniform, Quadratic, Power, LogSNR, AsinhLogSNR, Karras, AngleUniform, Times, DDPMSubsequence)


def ends(schedule: Schedule, steps: int, start: float | None, end: float | None) -> tuple[Knot, Knot]:
    """The first and last knot of a run down, checked."""
    positive("steps", steps)
    first = schedule.knot(schedule.t_max if start is None else start)
    last = schedule.knot(schedule.t_min if end is None else end)
    if not first.time > last.time:
        raise UserError(f"a grid goes down in time, from noise to data: start {first.time:g} must be above end {last.time:g}.")
    return first, last


def checked(knots: Sequence[Knot]) -> tuple[Knot, ...]:
    """The knots as a tuple, or `UserError` unless their times strictly decrease."""
    for i, (t, s) in enumerate(pairwise(knots)):
        if not t.time > s.time:
            raise UserError(
                f"a grid must strictly decrease in time, but time {i} is {t.time:g} and time {i + 1} is {s.time:g}; "
                "sort the times from noise to data and drop repeated ones (to encode, reverse the finished tuple of knots)."
            )
    return tuple(knots)
