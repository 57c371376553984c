"""Noise as an argument: pure functions of (seed, global sample index, arguments).

`noise(a, b)` is an increment ~ N(0, |b - a|) on the solver's clock, `noise.fresh(key)` is N(0, I) off the path. Sample i gets the same
noise whatever the batch size, the order or the number of processes, because every number is made by a counter: a 128-bit key hashed
from (seed, index, arguments) and the position, through two rounds of the SplitMix64 finaliser (Steele et al. 2014), then Box-Muller.
`White(seed)`: independent increments. `Brownian(seed, range)`: one fixed path a sample, the same for every step count (a lazily built
bisection tree, bridged exactly at its nodes). Both are values; `.on(x)` binds them to the shape of a state.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .names import UserError

_MASK = (1 << 64) - 1
_GOLDEN, _C1, _C2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(z: int) -> int:
    z &= _MASK
    return z - (1 << 64) if z >> 63 else z


def _mix_number(z: int) -> int:
    """The SplitMix64 finaliser on a Python integer."""
    z &= _MASK
    z = (z ^ (z >> 30)) * _C1 & _MASK
    z = (z ^ (z >> 27)) * _C2 & _MASK
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    """The same on an int64 tensor (in place on `z`); shifts are made logical by a mask."""
    z = z.bitwise_xor_((z >> 30) & ((1 << 34) - 1)).mul_(_signed(_C1))
    z = z.bitwise_xor_((z >> 27) & ((1 << 37) - 1)).mul_(_signed(_C2))
    return z.bitwise_xor_((z >> 31) & ((1 << 33) - 1))


def _fold(seed: int, words: Iterable[int | float]) -> int:
    """One 64-bit number from a seed and a list of integers and float64 numbers (by their bits)."""
    h = _mix_number(seed + _GOLDEN)
    for w in words:
        bits = struct.unpack("<Q", struct.pack("<d", w))[0] if isinstance(w, float) else w & _MASK
        h = _mix_number(h ^ _mix_number(bits + _GOLDEN))
    return h


def normals(seed: int, draws: Sequence[Iterable[int | float]], index: Tensor, count: int) -> Tensor:
    """(L, B, count) standard normals in float64: [l, i] is a pure function of (seed, draws[l], index[i]).

    draws: L lists of numbers that name a draw; index: int64 (B,), the global sample indices. Box-Muller on 32-bit uniforms: |z| <= 6.7.
    """
    named = [_fold(seed, words) for words in draws]
    keys = torch.tensor([[_signed(h), _signed(_mix_number(h + _GOLDEN))] for h in named], device=index.device)[:, :, None, None]
    first = _mix(index[:, None] * _signed(_GOLDEN) + keys[:, 0])
    second = _mix(first ^ keys[:, 1])
    position = torch.arange((count + 1) // 2, device=index.device) * _signed(_GOLDEN)
    bits = _mix(_mix(first + position).bitwise_xor_(second))
    radius = ((bits >> 32) & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count]


class Noise(Protocol):
    """Noise bound to a state: what a solver's `step` is given."""

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        """An increment ~ N(0, |b - a|), like the state, between two readings of the solver's clock (in either direction)."""
        ...

    def fresh(self, key: int) -> Tensor:
        """N(0, I) off the path (start latents, Langevin, churn): a different draw for every key."""
        ...

    def rows(self, index: Tensor) -> Noise:
        """The noise of a subset of the samples."""
        ...


class NoiseSource(Protocol):
    """A noise not yet bound to a state: `White(seed)`, `Brownian(seed, range)`."""

    def on(self, x: Tensor, index: Tensor | range | None = None) -> Noise: ...


@dataclass(frozen=True)
class White:
    """Independent increments, a pure function of (seed, sample index, a, b, key)."""

    seed: int = 0

    def on(self, x: Tensor, index: Tensor | range | None = None) -> WhiteNoise:
        """Bind to a state (B, ...); `index` holds the global sample indices (default 0 .. B-1)."""
        return WhiteNoise(self.seed, _index(x, index), x.new_empty((0, *x.shape[1:])))


@dataclass(frozen=True)
class WhiteNoise:
    """`White` bound to a state."""

    seed: int
    index: Tensor
    like: Tensor = field(repr=False)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return self._normals(0, a + 0.0, b + 0.0, key).mul_(math.sqrt(abs(b - a)))

    def fresh(self, key: int) -> Tensor:
        return self._normals(1, key)

    def rows(self, index: Tensor) -> WhiteNoise:
        return WhiteNoise(self.seed, self.index[index], self.like)

    def _normals(self, *words: int | float) -> Tensor:
        return _shaped(normals(self.seed, [words], self.index, _numel(self.like))[0], self.like)


@dataclass(frozen=True)
class Brownian:
    """One fixed Brownian path W a sample on `range` = (low, high) of the solver's clock: `noise(a, b) = W(b) - W(a)`.

    Every step count sees the same path. W(low) = 0; W is drawn by bridges at the nodes of a bisection tree (geometric midpoints where
    the range spans scales), `depth` levels deep; below the last level W(t) has the right law at each t, but two times within one
    leaf share a normal number. `key` other than 0 gives other, independent paths.
    """

    seed: int
    range: tuple[float, float]
    depth: int = 24

    def __post_init__(self) -> None:
        low, high = self.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"Brownian needs a finite range (low, high) of the solver's clock, low < high, not {self.range}.")

    def on(self, x: Tensor, index: Tensor | range | None = None) -> BrownianNoise:
        """Bind to a state (B, ...); `index` holds the global sample indices (default 0 .. B-1)."""
        return BrownianNoise(self, _index(x, index), x.new_empty((0, *x.shape[1:])))


@dataclass(frozen=True)
class _Node:
    """An interval of the tree with the path at both ends."""

    low: float
    high: float
    w_low: Tensor
    w_high: Tensor
    name: int

    def bridge(self, t: float, z: Tensor) -> Tensor:
        """W(t) given both ends: the straight line plus sqrt((t - low)(high - t)/(high - low)) z."""
        r = (t - self.low) / (self.high - self.low)
        return torch.lerp(self.w_low, self.w_high, r).add_(z, alpha=math.sqrt(max(r * (self.high - t), 0.0)))


@dataclass(frozen=True)
class BrownianNoise:
    """`Brownian` bound to a state. It remembers the branch of its last query: a matter of speed only, values do not depend on it."""

    source: Brownian
    index: Tensor
    like: Tensor = field(repr=False)
    _branch: dict[int, list[_Node]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return _shaped(self.at(b, key) - self.at(a, key), self.like)

    def fresh(self, key: int) -> Tensor:
        return WhiteNoise(self.source.seed, self.index, self.like).fresh(key)

    def rows(self, index: Tensor) -> BrownianNoise:
        return BrownianNoise(self.source, self.index[index], self.like)

    def at(self, t: float, key: int = 0) -> Tensor:
        """W(t), float64 (B, numel). `UserError` outside the range."""
        low, high = self.source.range
        if not low <= t <= high:
            raise UserError(f"the Brownian path is known on {self.source.range} of the solver's clock, not at {t}: give a wider range.")
        branch = self._branch.setdefault(key, [])
        if not branch:
            zero = torch.zeros(len(self.index), _numel(self.like), dtype=torch.float64, device=self.index.device)
            branch.append(_Node(low, high, zero, self._normals(key, [0])[0].mul_(math.sqrt(high - low)), 1))
        while not branch[-1].low <= t <= branch[-1].high:
            branch.pop()
        return self._descend(branch, t, key)

    def _descend(self, branch: list[_Node], t: float, key: int) -> Tensor:
        """Extend the branch down to t; all its normal numbers are drawn at once."""
        node = branch[-1]
        ends, names, splits = (node.low, node.high), [node.name], []
        while t not in ends and len(branch) + len(splits) <= self.source.depth:
            middle = _middle(*ends)
            if not ends[0] < middle < ends[1]:
                break
            right = t > middle
            splits.append((middle, right))
            ends = (middle, ends[1]) if right else (ends[0], middle)
            names.append(2 * names[-1] + right)
        if t in ends:
            names.pop()
        z = self._normals(key, names) if names else []
        for (middle, right), here in zip(splits, z, strict=False):
            w, name = node.bridge(middle, here), 2 * node.name + right
            node = _Node(middle, node.high, w, node.w_high, name) if right else _Node(node.low, middle, node.w_low, w, name)
            branch.append(node)
        if t in ends:
            return node.w_low if t == node.low else node.w_high
        return node.bridge(t, z[-1])

    def _normals(self, key: int, names: list[int]) -> Tensor:
        return normals(self.source.seed, [(2, key, name) for name in names], self.index, _numel(self.like))


def _middle(low: float, high: float) -> float:
    """The geometric midpoint where the interval spans scales, else the arithmetic one."""
    return math.sqrt(low) * math.sqrt(high) if 0 < 4 * low < high else 0.5 * (low + high)


def _index(x: Tensor, index: Tensor | range | None) -> Tensor:
    index = range(len(x)) if index is None else index
    found = index if isinstance(index, Tensor) else torch.tensor(list(index), dtype=torch.int64)
    if found.shape != x.shape[:1]:
        raise UserError(f"noise for {len(x)} samples needs {len(x)} sample indices, not {tuple(found.shape)}.")
    return found.to(device=x.device, dtype=torch.int64)


def _numel(like: Tensor) -> int:
    return math.prod(like.shape[1:])


def _shaped(z: Tensor, like: Tensor) -> Tensor:
    return z.to(like.dtype).reshape(-1, *like.shape[1:])
