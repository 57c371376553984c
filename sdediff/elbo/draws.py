"""The noise of a bound: counted draws, or points that integrate any quadratic exactly."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..noise import White

STATE, STEP, DECODER, PLACE = range(4)  # what a draw is for: the noise in x_t, of the step, before the decoder; where the step is


class Drawn(Protocol):
    """The noise of a bound, of draw k in part j. count: how many draws there are, 0 for any number."""

    @property
    def count(self) -> int: ...

    def normal(self, j: int, k: int, which: int) -> Tensor: ...

    def uniform(self, j: int, k: int) -> np.ndarray: ...


class Random:
    """Counted noise: a pure function of (seed, sample index, part, draw)."""

    count = 0

    def __init__(self, seed: int, x: Tensor, index: Tensor):
        self._noise = White(seed).on(x, index)
        self._single = White(seed).on(torch.empty(len(x), 1, dtype=torch.float64), index)

    def normal(self, j: int, k: int, which: int) -> Tensor:
        return self._noise.fresh(_key(j, k, which))

    def uniform(self, j: int, k: int) -> np.ndarray:
        return torch.special.ndtr(self._single.fresh(_key(j, k, PLACE))[:, 0]).numpy()


class Points:
    """The 2 D points +- sqrt(D) e_i, D = normals times d: their mean of any quadratic is that under N(0, I)."""

    def __init__(self, x: Tensor, normals: int):
        self._x, self._d = x, x[0].numel()
        self._radius = math.sqrt(normals * self._d)
        self.count = 2 * normals * self._d

    def normal(self, j: int, k: int, which: int) -> Tensor:
        part, coordinate = divmod(k // 2, self._d)
        z = torch.zeros_like(self._x)
        if part == (which == STEP):
            z.reshape(len(z), -1)[:, coordinate] = self._radius * (-1) ** k
        return z

    def uniform(self, j: int, k: int) -> np.ndarray:
        raise NotImplementedError


def _key(j: int, k: int, which: int) -> int:
    return (k << 34) | (j << 2) | which
