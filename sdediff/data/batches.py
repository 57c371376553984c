"""Batches in a given order, read ahead by worker processes or made in place: the same bits for any number of workers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdediff.data.errors import DataError
from sdediff.data.source import Batch, InMemory, Part, Source


def batches(source: Source, order: Iterator[Tensor], workers: int = 0, ahead: int = 2, pin: bool = False) -> Iterator[Batch]:
    """The batches of these rows, in this order; `order` may be endless, it is asked for no more than is read ahead.

    workers: processes that read and decode, each `ahead` batches ahead. What lies in memory is taken from there, without any.
    pin: into page-locked memory, from which a GPU copies faster. The processes end with the iterator, or with their parent.
    Raises DataError for what cannot be read, and for a worker that was killed.
    """
    if workers < 0 or ahead < 1:
        raise DataError(f"{workers} workers that read {ahead} batches ahead were asked for. Expected workers >= 0 and ahead >= 1.")
    if in_memory(source):
        workers = 0
    loader = DataLoader(
        _Rows(source),
        batch_size=None,  # the order's items are batches already
        sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the global one stays as it was
    )
    return _batches(loader)


def in_memory(source: Source) -> bool:
    """Whether a batch is only copied: worker processes would cost more than they save."""
    return isinstance(source, InMemory) or (isinstance(source, Part) and in_memory(source.source))


def _batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch
    except RuntimeError as e:
        if "DataLoader worker" not in str(e):
            raise
        raise DataError(
            "A worker process that reads the data was killed, most often for lack of memory (or of shared memory, /dev/shm). "
            "Use fewer workers, or read fewer batches ahead."
        ) from e


class _Rows(Dataset[Any]):
    """A source as the loader wants it. An error travels as its sentence: the loader would wrap it into a traceback of many lines."""

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, index: Tensor) -> Batch | str:
        try:
            return self.source.batch(index)
        except DataError as e:
            return str(e)


def _as_it_is(batch: Any) -> Any:
    return batch
