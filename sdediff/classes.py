"""What is asked of a model with classes: labels written as a text, and the model of these labels under this guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .guidance import Classifier, ClassifierGuidance, Guidance, guided
from .latent_diffusion import LatentDiffusion
from .names import UserError
from .prediction import Labelled, Model


def labels_named(text: str) -> Tensor:
    """Labels from a text: "3", "0,1,7" or "0-9". `UserError` for another text."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found:
        raise UserError(f"labels are whole numbers, commas and ranges, e.g. 3 or 0,1,7 or 0-9, not {text!r}.")
    return torch.tensor(found)


def repeated(labels: Tensor, n: int) -> Tensor:
    """The labels over and over until there are n."""
    return labels.repeat(-(-n // len(labels)))[:n]


def leaning(model: Any, guidance: Guidance | None, labels: Tensor | None, classifier: Classifier | None = None) -> Model:
    """The model of these labels (B,), under this guidance; a latent model in its latents. classifier: for `ClassifierGuidance` only.

    Raises `UserError` for a model without classes, labels that it does not have, and guidance without what it needs.
    """
    if isinstance(model, LatentDiffusion):
        return replace(model, inner=leaning(model.inner, guidance, labels, classifier))
    if guidance is None:
        if labels is None:
            return model
        if not isinstance(model, Labelled):
            raise UserError(f"{type(model).__name__} takes no labels: leave the labels out.")
        return model.with_labels(labels)
    if isinstance(guidance, ClassifierGuidance):
        if classifier is None:
            raise UserError("ClassifierGuidance needs a classifier of noisy images: name its file as classifier.")
        own = model.with_labels(labels) if isinstance(model, Labelled) and model.classes is not None else model
        return guided(own, guidance, labels, classifier=classifier)
    return guided(model, guidance, labels)
