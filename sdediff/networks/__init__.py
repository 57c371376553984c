"""Networks: plain PyTorch that knows nothing of diffusion, `net(x, condition, labels=None)` -> a tensor like x.

(`NoisyClassifier` answers logits of `net(x, condition)`; `Autoencoder` has no condition.)

Every network keeps its constructor's arguments in `config`, so that a checkpoint is a name, a config and a state dict:
`build(name, config)` makes the same network again. A new network is one class and one name in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from .autoencoder import Autoencoder, Reconstruction
from .classifier import Classifier, NoisyClassifier
from .dit import DiT
from .embedding import ConditionEmbedding, Waves
from .inception import Inception
from .mlp import MLP
from .resnet20 import ResNet20
from .unet import UNet

__all__ = [
    "MLP",
    "NETWORKS",
    "Autoencoder",
    "Classifier",
    "ConditionEmbedding",
    "DiT",
    "Inception",
    "Network",
    "NoisyClassifier",
    "Reconstruction",
    "ResNet20",
    "UNet",
    "Waves",
    "build",
]

Network = MLP | UNet | DiT | NoisyClassifier | Autoencoder
NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "unet": UNet,
    "dit": DiT,
    "noisy_classifier": NoisyClassifier,
    "autoencoder": Autoencoder,
}


def build(name: str, config: Mapping[str, Any]) -> Network:
    """The network that `name` and `config` describe, freshly initialised.

    Args:
        name: a key of `NETWORKS`.
        config: its constructor's arguments, as a network's `config` holds them (JSON keeps them).

    Raises:
        ValueError: no network has this name, or it has no such argument; the message lists those there are, and the nearest.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}{_nearest(name, NETWORKS)}")
    made = NETWORKS[name]
    known = list(signature(made).parameters)
    for key in config:
        if key not in known:
            raise ValueError(f"{made.__name__} has no argument {key!r}{_nearest(key, known)}")
    return made(**config)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} There are: {', '.join(sorted(known))}"
