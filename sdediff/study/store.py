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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read, write, write_bytes
from ..names import UserError

FORMAT = 1


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
        path = self._record(cell)
        if not path.exists():
            return None
        try:
            tensors, about = read(path)
            if about.get("format") != FORMAT or about.get("cell") != cell:
                raise UserError(f"{path} is not the record of this cell in this version's format.")
        except UserError as wrong:
            _put_aside(path, wrong)
            return None
        return Record(about, tensors)

    def write_record(self, cell: str, record: Record) -> None:
        """Write a record whole."""
        write(self._record(cell), record.tensors, {"format": FORMAT, "cell": cell, **record.about})

    def forget(self, cell: str) -> None:
        """Take a record away, so that the cell runs again."""
        self._record(cell).unlink(missing_ok=True)

    def finished(self, cell: str) -> set[int]:
        """The numbers of a cell's chunks that are there."""
        return {int(path.stem) for path in self._parts(cell).glob("*.safetensors") if path.stem.isdigit()}

    def chunk(self, cell: str, number: int) -> Chunk | None:
        """One finished chunk; None if it is not there. A damaged one is put aside, with a warning, and is none."""
        path = self._part(cell, number)
        if not path.exists():
            return None
        try:
            tensors, about = read(path)
            if about.get("format") != FORMAT or about.get("cell") != cell:
                raise UserError(f"{path} is not a chunk of this cell in this version's format.")
        except UserError as wrong:
            _put_aside(path, wrong)
            return None
        return Chunk(number, tensors, about["costs"])

    def write_chunk(self, cell: str, chunk: Chunk) -> None:
        """Write a finished chunk whole."""
        tensors = {k: v.clone() for k, v in chunk.tensors.items()}  # a file holds no memory that two share
        write(self._part(cell, chunk.number), tensors, {"format": FORMAT, "cell": cell, "costs": dict(chunk.costs)})

    def drop_chunks(self, cell: str) -> None:
        """Take away the chunks of a cell whose record is written."""
        for path in self._parts(cell).glob("*"):
            path.unlink(missing_ok=True)
        if self._parts(cell).exists():
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
            raise UserError(f"{path} cannot be locked ({wrong.strerror or wrong}): choose another folder, or free some space.") from None
        with held:
            yield True

    def text(self, name: str) -> str | None:
        """A text file of the folder; None if it is not there."""
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        write_bytes(self.folder / name, text.encode())

    def _record(self, cell: str) -> Path:
        return self.folder / "cells" / f"{cell}.safetensors"

    def _parts(self, cell: str) -> Path:
        return self.folder / "parts" / cell

    def _part(self, cell: str, number: int) -> Path:
        return self._parts(cell) / f"{number:06d}.safetensors"


def _put_aside(path: Path, wrong: UserError) -> None:
    """Rename a damaged file, so that nothing is lost and nothing is mistaken for whole."""
    aside = path.with_suffix(".damaged")
    os.replace(path, aside)
    warnings.warn(f"{str(wrong).rstrip('.')}. It was put aside as {aside.name}, and is made again by the next run.", stacklevel=3)
