"""Score networks of our own: where their weights lie and the recipe that makes them again, `sdediff train --out FOLDER`.

`digits`: 8x8 digits, a residual perceptron of 0.57 M parameters that predicts v from lam, so that it is smooth in time; VP linear.
"""

from __future__ import annotations

from pathlib import Path

from ..networks import MLP
from ..schedules import VPLinear
from ..score import Objective, ScoreNet
from ..train import Training

DIGITS = Training(steps=6000, batch=256, lr=2e-3, warmup=200, ema=0.999, objective=Objective())


def digits_path() -> Path:
    """The committed digits network: a file for `load_model`."""
    return Path(__file__).parent / "digits.safetensors"


def digits_model(seed: int = 0) -> ScoreNet:
    """A freshly initialised digits network, to be trained as `DIGITS` says."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP((1, 8, 8), width=256, depth=3)
    return ScoreNet(net, VPLinear(), predicts="v", condition="lam", shape=(1, 8, 8))
