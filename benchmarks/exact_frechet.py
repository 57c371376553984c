"""The exact Frechet distance between what a solver samples and the data, against network calls, without drawing a sample.

    python benchmarks/exact_frechet.py      # writes docs/results/exact_frechet_*.csv and docs/img/exact_frechet_*.png

The data is the Gaussian with the mean and covariance of a real data set (scikit-learn's digits; MNIST, CIFAR-10 where they are). Its score
is closed form, every linear solver maps mean and covariance exactly (`linear_gaussian`), and in the covariance's eigenbasis all is
diagonal. So W2^2 = sum_i (m'_i - m_i)^2 + (s'_i - s_i)^2 (as in the FID) between the solver's law at t_min and the data's there.
Sampling starts from N(0, I) at t_max, so that the mismatch of the prior is in it (`start` "prior"), or from the exact marginal there.

What a solver does to a component is an analytic function of the component's variance v, singular only for v < 0: a polynomial through 96
Chebyshev nodes in log(v + u_min^2) gives it to rounding for thousands of components at once. The digits' own 64 variances are marched as
well, which measures the interpolation; its error is printed.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.image
import numpy as np
import torch
from certificates_page import short
from linear_gaussian import NotLinear, responses
from matplotlib.figure import Figure
from PIL import Image
from settings import TEXTS, family, of_steps, settings

from sdediff import Gaussian, Grid, Knot, LogSNR, Quadratic, Solver, Uniform, UserError, VPLinear
from sdediff.data import data_folder, digits, mnist
from sdediff.solvers import named

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = VPLinear()
GRIDS: dict[str, Grid] = {"LogSNR": LogSNR(), "Quadratic": Quadratic(), "Uniform": Uniform()}
CALLS = (5, 10, 20, 50, 100, 200)
NODES = 96
LARGEST = 1000.0  # variances from 0 to this are covered
FIRST, LAST = SCHEDULE.knot(SCHEDULE.t_max), SCHEDULE.knot(SCHEDULE.t_min)


# --- data: mean and variance in the eigenbasis --------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """The principal components of a data set: mean and variance of each."""

    name: str
    mean: np.ndarray
    variance: np.ndarray


def spectrum(name: str, x: np.ndarray) -> Spectrum:
    """Of data (n, ...)."""
    x = x.reshape(len(x), -1).astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(x, rowvar=False))
    return Spectrum(name, x.mean(0) @ axes, np.maximum(variance, 0.0))


@cache
def digits_spectrum() -> Spectrum:
    return spectrum("digits", digits().x.numpy())


def spectra() -> list[Spectrum]:
    """The digits, and MNIST and CIFAR-10 where they are; what is missing is said."""
    found, folder = [digits_spectrum()], data_folder()
    if folder is None or not (folder / "mnist").is_dir():
        print("MNIST is skipped: there is no mnist/ in $SDEDIFF_DATA or ../shared/data")
    else:
        found.append(spectrum("mnist", mnist(folder / "mnist").x.numpy()))
    pictures = sorted((folder / "cifar10").glob("cifar10_batch_*.png")) if folder else []
    if not pictures:
        print("CIFAR-10 is skipped: there is no cifar10/cifar10_batch_*.png in $SDEDIFF_DATA or ../shared/data")
    else:  # a picture holds one image a row, 1024 pixels of three colours in [0, 1]
        rows = np.concatenate([matplotlib.image.imread(p)[..., :3] for p in pictures])
        found.append(spectrum("cifar10", 2 * rows.astype(np.float64) - 1))
    return found


# --- what a solver does to a component of variance v --------------------------------------------------------------


@cache
def nodes() -> np.ndarray:
    """Chebyshev nodes in log(v + u_min^2), as variances from 0 to LARGEST."""
    low, high = math.log(LAST.u**2), math.log(LARGEST + LAST.u**2)
    w = low + (high - low) * (1 + np.cos(np.pi * np.arange(NODES) / (NODES - 1))[::-1]) / 2
    v = np.exp(w) - LAST.u**2
    v[0] = 0.0
    return v


def interpolated(values: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The polynomial through values (..., NODES) at the nodes, evaluated for variances v: the barycentric formula."""
    w, at = np.log(nodes() + LAST.u**2), np.log(v + LAST.u**2)
    weights = (-1.0) ** np.arange(NODES)
    weights[[0, -1]] /= 2
    off = at[:, None] - w
    hit = off == 0
    c = np.where(hit.any(1, keepdims=True), hit, weights / np.where(hit, 1.0, off))
    return values @ (c / c.sum(1, keepdims=True)).T


class Run(NamedTuple):
    """One run: steps, calls, and for each node (then for each variance of the digits) the response to mean, start and noise (squared)."""

    grid: str
    asked: int
    steps: int
    calls: int
    mean: np.ndarray
    start: np.ndarray
    noise: np.ndarray


class Missing(NamedTuple):
    """A run that has no linear response, and why."""

    grid: str
    asked: int
    why: str


def within(solver: Solver, grid: Grid, calls: int) -> tuple[Knot, ...] | None:
    """The finest knots on which the solver makes at most this many calls; None if there are none."""
    for n in range(calls, 0, -1):
        knots = grid.knots(SCHEDULE, n)
        if solver.calls(knots) <= calls:
            return knots
    return None


def runs(solver: Solver, grids: Mapping[str, Grid] = GRIDS, calls: Sequence[int] = CALLS) -> Iterator[Run | Missing]:
    """All grids and call counts."""
    variances = np.concatenate([nodes(), digits_spectrum().variance])
    model = Gaussian(np.ones(len(variances)), variances, schedule=SCHEDULE)
    for name, grid in grids.items():
        before = 0
        for asked in calls:
            knots = within(solver, grid, asked)
            if knots is None or len(knots) == before:
                continue
            before = len(knots)
            try:
                *_, last = responses(of_steps(solver, len(knots) - 1), model, knots)
            except (NotLinear, UserError) as why:
                yield Missing(name, asked, str(why))
                continue
            parts = last.zero.numpy(), last.start[0].numpy(), (last.draws**2).sum(0).numpy()
            yield Run(name, asked, len(knots) - 1, solver.calls(knots), *parts)


class Found(NamedTuple):
    """What was found of a setting."""

    setting: str
    runs: list[Run]
    missing: list[Missing]

    @property
    def kind(self) -> str:
        """Whether it ever draws noise."""
        return "noise" if any(run.noise.any() for run in self.runs) else "flow"

    def said(self) -> str:
        """One line on what is missing."""
        where = "not applicable" if not self.runs else "without " + ", ".join(f"{m.grid} at {m.asked} calls" for m in self.missing)
        return f"{short(self.setting)}: {where}: {self.missing[0].why}"


def _work(text: str) -> Found:
    torch.set_num_threads(1)
    every = list(runs(named(text)))
    return Found(text, [r for r in every if isinstance(r, Run)], [m for m in every if isinstance(m, Missing)])


# --- distances ----------------------------------------------------------------------------------------------------


def frechet(data: Spectrum, mean: np.ndarray, start: np.ndarray, noise: np.ndarray, exact_start: bool) -> float:
    """W2^2 between the solver's law at the end and the data's, from the responses for each component of the data."""
    if exact_start:
        first_mean, first_variance = FIRST.alpha * data.mean, FIRST.alpha**2 * data.variance + FIRST.sigma**2
    else:
        first_mean, first_variance = 0.0, 1.0
    got_mean, got_variance = mean * data.mean + start * first_mean, start**2 * first_variance + np.maximum(noise, 0.0)
    true_variance = LAST.alpha**2 * data.variance + LAST.sigma**2
    off = (got_mean - LAST.alpha * data.mean) ** 2 + (np.sqrt(got_variance) - np.sqrt(true_variance)) ** 2
    return float(off.sum())


def floor(data: Spectrum, noise: bool = False) -> float:
    """What the exact probability flow, or the exact reverse SDE, leaves of the mismatch of the prior."""
    first, last = (t.alpha**2 * data.variance + t.sigma**2 for t in (FIRST, LAST))
    response = FIRST.alpha / LAST.alpha * last / first if noise else np.sqrt(last / first)
    return frechet(data, LAST.alpha - response * FIRST.alpha, response, last - response**2 * first, False)


class Row(NamedTuple):
    """One distance. kind: "flow" or "noise"; start: "prior" or "marginal"; calls: those made, at most `calls_asked`."""

    setting: str
    family: str
    kind: str
    grid: str
    start: str
    calls_asked: int
    steps: int
    calls: int
    frechet: float


def rows(data: Spectrum, found: Sequence[Found]) -> list[Row]:
    """All distances of a data set."""
    table = []
    for of in found:
        names = short(of.setting), family(named(of.setting)), of.kind
        for run in of.runs:
            parts = [interpolated(part[:NODES], data.variance) for part in (run.mean, run.start, run.noise)]
            for start in ("prior", "marginal"):
                value = float(f"{frechet(data, *parts, exact_start=start == 'marginal'):.3e}")  # as it is written
                table.append(Row(*names, run.grid, start, run.asked, run.steps, run.calls, value))
    return table


def interpolation_error(found: Sequence[Found]) -> float:
    """The largest difference of a response by interpolation and by marching, at the digits' variances, relative to the largest response."""
    worst = 0.0
    for of in found:
        for run in of.runs:
            for part in (run.mean, run.start, run.noise):
                if np.isfinite(part).all() and np.abs(part).max() > 0:
                    off = np.abs(interpolated(part[:NODES], digits_spectrum().variance) - part[NODES:]).max()
                    worst = max(worst, off / max(1.0, np.abs(part).max()))
    return worst


# --- what is written ----------------------------------------------------------------------------------------------


def write_csv(table: Sequence[Row], path: Path) -> None:
    """One line for each setting, grid and start: the distance at the finest grid that makes at most so many calls (empty if none does)."""
    lines: dict[tuple[str, ...], dict[int, float]] = {}
    for r in table:
        lines.setdefault((r.setting, r.family, r.kind, r.grid, r.start), {})[r.calls_asked] = r.frechet
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["setting", "family", "kind", "grid", "start", *CALLS])
        out.writerows([*key, *(f"{of[c]:.3e}" if c in of else "" for c in CALLS)] for key, of in lines.items())


def read_csv(path: Path) -> list[Row]:
    """The rows of a file, without their steps; calls are those asked for."""
    with path.open(newline="") as file:
        return [
            Row(of["setting"], of["family"], of["kind"], of["grid"], of["start"], c, 0, c, float(of[str(c)]))
            for of in csv.DictReader(file)
            for c in CALLS
            if of[str(c)]
        ]


def title(family: str, kind: str) -> str:
    """How a group is called."""
    return "stochastic ones without noise" if (family, kind) == ("stochastic", "flow") else family


def best(table: Sequence[Row], left: float) -> dict[tuple[str, str], tuple[str, str]]:
    """Of each (family, kind) the setting and grid with the least geometric mean over 10 to 100 calls.

    Without noise that of the distance from the exact start plus `left`, what the exact flow leaves: from the prior, an error may cancel the
    mismatch by accident. Noise forgets the mismatch, and how much of it is what one wants to see: the distance from the prior.
    """
    scores: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for r in table:
        start, more = ("marginal", left) if r.kind == "flow" else ("prior", 0.0)
        if r.start == start and 10 <= r.calls_asked <= 100 and math.isfinite(r.frechet):
            scores.setdefault((r.family, r.kind), {}).setdefault((r.setting, r.grid), []).append(math.log(r.frechet + more))
    full = {f: {k: sum(v) for k, v in of.items() if len(v) == 4} for f, of in scores.items()}
    return {f: min(of, key=lambda k, of=of: of[k]) for f, of in full.items() if of}


def markdown(table: Sequence[Row], start: str = "marginal", asked: Sequence[int] = (10, 20, 50)) -> str:
    """The least distance of each (family, kind) at these numbers of calls, and whose it is."""
    groups = sorted({(r.kind, r.family) for r in table}, key=lambda g: (g[0], [*TEXTS, g[1]].index(g[1])))
    lines = ["| | family | " + " | ".join(f"{c} calls" for c in asked) + " |", "|" + "---|" * (2 + len(asked))]
    for kind, f in groups:
        cells = []
        for c in asked:
            of = [r for r in table if (r.kind, r.family, r.start, r.calls_asked) == (kind, f, start, c) and math.isfinite(r.frechet)]
            least = min(of, key=lambda r: r.frechet) if of else None
            cells.append(f"{least.frechet:.1e} `{least.setting}`, {least.grid}" if least else "")
        lines.append(f"| {kind} | {title(f, kind)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(data: Spectrum, table: Sequence[Row], path: Path, start: str = "prior") -> None:
    """Solvers that draw no noise, and those that do: every setting and grid in grey, the best of each family in colour."""
    chosen = best(table, floor(data))
    lines: dict[tuple[str, str, str], list[Row]] = {}
    for r in table:
        if r.start == start:
            lines.setdefault((r.kind, r.setting, r.grid), []).append(r)
    first = [r.frechet for of in lines.values() for r in of if r.calls_asked == 5 and math.isfinite(r.frechet)]
    shown = [r.frechet for (_, kind), key in chosen.items() for r in lines[(kind, *key)]]
    limits = min(*shown, floor(data), floor(data, noise=True)) / 3, 10 * float(np.median(first))
    figure = Figure(figsize=(11.5, 5.2))
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("flow", "noise"), strict=True):
        for key, of in lines.items():
            if key[0] == kind:
                axes.plot([r.calls for r in of], [r.frechet for r in of], color="0.8", lw=0.4, zorder=1)
        of_kind = [(f, lines[(kind, *key)]) for (f, k), key in chosen.items() if k == kind]
        for n, (f, of) in enumerate(sorted(of_kind, key=lambda pair: pair[1][2].frechet)):  # equal lines: the upper is the thinner
            style = {
                "color": mpl.colormaps["tab10"]([*TEXTS, f].index(f)),
                "marker": "osv^D<>pPX"[n],
                "lw": 3.2 - 0.4 * n,
                "ms": 8 - 0.7 * n,
            }
            label = f"{title(f, kind)}: {of[0].setting}, {of[0].grid}"
            axes.plot([r.calls for r in of], [r.frechet for r in of], label=label, **style)
        for name, of_name, dashes in ("DDIM()", "flow", "--"), ("DDPM()", "noise", "-."):
            of = lines.get((of_name, name, "LogSNR"), [])
            axes.plot([r.calls for r in of], [r.frechet for r in of], color="black", ls=dashes, lw=1.3, label=f"{name}, LogSNR")
        axes.axhline(floor(data), color="black", ls=":", lw=1.3, label="the exact flow from N(0, I)")
        if kind == "noise":
            axes.axhline(floor(data, noise=True), color="black", ls=(0, (1, 4)), lw=1.3, label="the exact reverse SDE from N(0, I)")
        axes.set(xscale="log", yscale="log", ylim=limits, xlim=(2.8, 230), xlabel="network calls")
        axes.set_title("without noise" if kind == "flow" else "with noise", fontsize=10)
        axes.set_xticks(CALLS, [str(c) for c in CALLS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(-0.02, -0.13), frameon=False)
    figure.axes[0].set_ylabel("exact Frechet distance (W2 squared)")
    figure.suptitle(f"{data.name}: a Gaussian with its mean and covariance, {len(data.mean)} components", fontsize=11)
    figure.subplots_adjust(wspace=0.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    with Image.open(path) as full:  # 256 colours are enough, at half the size
        full.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="settings whose repr contains this text; writes nothing")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    began = time.perf_counter()
    chosen = [repr(s) for s in settings() if not given.only or any(text in repr(s) for text in given.only)]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        found = list(pool.imap(_work, chosen, chunksize=4))
    for of in found:
        if of.missing:
            print(of.said())
    print(f"{sum(bool(of.runs) for of in found)} of {len(found)} settings; interpolation error {interpolation_error(found):.1e}")
    for data in spectra():
        table = rows(data, found)
        left = f"the exact flow leaves {floor(data):.2e}, the exact reverse SDE {floor(data, noise=True):.2e}"
        print(f"\n{data.name}: from N(0, I) {left}; the solver's own error, from the exact marginal:\n")
        print(markdown(table))
        if not given.only:
            write_csv(table, ROOT / "docs" / "results" / f"exact_frechet_{data.name}.csv")
            picture(data, table, ROOT / "docs" / "img" / f"exact_frechet_{data.name}.png")
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
