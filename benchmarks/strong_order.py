"""Strong error against step and calls, for every SDE solver that promises a strong order:

python benchmarks/strong_order.py

All defaults of `sdediff.solvers.SOLVERS` and the settings in MORE, on the "parting" problem of the certificates: two modes part, and the
drift bends most against the noise there. Every step count of a solver sees the same Brownian path (and, for strong order 1.5, the same
space-time integrals) on its clock; the error is the RMS distance over all paths to its own run of FINE steps. The slope is that of the
line through the errors of the last four step counts. Prints a table, writes docs/img/strong_order.png and docs/results/strong_order.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from certificates import PARTING, Remembered, knots, rms, starts, target
from matplotlib.figure import Figure
from torch import Tensor

from sdediff import Brownian, Solver, solve
from sdediff.solvers import SOLVERS, named

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
COUNTS, FINE, FITTED, SAMPLES = (4, 8, 16, 32, 64, 128), 1024, 4, 1024
MORE = (
    "DDIM(eta=1.0)",
    "DDIM(eta=0.5)",
    "EulerMaruyama(eta=0.5)",
    "ExponentialAdams(order=2, tau=1.0)",
    "ExponentialAdams(order=2, corrector=True, tau=1.0)",
    "SDEDPMSolverPP(order=1)",
    "SEEDS(order=1)",
    "SEEDS(order=2)",
    "SEEDS(order=3, predicts='x0')",
    "ERSDE(order=3, noise_scale='sde', corrected=True)",
    "SRA1(eta=0.5)",
    "ShARK(eta=0.5)",
)


@dataclass(frozen=True)
class Curve:
    """What was measured of one solver: errors at COUNTS, with steps of this length in lam and these calls; the slope."""

    solver: Solver
    steps: tuple[float, ...]
    calls: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        return float(np.polyfit(np.log2(self.steps[-FITTED:]), np.log2(self.errors[-FITTED:]), 1)[0])

    @property
    def label(self) -> str:
        return short(self.solver)


def short(solver: Solver) -> str:
    """The repr, less what is the default."""
    made = type(solver)()
    kept = [f"{k}={v!r}" for k, v in vars(solver).items() if v != vars(made)[k]]
    return f"{type(solver).__name__}({', '.join(kept)})"


def solvers() -> list[Solver]:
    """Those with a strong order, each once."""
    every = [*(made() for made in SOLVERS), *map(named, MORE)]
    return [s for s in dict.fromkeys(every) if s.facts.strong is not None]


@cache
def path(clock: str) -> tuple[Remembered, Tensor]:
    """One Brownian path on this clock for each of the starts, and the starts."""
    x = starts("parting", PARTING, SAMPLES)
    low, high = sorted(k.clock(clock) for k in knots("LogSNR", 1, PARTING))
    return Remembered(Brownian(3, (low, high)).on(x)), x


def measure(solver: Solver) -> Curve:
    """The errors of one solver."""
    noise, x = path(solver.facts.clock)
    grids = [knots("LogSNR", n, PARTING) for n in (*COUNTS, FINE)]
    *runs, fine = [solve(solver, target("parting"), x, grid, noise=noise).x for grid in grids]
    length = grids[0][-1].lam - grids[0][0].lam
    return Curve(
        solver, tuple(length / n for n in COUNTS), tuple(solver.calls(g) for g in grids[:-1]), tuple(rms(run - fine) for run in runs)
    )


def write(curves: Iterable[Curve], path: Path) -> None:
    """One row a solver and step count."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["solver", "clock", "promised", "slope", "steps", "step", "calls", "error"])
        for c in curves:
            head = [c.label, c.solver.facts.clock, c.solver.facts.strong, f"{c.slope:.3f}"]
            rows.writerows([*head, n, f"{h:.6g}", k, f"{e:.6g}"] for n, h, k, e in zip(COUNTS, c.steps, c.calls, c.errors, strict=True))


def draw(curves: list[Curve], path: Path) -> None:
    """Error against step and against calls; methods of order 1.5 thick, the rest thin, in the order of their error."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ranked = sorted(curves, key=lambda c: -c.errors[-1])
    thin = [c for c in ranked if c.solver.facts.strong == 1]
    colours = dict(zip(thin, mpl.colormaps["viridis"](np.linspace(0, 0.92, len(thin))), strict=True))
    reds = iter(("#b2182b", "#ef6548", "#7a0177", "#f768a1"))
    for i, c in enumerate(ranked):
        thick = c not in colours
        style = {"color": next(reds) if thick else colours[c], "lw": 2.2 if thick else 1.0, "marker": "os^Dv*Px"[i % 8], "ms": 4}
        left.loglog(c.steps, c.errors, label=f"{c.label}: {c.slope:.2f}", **style)
        right.loglog(c.calls, c.errors, **style)
    ends = np.array([curves[0].steps[0], curves[0].steps[-1]])
    for p, at in ((1, 0.35), (1.5, 0.025)):
        line = at * (ends / ends[0]) ** p
        left.loglog(ends, line, color="0.6", ls="--", lw=1)
        left.text(ends[1], line[1], f"slope {p} ", ha="right", va="center", color="0.4", fontsize=8)
    left.set(xlabel="step in lam", ylabel="strong error (RMS)", xlim=(ends[1] / 2.6, ends[0] * 1.15))
    right.set(xlabel="network calls")
    for axes in (left, right):
        axes.grid(visible=True, which="major", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7.5, title="solver: measured slope", title_fontsize=8, frameon=False)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Measure all, print as it goes, write the table and the picture."""
    torch.set_num_threads(1)
    curves = []
    print(f"{'solver':58} promised  slope  error at {COUNTS[-1]} steps  calls")
    for solver in solvers():
        c = measure(solver)
        curves.append(c)
        print(f"{c.label:58} {solver.facts.strong:8g}  {c.slope:5.2f}  {c.errors[-1]:18.1e}  {c.calls[-1]:5}", flush=True)
    write(curves, ROOT / "docs" / "results" / "strong_order.csv")
    draw(curves, ROOT / "docs" / "img" / "strong_order.png")


if __name__ == "__main__":
    main()
