"""The diffusion transformer: patches of the image as tokens, and the condition in every normalisation (adaLN-Zero).

    h <- patches of x, linearly, + position
    h <- h + g1 attention((1 + a1) norm(h) + b1);   h <- h + g2 perceptron((1 + a2) norm(h) + b2)     (depth times)
    answer <- linear((1 + a) norm(h) + b), each token back to its patch

where a, b and the gates g are linear in silu(embedding) and begin at zero, so that every block begins as the identity.

Source: Peebles, Xie 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import call, check_images, check_sizes, zeroed
from .embedding import ConditionEmbedding

__all__ = ["DiT"]


class Modulated(nn.Module):
    """(1 + a) norm(h) + b for tokens (n, tokens, width); a and b (n, width) or (1, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift[:, None], self.norm(h), 1 + scale[:, None])


class Attention(nn.Module):
    """Self-attention between tokens: (n, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.enter(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, width/heads)
        return self.leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each on a modulated norm and let in by a gate."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.adapt = nn.Linear(width, 6 * width)
        self.modulated = Modulated(width)
        self.attention = Attention(width, heads)
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.adapt(embedding).chunk(6, dim=1)
        h = torch.addcmul(h, gate[:, None], self.attention(self.modulated(h, scale, shift)))
        inner = F.gelu(self.enter(self.modulated(h, scale2, shift2)), approximate="tanh")
        return torch.addcmul(h, gate2[:, None], self.leave(inner))


class DiT(nn.Module):
    """Diffusion transformer: `net(x, condition, labels=None)`, x of shape (n, channels, H, W); the answer has x's shape.

    H and W are any multiples of `patch`: positions are computed, not learned. A fresh network answers 0. A condition of shape (1,) is one
    number for the whole batch: same answer as (n,), embedded once. With `variance` the answer has 2 channels for each: what it predicts,
    then as many numbers about its variance.

    `net.checkpointing = True` keeps only the input of every block for the gradient and computes the rest again: same numbers, less memory,
    a third to a half more time. It is no part of the config or of the weights.

    As published: DiT-S/2 is width=384, depth=12, heads=6, DiT-B/2 768, 12, 12, DiT-L/2 1024, 24, 16 and DiT-XL/2 1152, 28, 16, all with
    channels=4 (latents of 32x32), patch=2, features=256, low=1e-4, high=1 (indices as the condition), classes=1000, variance=True.

    Args:
        channels: of the image.
        patch: side of the square of pixels that is one token.
        width: of the residual stream; a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: attention heads.
        expansion: hidden width of a block's perceptron over `width`.
        features, low, high: waves of the condition, and their frequencies in radians per unit (see `Waves`).
        classes: number of labels, or None; label `classes` and labels=None both mean "no label".
        variance: answer about the variance too.

    Raises:
        ValueError: heads or 4 that do not divide the width; from `forward`, x of other channels or a side that `patch` does not divide,
            labels that come uninvited or are out of range.
    """

    frequencies: Tensor

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        features: int = 32,
        low: float = 0.1,
        high: float = 2.0,
        classes: int | None = None,
        variance: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, object] = {
            "channels": channels,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "expansion": expansion,
            "features": features,
            "low": low,
            "high": high,
            "classes": classes,
            "variance": variance,
        }
        sizes = {"channels": channels, "patch": patch, "width": width, "heads": heads, "classes": classes}
        check_sizes("DiT", {**sizes, "width times expansion": round(width * expansion)})
        if width % heads or width % 4:
            raise ValueError(f"width must be a multiple of the {heads} heads and of 4 (sines and cosines of two coordinates), got {width}")
        self.channels, self.patch, self.checkpointing = channels, patch, False
        exponents = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
        self.register_buffer("frequencies", (-math.log(1e4) * exponents).exp().to(torch.get_default_dtype()), persistent=False)
        self.embed = ConditionEmbedding(width, features, low, high, classes)
        self.enter = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(Block(width, round(width * expansion), heads) for _ in range(depth))
        self.adapt = nn.Linear(width, 2 * width)
        self.modulated = Modulated(width)
        self.leave = nn.Linear(width, (1 + variance) * channels * patch**2)
        self._begin()

    def _begin(self) -> None:
        """The published initial weights: Glorot's in the transformer, small in the embeddings, zero in gates and last layer."""
        for block in self.blocks:
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight)
                    nn.init.zeros_(part.bias)
            zeroed(block.adapt)  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.enter.weight.detach().flatten(1))  # as the linear map of a patch that it is
        assert self.enter.bias is not None
        nn.init.zeros_(self.enter.bias)
        for part in self.embed.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        zeroed(self.adapt)
        zeroed(self.leave)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        check_images(x, self.channels, self.patch)
        embedding = F.silu(self.embed(condition, labels))
        tokens = self.enter(x)
        height, width = tokens.shape[-2:]
        h = tokens.flatten(2).transpose(1, 2) + self.positions(height, width)
        for block in self.blocks:
            h = call(self.checkpointing, block, h, embedding)
        shift, scale = self.adapt(embedding).chunk(2, dim=1)
        h = self.leave(self.modulated(h, scale, shift))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (height, width)), self.patch)

    def positions(self, height: int, width: int) -> Tensor:
        """(height width, channels): sines and cosines of the column, then of the row, with frequencies from 1 down to 1e-4."""

        def waves(n: int) -> Tensor:
            places = torch.arange(n, device=self.frequencies.device, dtype=self.frequencies.dtype)
            angles = places[:, None] * self.frequencies
            return torch.cat([angles.sin(), angles.cos()], dim=1)

        columns, rows = waves(width).expand(height, -1, -1), waves(height)[:, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=2).flatten(0, 1)
