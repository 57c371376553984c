"""What trains: a `Source` answers for the samples of any rows, whether they lie in memory or are read when asked for."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sdediff.data.dataset import Dataset
from sdediff.data.errors import DataError

Batch = tuple[Tensor, Tensor | None]


@runtime_checkable
class Source(Protocol):
    """Samples by their row. Images are float32 (B, c, h, w) in [-1, 1]; labels int64 (B,), 0 .. classes - 1.

    name: a short name for tables and file names; shape: of one sample; classes: how many, None where nothing is labelled.
    `batch` is a pure function of the rows: the same rows give the same bits, in any order, batch and process.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int | None: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch: ...


def unit(pixels: Tensor) -> Tensor:
    """float32 in [-1, 1] of uint8, by x/127.5 - 1; floats are there already."""
    if pixels.dtype != torch.uint8:
        return pixels.to(torch.float32)
    return pixels.to(torch.float32).div_(127.5).sub_(1)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Samples (n, ...) that fit into memory: images as uint8, a quarter of the room, or floats as they are trained on."""

    pixels: Tensor
    labels: Tensor | None
    name: str
    classes: int | None

    @classmethod
    def of(cls, data: Dataset, classes: int | None = None) -> "InMemory":
        """A data set as it is; classes: how many there are, where these samples may not show them all."""
        return cls(data.x, data.labels, data.name, count(data.labels, classes))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: Tensor) -> Batch:
        return unit(self.pixels[rows]), None if self.labels is None else self.labels[rows]


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of another source, in that order."""

    source: Source
    rows: Tensor
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def classes(self) -> int | None:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> Batch:
        return self.source.batch(self.rows[rows])


def part(source: Source, rows: Tensor, name: str | None = None) -> Part:
    """A view of some rows of a source: nothing is copied. Raises DataError for rows that it does not have, or none at all."""
    if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
        raise DataError(f"A part is made of row numbers, int64 (n,) with n >= 1, not of {rows.dtype} {tuple(rows.shape)}.")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= len(source):
        raise DataError(f"{source.name} has the rows 0 to {len(source) - 1}, but a part of {low} to {high} was asked for.")
    return Part(source, rows, name or f"{source.name}-part")


def held_out_rows(n: int, fraction: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(train, test): rows 0 .. n - 1 in random order, `fraction` of them the test set; a function of the arguments."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    cut = round(fraction * n)
    return order[cut:], order[:cut]


def held_out(source: Source, fraction: float = 0.2, seed: int = 0) -> tuple[Part, Part]:
    """(train, test): a random `fraction` of a source is the test set; a function of the seed and of how many samples there are."""
    if not 0 < round(fraction * len(source)) < len(source):
        raise DataError(
            f"{fraction:g} of the {len(source)} samples of {source.name} leaves one of the two parts empty. Choose another share."
        )
    train, test = held_out_rows(len(source), fraction, seed)
    return part(source, train, f"{source.name}-train"), part(source, test, f"{source.name}-test")


def flip(x: Tensor, chosen: Tensor) -> Tensor:
    """Images (B, c, h, w) of which the chosen (B,) are mirrored, left to right."""
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def count(labels: Tensor | None, classes: int | None = None) -> int | None:
    """How many classes there are: those of the labels, or as many as said."""
    if labels is None:
        return None
    return classes if classes is not None else int(labels.max()) + 1 if len(labels) else 0
