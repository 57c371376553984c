"""How far to trust `Solution.error`, the free error bound of a corrector: true error over bound, sample by sample, on closed-form oracles.

    python benchmarks/error_bound.py [--workers 2] [--only ring8,16d] [--all EVERY.csv]
    python benchmarks/error_bound.py --held-out | --causes

Problems: those of default.py (start states and the converged flow). For each corrector, grid and number of steps, over the samples: the
quantiles of true / bound, the fraction with true > bound, their rank correlation (Spearman), and how many of those beyond their bound have
left their mode (`flips`: further off than half the standard deviation of the data). True error and bound are both per sample, RMS per
coordinate. Each run ends with its last knot twice: the extra step, of length zero, takes one call more, corrects the last state and so
sees the last step; without it that step is in the result and not in the bound. Both are measured (`_twice`).

Writes docs/results/error_bound.csv (over the problems for each solver, over the solvers for each problem; --all keeps every cell) and
docs/img/error_bound.png, and prints the tables of docs/error_bound.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from default import ORACLES, Problem, _modes, _oracle
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import rankdata
from torch import Tensor

from sdediff import (
    EDM,
    Angle,
    AsinhLogSNR,
    ExponentialAdams,
    Grid,
    LogSNR,
    Quadratic,
    SASolver,
    SciPy,
    Solver,
    UniPC,
    VPCosine,
    march,
    solve,
)

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
STEPS = (8, 12, 20, 40, 80)
READINGS = (("x0", "lam"), ("v", "lam"), ("v", "angle"), ("flow", "lam"), ("flow", "fraction"))
CORRECTORS: dict[str, Solver] = {
    **{f"UniPC({p}, {kind})": UniPC(p, predicts=kind) for kind in ("x0", "eps") for p in (1, 2, 3)},
    **{f"Adams({p}, {kind}, {axis})": ExponentialAdams(p, kind, axis, corrector=True) for kind, axis in READINGS for p in (2, 3, 4)},
    "SASolver(3, 4)": SASolver(3, 4, tau=0.0),
}
GRIDS: dict[str, Grid] = {
    "LogSNR": LogSNR(),
    "AsinhLogSNR(1, 1)": AsinhLogSNR(1.0, 1.0),
    "AsinhLogSNR(0, 2)": AsinhLogSNR(0.0, 2.0),
    "Quadratic": Quadratic(),
}
HELD_OUT: dict[str, Callable[[], Problem]] = {  # the recipes of ORACLES, other seeds: no factor was chosen on them
    "2d 6 modes": lambda: _oracle(_modes(2, 6, 1.0, 0.05, 0.4, 101)),
    "2d std .01": lambda: _oracle(_modes(2, 4, 0.5, 0.01, 0.02, 102)),
    "16d": lambda: _oracle(_modes(16, 6, 0.5, 0.1, 0.3, 103)),
    "64d": lambda: _oracle(_modes(64, 20, 0.7, 0.1, 0.4, 104), 128),
    "256d": lambda: _oracle(_modes(256, 10, 1.7, 0.3, 0.6, 105), 64),
    "2d cosine": lambda: _oracle(_modes(2, 6, 1.0, 0.05, 0.4, 106, VPCosine())),
    "8d EDM": lambda: _oracle(_modes(8, 6, 0.5, 0.05, 0.2, 107, EDM())),
}
SAME = ("SASolver(3, 4)", "Adams(3, x0, lam)")  # as UniPC(3, x0)
SLOW_FIRST = ("digits kde", "64d", "256d", "2d cosine")


class Run(NamedTuple):
    """Per sample: true error and bound of a run, and both again with the last state corrected."""

    true: Tensor
    bound: Tensor
    true_twice: Tensor
    bound_twice: Tensor


class Cell(NamedTuple):
    """One solver on one grid on one problem; q: quantiles of true / bound; beyond: how many have true > bound, flips: of those."""

    problem: str
    solver: str
    grid: str
    steps: int
    over: float
    q05: float
    q50: float
    q95: float
    q99: float
    rank: float
    over_twice: float
    q50_twice: float
    q95_twice: float
    q99_twice: float
    beyond: int
    flips: int
    beyond_twice: int
    flips_twice: int


def rms(x: Tensor) -> Tensor:
    """Per sample, per coordinate; the unit of `Solution.error`."""
    return x.square().flatten(1).mean(1).sqrt()


def measure(problem: Problem, solver: Solver, grid: Grid, steps: int) -> Run:
    """One march gives both: the step of length zero moves nothing, it only corrects."""
    knots = tuple(grid.knots(problem.model.schedule, steps))
    run = solve(solver, problem.model, problem.x, (*knots, knots[-1]), error=True, path=True)
    assert run.error is not None
    assert run.path is not None
    before = run.path[-2]
    return Run(rms(before - problem.end), run.error - rms(run.x - before), rms(run.x - problem.end), run.error)


def cell(name: str, problem: Problem, solver: str, grid: str, steps: int) -> Cell:
    """All numbers of one setting."""
    run = measure(problem, CORRECTORS[solver], GRIDS[grid], steps)
    true, bound, true_twice, bound_twice = (v.cpu().double().numpy() for v in run)
    half = 0.5 * float(problem.end.std())
    q05, q50, q95, q99 = np.quantile(true / bound, (0.05, 0.5, 0.95, 0.99)).tolist()
    q50_twice, q95_twice, q99_twice = np.quantile(true_twice / bound_twice, (0.5, 0.95, 0.99)).tolist()
    over, over_twice = true > bound, true_twice > bound_twice
    return Cell(
        *(name, solver, grid, steps),
        *(float(over.mean()), q05, q50, q95, q99, float(np.corrcoef(rankdata(true), rankdata(bound))[0, 1])),
        *(float(over_twice.mean()), q50_twice, q95_twice, q99_twice),
        *(int(over.sum()), int((over & (true > half)).sum()), int(over_twice.sum()), int((over_twice & (true_twice > half)).sum())),
    )


def sweep(name: str, held_out: bool = False) -> list[Cell]:
    """All cells of one problem."""
    torch.set_num_threads(1)
    begun = time.time()
    try:
        problem = (HELD_OUT if held_out else ORACLES)[name]()
    except FileNotFoundError as missing:
        print(f"without {name}: {missing}", file=sys.stderr, flush=True)
        return []
    cells = [cell(name, problem, *setting) for setting in itertools.product(CORRECTORS, GRIDS, STEPS)]
    print(f"{name}: {len(cells)} cells, {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
    return cells


def summary(cells: Sequence[Cell]) -> list[dict]:
    """One row a (solver, grid, steps) over the problems, and one a (problem, grid, steps) over the solvers.

    held95, held99: how many of the `cells` have at least so many of their samples within the bound; `worst_` is the worst cell, the rest
    are medians over the cells, and sums for the counts.
    """
    rows = []
    for one, other in (("solver", "problem"), ("problem", "solver")):
        for name, grid, steps in dict.fromkeys((getattr(c, one), c.grid, c.steps) for c in cells):
            these = [c for c in cells if (getattr(c, one), c.grid, c.steps) == (name, grid, steps)]
            worst = max(these, key=lambda c: (c.over, c.q95))
            row = {one: name, other: "every", "grid": grid, "steps": steps, "cells": len(these)}
            for end in ("", "_twice"):
                over = np.array([getattr(c, "over" + end) for c in these])
                row |= {
                    "held95" + end: int((over <= 0.05).sum()),
                    "held99" + end: int((over <= 0.01).sum()),
                    "worst_over" + end: over.max(),
                }
                row |= {"worst_" + q: max(getattr(c, q) for c in these) for q in ("q95" + end, "q99" + end)}
            row |= {f: float(np.median([getattr(c, f) for c in these])) for f in ("q05", "q50", "q95", "q99", "rank", "q50_twice")}
            rows.append(
                row | {f: sum(getattr(c, f) for c in these) for f in ("beyond_twice", "flips_twice")} | {"worst": getattr(worst, other)}
            )
    return rows


def write(rows: Sequence[dict], path: Path) -> None:
    """A CSV of these rows, floats to two digits."""
    names = sorted(rows[0], key=lambda f: ("problem", "solver", "grid", "steps", *rows[0]).index(f))
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, names, lineterminator="\n")
        out.writeheader()
        out.writerows({k: f"{v:.2g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def holds_from(cells: Sequence[Cell], solver: str, grid: str, share: float, over: Callable[[Cell], float]) -> int | None:
    """The least number of steps from which on, on every problem, at most `share` of the samples are beyond the bound."""
    found = None
    for steps in sorted({c.steps for c in cells}, reverse=True):
        if any(over(c) > share for c in cells if (c.solver, c.grid, c.steps) == (solver, grid, steps)):
            break
        found = steps
    return found


def table(cells: Sequence[Cell]) -> str:
    """In Markdown: for each solver and grid, from how many steps the bound holds for 95 % / 99 % on every problem, plain and twice."""
    grids = list(dict.fromkeys(c.grid for c in cells))
    lines = ["| solver | " + " | ".join(grids) + " | bound / true at 20 | at 40 |", "|---" * (len(grids) + 3) + "|"]
    for solver in dict.fromkeys(c.solver for c in cells):
        entries = []
        for grid in grids:
            plain = [holds_from(cells, solver, grid, share, lambda c: c.over) for share in (0.05, 0.01)]
            twice = [holds_from(cells, solver, grid, share, lambda c: c.over_twice) for share in (0.05, 0.01)]
            entries.append("; ".join(" / ".join("no" if n is None else str(n) for n in pair) for pair in (plain, twice)))
        loose = [[1 / c.q50 for c in cells if c.solver == solver and c.steps == n] for n in (20, 40)]
        lines.append(f"| {solver} | " + " | ".join([*entries, *(f"{np.median(v):.0f}" if v else "" for v in loose)]) + " |")
    return "\n".join(lines)


def factors(cells: Sequence[Cell]) -> str:
    """In Markdown: what times the bound holds for 95 % (99 %) of the samples in 95 %, 99 % and all of the cells; last knot twice.

    Without the quadratic grid, whose last step is too long, and with each method once.
    """
    cells = [c for c in cells if c.grid != "Quadratic" and c.solver not in SAME]
    lines = ["| reading | steps | 95 % of samples: in 95 / 99 / 100 % of settings | 99 % of samples | settings |", "|---" * 5 + "|"]
    for reading, steps in itertools.product(("x0", "others"), STEPS):
        these = [c for c in cells if c.steps == steps and (", x0" in c.solver) == (reading == "x0")]
        if these:
            found = [np.quantile([getattr(c, q) for c in these], (0.95, 0.99, 1)) for q in ("q95_twice", "q99_twice")]
            lines.append(f"| {reading} | {steps} | " + " | ".join(" / ".join(f"{v:.2g}" for v in q) for q in found) + f" | {len(these)} |")
    return "\n".join(lines)


class Causes(NamedTuple):
    """Medians over the samples: true error left by the first step and by the last alone, over all of it; and the flow's stretch.

    beyond: samples beyond their bound (last knot twice) with any of SHOWN; stretch_beyond: of those, the median.
    """

    first: float
    last: float
    stretch: float
    beyond: int
    stretch_beyond: float


def causes(problem: Problem, grid: Grid, steps: int) -> Causes:
    """Where the error comes from, with the exact flow for the rest of the way; stretch: of small random changes at the start."""
    model, x, end = problem
    knots = tuple(grid.knots(model.schedule, steps))
    flow = SciPy("DOP853", 1e-9, 1e-9, Angle())
    first, last, beyond = [], [], torch.zeros(len(x), dtype=torch.bool)
    for solver in (CORRECTORS[s] for s in SHOWN):
        with torch.no_grad():
            frames = list(march(solver, model, x, knots))
        true = rms(frames[-1].x - end)
        after, before = frames[2].memory.x, frames[-1].memory.x  # corrected states: after the first step, before the last
        first.append(rms(solve(flow, model, after, (knots[1], knots[-1])).x - end) / true)
        last.append(rms(solve(flow, model, before, knots[-2:]).x - frames[-1].x) / true)
        run = measure(problem, solver, grid, steps)
        beyond |= run.true_twice > run.bound_twice
    change = 1e-4 * torch.randn((4, *x.shape), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    moved = [rms(solve(flow, model, x + d, (knots[0], knots[-1])).x - end) / rms(d) for d in change]
    stretch = torch.stack(moved).amax(0)
    parts = float(torch.cat(first).median()), float(torch.cat(last).median())
    return Causes(*parts, float(stretch.median()), int(beyond.sum()), float(stretch[beyond].median()))


def explain(name: str) -> str:
    """`causes` of one problem at 20 steps, in Markdown."""
    torch.set_num_threads(1)
    problem = ORACLES[name]()
    return "\n".join(
        f"| {name} | {grid} | {c.first:.1%} | {c.last:.0%} | {c.beyond} of {len(problem.x)} | {c.stretch_beyond / c.stretch:.1f} |"
        for grid, c in ((g, causes(problem, GRIDS[g], 20)) for g in GRIDS)
    )


SHOWN = ("UniPC(3, x0)", "UniPC(3, eps)", "Adams(3, v, lam)", "Adams(3, flow, fraction)")


def draw(cells: Sequence[Cell], path: Path) -> None:
    """The 95 % quantile of true / bound against steps: a row a solver, a column a grid, a thin line a problem."""
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    panels = figure.subplots(len(SHOWN), len(GRIDS), sharex=True, sharey=True)
    problems = list(dict.fromkeys(c.problem for c in cells))
    found = {(c.problem, c.solver, c.grid, c.steps): c for c in cells}
    named = {"8d EDM": "#b2182b", "2d std .01": "#ef8a62", "2d cosine": "#5e3c99"}
    for (i, solver), (j, grid) in itertools.product(enumerate(SHOWN), enumerate(GRIDS)):
        axes = panels[i, j]
        lines = {p: [found[p, solver, grid, n].q95 for n in STEPS] for p in problems}
        for p, line in lines.items():
            axes.loglog(STEPS, line, color=named.get(p, "0.72"), lw=1.2 if p in named else 0.8, label=p if p in named else None)
        worst = [max(found[p, solver, grid, n].q95_twice for p in problems) for n in STEPS]
        axes.loglog(STEPS, worst, color="#2166ac", ls="--", lw=1.6, label="worst problem, last knot twice")
        axes.loglog(STEPS, np.median(list(lines.values()), 0), color="black", lw=2.6, label="median of the problems")
        axes.axhspan(1, 1e4, color="#b2182b", alpha=0.06, lw=0)
        axes.axhline(1, color="#b2182b", lw=1)
        axes.grid(visible=True, which="major", color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
        if i == len(SHOWN) - 1:
            axes.set_xlabel("steps", fontsize=9)
        if i == 0:
            axes.set_title(grid, fontsize=11)
        if j == 0:
            axes.set_ylabel(solver, fontsize=10)
    panels[0, 0].set(xticks=STEPS, xticklabels=STEPS, ylim=(0.008, 200), xlim=(STEPS[0] * 0.95, STEPS[-1] * 1.05))
    panels[0, 0].minorticks_off()
    panels[0, 0].set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    figure.suptitle("True error over bound, 95 % quantile over the samples (above 1: the bound fails for more than 5 %)", fontsize=12)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    others = Line2D([], [], color="0.72", lw=0.8)
    figure.legend([*handles, others], [*labels, "each other problem"], loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.savefig(path, dpi=75, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="problems; then only the table is printed")
    parser.add_argument("--causes", action="store_true", help="print where the error comes from, problem by problem, and no more")
    parser.add_argument("--held-out", action="store_true", help="mixtures of other seeds; then only the tables are printed")
    parser.add_argument("--all", type=Path, help="write every cell to this CSV")
    args = parser.parse_args()
    names = [n for n in (*SLOW_FIRST, *(n for n in ORACLES if n not in SLOW_FIRST)) if not args.only or n in args.only.split(",")]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        if args.causes:
            print("| problem | grid | first step | last step | beyond | their stretch |", "|---" * 6 + "|", sep="\n")
            print(*pool.imap(explain, names), sep="\n")
            return
        if args.held_out:
            names = [n for n in names if n in HELD_OUT]
        parts = pool.starmap(sweep, [(n, args.held_out) for n in names], chunksize=1)
    order = list(ORACLES)
    cells = sorted((c for part in parts for c in part), key=lambda c: order.index(c.problem))
    if args.all:
        write([c._asdict() for c in cells], args.all)
    if not args.only and not args.held_out:
        write(summary(cells), ROOT / "docs" / "results" / "error_bound.csv")
        draw(cells, ROOT / "docs" / "img" / "error_bound.png")
    print(table(cells), factors(cells), sep="\n\n")


if __name__ == "__main__":
    main()
