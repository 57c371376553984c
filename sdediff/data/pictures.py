"""Folders and zips of PNG and JPEG files as sources: names and labels are known up front, pixels are read batch by batch.

Labels come from a `dataset.json` ({"labels": [["00000/img00000000.png", 6], ...]}, or null for none), as EDM's dataset tool writes it;
without one, from the folder in which a file lies: class k is the k-th folder by name, as in torchvision's ImageFolder.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdediff.data.arrays import class_numbers
from sdediff.data.decoding import PICTURES, Header, decoded, header
from sdediff.data.errors import DataError, DataWarning, some
from sdediff.data.images import numbered
from sdediff.data.source import Batch, count, unit
from sdediff.data.stores import LIST, Folder, Store, Zipped

OnError = Literal["refuse", "skip"]
Verify = Literal["nothing", "headers", "pixels"]
QUICK = 100_000  # so many headers are read in about ten seconds
_CLASSLESS = "labels = false reads all as images without labels"
_COLOURS = {1: "grey", 3: "in colour"}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Files of a folder or zip. rows: which of the store's are samples; size, channels: what they are made into, where asked.

    skipped: how many files were left out because they cannot be read or do not fit.
    """

    store: Store
    rows: np.ndarray
    labels: Tensor | None
    name: str
    shape: tuple[int, ...]
    classes: int | None
    size: int | None = None
    channels: int | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> Batch:
        pixels = [self._pixels(int(self.rows[row])) for row in rows.tolist()]
        x = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty((0, *self.shape), dtype=torch.uint8)
        return unit(x), None if self.labels is None else self.labels[rows]

    def _pixels(self, i: int) -> np.ndarray:
        pixels = _decoded(self.store, i, self.size, self.channels)
        if pixels.shape != self.shape:
            raise DataError(f"{self.store.full(i)} is {_said(pixels.shape)}, but the first image is {_said(self.shape)}. {_CURE}")
        return pixels


_CURE = "Give size=... to crop and resize, channels=1 or 3 for one kind of colours, or on_error='skip' to leave out what differs."


def pictures(
    path: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    labels: bool = True,
    on_error: OnError = "refuse",
    verify: Verify | None = None,
) -> Pictures:
    """The images of a folder or zip, in the order of their classes, then of the numbers in their names.

    size: the central square of each, resized to size x size as ADM does; channels: 1 makes all grey, 3 all coloured. Without them all
    images must be alike. labels=False leaves labels out, and all folders are one.
    verify: before anything is trained, read every header ("headers"), unpack every image ("pixels"), or neither ("nothing"; what is wrong
    is then found by name when its batch comes). None: the headers, if there are at most 100 000 or some are to be skipped.
    on_error: what cannot be read, is of another kind, or differs from most is refused with how many and the first names, or left out with
    a `DataWarning`.
    """
    path = Path(path)
    _check(size, channels, on_error, verify)
    store = Zipped(path, _order) if path.is_file() else Folder(_inner(path), _order)
    if not len(store.names):
        beside = f"It holds {len(store.others)} files of other kinds ({some(store.others)})." if store.others else "It holds no files."
        raise DataError(f"There are no images in {path}. {beside} Expected {', '.join(PICTURES)}.")
    given, classes = _labels(store) if labels else (None, None)
    verify = verify or ("headers" if on_error == "skip" or len(store.names) <= QUICK else "nothing")
    if on_error == "skip" and verify == "nothing":
        raise DataError("What does not fit cannot be left out when nothing is verified. Take verify='headers' with on_error='skip'.")
    rows, shape = np.arange(len(store.names)), None
    if verify != "nothing":
        rows, shape = _verified(store, size, channels, on_error, verify)
    if shape is None:
        shape = _shape(_header(store, 0), size, channels)
    if given is not None and len(rows) < len(given):
        given = given[torch.from_numpy(rows)]
    skipped = len(store.names) - len(rows) + len(_others(store))
    return Pictures(store, rows, given, path.name.removesuffix(".zip"), shape, classes, size, channels, skipped)


def _check(size: int | None, channels: int | None, on_error: str, verify: str | None) -> None:
    if size is not None and (type(size) is not int or size < 1):
        raise DataError(f"size = {size!r} was asked for. Expected a whole number of pixels, at least 1.")
    if channels not in (None, 1, 3):
        raise DataError(f"Images of {channels} channels were asked for. Expected 1 (grey) or 3 (colour).")
    if on_error not in ("refuse", "skip"):
        raise DataError(f"on_error = {on_error!r} does not exist. Expected 'refuse' or 'skip'.")
    if verify not in (None, "nothing", "headers", "pixels"):
        raise DataError(f"verify = {verify!r} does not exist. Expected 'nothing', 'headers' or 'pixels'.")


def _order(name: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Folders by name, as their classes are; files by the numbers in their names."""
    *folders, file = name.split("/")
    return folders, numbered(file)


def _inner(path: Path) -> Path:
    """A single folder around all is no class."""
    try:
        while True:
            inside = [f for f in path.iterdir() if not f.name.startswith(".")]
            if len(inside) != 1 or not inside[0].is_dir():
                return path
            path = inside[0]
    except OSError as e:
        raise DataError(f"The folder {path} cannot be read ({e.strerror}).") from e


# --- labels -------------------------------------------------------------------------------------------------------


def _labels(store: Store) -> tuple[Tensor | None, int | None]:
    """(labels, how many classes) of the dataset.json, else of the folders, or (None, None)."""
    raw = store.label_list()
    if raw is not None:
        given = _listed(raw, store)
        return given, count(given)
    tops = [name.split("/")[0] if "/" in name else "" for name in store.names]
    folders = sorted(set(tops))
    if folders == [""] or (len(folders) == 1 and not store.empty):
        return None, None
    if folders[0] == "":
        loose = [name for name in store.names if "/" not in name]
        raise DataError(
            f"{store.path}: {len(loose)} images ({some(loose)}) lie beside the folders {some(folders[1:])}. Expected a folder a class: "
            f"move them; or {_CLASSLESS}."
        )
    if store.empty:
        raise DataError(
            f"{store.path}: {len(store.empty)} folders hold no images ({some(store.empty)}). Expected a folder a class: "
            f"remove them; or {_CLASSLESS}."
        )
    place = {folder: k for k, folder in enumerate(folders)}
    return torch.tensor([place[top] for top in tops]), len(folders)


def _listed(raw: bytes, store: Store) -> Tensor | None:
    """The labels of a dataset.json in the order of the store's names. Raises DataError unless it names every image once."""
    where = f"{LIST} of {store.path}"
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where} is not JSON ({e}). Expected what EDM's dataset tool writes; or {_CLASSLESS}.") from e
    if not isinstance(found, dict) or "labels" not in found:
        raise DataError(f'{where} has no "labels". Expected {{"labels": [["name.png", 0], ...]}}, or null for none.')
    pairs = found["labels"]
    if pairs is None:
        return None
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs):
        raise DataError(f'{where}: "labels" is no list of pairs. Expected [["name.png", 0], ...], or null for none.')
    wrong = [f"{p[0]}: {json.dumps(p[1])[:20]}" for p in pairs if type(p[1]) is not int or not 0 <= p[1] < 2**31]
    if wrong:
        raise DataError(f"{where} has {len(wrong)} labels that are no class numbers ({some(wrong)}). Expected 0, 1, 2, ...")
    known = {name.replace("\\", "/"): label for name, label in pairs}
    if len(known) < len(pairs):
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise DataError(f"{where} names {len(twice)} images twice ({some(twice)}). Expected one label an image.")
    names = list(store.names)
    lacking, absent = [n for n in names if n not in known], sorted(known.keys() - set(names))
    if lacking or absent:
        parts = [f"{len(lacking)} images without a label ({some(lacking)})"] * bool(lacking)
        parts += [f"{len(absent)} labels of images that are not there ({some(absent)})"] * bool(absent)
        raise DataError(f"{where} does not fit: {' and '.join(parts)}. Expected one label an image: make it again; or {_CLASSLESS}.")
    return class_numbers(np.array([known[name] for name in names], np.int64), len(names), where)


# --- looking at every file before training ------------------------------------------------------------------------


def _verified(
    store: Store, size: int | None, channels: int | None, on_error: OnError, verify: Verify
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(rows that can be trained on, their shape). What differs from most is refused or left out, and so is what cannot be read."""
    look: Callable[[Store, int], Header] = _header if verify == "headers" else _unpacked
    shapes: list[tuple[int, ...] | None] = []
    bad: dict[int, str] = {}
    for i in range(len(store.names)):
        try:
            shapes.append(_shape(look(store, i), size, channels))
        except DataError as e:
            bad[i] = str(e)
            shapes.append(None)
    others = _others(store)
    kinds = Counter(shape for shape in shapes if shape is not None)
    if not kinds:
        raise DataError(f"None of the {len(store.names)} images in {store.path} can be read. The first: {next(iter(bad.values()))}")
    usual = kinds.most_common(1)[0][0]
    faults = _faults(store, shapes, bad, others, kinds, usual)
    if faults and on_error == "refuse":
        raise DataError(f"{store.path}: {' '.join(faults)} Or leave them out: on_error='skip'.")
    if faults:
        warnings.warn(f"{store.path}: left out: {' '.join(faults)}", DataWarning, stacklevel=3)
    return np.array([i for i, shape in enumerate(shapes) if shape == usual], np.int64), usual


_OTHER_PICTURES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".heic", ".avif")


def _others(store: Store) -> list[str]:
    """Images that are never taken."""
    return [name for name in store.others if Path(name).suffix.lower() in _OTHER_PICTURES]


def _faults(
    store: Store,
    shapes: list[tuple[int, ...] | None],
    bad: dict[int, str],
    others: list[str],
    kinds: Counter[tuple[int, ...]],
    usual: tuple[int, ...],
) -> list[str]:
    """What is wrong, counted and with the first names."""
    faults = []
    if bad:
        first = next(iter(bad.values()))
        faults.append(f"{len(bad)} of {len(shapes)} images cannot be taken ({some([store.names[i] for i in bad])}). The first: {first}")
    if others:
        faults.append(f"{len(others)} images are of another kind ({some(others)}). Expected {', '.join(PICTURES)}: convert them.")
    if len(kinds) > 1:
        strange = {i: shape for i, shape in enumerate(shapes) if shape not in (usual, None)}
        named = [f"{store.names[i]} {_said(shape)}" for i, shape in strange.items() if shape]
        sizes = any(shape and shape[1:] != usual[1:] for shape in strange.values())
        colours = any(shape and shape[0] != usual[0] for shape in strange.values())
        cures = ["size=... crops and resizes."] * sizes + ["channels=1 makes all grey, channels=3 coloured."] * colours
        faults.append(f"{len(strange)} of {len(shapes)} images are not {_said(usual)} as most are ({some(named)}). {' '.join(cures)}")
    return faults


def _said(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} {_COLOURS[shape[0]]}"


def _shape(image: Header, size: int | None, channels: int | None) -> tuple[int, ...]:
    """The shape that an image with this header becomes."""
    square = (image.height, image.width) if size is None else (size, size)
    return (channels or image.channels, *square)


def _header(store: Store, i: int) -> Header:
    with store.open(i) as file:
        return header(file, store.full(i))


def _unpacked(store: Store, i: int) -> Header:
    return Header(*_decoded(store, i, None, None).shape)


def _decoded(store: Store, i: int, size: int | None, channels: int | None) -> np.ndarray:
    try:
        with store.open(i) as file:
            raw = file.read()
    except OSError as e:
        raise DataError(f"{store.full(i)} cannot be read ({e.strerror}).") from e
    return decoded(raw, store.full(i), size, channels)
