"""The pictures of a study. Each takes numbers or images and a path, and writes one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from ..checkpoint import write_bytes

COLOURS = [*mpl.colormaps["tab10"].colors, (0.0, 0.0, 0.0)]  # type: ignore[attr-defined]
MARKERS = "osv^D<>pPX*h"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    write_bytes(path, buffer.getvalue())


def curves(frame: Any, column: str, path: Path, *, title: str, label: str, lines: dict[str, float] | None = None) -> None:
    """`column` of the results against calls made, one line for each solver: the mean over seeds, whiskers from least to greatest.

    lines: names and heights of horizontal lines.
    """
    figure = Figure(figsize=(9.5, 5.6))
    axes = figure.add_subplot()
    for i, (curve, part) in enumerate(frame.groupby("curve", sort=False)):
        grouped = part.groupby(["solver", "calls_asked"], sort=False, dropna=False)
        table = grouped.agg(calls=("calls_made", "mean"), mean=(column, "mean"), low=(column, "min"), high=(column, "max"))
        table = table.sort_values("calls")
        mean = table["mean"].to_numpy()
        whiskers = np.stack([mean - table["low"].to_numpy(), table["high"].to_numpy() - mean])
        adaptive = part["calls_asked"].isna().all()
        axes.errorbar(
            table["calls"], mean, yerr=whiskers, label=curve, capsize=2, lw=1.4, ms=5, marker=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)], ls="--" if adaptive else "-",
        )  # fmt: skip
    for (text, height), style in zip((lines or {}).items(), (":", "-."), strict=False):
        axes.axhline(height, color="0.4", lw=1, ls=style, label=text)
    axes.set(xscale="log", yscale="log", xlabel="network calls for each sample", ylabel=label, title=title)
    ticks = [5, 10, 20, 50, 100, 200, 500, 1000]
    axes.set_xticks([t for t in ticks if frame["calls_made"].min() <= t <= frame["calls_made"].max()])
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if frame[column].max() < 200 * frame[column].min() else (1.0,)))
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)


def sheet(rows: Sequence[tuple[str, Tensor]], path: Path, *, title: str, columns: int = 14) -> None:
    """Labelled rows of images in [-1, 1], (n, c, h, w) each: row by row the same latents in the same columns."""
    h, w = rows[0][1].shape[-2:]
    gap = max(1, h // 8)
    colour = rows[0][1].shape[1] == 3
    canvas = np.ones((len(rows) * (h + gap) - gap, columns * (w + gap) - gap, *((3,) if colour else ())))
    for i, (_, images) in enumerate(rows):
        for j, image in enumerate(images[:columns]):
            canvas[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = picture(image)
    figure = Figure(figsize=(0.55 * columns + 1.5, 0.55 * len(rows) + 0.5))
    axes = figure.add_subplot()
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([i * (h + gap) + h / 2 for i in range(len(rows))], [name for name, _ in rows], fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    save(figure, path)


def picture(image: Tensor) -> np.ndarray:
    """An image (c, h, w) in [-1, 1] as matplotlib wants it, in [0, 1]."""
    shown = (image.detach().cpu().float().clamp(-1, 1).add(1).mul(0.5)).numpy()
    return shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0)


def round_trip(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Reconstruction error against steps; adaptive methods are horizontal lines."""
    figure = Figure(figsize=(7, 4.4))
    axes = figure.add_subplot()
    fixed = [r for r in table if r["steps"] is not None]
    for i, solver in enumerate(dict.fromkeys(r["solver"] for r in fixed)):
        part = [r for r in fixed if r["solver"] == solver]
        axes.plot([r["steps"] for r in part], [r["error"] for r in part], label=solver, marker=MARKERS[i], color=COLOURS[i])
    for i, r in enumerate(r for r in table if r["steps"] is None):
        axes.axhline(r["error"], label=r["solver"], color=COLOURS[3 + i], ls="--", lw=1.2)
    axes.axhline(1 / 255, color="0.5", ls=":", lw=1, label="half a grey level of 8 bits")
    axes.set(
        xscale="log", yscale="log", xlabel="steps each way", ylabel="RMS error of a pixel in [-1, 1]", title="Encode and decode real images"
    )
    axes.set_xticks(sorted({r["steps"] for r in fixed}))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)
