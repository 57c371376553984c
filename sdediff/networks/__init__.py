"""Networks: plain PyTorch that knows nothing of diffusion, `net(x, condition, labels=None)` -> a tensor like x.

Every network keeps its constructor's arguments in `config`, so that a checkpoint is a name, a config and a state dict:
`build(name, config)` makes the same network again. A new network is one class and one name in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from .classifier import Classifier
from .embedding import ConditionEmbedding, Waves
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "NETWORKS", "Classifier", "ConditionEmbedding", "UNet", "Waves", "build"]

NETWORKS: dict[str, type[MLP] | type[UNet]] = {"mlp": MLP, "unet": UNet}


def build(name: str, config: Mapping[str, Any]) -> MLP | UNet:
    """The network that `name` and `config` describe, freshly initialised.

    Args:
        name: a key of `NETWORKS`.
        config: its constructor's arguments, as a network's `config` holds them (JSON keeps them).

    Raises:
        ValueError: no network has this name; the message lists those there are, and the nearest.
    """
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no network is called {name!r}{hint} There are: {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](**config)
