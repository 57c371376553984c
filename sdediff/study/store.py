"""The folder of a study: one atomic record a cell, the finished chunks of cells under way, locks. Nothing in it is ever half written.

    study.toml              the study as it was last asked
    results.csv, costs.csv  a line for each cell; the second has all that depends on the clock
    cells/ID.safetensors    the record of a finished or failed cell: tensors, and JSON under `about`
    parts/ID/*.safetensors  finished chunks of 64 samples of a cell under way (those of the converged flow stay, as what others are
                            measured against)
    locks/ID.lock           held by whoever runs the cell; the system frees it when that process ends, however it ends

ID is a hash of all that a result depends on, so a changed setting is another cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read, write, write_bytes
from ..names import UserError

FORMAT = 1


class StoreError(UserError):
    """The folder cannot be written or read: not the fault of a cell."""


def mark(*what: Any) -> str:
    """A short hash of JSON values, bytes or tensors."""
    found = hashlib.sha256()
    for part in what:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        found.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """A cell that is over. about: JSON, with `status` "done" or "failed" (then `reason`); tensors: see docs/study.md."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def failed(self) -> str | None:
        """Why it failed; None if it did not."""
        return self.about.get("reason", "for no reason that was kept") if self.about.get("status") == "failed" else None


@dataclass(frozen=True)
class Chunk:
    """One finished chunk: its number, tensors of 64 rows, and costs."""

    number: int
    tensors: Mapping[str, Tensor]
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Store:
    """A study's folder."""

    folder: Path

    def record(self, cell: str) -> Record | None:
        """The record of a cell; None while there is none. A damaged one is put aside, with a warning, and is none."""
        found = _whole(self._record(cell), cell)
        return None if found is None else Record(found[1], found[0])

    def stamp(self, cell: str) -> int | None:
        """When the record of a cell was written, in nanoseconds; None while there is none."""
        try:
            return self._record(cell).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def write_record(self, cell: str, record: Record) -> None:
        """Write a record whole."""
        _write(self._record(cell), cell, record.tensors, record.about)

    def finished(self, cell: str) -> set[int]:
        """The numbers of a cell's chunks that are there."""
        return {int(path.stem) for path in self._parts(cell).glob("*.safetensors") if path.stem.isdigit()}

    def chunk(self, cell: str, number: int) -> Chunk | None:
        """One finished chunk; None if it is not there. A damaged one is put aside, with a warning, and is none."""
        found = _whole(self._part(cell, number), cell)
        return None if found is None else Chunk(number, found[0], found[1]["costs"])

    def write_chunk(self, cell: str, chunk: Chunk) -> None:
        """Write a finished chunk whole."""
        tensors = {k: v.clone() for k, v in chunk.tensors.items()}  # a file holds no memory that two share
        _write(self._part(cell, chunk.number), cell, tensors, {"costs": dict(chunk.costs)})

    def drop_chunks(self, cell: str) -> None:
        """Take away the chunks of a cell whose record is written."""
        for path in self._parts(cell).glob("*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # gone, or another process just wrote there
            self._parts(cell).rmdir()

    def tidy(self) -> None:
        """Take away what a killed process left of a file that it was writing."""
        for path in [*self.folder.glob(".*.*"), *self.folder.glob("cells/.*"), *self.folder.glob("parts/*/.*")]:
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, cell: str, wait: float = 0.0) -> Iterator[bool]:
        """Whether this process has the cell for itself, inside; wait: seconds to wait for another that has it."""
        from filelock import FileLock, Timeout

        path = self.folder / "locks" / f"{cell}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(path).acquire(timeout=wait)
        except Timeout:
            yield False
            return
        except OSError as wrong:
            raise StoreError(f"{path} cannot be locked ({wrong.strerror or wrong}): choose another folder, or free some space.") from None
        with held:
            yield True

    def others(self) -> int:
        """How many jobs are running in this folder, as their locks `job-*` tell; those of jobs that ended are taken away."""
        running = 0
        for path in (self.folder / "locks").glob("job-*.lock"):
            with self.lock(path.stem) as ended:
                running += not ended
            if ended:
                path.unlink(missing_ok=True)
        return running

    def text(self, name: str) -> str | None:
        """A text file of the folder; None if it is not there. What is no text in it is replaced by signs of that."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        with _told():
            write_bytes(self.folder / name, text.encode())

    def _record(self, cell: str) -> Path:
        return self.folder / "cells" / f"{cell}.safetensors"

    def _parts(self, cell: str) -> Path:
        return self.folder / "parts" / cell

    def _part(self, cell: str, number: int) -> Path:
        return self._parts(cell) / f"{number:06d}.safetensors"


def _write(path: Path, cell: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    whole = {"format": FORMAT, "cell": cell, **{k: v for k, v in about.items() if k != "sum"}}
    with _told():
        write(path, tensors, {**whole, "sum": _sum(tensors, whole)})


def _whole(path: Path, cell: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, description) of a file of this cell; None where there is none, or a damaged one, which is put aside."""
    if not path.exists():
        return None
    try:
        return _read(path, cell)
    except UserError as wrong:
        _put_aside(path, wrong)
        return None


def _read(path: Path, cell: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `_write` wrote. `UserError` for anything else, also for a single bit."""
    tensors, about = read(path)
    if about.get("format") != FORMAT or about.get("cell") != cell:
        raise UserError(f"{path} is not of this cell in this version's format.")
    if about.get("sum") != _sum(tensors, {k: v for k, v in about.items() if k != "sum"}):
        raise UserError(f"{path} is damaged: its contents are not those that were written.")
    return tensors, about


def _sum(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    return mark(json.loads(json.dumps(about)), *[part for name, value in sorted(tensors.items()) for part in (name, value)])


@contextmanager
def _told() -> Iterator[None]:
    """Inside, what cannot be written is a `StoreError`."""
    try:
        yield
    except UserError as wrong:
        raise StoreError(str(wrong)) from None


def _put_aside(path: Path, wrong: UserError) -> None:
    """Rename a damaged file, so that nothing is lost and nothing is mistaken for whole."""
    aside = path.with_suffix(".damaged")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process was faster
        return
    except OSError as error:
        raise StoreError(f"{path} is damaged, and cannot be put aside ({error.strerror or error}): make the folder writable.") from None
    warnings.warn(f"{str(wrong).rstrip('.')}. It was put aside as {aside.name}, and is made again by the next run.", stacklevel=3)
