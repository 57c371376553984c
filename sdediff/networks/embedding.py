"""What a network is told beside its input: a smooth condition, and perhaps a class.

A network answers to an input and to a scalar condition, and whoever integrates it numerically moves along both:
a method of order p keeps its order only where the network is p times smooth in its condition. The usual embedding of
a thousand integer times holds waves that turn many times between two steps; here the frequencies are geometric between
two that the caller chooses, in radians per unit of condition, so the fastest wave is known:

    e(c) = [cos(w_1 c), ..., cos(w_k c), sin(w_1 c), ..., sin(w_k c)],   w_j = low (high/low)^((j-1)/(k-1)).

A two-layer perceptron follows, and an embedded class is added to what it gives. Every activation is smooth (SiLU).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ConditionEmbedding", "TimeEmbedding", "Waves", "check_labels"]


def check_labels(labels: Tensor, classes: int) -> None:
    """ValueError unless labels (n,) are whole numbers from 0 to `classes`, of which the last says "no label".

    The range is looked at on the CPU only: elsewhere it would make the device wait, and a compiled network does not look at values.
    """
    if labels.ndim != 1 or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"labels are whole numbers (int64), one a sample, of shape (n,); got {tuple(labels.shape)} of {labels.dtype}.")
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or labels.numel() == 0:
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high > classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"label {wrong} is out of range for {classes} classes: labels run from 0 to {classes - 1}, and {classes} means no label. "
            "Count them from 0, or build the network with more classes."
        )


class Waves(nn.Module):
    """Cosines and sines of a scalar: (n,) -> (n, features), the frequencies geometric from `low` to `high`.

    DDPM's embedding of the index is features = width, low = 1e-4, high = 1. (The later codes of ADM and DiT have the same frequencies but
    for the last: theirs are 1e4^(-j/k), j = 0 .. k-1, which ends at low = 1e-4^((k-1)/k).)

    Args:
        features: how many numbers come out; even, at least 4.
        low: the slowest frequency, in radians per unit of the condition; > 0.
        high: the fastest; >= low. The embedding changes by at most `high` per unit of condition in every component.

    Raises:
        ValueError: `features` is odd or under 4, or not 0 < low <= high.

    Source: Vaswani et al. 2017, section 3.5, with the frequencies set by the caller.
    """

    frequencies: Tensor

    def __init__(self, features: int, low: float, high: float) -> None:
        super().__init__()
        if features < 4 or features % 2:
            raise ValueError(f"features must be even and at least 4 (a cosine and a sine each), got {features}")
        if not 0 < low <= high:
            raise ValueError(f"frequencies need 0 < low <= high, got low={low}, high={high}")
        exponents = torch.linspace(math.log(low), math.log(high), features // 2, dtype=torch.float64)
        self.register_buffer("frequencies", exponents.exp().to(torch.get_default_dtype()), persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        angles = condition.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """The one module of a network that reads the condition: what `smooth_time` averages.

    `alone(condition)`: (n,) -> (n, width), of each number by itself; `labelled(embedding, labels)` adds what else `forward` is told.
    """

    def forward(self, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.labelled(self.alone(condition), labels)

    def alone(self, condition: Tensor) -> Tensor:
        raise NotImplementedError

    def labelled(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        return embedding


class ConditionEmbedding(TimeEmbedding):
    """Condition (n,) and optional labels (n,) to one vector a sample, (n, width).

    A condition of shape (1,), or expanded from it (stride 0), is one number for all: it is embedded once, (1, width), and broadcasts.

        embedding = W2 silu(W1 waves(condition) + b1) + b2  [+ table[label]]

    The table has `classes + 1` rows; the last one, index `classes`, means "no label". `labels=None` is that row for
    the whole batch, so that one network serves with and without labels (classifier-free guidance).

    Args:
        width: length of the vector.
        features, low, high: see `Waves`.
        classes: how many classes, or None for a network that takes no labels.

    Raises:
        ValueError: from `forward`, when labels are given to a network without classes or are out of range, or `condition` is not (n,).
    """

    def __init__(self, width: int, features: int, low: float, high: float, classes: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.waves = Waves(features, low, high)
        self.mix = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.table = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        if condition.ndim != 1:
            raise ValueError(f"the condition is one number a sample, of shape (n,); got {tuple(condition.shape)}")
        if condition.stride(0) == 0:
            condition = condition[:1]
        return self.labelled(self.alone(condition), labels)

    def alone(self, condition: Tensor) -> Tensor:
        return self.mix(self.waves(condition))

    def labelled(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.table is None or self.classes is None:
            if labels is not None:
                raise ValueError("labels given to a network without classes: build it with classes=...")
            return embedding
        if labels is None:
            labels = torch.full((len(embedding),), self.classes, dtype=torch.long, device=embedding.device)
        else:
            check_labels(labels, self.classes)
        return embedding + self.table(labels)
