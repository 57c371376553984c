"""`sdediff statistics`: mean and covariance of real features, for Frechet distances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ..data import describe, open_source, part
from ..features import NAMES, extractor, reference_statistics
from ..names import UserError, positive
from .console import bar, say, writable
from .files import bytes_of, many


def statistics(
    data: Annotated[str, typer.Argument(help="digits, mnist, cifar10, ..., or a path to images.", show_default=False)],
    network: Annotated[
        str, typer.Option("--extractor", help=f"{', '.join(NAMES)}; or package.module:attribute, which runs the code of that package.")
    ],
    file: Annotated[Path, typer.Option("--out", help="A .safetensors file.")],
    weights: Annotated[Path | None, typer.Option(help="The extractor's state dict, e.g. pt_inception-2015-12-05-6726825d.pth.")] = None,
    size: Annotated[int | None, typer.Option(help="How many features; of Inception 64, 192, 768 or 2048 (default).")] = None,
    split: Annotated[str | None, typer.Option(help="train or test, or a folder's sub-folder of that name.")] = None,
    side: Annotated[int | None, typer.Option("--image-size", help="Crop and resize a folder's images to this side.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 makes a folder's images grey, 3 coloured.")] = None,
    n: Annotated[int | None, typer.Option("-n", "--samples", help="Only the first ones.")] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    device: Annotated[str | None, typer.Option(help="Where to compute, e.g. cuda; default: the CPU.")] = None,
) -> None:
    """Measure mean and covariance of the features of real images, once; a Frechet distance compares samples with them."""
    if file.suffix != ".safetensors":
        raise UserError(f"--out takes a .safetensors file, not {str(file)!r}.")
    writable(file.parent)
    source = open_source(data, split=split, size=side, channels=channels, labels=False)
    if n is not None:
        source = part(source, torch.arange(min(positive("--samples", n), len(source))), f"{source.name}[:{n}]")
    judge = extractor(network, weights, size, device=device)
    with bar("statistics", len(source), "images") as advance:
        found = reference_statistics(judge, source, batch=batch, tell=advance)
    found.save(file)
    say(f"{describe(source)}; {many(found.d, 'feature')} of {judge.name}, mark {judge.mark}, data {found.data_mark}")
    say(f"wrote {file}: {bytes_of(file.stat().st_size)}")
