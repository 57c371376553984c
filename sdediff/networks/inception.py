"""Inception-v3 as the Frechet Inception Distance means it: the graph that TensorFlow published on 2015-12-05, with 1008 logits.

It differs from the paper's network (Szegedy et al. 2016) in three places: average pooling leaves the padding out of the mean, the last
block pools by the maximum, and there are 1008 classes. Tensors have the names of the usual file, `Mixed_5b.branch1x1.conv.weight` and so
on. Inside a block a convolution of stride 1 keeps the size, one of stride 2 has no padding; after each come a frozen batch norm and a ReLU.

Images are rounded to 8 bits first, as every published FID reads them from files; then enlarged or shrunk to 299 x 299; then scaled.
`like` says how. "tensorflow" (the original; torch-fidelity, torchmetrics): pixel i of 299 is at i s/299 of s, between two pixels even
where it shrinks, and (x - 128)/128. "pytorch-fid": torch's bilinear rule, pixel i at (i + 1/2) s/299 - 1/2, and x/127.5 - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FEATURES", "LIKE", "Inception", "inception_weights"]

SIDE, CLASSES = 299, 1008
LIKE = ("tensorflow", "pytorch-fid")


class To(NamedTuple):
    """A convolution to so many channels, with batch norm and ReLU."""

    name: str
    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


Step = To | tuple[To, To] | str  # a pair: both of the same input, side by side; a text: a pooling
Plan = tuple[tuple[Step, ...], ...]

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "shrink": lambda x: F.max_pool2d(x, 3, stride=2),
}


def _a(pooled: int) -> Plan:
    return (
        (To("branch1x1", 64),),
        (To("branch5x5_1", 48), To("branch5x5_2", 64, 5)),
        (To("branch3x3dbl_1", 64), To("branch3x3dbl_2", 96, 3), To("branch3x3dbl_3", 96, 3)),
        ("mean", To("branch_pool", pooled)),
    )


def _b() -> Plan:
    return (
        (To("branch3x3", 384, 3, 2),),
        (To("branch3x3dbl_1", 64), To("branch3x3dbl_2", 96, 3), To("branch3x3dbl_3", 96, 3, 2)),
        ("shrink",),
    )


def _c(width: int) -> Plan:
    row, column = (1, 7), (7, 1)
    return (
        (To("branch1x1", 192),),
        (To("branch7x7_1", width), To("branch7x7_2", width, row), To("branch7x7_3", 192, column)),
        (
            To("branch7x7dbl_1", width),
            To("branch7x7dbl_2", width, column),
            To("branch7x7dbl_3", width, row),
            To("branch7x7dbl_4", width, column),
            To("branch7x7dbl_5", 192, row),
        ),
        ("mean", To("branch_pool", 192)),
    )


def _d() -> Plan:
    row, column = (1, 7), (7, 1)
    return (
        (To("branch3x3_1", 192), To("branch3x3_2", 320, 3, 2)),
        (To("branch7x7x3_1", 192), To("branch7x7x3_2", 192, row), To("branch7x7x3_3", 192, column), To("branch7x7x3_4", 192, 3, 2)),
        ("shrink",),
    )


def _e(pool: str) -> Plan:
    row, column = (1, 3), (3, 1)
    return (
        (To("branch1x1", 320),),
        (To("branch3x3_1", 384), (To("branch3x3_2a", 384, row), To("branch3x3_2b", 384, column))),
        (To("branch3x3dbl_1", 448), To("branch3x3dbl_2", 384, 3), (To("branch3x3dbl_3a", 384, row), To("branch3x3dbl_3b", 384, column))),
        (pool, To("branch_pool", 192)),
    )


STEM = (
    To("Conv2d_1a_3x3", 32, 3, 2),
    To("Conv2d_2a_3x3", 32, 3),
    To("Conv2d_2b_3x3", 64, 3),
    To("Conv2d_3b_1x1", 80),
    To("Conv2d_4a_3x3", 192, 3),
)
MIXED: dict[str, Plan] = {
    **{"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b()},
    **{"Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d()},
    **{"Mixed_7b": _e("mean"), "Mixed_7c": _e("max")},
}  # fmt: skip
PADDED = ("Conv2d_2b_3x3",)  # of the stem, where the others have no padding
STAGES: dict[int, tuple[str, ...]] = {
    64: ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "shrink"),
    192: ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "shrink"),
    768: ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    2048: ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}  # what leads to so many features, each stage after the one before
FEATURES = tuple(STAGES)


class Norm(nn.Module):
    """A batch norm that is done learning: weight (x - running_mean)/sqrt(running_var + eps) + bias."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)


class Convolution(nn.Module):
    """conv, bn, ReLU."""

    def __init__(self, channels: int, to: To, padded: bool) -> None:
        super().__init__()
        high, wide = (to.kernel, to.kernel) if isinstance(to.kernel, int) else to.kernel
        padding = (high // 2, wide // 2) if padded else 0
        self.conv = nn.Conv2d(channels, to.channels, (high, wide), to.stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.bn = Norm(to.channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Several ways from the same input, their ends side by side."""

    def __init__(self, channels: int, plan: Plan) -> None:
        super().__init__()
        self.plan, self.channels = plan, 0
        for way in plan:
            wide = channels
            for step in way:
                if isinstance(step, str):
                    continue
                ends = (step,) if isinstance(step, To) else step
                for to in ends:
                    self.add_module(to.name, Convolution(wide, to, padded=to.stride == 1))
                wide = sum(to.channels for to in ends)
            self.channels += wide

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._along(way, x) for way in self.plan], 1)

    def _along(self, way: tuple[Step, ...], x: Tensor) -> Tensor:
        for step in way:
            if isinstance(step, str):
                x = POOLS[step](x)
            elif isinstance(step, To):
                x = self.get_submodule(step.name)(x)
            else:
                x = torch.cat([self.get_submodule(to.name)(x) for to in step], 1)
        return x


class Inception(nn.Module):
    """Features and logits of images (n, 3 or 1, h, w) in [-1, 1] of any size; grey ones become three equal channels.

    Fresh weights are random (He et al. 2015); those that a Frechet Inception Distance means are in a file, see `inception_weights`.

    Args:
        like: "tensorflow" or "pytorch-fid", how images are resized and scaled; published numbers differ by which it is.
        quantise: round the images to 8 bits first (and cut off what lies beyond -1 and 1), as if they had been saved as PNG files.

    Raises:
        ValueError: another `like`; images that are not (n, 3 or 1, h, w) of floats; from `features`, a size that is not in FEATURES.
    """

    def __init__(self, like: str = "tensorflow", quantise: bool = True) -> None:
        super().__init__()
        if like not in LIKE:
            raise ValueError(f"Inception(like={like!r}); expected one of {', '.join(map(repr, LIKE))}.")
        self.config = {"like": like, "quantise": quantise}
        self.like, self.quantise = like, quantise
        channels = 3
        for to in STEM:
            self.add_module(to.name, Convolution(channels, to, padded=to.name in PADDED))
            channels = to.channels
        for name, plan in MIXED.items():
            mixed = Mixed(channels, plan)
            self.add_module(name, mixed)
            channels = mixed.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 1008). The Inception Score as published takes them without the bias: `features_and_logits`."""
        return self.fc(self.features(images))

    def features(self, images: Tensor, size: int = 2048) -> Tensor:
        """(n, size) means over the pixels, size one of 64, 192, 768 and 2048; no more of the network is run than that takes."""
        if size not in STAGES:
            raise ValueError(f"Inception has no {size} features; expected one of {', '.join(map(str, FEATURES))}.")
        return self.maps(images, size)[size].mean((2, 3))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The 2048 features and their logits without the bias, which is what the Inception Score was defined on."""
        features = self.features(images)
        return features, features @ self.fc.weight.T

    def maps(self, images: Tensor, last: int = 2048) -> dict[int, Tensor]:
        """What the stages up to `last` leave: {64: (n, 64, 73, 73), 192: (n, 192, 35, 35), 768: ..., 2048: (n, 2048, 8, 8)}."""
        x, found = self.prepared(images), {}
        for size, steps in STAGES.items():
            for step in steps:
                x = POOLS[step](x) if step in POOLS else self.get_submodule(step)(x)
            found[size] = x
            if size == last:
                break
        return found

    def prepared(self, images: Tensor) -> Tensor:
        """The images as the first convolution sees them, (n, 3, 299, 299)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point() or 0 in images.shape[2:]:
            raise ValueError(
                f"Images of {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}; expected floats (n, 3 or 1, h, w) in [-1, 1]."
            )
        x = (images.to(self.fc.weight.dtype) + 1) * 127.5
        x = x.round().clamp(0, 255) if self.quantise else x
        x = x.expand(-1, 3, -1, -1)
        if self.like == "tensorflow":
            return (tensorflow_bilinear(x, SIDE) - 128) / 128
        return F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False) / 127.5 - 1


def tensorflow_bilinear(x: Tensor, side: int) -> Tensor:
    """Images (n, c, h, w) to (n, c, side, side) as TensorFlow 1 does it: output i lies at i h/side, between two pixels."""

    def along(x: Tensor, dim: int) -> Tensor:
        pixels = x.shape[dim]
        scale = torch.tensor(pixels / side, dtype=torch.float32, device=x.device)  # TensorFlow's own precision, whatever the images'
        at = torch.arange(side, dtype=x.dtype, device=x.device) * scale
        low = at.long().clamp(max=pixels - 1)
        high = (low + 1).clamp(max=pixels - 1)
        first, second = x.index_select(dim, low), x.index_select(dim, high)
        between = (at - low).reshape([side if i == dim else 1 for i in range(4)])
        return first + (second - first) * between

    return along(along(x, 3), 2)


def inception_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with the names that `Inception` has.

    Both usual files, pytorch-fid's and torch-fidelity's, already have them. Taken besides: counters of batches, which are left out;
    the prefix of a wrapped network, `module.`; the names of pytorch-fid's own module, `blocks.2.0.branch1x1...`, which has no `fc`.
    """
    blocks = {f"blocks.{i}.{j}": step for i, steps in enumerate(STAGES.values()) for j, step in enumerate(steps)}
    found = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.endswith(".num_batches_tracked"):
            continue
        head = ".".join(name.split(".")[:3])
        found[blocks[head] + name[len(head) :] if head in blocks else name] = value
    return found
