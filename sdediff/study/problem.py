"""What a study is about: a model, the real images, and the extractors in whose features they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_classifier
from ..classes import labels_named, leaning, repeated
from ..data import DataError, Source, data_folder, open_source
from ..features import Extractor, Reference, extractor, load_reference
from ..fingerprint import fingerprint
from ..guidance import Guidance
from ..interop.hot_vs_cold import load_hot_vs_cold
from ..latent_diffusion import LatentDiffusion, data_shape, to_data
from ..names import UserError
from ..prediction import Labelled, Model
from ..pretrained.scores import load, model_path
from ..score import ScoreNet
from .cells import CHUNK, Study
from .store import mark

REFERENCES = 10_000  # real images in whose features samples are judged, unless told


@dataclass(frozen=True)
class Problem:
    """A model and what its samples are judged by.

    real: the data, images in [-1, 1]; rows: which of them are the references (N,); scale: images in [-1, 1] are scale times the model's;
    extractors: by name, the first is that of metrics that name none; statistics: moments of the data in an extractor's features that were
    measured elsewhere, by its name; labels: the classes that are asked for, over and over; classifier: of noisy images, for guidance.
    """

    model: Model
    real: Source
    rows: Tensor
    extractors: Mapping[str, Extractor]
    scale: float = 1.0
    statistics: Mapping[str, Reference] = field(default_factory=dict)
    labels: Tensor | None = None
    classifier: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of the model's states."""
        return tuple(self.model.shape or self.real.shape)

    @property
    def extractor(self) -> str:
        """The name of the extractor that metrics mean which name none."""
        return next(iter(self.extractors))

    def asked(self, guidance: Guidance | None, n: int) -> Model:
        """The model of the n first samples: of their labels, under this guidance."""
        labels = None if self.labels is None else repeated(self.labels, n)
        return leaning(self.model, guidance, labels, self.classifier)

    def images(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], float32, of states (n, ...)."""
        return to_data(self.model, x).float() * self.scale

    def real_images(self, first: int, last: int) -> Tensor:
        """The references first .. last - 1, in [-1, 1]."""
        return self.real.batch(self.rows[first:last])[0]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a result depends on, as hashes and names: weights, data, extractors, labels."""
        return {
            "weights": model_mark(self.model, self.shape),
            "scale": self.scale,
            "data": data_mark(self.real, self.rows),
            "references": len(self.rows),
            "extractors": {name: e.mark for name, e in self.extractors.items()},
            "statistics": {name: mark(s.moments.mean, s.moments.cov) for name, s in self.statistics.items()},
            "labels": None if self.labels is None else mark(self.labels),
            "classifier": None if self.classifier is None else mark(*self.classifier.net.state_dict().values()),
        }


def networks(model: Any) -> list[nn.Module]:
    """The networks in a model of ours."""
    if isinstance(model, LatentDiffusion):
        return [model.autoencoder, *networks(model.inner)]
    return [model.net] if isinstance(model, ScoreNet) and isinstance(model.net, nn.Module) else []


def model_mark(model: Model, shape: tuple[int, ...]) -> str:
    """A hash of a model: of its weights and what reads them, or, of one that is no network of ours, of its answer to a fixed question."""
    found = networks(model)
    if not found:
        return mark([round(v, 5) for v in fingerprint(model, torch.zeros(1, *shape))], repr(model.schedule))
    weights = [part for net in found for name, value in sorted(net.state_dict().items()) for part in (name, value)]
    inner: Any = model.inner if isinstance(model, LatentDiffusion) else model
    scaling = (model.scale, model.shift) if isinstance(model, LatentDiffusion) else ()
    reads = (inner.predicts, inner.condition, inner.variance, inner.preconditioning, inner.data_std) if isinstance(inner, ScoreNet) else ()
    return mark(*weights, repr(model.schedule), reads, scaling)


def data_mark(source: Source, rows: Tensor) -> str:
    """A hash of which images are the references: their source, its size, their rows, and the first of them."""
    return mark(source.name, len(source), list(source.shape), rows, source.batch(rows[:CHUNK])[0])


def problem_of(study: Study, checkpoint: str | Path | None = None, device: torch.device | None = None) -> Problem:
    """The problem that a study's [model], [data] and [features] describe. checkpoint: the file of a network trained for it.

    device: where its networks compute; None: the CPU.

    Raises `UserError`, `DataError`.
    """
    model, scale = _model(study, checkpoint)
    source, rows = _data(study)
    if data_shape(model) not in (None, tuple(source.shape)):
        raise UserError(
            f"{study.name}: the network makes samples of shape {data_shape(model)}, but {source.name} has shape {tuple(source.shape)}: "
            "give a network and data that belong together."
        )
    extractors = _extractors(study, device)
    first = next(iter(extractors))
    given = study.features.get("statistics")
    statistics = {} if given is None else {first: load_reference(given, extractors[first])}
    labels, path = _labels(study, model), study.model.get("classifier")
    classifier = None if path is None else load_classifier(Path(path))
    for net in (*networks(model), getattr(classifier, "net", None)):
        if isinstance(net, nn.Module):
            net.to(device or "cpu")
    return Problem(model, source, rows, extractors, scale, statistics, labels, classifier)


def _model(study: Study, checkpoint: str | Path | None) -> tuple[Model, float]:
    given = study.model.get("checkpoint") if checkpoint is None else str(checkpoint)
    if given is None:
        raise UserError(f"{study.name}: [model] needs checkpoint = (a name of the package, or the path of a file).")
    if given != "hot_vs_cold":
        return load(Path(given) if Path(given).is_file() else model_path(given)), 1.0
    folder = data_folder()
    if folder is None:
        raise UserError("the third-party MNIST network is in a folder with weights/: export SDEDIFF_DATA=/path/to/it.")
    return load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth"), 2.0


def _data(study: Study) -> tuple[Source, Tensor]:
    given = dict(study.data)
    most = given.pop("references", REFERENCES)
    name, path = given.pop("name", None), given.pop("path", None)
    if (name is None) == (path is None):
        raise UserError(f"{study.name}: [data] needs name = (one of the known sets) or path = (a folder or a file): one of the two.")
    try:
        source = open_source(name if path is None else Path(path), **given)
    except DataError as wrong:
        raise UserError(f"{study.name}: [data]: {wrong}") from None
    if isinstance(most, bool) or not isinstance(most, int) or most < 4:
        raise UserError(f"{study.name}: [data] references must be a whole number of at least 4, not {most!r}.")
    # no data set's order is random, so the references are drawn
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    return source, order[:most]


def _extractors(study: Study, device: torch.device | None) -> dict[str, Extractor]:
    given, at = dict(study.features), None if device is None else str(device)
    given.pop("statistics", None)
    name = given.pop("extractor", None)
    if name is None:
        raise UserError(f"{study.name}: [features] needs extractor = digits, mnist, inception (with weights = PATH), pixels, or your own.")
    found = {name: extractor(name, device=at, **given)}
    for metric in study.metrics:
        other = metric.partition("@")[2]
        if other and other not in found:
            found[other] = extractor(other, device=at)
    return found


def _labels(study: Study, model: Any) -> Tensor | None:
    text = study.model.get("labels")
    if text is None:
        return None
    inner = model.inner if isinstance(model, LatentDiffusion) else model
    if not isinstance(inner, Labelled):
        raise UserError(f"{study.name}: {type(inner).__name__} takes no labels: leave labels out of [model].")
    return labels_named(text)
