"""Samples by the ten thousand: a folder of shards, each written whole, made by one process or many, and gone on with after a stop.

    sampling.json            what is drawn: the same command goes on, another is refused
    000000.npz, 000001.npz   uint8 images (n, h, w, c) as `arr_0`, or 000000.safetensors: the states as float32, `x` (n, ...)

Sample i is a function of the settings and i: it is drawn among the same 64, whatever the size of the shards or the number of processes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checkpoint import read, write, write_bytes
from .data.images import pixels
from .names import UserError, choose, positive
from .processes import Alone, Processes

GROUP = 64  # samples that are drawn together, always
KINDS = ("npz", "safetensors")
SETTINGS = "sampling.json"


class Shard(NamedTuple):
    """Samples first .. first + n - 1 and their file; there: it was written before."""

    path: Path
    first: int
    n: int
    there: bool


def shards(
    draw: Callable[[int, int], Tensor],
    n: int,
    folder: str | Path,
    about: Mapping[str, Any],
    *,
    kind: str = "npz",
    size: int = 1024,
    among: Processes | None = None,
) -> Iterator[Shard]:
    """Write n samples as shards of `size` (made a multiple of 64); yields each of this process's own when it is there.

    draw: (first, n) -> samples (n, ...), such as `lambda first, n: sample(model, n, first=first, batch=64, calls=20)`; it is asked for
    multiples of 64. about: what draws them, as JSON; a folder that was begun with other settings is refused (`UserError`); a damaged
    shard is put aside and drawn again. kind "npz": images in [-1, 1] as bytes; "safetensors": float32 as they are.
    """
    folder, among = Path(folder), among or Alone()
    choose("kind of shards", kind, KINDS)
    size = -(-positive("size", size) // GROUP) * GROUP
    asked = {**about, "n": positive("n", n), "size": size, "kind": kind}
    if among.rank == 0:
        _claim(folder / SETTINGS, asked)
    among.meet()
    for number in range(among.rank, -(-n // size), among.count):
        first = number * size
        path, many = folder / f"{number:06d}.{kind}", min(size, n - first)
        there = _whole(path, kind)
        if not there:
            x = draw(first, -(-many // GROUP) * GROUP)[:many].cpu()
            if kind == "npz":
                write_bytes(path, _bytes(x))
            else:
                write(path, {"x": x.float().clone()}, {"first": first, **asked})
        yield Shard(path, first, many, there)
    among.meet()


def _bytes(x: Tensor) -> bytes:
    """An .npz of `arr_0`, uint8 (n, h, w, c), as guided-diffusion's tools read it."""
    if x.ndim != 4:
        raise UserError(f"samples of shape {tuple(x.shape[1:])} are no images: take kind 'safetensors'.")
    buffer = io.BytesIO()
    np.savez(buffer, pixels(x, (-1.0, 1.0)).permute(0, 2, 3, 1).contiguous().numpy())
    return buffer.getvalue()


def _claim(path: Path, asked: dict[str, Any]) -> None:
    """Write down what is drawn here; `UserError` where something else is."""
    text = json.dumps(asked, indent=1, sort_keys=True) + "\n"
    if not path.exists():
        write_bytes(path, text.encode())
        return
    try:
        held = dict(json.loads(path.read_text()).items())
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: take it away if the shards beside it are of this command, or give another folder.") from None
    other = [f"{k} ({held.get(k)!r} there, {asked.get(k)!r} asked)" for k in sorted({*held, *asked}) if held.get(k) != asked.get(k)]
    if other:
        raise UserError(f"{path.parent} holds samples of other settings: {', '.join(other)}. Give another folder, or the same settings.")


def _whole(path: Path, kind: str) -> bool:
    """Whether a shard is there; a damaged one is put aside."""
    if not path.exists():
        return False
    try:
        if kind == "safetensors":
            read(path)
        else:
            with np.load(path, allow_pickle=False) as file:
                torch.from_numpy(file["arr_0"])
    except Exception:
        path.replace(path.with_suffix(".damaged"))
        return False
    return True
