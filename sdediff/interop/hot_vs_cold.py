"""The small MNIST eps-network of github.com/Yichizz/hot_vs_cold_diffusion (MIT), read from its own state dict.

Its data is [0, 1] minus 1/2, its time i/1000 in (0, 1], its output eps; betas 1e-4 + (0.02 - 1e-4) i/1000, i = 0 .. 1000. States
here are in its own units: images in [-1, 1] are twice its data.
Its time embedding turns up to 1834 rad between 0 and 1: the network is rough in time, and no high-order solver converges on it far;
`smooth_time(model)` cures that (docs/rough_time.md).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..names import UserError
from ..networks.embedding import TimeEmbedding
from ..schedules import DiscreteVP
from ..score import ScoreNet

SIDE = 28
WIDTHS = (16, 32, 32, 16)


class _Network(nn.Module):
    """Four 7x7 convolutions with layer norm and GELU, a 3x3 one at the end; the time is added after the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = _Embedding()
        sizes = (1, *WIDTHS)
        blocks: list[nn.Module] = [_Block(a, b) for a, b in zip(sizes, WIDTHS, strict=False)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.blocks[0](x) + self.embed(t)[:, :, None, None]
        for block in self.blocks[1:]:
            h = block(h)
        return h


class _Embedding(TimeEmbedding):
    """Time (n,) to (n, 16): sines and cosines of 16 frequencies, and a perceptron."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(16))
        parts: list[nn.Module] = []
        for a, b in ((32, 128), (128, 128), (128, 128), (128, 16)):
            parts += [nn.Linear(a, b), nn.GELU()]
        self.mix = nn.Sequential(*parts[:-1])

    def alone(self, condition: Tensor) -> Tensor:
        angle = condition[:, None] * self.frequencies
        return self.mix(torch.cat([angle.sin(), angle.cos() - 1], dim=1))


class _Block(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(a, b, 7, padding=3), nn.LayerNorm([b, SIDE, SIDE]), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def load_hot_vs_cold(path: str | Path) -> ScoreNet:
    """The network in `path` (its .pth state dict, read with weights_only) as a Model on states (B, 1, 28, 28) in its own units.

    Raises `UserError` if the file is missing or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no network at {path}; name the folder that holds weights/: export SDEDIFF_DATA=/path.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as wrong:
        raise UserError(f"{path} is not a plain state dict of tensors ({type(wrong).__name__}): copy it again.") from None
    net = _Network()
    try:
        net.load_state_dict({_named(k): v for k, v in state.items() if k not in ("beta_t", "alpha_t")})
    except (AttributeError, RuntimeError) as wrong:
        raise UserError(f"{path} holds another network ({str(wrong).splitlines()[0][:100]}).") from None
    net.eval().requires_grad_(False)
    betas = np.linspace(1e-4, 0.02, 1001)
    betas[1] = 1 - (1 - betas[0]) * (1 - betas[1])  # its time i/1000 has seen betas 0 .. i; ours begins at 1/1000
    return ScoreNet(net, DiscreteVP(tuple(betas[1:]), "spline"), "eps", "time", shape=(1, SIDE, SIDE))


def _named(key: str) -> str:
    """The name here of a tensor of the file."""
    return key.removeprefix("gt.").replace("time_embed", "embed.mix").replace("frequencies", "embed.frequencies")
