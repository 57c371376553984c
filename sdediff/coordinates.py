"""Coordinates of the probability flow: a scale, a clock and a velocity, `y = x / scale`, `dy/dclock = velocity`.

| coordinates | y | clock | dy/dclock |
|---|---|---|---|
| Time | x | time | dalpha x0 + dsigma eps (= f x - g2 score/2, finite also at alpha = 0) |
| Sigma | x/alpha | u = sigma/alpha | eps: Euler here is DDIM |
| Angle(d) | x/sqrt(alpha^2 d^2 + sigma^2) | atan(sigma/(alpha d)) | cos eps - sin x0/d, d = data std: unit variance all along |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .combine import Linear
from .names import UserError
from .prediction import Prediction
from .schedule import Knot, Number


class Coordinates(ABC):
    """How the probability flow is written. Values: `Time()`, `Sigma()`, `Angle(data_std)`."""

    @abstractmethod
    def scale(self, t: Knot) -> Number:
        """x / y."""

    @abstractmethod
    def clock(self, t: Knot) -> Number:
        """The independent variable."""

    @abstractmethod
    def velocity(self, p: Prediction) -> Linear:
        """dy/dclock at the prediction's instant."""

    @abstractmethod
    def knot(self, t: Knot, clock: Number) -> Knot:
        """The instant of t's schedule at which the clock reads `clock`."""


@dataclass(frozen=True)
class Time(Coordinates):
    """The raw state in the schedule's own time: score-SDE's probability flow ODE (eq. 13)."""

    def scale(self, t: Knot) -> Number:
        return 1.0

    def clock(self, t: Knot) -> Number:
        return t.time

    def velocity(self, p: Prediction) -> Linear:
        return p.mixed(p.at.dalpha, p.at.dsigma)

    def knot(self, t: Knot, clock: Number) -> Knot:
        return t.schedule.knot(clock)


@dataclass(frozen=True)
class Sigma(Coordinates):
    """y = x/alpha in u = sigma/alpha, dy/du = eps (DDIM, eq. 14; EDM's frame)."""

    def scale(self, t: Knot) -> Number:
        return t.alpha

    def clock(self, t: Knot) -> Number:
        return t.u

    def velocity(self, p: Prediction) -> Linear:
        return p.eps

    def knot(self, t: Knot, clock: Number) -> Knot:
        return t.schedule.knot_at("u", clock)


@dataclass(frozen=True)
class Angle(Coordinates):
    """y = x/sqrt(alpha^2 d^2 + sigma^2) in atan(sigma/(alpha d)), d = `data_std`: zero velocity for zero-mean Gaussian data of std d."""

    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.data_std > 0:
            raise UserError(f"Angle(data_std) needs a positive standard deviation, not {self.data_std}.")

    def __repr__(self) -> str:
        return "Angle()" if self.data_std == 1.0 else f"Angle(data_std={self.data_std})"

    def scale(self, t: Knot) -> Number:
        return (t.alpha**2 * self.data_std**2 + t.sigma**2) ** 0.5

    def clock(self, t: Knot) -> Number:
        if isinstance(t.sigma, float):
            return math.atan2(t.sigma, t.alpha * self.data_std)
        return np.arctan2(t.sigma, t.alpha * self.data_std)

    def velocity(self, p: Prediction) -> Linear:
        if self.data_std == 1.0:
            return p.v
        r = self.scale(p.at)
        return p.mixed(-p.at.sigma / (r * self.data_std), p.at.alpha * self.data_std / r)

    def knot(self, t: Knot, clock: Number) -> Knot:
        return t.schedule.knot_at("u", self.data_std * np.tan(clock))


COORDINATES = (Time, Sigma, Angle)


def checked(coordinates: object) -> None:
    """`UserError` unless these are coordinates."""
    if not isinstance(coordinates, Coordinates):
        raise UserError(f"coordinates must be Time(), Sigma() or Angle(data_std), not {coordinates!r}.")
