"""The solution between knots: a polynomial through the states at the knots around, in unit-variance coordinates.

y = x/sqrt(alpha^2 + sigma^2) is smooth in theta = atan(sigma/alpha). For a method of order p the polynomial has degree p + 1 or more: off
by no more than a step. It goes through the states at the knots, and where the solver remembers the network's answers it has their slopes,
too (Hermite's polynomial, through fewer knots, closer by).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .combine import combine
from .names import UserError
from .schedule import Knot, Schedule


@dataclass(frozen=True, eq=False)
class Dense:
    """Times (N + 1, B) in order (a sample that has ended repeats its last), the states (N + 1, B, ...) there, and the method's order.

    slopes: dy/dtheta (N + 1, B, ...), or None.
    """

    schedule: Schedule
    times: np.ndarray
    states: Tensor
    order: int
    slopes: Tensor | None = None

    def at(self, t: Knot | float | np.ndarray) -> Tensor:
        """The states (B, ...) at one time for all, or at one a sample. `UserError` outside the times that a sample has seen."""
        first, last = self.times[0], self.times[-1]
        time = np.broadcast_to(np.asarray(t.time if isinstance(t, Knot) else t, dtype=np.float64), first.shape)
        outside = np.flatnonzero((time < np.minimum(first, last)) | (time > np.maximum(first, last)) | np.isnan(time))
        if len(outside):
            i = int(outside[0])
            raise UserError(f"sample {i} was solved from time {first[i]:g} to {last[i]:g}: there is nothing at {time[i]:g}.")
        count = 1 + (np.diff(self.times, axis=0) != 0).sum(0)
        behind = self.times * np.sign(last - first) < time * np.sign(last - first)
        place = (behind & (np.arange(len(self.times))[:, None] < count)).sum(0)  # of the first knot that is not before
        n = self.order + 2 if self.slopes is None else max(2, (self.order + 4) // 2)
        start = np.clip(place - n // 2, 0, np.maximum(count - n, 0))
        return self._through(time, [np.minimum(start + j, count - 1) for j in range(n)], [start + j < count for j in range(n)])

    def _through(self, time: np.ndarray, chosen: list[np.ndarray], valid: list[np.ndarray]) -> Tensor:
        """Through the chosen knots: sum_j l_j y_j, or with slopes sum_j l_j^2 ((1 - 2 l_j' d_j) y_j + d_j y_j'), d_j = theta - theta_j."""
        samples = np.arange(len(time))
        knots, to = [self.schedule.knot(self.times[c, samples]) for c in chosen], self.schedule.knot(time)
        terms: list[tuple[Any, Tensor]] = []
        for j, (knot, c) in enumerate(zip(knots, chosen, strict=True)):
            lagrange, slope = 1.0 * valid[j], 0.0
            for i, other in enumerate(knots):
                if i != j:
                    between = np.where(valid[i] & valid[j], knot.angle - other.angle, 1.0)
                    lagrange = lagrange * np.where(valid[i], (to.angle - other.angle) / between, 1.0)
                    slope = slope + np.where(valid[i], 1.0 / between, 0.0)
            scale, off = _norm(to) / _norm(knot), to.angle - knot.angle
            if self.slopes is None:
                terms.append((lagrange * scale, self._rows(self.states, c)))
            else:
                terms.append((lagrange**2 * (1 - 2 * slope * off) * scale, self._rows(self.states, c)))
                terms.append((lagrange**2 * off * _norm(to), self._rows(self.slopes, c)))
        return combine(terms)

    def _rows(self, x: Tensor, place: np.ndarray) -> Tensor:
        return x[torch.as_tensor(place, device=x.device), torch.arange(len(place), device=x.device)]


def _norm(t: Knot) -> np.ndarray:
    return np.sqrt(t.alpha**2 + t.sigma**2)
