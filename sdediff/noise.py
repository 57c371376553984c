"""Noise as an argument: pure functions of (seed, global sample index, arguments).

`noise(a, b)` is an increment ~ N(0, |b - a|) on the solver's clock, `noise.fresh(key)` is N(0, I) off the path. Sample i gets the same
noise whatever the batch size, the order or the number of processes, because every number is made by a counter: a 128-bit key hashed
from (seed, index, arguments) and the position, through two rounds of the SplitMix64 finaliser (Steele et al. 2014), then Box-Muller.
`noise.area(a, b)` is (W, H): that increment and its space-time Levy integral `H = (1/h) int_a^b (W_r - W_a - (r - a)/h W) dr`, h = b - a,
the mean of the path's deviation from its chord, N(0, |h|/12) and independent of W: what strong order 1.5 needs for additive noise.
`White(seed)`: independent increments. `Brownian(seed, range)`: one fixed path a sample, the same for every step count (a lazily built
bisection tree of (W, H), split exactly at its nodes). Both are values; `.on(x)` binds them to the shape of a state.
a and b may be float64 arrays, one interval a sample: the same numbers as sample by sample, to rounding on a path.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .combine import spread
from .names import UserError

Number = Any  # float, or a float64 array with one number a sample
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
    return _box_muller(keys[:, 0], keys[:, 1], index, count)


def pairs_by_row(seed: int, words: Sequence[int | Tensor], index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`normal_pairs` with a draw for each row, (B, count): a word is a number for all, or an int64 tensor (B,) (the bits of a float)."""
    shared = next((i for i, w in enumerate(words) if isinstance(w, Tensor)), len(words))
    h = torch.tensor(_signed(_fold(seed, words[:shared])), device=index.device)  # type: ignore[arg-type]
    for w in words[shared:]:
        h = _mix(h ^ (_mix(w + _signed(_GOLDEN)) if isinstance(w, Tensor) else _signed(_mix_number((w & _MASK) + _GOLDEN))))
    return _box_muller(h[:, None], _mix(h[:, None] + _signed(_GOLDEN)), index, count)


def _box_muller(first_key: Tensor, second_key: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    first = _mix(index[:, None] * _signed(_GOLDEN) + first_key)
    second = _mix(first ^ second_key)
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

    def __call__(self, a: Number, b: Number, key: int = 0) -> Tensor:
        """An increment ~ N(0, |b - a|), like the state, between two readings of the solver's clock (in either direction)."""
        ...

    def area(self, a: Number, b: Number, key: int = 0) -> tuple[Tensor, Tensor]:
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

    def __call__(self, a: Number, b: Number, key: int = 0) -> Tensor:
        if _arrays(a, b):
            return self._by_row(0, a, b, key, 1.0)
        return self._normals(0, a + 0.0, b + 0.0, key).mul_(math.sqrt(abs(b - a)))

    def area(self, a: Number, b: Number, key: int = 0) -> tuple[Tensor, Tensor]:
        if _arrays(a, b):
            return self(a, b, key), self._by_row(3, a, b, key, 12.0)
        return self(a, b, key), self._normals(3, a + 0.0, b + 0.0, key).mul_(math.sqrt(abs(b - a) / 12))

    def fresh(self, key: int) -> Tensor:
        return self._normals(1, key)

    def rows(self, index: Tensor) -> WhiteNoise:
        return WhiteNoise(self.seed, self.index[index], self.like)

    def _normals(self, *words: int | float) -> Tensor:
        return _shaped(normals(self.seed, [words], self.index, _numel(self.like))[0], self.like)

    def _by_row(self, name: int, a: Number, b: Number, key: int, parts: float) -> Tensor:
        """Each row as the float call with its own a and b gives it; the variance is |b - a|/parts."""
        a, b = (_column(t, len(self.index)) + 0.0 for t in (a, b))
        words = (name, *(torch.from_numpy(t.view(np.int64)).to(self.index.device) for t in (a, b)), key)
        count = _numel(self.like)
        z = torch.cat(pairs_by_row(self.seed, words, self.index, (count + 1) // 2), dim=-1)[:, :count]
        z = _shaped(z, self.like)
        return z.mul_(spread(np.sqrt(np.abs(b - a) / parts), z))


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


class _Level(NamedTuple):
    """One level of the tree: for every sample its nodes on the way to a (row 0) and to b (row 1), (2, B) each; whether it goes on right."""

    name: np.ndarray
    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    right: np.ndarray


class _Terms(NamedTuple):
    """Weights (functionals, 2, B) of the two normal numbers of the nodes `name` (2, B)."""

    name: np.ndarray
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True)
class _Functionals:
    """What `_Functional` is, with one interval a sample: the increment over it and, with `area`, its space-time integral.

    ends: (2, B), a <= b. All nodes that an interval cuts lie on the ways from the root to its ends; what lies between the ways is whole.
    The part of [a, b] beside each way is pulled back along it. Elementwise: no sample sees another.
    """

    ends: np.ndarray
    area: bool

    def terms(self, low: float, high: float, depth: int) -> list[_Terms]:
        """The weights of all normal numbers, from the root down."""
        *levels, leaf = self._ways(low, high, depth)
        w, h, last = self._leaf(leaf)
        found, below = [last], leaf.name
        for level in reversed(levels):
            joint, right = level.name[0] == level.name[1], level.right
            rest = self._piece(
                _pair(level.middle[0], level.low[1]), _pair(level.high[0], level.middle[1]), _pair(~right[0], right[1]) & ~joint
            )
            up = _split_rows(level, level.middle, (w, h), rest, right)
            stays = below == level.name  # a leaf further up
            if stays.any():
                up = tuple(np.where(stays, a, b) for a, b in zip((w, h, 0.0, 0.0), up, strict=True))
            w, h, *terms = up
            found.append(self._together(level, *terms))
            below = level.name
        root = _Terms(np.zeros_like(below), w * math.sqrt(high - low), h * math.sqrt((high - low) / 12))
        return [_joined(root, np.ones(1, bool)), *found[::-1]]

    def _ways(self, low: float, high: float, depth: int) -> list[_Level]:
        shape, levels = self.ends.shape, []
        name, low_, high_ = np.ones(shape, np.int64), np.full(shape, low), np.full(shape, high)
        for _ in range(depth + 1):
            middle = _middles(low_, high_)
            right = _pair(self.ends[0] >= middle[0], self.ends[1] > middle[1])
            levels.append(_Level(name, low_, middle, high_, right))
            inside = (low_ < middle) & (middle < high_)
            if inside.all():
                name, low_, high_ = 2 * name + right, np.where(right, middle, low_), np.where(right, high_, middle)
            else:  # too narrow to be split: a leaf
                name = np.where(inside, 2 * name + right, name)
                low_, high_ = np.where(inside & right, middle, low_), np.where(inside & ~right, middle, high_)
        return levels

    def _leaf(self, leaf: _Level) -> tuple[np.ndarray, np.ndarray, _Terms]:
        """In the leaf of a what lies after a, in that of b what lies before b; in one leaf what lies before b less what lies before a."""
        joint = leaf.name[0] == leaf.name[1]
        within = joint & (self.ends[1] < leaf.high[1])
        after = _pair(~within, np.zeros_like(joint))
        share = _pair(np.where(within, -1.0, 1.0), np.where(joint & ~within, 0.0, 1.0))
        own = self._piece(np.where(after, self.ends, leaf.low), np.where(after, leaf.high, self.ends), share)
        w, h, *terms = _split_rows(leaf, self.ends, own, (0.0, 0.0), after)
        return w, h, self._together(leaf, *terms)

    def _piece(self, c: np.ndarray, d: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`share` times the weights of (W, H) of [c, d] in each functional."""
        w, h = np.zeros((1 + self.area, *c.shape)), np.zeros((1 + self.area, *c.shape))
        w[0] = share
        if self.area:
            a, b = self.ends
            scale = share / np.where(a == b, 1.0, b - a)
            w[1], h[1] = (0.5 * (a + b) - 0.5 * (c + d)) * scale, (d - c) * scale
        return w, h

    def _together(self, level: _Level, first: np.ndarray, second: np.ndarray) -> _Terms:
        """The terms of a level: those of one node in row 0, and exactly none where the node is whole."""
        cut = (level.low < self.ends[0]) | (self.ends[1] < level.high)
        return _joined(_Terms(level.name, first * cut, second * cut), level.name[0] == level.name[1])


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    both = np.empty((2, *first.shape), first.dtype)
    both[0], both[1] = first, second
    return both


def _joined(terms: _Terms, joint: np.ndarray) -> _Terms:
    """Where both rows are one node, its weights in row 0."""
    for weights in terms[1:]:
        weights[:, 0] += joint * weights[:, 1]
        weights[:, 1] *= ~joint
    return terms


def _split_rows(level: _Level, t: np.ndarray, own: tuple, rest: tuple, right: np.ndarray) -> tuple[np.ndarray, ...]:
    """`_Functional._split` of nodes at t, elementwise: `own` are the weights of the part on the way, `rest` those of the other one."""
    h, left = level.high - level.low, t - level.low
    r = np.where(right, level.high - t, left) / h  # of the part on the way, q of the other one
    q = np.where(right, left, level.high - t) / h
    p, side = r * q, 1.0 - 2.0 * right
    n, c = np.sqrt(h * p), np.sqrt(1 - 3 * p)
    (w, other_w), (h, other_h) = zip(own, rest, strict=True)
    across, along, half = w - other_w, (r * r) * h + (q * q) * other_h, n / (2 * c)
    second = (half * side / _ROOT3) * (q * h - r * other_h)
    return r * w + q * other_w, (6 * p * side) * across + along, (n * c * side) * across - half * along, second


_ROOT3 = math.sqrt(3.0)
_ROOT12 = math.sqrt(12.0)
_AT_ONCE = 1 << 18  # normal numbers drawn at once: beyond, they leave the cache and take longer
_KEPT = 1 << 27  # normal numbers that are kept from query to query, at most
_ROWS = 1024  # samples at once in a query of one interval a sample: their weights stay in the cache


class _Ways(NamedTuple):
    """The normal numbers on the ways of the last query, of all levels: names (levels, 2, B) and numbers (levels, 2, B, 2, count)."""

    names: np.ndarray
    numbers: Tensor

    @staticmethod
    def none(levels: int, index: Tensor, count: int) -> _Ways:
        shape = (levels, 2, len(index))
        return _Ways(np.full(shape, -1), torch.zeros(*shape, 2, count, dtype=torch.float64, device=index.device))


def _regrouped(parts: list[_Ways], index: Tensor) -> list[_Ways]:
    """The rows `index` of all, in parts of `_ROWS` again."""
    names = np.concatenate([p.names for p in parts], 2)[:, :, index.cpu().numpy()]
    numbers = torch.cat([p.numbers for p in parts], 2)[:, :, index]
    return [
        _Ways(np.ascontiguousarray(names[:, :, i : i + _ROWS]), numbers[:, :, i : i + _ROWS].contiguous())
        for i in range(0, names.shape[2], _ROWS)
    ]


@dataclass(frozen=True)
class BrownianNoise:
    """`Brownian` bound to a state. It remembers the normal numbers on the way to the last time: speed only, values do not depend on it."""

    source: Brownian
    index: Tensor
    like: Tensor = field(repr=False)
    _drawn: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False, compare=False)
    _ways: dict[int, list[_Ways]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, a: Number, b: Number, key: int = 0) -> Tensor:
        return _shaped(self._increment(a, b, key), self.like)

    def area(self, a: Number, b: Number, key: int = 0) -> tuple[Tensor, Tensor]:
        if _arrays(a, b):
            w, integral = self._by_row(a, b, key, area=True)
            return _shaped(w, self.like), _shaped(integral, self.like)
        low, high = min(a, b), max(a, b)
        center, h = 0.5 * (low + high), high - low
        (w, integral) = self._evaluate(a, b, key, (_whole, lambda c, d: ((center - 0.5 * (c + d)) / h, (d - c) / h)))
        return _shaped(w if a <= b else w.neg_(), self.like), _shaped(integral, self.like)

    def fresh(self, key: int) -> Tensor:
        return WhiteNoise(self.source.seed, self.index, self.like).fresh(key)

    def rows(self, index: Tensor) -> BrownianNoise:
        return BrownianNoise(
            self.source, self.index[index], self.like, _ways={k: _regrouped(parts, index) for k, parts in self._ways.items()}
        )

    def at(self, t: Number, key: int = 0) -> Tensor:
        """W(t), float64 (B, numel); 0 at the lower end of the range. `UserError` outside it."""
        return self._increment(self.source.range[0], t, key)

    def _increment(self, a: Number, b: Number, key: int) -> Tensor:
        if _arrays(a, b):
            return self._by_row(a, b, key, area=False)[0]
        (w,) = self._evaluate(a, b, key, (_whole,))
        return w if a <= b else w.neg_()

    def _by_row(self, a: Number, b: Number, key: int, area: bool) -> list[Tensor]:
        """The increment from a to b and, with `area`, its integral, of each row over its own interval; each float64 (B, numel)."""
        a, b = (_column(t, len(self.index)) for t in (a, b))
        low, high = self.source.range
        self._check(a, b)
        ends = np.stack((np.minimum(a, b), np.maximum(a, b)))
        sums = [self._zero() for _ in range(1 + area)]
        for part, ways in enumerate(self._known(key)):
            rows = slice(part * _ROWS, (part + 1) * _ROWS)
            terms = _Functionals(ends[:, rows], area).terms(low, high, self.source.depth)
            needed = np.stack([((t.first != 0) | (t.second != 0)).any(0) for t in terms])
            self._update(key, ways, self.index[rows], np.stack([t.name for t in terms]), needed)
            for level, way in np.argwhere(needed.any(2)):
                first, second = ways.numbers[level, way].unbind(1)
                for out, u, v in zip(sums, terms[level].first[:, way], terms[level].second[:, way], strict=True):
                    out[rows].add_(first * spread(u, first)).add_(second * spread(v, second))
        away = torch.from_numpy(np.sign(b - a)).to(sums[0].device)[:, None]
        return [sums[0].mul_(away), *(out.mul_(away.abs()) for out in sums[1:])]

    def _known(self, key: int) -> Iterable[_Ways]:
        """What is known of the samples, `_ROWS` by `_ROWS`; kept for the next query if that is not too much."""
        levels, count = self.source.depth + 2, _numel(self.like)
        fresh = (_Ways.none(levels, part, count) for part in self.index.split(_ROWS))
        if 4 * levels * count * len(self.index) > _KEPT:
            return fresh
        return self._ways[key] if key in self._ways else self._ways.setdefault(key, list(fresh))

    def _update(self, key: int, ways: _Ways, index: Tensor, names: np.ndarray, needed: np.ndarray) -> None:
        """Bring the normal numbers to the nodes `names` (levels, 2, B), where needed.

        What the last query had on the same way is there, what it had on the other way is copied, and the rest is drawn.
        """
        rows, count = len(index), _numel(self.like)
        missing = np.flatnonzero(needed & (ways.names != names))
        known, numbers, wanted = ways.names.reshape(-1), ways.numbers.view(-1, 2, count), names.reshape(-1)[missing]
        across = np.where(missing // rows % 2 == 0, missing + rows, missing - rows)
        there = known[across] == wanted
        values = numbers[across[there]]
        drawn, name = missing[~there], wanted[~there]
        group = max(1, _AT_ONCE // max(1, count))
        for i in range(0, len(drawn), group):
            part = drawn[i : i + group]
            words = (2, key, torch.from_numpy(name[i : i + group]).to(index.device))
            numbers[part] = torch.stack(pairs_by_row(self.source.seed, words, index[part % rows], count), 1)
        numbers[missing[there]] = values
        known[missing] = wanted

    def _check(self, *times: Number) -> None:
        low, high = self.source.range
        for t in times:
            inside = (low <= t) & (t <= high)
            if inside is not True and not np.all(inside):
                t = np.ravel(t)[np.argmin(inside)]
                raise UserError(f"the Brownian path is known on {self.source.range} of the solver's clock, not at {t}: give a wider range.")

    def _evaluate(self, a: float, b: float, key: int, pieces: Sequence[Piece]) -> list[Tensor]:
        """The functionals of the path between a and b, upward; each float64 (B, numel)."""
        low, high = self.source.range
        self._check(a, b)
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


def _middles(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`_middle`, elementwise."""
    scales = (low > 0) & (4 * low < high)
    if not scales.any():
        return 0.5 * (low + high)
    return np.where(scales, np.sqrt(np.where(scales, low, 0.0)) * np.sqrt(np.where(scales, high, 0.0)), 0.5 * (low + high))


def _arrays(a: Number, b: Number) -> bool:
    return isinstance(a, np.ndarray) or isinstance(b, np.ndarray)


def _column(t: Number, count: int) -> np.ndarray:
    """One float64 number a sample."""
    if np.shape(t) not in ((), (count,)):
        raise UserError(f"a query of one interval a sample needs {count} ends, not {np.shape(t)}.")
    return np.ascontiguousarray(np.broadcast_to(np.asarray(t, dtype=np.float64), (count,)))


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
