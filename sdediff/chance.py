"""The random numbers of one training step: functions of (seed, step, place in the batch), however the batch is split.

A batch is split over processes and over accumulated parts. Whoever trains sample i of the batch draws what belongs to sample i, so the
loss does not depend on the split. Normals come in blocks of `BLOCK` samples, each from a generator of its own, so a process draws hardly
more than its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
_KEYS = 16  # streams of one step, each with its own seeds


@dataclass(frozen=True)
class Chance:
    """Of the samples `first` .. `first + n - 1` of the `total` of step `step`. Keys below 16 tell streams apart."""

    seed: int
    step: int
    first: int
    n: int
    total: int

    @property
    def rows(self) -> slice:
        """Where these samples stand in the whole batch."""
        return slice(self.first, self.first + self.n)

    def noise(self, like: Tensor, key: int = 0) -> Tensor:
        """Standard normals of the shape, dtype and device of `like` (n, ...)."""
        begin, end = self.first // BLOCK, -(-(self.first + self.n) // BLOCK)
        options = {"dtype": like.dtype, "device": like.device}
        parts = [torch.randn(BLOCK, *like.shape[1:], generator=self._of(key, b + 1, like.device), **options) for b in range(begin, end)]
        skipped = self.first - begin * BLOCK
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[skipped : skipped + self.n]

    def uniform(self, key: int = 0) -> np.ndarray:
        """Uniform numbers in [0, 1), float64 (n,)."""
        whole = torch.rand(self.total, generator=self._of(key, 0), dtype=torch.float64)
        return whole.numpy()[self.rows]

    def generator(self) -> torch.Generator:
        """A generator on the CPU for what is drawn for the whole batch: the same for every part of it."""
        return self._of(_KEYS - 1, 0)

    def _of(self, key: int, block: int, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(seed_of(seed_of(self.seed, self.step), _KEYS * block + key))


def seed_of(seed: int, k: int) -> int:
    """One seed for each pair: distinct for all (seed, k) below 2^31."""
    return (seed * 0x9E3779B97F4A7C15 + k * 0xBF58476D1CE4E5B9) % (1 << 63)
