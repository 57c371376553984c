"""The pictures of a study. `static` draws the curves of `Findings` as PNG and PDF; the others take images or numbers, and a path.

A curve looks the same everywhere (`look`): eight colours that stay apart for colour-blind eyes, then these with other dashes and markers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from ..checkpoint import write_bytes
from .findings import Findings, Interval, Line

COLOURS = [*mpl.colormaps["tab10"].colors, (0.0, 0.0, 0.0)]  # type: ignore[attr-defined]
MARKERS = "osv^D<>pPX*h"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    write_bytes(path, buffer.getvalue())


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


LIGHT = ("#0b63ad", "#d1500a", "#0a8f68", "#a8329a", "#a67c00", "#2f9bd6", "#3f444b", "#8c1d40")
DARK = ("#6fb1ff", "#ff9257", "#35cf9f", "#e88fdc", "#e8c34a", "#86dcff", "#d5d9de", "#ff7d9c")
SHAPES = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v", "star": "*", "x": "X"}
SIZES = {"*": 7.5, "P": 6, "X": 6, "^": 5.5, "v": 5.5}  # where 4.5 looks smaller than a circle of 4.5
DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 3)), "dot": (0, (1.5, 2)), "dashdot": (0, (6, 2, 1.5, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 2, 1.5, 2)),
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "axes.grid": True, "grid.color": "#e3e5e8", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "pdf.fonttype": 42, "svg.hashsalt": "sdediff", "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
}  # fmt: skip


class Look(NamedTuple):
    """How a curve is drawn: its colour on white and on black, its marker and its dashes, by plotly's names."""

    light: str
    dark: str
    marker: str
    dash: str


def look(i: int) -> Look:
    """The look of curve number i: no two of the first 192 are the same."""
    markers, dashes = list(SHAPES), list(DASHES)
    turn = i // len(LIGHT)
    return Look(LIGHT[i % len(LIGHT)], DARK[i % len(DARK)], markers[(i + turn) % len(markers)], dashes[turn % len(dashes)])


def names(findings: Findings) -> list[str]:
    """The curves in order of appearance: a curve's number is its place here."""
    return list(dict.fromkeys(line.curve for line in findings.lines))


def points(findings: Findings, curve: str, metric: str) -> list[Line]:
    """The lines of a curve that have the metric, by calls made."""
    own = [line for line in findings.lines if line.curve == curve and _finite(line.measures.get(metric))]
    return sorted(own, key=lambda line: line.made)


def logarithmic(findings: Findings, metric: str) -> bool:
    """Whether a metric is drawn on a logarithmic axis: it is better low, and nowhere 0 or below."""
    found = [line.measures[metric].value for line in findings.lines if _finite(line.measures.get(metric))]
    return bool(found) and min(found) > 0 and findings.better.get(metric, "low") == "low"


def _finite(given: Interval | None) -> bool:
    return given is not None and math.isfinite(given.value)


def static(findings: Findings, folder: Path) -> list[Path]:
    """Write steps_vs_<metric>, error_vs_calls and pareto as PNG and PDF into `folder`, those that have anything to show; the files."""
    written = []
    for name, draw in drawings(findings):
        for kind in ("png", "pdf"):
            path = Path(folder) / f"{name}.{kind}"
            write_bytes(path, rendered(draw(), kind))
            written.append(path)
    return written


def drawings(findings: Findings) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """The name of each static figure, and what draws it."""
    for metric in [findings.metric, *(m for m in findings.titles if m not in (findings.metric, "error"))]:
        if any(_finite(line.measures.get(metric)) for line in findings.lines):
            yield f"steps_vs_{re.sub(r'[^A-Za-z0-9_-]+', '_', metric).strip('_')[:80]}", lambda metric=metric: steps(findings, metric)
    if any(_finite(line.measures.get("error")) and not line.stochastic for line in findings.lines):
        yield "error_vs_calls", lambda: errors(findings)
    if findings.front:
        yield "pareto", lambda: pareto(findings)


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, the same ones every time."""
    buffer = io.BytesIO()
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def steps(findings: Findings, metric: str) -> Figure:
    """A metric against calls made: a line and a band of 95 % for each curve, the noise floor and the converged flow."""
    every = [(i, points(findings, curve, metric)) for i, curve in enumerate(names(findings))]
    figure, axes = _canvas(findings, metric, every)
    limit = findings.reference.measures.get(metric) if findings.reference else None
    for given, text, style in ((findings.noise.get(metric), "noise floor", ":"), (limit, "converged flow", "-.")):
        if given is not None and _finite(given) and (given.value > 0 or axes.get_yscale() == "linear"):
            axes.axhline(given.value, color="0.35", lw=1.1, ls=style, label=text, zorder=1.5)
    return _finished(figure, axes)


def errors(findings: Findings) -> Figure:
    """The distance to the converged flow against calls made, of the deterministic solvers: the slope is the order."""
    every = [(i, [p for p in points(findings, curve, "error") if not p.stochastic]) for i, curve in enumerate(names(findings))]
    figure, axes = _canvas(findings, "error", every)
    return _finished(figure, axes)


def pareto(findings: Findings) -> Figure:
    """Every line as a point; the front as stairs, and what is as good as the best ringed."""
    metric = findings.metric
    every = [(i, points(findings, curve, metric)) for i, curve in enumerate(names(findings))]
    figure, axes = _canvas(findings, metric, every, joined=False)
    front = [p for p in (findings.lines[i] for i in findings.front) if _finite(p.measures.get(metric))]
    axes.step([p.made for p in front], [p.measures[metric].value for p in front], where="post", color="k", lw=1.1, label="Pareto front")
    good = [p for _, own in every for p in own if p.good]
    axes.plot(
        [p.made for p in good], [p.measures[metric].value for p in good], "o", mfc="none", mec="#0b6b4a", ms=10, mew=1.2, ls="",
        label="as good as the best",
    )  # fmt: skip
    return _finished(figure, axes)


def _canvas(findings: Findings, metric: str, every: Sequence[tuple[int, Sequence[Line]]], *, joined: bool = True) -> tuple[Figure, Any]:
    """Axes with every curve on them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.3))
        axes = figure.add_subplot()
    curves = names(findings)
    log = logarithmic(findings, metric)
    least = min((p.measures[metric].value for _, own in every for p in own), default=1.0) / 2
    for i, own in every:
        if own:
            _curve(axes, curves[i], look(i), own, metric, least if log else -math.inf, joined)
    axes.set_xscale("log")
    axes.set_yscale("log" if log else "linear")
    better = "higher is better" if findings.better.get(metric) == "high" else "lower is better"
    title = findings.titles.get(metric, metric)
    axes.set_xlabel("network calls for each sample")
    axes.set_ylabel(_literal(title if metric == "error" else f"{title}\n{better}"))
    _numbers(axes, log)
    return figure, axes


def _curve(axes: Any, name: str, style: Look, own: Sequence[Line], metric: str, least: float, joined: bool) -> None:
    x, y = [p.made for p in own], np.array([p.measures[metric].value for p in own])
    ends = np.array([[p.measures[metric].low, p.measures[metric].high] for p in own])
    low, high = np.where(np.isfinite(ends), np.maximum(ends, least), y[:, None]).T
    how = {"marker": SHAPES[style.marker], "color": style.light, "ls": DASHES[style.dash] if joined else "", "label": _literal(name)}
    axes.plot(x, y, **how, ms=SIZES.get(how["marker"], 4.5), mec="white", mew=0.4)
    if joined and len(own) > 1:
        axes.fill_between(x, low, high, color=style.light, alpha=0.17, lw=0)
    elif joined:
        axes.errorbar(x, y, yerr=[y - low, high - y], color=style.light, capsize=2, lw=1, fmt="none")


def _numbers(axes: Any, log: bool) -> None:
    """Plain numbers at 1, 2, 5 on logarithmic axes."""
    for axis in [axes.xaxis, *([axes.yaxis] if log else [])]:
        low, high = axis.get_view_interval()
        subs = (1.0, 2.0, 5.0) if high < 400 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0) if high < 4 * low else subs))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _finished(figure: Figure, axes: Any) -> Figure:
    handles, texts = axes.get_legend_handles_labels()
    if handles:
        columns = math.ceil(len(handles) / 18)
        axes.legend(handles, texts, loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, ncols=columns, handlelength=2.6)
    return figure


def _literal(text: str) -> str:
    """A text that matplotlib shows as it is: no mathematics, and not left out of a legend for beginning with an underscore."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
