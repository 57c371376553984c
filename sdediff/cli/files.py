"""Files of images that commands read and write, and how their messages speak of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..checkpoint import write, write_bytes
from ..data.images import PICTURES, npz, pixels, png, sheet
from ..latent import Latent
from ..names import UserError
from .console import writable

_SHEET = 256  # images on a sheet

ImagesArgument = Annotated[
    list[Path], typer.Argument(help=".png or .jpg files, folders of them, .npz, .npy, .safetensors (x) or idx files.", show_default=False)
]
FirstOption = Annotated[int | None, typer.Option("-n", "--samples", help="Only the first ones.")]
ImagesOut = Annotated[Path, typer.Option("--out", help="images.npz, .safetensors, a sheet .png, or a folder of .png files.")]


@dataclass(frozen=True)
class Target:
    """A file or folder to write images to: kind is the ending, "" for a folder; limits as in `Origin`."""

    path: Path
    kind: str
    limits: tuple[float, float] = (-1.0, 1.0)

    def save(self, rows: Sequence[Tensor], names: Sequence[str], whole: Tensor) -> str:
        """Write images given as rows (of a sheet), with names (of files), and as one tensor; says what was written."""
        said = f"images {tuple(whole.shape)} of {dtype_of(whole)}"
        if self.kind == ".npz":
            write_bytes(self.path, npz(whole))
            return said
        if self.kind == ".safetensors":
            write(self.path, {"x": whole}, {"kind": "images", "limits": list(self.limits)})
            return said
        rounded = "" if whole.dtype == torch.uint8 else f", {dtype_of(whole)} rounded to 8 bits"
        if self.kind == ".png":
            columns = min(len(rows[0]), _SHEET)
            drawn = [pixels(r[:columns], self.limits) for r in rows[: _SHEET // columns]]
            write_bytes(self.path, sheet(drawn))
            shown = sum(map(len, drawn))
            return f"a sheet of {f'the first {shown} of ' if shown < len(names) else ''}{many(len(names), 'image')}{rounded}"
        each = [image for row in rows for image in row]
        others = [f.name for f in self.path.iterdir() if f.suffix.lower() in PICTURES and f.stem not in names]
        if others:
            raise UserError(f"{self.path} already holds other images ({others[0]}, ...): choose an empty folder.")
        for name, image in zip(names, each, strict=True):
            write_bytes(self.path / f"{name}.png", png(pixels(image, self.limits)))
        return f"{many(len(names), '.png file')}{rounded}"


def target_for(path: Path, kinds: Sequence[str], sources: Sequence[Path] = (), latent: Latent | None = None) -> Target:
    """Where to write, looked at before the work: kinds are endings, "" stands for a folder. latent: whose images these will be."""
    kind = "" if path.is_dir() else path.suffix.lower()
    if kind not in kinds:
        ends = [k for k in kinds if k]
        folder = " file, or a folder" if "" in kinds else " file"
        listed = " or a ".join([", ".join(ends[:-1]), ends[-1]] if len(ends) > 1 else ends)
        raise UserError(f"--out takes a {listed}{folder}, not {'the folder ' if path.is_dir() else ''}{str(path)!r}.")
    if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
        raise UserError(f"--out {path} would overwrite what is read: choose another name.")
    coded = latent is not None and latent.outer is not None  # whose images have a shape of their own
    if latent is not None and not coded and kind in (".png", "") and (latent.x.ndim != 4 or latent.x.shape[1] not in (1, 3)):
        raise UserError(f"samples of shape {tuple(latent.x.shape[1:])} are no pictures: write them to a .npz or .safetensors file.")
    if latent is not None and kind == ".npz" and latent.images.dtype == torch.bfloat16:
        raise UserError("these images are bfloat16, which NumPy does not have: write them to a .safetensors file.")
    writable(path if kind == "" else path.parent)
    return Target(path, kind) if latent is None else Target(path, kind, latent.images.limits)


def many(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def dtype_of(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def shape_of(x: Tensor) -> str:
    return " x ".join(map(str, x.shape[1:]))


def bytes_of(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
