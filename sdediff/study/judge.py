"""How good samples are: every metric of a study, from features that are streamed chunk by chunk, each with its influences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..metrics import (
    Estimate,
    FrechetTo,
    KernelReference,
    Manifold,
    Moments,
    inception_score,
    kernel_distance,
    memorisation,
    prdc,
    sliced_wasserstein_estimate,
    wasserstein,
)
from ..names import UserError

MOST = 10_000  # samples, and real images, that metrics of pairs are computed of: the first ones
EXACT = 2_000  # of exact transport
HIGH = ("inception_score", "precision", "recall", "density", "coverage")  # of which more is better
TITLES = {
    "frechet": "Frechet distance",
    "frechet_infinity": "Frechet distance at infinitely many samples",
    "kid": "kernel distance (KID)",
    "inception_score": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "wasserstein": "Wasserstein distance",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "memorised": "share of copies of training images",
}
Stream = Callable[[str], Iterable[Tensor]]  # of an extractor's features (b, d), or "NAME logits", chunk by chunk, anew each time


def column(metric: str) -> str:
    """The name of a metric in tables: frechet, frechet_pixels."""
    return metric.replace("@", "_")


def title(metric: str) -> str:
    """What a metric is called."""
    name, _, where = metric.partition("@")
    return TITLES[name] + (f", {where}" if where else "")


def better(name: str) -> str:
    """Which is better, "low" or "high", of a metric or its column (precision@pixels, precision_pixels)."""
    return "high" if any(name == k or name.startswith((f"{k}_", f"{k}@")) for k in HIGH) else "low"


@dataclass(frozen=True, eq=False)
class _Real:
    """Real features (N, d) and what is computed of them once; features None: only moments that were measured elsewhere."""

    name: str
    features: Tensor | None
    moments: Moments

    @cached_property
    def frechet(self) -> FrechetTo:
        return FrechetTo(self.moments)

    @property
    def all(self) -> Tensor:
        if self.features is None:
            raise UserError(f"this metric compares with every real image's features in {self.name!r}: give [data] beside the statistics.")
        return self.features

    @cached_property
    def manifold(self) -> Manifold:
        return Manifold.of(self.all[:MOST])

    @cached_property
    def kernel(self) -> KernelReference:
        return KernelReference.of(self.all[:MOST])


@dataclass(frozen=True, eq=False)
class Judge:
    """metrics: as the study names them; extractor: of those that name none; real: by extractor."""

    metrics: Sequence[str]
    extractor: str
    real: Mapping[str, _Real]

    @staticmethod
    def of(metrics: Sequence[str], extractor: str, features: Mapping[str, Tensor], moments: Mapping[str, Moments]) -> Judge:
        """features: of the real images (N, d) by extractor; moments: of the data by extractor, also of other images than these."""
        return Judge(metrics, extractor, {name: _Real(name, features.get(name), moments[name]) for name in moments})

    def estimates(self, stream: Stream, n: int) -> dict[str, Estimate]:
        """Every metric of n samples, by its column. Raises `MetricError`, `UserError`."""
        done: dict[str, Estimate] = {}
        for metric in self.metrics:
            if column(metric) not in done:
                done |= self._measured(metric, stream, n)
        return {column(m): done[column(m)] for m in self.metrics}

    def _measured(self, metric: str, stream: Stream, n: int) -> dict[str, Estimate]:
        """This metric, and those that come with it."""
        name, _, where = metric.partition("@")
        extractor = where or self.extractor
        real, end = self.real[extractor], f"_{where}" if where else ""

        def some(most: int = MOST, what: str = extractor) -> Tensor:
            return _first(stream(what), most)

        match name:
            case "frechet" | "frechet_infinity":
                found = real.frechet(lambda: stream(extractor), n)
                return {f"frechet{end}": found.at_n, f"frechet_infinity{end}": found.at_infinity}
            case "precision" | "recall" | "density" | "coverage":
                return {f"{k}{end}": v for k, v in prdc(some(), real.manifold)._asdict().items()}
            case "kid":
                return {f"kid{end}": kernel_distance(some(), real.kernel)}
            case "inception_score":
                return {f"inception_score{end}": inception_score(some(n, f"{extractor} logits"))}
            case "wasserstein":
                return {f"wasserstein{end}": wasserstein(some(EXACT), real.all[:EXACT])}
            case "sliced_wasserstein":
                return {f"sliced_wasserstein{end}": sliced_wasserstein_estimate(some(), real.all[:MOST])}
            case "memorised":
                return {f"memorised{end}": memorisation(some(), real.manifold).share}
        raise AssertionError(name)

    def floor(self, logits: Tensor | None, n: int, repeats: int = 10, seed: int = 0) -> tuple[int, dict[str, np.ndarray]]:
        """Each metric of real images against the others: (how many, {column: (repeats,)}): where n perfect samples would be.

        n real images, or half of them where there are fewer than 2 n.
        """
        total = min((len(r.features) for r in self.real.values() if r.features is not None), default=0)
        size = min(n, total // 2)
        found: dict[str, list[float]] = {column(m): [] for m in self.metrics}
        if size < 4 or any(r.features is None for r in self.real.values()):
            return 0, {}
        generator = torch.Generator().manual_seed(seed)
        for _ in range(repeats):
            order = torch.randperm(total, generator=generator)
            for metric, value in self._split(order, size, logits).items():
                found[metric].append(value)
        return size, {k: np.array(v) for k, v in found.items()}

    def _split(self, order: Tensor, size: int, logits: Tensor | None) -> dict[str, float]:
        from ..metrics import moments

        chosen, rest = order[:size], order[size:]
        others = {name: _Real(name, r.all[rest], moments(r.all[rest])) for name, r in self.real.items()}

        def stream(what: str) -> Iterable[Tensor]:
            name, _, kind = what.partition(" ")
            if kind and logits is not None:
                return [logits[chosen]]
            return [self.real[name].all[chosen]]

        judge = Judge(self.metrics, self.extractor, others)
        return {k: v.value for k, v in judge.estimates(stream, size).items()}


def _first(stream: Iterable[Tensor], most: int) -> Tensor:
    """The first features of a stream."""
    parts, n = [], 0
    for part in stream:
        parts.append(part[: most - n])
        n += len(parts[-1])
        if n >= most:
            break
    return torch.cat(parts)
