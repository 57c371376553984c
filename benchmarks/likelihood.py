"""Likelihoods: exact traces against closed forms, coverage of the error bars, the steps' error, and bits/dim of digits and MNIST.

    python benchmarks/likelihood.py [exact coverage steps kde digits mnist] [--images 64] [--mnist 16]

Writes docs/results/likelihood.csv (of the parts that ran; the others keep their rows) and prints the tables of docs/likelihood.md.
Five minutes on one core with the numbers above.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff import (
    EDM,
    DPMSolverPPMultistep,
    Empirical,
    FlowMatching,
    Gaussian,
    Heun,
    Hutchinson,
    HutchPP,
    Levels,
    Mixture,
    RungeKutta,
    Schedule,
    TorchDiffEq,
    VPCosine,
    VPLinear,
    load_model,
    log_likelihood,
    smooth_time,
)
from sdediff.data import data_folder, digits, mnist
from sdediff.interop.hot_vs_cold import load_hot_vs_cold
from sdediff.likelihood import PARTS, LogLikelihood
from sdediff.pretrained.scores import digits_path

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "likelihood.csv"
VP = VPLinear()
Row = dict[str, Any]


def mixture(d: int, schedule: Schedule = VP, modes: int = 8, std: float = 0.25) -> Mixture:
    means = 0.7 * torch.randn(modes, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return Mixture(means, [std * (1 + 0.2 * i) for i in range(modes)], schedule=schedule)


def correlated(d: int, schedule: Schedule = VP) -> Gaussian:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) / math.sqrt(d)
    return Gaussian(torch.linspace(-0.5, 0.5, d), a @ a.T + 0.02 * torch.eye(d, dtype=torch.float64), schedule=schedule)


def closed(model: Any, x: Tensor, t_min: float | None = None) -> Tensor:
    """What "clean" is in closed form: the log-density of the data blurred by sigma/alpha at t_min."""
    t = model.schedule.knot(model.schedule.t_min if t_min is None else t_min)
    return model.log_density(t.alpha * x, t) + x.shape[1] * t.log_alpha


def rms(e: Tensor) -> float:
    return float(e.square().mean().sqrt())


def exact() -> Iterator[Row]:
    """Exact trace, worst of 32 samples, against the closed form."""
    for schedule in (VP, VPCosine(), EDM(), FlowMatching()):
        for d in (2, 16, 64):
            for name, model in (("mixture", mixture(d, schedule)), ("Gaussian", correlated(d, schedule))):
                x = model.sample(32, seed=1)
                for tolerance in (1e-5, 1e-6):
                    found = log_likelihood(model, x, prior=model, tolerance=tolerance)
                    error = (found.value - closed(model, x)).abs()
                    yield {
                        "model": f"{name}, {type(schedule).__name__}",
                        "dimension": d,
                        "setting": f"tolerance {tolerance:g}",
                        "worst nats": float(error.max()),
                        "estimate": float(found.budget.ode.max()),
                        "true / estimate, 95 %": float((error / found.budget.ode).quantile(0.95)),
                        "calls": found.calls,
                    }


def coverage(runs: int = 1000) -> Iterator[Row]:
    """How often the 95 % interval holds the closed form: 1000 draws of the data, each with probes of its own."""
    for name, model in (("Gaussian", correlated(32)), ("mixture of 8", mixture(16)), ("mixture of 8", mixture(64))):
        x = model.sample(runs, seed=2)
        truth = closed(model, x)
        traces = [Hutchinson(4), Hutchinson(8), Hutchinson(12), Hutchinson(12, "gaussian"), Hutchinson(12, "sphere"), HutchPP(12)]
        for trace in traces:
            found = log_likelihood(model, x, trace=trace, prior=model, tolerance=1e-4)
            low, high = found.interval()
            yield {
                "model": name,
                "dimension": model.shape[0],
                "setting": repr(trace),
                "coverage": float(((low <= truth) & (truth <= high)).double().mean()),
                "of Student's": float(((found.value - truth).abs() <= student(trace.columns) * found.standard_error).double().mean()),
                "rms nats": rms(found.value - truth),
                "standard error": rms(found.standard_error),
            }


def student(n: int) -> float:
    from scipy import special

    return float(special.stdtrit(n - 1, 0.975))


def steps() -> Iterator[Row]:
    """Error against calls on knots, and what the difference to half the steps says of it."""
    model = mixture(16)
    x = model.sample(32, seed=3)
    truth = closed(model, x)
    for solver in (None, DPMSolverPPMultistep(), Heun(), RungeKutta()):
        for n in (20, 40, 80):
            yield _stepped("recommended" if solver is None else repr(solver), model, x, truth, solver=solver, steps=n)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        yield _stepped("AdaptiveAdams()", model, x, truth, tolerance=tolerance)
    yield _stepped("TorchDiffEq()", model, x, truth, solver=TorchDiffEq(), tolerance=1e-5)


def _stepped(name: str, model: Any, x: Tensor, truth: Tensor, **how: Any) -> Row:
    found = log_likelihood(model, x, prior=model, **how)
    error = (found.value - truth).abs()
    setting = ", ".join(f"{k} {v:g}" for k, v in how.items() if k != "solver")
    return {
        "model": name,
        "dimension": x.shape[1],
        "setting": setting,
        "rms nats": rms(error),
        "estimate": rms(found.budget.ode),
        "true / estimate, 95 %": float((error / found.budget.ode).quantile(0.95)),
        "calls": found.calls,
    }


def kde(images: int) -> Iterator[Row]:
    """Held-out digits under a kernel density estimate of 1500 others: exact trace against the closed form, in bits/dim."""
    train, held_out = digits_split()
    x = held_out[: max(images // 4, 1)].flatten(1).double()
    for bandwidth in (0.1, 0.2):
        model = Empirical(train, bandwidth, schedule=VP)
        for t_min in (1e-3, 1e-4):
            found = log_likelihood(model, x, prior=model, t_min=t_min)
            nat = 64 * math.log(2)
            yield {
                "model": f"bandwidth {bandwidth}",
                "dimension": 64,
                "setting": f"t_min {t_min:g}",
                "bits/dim": float(found.bits(Levels(-1, 1, 17)).mean()),
                "worst against p at t_min": float((found.value - closed(model, x, t_min)).abs().max()) / nat,
                "worst against p of the data": float((found.value - model.log_density(x, VP.knot(0.0))).abs().max()) / nat,
                "truncation said": float(found.budget.truncation.max()) / nat,
                "calls": found.calls,
            }


def digits_split() -> tuple[Tensor, Tensor]:
    """(1500 digits, 297 others)."""
    x = digits().x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1500]], x[order[1500:]]


DEQUANTISED: list[tuple[str, Row]] = [
    ("clean, uniform", {}),
    ("noised, uniform", {"start": "noised"}),
    ("truncated normal", {"dequantise": "truncated_normal"}),
    ("clean, uniform, t_min 0.005", {"t_min": 0.005}),
    ("clean, uniform, t_min 0.02", {"t_min": 0.02}),
]


def digits_network(images: int) -> Iterator[Row]:
    """Bits/dim of the committed digits network on images of the data set."""
    model, levels = load_model(digits_path()), Levels(-1, 1, 17)
    x = digits_split()[1][:images]
    for name, how in DEQUANTISED:
        yield _bits("digits network", f"{name}, exact", log_likelihood(model, x, levels=levels, **how))
    for trace in (Hutchinson(8), Hutchinson(24), HutchPP(24)):
        yield _bits("digits network", f"clean, uniform, {trace!r}", log_likelihood(model, x, levels=levels, trace=trace))


def mnist_network(images: int) -> Iterator[Row]:
    """Bits/dim of the third-party MNIST network on test images, its time embedding smoothed and not."""
    folder = data_folder()
    if folder is None:
        print("no MNIST: ../shared/data is missing and SDEDIFF_DATA is not set", file=sys.stderr)
        return
    raw = load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth")
    x, levels = mnist(folder / "mnist", "test").x[:images] / 2, Levels(-0.5, 0.5, 256)
    few: Row = {"levels": levels, "trace": Hutchinson(4), "tolerance": 1e-4}
    yield _bits("MNIST network, smoothed", "clean, uniform, 4 probes", log_likelihood(smooth_time(raw), x, **few))
    yield _bits("MNIST network, smoothed", "noised, uniform, 4 probes", log_likelihood(smooth_time(raw), x, start="noised", **few))
    yield _bits("MNIST network, smoothed", "clean, t_min 0.01, 4 probes", log_likelihood(smooth_time(raw), x, t_min=0.01, **few))
    few["tolerance"] = 1e-3
    yield _bits("MNIST network", "clean, uniform, 4 probes, tolerance 1e-3", log_likelihood(raw, x, **few))


def _bits(model: str, setting: str, found: LogLikelihood) -> Row:
    (bits, error), nat = found.mean_bits, found.dimension * math.log(2)
    parts = {name: float(getattr(found.budget, name).mean()) / nat for name in PARTS}
    return {
        "model": model,
        "dimension": found.dimension,
        "setting": setting,
        "images": len(found.value),
        "bits/dim": bits,
        "+-": error,
        **parts,
        "calls": found.calls,
    }


def show(rows: list[Row]) -> None:
    """One Markdown table."""
    names = [k for k in rows[0] if k != "part"]
    print("\n| " + " | ".join(names) + " |", "|---" * len(names) + "|", sep="\n")
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in (row[k] for k in names)) + " |")


def write(found: dict[str, list[Row]]) -> None:
    """Replace the rows of the parts that ran."""
    kept = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["part"] not in found]
    rows = kept + [{"part": part, **row} for part, rows in found.items() for row in rows]
    names = list(dict.fromkeys(k for row in rows for k in row))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="exact, coverage, steps, kde, digits, mnist (default: all)")
    parser.add_argument("--images", type=int, default=64, help="digits (a quarter of them under the kernel density estimates)")
    parser.add_argument("--mnist", type=int, default=16, help="MNIST images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "exact": exact,
        "coverage": coverage,
        "steps": steps,
        "kde": lambda: kde(args.images),
        "digits": lambda: digits_network(args.images),
        "mnist": lambda: mnist_network(args.mnist),
    }
    unknown = set(args.parts) - set(parts)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    found = {}
    for name in args.parts or parts:
        begun = time.time()
        rows = list(parts[name]())
        if rows:
            found[name] = rows
            print(f"\n{name}: {time.time() - begun:.0f} s")
            show(rows)
            sys.stdout.flush()
            write({name: rows})


if __name__ == "__main__":
    main()
