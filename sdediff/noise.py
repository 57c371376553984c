"""Noise as an argument: pure functions of (seed, global sample index, arguments).

`noise(a, b)` is an increment ~ N(0, |b - a|) on the solver's clock, `noise.fresh(key)` is N(0, I) off the path. Sample i gets the same
noise whatever the batch size, the order or the number of processes, because every number is made by a counter: a 128-bit key hashed
from (seed, index, arguments) and the position, through two rounds of the SplitMix64 finaliser (Steele et al. 2014), then Box-Muller.
`noise.area(a, b)` is (W, H): that increment and its space-time Levy integral `H = (1/h) int_a^b (W_r - W_a - (r - a)/h W) dr`, h = b - a,
the mean of the path's deviation from its chord, N(0, |h|/12) and independent of W: what strong order 1.5 needs for additive noise.
`White(seed)`: independent increments. `Brownian(seed, range)`: one fixed path a sample, the same for every step count (a lazily built
bisection tree of (W, H), split exactly at its nodes). Both are values; `.on(x)` binds them to the shape of a state.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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


def normal_pairs(seed: int, draws: Sequence[Iterable[int | float]], index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two independent (L, B, count) tensors of standard normals in float64: [l, i] is a pure function of (seed, draws[l], index[i]).

    draws: L lists of numbers that name a draw; index: int64 (B,), the global sample indices. Box-Muller on 32-bit uniforms: |z| <= 6.7.
    """
    named = [_fold(seed, words) for words in draws]
    keys = torch.tensor([[_signed(h), _signed(_mix_number(h + _GOLDEN))] for h in named], device=index.device)[:, :, None, None]
    first = _mix(index[:, None] * _signed(_GOLDEN) + keys[:, 0])
    second = _mix(first ^ keys[:, 1])
    position = torch.arange(count, device=index.device) * _signed(_GOLDEN)
    bits = _mix(_mix(first + position).bitwise_xor_(second))
    radius = ((bits >> 32) & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def normals(seed: int, draws: Sequence[Iterable[int | float]], index: Tensor, count: int) -> Tensor:
    """(L, B, count) standard normals: both of `normal_pairs`, one after the other."""
    return torch.cat(normal_pairs(seed, draws, index, (count + 1) // 2), dim=-1)[..., :count]


class Noise(Protocol):
    """Noise bound to a state: what a solver's `step` is given."""

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        """An increment ~ N(0, |b - a|), like the state, between two readings of the solver's clock (in either direction)."""
        ...

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        """(W, H): `noise(a, b, key)` and its space-time integral ~ N(0, |b - a|/12), independent of W. On a path, back over the same
        interval is (-W, H)."""
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

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        return self(a, b, key), self._normals(3, a + 0.0, b + 0.0, key).mul_(math.sqrt(abs(b - a) / 12))

    def fresh(self, key: int) -> Tensor:
        return self._normals(1, key)

    def rows(self, index: Tensor) -> WhiteNoise:
        return WhiteNoise(self.seed, self.index[index], self.like)

    def _normals(self, *words: int | float) -> Tensor:
        return _shaped(normals(self.seed, [words], self.index, _numel(self.like))[0], self.like)


@dataclass(frozen=True)
class Brownian:
    """One fixed Brownian path W a sample on `range` = (low, high) of the solver's clock: `noise(a, b) = W(b) - W(a)`.

    Every step count sees the same path, and the space-time integrals `noise.area(a, b)` are those of this path. The path is drawn at the
    nodes of a bisection tree (geometric midpoints where the range spans scales), `depth` levels deep: each node has (W, H) and is split
    by the conditional law of its halves' (W, H) given its own (Foster, Lyons & Oberhauser 2020; Foster, dos Reis & Strange 2024). Below
    the last level W and H from either end of a leaf have the right law, but two times within one leaf share their normal numbers.
    `key` other than 0 gives other, independent paths.
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


Pair = tuple[float, float]
Piece = Callable[[float, float], Pair]


class _Term(NamedTuple):
    """Weights of the two normal numbers of the node `name` = [low, high]."""

    name: int
    low: float
    high: float
    first: float
    second: float


@dataclass(frozen=True)
class _Functional:
    """A linear functional of the path over [a, b], as weights of the normal numbers of the tree.

    `piece(c, d)` gives the weights of (W, H) of a subinterval in it. They are pulled back through the splits from the leaves to the root.
    """

    a: float
    b: float
    piece: Piece
    depth: int
    terms: list[_Term] = field(default_factory=list)

    def below(self, name: int, low: float, high: float, level: int = 0) -> Pair:
        """The weights of (W, H) of the node; the terms of all splits below it are collected. The node meets ]a, b[."""
        if self.a <= low and high <= self.b:
            return self.piece(low, high)
        middle, none = _middle(low, high), (0.0, 0.0)
        if level == self.depth or not low < middle < high:
            return self._leaf(name, low, high)
        left = self.below(2 * name, low, middle, level + 1) if self.a < middle else none
        right = self.below(2 * name + 1, middle, high, level + 1) if self.b > middle else none
        return self._split(name, low, middle, high, left, right)

    def _leaf(self, name: int, low: float, high: float) -> Pair:
        """The part of [a, b] in a leaf: what lies before b, less what lies before a."""
        if self.b >= high:
            return self._split(name, low, self.a, high, (0.0, 0.0), self.piece(self.a, high))
        before = self._split(name, low, self.b, high, self.piece(low, self.b), (0.0, 0.0))
        if self.a <= low:
            return before
        w, h = self.piece(low, self.a)
        less = self._split(name, low, self.a, high, (-w, -h), (0.0, 0.0))
        return before[0] + less[0], before[1] + less[1]

    def _split(self, name: int, low: float, t: float, high: float, left: Pair, right: Pair) -> Pair:
        """From the weights of the parts to those of the whole and of the split's normal numbers z1, z2.

        With h = high - low, r = (t - low)/h, q = 1 - r, c^2 = 1 - 3 r q and n = sqrt(h r q), given (W, H) of the whole,
        W_l = r W + 6 r q H + n c z1, H_l = r^2 H + n (-r^2/(2 c) z1 + q/(sqrt(12) c) z2),
        W_r = q W - 6 r q H - n c z1, H_r = q^2 H + n (-q^2/(2 c) z1 - r/(sqrt(12) c) z2).
        """
        h = high - low
        r, q = (t - low) / h, (high - t) / h
        n, c = math.sqrt(h * r * q), math.sqrt(1 - 3 * r * q)
        across, along = left[0] - right[0], r * r * left[1] + q * q * right[1]
        second = n / (_ROOT12 * c) * (q * left[1] - r * right[1])
        self.terms.append(_Term(name, low, high, n * (c * across - along / (2 * c)), second))
        return r * left[0] + q * right[0], 6 * r * q * across + along


_ROOT12 = math.sqrt(12.0)
_AT_ONCE = 1 << 18  # normal numbers drawn at once: beyond, they leave the cache and take longer


@dataclass(frozen=True)
class BrownianNoise:
    """`Brownian` bound to a state. It remembers the normal numbers on the way to the last time: speed only, values do not depend on it."""

    source: Brownian
    index: Tensor
    like: Tensor = field(repr=False)
    _drawn: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return _shaped(self._increment(a, b, key), self.like)

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        low, high = min(a, b), max(a, b)
        center, h = 0.5 * (low + high), high - low
        (w, integral) = self._evaluate(a, b, key, (_whole, lambda c, d: ((center - 0.5 * (c + d)) / h, (d - c) / h)))
        return _shaped(w if a <= b else w.neg_(), self.like), _shaped(integral, self.like)

    def fresh(self, key: int) -> Tensor:
        return WhiteNoise(self.source.seed, self.index, self.like).fresh(key)

    def rows(self, index: Tensor) -> BrownianNoise:
        return BrownianNoise(self.source, self.index[index], self.like)

    def at(self, t: float, key: int = 0) -> Tensor:
        """W(t), float64 (B, numel); 0 at the lower end of the range. `UserError` outside it."""
        return self._increment(self.source.range[0], t, key)

    def _increment(self, a: float, b: float, key: int) -> Tensor:
        (w,) = self._evaluate(a, b, key, (_whole,))
        return w if a <= b else w.neg_()

    def _evaluate(self, a: float, b: float, key: int, pieces: Sequence[Piece]) -> list[Tensor]:
        """The functionals of the path between a and b, upward; each float64 (B, numel)."""
        low, high = self.source.range
        for t in (a, b):
            if not low <= t <= high:
                raise UserError(f"the Brownian path is known on {self.source.range} of the solver's clock, not at {t}: give a wider range.")
        sums = [self._zero() for _ in pieces]
        if a == b:
            return sums
        drawn, terms = self._drawn.get(key, {}), ()
        for piece, out in zip(pieces, sums, strict=True):
            functional = _Functional(min(a, b), max(a, b), piece, self.source.depth)
            w, h = functional.below(1, low, high)
            root = _Term(0, low, high, w * math.sqrt(high - low), h * math.sqrt((high - low) / 12))
            terms = (root, *reversed(functional.terms))
            drawn |= self._draw(key, list(dict.fromkeys(term.name for term in terms if term.name not in drawn)))
            for term in terms:
                first, second = drawn[term.name]
                out.add_(first, alpha=term.first).add_(second, alpha=term.second)
        self._drawn[key] = {term.name: drawn[term.name] for term in terms if term.low <= b <= term.high}
        return sums

    def _draw(self, key: int, names: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Two standard normal tensors (B, numel) for each name."""
        count, found = _numel(self.like), {}
        group = max(1, _AT_ONCE // max(1, count * len(self.index)))
        for i in range(0, len(names), group):
            part = names[i : i + group]
            found |= zip(
                part, zip(*normal_pairs(self.source.seed, [(2, key, n) for n in part], self.index, count), strict=True), strict=True
            )
        return found

    def _zero(self) -> Tensor:
        return torch.zeros(len(self.index), _numel(self.like), dtype=torch.float64, device=self.index.device)


def _whole(c: float, d: float) -> Pair:
    """The increment over [a, b] is the sum of those of its pieces."""
    return 1.0, 0.0


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
