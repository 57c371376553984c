"""ResNet-20 for CIFAR-10, as He et al. 2016 (section 4.2) define it: a third-party classifier whose pooled features judge samples.

Three stages of three blocks, 16, 32 and 64 channels wide; the shortcut into a wider stage takes every second pixel and adds channels of
zeros. Tensors have the names of github.com/akamaster/pytorch_resnet_cifar10 (BSD-2), whose weights are published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .inception import Norm

__all__ = ["ResNet20"]

WIDTHS = (16, 32, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1], which these weights were trained with


class Block(nn.Module):
    """ReLU(shortcut + two convolutions), the first of them with the stride."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, padding=1, bias=False), Norm(b, eps=1e-5)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, padding=1, bias=False), Norm(b, eps=1e-5)
        self.stride, self.added = stride, (b - a) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        step = self.stride
        return F.relu(h + F.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, self.added, self.added)))


class ResNet20(nn.Module):
    """Logits (n, 10) of images (n, 3, h, w) in [-1, 1], meant for 32 x 32; `features` are the 64 numbers before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), Norm(WIDTHS[0], eps=1e-5)
        widths = (WIDTHS[0], *WIDTHS)
        stages = [
            nn.Sequential(Block(a, b, 2 if b > a else 1), Block(b, b, 1), Block(b, b, 1)) for a, b in zip(widths, WIDTHS, strict=False)
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(WIDTHS[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(n, 64), the mean over the pixels of the last stage. ValueError for images that are not (n, 3, h, w)."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images of shape {tuple(images.shape)}; expected (n, 3, 32, 32).")
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (MEAN, STD))
        x = F.relu(self.bn1(self.conv1(((images + 1) / 2 - mean) / std)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
