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
from collections.abc import Iterator, Sequence
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
from settings import family, of_steps, settings

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


def within(solver: Solver, grid: Grid, calls: int) -> tuple[Knot, ...] | None:
    """The finest knots on which the solver makes at most this many calls; None if there are none."""
    for n in range(calls, 0, -1):
        knots = grid.knots(SCHEDULE, n)
        if solver.calls(knots) <= calls:
            return knots
    return None


def runs(solver: Solver) -> Iterator[Run]:
    """All grids and call counts. Raises `NotLinear` or `UserError` where the solver has no linear response."""
    variances = np.concatenate([nodes(), digits_spectrum().variance])
    model = Gaussian(np.ones(len(variances)), variances, schedule=SCHEDULE)
    for name, grid in GRIDS.items():
        before = 0
        for asked in CALLS:
            knots = within(solver, grid, asked)
            if knots is None or len(knots) == before:
                continue
            before = len(knots)
            *_, last = responses(of_steps(solver, len(knots) - 1), model, knots)
            parts = last.zero.numpy(), last.start[0].numpy(), (last.draws**2).sum(0).numpy()
            yield Run(name, asked, len(knots) - 1, solver.calls(knots), *parts)


def _work(text: str) -> tuple[str, list[Run], str]:
    torch.set_num_threads(1)
    found: list[Run] = []
    try:
        found.extend(runs(named(text)))
    except (NotLinear, UserError) as why:
        return text, found, str(why)
    return text, found, ""


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


def floor(data: Spectrum) -> float:
    """What the exact probability flow leaves of the mismatch of the prior."""
    ratio = np.sqrt((LAST.alpha**2 * data.variance + LAST.sigma**2) / (FIRST.alpha**2 * data.variance + FIRST.sigma**2))
    return frechet(data, LAST.alpha - ratio * FIRST.alpha, ratio, np.zeros_like(ratio), False)


class Row(NamedTuple):
    """One distance. start: "prior" or "marginal"; calls: those made, at most `calls_asked`."""

    setting: str
    family: str
    grid: str
    start: str
    calls_asked: int
    steps: int
    calls: int
    frechet: float


def rows(data: Spectrum, found: Sequence[tuple[str, list[Run], str]]) -> list[Row]:
    """All distances of a data set."""
    table = []
    for text, of, _ in found:
        solver = named(text)
        for run in of:
            parts = [interpolated(part[:NODES], data.variance) for part in (run.mean, run.start, run.noise)]
            for start in ("prior", "marginal"):
                value = frechet(data, *parts, exact_start=start == "marginal")
                table.append(Row(short(text), family(solver), run.grid, start, run.asked, run.steps, run.calls, value))
    return table


def interpolation_error(found: Sequence[tuple[str, list[Run], str]]) -> float:
    """The largest difference of a response by interpolation and by marching, at the digits' variances, relative to the largest response."""
    worst = 0.0
    for _, of, _ in found:
        for run in of:
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
        lines.setdefault((r.setting, r.family, r.grid, r.start), {})[r.calls_asked] = r.frechet
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["setting", "family", "grid", "start", *CALLS])
        out.writerows([*key, *(f"{of[c]:.4e}" if c in of else "" for c in CALLS)] for key, of in lines.items())


def best(table: Sequence[Row], start: str) -> dict[str, tuple[str, str]]:
    """Of each family the setting and grid with the least geometric mean over 10 to 100 calls."""
    scores: dict[str, dict[tuple[str, str], list[float]]] = {}
    for r in table:
        if r.start == start and 10 <= r.calls_asked <= 100 and math.isfinite(r.frechet):
            scores.setdefault(r.family, {}).setdefault((r.setting, r.grid), []).append(math.log(r.frechet))
    full = {f: {k: sum(v) for k, v in of.items() if len(v) == 4} for f, of in scores.items()}
    return {f: min(of, key=lambda k, of=of: of[k]) for f, of in full.items() if of}


def picture(data: Spectrum, table: Sequence[Row], path: Path, start: str = "prior") -> None:
    """Every setting on every grid in grey, the best of each family in colour, and what an exact flow leaves."""
    table = [r for r in table if r.start == start]
    lines: dict[tuple[str, str], list[Row]] = {}
    for r in table:
        lines.setdefault((r.setting, r.grid), []).append(r)
    first = [r.frechet for r in table if r.calls_asked == 5 and math.isfinite(r.frechet)]
    top, bottom = 10 * float(np.median(first)), floor(data) / 300
    figure = Figure(figsize=(8.5, 4.6))
    axes = figure.add_subplot()
    for of in lines.values():
        axes.plot([r.calls for r in of], [r.frechet for r in of], color="0.85", lw=0.6, zorder=1)
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    chosen = sorted(best(table, start).items(), key=lambda kv: lines[kv[1]][2].frechet)
    for (title, key), colour, marker in zip(chosen, colours, "osv^D<>pPX", strict=False):
        of = lines[key]
        label = f"{title}:\n{key[0]}, {key[1]}"
        axes.plot([r.calls for r in of], [r.frechet for r in of], color=colour, marker=marker, ms=4.5, lw=1.6, label=label)
    reference = lines.get(("DDIM()", "LogSNR"))
    if reference:
        axes.plot([r.calls for r in reference], [r.frechet for r in reference], color="black", ls="--", lw=1.3, label="DDIM(), LogSNR")
    axes.axhline(floor(data), color="0.4", ls=":", lw=1.2, label="exact flow from N(0, I)")
    axes.set(
        xscale="log", yscale="log", ylim=(bottom, top), xlim=(4, 230), xlabel="network calls", ylabel="exact Frechet distance, W2 squared"
    )
    axes.set_title(f"{data.name}: a Gaussian with its mean and covariance ({len(data.mean)} components)", fontsize=10)
    axes.set_xticks(CALLS, [str(c) for c in CALLS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="settings whose repr contains this text; writes nothing")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    began = time.perf_counter()
    chosen = [repr(s) for s in settings() if not given.only or any(text in repr(s) for text in given.only)]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        found = list(pool.imap(_work, chosen, chunksize=4))
    for text, of, why in found:
        if why:
            print(f"{'in part' if of else 'not applicable'}: {short(text)}: {why}")
    print(f"{sum(bool(of) for _, of, _ in found)} of {len(found)} settings; interpolation error {interpolation_error(found):.1e}")
    for data in spectra():
        table = rows(data, found)
        print(f"{data.name}: exact flow from N(0, I) leaves {floor(data):.3e}")
        for title, (setting, grid) in best(table, "prior").items():
            of = [r for r in table if (r.setting, r.grid, r.start) == (setting, grid, "prior")]
            print(f"  {title}: {setting} {grid}: {'  '.join(f'{r.calls}: {r.frechet:.3g}' for r in of)}")
        if not given.only:
            write_csv(table, ROOT / "docs" / "results" / f"exact_frechet_{data.name}.csv")
            picture(data, table, ROOT / "docs" / "img" / f"exact_frechet_{data.name}.png")
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
