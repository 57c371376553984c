"""Statistics of real features: measured in one pass, in memory that does not grow with the number of images, and kept in a file.

A file holds mean and covariance in float64, their n, the extractor's mark, and a hash of the data. Published statistics, `.npz` files with
`mu` and `sigma`, are read too; they tell nothing of where they come from.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import read, write
from ..data import DataError, Source
from ..data.numpy_files import numpy_file
from ..metrics import MetricError, Moments
from ..metrics.statistics import Statistics
from ..names import UserError, positive
from .extractors import Extractor
from .files import bytes_of

KIND, FORMAT = "feature statistics", 1
LARGEST = 30_000  # features: a covariance of 7 GB


class FeatureWarning(UserWarning):
    """A number can be computed, but means less than it seems. The message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean and covariance of real features. extractor, data: names; mark, data_mark: hashes, None in published statistics."""

    moments: Moments
    extractor: str
    mark: str | None
    data: str
    data_mark: str | None

    @property
    def d(self) -> int:
        return len(self.moments.mean)

    @property
    def n(self) -> int | None:
        """How many samples; None where a published file does not say."""
        return self.moments.n or None

    def check(self, extractor: Extractor) -> None:
        """MetricError unless these are statistics of that extractor's features, as far as can be known."""
        of = f"The reference statistics ({self.data}) are of the extractor {self.extractor}"
        if self.mark is not None and self.mark != extractor.mark:
            raise MetricError(
                f"{of} with the mark {self.mark}, the features of {extractor.name} with {extractor.mark}; expected the same weights and "
                "options. Use that extractor, or measure the statistics again with this one."
            )
        if extractor.d not in (None, self.d):
            raise MetricError(
                f"{of}, {self.d} features a sample, but {extractor.name} has {extractor.d}. Measure the statistics again with this one."
            )

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, atomically. `UserError` if that cannot be done."""
        about = {"extractor": self.extractor, "mark": self.mark, "data": self.data, "data_mark": self.data_mark, "n": self.moments.n}
        write(path, {"mean": self.moments.mean, "cov": self.moments.cov}, {"kind": KIND, "format": FORMAT, **about})


def reference_statistics(
    extractor: Extractor,
    data: Source | Tensor,
    *,
    batch: int = 64,
    name: str | None = None,
    tell: Callable[[int], None] = lambda n: None,
) -> Reference:
    """Measure the statistics of all of `data`, a source (`sdediff.data.open_source`) or images (n, c, h, w) in [-1, 1] or bytes.

    batch: images at a time; another one changes the last bits only. name: of the data. tell: is told after every batch how many images.
    MetricError for images out of range, fewer than 2, or features that are not finite. `FeatureWarning` for n <= d.
    """
    at_once = positive("batch", batch)
    called = name or ("images" if isinstance(data, Tensor) else data.name)
    seen, statistics = hashlib.sha256(), Statistics()
    for rows in torch.arange(len(data)).split(at_once):
        x = _in_range(data[rows] if isinstance(data, Tensor) else data.batch(rows)[0], called)
        seen.update(f"{x.dtype} {tuple(x.shape[1:])}\0".encode() if not statistics.n else b"")
        seen.update(bytes_of(x))
        features = extractor.features(x)
        d = features.shape[1]
        if d > LARGEST:
            raise MetricError(
                f"The extractor {extractor.name} has {d} features: their covariance takes {d * d * 8 / 1e9:.0f} GB. Expected at most "
                f"{LARGEST} features: take an extractor with fewer, or smaller images."
            )
        statistics.update(features)
        tell(len(x))
    found = statistics.moments()
    short = few_samples(found.n, len(found.mean))
    if short:
        warnings.warn(f"{called}: {short}", FeatureWarning, stacklevel=2)
    return Reference(found, extractor.name, extractor.mark, called, seen.hexdigest()[:16])


def few_samples(n: int, d: int) -> str:
    """What n samples for d features do to a Frechet distance, or an empty text where there are enough for a covariance of full rank."""
    if n > d:
        return ""
    return (
        f"{n} samples for {d} features give a covariance of rank {n - 1} at most: in {d - n + 1} directions there seems to be no spread, "
        "and a Frechet distance comes out too large, the more so the fewer samples. Compare it only with numbers of the same n, or take "
        "more samples, fewer features, or the kernel distance (KID), which does not depend on n on average."
    )


def load_reference(path: str | Path, extractor: Extractor | None = None) -> Reference:
    """Statistics that `Reference.save` wrote, or a published .npz with `mu` and `sigma`; those of `extractor`, where one is given.

    A published file bears no mark: `FeatureWarning` says that only the number of features can be compared.
    UserError, DataError: no such file, a damaged one, a pickle, something else. MetricError: statistics of another extractor.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there are no feature statistics at {path}: make them, sdediff statistics DATA --out {path}.")
    found = _published(path) if path.suffix.lower() == ".npz" else _ours(path)
    if extractor is not None:
        found.check(extractor)
    return found


def _ours(path: Path) -> Reference:
    tensors, about = read(path)
    texts = {key: about.get(key) for key in ("extractor", "mark", "data", "data_mark")}
    n = about.get("n")
    if about.get("kind") != KIND or set(tensors) != {"mean", "cov"} or not isinstance(n, int):
        raise UserError(f"{path} holds no feature statistics (it describes {about.get('kind') or 'something else'}).")
    if not all(isinstance(v, str) or (v is None and k.endswith("mark")) for k, v in texts.items()):
        raise UserError(f"{path} does not say whose features its statistics are of: it was changed by hand. Measure them again.")
    return Reference(_checked(path, tensors["mean"], tensors["cov"], n), **texts)  # type: ignore[arg-type]


def _published(path: Path) -> Reference:
    with numpy_file(path) as file:
        lacking = [key for key in ("mu", "sigma") if key not in file.files]
        if lacking:
            raise DataError(
                f"{path} holds {', '.join(file.files) or 'nothing'}, but no {' and no '.join(lacking)}: no published statistics."
            )
        mean, cov = (_numbers(path, key, file[key]) for key in ("mu", "sigma"))
    found = _checked(path, mean, cov, 0)
    warnings.warn(
        f"{path} does not say which network, resizing and images it was made with: only the number of features, {len(mean)}, can be "
        "checked. Use what its publisher used.",
        FeatureWarning,
        stacklevel=3,
    )
    return Reference(found, "unknown", None, path.stem, None)


def _numbers(path: Path, key: str, array: Any) -> Tensor:
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: {key} is {array.dtype}; expected floats.")
    return torch.from_numpy(array.astype(np.float64))


def _checked(path: Path, mean: Tensor, cov: Tensor, n: int) -> Moments:
    """Moments of a file, in float64, if they can be a mean and a covariance."""
    mean, cov = mean.double(), cov.double()
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not len(mean):
        raise UserError(f"{path} holds a mean {tuple(mean.shape)} and a covariance {tuple(cov.shape)}; expected (d,) and (d, d).")
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise UserError(f"{path} holds statistics that are not finite: measure them again.")
    if not torch.allclose(cov, cov.T, rtol=0, atol=1e-6 * float(cov.abs().max())) or float(cov.diagonal().min()) < 0:
        raise UserError(f"{path} holds no covariance: it is not symmetric, or has a negative variance. Copy the file again.")
    return Moments(mean, cov, n)


def _in_range(x: Tensor, name: str) -> Tensor:
    if x.dtype != torch.uint8 and x.ndim == 4 and len(x) and not float(x.abs().max()) <= 1.001:
        raise MetricError(f"{name} has values up to {float(x.abs().max()):.4g}; expected images in [-1, 1], or bytes.")
    return x
