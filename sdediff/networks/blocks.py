"""What convolutional networks are built of: residual blocks told the noise level, attention, the way down and the way back up.

    down: [blocks, shrink] at every level but the last -> [blocks] -> middle -> up: [blocks with skips, grow] ...

A level is one resolution, and the next is half as large (rounded up: 7 becomes 4, and comes back as 7). `Parts` holds the switches of one
network and makes its modules; the networks keep them and call them.

Source: Ho, Jain, Abbeel 2020 (DDPM); Nichol, Dhariwal 2021 (the embedding scales and shifts); Dhariwal, Nichol 2021 (ADM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

RESAMPLES = ("conv", "pool", "block")


def call(again: bool, module: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`module(*inputs)`; where `again`, what it computes inside is not kept for the gradient but computed again. Same numbers."""
    if again and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)  # type: ignore[return-value]
    return module(*inputs)


def chosen(**switches: tuple[object, object]) -> dict[str, object]:
    """Of switches (value, default) those that are not at their default.

    A network's config names a switch that came later only where it is used: what was described before it came stays as it is.
    """
    return {name: value for name, (value, default) in switches.items() if value != default}


class ResBlock(nn.Module):
    """skip(h) + conv(silu(told norm(conv(silu(norm(h)))))); (n, c_in, H, W) -> (n, c_out, H, W).

    "Told" is norm(h) (1 + a) + b with `scale_shift`, else norm(h + b). With `resize` the block changes the resolution on both its ways.
    zero: the last convolution begins at zero, so that the block begins as its skip.
    """

    def __init__(
        self, c_in: int, c_out: int, embedding: int, groups: int, dropout: float, scale_shift: bool = True, zero: bool = False
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.first_norm = group_norm(c_in, groups)
        self.first = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.adapt = nn.Linear(embedding, 2 * c_out if scale_shift else c_out)
        self.second_norm = group_norm(c_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        if zero:
            zeroed(self.second)

    def forward(self, h: Tensor, embedding: Tensor, resize: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        inner = F.silu(self.first_norm(h))
        if resize is not None:
            inner, h = resize(inner), resize(h)
        inner = self.first(inner)
        told = self.adapt(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        else:
            inner = self.second_norm(inner + told)
        return self.skip(h) + self.second(self.dropout(F.silu(inner)))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input; (n, c, H, W) -> the same. zero: it begins as the identity."""

    def __init__(self, channels: int, heads: int, groups: int, zero: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.enter = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)
        if zero:
            zeroed(self.leave)

    def forward(self, h: Tensor) -> Tensor:
        n, c, height, width = h.shape
        packed = self.enter(self.norm(h)).reshape(n, 3, self.heads, c // self.heads, height * width)
        q, k, v = packed.transpose(-1, -2).unbind(1)  # each (n, heads, pixels, c/heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return h + self.leave(mixed.transpose(-1, -2).reshape(n, c, height, width))


class Stage(nn.Module):
    """One residual block and, where asked, attention after it. What a skip connection brings is joined to its input."""

    def __init__(self, block: ResBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, h: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        h = self.block(h if skip is None else torch.cat([h, skip], dim=1), embedding)
        return h if self.attention is None else self.attention(h)


@dataclass(frozen=True)
class Parts:
    """The switches of one convolutional network, as in `UNet` (widths and embedding are numbers by now), and its modules."""

    widths: Sequence[int]
    blocks: int
    embedding: int
    groups: int
    dropout: float
    attention: Sequence[int]
    heads: int
    head_channels: int | None
    middle_attention: bool
    scale_shift: bool
    resample: str
    zero: bool

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLES:
            raise ValueError(f"resample is one of {', '.join(map(repr, RESAMPLES))}, not {self.resample!r}")
        last = len(self.widths) - 1
        for level in self.attention:
            if not 0 <= level <= last:
                raise ValueError(f"attention level {level} does not exist: levels run from 0 to {last}")
        for level in {*self.attention, *([last] if self.middle_attention else [])}:
            self.heads_at(level)

    def heads_at(self, level: int) -> int:
        """How many heads there are at a level. ValueError where they do not divide its channels."""
        c = self.widths[level]
        if self.head_channels is not None:
            if c % self.head_channels:
                raise ValueError(f"heads of {self.head_channels} channels do not divide the {c} channels of level {level}")
            return c // self.head_channels
        if c % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the {c} channels of level {level}")
        return self.heads

    def residual(self, c_in: int, c_out: int) -> ResBlock:
        return ResBlock(c_in, c_out, self.embedding, self.groups, self.dropout, self.scale_shift, self.zero)

    def stage(self, level: int, c_in: int, attention: bool) -> Stage:
        block = self.residual(c_in, self.widths[level])
        return Stage(block, Attention(self.widths[level], self.heads_at(level), self.groups, self.zero) if attention else None)

    def resampling(self, c: int, stride: int) -> nn.Module:
        """The module on the way from one level of c channels to the next."""
        if self.resample == "block":
            return self.residual(c, c)
        return nn.Identity() if self.resample == "pool" else nn.Conv2d(c, c, 3, stride=stride, padding=1)

    def descent(self) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
        """Stages, resamplings, and the channels of what `descend` keeps."""
        down, shrink = nn.ModuleList(), nn.ModuleList()
        kept = [self.widths[0]]
        for level, c in enumerate(self.widths):
            for _ in range(self.blocks):
                down.append(self.stage(level, kept[-1], level in self.attention))
                kept.append(c)
            if level != len(self.widths) - 1:
                shrink.append(self.resampling(c, stride=2))
                kept.append(c)
        return down, shrink, kept

    def middle(self) -> nn.ModuleList:
        last = len(self.widths) - 1
        c = self.widths[last]
        return nn.ModuleList([self.stage(last, c, self.middle_attention or last in self.attention), self.residual(c, c)])

    def ascent(self, kept: Sequence[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Stages and resamplings, with the skips of these channels."""
        up, grow = nn.ModuleList(), nn.ModuleList()
        kept, c = list(kept), self.widths[-1]
        for level in reversed(range(len(self.widths))):
            for _ in range(self.blocks + 1):
                up.append(self.stage(level, c + kept.pop(), level in self.attention))
                c = self.widths[level]
            if level != 0:
                grow.append(self.resampling(c, stride=1))
        return up, grow


def descend(down: nn.ModuleList, shrink: nn.ModuleList, h: Tensor, embedding: Tensor, again: bool) -> list[Tensor]:
    """Every feature map on the way down, h first and the coarsest last."""
    kept, blocks = [h], len(down) // (len(shrink) + 1)
    for i, stage in enumerate(down):
        kept.append(call(again, stage, kept[-1], embedding))
        level, rest = divmod(i + 1, blocks)
        if rest == 0 and level <= len(shrink):
            kept.append(call(again, shrunk, shrink[level - 1], kept[-1], embedding))
    return kept


def ascend(up: nn.ModuleList, grow: nn.ModuleList, h: Tensor, kept: list[Tensor], embedding: Tensor, again: bool) -> Tensor:
    """The way back up from h, with the feature maps kept on the way down."""
    kept, blocks = list(kept), len(up) // (len(grow) + 1)
    for i, stage in enumerate(up):
        h = call(again, stage, h, embedding, kept.pop())
        level, rest = divmod(i + 1, blocks)
        if rest == 0 and level <= len(grow):
            h = call(again, grown, grow[level - 1], h, embedding, kept[-1].shape[-2:])
    return h


def shrunk(step: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    """h at the next coarser level, by a resampling of `Parts`."""
    if isinstance(step, ResBlock):
        return step(h, embedding, halved)
    return halved(h) if isinstance(step, nn.Identity) else step(h)


def grown(step: nn.Module, h: Tensor, embedding: Tensor, size: Sequence[int]) -> Tensor:
    """h at the next finer level, which has this size, by a resampling of `Parts`."""

    def enlarged(h: Tensor) -> Tensor:
        return F.interpolate(h, size=tuple(size), mode="nearest")

    return step(h, embedding, enlarged) if isinstance(step, ResBlock) else step(enlarged(h))


def halved(h: Tensor) -> Tensor:
    """Means of 2x2 pixels, of fewer at an odd edge."""
    return F.avg_pool2d(h, 2, ceil_mode=True)


def zeroed(module: nn.Module) -> None:
    """Make all parameters of a module zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """A group norm of at most `groups` groups: the largest number that divides the channels."""
    divides = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(divides, channels)


def check_sizes(network: str, sizes: Mapping[str, object]) -> None:
    """ValueError unless every size is a whole number of at least 1 (None: not asked for)."""
    for name, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{network}({name}={size!r}): expected a whole number of at least 1.")


def widths_of(network: str, width: int, multipliers: Sequence[float]) -> list[int]:
    """The channels of each level, rounded. ValueError unless there is a level, and every level has channels."""
    if not multipliers:
        raise ValueError(f"{network}(levels=0): expected at least one level, e.g. multipliers=(1, 2).")
    widths = [round(width * m) for m in multipliers]
    check_sizes(network, {f"width {width} times multiplier {m}": c for m, c in zip(multipliers, widths, strict=True)})
    return widths


def check_images(x: Tensor, channels: int, patch: int) -> None:
    """ValueError unless x is (n, channels, H, W) with sides that `patch` divides."""
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % patch or x.shape[3] % patch:
        raise ValueError(f"this network takes images (n, {channels}, H, W) with sides divisible by {patch}, got {tuple(x.shape)}")
