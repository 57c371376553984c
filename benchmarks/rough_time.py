"""Networks that are rough in time: the floor that `time_roughness` states, the errors that solvers have, and what `smooth_time` changes.

    python benchmarks/rough_time.py errors    # floors and errors against calls, three models: docs/results/rough_time*.csv, the picture
    python benchmarks/rough_time.py samples   # loss and shift of the samples, raw and smoothed: docs/results/rough_time_samples.csv
    python benchmarks/rough_time.py frechet   # Frechet distances to MNIST before and after: docs/results/rough_time_frechet.csv
    python benchmarks/rough_time.py tables    # the tables of docs/rough_time.md from those files

Every error is the RMS per component to the same model's own flow from the same latents: RK4 on very many steps. About 5, 2 and
4 minutes of one core. Needs SDEDIFF_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from default import SHARED, problem_named
from default_page import markdown
from torch import Tensor

from sdediff import (
    PID,
    AdaptiveAdams,
    Angle,
    AsinhLogSNR,
    ExponentialAdams,
    Model,
    Objective,
    RungeKutta,
    knots_for,
    latents,
    load_model,
    recommend,
    sample,
    smooth_time,
    solve,
    time_roughness,
)
from sdediff.data import open_source
from sdediff.interop.hot_vs_cold import load_hot_vs_cold
from sdediff.metrics import frechet_distance, moments, noise_floor
from sdediff.pretrained import feature_extractor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
RK4 = RungeKutta("rk4", Angle())
CALLS = (24, 32, 64, 100, 200)
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
MOST = 400  # calls of a sample under PID
FIXED = {
    "RK4, AsinhLogSNR(-1, 2)": (RK4, AsinhLogSNR(-1.0, 2.0)),
    "Adams 3 x0, AsinhLogSNR(-3, 4)": (ExponentialAdams(3, "x0", "angle", corrector=True), AsinhLogSNR(-3.0, 4.0)),
    "Adams 3 v, AsinhLogSNR(-1, 2)": (ExponentialAdams(3, "v", "angle", corrector=True), AsinhLogSNR(-1.0, 2.0)),
}


class Case(NamedTuple):
    """A model, start states, and its own converged flow."""

    model: Model
    x: Tensor
    end: Tensor


def mnist_network():
    return load_hot_vs_cold(SHARED / "weights" / "yichizz_ddpm_mnist_starter.pth")


def flow(model: Model, x: Tensor, steps: int) -> Case:
    return Case(model, x, solve(RK4, model, x, AsinhLogSNR(-1.0, 2.0).knots(model.schedule, steps)).x)


def cases() -> dict[str, Case]:
    raw, digits = mnist_network(), load_model(ROOT / "sdediff" / "pretrained" / "digits.safetensors")
    x = latents(raw, 8, seed=7)
    ring = problem_named("ring8")
    ring32 = ring.model, ring.x[:64].float()
    return {
        "MNIST network": flow(raw, x, 1000),
        "MNIST network, smoothed": flow(smooth_time(raw), x, 400),
        "digits network": flow(digits, latents(digits, 32, seed=7), 400),
        "8-mode ring, float64": Case(ring.model, ring.x[:64], ring.end[:64]),
        "8-mode ring, float32": Case(*ring32, ring.end[:64].float()),
    }


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def errors() -> None:
    """Floors, profiles, and the errors of fixed grids and of PID."""
    found, floors, profile = [], [], []
    for name, (model, x, end) in cases().items():
        begun = time.time()
        rough = {n: time_roughness(model, x[:8], calls=n) for n in (50, 100, 200)}
        print(f"{name}: {rough[200]}", file=sys.stderr)
        floors.append(
            {"model": name, "floor at 200": rough[200].floor, "at(50)": rough[200].at(50), "measured at 50": rough[50].floor,
             "measured at 100": rough[100].floor, "calls spent": rough[200].calls, "verdict": str(rough[200])}
        )  # fmt: skip
        profile += [{"model": name, "time": t, "size": s} for t, s in zip(rough[200].times, rough[200].sizes, strict=True)]
        for n in CALLS:
            pairs = {k: (s, knots_for(model.schedule, s, g, calls=n)) for k, (s, g) in FIXED.items()}
            for kind, (solver, knots) in {**pairs, "recommended": recommend(model.schedule, n)}.items():
                error = rms(solve(solver, model, x, knots).x - end)
                found.append({"model": name, "solver": kind, "calls": solver.calls(knots), "error": error})
        for tolerance in TOLERANCES:
            run = solve(AdaptiveAdams(), model, x, PID(atol=tolerance, most_calls=MOST))
            assert run.each is not None
            calls = np.asarray(run.each, dtype=float)
            found.append(
                {"model": name, "solver": "PID", "calls": calls.mean(), "error": rms(run.x - end), "tolerance": tolerance,
                 "reached": run.reached}
            )  # fmt: skip
        print(f"  {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
        for table, file in ((found, "rough_time"), (floors, "rough_time_floors"), (profile, "rough_time_profile")):
            pd.DataFrame(table).to_csv(RESULTS / f"{file}.csv", index=False, float_format="%.4g")
    picture()


def picture() -> None:
    """Roughness over time, and error against calls."""
    table, floors, profile = (_read(k) for k in ("", "_floors", "_profile"))
    models = ("MNIST network", "MNIST network, smoothed", "digits network", "8-mode ring, float64")
    colours = dict(zip(models, ("tab:red", "tab:blue", "tab:green", "tab:gray"), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for name, rows in profile[profile.model.isin(models)].groupby("model", sort=False):
        left.loglog(rows.time, rows["size"], "o-", ms=3, color=colours[name], label=name)
    left.set(xlabel="time (data left, noise right)", ylabel="RMS of the rough part of the velocity", title="Roughness in time")
    left.legend(fontsize=8)
    for name in models[:3]:
        rows, floor = table[table.model == name], float(floors[floors.model == name]["floor at 200"].iloc[0])
        for kind, few in rows.groupby("solver", sort=False):
            right.loglog(
                few.calls, few.error, "s-" if kind == "PID" else "o", ms=4, lw=1, color=colours[name], alpha=1 if kind == "PID" else 0.45
            )
        calls = np.geomspace(25, 200, 10)
        right.loglog(calls, floor * np.sqrt(200 / calls), "--", color=colours[name], label=f"{name}: floor")
    right.set(xlabel="network calls", ylabel="RMS error to the own flow", title="Squares: PID. Circles: fixed grids", ylim=(1e-7, 0.1))
    right.legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "img" / "rough_time.png", dpi=110)


class Table:
    """Lines (what, value), printed and written as they come."""

    def __init__(self, kind: str):
        self.kind, self.rows = kind, []

    def __call__(self, what: str, value: Any) -> None:
        self.rows.append({"what": what, "value": value})
        print(f"{what}: {value:.5g}", file=sys.stderr, flush=True)
        pd.DataFrame(self.rows).to_csv(RESULTS / f"rough_time_{self.kind}.csv", index=False, float_format="%.5g")


def samples(images: int) -> None:
    """What smoothing changes: the loss, and the samples."""
    raw, told = mnist_network(), Table("samples")
    smooth = smooth_time(raw)
    loss = {k: losses(m, references(images)) for k, m in (("raw", raw), ("smoothed", smooth))}
    change = loss["smoothed"] - loss["raw"]
    told("eps loss, raw", float(loss["raw"].mean()))
    told("eps loss, smoothed", float(loss["smoothed"].mean()))
    told("relative change of the loss", float(change.mean() / loss["raw"].mean()))
    told("its standard error", float(change.std() / len(change) ** 0.5 / loss["raw"].mean()))

    x = latents(raw, 8, seed=7)
    ends = {s: solve(RK4, raw, x, AsinhLogSNR(-1.0, 2.0).knots(raw.schedule, s)).x for s in (25, 50, 100, 1000)}
    end = solve(RK4, smooth, x, AsinhLogSNR(-1.0, 2.0).knots(raw.schedule, 400)).x
    for a, b in ((25, 50), (25, 100), (50, 100), (25, 1000), (50, 1000), (100, 1000)):
        told(f"raw, RK4 with {a} against {b} steps", rms(ends[a] - ends[b]))
    told("shift of the samples by smoothing (both converged)", rms(end - ends[1000]))
    told("RMS of the samples", rms(end))


def frechet(n: int, calls: int) -> None:
    """The Frechet distance to the real images before and after, from the same latents."""
    raw, real, told, classifier = mnist_network(), references(10_000), Table("frechet"), feature_extractor("mnist")
    seen = torch.cat([classifier.features(2 * part) for part in real.split(1000)])
    known, known_pixels = moments(seen), moments(2 * real.flatten(1))
    told(f"floor: halves of the real images, {n} each", noise_floor(seen[: 2 * n])[0])
    made = {}
    for kind, model in (("raw", raw), ("smoothed", smooth_time(raw))):
        made[kind] = sample(model, n, calls=calls, seed=1, batch=100)
    features = {k: torch.cat([classifier.features(2 * part) for part in v.split(1000)]) for k, v in made.items()}
    for kind, x in made.items():
        told(f"{kind}, in features", frechet_distance(features[kind], known))
        told(f"{kind}, in pixels", frechet_distance(2 * x.flatten(1), known_pixels))
    told("between the two sets of samples, in features", frechet_distance(features["raw"], features["smoothed"]))
    off = (made["raw"] - made["smoothed"]).flatten(1).square().mean(1).sqrt()
    told(f"shift of the {n} samples at {calls} calls, RMS", float(off.square().mean().sqrt()))
    told("its median over samples", float(off.median()))


def references(n: int) -> Tensor:
    """n real images in the network's units, drawn from the training set."""
    source = open_source("mnist")
    return source.batch(torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:n])[0] / 2


@torch.no_grad()
def losses(model, images: Tensor) -> Tensor:
    """The eps loss of each image, the same times and noises for every model."""
    generator, objective = torch.Generator().manual_seed(0), Objective()
    times, noise = objective.draw_times(model.schedule, len(images), generator), torch.randn(images.shape, generator=generator)
    part = [slice(i, i + 500) for i in range(0, len(images), 500)]
    return torch.cat([objective.per_sample(model, images[p], times[p], noise[p]) for p in part]).double()


def tables() -> None:
    """Print the tables of the page."""
    floors, table, *lists = (_read(k) for k in ("_floors", "", "_samples", "_frechet"))
    print(markdown(floors.drop(columns="verdict").map(_short).to_dict("records")))
    for name, rows in table.groupby("model", sort=False):
        fixed, free = rows[rows.solver != "PID"], rows[rows.solver == "PID"]
        print(f"\n{name}\n")
        wide = fixed.assign(calls=fixed.calls.round().astype(int)).pivot_table(index="solver", columns="calls", values="error", sort=False)
        asked = [c for c in CALLS if c in wide]
        print(markdown([{"solver": k, **{str(c): _short(r[c]) for c in asked}} for k, r in wide.iterrows()]))
        print()
        print(markdown([{k: _short(v) for k, v in r.items()} for r in free.drop(columns=["model", "solver"]).to_dict("records")]))
    for lines in lists:
        print()
        print(markdown(lines.map(_short).to_dict("records")))


def _read(kind: str) -> Any:
    return pd.read_csv(RESULTS / f"rough_time{kind}.csv")


def _short(value: Any) -> Any:
    if isinstance(value, float) and not math.isnan(value):
        return f"{value:.1f}" if value >= 10 else f"{value:.2g}"
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["errors", "samples", "frechet", "tables", "picture"])
    parser.add_argument("-n", type=int, default=1000, help="frechet: samples (default 1000)")
    parser.add_argument("--calls", type=int, default=40, help="frechet: network calls (default 40)")
    parser.add_argument("--images", type=int, default=4000, help="samples: images for the loss (default 4000)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "samples":
        samples(given.images)
    elif given.command == "frechet":
        frechet(given.n, given.calls)
    else:
        {"errors": errors, "tables": tables, "picture": picture}[given.command]()


if __name__ == "__main__":
    main()
