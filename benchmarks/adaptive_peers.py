"""Network calls for an error of 1e-2, 1e-3, 1e-4, 1e-5: ours beside the adaptive samplers that others ship.

    python benchmarks/adaptive_peers.py run OUT.csv [--only ring8,16d] [--family ours,coupled,each]   # all: 15 minutes on one core
    python benchmarks/adaptive_peers.py run OURS.csv --family ours                         # ours alone: 3 minutes
    python benchmarks/adaptive_peers.py table docs/results/adaptive_peers.csv OURS.csv     # Markdown: calls needed, ratios of ours

Each peer runs on the same latents from t_max to t_min at tolerances rtol = atol = 1, 10^-0.5, ..., 1e-8. A row of the CSV: the error at the
end of each sample (RMS per coordinate, against the converged flow), as RMS and median over the samples; the calls of each sample, as mean,
95 % quantile and maximum. Calls needed for an error: log(calls) interpolated in log(error) where the error first falls below it (kind to
methods whose error jumps from one tolerance to the next: at large tolerances a lucky run counts), and where it stays below.

Families: "coupled" has one error norm for the whole batch, as shipped, so every sample pays the same; "each" has steps of each sample's
own, in the best of four coordinates (for SciPy, a sample at a time, the two best of a pilot run on a few samples). Coupled peers run on the
whole batch of the problem, per-sample ones on the first few of it, ours on both: ratios are on the same samples.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import default
import numpy as np
import torch
from default_page import markdown

from sdediff import (
    PID,
    AdaptiveAdams,
    Angle,
    DPMSolver,
    DPMSolverPP,
    LogSNR,
    SciPy,
    Sigma,
    Solution,
    Solver,
    Time,
    TorchDiffEq,
    TorchODE,
    UserError,
    latents,
    load_model,
    solve,
)
from sdediff.coordinates import Coordinates
from sdediff.coupled import DPMSolverAdaptive, KDiffusionPID
from sdediff.names import label

FIELDS = ("problem", "family", "peer", "form", "tol", "samples", "rms", "median", "mean", "p95", "max", "reached")
FAMILIES = ("ours", "coupled", "each")
TARGETS = (1e-2, 1e-3, 1e-4, 1e-5)
TOLERANCES = tuple(10 ** (-k / 2) for k in range(17))
COORDINATES: tuple[Coordinates, ...] = (Time(), Sigma(), Angle(), Angle(0.5))
ENOUGH = 4e-6  # a sweep ends once the RMS error is below this,
DEAR = 1500  # or a sample needs more calls than this
ASKED = {"coupled": 0.35, "each": 0.55}  # of the calls of the family, on mixtures; on the digits network 0.5 of either
Problem = default.Problem
Runner = Callable[[Problem, float], Solution]


class Peer(NamedTuple):
    """An adaptive sampler in one form (coordinates, options), as a function of the tolerance."""

    family: str
    name: str
    form: str
    run: Runner


# --- problems -----------------------------------------------------------------------------------------------------


def _digits(dtype: torch.dtype, n: int = 64) -> Problem:
    """The flow that errors are measured against is that of the same weights in float64."""
    path = default.ROOT / "sdediff" / "pretrained" / "digits.safetensors"
    model: Any = load_model(path)
    exact: Any = load_model(path)
    exact.net.double()
    x = latents(model, n, seed=7)
    end = solve(SciPy("DOP853", 1e-9, 1e-9, Angle()), exact, x.double(), LogSNR().knots(model.schedule, 1)).x
    return Problem(model if dtype == torch.float32 else exact, x.to(dtype), end)


def _first(problem: Problem, n: int) -> Problem:
    return Problem(problem.model, problem.x[:n], problem.end[:n])


PROBLEMS: dict[str, tuple[Callable[[], Problem], int]] = {  # and how many are a few
    **{name: (lambda name=name: default.problem_named(name), few) for name, few in
       (("ring8", 48), ("ring5 wide", 48), ("2d 6 modes", 48), ("16d", 48), ("64d", 32))},
    "digits float32": (lambda: _digits(torch.float32), 8),
    "digits float64": (lambda: _digits(torch.float64), 8),
}  # fmt: skip


# --- who is measured ----------------------------------------------------------------------------------------------


def ours() -> list[Peer]:
    """OUR ENTRIES. The first is the one that the ratios are of, the same on all problems; the others are there to compare."""
    solvers = [AdaptiveAdams(), *(AdaptiveAdams(order=k, data_std=d) for k in (3, 5, 7) for d in (1.0, 0.5))]
    found = {label(s): s for s in solvers}
    return [Peer("ours", name, "PID", lambda p, tol, s=s: solve(s, p.model, p.x, PID(atol=tol))) for name, s in found.items()]


def _delegate(make: Callable[[float], Any]) -> Runner:
    return lambda p, tol: solve(make(tol), p.model, p.x, LogSNR().knots(p.model.schedule, 1))


def coupled() -> list[Peer]:
    """One error norm for the batch, each in the form in which it is shipped."""
    delegates: list[tuple[str, Callable[[float], Any]]] = [
        ("torchdiffeq dopri5", lambda tol: TorchDiffEq("dopri5", tol, tol, Time())),
        ("torchdiffeq bosh3", lambda tol: TorchDiffEq("bosh3", tol, tol, Time())),
        ("score-SDE RK45", lambda tol: SciPy("RK45", tol, tol, Time())),
    ]
    controlled: list[tuple[str, Solver, type[KDiffusionPID | DPMSolverAdaptive]]] = [
        *((f"k-diffusion dpm_adaptive {s.order}", s, KDiffusionPID) for s in (DPMSolver(2), DPMSolver(3))),
        *((f"dpm-solver adaptive {s.order}", s, DPMSolverAdaptive) for s in (DPMSolver(2), DPMSolver(3))),
        *((f"dpm-solver++ adaptive {s.order}", s, DPMSolverAdaptive) for s in (DPMSolverPP(2), DPMSolverPP(3))),
    ]
    found = [Peer("coupled", name, "as shipped", _delegate(make)) for name, make in delegates]
    return found + [
        Peer("coupled", name, "as shipped", lambda p, tol, s=s, control=control: solve(s, p.model, p.x, control(rtol=tol, atol=tol)))
        for name, s, control in controlled
    ]


def each() -> list[Peer]:
    """Every sample by itself, in all coordinates."""
    makers: list[tuple[str, Callable[[float, Coordinates], Any]]] = [
        *((f"torchode {m}", lambda tol, c, m=m: TorchODE(m, tol, tol, c, most_steps=DEAR)) for m in ("dopri5", "tsit5")),
        *((f"SciPy {m}", lambda tol, c, m=m: SciPy(m, tol, tol, c, each=True)) for m in ("RK45", "DOP853", "LSODA")),
    ]
    return [Peer("each", name, repr(c), _delegate(lambda tol, make=make, c=c: make(tol, c))) for name, make in makers for c in COORDINATES]


def of_family(family: str) -> list[Peer]:
    return {"ours": ours, "coupled": coupled, "each": each}[family]()


# --- measuring ----------------------------------------------------------------------------------------------------


def row(name: str, problem: Problem, peer: Peer, tol: float) -> dict[str, Any]:
    """One run: errors at the end and calls, over the samples."""
    n, run = len(problem.x), peer.run(problem, tol)
    error = (run.x.double() - problem.end.double()).square().flatten(1).mean(1).sqrt().numpy()
    calls = np.full(n, run.calls) if run.each is None else run.each
    return {
        "problem": name, "family": peer.family, "peer": peer.name, "form": peer.form, "tol": tol, "samples": n,
        "rms": float(np.sqrt(np.mean(error**2))), "median": float(np.median(error)),
        "mean": float(np.mean(calls)), "p95": float(np.quantile(calls, 0.95)), "max": float(np.max(calls)), "reached": int(run.reached),
    }  # fmt: skip


def sweep(name: str, problem: Problem, peer: Peer, tolerances: Iterable[float] = TOLERANCES) -> Iterator[dict[str, Any]]:
    """Rows at ever tighter tolerances, until the error is small enough, or falls no more, or the calls are too many."""
    before = math.inf
    for tol in tolerances:
        try:
            found = row(name, problem, peer, tol)
        except UserError as wrong:  # a tolerance that the dtype cannot hold, a step size of 0
            print(f"{name}, {peer.name}, {peer.form}, {tol:.0e}: {wrong}", file=sys.stderr)
            return
        yield found
        rounding = found["rms"] < 3 * TARGETS[-1] and found["rms"] > 0.7 * before  # in float32
        if found["rms"] < ENOUGH or rounding or found["max"] > DEAR or not found["reached"]:
            return
        before = found["rms"]


def chosen(name: str, problem: Problem, peers: list[Peer], samples: int = 6, best: int = 2) -> list[Peer]:
    """All peers, but of SciPy's one-at-a-time methods only the forms that need fewest calls for 1e-3 and 1e-5 on a few samples."""
    kept, pilot = [p for p in peers if not p.name.startswith("SciPy")], _first(problem, samples)
    for method in dict.fromkeys(p.name for p in peers if p.name.startswith("SciPy")):
        scores = []
        for peer in (p for p in peers if p.name == method):
            points = list(sweep(name, pilot, peer, TOLERANCES[2::2]))
            found = [needed(points, target, "rms") for target in (1e-3, 1e-5)]
            scores.append((sum(math.log(f["mean"]) if f else 10.0 for f in found), peer))
        kept += [peer for _, peer in sorted(scores, key=lambda s: s[0])[:best]]
    return kept


def samples_of(peer: Peer, whole: int, few: int) -> tuple[int, ...]:
    """On how many samples a peer is measured."""
    return {"coupled": (whole,), "each": (few,), "ours": (whole, few)}[peer.family]


def run(out: str, only: str, families: str) -> None:
    """Measure and write; every row is on disk at once."""
    torch.set_num_threads(1)
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for name in PROBLEMS:
            if only and name not in only.split(","):
                continue
            begun, (make, few) = time.time(), PROBLEMS[name]
            problem = make()
            for family in families.split(","):
                for peer in chosen(name, problem, of_family(family)):
                    for n in samples_of(peer, len(problem.x), few):
                        for found in sweep(name, _first(problem, n), peer):
                            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in found.values()])
                            file.flush()
                print(f"{name}, {family}: {time.time() - begun:.0f} s", file=sys.stderr, flush=True)


# --- reading ------------------------------------------------------------------------------------------------------


def needed(points: list[dict[str, Any]], target: float, error: str, stays: bool = False) -> dict[str, float] | None:
    """Calls (mean, p95, max) at which the `error` ("rms" or "median") first falls to `target`, points from loose to tight tolerance.

    stays: from where on it stays there, instead. Interpolated in logarithms; the calls of the first point if that is already below; None if
    no point is.
    """
    below = [point[error] <= target for point in points]
    if not any(below) or (stays and not below[-1]):
        return None
    at = max((i + 1 for i, good in enumerate(below) if not good), default=0) if stays else below.index(True)
    point, before = points[at], points[at - 1]
    if at == 0:
        return {k: float(point[k]) for k in ("mean", "p95", "max")}
    part = math.log(before[error] / target) / math.log(before[error] / max(point[error], 1e-300))
    return {k: math.exp((1 - part) * math.log(before[k]) + part * math.log(point[k])) for k in ("mean", "p95", "max")}


class Key(NamedTuple):
    problem: str
    samples: int
    family: str
    peer: str
    target: float


def calls_needed(rows: list[dict[str, Any]], error: str, stays: bool = False) -> dict[Key, dict[str, Any]]:
    """The calls (mean, p95, max) that each peer needs for each target, in its best form for that target, and the form."""
    sweeps: dict[tuple[str, int, str, str, str], list[dict[str, Any]]] = {}
    for r in rows:
        sweeps.setdefault((r["problem"], int(r["samples"]), r["family"], r["peer"], r["form"]), []).append(r)
    best: dict[Key, dict[str, Any]] = {}
    for (problem, samples, family, peer, form), points in sweeps.items():
        for target in TARGETS:
            found = needed(sorted(points, key=lambda r: -r["tol"]), target, error, stays)
            key = Key(problem, samples, family, peer, target)
            if found and (key not in best or found["mean"] < best[key]["mean"]):
                best[key] = {**found, "form": form}
    return best


def report(files: list[str]) -> str:
    """The tables, as Markdown."""
    rows = []
    for name in files:
        with open(name, newline="") as file:
            rows += [{k: float(v) if k in FIELDS[4:] else v for k, v in r.items()} for r in csv.DictReader(file)]
    text = []
    for error, stays, title in (("rms", False, "RMS over the samples"), ("median", False, "median over the samples"),
                                ("rms", True, "RMS over the samples, from where on it stays below")):  # fmt: skip
        calls = calls_needed(rows, error, stays)
        text += [f"## Calls of a sample for an error at the end, {title}", "", markdown(ratios(calls)), ""]
        for problem, samples in dict.fromkeys((key.problem, key.samples) for key in calls):
            text += [f"### {problem}, {samples} samples, {title}", "", markdown(peers(calls, problem, samples)), ""]
    return "\n".join(text)


def ratios(calls: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each problem and target: our calls, those of the best of each family, and the ratio of the means on the same samples."""
    lines = []
    for problem in dict.fromkeys(key.problem for key in calls):
        sets = [key.samples for key in calls if key.problem == problem]
        for target in TARGETS:
            line: dict[str, Any] = {"problem": problem, "error": f"{target:.0e}"}
            for family, title, samples in (("coupled", "batch-coupled", max(sets)), ("each", "per-sample", min(sets))):
                mine = calls.get(Key(problem, samples, "ours", ours()[0].name, target))
                rivals = {k.peer: v for k, v in calls.items() if k[:3] == (problem, samples, family) and k.target == target}
                name = min(rivals, key=lambda peer: rivals[peer]["mean"]) if rivals else ""
                line[f"ours beside {title}"] = _calls(mine)
                line[f"best {title}"] = f"{name}: {_calls(rivals.get(name))}"
                line[f"ratio to {title}"] = mine["mean"] / rivals[name]["mean"] if mine and rivals else "-"
                line[f"asked, {title}"] = 0.5 if problem.startswith("digits") else ASKED[family]
            lines.append(line)
    return lines


def peers(calls: dict[Key, dict[str, Any]], problem: str, samples: int) -> list[dict[str, Any]]:
    """Each peer on one problem: mean calls of a sample (95 %, max, where they differ), coordinates, and the ratio of our calls to its."""
    lines = []
    for family, peer in dict.fromkeys((key.family, key.peer) for key in calls if key[:2] == (problem, samples)):
        line: dict[str, Any] = {"family": family, "peer": peer}
        for target in TARGETS:
            found = calls.get(Key(problem, samples, family, peer, target))
            mine = calls.get(Key(problem, samples, "ours", ours()[0].name, target))
            form = f" {found['form'].replace('data_std=', '')}" if found and family == "each" else ""
            ratio = f", ratio {mine['mean'] / found['mean']:.2f}" if found and mine and family != "ours" else ""
            line[f"{target:.0e}"] = _calls(found) + form + ratio
        lines.append(line)
    return lines


def _calls(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.0f}" + (f" ({found['p95']:.0f}, {found['max']:.0f})" if found["max"] > found["mean"] + 0.5 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("files", nargs="+", help="run: the CSV to write; table: the CSVs to read")
    parser.add_argument("--only", default="", help="these problems, by name, with commas")
    parser.add_argument("--family", default=",".join(FAMILIES), help="ours, coupled, each; with commas")
    args = parser.parse_args()
    if args.command == "table":
        print(report(args.files))
    else:
        Path(args.files[0]).parent.mkdir(parents=True, exist_ok=True)
        run(args.files[0], args.only, args.family)


if __name__ == "__main__":
    main()
