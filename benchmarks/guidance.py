"""Guidance in numbers and pictures: what its scale does to accuracy, spread and distance.

    python benchmarks/guidance.py --part mixture     # closed-form models: docs/results/guidance_mixture.csv, docs/img/guidance_mixture.png
    python benchmarks/guidance.py --part network --checkpoint model.safetensors --samples 10000 --scales 0,1,1.5,2,3,5

The second takes any class-conditional network of 8x8 or 28x28 digits (a checkpoint of ours) and judges it by our classifier of such images:
docs/results/guidance.csv, docs/img/guidance.png. The mixture takes 15 seconds of one core; the network as long as its calls. 28x28 needs
SDEDIFF_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sdediff import (
    DDIM,
    CFGPlusPlus,
    ClassifierFree,
    ClassifierGuidance,
    Fixed,
    Interval,
    LabelledMixture,
    LogSNR,
    Model,
    Solver,
    VPLinear,
    guided,
    latents,
    load_model,
    recommend,
    sample,
    solve,
)
from sdediff.data import Dataset, data_folder, digits, mnist
from sdediff.guidance import Guidance
from sdediff.metrics import frechet_distance, moments, noise_floor, sliced_wasserstein
from sdediff.names import label
from sdediff.pretrained import feature_extractor
from sdediff.study.figures import picture

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "img"

# --- closed form --------------------------------------------------------------------------------------------------

SCHEDULE = VPLinear()
MEANS, STDS, OF = [[1.0, 0.0], [0.3, 0.9], [-0.9, 0.4], [-0.6, -0.8], [0.5, -0.9]], [0.2, 0.3, 0.25, 0.2, 0.35], (0, 0, 1, 1, 2)
SHARES = [1, 2, 3, 2, 1]
MIXTURE = LabelledMixture(MEANS, STDS, OF, SHARES, schedule=SCHEDULE)
BLURRED = LabelledMixture(MEANS, [(s**2 + 0.15) ** 0.5 for s in STDS], OF, SHARES, schedule=SCHEDULE)  # a weaker model of the same data
EACH, STEPS = 1500, 30
CASES: list[tuple[str, Guidance, Solver | None]] = [
    *(("classifier-free", ClassifierFree(w), None) for w in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)),
    *(("classifier", ClassifierGuidance(w), None) for w in (1.0, 3.0)),
    *(("interval", ClassifierFree(w, Interval(0.2, 2.0)), None) for w in (1.5, 2.0, 3.0, 5.0)),
    *(("autoguidance", ClassifierFree(w), None) for w in (1.5, 2.0, 3.0)),
    *(("CFG++", CFGPlusPlus(w), DDIM()) for w in (0.0, 0.1, 0.2, 0.4, 0.6, 1.0)),
]


def mixture_rows() -> Iterator[dict[str, Any]]:
    """Every method and scale on the labelled mixture: samples of each class against exact ones."""
    labels = torch.arange(3).repeat_interleave(EACH)
    conditional = MIXTURE.with_labels(labels)
    exact = conditional.sample(len(labels), seed=100)
    x = latents(MIXTURE, len(labels), seed=0, dtype=torch.float64)
    end = SCHEDULE.knot(SCHEDULE.t_min)
    for method, guidance, solver in CASES:
        weaker = BLURRED.with_labels(labels) if method == "autoguidance" else None
        classifier = MIXTURE.classify if isinstance(guidance, ClassifierGuidance) else None
        model = guided(MIXTURE, guidance, labels, weaker=weaker, classifier=classifier)
        made, knots = (solver, Fixed(LogSNR().knots(SCHEDULE, STEPS))) if solver else recommend(SCHEDULE, STEPS)
        run = solve(made, model, x, knots)
        yield {
            "method": method,
            "scale": guidance.scale,
            "guidance": label(guidance),
            "calls": run.calls,
            "accuracy": float((MIXTURE.classify(run.x, end).argmax(1) == labels).double().mean()),
            "spread": _spread(run.x, labels) / _spread(exact, labels),
            "distance": sum(sliced_wasserstein(run.x[labels == y], exact[labels == y], 64) for y in range(3)) / 3,
            "floor": sum(sliced_wasserstein(conditional.sample(len(labels), seed=7)[labels == y], exact[labels == y], 64) for y in range(3))
            / 3,
        }


def _spread(x: Tensor, labels: Tensor) -> float:
    """The root of the variance inside a class, mean over the classes."""
    inside = [x[labels == y].double().flatten(1).var(0).sum() for y in range(int(labels.max()) + 1)]
    return float(torch.stack(inside).mean().sqrt())


def mixture_picture(table: pd.DataFrame, path: Path) -> None:
    """Scale against accuracy, spread and distance; under it samples of one class."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.6))
    for place, (what, title) in zip(
        axes[0],
        {
            "accuracy": "accuracy (Bayes' classifier)",
            "spread": "spread in a class / exact",
            "distance": "sliced Wasserstein to p(x | y)",
        }.items(),
        strict=True,
    ):
        for method, rows in table.groupby("method", sort=False):
            place.plot(rows["scale"], rows[what], "o-", label=method, markersize=4)
        place.set_title(title, fontsize=10)
        place.set_xlabel("scale")
    axes[0, 0].legend(fontsize=8)
    labels = torch.full((600,), 1)
    cloud = MIXTURE.sample(2000, seed=3)
    for place, w in zip(axes[1], (1.0, 2.0, 5.0), strict=True):
        x = sample(guided(MIXTURE, ClassifierFree(w), labels), len(labels), steps=STEPS, dtype=torch.float64)
        place.plot(*cloud.T, ".", color="0.85", markersize=2)
        place.plot(*x.T, ".", markersize=3)
        place.set_title(f"one class, scale {w:g}", fontsize=10)
        place.set_aspect("equal")
        place.set_xlim(-2, 2)
        place.set_ylim(-2, 2)
    _save(figure, path)


# --- a network ----------------------------------------------------------------------------------------------------


def data_of(model: Model) -> tuple[str, Dataset]:
    """The real images that a network of this shape learned from, and the name of their classifier."""
    if model.shape == (1, 8, 8):
        return "digits", digits()
    if model.shape == (1, 28, 28):
        folder = data_folder()
        if folder is None:
            raise SystemExit("MNIST is not here: export SDEDIFF_DATA=/path/to/the/folder that has mnist/.")
        return "mnist", mnist(folder / "mnist")
    raise SystemExit(f"there is no classifier for images of shape {model.shape}: give a network of digits, 8x8 or 28x28.")


@torch.no_grad()
def network_rows(model: Any, cases: list[Guidance], n: int, steps: int, batch: int) -> Iterator[dict[str, Any]]:
    """Every guidance: Frechet distance to the real images, accuracy, and what is left of the spread inside a class (in features)."""
    name, data = data_of(model)
    net = feature_extractor(name)
    labels = torch.arange(n) % 10

    def features(x: Tensor) -> Tensor:
        return torch.cat([net.features(part) for part in x.split(1000)])

    real, of = features(data.x), data.labels
    assert of is not None
    known, spread, floor = moments(real), _spread(real, of), noise_floor(real, repeats=4, size=n)[0]
    for guidance in cases:
        began = time.perf_counter()
        solver = DDIM() if isinstance(guidance, CFGPlusPlus) else None
        x = sample(guided(model, guidance, labels), n, steps=steps, solver=solver, batch=batch)
        seconds = time.perf_counter() - began
        found = features(x)
        yield {
            "network": name,
            "method": type(guidance).__name__ + ("" if guidance.interval is None else ", interval"),
            "scale": guidance.scale,
            "guidance": label(guidance),
            "samples": n,
            "steps": steps,
            "frechet": frechet_distance(found, known),
            "floor": floor,
            "accuracy": float((net.head(found).argmax(1) == labels).double().mean()),
            "spread": _spread(found, labels) / spread,
            "seconds": seconds,
        }


def network_picture(table: pd.DataFrame, model: Any, steps: int, path: Path) -> None:
    """Scale against distance, accuracy and spread; under it the same ten latents at several scales."""
    figure = plt.figure(figsize=(11, 6.8))
    shown = {"frechet": "Frechet distance (features)", "accuracy": "classifier's accuracy", "spread": "spread in a class / real"}
    for i, (what, title) in enumerate(shown.items()):
        place = figure.add_subplot(2, 3, i + 1)
        for method, rows in table.groupby("method", sort=False):
            place.plot(rows["scale"], rows[what], "o-", label=method, markersize=4)
        if what == "frechet":
            place.axhline(table["floor"].iloc[0], color="0.6", linestyle=":", label="real against real")
            place.set_yscale("log")
            place.legend(fontsize=8)
        place.set_title(title, fontsize=10)
        place.set_xlabel("scale")
    scales = sorted(table.loc[table["method"] == "ClassifierFree", "scale"])
    place = figure.add_subplot(2, 1, 2)
    rows = [sample(guided(model, ClassifierFree(w), torch.arange(20) % 10), 20, steps=steps) for w in scales]
    place.imshow(np.vstack([np.hstack([np.pad(picture(i), 1, constant_values=0.4) for i in x]) for x in rows]), cmap="gray", vmin=0, vmax=1)
    side = rows[0].shape[-1] + 2
    place.set_yticks([(i + 0.5) * side for i in range(len(scales))], [f"scale {w:g}" for w in scales], fontsize=8)
    place.set_xticks([])
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(table: pd.DataFrame, columns: list[str]) -> None:
    """The table for the docs."""
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for _, row in table.iterrows():
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in (row[c] for c in columns)) + " |")


def main() -> None:
    """Run one part and print its table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--part", choices=("mixture", "network"), default="mixture")
    asked.add_argument("--checkpoint", type=Path)
    asked.add_argument("--samples", type=int, default=10_000)
    asked.add_argument("--scales", default="0,0.5,1,1.5,2,3,5")
    asked.add_argument("--steps", type=int, default=30)
    asked.add_argument("--batch", type=int, default=500)
    asked.add_argument("--interval", default="0.3,3", help="sigma/alpha from, to; empty: without")
    asked.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder that has results/ and img/")
    options = asked.parse_args()
    results, images = options.out / "results", options.out / "img"
    results.mkdir(parents=True, exist_ok=True)
    if options.part == "mixture":
        table = pd.DataFrame(mixture_rows())
        table.to_csv(results / "guidance_mixture.csv", index=False, float_format="%.6g")
        mixture_picture(table, images / "guidance_mixture.png")
        return markdown(table, ["method", "scale", "calls", "accuracy", "spread", "distance", "floor"])
    if options.checkpoint is None:
        asked.error("--part network needs --checkpoint")
    model: Any = load_model(options.checkpoint)
    scales = [float(w) for w in options.scales.split(",")]
    cases: list[Guidance] = [ClassifierFree(w) for w in scales]
    if options.interval:
        low, high = (float(u) for u in options.interval.split(","))
        cases += [ClassifierFree(w, Interval(low, high)) for w in scales if w > 1]
    cases += [CFGPlusPlus(w) for w in (0.2, 0.6, 1.0)]
    rows = []
    for row in network_rows(model, cases, options.samples, options.steps, options.batch):
        rows.append(row)
        print(f"{row['guidance']}: frechet {row['frechet']:.4g}, accuracy {row['accuracy']:.4f}, {row['seconds']:.0f} s", flush=True)
        pd.DataFrame(rows).to_csv(results / "guidance.csv", index=False, float_format="%.6g")
    network_picture(pd.DataFrame(rows), model, options.steps, images / "guidance.png")
    markdown(pd.DataFrame(rows), ["method", "scale", "frechet", "accuracy", "spread"])


if __name__ == "__main__":
    main()
