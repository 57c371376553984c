"""The variational bound in numbers: the variance of its forms, its gap to ln p, and bits/dim of two networks with an error bar.

    python benchmarks/elbo.py            # everything: docs/results/elbo.csv, and prints the tables; 3 minutes of one core
    python benchmarks/elbo.py --tables   # the tables from that file

The MNIST network needs SDEDIFF_DATA, or ../shared/data; without it its rows are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sdediff import (
    Bound,
    DiscretizedDecoder,
    Gaussian,
    LogSNR,
    Mixture,
    Model,
    Uniform,
    VPLinear,
    White,
    continuous_bound,
    elbo,
    load_model,
)
from sdediff.data import data_folder, digits, mnist
from sdediff.interop.hot_vs_cold import load_hot_vs_cold
from sdediff.pretrained.scores import digits_path

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "elbo.csv"
RING = [[math.cos(a), math.sin(a)] for a in np.arange(8) * math.pi / 4]
DRAWS = 2


# --- the variance of the forms ------------------------------------------------------------------------------------


def forms(name: str, model: Model, x: Tensor, grid: LogSNR | Uniform, steps: int) -> Iterator[dict[str, Any]]:
    """The variance of one draw of every step, mean over the samples: of the step and of their sum, for each form."""
    knots = grid.knots(model.schedule, steps)
    for form in ("kl", "sampled", "pairs"):  # "noise" is "kl", to 1e-12
        bound = elbo(model, x, knots, form=form, draws=DRAWS, decoder_draws=1)
        of_one = np.array([row.standard_error**2 * len(x) * DRAWS for row in bound.steps])
        nats = np.array([row.nats for row in bound.steps])
        about = {"table": "forms", "problem": name, "grid": repr(grid), "steps": steps, "form": form}
        yield {**about, "row": "sum", "nats": nats.sum(), "variance": of_one.sum()}
        for i in np.linspace(0, steps - 1, 6).round().astype(int):
            row = bound.steps[i]
            yield {**about, "row": f"step {i + 1}", "time": row.time, "snr": row.snr, "nats": nats[i], "variance": of_one[i]}


# --- the gap to ln p ----------------------------------------------------------------------------------------------


def gaps() -> Iterator[dict[str, Any]]:
    """ln p - bound of a Gaussian's own exact model, mean over the data, without Monte Carlo."""
    model = Gaussian([0.0, 0.0], [1.0, 0.05], schedule=VPLinear())
    points = torch.cat([math.sqrt(2) * torch.diag(model.variances.sqrt()), -math.sqrt(2) * torch.diag(model.variances.sqrt())])
    from_data = model.log_density(points, model.schedule.knot(0.0)).mean()  # the points integrate every quadratic of the data
    for grid in (Uniform(), LogSNR()):
        for steps in (10, 30, 100, 300, 1000):
            for variance in ("small", "large"):
                bound = elbo(model, points, grid.knots(model.schedule, steps), variance=variance, draws="cubature")
                about = {"table": "gap", "grid": repr(grid), "steps": steps, "variance_of_p": variance}
                yield {**about, "nats": float(from_data - bound.value.mean())}
    bound = continuous_bound(model, points, times=60, draws="cubature")
    yield {"table": "gap", "grid": "continuous", "nats": float(from_data - bound.value.mean())}


# --- bits/dim of networks -----------------------------------------------------------------------------------------


def fitted(model: Model, x: Tensor, decoder: DiscretizedDecoder, end: float) -> DiscretizedDecoder:
    """The decoder with the largest of the variances that fit other images best, given the model's x0 at the last knot."""
    t = model.schedule.knot(end)
    with torch.no_grad():
        mean = model(model.schedule.forward(x, t, White(1).on(x).fresh(0)), t).x0.tensor().double()
    candidates = [replace(decoder, variance=float(v)) for v in t.u2 * np.logspace(1, -3, 41)]
    nats = [round(float(d.log_density(x.double(), mean, t).mean()), 6) for d in candidates]
    return candidates[int(np.argmax(nats))]


def networks() -> Iterator[tuple[str, Model, Tensor, Tensor, DiscretizedDecoder, int]]:
    """(name, model, images, other images, decoder, parts of the steps)."""
    chosen = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = digits().x[chosen]
    yield "digits network", load_model(digits_path()), x[:500], x[500:1000], DiscretizedDecoder(17), 50
    folder = data_folder()
    if folder is not None:
        model = load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth")
        x = mnist(folder / "mnist", "test").x[:384] / 2
        yield "MNIST network", model, x[:256], x[256:], DiscretizedDecoder(256, -0.5, 0.5), 16


def bits() -> Iterator[dict[str, Any]]:
    """bits/dim of the networks: even steps in time as in training, and continuous time."""
    for name, model, x, others, plain, parts in networks():
        end = model.schedule.t_min
        options: dict[str, Any] = {"draws": DRAWS, "decoder_draws": 4, "batch": 128, "times": parts}
        about = {"table": "bits", "problem": name}
        knots, decoder = Uniform().knots(model.schedule, round((1 - end) / end)), fitted(model, others, plain, end)
        for variance in ("small", "large"):
            bound = elbo(model, x, knots, decoder=decoder, variance=variance, **options)
            yield {**about, "setting": f"{len(knots) - 1} steps, {variance}", **of_bound(bound, decoder)}
        for to in (end / 10, end, 3 * end, 10 * end):
            decoder = fitted(model, others, plain, to)
            bound = continuous_bound(model, x, end=to, decoder=decoder, **options)
            yield {**about, "setting": f"continuous to {to:g}", **of_bound(bound, decoder)}


def of_bound(bound: Bound, decoder: DiscretizedDecoder) -> dict[str, Any]:
    scale = 1 / (bound.dimension * math.log(2))
    value, error = bound.mean()
    prior, consistency, reconstruction = (float(part.mean()) * scale for part in bound.parts)
    return {
        "samples": len(bound.value),
        "calls": bound.calls,
        "bits": -value * scale,
        "error": error * scale,
        "error_of_noise": float(bound.standard_error.square().mean().sqrt()) * scale / math.sqrt(len(bound.value)),
        "prior": prior,
        "consistency": consistency,
        "reconstruction": -reconstruction,
        "decoder_std_in_levels": math.sqrt(decoder.variance or math.nan) / decoder.width,
    }


# --- tables -------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> None:
    """Print what the page shows."""
    of_forms = [r for r in rows if r["table"] == "forms"]
    table("variance of one draw of every step, of the sum", by_form([r for r in of_forms if r["row"] == "sum"], ("problem", "steps")))
    one = [r for r in of_forms if r["row"] != "sum" and r["problem"] == "digits network" and r["steps"] == 100]
    table("variance of one draw, step by step, digits network, 100 steps", by_form(one, ("row", "time", "snr")))
    gap = [r for r in rows if r["table"] == "gap"]
    table("ln p - bound, nats, a Gaussian's exact model", [{k: r[k] for k in ("grid", "variance_of_p", "steps", "nats")} for r in gap])
    keys = ("setting", "bits", "error", "error_of_noise", "prior", "consistency", "reconstruction", "decoder_std_in_levels", "calls")
    table("bits/dim", [{k: r[k] for k in ("problem", *keys)} for r in rows if r["table"] == "bits"])


def by_form(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One line for each place, one column for each form."""
    found: dict[tuple, dict[str, Any]] = {}
    for r in rows:
        place = tuple(r[k] for k in keys)
        line = found.setdefault(place, {**dict(zip(keys, place, strict=True)), "nats": r["nats"]})
        line[r["form"]] = r["variance"]
    return list(found.values())


def table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="print the tables of the file that is there")
    if not parser.parse_args().tables:
        ring, net = Mixture(RING, [0.1] * 8, schedule=VPLinear()), load_model(digits_path())
        x, images = ring.sample(1000, seed=1), digits().x[:200]
        rows = [r for n in (10, 100, 1000) for r in forms("ring of 8", ring, x, LogSNR(), n)]
        rows += [r for n in (10, 100, 500) for r in forms("digits network", net, images, LogSNR(), n)]
        rows += [*gaps(), *bits()]
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.8g")
    tables([{str(k): v for k, v in r.items()} for r in pd.read_csv(RESULTS).to_dict("records")])


if __name__ == "__main__":
    main()
