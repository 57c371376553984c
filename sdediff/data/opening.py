"""A data set by its name or path: what `[data]` in a TOML file and `sdediff train --data` say."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdediff.data.arrays import class_numbers, npy_source, npz_source
from sdediff.data.cifar import cifar, is_cifar
from sdediff.data.dataset import Dataset
from sdediff.data.digits import digits
from sdediff.data.errors import DataError
from sdediff.data.folder import data_folder
from sdediff.data.idx import GZIP, idx_bytes, mnist_bytes
from sdediff.data.pictures import OnError, Verify, pictures
from sdediff.data.source import InMemory, Source, held_out
from sdediff.data.toys import TOYS, toy

_KEPT_IN = {
    "mnist": ("mnist", "MNIST", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10", "."),
    "cifar100": ("cifar100", "cifar-100", "CIFAR100", "."),
}
NAMES = ("digits", *_KEPT_IN, *TOYS)
_POINTS = 50_000  # of a toy
_FORMATS = "a folder or .zip of images, .npz, .npy, an idx file, or a folder of MNIST's or CIFAR's files"
_SPLITS = ("train", "test", "val", "valid", "validation")


@dataclass(frozen=True)
class _How:
    """What was asked for, and is passed on to whoever can do it."""

    split: str | None
    size: int | None
    channels: int | None
    labels: bool
    on_error: OnError
    verify: Verify | None

    def only(self, what: str, *can: str) -> None:
        """DataError if anything was asked for that this kind of data does not have."""
        never = {"split": None, "size": None, "channels": None, "on_error": "refuse"}
        asked = [f"{key}={getattr(self, key)!r}" for key, value in never.items() if key not in can and getattr(self, key) != value]
        if asked:
            raise DataError(
                f"{what} cannot be opened with {', '.join(asked)}. Such options are for folders and zips of images: leave them out."
            )


def open_source(
    spec: str | Path,
    *,
    split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    labels: bool = True,
    on_error: OnError = "refuse",
    verify: Verify | None = None,
) -> Source:
    """What can be trained on, from a name (digits, mnist, fashion-mnist, cifar10, cifar100, a toy) or a path; the format is what is there.

    split: "train" or "test" of published data (default: train) and of the digits (default: all, "test" is a fifth, held out), or the
    sub-folder of that name in a folder of images (default: train/, if there is one).
    labels=False leaves labels out. size, channels, on_error, verify: for folders and zips of images, see `pictures`.
    Raises DataError for a name that does not exist, a path at which nothing is, and data that cannot be trained on.
    """
    if not (split is None or isinstance(split, str)) or not isinstance(labels, bool):
        raise DataError(
            f"split = {split!r}, labels = {labels!r} were asked for. Expected a split's name or none, and labels true or false."
        )
    how = _How(split, size, channels, labels, on_error, verify)
    if isinstance(spec, str) and spec in NAMES:
        return _named(spec, how)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, how)
    if path.is_file():
        return _file(path, how)
    raise DataError(_nothing(str(spec)))


def _nothing(spec: str) -> str:
    """There is neither such a name nor such a path."""
    if "/" in spec or "\\" in spec or Path(spec).suffix:
        return f"There is no file or folder {spec}. Expected {_FORMATS}; or one of the names {', '.join(NAMES)}."
    near = difflib.get_close_matches(spec.lower(), NAMES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no data set {spec!r}, and no file or folder of that name.{hint} Expected {', '.join(NAMES)}, or a path to {_FORMATS}."


# --- by name ------------------------------------------------------------------------------------------------------


def _named(name: str, how: _How) -> Source:
    how.only(f"The data set {name!r}", "split")
    if name in TOYS:
        how.only(f"The toy {name!r}")
        return _in_memory(toy(name, _POINTS), how)
    if name == "digits":
        return _digits(how)
    folder = data_folder()
    if folder is None:
        raise DataError(f"{name} is not on this machine. Name the folder that holds {name}/ and others: export SDEDIFF_DATA=/path")
    for kept in (folder / inside for inside in _KEPT_IN[name]):
        if name.startswith("cifar") and is_cifar(kept) == name:
            return cifar(kept, how.split or "train", name, how.labels)
        if name.endswith("mnist") and _is_mnist(kept):
            return _mnist(kept, name, how)
    expected = "cifar-10-python.tar.gz or what is in it" if name.startswith("cifar") else "the four files train-images-idx3-ubyte.gz, ..."
    expected = expected.replace("10", name.removeprefix("cifar")) if name.startswith("cifar") else expected
    raise DataError(f"{name} is not in {folder}. Expected {folder / name} with {expected}; nothing is downloaded here.")


def _digits(how: _How) -> Source:
    source = _in_memory(digits(), how)
    if how.split is None:
        return source
    parts = dict(zip(("train", "test"), held_out(source), strict=True))
    if how.split not in parts:
        raise DataError(f"The digits have no split {how.split!r}; expected 'train' or 'test', or none for all.")
    return parts[how.split]


def _in_memory(data: Dataset, how: _How) -> InMemory:
    return InMemory.of(data if how.labels else data._replace(labels=None))


def _is_mnist(folder: Path) -> bool:
    return any((folder / f"{split}-images-idx3-ubyte{end}").is_file() for split in ("train", "t10k") for end in ("", ".gz"))


def _mnist(folder: Path, name: str, how: _How) -> InMemory:
    split = how.split or "train"
    pixels, labels = mnist_bytes(folder, split)
    return _labelled(pixels, labels if how.labels else None, f"{name}-{split}", folder, 10)


def _labelled(pixels: Tensor, labels: Tensor | None, name: str, path: Path, classes: int = 0) -> InMemory:
    """In memory, with at least so many classes."""
    if not len(pixels):
        raise DataError(f"{path} holds no images. Expected at least one.")
    given = None if labels is None else class_numbers(labels.numpy(), len(pixels), path)
    return InMemory(pixels, given, name, None if given is None else max(classes, int(given.max()) + 1))


# --- by path ------------------------------------------------------------------------------------------------------


def _folder(path: Path, how: _How) -> Source:
    version = is_cifar(path)
    if version is not None:
        how.only(f"The CIFAR files in {path}", "split")
        return cifar(path, how.split or "train", version, how.labels)
    for folder in (path, path / "raw"):
        if _is_mnist(folder):
            how.only(f"The idx files in {path}", "split")
            return _mnist(folder, path.name.lower(), how)
    inside = [split for split in _SPLITS if (path / split).is_dir()]
    if how.split is not None and not (path / how.split).is_dir():
        there = f"There are {', '.join(inside)}." if inside else "It has no splits."
        raise DataError(f"{path} has no folder {how.split}/. {there} Expected the images of the split in a folder of its name.")
    chosen = how.split or ("train" if inside else None)
    if chosen is not None and not (path / chosen).is_dir():
        raise DataError(f"{path} holds the splits {', '.join(inside)}, but no train/. Name one: split={inside[0]!r}.")
    return _pictures(path if chosen is None else path / chosen, how)


def _file(path: Path, how: _How) -> Source:
    suffix, name = path.suffix.lower(), path.name.lower()
    if suffix == ".zip":
        if how.split is not None:
            raise DataError(f"{path} is one set of images and has no split {how.split!r}. Leave split out, or give another file.")
        return _pictures(path, how)
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        how.only(str(path), "split")
        return cifar(path, how.split or "train", "cifar100" if "100" in name else "cifar10", how.labels)
    how.only(str(path))
    if suffix == ".npz":
        return npz_source(path, how.labels)
    if suffix == ".npy":
        return npy_source(path)
    try:
        with path.open("rb") as file:
            begin = file.read(2)
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e
    if begin in (GZIP, b"\0\0"):
        return _idx(path, how)
    raise DataError(f"{path} is no data to train on. Expected {_FORMATS}.")


def _pictures(path: Path, how: _How) -> Source:
    return pictures(path, size=how.size, channels=how.channels, labels=how.labels, on_error=how.on_error, verify=how.verify)


def _idx(path: Path, how: _How) -> InMemory:
    """The images of an idx file, with the labels of the file that is published beside it."""
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if beside != path and not beside.is_file():
        beside = beside.with_name(beside.name.removesuffix(".gz")) if beside.name.endswith(".gz") else beside.with_name(f"{beside.name}.gz")
    labelled = how.labels and beside != path and beside.is_file()
    pixels, labels = idx_bytes(path, beside if labelled else None)
    return _labelled(pixels, labels, path.name.removesuffix(".gz"), path)


def describe(source: Source) -> str:
    """One line on a source, for logs."""
    classes = "no labels" if source.classes is None else f"{source.classes} classes"
    return f"{source.name}: {len(source)} samples of shape {'x'.join(map(str, source.shape))}, {classes}"
