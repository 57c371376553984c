"""Two classifiers: one whose last hidden layer serves as a feature space, and one of noisy images, told how noisy, for guidance.

`Classifier`: three 3x3 convolutions (strides 1, 2, 2; widths w, 2w, 4w), then a hidden layer of `features` numbers, then the
logits; GELU everywhere. It has no normalisation layer: an image's features depend on that image alone, and on its contrast
too, which a normalisation would hide.

`NoisyClassifier`: the way down of a U-Net and one pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Parts, call, check_images, check_sizes, descend, group_norm, widths_of, zeroed
from .embedding import ConditionEmbedding

__all__ = ["Classifier", "NoisyClassifier"]

POOLS = ("attention", "mean")


class Classifier(nn.Module):
    """logits = head(features(x)) for images x (n, channels, size, size) in [-1, 1].

    channels, size: the images'; width: channels of the first convolution; features: numbers a sample in the last hidden
    layer; classes: number of logits. `config` holds these five, so `Classifier(**net.config)` is the same architecture.
    """

    def __init__(self, channels: int = 1, size: int = 28, width: int = 16, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.config = {"channels": channels, "size": size, "width": width, "features": features, "classes": classes}
        for name, value in self.config.items():
            if value < 1:
                raise ValueError(f"Classifier({name}={value}); expected a whole number >= 1.")
        small = (size + 3) // 4  # after two strides of 2
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(4 * width * small**2, features)
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Activations (n, features) of the last hidden layer. Raises ValueError for images of another shape."""
        expected = (self.config["channels"], self.config["size"], self.config["size"])
        if x.shape[1:] != expected:
            raise ValueError(f"Images of shape {tuple(x.shape)}; expected (n, {', '.join(map(str, expected))}).")
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.gelu(conv(x))
        return F.gelu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes). Raises ValueError for images of another shape."""
        return self.head(self.features(x))


class AttentionPool(nn.Module):
    """What attention reads at one more token, the mean of all, with learned positions; (n, c, H, W) -> (n, c)."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(channels, tokens + 1) / channels**0.5)
        self.enter = nn.Linear(channels, 3 * channels)

    def forward(self, h: Tensor) -> Tensor:
        h = h.flatten(2)
        h = torch.cat([h.mean(2, keepdim=True), h], dim=2) + self.positions
        q, k, v = self.enter(h.transpose(1, 2)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1)


class NoisyClassifier(nn.Module):
    """Logits (n, classes) of noisy images: `net(x, condition)`, x of shape (n, channels, H, W), condition (n,) or (1,) as a U-Net's.

    The way down and the middle of ADM's U-Net, then a pooling of the pixels and a linear map that begins at zero, so that a fresh network
    finds all classes equally likely. Every activation is smooth, in x too: guidance follows its gradient.

    `net.checkpointing = True`: as for `UNet`. As published for ADM: width=128, blocks=2 (4 at size 64), head_channels=64, groups=32,
    features=128, low=1e-4, high=1, classes=1000, zero=True, middle_attention=True, and the U-Net's levels with the same attention.

    Args:
        size: side of the images, or (height, width).
        classes: number of logits.
        pool: "attention" (ADM), or "mean".
        channels, width, multipliers, blocks, attention, heads, groups, dropout, patch, embedding, features, low, high, scale_shift,
            resample, head_channels, middle_attention, zero: see `UNet`.

    Raises:
        ValueError: as `UNet` does; an unknown pool; from `forward`, images of another size.

    Source: Dhariwal, Nichol 2021, section 4.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 28,
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
        classes: int = 10,
        pool: str = "attention",
        scale_shift: bool = True,
        resample: str = "block",
        head_channels: int | None = None,
        middle_attention: bool = True,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.config: dict[str, object] = {
            "channels": channels,
            "size": list(self.size),
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
            "pool": pool,
            "scale_shift": scale_shift,
            "resample": resample,
            "head_channels": head_channels,
            "middle_attention": middle_attention,
            "zero": zero,
        }
        if pool not in POOLS:
            raise ValueError(f"pool is one of {', '.join(map(repr, POOLS))}, not {pool!r}")
        self.channels, self.patch, self.checkpointing = channels, patch, False
        names = ("channels", "width", "blocks", "heads", "groups", "patch", "embedding", "classes", "head_channels")
        check_sizes("NoisyClassifier", {name: self.config.get(name) for name in names})
        check_sizes("NoisyClassifier", {f"side {i} of size": side for i, side in enumerate(self.size)})
        widths = widths_of("NoisyClassifier", width, multipliers)
        length = 4 * width if embedding is None else embedding
        parts = Parts(
            widths, blocks, length, groups, dropout, attention, heads, head_channels, middle_attention, scale_shift, resample, zero
        )
        c, last = widths[-1], len(widths) - 1
        self.embed = ConditionEmbedding(length, features, low, high)
        self.enter = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down, self.shrink, _ = parts.descent()
        self.middle = parts.middle()
        self.norm = group_norm(c, groups)
        tokens = [-(-(side // patch) // 2**last) for side in self.size]  # halved and rounded up `last` times
        self.pool = AttentionPool(c, parts.heads_at(last), tokens[0] * tokens[1]) if pool == "attention" else None
        self.leave = nn.Linear(c, classes)
        zeroed(self.leave)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        check_images(x, self.channels, self.patch)
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"this classifier takes images of {self.size[0]}x{self.size[1]}, got {x.shape[2]}x{x.shape[3]}")
        embedding = F.silu(self.embed(condition))
        h = descend(self.down, self.shrink, self.enter(F.pixel_unshuffle(x, self.patch)), embedding, self.checkpointing)[-1]
        for stage in self.middle:
            h = call(self.checkpointing, stage, h, embedding)
        h = F.silu(self.norm(h))
        return self.leave(h.mean((2, 3)) if self.pool is None else self.pool(h))
