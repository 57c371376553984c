"""Samples of a trained network, as options or a recipe ask for them: labels, guidance, a solver; and the sheet that shows them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import sampling
from ..checkpoint import load_classifier
from ..classes import labels_named, leaning, repeated
from ..guidance import ClassifierGuidance, guidance_named, noise_apart
from ..latent_diffusion import LatentDiffusion, data_shape
from ..names import UserError, label, positive
from ..prediction import Model
from ..recipe import Recipe, companion_file
from ..score import ScoreNet
from ..solver import Delegate, Solver
from ..solvers import DDIM, AdaptiveAdams
from .console import grid_named, solver_named


class Drawn(NamedTuple):
    """Samples, the solver that made them, and their labels where they have any."""

    x: Tensor
    solver: Solver | Delegate
    labels: Tensor | None


def draw(
    model: Model,
    n: int,
    *,
    labels: str | None = None,
    guidance: str | None = None,
    classifier: Path | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    calls: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    first: int = 0,
    total: int | None = None,
    batch: int | None = None,
) -> Drawn:
    """n samples; every option as a text of the command line. Steps default to 20. first, total: these are some of so many samples."""
    steps = 20 if steps is None and calls is None and tolerance is None else steps
    told = None if labels is None else repeated(labels_named(labels), positive("n", n) if total is None else total)
    asked = asked_of(model, guidance, told, classifier)
    method, places = solver_named(solver), grid_named(grid)
    how: dict[str, Any] = {"steps": steps, "calls": calls, "tolerance": tolerance, "solver": method, "grid": places}
    x = sampling.sample(asked, n, device=_device(model), seed=seed, first=first, batch=batch, **how)
    default = AdaptiveAdams() if tolerance is not None else sampling.recommend(model.schedule, steps or calls or 1)[0]
    default = DDIM() if noise_apart(asked) else default
    return Drawn(x, method or default, told)


def draw_as(recipe: Recipe, model: Model, path: Path, folder: Path | None = None) -> None:
    """The sheet of samples that a recipe asks for in [sampling]; classes, if the network has them, side by side.

    folder: of the run, where a classifier lies; None: it is not trained yet, and does not guide. Samples that are no images, and sheets
    that cannot be drawn, are one warning: the training is done all the same.
    """
    asked = dict(recipe.sampling)
    n, columns = asked.pop("n", 80), asked.pop("columns", 10)
    classes = _classes(model)
    if "guidance" in asked and isinstance(guidance_named(asked["guidance"]), ClassifierGuidance):
        if folder is None:
            del asked["guidance"]
        else:
            asked["classifier"] = companion_file(recipe, "classifier", folder)
            net: Any = load_classifier(asked["classifier"]).net
            classes = net.config["classes"]
    if classes is not None:
        columns = min(columns, classes)
        asked["labels"] = ",".join(str(i * classes // columns) for i in range(columns))
    if len(data_shape(model) or (1, 1, 1)) != 3:
        warnings.warn("no sheet of samples: they are no images; `sdediff sample --out x.safetensors` writes them.", stacklevel=2)
        return
    try:
        found = draw(model, n, batch=min(n, 100), **asked)
    except UserError as wrong:
        warnings.warn(f"no sheet of samples: {wrong}", stacklevel=2)
        return
    from ..study import figures

    figures.sheet([("", part) for part in found.x.split(columns)], path, title=f"{recipe.about}: {label(found.solver)}", columns=columns)


def asked_of(model: Model, guidance: str | None, labels: Tensor | None, classifier: Path | None) -> Model:
    """The model of these labels, under the guidance of this text, with the classifier of this file."""
    made = None if guidance is None else guidance_named(guidance)
    net = load_classifier(classifier) if classifier is not None and isinstance(made, ClassifierGuidance) else None
    return leaning(model, made, labels, net)


def _device(model: Any) -> torch.device | str:
    """Where the model's network lies."""
    inner = model.inner if isinstance(model, LatentDiffusion) else model
    net = inner.net if isinstance(inner, ScoreNet) else None
    return next((p.device for p in net.parameters()), "cpu") if isinstance(net, torch.nn.Module) else "cpu"


def _classes(model: Any) -> int | None:
    inner = model.inner if isinstance(model, LatentDiffusion) else model
    return inner.classes if isinstance(inner, ScoreNet) else None
