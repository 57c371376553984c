"""How well adaptive methods keep their word: the error at the end over the tolerance, sample by sample; and what it costs.

    python benchmarks/calibration.py                  # all: the CSVs, the picture, and prints the tables; 5 minutes of one core
    python benchmarks/calibration.py --only ring8,16d # print these problems alone, write nothing
    python benchmarks/calibration.py --tables         # the tables and the picture from the CSVs
    python benchmarks/calibration.py --tables --page docs/calibration.md   # and write them between the marks of that page

`PID(atol=tol)` promises an error of about tol at the end, per component (root mean square over a sample). Each problem is a model, latents
and the converged flow (those of default.py, other schedules, and networks). The constants of sdediff/adaptive.py were fixed on two of them
(`FIXED_ON`); the others report. Asked is a median over the samples of error / tolerance within `ASKED`. Networks are judged down to
`FLOORS` times the floor that `time_roughness` states (with 200 calls). docs/results/calibration.csv has a line for each problem, method
and tolerance.

Against fixed grids: our errors interpolated (logarithms) at 20, 30 and 45 calls on average, over the least of all published pairs there:
53 implementations on ring8 (../shared/peers), our replicas elsewhere (docs/results/default.csv, same latents and same flow; 80 pairs run
here on the problems that are not in it). docs/results/calibration_published.csv.

Causes, of the cells that miss: each step's own error, and what the exact flow makes of it by the end. docs/results/calibration_causes.csv.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import default
import numpy as np
import pandas as pd
import torch
from default_page import markdown
from matplotlib.figure import Figure
from torch import Tensor

from sdediff import (
    PID,
    VE,
    AdaptiveAdams,
    Angle,
    EmbeddedExponential,
    EmbeddedRungeKutta,
    FlowMatching,
    Knot,
    Mixture,
    Model,
    ModelError,
    SciPy,
    Solution,
    Solver,
    Time,
    TorchDiffEq,
    UserError,
    latents,
    load_model,
    march,
    smooth_time,
    solve,
    time_roughness,
)
from sdediff.combine import Linear
from sdediff.names import label

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "docs" / "results", ROOT / "docs" / "img" / "calibration.png"
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ASKED = (1 / 3, 3.0)
FIXED_ON = ("ring8", "16d")  # what the constants of sdediff/adaptive.py were fixed on
FLOORS = 3  # networks are judged down to so many times their floor
MOST = 500  # calls of a sample
OURS = "AdaptiveAdams()"
PAIRS: tuple[Solver, ...] = (
    *(EmbeddedRungeKutta(p) for p in ("bosh3", "dopri5", "tsit5")),
    *(EmbeddedExponential(p) for p in ("ho3", "krogstad")),
)
Problem = default.Problem
Runner = Callable[[Problem, float], Solution]
Table = Any  # a pandas table: its stubs do not know columns by name


# --- problems -----------------------------------------------------------------------------------------------------


def ends(model: Model) -> tuple[Knot, Knot]:
    """The first and the last knot of a run."""
    return model.schedule.knot(model.schedule.t_max), model.schedule.knot(model.schedule.t_min)


def _oracle(model, n: int = 256) -> Problem:
    """As default.py's, from t_max to t_min also where lam is infinite there."""
    x = latents(model, n, seed=7, dtype=torch.float64)
    return Problem(model, x, solve(SciPy("DOP853", 1e-11, 1e-11, Angle()), model, x, ends(model)).x)


def _small_modes(d: int, seed: int, schedule) -> Mixture:
    """Six modes of standard deviations 0.05 to 0.4."""
    rng = np.random.default_rng(seed)
    means, stds = 0.7 * rng.standard_normal((6, d)), np.exp(rng.uniform(np.log(0.05), np.log(0.4), 6))
    return Mixture(means, stds, rng.dirichlet(3 * np.ones(6)), schedule=schedule)


def _digits_network() -> Problem:
    """In float64."""
    model: Any = load_model(ROOT / "sdediff" / "pretrained" / "digits.safetensors")
    model.net.double()
    x = latents(model, 32, seed=7, dtype=torch.float64)
    return Problem(model, x, solve(SciPy("DOP853", 1e-9, 1e-9, Angle()), model, x, ends(model)).x)


def _smoothed_mnist_network(n: int = 6) -> Problem:
    """In float32; the flow in float64, by our own method at a tolerance far below those that are judged."""
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    path = default.SHARED / "weights" / "yichizz_ddpm_mnist_starter.pth"
    model, exact = smooth_time(load_hot_vs_cold(path)), cast(Any, smooth_time(load_hot_vs_cold(path)))
    exact.net.double()
    x = latents(model, n, seed=7)
    return Problem(model, x, solve(AdaptiveAdams(), exact, x.double(), PID(atol=1e-6)).x)


ORACLES: dict[str, Callable[[], Problem]] = {
    **{name: lambda name=name: default.problem_named(name) for name in default.ORACLES if name != "256d"},
    "2d flow matching": lambda: _oracle(_small_modes(2, 8, FlowMatching())),
    "8d VE": lambda: _oracle(_small_modes(8, 9, VE())),
}
NETWORKS: dict[str, Callable[[], Problem]] = {
    "digits network": _digits_network,
    "mnist network": lambda: default.problem_named("mnist network"),
    "smoothed mnist network": _smoothed_mnist_network,
}


def problems(only: Sequence[str] = ()) -> Iterator[tuple[str, Problem]]:
    """Each problem with its name; one whose files are not here is left out, and said so."""
    for name, make in (ORACLES | NETWORKS).items():
        if only and name not in only:
            continue
        try:
            yield name, make()
        except (FileNotFoundError, UserError) as missing:
            print(f"without {name}: {missing}", file=sys.stderr, flush=True)


# --- measuring ----------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """An adaptive sampler as a function of the tolerance. family: ours, pair (also under our control) or peer (as shipped)."""

    family: str
    name: str
    run: Runner


def _ours(family: str, name: str, solver: Solver) -> Method:
    return Method(family, name, lambda p, tol: solve(solver, p.model, p.x, PID(atol=tol, most_calls=MOST)))


def methods() -> list[Method]:
    """Ours first. The peers have one error norm for the whole batch, and their tolerance is of a step."""
    return [
        _ours("ours", OURS, AdaptiveAdams()),
        *(_ours("pair", f"{type(s).__name__}({s.pair!r})", s) for s in PAIRS),  # type: ignore[attr-defined]
        Method("peer", "torchdiffeq dopri5", lambda p, tol: solve(TorchDiffEq("dopri5", tol, tol, Time()), p.model, p.x, ends(p.model))),
        Method("peer", "SciPy RK45", lambda p, tol: solve(SciPy("RK45", tol, tol, Time()), p.model, p.x, ends(p.model))),
    ]


def rms(x: Tensor) -> np.ndarray:
    """Of each sample, per component."""
    return x.double().square().flatten(1).mean(1).sqrt().cpu().numpy()


def taken(run: Solution) -> np.ndarray:
    """The steps that each sample took."""
    return (np.diff(np.array([k.time for k in run.knots]), axis=0) != 0).sum(0)


def measure(problem: Problem, method: Method, tol: float) -> dict[str, Any]:
    """One run: error / tolerance, calls and rejections, and error / `Solution.error`, over the samples.

    beyond 10: the share of samples off by more than 10 tolerances; flips: how many ended in another mode, or off by half the standard
    deviation of the data.
    """
    run = method.run(problem, tol)
    error = rms(run.x - problem.end)
    assert run.each is not None
    low, middle, high = np.full(3, np.nan) if run.error is None else np.quantile(error / run.error.numpy(), (0.05, 0.5, 0.95))
    refused = np.nan
    if method.family != "peer":
        refused = np.sum(run.rejected) / (np.sum(run.rejected) + np.sum(taken(run)))
    return {
        "median": np.median(error) / tol, "rms": np.sqrt(np.mean(error**2)) / tol,
        "q95": np.quantile(error, 0.95) / tol, "max": np.max(error) / tol,
        "calls": np.mean(run.each), "calls q95": np.quantile(run.each, 0.95), "calls max": np.max(run.each), "rejected": refused,
        "beyond 10": np.mean(error > 10 * tol), "flips": int(np.sum(error > 0.5 * float(problem.end.std()))),
        "of estimate q05": low, "of estimate": middle, "of estimate q95": high, "reached": int(run.reached),
    }  # fmt: skip


def sweep(name: str, problem: Problem, which: Sequence[Method], tolerances: Sequence[float] = TOLERANCES) -> Iterator[dict[str, Any]]:
    """All cells of one problem. On the MNIST networks only those that are judged, and of the pairs none: a call is dear there."""
    network, dear = name in NETWORKS, "mnist" in name
    rough = time_roughness(problem.model, problem.x[:4]) if network else None
    for method in which:
        if dear and method.family == "pair":
            continue
        for tol in tolerances:
            about = {"problem": name, "method": method.name, "family": method.family, "tolerance": tol, "samples": len(problem.x)}
            try:
                found = measure(problem, method, tol)
            except (UserError, ModelError) as wrong:
                print(f"{name}, {method.name}, {tol:.0e}: {wrong}", file=sys.stderr, flush=True)
                continue
            floor = rough.floor if rough else 0.0
            judged = tol >= FLOORS * floor
            yield {**about, "judged": int(judged), "floor": floor, **found}
            if dear and not judged:
                break


# --- against fixed grids ------------------------------------------------------------------------------------------

AT = (20, 30, 45)
ASKED_OF_PUBLISHED = {"mixture": (1.0, 0.25, 0.15), "network": (1.0, 1.0, 1.0)}


def published() -> dict[str, Any]:
    """For each problem (calls, least RMS error, least median error) of all published pairs at each number of calls."""
    table: Table = pd.read_csv(RESULTS / "default.csv")
    found: dict[str, Any] = {str(n): of[["nfe", "rms_best", "median_best"]].to_numpy() for n, of in table.groupby("problem")}
    file = default.SHARED.parent / "peers" / "ring8_errors.csv"
    if file.exists():
        least: Any = pd.read_csv(file).groupby("nfe")[["rms_error", "median_error"]].min()
        found["ring8"] = least.reset_index().to_numpy()
    return found


def pairs_here(name: str, problem: Problem) -> np.ndarray:
    """The same from the pairs that default.py runs on networks, at `AT` alone; says which were best."""
    found = []
    for n in AT:
        rows = {}
        for solver, grid in itertools.product(default.published("network"), default.GRIDS):
            try:
                row = default.errors(problem, solver, grid, lower=False, calls=n)
            except UserError:  # not defined at alpha = 0 or sigma = 0
                continue
            if row and np.isfinite(row["rms"]):
                rows[f"{label(solver)} on {grid!r}"] = row
        best = {k: min(rows, key=lambda pair, k=k: rows[pair][k]) for k in ("rms", "median")}
        print(f"{name}, {n} calls: best pairs {best}", file=sys.stderr, flush=True)
        found.append((n, *(rows[pair][k] for k, pair in best.items())))
    return np.array(found)


def between(calls: Any, errors: Any, at: float) -> float:
    """log(error) interpolated in log(calls); NaN outside."""
    order = np.argsort(calls)
    return float(np.exp(np.interp(np.log(at), np.log(np.asarray(calls)[order]), np.log(np.asarray(errors)[order]), np.nan, np.nan)))


def against_published(name: str, problem: Problem, best: Any, floor: float = 0.0) -> Iterator[dict[str, Any]]:
    """Our errors over the best of the published pairs at the same calls; judged where those are not below `FLOORS` floors."""
    curve, solver = [], AdaptiveAdams()
    for tol in 10.0 ** -np.arange(1.0, 8.1, 0.5):
        run = solve(solver, problem.model, problem.x, PID(atol=tol, most_calls=MOST))
        error = rms(run.x - problem.end)
        assert run.each is not None
        curve.append((np.mean(run.each), np.sqrt(np.mean(error**2)), np.median(error)))
        if curve[-1][0] > AT[-1]:
            break
    ours = np.array(curve)
    asked = ASKED_OF_PUBLISHED["network" if name in NETWORKS else "mixture"]
    for at, limit in zip(AT, asked, strict=True):
        mine = [between(ours[:, 0], ours[:, k], at) for k in (1, 2)]
        theirs = [between(best[:, 0], best[:, k], at) for k in (1, 2)]
        yield {"problem": name, "calls": at, "rms": mine[0], "rms published": theirs[0], "rms ratio": mine[0] / theirs[0],
               "median": mine[1], "median published": theirs[1], "median ratio": mine[1] / theirs[1],
               "asked": limit, "judged": int(theirs[0] >= FLOORS * floor)}  # fmt: skip


# --- causes -------------------------------------------------------------------------------------------------------


def causes(problem: Problem, tol: float, samples: int = 8) -> dict[str, float]:
    """Where a ratio comes from: medians over a few samples of root sums of squares over the steps, in units of the tolerance.

    estimated: the error estimates of the steps that were taken (`Frame.error`); made: the errors of these steps by themselves; left: what
    the exact flow makes of them by the end. They add up to the error at the end, `sum`.
    """
    model, few = problem.model, Problem(problem.model, problem.x[:samples], problem.end[:samples])
    flow, last = SciPy("DOP853", 1e-3 * tol, 1e-3 * tol, Angle()), ends(problem.model)[1]
    parts = []
    for i in range(len(few.x)):
        estimated, made, left, states = [], [], [], []
        with torch.no_grad():
            for frame in march(AdaptiveAdams(), model.rows(torch.tensor([i])), few.x[i : i + 1], PID(atol=tol)):
                if np.all(frame.accepted):
                    states.append((frame.x, model.schedule.knot(float(frame.t.time[0]))))
                    if frame.error is not None:
                        estimated.append(float(rms(frame.error.tensor() if isinstance(frame.error, Linear) else frame.error)[0]))
        arrives = [solve(flow, model, x, (t, last)).x if t.time != last.time else x for x, t in states]
        for (x, t), (y, s), a, b in zip(states, states[1:], arrives, arrives[1:], strict=False):
            made.append(float(rms(y - solve(flow, model, x, (t, s)).x)[0]))
            left.append(float(rms(b - a)[0]))
        parts.append(
            [*(np.sqrt(np.sum(np.square(v))) / tol for v in (estimated, made, left)), float(rms(arrives[-1] - arrives[0])[0]) / tol]
        )
    return dict(zip(("estimated", "made", "left", "sum"), np.median(parts, axis=0).tolist(), strict=True))


# --- tables and picture -------------------------------------------------------------------------------------------


def within(ratio: float) -> bool:
    return ASKED[0] <= ratio <= ASKED[1]


def number(value: float) -> str:
    """Two digits."""
    return "-" if not np.isfinite(value) else f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def shown(row: Any, column: str = "median") -> str:
    """Of a cell: bold where the median is outside, in brackets where it is not judged."""
    text = number(row[column])
    if not row["judged"]:
        return f"({text})"
    return text if within(row["median"]) else f"**{text}**"


def powers(tol: float) -> str:
    return f"1e{round(np.log10(tol))}"


def by_tolerance(cells: Table, text: Callable[[Any], str], method: str = OURS) -> list[dict[str, Any]]:
    """A line a problem, a column a tolerance."""
    lines = []
    for name, of in cells[cells.method == method].groupby("problem", sort=False):
        row = dict(zip(of.tolerance, of.to_dict("records"), strict=True))
        lines.append({"problem": name, **{powers(t): text(row[t]) if t in row else "" for t in TOLERANCES}})
    return lines


def ratios(cells: Table, method: str) -> str:
    """Medians over the samples of error / tolerance."""
    lines = by_tolerance(cells, shown, method)
    return markdown([{"problem": r["problem"], "": "fixed on" if r["problem"] in FIXED_ON else "reported", **r} for r in lines])


def tails(cells: Table) -> str:
    """RMS over the samples, 95 % quantile and largest of error / tolerance."""
    return markdown(by_tolerance(cells, lambda r: " / ".join(number(r[k]) for k in ("rms", "q95", "max"))))


def costs(cells: Table) -> str:
    """Calls of a sample (mean, 95 %, largest), and the shares of rejected steps."""
    lines = by_tolerance(cells, lambda r: " / ".join(f"{r[k]:.0f}" for k in ("calls", "calls q95", "calls max")))
    rejected = cells[cells.method == OURS].groupby("problem").rejected
    low, high = rejected.min(), rejected.max()
    return markdown([{**r, "rejected": f"{low[r['problem']]:.0%} to {high[r['problem']]:.0%}"} for r in lines])


def estimates(cells: Table) -> str:
    """Error / `Solution.error`, median (5 % and 95 % quantile)."""

    def text(r: Any) -> str:
        middle, low, high = (number(r[k]) for k in ("of estimate", "of estimate q05", "of estimate q95"))
        return f"{middle} ({low} to {high})"

    return markdown(by_tolerance(cells, text))


def spread(oracles: Table) -> str:
    """A line a method: geometric mean of the medians at each tolerance and in all, extremes, cells within."""
    lines = []
    for name, of in oracles.groupby("method", sort=False):
        every = float(np.exp(np.log(of["median"]).mean()))
        each = {powers(t): number(np.exp(np.log(of[of.tolerance == t]["median"]).mean())) for t in TOLERANCES}
        lines.append({
            "method": f"`{name}`", **each, "all": number(every), "least": number(of["median"].min()), "most": number(of["median"].max()),
            "within [1/3, 3]": f"{sum(map(within, of['median']))} of {len(of)}",
            "and with a factor of its own": f"{sum(within(r / every) for r in of['median'])} of {len(of)}",
            "calls at 1e-3": f"{of[of.tolerance == 1e-3].calls.mean():.0f}",
        })  # fmt: skip
    return markdown(lines)


def fixed_grids(table: Table) -> str:
    """A line a problem: ours / best published, RMS and median, at each number of calls."""
    lines = []
    for name, of in table.groupby("problem", sort=False):
        texts = {f"{r['calls']} calls": ", ".join(_mark(r[k], r) for k in ("rms ratio", "median ratio")) for r in of.to_dict("records")}
        lines.append({"problem": name, **texts, "asked": " / ".join(f"{a:g}" for a in of.asked)})
    return markdown(lines)


def _mark(ratio: float, row: Any) -> str:
    if not row["judged"]:
        return f"({number(ratio)})"
    return f"**{number(ratio)}**" if ratio > row["asked"] else number(ratio)


def tables(cells: Table, fixed: Table | None, why: Table | None) -> dict[str, tuple[str, str]]:
    """All tables, as Markdown, each with its caption, by the mark that it has on the page."""
    found = {"ours": (f"Error at the end / tolerance, median over the samples, {OURS}:", ratios(cells, OURS))}
    for name in cells[cells.family == "peer"].method.unique():
        found[name] = (f"The same, {name}, rtol = atol = tolerance:", ratios(cells, name))
    if len(oracles := cells[cells.problem.isin(ORACLES) & ~cells.problem.isin(FIXED_ON)]):
        found["spread"] = ("Over the oracles that report, geometric means of those medians:", spread(oracles))
    found["tails"] = ("RMS over the samples / 95 % quantile / largest of error / tolerance:", tails(cells))
    found["costs"] = ("Calls of a sample, mean / 95 % quantile / largest:", costs(cells))
    found["estimates"] = ("Error / `Solution.error`, median (5 % to 95 % quantile):", estimates(cells))
    if fixed is not None and len(fixed):
        caption = "Error over that of the best published pair at the same mean calls, RMS and median over the samples:"
        found["published"] = (caption, fixed_grids(fixed))
    if why is not None and len(why):
        lines = [{k: powers(v) if k == "tolerance" else number(v) if isinstance(v, float) else v for k, v in r.items()}
                 for r in why.to_dict("records")]  # fmt: skip
        found["causes"] = ("Why, in units of the tolerance:", markdown(lines))
    return found


def fill(page: str, found: dict[str, tuple[str, str]]) -> str:
    """The page with each table put between `<!-- calibration NAME -->` and `<!-- end -->`; marks that have no table are left alone."""

    def new(match: re.Match[str]) -> str:
        return f"{match[1]}\n{found[match[2]][1]}\n{match[3]}" if match[2] in found else match[0]

    return re.sub(r"(<!-- calibration ([^>]+) -->)\n.*?(<!-- end -->)", new, page, flags=re.DOTALL)


NARROW = {"ring8 std .03": "#dd4444", "2d std .01": "#ff8866"}
OTHERS = ("#3366bb", "#66aadd", "#88bbaa", "#228844", "#99bb33", "#bbaa22", "#885533", "#aa88cc", "#cc88aa", "#999999", "#55aaaa")


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Black: the constants were fixed there; red: narrow modes; thick, broken: networks."""
    styles: dict[str, dict[str, Any]] = {}
    others = iter(OTHERS)
    for name in names:
        common = {"marker": "o", "lw": 1.2, "ms": 3.5, "ls": "-"}
        if name in FIXED_ON:
            styles[name] = {**common, "color": "black", "lw": 1.8, "ls": "-" if name == FIXED_ON[0] else ":"}
        elif name in NETWORKS:
            marker, colour = {"digits network": ("s", "#771177"), "mnist network": ("X", "#cc00aa")}.get(name, ("D", "#ee66dd"))
            styles[name] = {"marker": marker, "color": colour, "lw": 2.4, "ms": 6, "ls": (0, (4, 1.2))}
        else:
            styles[name] = {**common, "color": NARROW.get(name) or next(others)}
    return styles


def picture(cells: Table, path: Path) -> None:
    """Error / tolerance against tolerance, a line a problem: ours beside torchdiffeq's and SciPy's."""
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    names = [OURS, *cells[cells.family == "peer"].method.unique()]
    panels = figure.subplots(1, len(names), sharex=True, sharey=True)
    styles = _styles(cells.problem.unique().tolist())
    for axes, method in zip(panels, names, strict=True):
        axes.axhspan(*ASKED, color="#228833", alpha=0.13, lw=0)
        axes.axhline(1, color="0.4", lw=0.8)
        for problem, of in cells[(cells.method == method) & (cells.judged == 1)].groupby("problem", sort=False):
            axes.loglog(of.tolerance, of["median"], label=f"{problem} (constants)" if problem in FIXED_ON else problem, **styles[problem])
        axes.set(xlabel="tolerance", title=f"{method} under PID" if method == OURS else f"{method}, rtol = atol")
        axes.grid(visible=True, which="major", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_xaxis()
    panels[0].set(ylabel="error at the end / tolerance, median over samples")
    ticks = [v for v in (0.01, 0.03, 0.1, 1 / 3, 1, 3, 10, 100) if panels[0].get_ylim()[0] <= v <= panels[0].get_ylim()[1]]
    panels[0].set_yticks(ticks, ["1/3" if v == 1 / 3 else f"{v:g}" for v in ticks])
    panels[0].minorticks_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8.5, frameon=False, handlelength=3)
    figure.savefig(path, dpi=110)


# --- running ------------------------------------------------------------------------------------------------------


def run(only: Sequence[str]) -> tuple[Table, Table, Table]:
    """Everything: the cells, the comparison with fixed grids, the causes of the cells that miss."""
    cells, fixed, why, best = [], [], [], published()
    for name, problem in problems(only):
        begun = time.process_time()
        rows = list(sweep(name, problem, methods()))
        cells += rows
        same = default.problem_named(name) if name == "digits network" else problem  # that of the table: float32
        floor = rows[0]["floor"] if rows else 0.0
        fixed += against_published(name, same, best[name] if name in best else pairs_here(name, problem), floor)
        for row in rows:
            if row["family"] == "ours" and row["judged"] and not within(row["median"]) and name in ORACLES:
                why.append({"problem": name, "tolerance": row["tolerance"], "median": row["median"], **causes(problem, row["tolerance"])})
        print(f"{name}: {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
    return pd.DataFrame(cells), pd.DataFrame(fixed), pd.DataFrame(why)


FILES = ("calibration", "calibration_published", "calibration_causes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="these problems, by name, with commas; writes nothing")
    parser.add_argument("--tables", action="store_true", help="read the CSVs, do not measure")
    parser.add_argument("--page", type=Path, help="a Markdown page with marks <!-- calibration NAME --> ... <!-- end -->: fill them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tables:
        found: tuple[Table, ...] = tuple(pd.read_csv(path) if (path := RESULTS / f"{f}.csv").exists() else None for f in FILES)
    else:
        found = run([n.strip() for n in args.only.split(",") if n.strip()])
    if not args.only and not args.tables:
        for table, name in zip(found, FILES, strict=True):
            table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
    if not args.only:
        picture(found[0], PICTURE)
    written = tables(*found)
    print("\n\n".join(part for table in written.values() for part in table))
    if args.page:
        args.page.write_text(fill(args.page.read_text(), written))


if __name__ == "__main__":
    main()
