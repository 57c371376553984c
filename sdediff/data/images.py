"""Images from files as they are, and back: nothing is scaled, resized or recoloured on the way in, so the same bits can come back.

PNG and JPEG (8 bits a channel), folders of them, NumPy arrays (.npy, .npz, never pickles), idx files, and the tensor "x" of a safetensors
file. Every file is read into (n, c, h, w) of uint8 or floats. What does not fit is refused with the cure.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdediff.data.decoding import PICTURES, opened, plain
from sdediff.data.errors import DAMAGED, DataError, first_line
from sdediff.data.idx import GZIP, read_idx
from sdediff.data.numpy_files import numpy_file, the_one

_DTYPES = ("uint8", "float16", "float32", "float64")
_SIDE = 48  # pixels to which small images on a sheet are enlarged


class Images(NamedTuple):
    """x: (n, c, h, w) of uint8 or a float dtype; names: of each, its file's, with its number where a file holds many."""

    x: Tensor
    names: tuple[str, ...]


def read_images(paths: Sequence[str | Path], shape: tuple[int, ...] | None = None, first: int | None = None) -> Images:
    """The images of files and folders, in that order (files in a folder by name and number), at most the `first` ones.

    shape: of one sample (c, h, w), as the model has it; grey images become three equal channels for it, three equal ones grey.
    Raises DataError for what is missing, damaged, of another size, another type, pickled, or empty.
    """
    if first is not None and first < 1:
        raise DataError(f"The first {first} images were asked for; expected at least 1.")
    parts: list[Tensor] = []
    names: list[str] = []
    for path in _files(paths):
        x = _read(path, shape)
        if parts and (x.dtype != parts[0].dtype or x.shape[1:] != parts[0].shape[1:]):
            raise DataError(
                f"{path} holds {_said(x)}, but {names[0]} is {_said(parts[0])}. Expected one type and one shape: take them one by one."
            )
        names += [path.name] if path.suffix.lower() in PICTURES else [f"{path.name}[{i}]" for i in range(len(x))]
        parts.append(x)
        if first is not None and len(names) >= first:
            break
    return Images(torch.cat(parts)[:first], tuple(names[:first]))


def _said(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape[1:])}"


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    """All files, those of folders in the order of their numbers."""
    if not paths:
        raise DataError("No images were given. Expected files or folders.")
    for path in map(Path, paths):
        if path.is_dir():
            try:
                found = [f for f in path.iterdir() if f.suffix.lower() in PICTURES and f.is_file() and not f.name.startswith(".")]
            except OSError as e:
                raise DataError(f"The folder {path} cannot be read ({e.strerror}).") from e
            if not found:
                raise DataError(
                    f"The folder {path} holds no images. Expected {', '.join(PICTURES)} files in it; folders inside are not read."
                )
            yield from sorted(found, key=lambda f: numbered(f.name))
        elif path.is_file():
            yield path
        else:
            raise DataError(f"There is no file or folder {path}. Check the name.")


def numbered(name: str) -> list[tuple[int, str]]:
    """img2 before img10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def _read(path: Path, shape: tuple[int, ...] | None) -> Tensor:
    """The images (n, ...) of one file."""
    try:
        with path.open("rb") as file:
            begin = file.read(2)
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return _copied(arranged(_pixels(path, shape), shape, path))
    if suffix == ".safetensors":
        return _tensor(path, shape)
    if suffix in (".npy", ".npz"):
        array = _array(path)
    elif begin in (GZIP, b"\0\0"):
        array = read_idx(path)
    else:
        raise DataError(f"{path} is no file of images. Expected {', '.join(PICTURES)}, .npz, .npy, .safetensors, an idx file, or a folder.")
    if array.dtype.name not in _DTYPES:
        cure = "save it with .astype(np.uint8) if it holds 0 to 255, else scaled as in training, as floats"
        raise DataError(f"{path} holds {array.dtype.name}. Expected {', '.join(_DTYPES)}: {cure}.")
    return _copied(arranged(array, shape, path))


def _copied(array: np.ndarray) -> Tensor:
    """A tensor of its own, in the machine's byte order."""
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


# --- one kind of file each ----------------------------------------------------------------------------------------


def _pixels(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    """uint8 (1, h, w) or (1, h, w, 3) of a PNG or JPEG."""
    if shape is not None and len(shape) != 3:
        raise DataError(
            f"{path} is a picture, but the model's samples have shape {shape}. Give an array (n, {', '.join(map(str, shape))})."
        )
    with path.open("rb") as file, opened(file, path) as image:  # nothing is unpacked yet
        if shape is not None and sorted(image.size) != sorted(shape[1:]):
            raise DataError(_other_size(path, image.size, shape))
        return np.asarray(plain(image, path))[None]


def _other_size(path: Path, size: tuple[int, int], shape: tuple[int, ...]) -> str:
    return (
        f"{path} is {size[0]} x {size[1]} pixels, but the model's images are {shape[2]} x {shape[1]}. Nothing is resized here: resize it "
        f"first, or name the checkpoint of a network for its size."
    )


def _array(path: Path) -> np.ndarray:
    """The array of an .npy file, or the only one, "images" or "x" of an .npz."""
    with numpy_file(path) as found:
        return found if isinstance(found, np.ndarray) else np.asarray(found[the_one(path, found.files, ("images", "x"))])


def _tensor(path: Path, shape: tuple[int, ...] | None) -> Tensor:
    """The tensor x (or images) of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, list(file.keys())
            chosen = [n for n in ("x", "images") if n in names]
            if '"kind": "latent"' in about.get("sdediff", ""):
                raise DataError(f"{path} holds latents, not images: `sdediff decode` makes images of them.")
            if not chosen:
                raise DataError(f"{path} holds no tensor x of images, but {', '.join(names[:3]) or 'nothing'}{' ...' * (len(names) > 3)}.")
            x = file.get_tensor(chosen[0])
    except DataError:
        raise
    except (SafetensorError, *DAMAGED) as e:
        raise DataError(f"{path} is not a whole safetensors file ({first_line(e)}). Copy it again.") from e
    if x.dtype != torch.bfloat16:
        if str(x.dtype).removeprefix("torch.") not in _DTYPES:
            raise DataError(f"{path} holds {x.dtype}. Expected {', '.join(_DTYPES)} or bfloat16.")
        return _copied(arranged(x.numpy(), shape, path))
    return _copied(arranged(x.view(torch.int16).numpy(), shape, path)).view(torch.bfloat16)


# --- arrangement --------------------------------------------------------------------------------------------------


def arranged(x: np.ndarray, shape: tuple[int, ...] | None, path: Path) -> np.ndarray:
    """(n, *shape) of an array that holds n images with the channel first, last or left out, or one image."""
    if not x.size:
        raise DataError(f"{path} holds no images, an array of shape {x.shape}. Expected at least one.")
    if shape is None:
        shape = _guessed(x, path)
    if x.shape == shape or (len(shape) == 3 and x.shape in ((*shape[1:], shape[0]), shape[1:])):
        x = x[None]
    if x.shape[1:] == shape:
        return x
    if len(shape) == 3 and x.ndim in (3, 4):
        c, *size = shape
        if list(x.shape[1:]) == size and c in (1, 3):
            x = x[:, None]
        elif x.ndim == 4 and list(x.shape[1:3]) == size and x.shape[3] in (1, 3, c):
            x = np.moveaxis(x, -1, 1)
        if x.shape[1:] == shape:
            return x
        if list(x.shape[2:]) == size and {c, x.shape[1]} == {1, 3}:
            return np.repeat(x, 3, 1) if c == 3 else _grey(x, path)
        if path.suffix.lower() in PICTURES:
            raise DataError(_other_size(path, (x.shape[2], x.shape[1]), shape))
    raise DataError(
        f"{path} holds an array of shape {x.shape}, but the model's samples have shape {shape}. Expected {_expected(shape)}. Nothing is "
        f"resized here: resize it first, or name the checkpoint of a network for it."
    )


def _expected(shape: tuple[int, ...]) -> str:
    first = f"(n, {', '.join(map(str, shape))})"
    if len(shape) != 3:
        return first
    c, h, w = shape
    return f"{first}, (n, {h}, {w}, {c})" + (f" or (n, {h}, {w})" if c == 1 else "")


def _guessed(x: np.ndarray, path: Path) -> tuple[int, ...]:
    """The shape (c, h, w) of a sample, for a model that takes any."""
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return x.shape[3], x.shape[1], x.shape[2]
    if x.ndim == 3:
        return 1, x.shape[1], x.shape[2]
    if x.ndim < 2:
        raise DataError(f"{path} holds an array of shape {x.shape}. Expected images (n, h, w), (n, c, h, w) or (n, h, w, c).")
    return x.shape[1:]


def _grey(x: np.ndarray, path: Path) -> np.ndarray:
    """(n, 1, h, w) of (n, 3, h, w) whose channels are the same."""
    if not (np.array_equal(x[:, 0], x[:, 1]) and np.array_equal(x[:, 0], x[:, 2])):
        raise DataError(
            f'{path} is in colour, but the model knows grey only. Convert it first, e.g. Image.open(file).convert("L").save(file).'
        )
    return x[:, :1]


# --- back to files ------------------------------------------------------------------------------------------------


def pixels(x: Tensor, limits: tuple[float, float]) -> Tensor:
    """uint8 of images: themselves, or floats rounded, the limits at 0 and 255."""
    if x.dtype == torch.uint8:
        return x
    low, high = limits
    return ((x.double() - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def png(image: Tensor) -> bytes:
    """A PNG file of one image, uint8 (c, h, w), c = 1 or 3."""
    return _saved(_channels_last(image.cpu().numpy()))


def sheet(rows: Sequence[Tensor]) -> bytes:
    """A PNG file of rows of images, each uint8 (n, c, h, w), on white paper; small images are enlarged, pixel by pixel."""
    h, w = rows[0].shape[-2:]
    by, gap = max(1, math.ceil(_SIDE / max(h, w))), 4
    columns = max(len(row) for row in rows)
    height, width = by * h + gap, by * w + gap
    paper = np.full((len(rows) * height + gap, columns * width + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.cpu().numpy()):
            top, left = gap + i * height, gap + j * width
            large = image.repeat(by, 1).repeat(by, 2)
            paper[top : top + by * h, left : left + by * w] = large.transpose(1, 2, 0)
    return _saved(paper)


def npz(x: Tensor) -> bytes:
    """An .npz file with the array "images"; not of bfloat16, which NumPy does not have."""
    buffer = io.BytesIO()
    np.savez(buffer, images=x.cpu().numpy())
    return buffer.getvalue()


def _channels_last(image: np.ndarray) -> np.ndarray:
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
