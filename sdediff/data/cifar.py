"""CIFAR-10 and CIFAR-100 in the forms in which they are handed round: Python pickles, the binary version, and convnetjs's PNG sheets.

A sample is one label byte (CIFAR-100: a coarse one first) and 3 x 32 x 32 levels, channel first. In a sheet a row of 1024 pixels is an
image. Source: A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sdediff.data.arrays import class_numbers
from sdediff.data.decoding import decoded
from sdediff.data.errors import DAMAGED, DataError, first_line, some
from sdediff.data.idx import AGAIN
from sdediff.data.images import numbered
from sdediff.data.numpy_files import numpy_file
from sdediff.data.pickles import array_of, read_pickle
from sdediff.data.source import InMemory

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_SHEETS = "cifar10_batch_*.png"
_TEST_SHEET = "cifar10_batch_50.png"


class _Version(NamedTuple):
    """What tells CIFAR-10 and CIFAR-100 apart."""

    classes: int
    files: dict[str, tuple[str, ...]]
    labels: tuple[str, ...]
    label_bytes: int


VERSIONS = {
    "cifar10": _Version(10, {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}, ("labels",), 1),
    "cifar100": _Version(100, {"train": ("train",), "test": ("test",)}, ("fine_labels", "labels"), 2),
}


def cifar(path: str | Path, split: str = "train", version: str = "cifar10", labels: bool = True) -> InMemory:
    """CIFAR-10 (or "cifar100"), 50000 (train) or 10000 (test) images as bytes, in the order of the files.

    path: the published archive (`cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`), or a folder that holds it or what was in it
    (`data_batch_1` ... or `data_batch_1.bin` ...), or convnetjs's sheets (`cifar10_batch_0.png` ...).
    Pickles are read without running anything. Raises DataError for missing, damaged or other files.
    """
    what = VERSIONS[version]
    if split not in what.files:
        raise DataError(f"CIFAR has no split {split!r}; expected 'train' or 'test'.")
    path = Path(path)
    found = _find(path, what, split)
    if found is None:
        kinds = [_published(what)[0], what.files[split][0], f"{what.files[split][0]}.bin", "cifar10_batch_0.png"][
            : 4 if what.classes == 10 else 3
        ]
        raise DataError(
            f"There are no files of CIFAR-{what.classes}, split {split!r}, in {path}. Expected {', '.join(kinds[:-1])} or {kinds[-1]}."
        )
    if isinstance(found, list):
        return _sheets(found, path, split, labels)
    parts = [_binary(raw, f, what) if f.endswith(".bin") else _pickled(raw, f, what) for f, raw in _contents(found, what, split)]
    pixels = np.concatenate([p for p, _ in parts]).reshape(-1, *SHAPE)
    given = class_numbers(np.concatenate([n for _, n in parts]), len(pixels), path)
    if int(given.max()) >= what.classes:
        raise DataError(f"{path} holds the label {int(given.max())}. Expected 0 to {what.classes - 1}: give the files as published.")
    return InMemory(torch.from_numpy(pixels), given if labels else None, f"{version}-{split}", what.classes if labels else None)


def is_cifar(path: Path) -> str | None:
    """Which version lies there, "cifar10" or "cifar100", or None."""
    versions = (version for version, what in VERSIONS.items() if any(_find(path, what, split) for split in what.files))
    return next(versions, None)


def _published(what: _Version) -> tuple[str, ...]:
    return f"cifar-{what.classes}-python.tar.gz", f"cifar-{what.classes}-binary.tar.gz"


def _inside(what: _Version) -> tuple[str, ...]:
    return ("cifar-10-batches-py", "cifar-10-batches-bin") if what.classes == 10 else ("cifar-100-python", "cifar-100-binary")


def _find(path: Path, what: _Version, split: str) -> dict[str, Path] | Path | list[Path] | None:
    """The files of a split by their names, the archive that holds them, the sheets, or None."""
    if path.is_file():
        return path
    for folder in (path, *(path / name for name in _inside(what))):
        for suffix in ("", ".bin"):
            names = [name + suffix for name in what.files[split]]
            there = {name: folder / name for name in names if (folder / name).is_file()}
            if there and (what.classes == 10 or _is_cifar100(folder, suffix)):
                if len(there) < len(names):
                    lacking = some([name for name in names if name not in there], 5)
                    raise DataError(f"{folder} lacks {lacking}. Expected all of {', '.join(names)}: copy the rest.")
                return there
    archive = next((path / name for name in _published(what) if (path / name).is_file()), None)
    sheets = sorted(path.glob(_SHEETS), key=lambda f: numbered(f.name)) if what.classes == 10 else []
    return archive or sheets or None


def _is_cifar100(folder: Path, suffix: str) -> bool:
    """`train` and `test` are names that many things have: the list of classes beside them is not."""
    return (folder / ("fine_label_names.txt" if suffix else "meta")).is_file()


def _contents(found: dict[str, Path] | Path, what: _Version, split: str) -> Iterable[tuple[str, bytes]]:
    """(name, bytes) of each file of a split, in their order."""
    if isinstance(found, Path):
        return _archived(found, what, split)
    try:
        return [(str(path), path.read_bytes()) for path in found.values()]
    except OSError as e:
        raise DataError(f"{e.filename} cannot be read ({e.strerror}).") from e


def _archived(path: Path, what: _Version, split: str) -> list[tuple[str, bytes]]:
    """The same, out of the published archive, of which nothing is unpacked onto the disk."""
    wanted = [name + suffix for name in what.files[split] for suffix in ("", ".bin")]
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in wanted and member.isfile() else None
                if file is not None:
                    parts[name] = file.read()
    except (tarfile.TarError, *DAMAGED) as e:
        raise DataError(f"{path} is not a whole tar archive ({first_line(e)}). {AGAIN}") from e
    chosen = [name for name in wanted if name in parts]
    if len(chosen) != len(what.files[split]):
        raise DataError(f"{path} holds {some(chosen, 5) or 'no files of CIFAR'}. Expected {', '.join(what.files[split])}. {AGAIN}")
    return [(f"{path}:{name}", parts[name]) for name in chosen]


def _pickled(raw: bytes, name: str, what: _Version) -> tuple[np.ndarray, np.ndarray]:
    """(levels (n, 3072), labels) of a pickle."""
    value = read_pickle(io.BytesIO(raw), name)
    known: dict[str, Any] = {}
    if isinstance(value, dict):
        known = {k.decode("ascii", "replace") if isinstance(k, bytes) else str(k): v for k, v in value.items()}
    pixels = array_of(known.get("data"))
    labels = next((array_of(known[key]) for key in what.labels if key in known), None)
    if pixels is None or labels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels):
        held = f"the entries {some(list(known), 5)}" if known else type(value).__name__
        raise DataError(f"{name} holds {held}. Expected data, uint8 (n, {_PIXELS}), and {what.labels[0]}, a list of whole numbers.")
    if labels.shape != (len(pixels),):
        raise DataError(f"{name} holds {len(pixels)} images, but {labels.size} labels. Expected one label an image. {AGAIN}")
    return pixels, labels.astype(np.int64)


def _binary(raw: bytes, name: str, what: _Version) -> tuple[np.ndarray, np.ndarray]:
    """(levels (n, 3072), labels) of a file of the binary version."""
    record = what.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise DataError(f"{name} has {len(raw)} bytes. Expected a multiple of {record}, the bytes of an image and its labels. {AGAIN}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return rows[:, what.label_bytes :], rows[:, what.label_bytes - 1].astype(np.int64)


def _sheets(paths: list[Path], folder: Path, split: str, labels: bool) -> InMemory:
    """The images of convnetjs's sheets, with labels where an .npy of labels lies beside them."""
    chosen = [path for path in paths if (path.name == _TEST_SHEET) == (split == "test")]
    if not chosen:
        raise DataError(f"{folder} holds no sheets of the split {split!r} (the test images are {_TEST_SHEET}). Copy them there.")
    parts = []
    for path in chosen:
        try:
            sheet = decoded(path.read_bytes(), path)
        except OSError as e:
            raise DataError(f"{path} cannot be read ({e.strerror}).") from e
        if sheet.shape[0] != 3 or sheet.shape[2] != 1024:
            raise DataError(f"{path} is a picture of shape {sheet.shape}. Expected (3, n, 1024): a row of 1024 pixels an image, in colour.")
        parts.append(sheet.reshape(3, -1, 32, 32).transpose(1, 0, 2, 3))
    pixels = torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)))
    name = f"cifar10-first{len(pixels)}" if split == "train" and len(pixels) < 50000 else f"cifar10-{split}"
    beside = sorted(folder.glob("*label*.npy")) if labels and split == "train" else []
    if not beside:
        return InMemory(pixels, None, name, None)
    with numpy_file(beside[0]) as found:
        given = class_numbers(np.asarray(found), len(pixels), beside[0])
    if int(given.max()) > 9:
        raise DataError(f"{beside[0]} holds the label {int(given.max())}. Expected 0 to 9, CIFAR-10's classes.")
    return InMemory(pixels, given, name, 10)
