"""What pairing gains: the spread of a difference of two step counts, on the same latents and paths against independent ones.

    python benchmarks/pairing.py                # about 10 minutes on one thread
    python benchmarks/pairing.py --part gap     # is a gap of 0.3 % of the Frechet distance resolved with 10 000 samples?

The studies run in a scratch folder, by the engine that `sdediff study run` uses, with many seeds. The difference of seed i is FD(few
calls) - FD(more calls), both from the latents and on the paths of seed i; the independent one has the second of them from seed i + 1.
Beside their ratio stands the standard error that the study itself says from one seed, which should be the paired spread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sdediff import Mixture, VPLinear, load
from sdediff.data import InMemory, open_source
from sdediff.features import extractor
from sdediff.study import Gathered, Job, Problem, Product, Store, Study, difference, gathered, groups_of, run

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SOLVERS = ("DDIM()", "Heun(Angle())", "DDPM()", "SDEDPMSolverPP(2)")
CALLS = (20, 40, 80)
SEEDS = 24


def oracle(dimensions: int = 8, components: int = 5) -> Problem:
    """A Gaussian mixture whose score is closed form, and 50 000 exact samples of it; compared as they are."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(components, dimensions, generator=generator, dtype=torch.float64)
    stds = 0.2 + 0.3 * torch.rand(components, generator=generator, dtype=torch.float64)
    model = Mixture(means, stds, schedule=VPLinear())
    chosen = torch.randint(components, (50_000,), generator=generator)
    noise = torch.randn(50_000, dimensions, generator=generator, dtype=torch.float64)
    real = InMemory((means[chosen] + stds[chosen, None] * noise).float(), None, "mixture", None)
    return Problem(model, real, torch.arange(len(real)), {"pixels": extractor("pixels")})


def digits() -> Problem:
    """The package's network of the 8x8 digits, in our classifier's features."""
    source = open_source("digits")
    return Problem(load("digits"), source, torch.arange(len(source)), {"digits": extractor("digits")})


PROBLEMS = {"oracle": oracle, "digits": digits}


def measured(name: str, problem: Problem, samples: int, seeds: int, products: tuple[Product, ...], scratch: Path) -> Gathered:
    """The records of a study of this problem."""
    study = Study(name, products, samples=samples, seeds=tuple(range(seeds)), shown=0, reference={"none": True})
    job = Job(study, problem, Store(scratch / name))
    total, done, told = sum(w.chunks * w.calls for w in job.works), 0.0, 0
    for p in run(job):
        done += p.calls
        if 10 * done / total >= told + 1:
            told = int(10 * done / total)
            print(f"{name}: {10 * told} %", file=sys.stderr, flush=True)
    return gathered(job.store)


def gains(name: str, found: Gathered) -> list[dict[str, Any]]:
    """A line for each solver and pair of step counts."""
    rows = []
    lines = groups_of(found.cells, found.records)
    for curve in dict.fromkeys(g.curve for g in lines):
        own = [g for g in lines if g.curve == curve]
        for a, b in combinations(own, 2):
            x, y = (np.array([e["frechet"].value for e in g.each]) for g in (a, b))
            paired, apart = (x - y).std(ddof=1), (x - np.roll(y, 1)).std(ddof=1)
            said = np.mean([(e["frechet"] - f["frechet"]).se for e, f in zip(a.each, b.each, strict=True)])
            rows.append(
                {
                    "problem": name, "solver": curve, "stochastic": a.cell.stochastic, "calls": f"{a.cell.calls} - {b.cell.calls}",
                    "samples": found.study.samples, "repeats": len(x), "difference": (x - y).mean(), "paired": paired,
                    "independent": apart, "gain": apart / paired, "said_by_one_seed": said,
                }
            )  # fmt: skip
    return rows


def gap(scratch: Path) -> list[dict[str, Any]]:
    """Of step counts that are close, how small a gap one seed of 10 000 samples resolves."""
    rows = []
    for name, make in PROBLEMS.items():
        product = (Product(("DDIM()",), ("Quadratic()",), (50, 51, 100, 101, 102)),)
        found = measured(f"{name}-gap", make(), 10_000, 1, product, scratch)
        lines = groups_of(found.cells, found.records)
        for a, b in combinations(lines, 2):
            d, base = difference(a, b, "frechet"), a.each[0]["frechet"]
            low, high = d.interval()
            rows.append(
                {
                    "problem": name, "calls": f"{a.cell.calls} - {b.cell.calls}", "frechet": base.value,
                    "relative_gap": d.value / base.value,
                    "low": low / base.value, "high": high / base.value, "p": d.p_value, "resolved": d.p_value < 0.05,
                    "independent_low": (d.value - 1.96 * np.hypot(base.se, b.each[0]["frechet"].se)) / base.value,
                }
            )  # fmt: skip
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("gain", "gap"), default="gain")
    parser.add_argument("--samples", type=int, default=500)
    part, samples = parser.parse_args().part, parser.parse_args().samples
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if part == "gap":
            rows = gap(Path(folder))
        else:
            product = (Product(SOLVERS, ("Quadratic()",), CALLS),)
            rows = [
                r for name, make in PROBLEMS.items() for r in gains(name, measured(name, make(), samples, SEEDS, product, Path(folder)))
            ]
    RESULTS.mkdir(exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / ("pairing.csv" if part == "gain" else "pairing_gap.csv"), index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
