"""A residual perceptron with adaptive scale and shift: for points in the plane, and for images of a few pixels.

Every block normalises, lets the condition scale and shift, and adds:

    h <- h + W2 gelu(W1 [(1 + a(c)) norm(h) + b(c)]).

Dense layers are the cheapest arithmetic there is on a CPU: 8x8 images cost a perceptron milliseconds a batch of
a thousand, where a convolutional network of the same size costs tenths of a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import check_sizes, chosen
from .embedding import ConditionEmbedding

__all__ = ["MLP"]


class Modulated(nn.Module):
    """Layer norm whose scale and shift come from the embedding: (1 + a) norm(h) + b; (n, width) -> (n, width)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.adapt = nn.Linear(embedding, 2 * width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.adapt(embedding).chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(h), 1 + scale)


class Block(nn.Module):
    """h + W2 gelu(W1 modulated(h)); (n, width) -> (n, width)."""

    def __init__(self, width: int, hidden: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.modulated = Modulated(width, embedding)
        self.enter = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(hidden, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = nn.functional.gelu(self.enter(self.modulated(h, embedding)))
        return h + self.leave(self.dropout(inner))


class MLP(nn.Module):
    """Residual perceptron over the flattened input: `net(x, condition, labels=None)`, x of shape (n, *shape).

    The answer has the shape of x. The last layer begins at zero, so a fresh network answers 0. It reads the raw input
    beside the last hidden layer, so that an answer almost linear in x costs no hidden units. A condition of shape (1,)
    is one number for the whole batch: same answer as (n,), and cheaper, since it is embedded once. With `variance` the answer has twice
    as many channels (entries of the first axis): what it predicts, then as many numbers about its variance.

    Args:
        shape: of one sample, e.g. (2,) or (1, 8, 8).
        width: of the residual stream.
        depth: number of residual blocks.
        expansion: hidden width of a block over `width`.
        embedding: length of the condition's embedding.
        features, low, high: waves of the condition, and their frequencies in radians per unit (see `Waves`).
        dropout: probability of dropping a hidden unit while training.
        classes: number of labels, or None; label `classes` and labels=None both mean "no label".
        variance: answer about the variance too.

    Raises:
        ValueError: from `forward`, when x does not have the shape promised, or labels come uninvited.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 256,
        depth: int = 3,
        expansion: float = 1.0,
        embedding: int = 64,
        features: int = 32,
        low: float = 0.1,
        high: float = 2.0,
        dropout: float = 0.0,
        classes: int | None = None,
        variance: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "embedding": embedding, "classes": classes, "width times expansion": round(width * expansion)}
        check_sizes("MLP", {**sizes, **{f"entry {i} of shape": side for i, side in enumerate(shape)}})
        self.config: dict[str, object] = {
            "shape": list(shape),
            "width": width,
            "depth": depth,
            "expansion": expansion,
            "embedding": embedding,
            "features": features,
            "low": low,
            "high": high,
            "dropout": dropout,
            "classes": classes,
        }
        self.config |= chosen(variance=(variance, False))
        self.shape = tuple(shape)
        self.answer = (shape[0] * (1 + variance), *shape[1:])
        size = math.prod(shape)
        self.embed = ConditionEmbedding(embedding, features, low, high, classes)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, round(width * expansion), embedding, dropout) for _ in range(depth))
        self.modulated = Modulated(width, embedding)
        self.leave = nn.Linear(width + size, math.prod(self.answer))
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this network takes samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        embedding = nn.functional.silu(self.embed(condition, labels))
        flat = x.flatten(1)
        h = self.enter(flat)
        for block in self.blocks:
            h = block(h, embedding)
        last = nn.functional.gelu(self.modulated(h, embedding))
        return self.leave(torch.cat([last, flat], dim=1)).unflatten(1, self.answer)
