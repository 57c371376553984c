"""The idx format of MNIST, read exactly and refused clearly.

A file is: two zero bytes, a type code, the rank r, r dimensions as big-endian uint32, then the values, big endian, last
dimension fastest; nothing may follow. Often the whole is gzipped, which the first two bytes (1f 8b) tell, whatever the
name. Source: Y. LeCun, C. Cortes, "The MNIST database of handwritten digits", section "file formats".
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sdediff.data.dataset import Dataset
from sdediff.data.errors import DataError
from sdediff.data.source import unit

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"
AGAIN = "Download or copy the file again."


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an idx file, gzipped or not, in native byte order, writable; rank and dtype are the file's own.

    Raises DataError when the file cannot be read, is not idx, is damaged, ends early or holds more than it declares.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as e:
        raise DataError(f"There is no file {path}. Check the name; the readers never download.") from e
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}). Expected a readable idx file.") from e
    zipped = raw[:2] == GZIP
    data, whole = _unzip(raw, path) if zipped else (raw, True)
    dtype, shape = _header(data, path)
    start = 4 + 4 * len(shape)
    expected = start + math.prod(shape) * dtype.itemsize
    if not whole or len(data) < expected:
        fault = "it is truncated" if whole else f"its gzip stream ends early, after {len(raw)} bytes"
        raise DataError(f"{path}: {fault}: expected {expected} bytes of idx (shape {shape}, {dtype.name}), found {len(data)}. {AGAIN}")
    if len(data) > expected:
        raise DataError(
            f"{path}: {len(data) - expected} bytes follow the data: expected {expected} bytes of idx (shape {shape}, "
            f"{dtype.name}), found {len(data)}. The header or the file is wrong. {AGAIN}"
        )
    try:
        return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as e:  # nothing to read, yet dimensions that no array can have, e.g. (0, 2^32-1, 2^32-1, 2^32-1)
        raise DataError(f"{path}: NumPy cannot hold the shape {shape} that the header declares. {AGAIN}") from e


def _unzip(raw: bytes, path: Path) -> tuple[bytes, bool]:
    """All that unpacks, and whether the gzip stream is whole (its checksums included)."""
    parts: list[bytes] = []
    while raw:
        stream = zlib.decompressobj(wbits=31)
        try:
            parts.append(stream.decompress(raw))
        except zlib.error as e:
            raise DataError(f"{path}: the gzip stream is damaged or followed by other bytes ({e}). {AGAIN}") from e
        if not stream.eof:
            return b"".join(parts), False
        raw = stream.unused_data.lstrip(b"\0")  # gzip allows several members, and zeros as padding
    return b"".join(parts), True


def _header(data: bytes, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape that the header declares."""
    if len(data) < 4 and b"\0\0".startswith(data[:2]):
        raise DataError(f"{path}: it is truncated: expected at least 4 bytes of idx header, found {len(data)}. {AGAIN}")
    if data[:2] != b"\0\0" or data[2] not in DTYPES:
        codes = ", ".join(f"{code:02x}" for code in DTYPES)
        raise DataError(
            f"{path} is not an idx file: it starts with {data[:4].hex(' ')}, expected 00 00, a type code ({codes}) and "
            "the rank. Give the file as published (images-idx3-ubyte, labels-idx1-ubyte), gzipped or not."
        )
    rank, start = data[3], 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{path}: it is truncated: expected {start} bytes of idx header, found {len(data)}. {AGAIN}")
    return np.dtype(DTYPES[data[2]]), struct.unpack(f">{rank}I", data[4:start])


def idx_images(images_path: str | Path, labels_path: str | Path | None = None) -> Dataset:
    """Images of any idx file (Fashion-MNIST, KMNIST, EMNIST, ...), with the labels of another one if given.

    Images are uint8 (n, h, w) or (n, c, h, w), mapped to [-1, 1] by x/127.5 - 1; labels are integers (n,).
    Raises DataError for unreadable files, other types or ranks, and counts that differ.
    """
    pixels, labels = idx_bytes(images_path, labels_path)
    return Dataset(unit(pixels), labels, Path(images_path).name.removesuffix(".gz"))


def idx_bytes(images_path: str | Path, labels_path: str | Path | None = None) -> tuple[Tensor, Tensor | None]:
    """(uint8 (n, c, h, w), labels): what `idx_images` gives, a quarter as large."""
    pixels = read_idx(images_path)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise DataError(
            f"{images_path} holds {pixels.dtype} of shape {pixels.shape}; expected uint8 images (n, h, w) or "
            "(n, c, h, w). Were images and labels swapped? For other data use read_idx and scale it yourself."
        )
    x = torch.from_numpy(pixels)
    x = x[:, None] if pixels.ndim == 3 else x
    if labels_path is None:
        return x, None
    labels = read_idx(labels_path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{labels_path} holds {labels.dtype} of shape {labels.shape}; expected integer labels (n,). Were images and labels swapped?"
        )
    if len(labels) != len(pixels):
        raise DataError(
            f"{len(pixels)} images in {images_path}, but {len(labels)} labels in {labels_path}; expected one label an "
            "image. Give the two files of the same split."
        )
    return x, torch.from_numpy(labels.astype(np.int64))


def mnist(folder: str | Path, split: Literal["train", "test"] = "train") -> Dataset:
    """MNIST from the four published files, gzipped or not: 60000 (train) or 10000 (test) images x (n, 1, 28, 28).

    folder: where `train-images-idx3-ubyte[.gz]` and so on lie, e.g. `data_folder() / "mnist"`. The order is the files'.
    Raises DataError for another split, missing or damaged files, and counts that differ.
    """
    pixels, labels = mnist_bytes(folder, split)
    return Dataset(unit(pixels), labels, f"mnist-{split}")


def mnist_bytes(folder: str | Path, split: str = "train") -> tuple[Tensor, Tensor | None]:
    """(uint8 (n, 1, 28, 28), labels) of MNIST, or of Fashion-MNIST, which has files of the same names."""
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise DataError(f"MNIST has no split {split!r}; expected 'train' or 'test'.")
    images, labels = (_published(Path(folder), f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
    return idx_bytes(images, labels)


def _published(folder: Path, name: str) -> Path:
    """The file of that name, or its gzipped form."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"There is no {name} or {name}.gz in {folder}. Expected the four files of MNIST there; give the folder that holds them."
    )
