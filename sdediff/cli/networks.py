"""Networks for the commands that work on images: by their names, in the images' precision, and telling of every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..data import data_folder
from ..interop.hot_vs_cold import load_hot_vs_cold
from ..latent_diffusion import LatentDiffusion, around
from ..names import UserError
from ..prediction import Around, Model, Prediction
from ..pretrained.scores import load
from ..schedule import Knot
from ..score import ScoreNet
from ..solver import Delegate, Solver
from .console import checkpoint_path

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="A model.safetensors; one of the package by its name (default: digits); or hot_vs_cold, the third-party MNIST network.",
    ),
]
FlowSolverOption = Annotated[str | None, typer.Option("--solver", help='A solver as its repr shows it, e.g. "DDIM()" or "EDICT(p=0.93)".')]
LimitsOption = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="What the network calls black and white: the values of 0 and 255. Default -1 1."),
]


@dataclass(frozen=True)
class Watched(Around):
    """A model that tells of every call."""

    model: Model
    tell: Callable[[int], None]

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        p = self.model(x, t)
        self.tell(p.calls)
        return p

    def rows(self, index: Tensor) -> Watched:
        return Watched(self.model.rows(index), self.tell)


def watched(model: Model, tell: Callable[[int], None]) -> Model:
    """The model, telling of every call: of a latent model the one inside, so that it stays a latent model."""
    return around(model, lambda inner: Watched(inner, tell))


def model_named(checkpoint: Path | None) -> tuple[ScoreNet | LatentDiffusion, tuple[float, float] | None]:
    """The network, and the limits of its images where they are not -1 and 1."""
    if checkpoint is None or str(checkpoint) != "hot_vs_cold":
        return load(checkpoint_path(checkpoint)), None
    folder = data_folder()
    if folder is None:
        raise UserError("the third-party MNIST network is in a folder with weights/: export SDEDIFF_DATA=/path/to/it.")
    return load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth"), (-0.5, 0.5)


def suited(model: ScoreNet | LatentDiffusion, images: torch.dtype) -> None:
    """Images of float64 are asked about in float64, all others in float32; latents are in the precision of their autoencoder."""
    if isinstance(model, ScoreNet) and images == torch.float64 and isinstance(model.net, torch.nn.Module):
        model.net.double()


def limits_of(given: tuple[float, float] | None, home: tuple[float, float] | None) -> tuple[float, float] | None:
    if given is not None and not -float("inf") < given[0] < given[1] < float("inf"):
        raise UserError(f"--limits takes two numbers, the smaller first, e.g. --limits -1 1, not {given[0]:g} {given[1]:g}.")
    return given or home


def expected_calls(solver: Solver | Delegate | None, steps: int | None, calls: int | None, runs: float) -> float | None:
    """About how many network calls."""
    each = calls if steps is None else steps * (1 if solver is None else solver.facts.evals)
    return None if each is None else round(runs * each) + 1
