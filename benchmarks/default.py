"""What decided the default: every rule and every published pair (solver, grid) on oracles and networks, at equal network calls.

    python benchmarks/default.py recommended OUT.csv  # the recommended rule on every problem: minutes
    python benchmarks/default.py run OUT.csv [--only ring8,ring5 wide] [--nfe 5,8] [--rules none|few|all|network]   # all pairs: hours
    python benchmarks/default.py ring8                # the recommended rule beside published code, with bootstrap intervals
    python benchmarks/default.py table OUT.csv ...    # docs/results/default*.csv, the picture, and the tables of docs/default.md

A problem is a model, start states at t_max and the converged flow at t_min. For each (solver, grid, calls): RMS error per coordinate over
the samples, the median and the 90th percentile of the per-sample RMS error, and the number of samples that ended elsewhere (flips).
The yardstick at each number of calls is the best of all published pairs there.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import default_page
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import sdediff
from sdediff import (
    DEIS,
    EDM,
    IPNDM,
    LMS,
    PNDM,
    Angle,
    AsinhLogSNR,
    DPMSolverMultistep,
    DPMSolverPPMultistep,
    Euler,
    ExponentialAdams,
    Fixed,
    Gaussian,
    Grid,
    Heun,
    Karras,
    LogSNR,
    Mixture,
    Model,
    Power,
    Quadratic,
    RungeKutta,
    SASolver,
    SciPy,
    Solver,
    Time,
    Uniform,
    UniPC,
    UserError,
    VPCosine,
    VPLinear,
    knots_for,
    latents,
    load_model,
    recommend,
    solve,
)  # fmt: skip
from sdediff.exponential import Multistep
from sdediff.names import label

FIELDS = ("problem", "role", "solver", "grid", "lower", "nfe", "calls", "rms", "median", "p90", "flips")
NFE = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SDEDIFF_DATA", ROOT.parent / "shared" / "data"))


class Problem(NamedTuple):
    """A model, states (n, ...) at its schedule's t_max, and where the flow takes them at t_min."""

    model: Model
    x: Tensor
    end: Tensor


def _oracle(model, n: int = 256) -> Problem:
    x = latents(model, n, seed=7, dtype=torch.float64)
    ends = LogSNR().knots(model.schedule, 1)
    return Problem(model, x, solve(SciPy("DOP853", 1e-11, 1e-11, Angle()), model, x, ends).x)


def _modes(d: int, k: int, spread: float, low: float, high: float, seed: int, schedule=None) -> Mixture:
    rng = np.random.default_rng(seed)
    means, stds = spread * rng.standard_normal((k, d)), np.exp(rng.uniform(np.log(low), np.log(high), k))
    return Mixture(means, stds, rng.dirichlet(3 * np.ones(k)), schedule=schedule or VPLinear())


def _ring8() -> Problem:
    file = np.load(SHARED.parent / "peers" / "ring8.npz")
    schedule = VPLinear(float(file["beta_min"]), float(file["beta_max"]))
    model = Mixture(file["means"], file["stds"][:, 0], file["weights"], schedule=schedule)
    return Problem(model, torch.as_tensor(file["x_T"]), torch.as_tensor(file["x_end"]))


def _digits_kde() -> Problem:
    from sdediff.data import digits

    images = digits().x.flatten(1).double()[::30]
    return _oracle(Mixture(images, [0.2] * len(images), [1.0] * len(images), schedule=VPLinear()), 64)


def _network(model, n: int, steps: int, device: str) -> Problem:
    """float32 (float64 is 17 times slower on a CPU); the flow by RK4 on many more steps than any rule takes."""
    model.net.to(device)
    x = latents(model, n, seed=7).to(device)
    return Problem(model, x, solve(RungeKutta("rk4", Angle()), model, x, AsinhLogSNR(-1.0, 2.0).knots(model.schedule, steps)).x)


def _digits_network(device: str) -> Problem:
    model = load_model(ROOT / "sdediff" / "pretrained" / "digits.safetensors")
    return _network(model, 64, 400, device)


def _mnist_network(device: str) -> Problem:
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    model = load_hot_vs_cold(SHARED / "weights" / "yichizz_ddpm_mnist_starter.pth")
    return _network(model, 12, 300, device)


ORACLES: dict[str, Callable[[], Problem]] = {
    "ring8": _ring8,
    "ring8 std .03": lambda: _oracle(Mixture(_circle(8, 1.5), [0.03] * 8, [1.0] * 8, schedule=VPLinear())),
    "ring5 wide": lambda: _oracle(Mixture(_circle(5, 0.7), [0.15, 0.2, 0.3, 0.2, 0.25], [1.0, 2, 3, 2, 1], schedule=VPLinear())),
    "2d 6 modes": lambda: _oracle(_modes(2, 6, 1.0, 0.05, 0.4, 1)),
    "2d std .01": lambda: _oracle(_modes(2, 4, 0.5, 0.01, 0.02, 2)),
    "gaussian 8d": lambda: _oracle(Gaussian(np.zeros(8), np.geomspace(1e-3, 2.0, 8), schedule=VPLinear())),
    "16d": lambda: _oracle(_modes(16, 6, 0.5, 0.1, 0.3, 3)),
    "64d": lambda: _oracle(_modes(64, 20, 0.7, 0.1, 0.4, 4), 128),
    "256d": lambda: _oracle(_modes(256, 10, 1.7, 0.3, 0.6, 5), 64),
    "digits kde": _digits_kde,
    "2d cosine": lambda: _oracle(_modes(2, 6, 1.0, 0.05, 0.4, 6, VPCosine())),
    "8d EDM": lambda: _oracle(_modes(8, 6, 0.5, 0.05, 0.2, 7, EDM())),
}
HELD_OUT: dict[str, Callable[[], Problem]] = {  # never looked at while the rule was chosen
    "held-out ring4": lambda: _oracle(Mixture(_circle(4, 1.2), [0.08] * 4, [1.0, 2, 3, 4], schedule=VPLinear())),
    "held-out 2d 10 modes": lambda: _oracle(_modes(2, 10, 0.9, 0.05, 0.2, 21)),
    "held-out 2d 7 modes": lambda: _oracle(_modes(2, 7, 1.2, 0.1, 0.5, 22)),
    "held-out 24d": lambda: _oracle(_modes(24, 8, 0.6, 0.1, 0.3, 23), 128),
}
NETWORKS: dict[str, Callable[[str], Problem]] = {"digits network": _digits_network, "mnist network": _mnist_network}


def _circle(k: int, radius: float) -> np.ndarray:
    angle = 2 * np.pi * np.arange(k) / k
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


GRIDS: tuple[Grid, ...] = (Uniform(), Quadratic(), LogSNR(), Karras())  # those that the peers were given


def published(which: str = "all") -> list[Solver]:
    """Published deterministic solvers, as published; "network" leaves out those that are never near the best there."""
    if which == "network":
        found = [Euler(), Heun(), DPMSolverMultistep(2), DPMSolverPPMultistep(2), DPMSolverPPMultistep(3), LMS(4), PNDM(4, "plms")]
        found += [UniPC(1, "bh2"), UniPC(2, "bh1"), UniPC(2, "bh2"), UniPC(3), UniPC(2, "bh2", "eps"), DEIS(2), DEIS(3), DEIS(3, "log_rho")]
        return [*found, IPNDM(2), IPNDM(3), IPNDM(4), ExponentialAdams(2, "flow", "fraction"), ExponentialAdams(3, "flow", "fraction")]
    found: list[Solver] = [Euler(), Euler(Time()), Heun(), RungeKutta("midpoint"), RungeKutta("rk4"), RungeKutta("rk4", Time())]
    found += [
        DPMSolverMultistep(2),
        DPMSolverMultistep(3),
        DPMSolverPPMultistep(2),
        DPMSolverPPMultistep(2, "heun"),
        DPMSolverPPMultistep(3),
    ]
    found += [UniPC(order, b, kind) for order in (1, 2, 3) for b in ("bh1", "bh2") for kind in ("x0", "eps")]
    found += [DEIS(order, axis) for order in (2, 3, 4) for axis in ("t", "rho", "log_rho")] + [LMS(4), SASolver(3, 4, 0.0)]
    found += [IPNDM(order) for order in (2, 3, 4)] + [IPNDM(4, variable=True), PNDM(4, "plms"), PNDM(4, "prk")]
    found += [ExponentialAdams(order, *pair) for order in (2, 3, 4) for pair in (("x0", "lam"), ("flow", "fraction"))]  # azula's
    for text in ("DPMSolver(order=2)", "DPMSolver(order=3)", "DPMSolverPP(order=2)", "DPMSolverPP(order=3)", "DPM2()"):
        try:
            found.append(sdediff.solvers.named(text))
        except UserError:
            print(f"without {text}", file=sys.stderr)
    return found


READINGS = (("x0", "lam"), ("x0", "angle"), ("x0", "fraction"), ("v", "angle"), ("v", "lam"), ("flow", "fraction"), ("flow", "lam"))


def rules(which: str) -> list[tuple[Solver, Grid, bool]]:
    """(solver, grid, lower order at the end) of the candidates; "network" are fewer, for a slow network."""
    grids = [Quadratic(), Power(3), LogSNR(), Karras(), *(AsinhLogSNR(c, w) for c in (-2.0, -1.0, 0.0, 1.0) for w in (1.0, 2.0, 4.0))]
    if which == "none":
        return []
    if which == "network":
        readings, grids = READINGS_OF_NETWORK, [g for g in grids if not isinstance(g, AsinhLogSNR) or (g.center, g.width) in CENTRAL]
        return [(ExponentialAdams(o, *pair, corrector=True), g, True) for o in (2, 3) for pair in readings for g in grids]
    solvers = [
        ExponentialAdams(o, *pair, corrector=c) for o in (2, 3, 4) for pair in READINGS for c in (False, True) if o < 4 or which == "all"
    ]
    return [(s, g, low) for s, g, low in itertools.product(solvers, grids, (False, True)) if low or which == "all"]


READINGS_OF_NETWORK = (("flow", "fraction"), ("flow", "lam"), ("x0", "lam"), ("v", "lam"))
CENTRAL = ((-1.0, 2.0), (0.0, 1.0), (0.0, 2.0), (1.0, 1.0), (1.0, 2.0))


def errors(problem: Problem, solver: Solver, grid: Grid, lower: bool, calls: int) -> dict | None:
    """One row, or None where not even one step fits."""
    try:
        knots = knots_for(problem.model.schedule, solver, grid, calls=calls)
    except UserError:
        return None
    return figures(problem, solver, Fixed(knots, lower))


def figures(problem: Problem, solver: Solver, knots: Fixed) -> dict:
    """The errors of one run, over its samples."""
    each = per_sample(problem, solver, knots)
    half = 0.5 * float(problem.end.std())
    return {"calls": solver.calls(knots), "rms": float(each.square().mean().sqrt()), "median": float(each.median()),
            "p90": float(each.quantile(0.9)), "flips": int((each > half).sum())}  # fmt: skip


def per_sample(problem: Problem, solver: Solver, knots: Fixed) -> Tensor:
    """RMS error of each sample, infinite where the run ended in NaN."""
    try:
        x = solve(solver, problem.model, problem.x, knots).x
    except sdediff.ModelError:
        return torch.full((len(problem.x),), math.inf, dtype=torch.float64)
    return (x - problem.end).square().flatten(1).mean(1).sqrt().cpu().double()


def problem_named(name: str, device: str = "cpu") -> Problem:
    return NETWORKS[name](device) if name in NETWORKS else (ORACLES | HELD_OUT)[name]()


def sweep(name: str, device: str, which: str, part: int, parts: int, nfe: Sequence[int] = NFE) -> list[dict]:
    """The rows of every parts-th pair of one problem, and of the recommended rule in the first part."""
    torch.set_num_threads(1)
    begun, problem = time.time(), problem_named(name, device)
    rows = []
    tasks = [("published", s, g, low) for s in published(which) for g in GRIDS
             for low in ((False, True) if which != "network" and _may_lower(s) else (False,))]  # fmt: skip
    tasks = [] if which == "recommended" else [*tasks, *(("rule", *r) for r in rules(which))][part::parts]
    for role, solver, grid, lower in tasks:
        for n in nfe:
            found = errors(problem, solver, grid, lower, n)
            if found:
                rows.append(
                    {"problem": name, "role": role, "solver": repr(solver), "grid": repr(grid), "lower": int(lower), "nfe": n, **found}
                )
    for n in nfe if part == 0 else ():
        solver, knots = recommend(problem.model.schedule, n)
        about = {"solver": repr(solver), "grid": "recommended", "lower": int(knots.lower_final), "nfe": n}
        rows.append({"problem": name, "role": "recommended", **about, **figures(problem, solver, knots)})
    print(f"{name} {part + 1}/{parts}: {len(rows)} rows, {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows


def _may_lower(solver: Solver) -> bool:
    return isinstance(solver, Multistep) and solver.order > 1 and not isinstance(solver, PNDM)


def run(out: str, only: str, device: str, workers: int, which: str, parts: int, nfe: Sequence[int]) -> None:
    """Measure and write a CSV; the rows of a finished part are on disk."""
    names = [n for n in (*NETWORKS, *ORACLES, *HELD_OUT) if not only or n in only.split(",")]
    tasks = [(n, device, which, part, parts, nfe) for n in names for part in range(parts)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool, open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for rows in pool.imap_unordered(_sweep, tasks, chunksize=1):
            writer.writerows({k: f"{v:.4e}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
            file.flush()


def _sweep(task: tuple) -> list[dict]:
    return sweep(*task)


def ring8(draws: int = 2000) -> list[dict]:
    """The recommended rule at each number of calls: errors, and their ratio to the best that published code reached there.

    The interval is of the median error over that of our best published pair, from paired draws of samples.
    """
    problem = _ring8()
    peers: Any = pd.read_csv(SHARED.parent / "peers" / "ring8_errors.csv").groupby("nfe")[["rms_error", "median_error"]].min()
    pairs = [(s, g, low) for s in published() for g in GRIDS for low in ((False, True) if _may_lower(s) else (False,))]
    rng, lines = np.random.default_rng(0), []
    for n in NFE:
        solver, knots = recommend(problem.model.schedule, n)
        ours, found = per_sample(problem, solver, knots).numpy(), figures(problem, solver, knots)
        best, rival = np.full(len(ours), np.inf), ""
        for s, g, low in pairs:
            try:
                other = per_sample(problem, s, Fixed(knots_for(problem.model.schedule, s, g, calls=n), low)).numpy()
            except UserError:
                continue
            if np.median(other) < np.median(best):
                best, rival = other, f"{label(s)} {g!r}"
        draw = rng.integers(0, len(ours), (draws, len(ours)))
        low, high = np.quantile(np.median(ours[draw], axis=1) / np.median(best[draw], axis=1), [0.025, 0.975])
        lines.append({"calls": n, "order": solver.order, "RMS": f"{found['rms']:.2e}", "median": f"{found['median']:.2e}",
                      "p90": f"{found['p90']:.2e}", "flips": found["flips"],
                      "RMS / best published": found["rms"] / peers.rms_error[n],
                      "median / best published": found["median"] / peers.median_error[n],
                      "median / our best published pair": f"{np.median(ours) / np.median(best):.2f} ({low:.2f} to {high:.2f})",
                      "that pair": f"`{rival}`"})  # fmt: skip
    ratios = {k: math.exp(np.mean([math.log(line[k]) for line in lines])) for k in lines[0] if k.endswith("best published")}
    return [*lines, {**dict.fromkeys(lines[0], ""), "calls": "geometric mean", **ratios}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "recommended", "ring8", "table"])
    parser.add_argument("files", nargs="*", help="run: the CSV to write; table: the CSVs to read")
    parser.add_argument("--only", default="", help="these problems, by name, with commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nfe", default=",".join(map(str, NFE)))
    parser.add_argument("--parts", type=int, default=1, help="split each problem, for many workers")
    parser.add_argument("--rules", default="few", choices=["few", "all", "network", "none"])
    args = parser.parse_args()
    if args.command == "ring8":
        print(default_page.markdown(ring8()))
    elif not args.files:
        parser.error("name the CSV to write, or the CSVs to read")
    elif args.command == "table":
        print(default_page.report(args.files, ROOT / "docs" / "results", ROOT / "docs" / "img"))
    else:
        which = args.rules if args.command == "run" else "recommended"
        run(args.files[0], args.only, args.device, args.workers, which, args.parts, [int(n) for n in args.nfe.split(",")])


if __name__ == "__main__":
    main()
