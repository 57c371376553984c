"""A small U-Net of the DDPM kind: residual blocks told the noise level, down to a coarse grid and up again with skips.

    enter -> [blocks, down] at every level but the last -> [blocks] -> middle -> [blocks with skips, up] ... -> leave

A level is one resolution, `width * multipliers[level]` channels wide, and the next is half as large (rounded up: 7
becomes 4, and comes back as 7). With `patch=2` the image first becomes a quarter of the pixels with four times the
channels (pixel-unshuffle), which is the cheap way to a large batch on a CPU.

Source: Ho, Jain, Abbeel 2020 (the shape); Nichol, Dhariwal 2021 (the embedding scales and shifts instead of adding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .embedding import ConditionEmbedding

__all__ = ["UNet"]


class ResBlock(nn.Module):
    """skip(h) + conv(silu(adapted norm(conv(silu(norm(h)))))); (n, c_in, H, W) -> (n, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = group_norm(c_in, groups)
        self.first = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.adapt = nn.Linear(embedding, 2 * c_out)
        self.second_norm = group_norm(c_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(self.first_norm(h)))
        scale, shift = self.adapt(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        return self.skip(h) + self.second(self.dropout(nn.functional.silu(inner)))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input; (n, c, H, W) -> the same."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.enter = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        n, c, height, width = h.shape
        packed = self.enter(self.norm(h)).reshape(n, 3, self.heads, c // self.heads, height * width)
        q, k, v = packed.transpose(-1, -2).unbind(1)  # each (n, heads, pixels, c/heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return h + self.leave(mixed.transpose(-1, -2).reshape(n, c, height, width))


class Stage(nn.Module):
    """One residual block and, where asked, attention after it."""

    def __init__(self, block: ResBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.block(h, embedding)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """DDPM-style U-Net: `net(x, condition, labels=None)`, x of shape (n, channels, H, W); the answer has x's shape.

    H and W are any multiple of `patch` (28 and 32 as well as 8). The last convolution begins at zero, so a fresh
    network answers 0. A condition of shape (1,) is one number for the whole batch: same answer as (n,), embedded once.

    Args:
        channels: of the image.
        width: channels at the first level.
        multipliers: one a level; level i has `width * multipliers[i]` channels at 1/2^i of the resolution.
        blocks: residual blocks a level on the way down (one more on the way up, as in DDPM).
        attention: the levels (0 is the finest) with self-attention; the middle has it where the last level has.
        heads: attention heads.
        groups: of the group norms; fewer where the channels do not divide.
        dropout: probability of dropping inside a residual block while training.
        patch: side of the pixel-unshuffle in front (and pixel-shuffle behind); 1 for none.
        embedding: length of the condition's embedding; None for 4 * width.
        features, low, high: waves of the condition, and their frequencies in radians per unit (see `Waves`).
        classes: number of labels, or None; label `classes` and labels=None both mean "no label".

    Raises:
        ValueError: an attention level that does not exist, heads that do not divide the channels; from `forward`,
            x of other channels or a side that `patch` does not divide, or labels that come uninvited.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 1,
        groups: int = 8,
        dropout: float = 0.0,
        patch: int = 1,
        embedding: int | None = None,
        features: int = 32,
        low: float = 0.1,
        high: float = 2.0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, object] = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "groups": groups,
            "dropout": dropout,
            "patch": patch,
            "embedding": embedding,
            "features": features,
            "low": low,
            "high": high,
            "classes": classes,
        }
        widths = [width * m for m in multipliers]
        check_attention(attention, widths, heads)
        self.channels, self.patch = channels, patch
        length = 4 * width if embedding is None else embedding

        def stage(level: int, c_in: int) -> Stage:
            c = widths[level]
            block = ResBlock(c_in, c, length, groups, dropout)
            return Stage(block, Attention(c, heads, groups) if level in attention else None)

        self.embed = ConditionEmbedding(length, features, low, high, classes)
        self.enter = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        kept, c = [widths[0]], widths[0]  # channels of every feature map that a skip connection will carry
        levels = range(len(widths))
        for level in levels:
            for _ in range(blocks):
                self.down.append(stage(level, c))
                c = widths[level]
                kept.append(c)
            if level != levels[-1]:
                self.shrink.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                kept.append(c)
        self.middle = nn.ModuleList([stage(levels[-1], c), ResBlock(c, c, length, groups, dropout)])
        for level in reversed(levels):
            for _ in range(blocks + 1):
                self.up.append(stage(level, c + kept.pop()))
                c = widths[level]
            if level != 0:
                self.grow.append(nn.Conv2d(c, c, 3, padding=1))
        self.blocks = blocks
        self.norm = group_norm(c, groups)
        self.leave = nn.Conv2d(c, channels * patch**2, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.patch or x.shape[3] % self.patch:
            wanted = f"(n, {self.channels}, H, W) with sides divisible by {self.patch}"
            raise ValueError(f"this network takes images {wanted}, got {tuple(x.shape)}")
        embedding = nn.functional.silu(self.embed(condition, labels))
        h = self.enter(nn.functional.pixel_unshuffle(x, self.patch))
        kept = [h]
        for i, stage in enumerate(self.down):
            h = stage(h, embedding)
            kept.append(h)
            level, last = divmod(i + 1, self.blocks)
            if last == 0 and level <= len(self.shrink):
                h = self.shrink[level - 1](h)
                kept.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for i, stage in enumerate(self.up):
            h = stage(torch.cat([h, kept.pop()], dim=1), embedding)
            level, last = divmod(i + 1, self.blocks + 1)
            if last == 0 and level <= len(self.grow):
                h = nn.functional.interpolate(h, size=kept[-1].shape[-2:], mode="nearest")
                h = self.grow[level - 1](h)
        h = self.leave(nn.functional.silu(self.norm(h)))
        return nn.functional.pixel_shuffle(h, self.patch)


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """A group norm of at most `groups` groups: the largest number that divides the channels."""
    divides = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(divides, channels)


def check_attention(attention: Sequence[int], widths: Sequence[int], heads: int) -> None:
    """Raise ValueError where an attention level does not exist or its channels do not split into the heads."""
    for level in attention:
        if not 0 <= level < len(widths):
            raise ValueError(f"attention level {level} does not exist: levels run from 0 to {len(widths) - 1}")
        if widths[level] % heads:
            raise ValueError(f"{heads} heads do not divide the {widths[level]} channels of level {level}")
