"""Images, or points, in .npz and .npy files, as sources: read into memory, or left on disk and read batch by batch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdediff.data.errors import DataError
from sdediff.data.images import arranged
from sdediff.data.numpy_files import numpy_file, the_one
from sdediff.data.source import Batch, InMemory, count, unit

IMAGES = ("images", "x", "arr_0")
LABELS = ("labels", "y", "arr_1")
_CHUNK = 1 << 24  # numbers that are looked at together
_ROUNDED = 1e-3  # floats of low precision may lie so far beyond the ends


def npz_source(path: Path, labels: bool = True) -> InMemory:
    """The images of an .npz file ("images", "x" or "arr_0") with its labels, if it has some ("labels", "y" or "arr_1").

    uint8 are levels 0 to 255 and stay bytes in memory; floats must lie in [-1, 1] already; points (n, d) of floats are taken as they are.
    Raises DataError for anything else, for pickles, and for labels that are no class numbers, one an image.
    """
    with numpy_file(path) as found:
        names = [name for name in found.files if name not in LABELS]
        array = np.asarray(found[the_one(path, names, IMAGES)])
        named = [name for name in LABELS if name in found.files]
        given = np.asarray(found[named[0]]) if labels and named else None
    pixels = torch.from_numpy(np.array(_samples(array, path), array.dtype.newbyteorder("="), order="C"))
    pixels = pixels if pixels.dtype == torch.uint8 else pixels.to(torch.float32)
    classes = None if given is None else class_numbers(given, len(pixels), path)
    return InMemory(pixels, classes, path.stem, count(classes))


@dataclass(frozen=True, eq=False)
class Mapped:
    """The images of an .npy file, which stays on disk: only the rows of a batch are read."""

    path: Path
    shape: tuple[int, ...]
    length: int
    labels: None = None
    classes: None = None

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return self.length

    def batch(self, rows: Tensor) -> Batch:
        if not len(rows):
            return torch.empty(0, *self.shape), None
        with numpy_file(self.path, mapped=True) as array:
            taken = array[rows.numpy()]
        if taken.ndim > 2:
            taken = arranged(taken, None, self.path)
        return unit(torch.from_numpy(np.array(taken, taken.dtype.newbyteorder("="), order="C"))), None


def npy_source(path: Path) -> Mapped:
    """The images, or points, of an .npy file. Raises DataError as `npz_source` does."""
    with numpy_file(path, mapped=True) as array:
        samples = _samples(array, path)
    return Mapped(path, samples.shape[1:], len(samples))


def class_numbers(given: np.ndarray, n: int, path: Path | str) -> Tensor:
    """int64 (n,) of labels. Raises DataError unless there is one an image, each a whole number of at least 0."""
    if given.ndim != 1 or given.dtype.kind not in "iu":
        cure = "take .argmax(1) of one-hot rows" if given.ndim == 2 else "number the classes 0, 1, 2, ... with .astype(np.int64)"
        raise DataError(f"{path} holds labels of {given.dtype.name}, shape {given.shape}. Expected whole numbers (n,): {cure}.")
    if len(given) != n:
        raise DataError(f"{path} holds {n} images, but {len(given)} labels. Expected one label an image.")
    if given.min() < 0:
        raise DataError(f"{path} holds the label {given.min()}. Expected 0, 1, 2, ...: leave the labels out where there are none.")
    return torch.from_numpy(given.astype(np.int64))


def _samples(array: np.ndarray, path: Path) -> np.ndarray:
    """(n, c, h, w) or (n, d) of what a file holds. Raises DataError unless its numbers are levels, or floats as they are trained on."""
    if array.dtype != np.uint8 and array.dtype.name not in ("float16", "float32", "float64"):
        raise DataError(f"{path} holds {array.dtype.name}. Expected uint8, levels 0 to 255, or floats in [-1, 1].")
    points = array.ndim == 2 and array.dtype.kind == "f"
    if array.ndim == 2 and not points:
        raise DataError(f"{path} holds an array of shape {array.shape}. Expected images (n, h, w), (n, c, h, w) or (n, h, w, c).")
    if not array.size:
        raise DataError(f"{path} holds no images, an array of shape {array.shape}. Expected at least one.")
    samples = array if points else arranged(array, None, path)
    if array.dtype.kind == "f":
        _check_range(array, points, path)
    if points:
        return array
    if samples.ndim != 4 or (array.ndim == 4 and array.shape[3] in (2, 4) and array.shape[1] > 4):
        raise DataError(
            f"{path} holds an array of shape {array.shape}. Expected images (n, h, w), (n, c, h, w), or (n, h, w, c) of 1 or 3 channels."
        )
    return samples


def _check_range(array: np.ndarray, points: bool, path: Path) -> None:
    """DataError unless the floats are finite and, of images, span [-1, 1]; a large file is looked through piece by piece."""
    by = max(1, _CHUNK // (array[0].size or 1))
    ends = [(piece.min(), piece.max()) for piece in (array[i : i + by] for i in range(0, len(array), by))]
    low, high = float(np.min([e[0] for e in ends])), float(np.max([e[1] for e in ends]))  # NaN goes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{path} holds NaN or infinity. Expected floats in [-1, 1]: take those samples out.")
    if points:
        return
    if low < -1 - _ROUNDED or high > 1 + _ROUNDED:
        cure = "save levels 0 to 255 with .astype(np.uint8)" if 0 <= low <= high <= 255 else "scale them into that range"
        raise DataError(f"{path} holds floats from {low:g} to {high:g}. Expected [-1, 1], black to white: {cure}.")
    if low >= 0:
        raise DataError(f"{path} holds floats from {low:g} to {high:g}, as if 0 were black. Expected [-1, 1]: save 2 * x - 1.")
