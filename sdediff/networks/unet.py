"""The U-Net of DDPM and of ADM: down to a coarse grid and up again with skips, told the noise level in every block.

    enter -> down -> middle -> up, with what was kept on the way down -> leave

Its blocks are those of `blocks`. With `patch=2` the image first becomes a quarter of the pixels with four times the channels
(pixel-unshuffle), which is the cheap way to a large batch on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Parts, ascend, call, check_images, check_sizes, chosen, descend, group_norm, widths_of, zeroed
from .embedding import ConditionEmbedding

__all__ = ["UNet"]


class UNet(nn.Module):
    """U-Net of DDPM or ADM: `net(x, condition, labels=None)`, x of shape (n, channels, H, W); the answer has x's shape.

    H and W are any multiple of `patch` (28 and 32 as well as 8). The last convolution begins at zero, so a fresh
    network answers 0. A condition of shape (1,) is one number for the whole batch: same answer as (n,), embedded once.
    With `variance` the answer has 2 channels for each: what it predicts, then as many numbers about its variance.

    `net.checkpointing = True` keeps only the input of every block for the gradient and computes the rest again: same numbers, less memory,
    a third to a half more time. It is no part of the config or of the weights.

    Published networks count levels by resolution: size 64 with attention at "32, 16, 8" is attention=(1, 2, 3) here, since level i has
    size/2^i; attention at 16 for CIFAR's 32 is (1,). All have groups=32, features=width, low=1e-4, high=1 (indices 0 .. N-1 as the
    condition), middle_attention=True, zero=True, and besides

        DDPM            scale_shift=False, heads=1
        improved DDPM   heads=4, variance=True
        ADM             head_channels=64, resample="block", variance=True

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
        variance: answer about the variance too.
        scale_shift: the embedding scales and shifts after the second norm (ADM); else it is added before it (DDPM).
        resample: between levels, "conv" (strided; nearest neighbours and a convolution), "pool" (means; nearest neighbours, no weights) or
            "block" (a residual block that pools or repeats pixels on both its ways: ADM).
        head_channels: channels of an attention head, instead of `heads`.
        middle_attention: attention in the middle in any case.
        zero: every residual branch begins at zero, as published.

    Raises:
        ValueError: an attention level that does not exist, heads that do not divide the channels; from `forward`,
            x of other channels or a side that `patch` does not divide, labels that come uninvited or are out of range.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[float] = (1, 2),
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
        variance: bool = False,
        scale_shift: bool = True,
        resample: str = "conv",
        head_channels: int | None = None,
        middle_attention: bool = False,
        zero: bool = False,
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
        self.config |= chosen(
            variance=(variance, False),
            scale_shift=(scale_shift, True),
            resample=(resample, "conv"),
            head_channels=(head_channels, None),
            middle_attention=(middle_attention, False),
            zero=(zero, False),
        )
        self.channels, self.patch, self.checkpointing = channels, patch, False
        names = ("channels", "width", "blocks", "heads", "groups", "patch", "embedding", "classes", "head_channels")
        check_sizes("UNet", {name: self.config.get(name) for name in names})
        widths = widths_of("UNet", width, multipliers)
        length = 4 * width if embedding is None else embedding
        parts = Parts(
            widths, blocks, length, groups, dropout, attention, heads, head_channels, middle_attention, scale_shift, resample, zero
        )
        self.embed = ConditionEmbedding(length, features, low, high, classes)
        self.enter = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        down, shrink, kept = parts.descent()
        middle = parts.middle()
        up, grow = parts.ascent(kept)
        self.down, self.up, self.shrink, self.grow, self.middle = down, up, shrink, grow, middle
        self.norm = group_norm(widths[0], groups)
        self.leave = nn.Conv2d(widths[0], (1 + variance) * channels * patch**2, 3, padding=1)
        zeroed(self.leave)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        check_images(x, self.channels, self.patch)
        again = self.checkpointing
        embedding = nn.functional.silu(self.embed(condition, labels))
        h = self.enter(nn.functional.pixel_unshuffle(x, self.patch))
        kept = descend(self.down, self.shrink, h, embedding, again)
        h = kept[-1]
        for stage in self.middle:
            h = call(again, stage, h, embedding)
        h = ascend(self.up, self.grow, h, kept, embedding, again)
        h = self.leave(nn.functional.silu(self.norm(h)))
        return nn.functional.pixel_shuffle(h, self.patch)
