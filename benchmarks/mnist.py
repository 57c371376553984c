"""The MNIST network of the package: how good it samples, how smooth it is in time, and what part of the time of sampling is the network's.

Quality: the Frechet distance of N samples, their classes in the proportions of the training images, to all 60000 of these (the committed
reference statistics), beside the floor: N random training images against the others, in ten splits.
Smoothness: RK4 with 50 and with 100 steps from the same latents. Share of the network: 50 steps of DDIM for a batch of 100, median of
five runs.

    SDEDIFF_DATA=/path/to/data python benchmarks/mnist.py [--samples 10000] [--calls 40] [--checkpoint FILE]     # about 10 minutes
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from systems import DOCS, write

from sdediff import DDIM, Angle, ClassifierFree, LogSNR, RungeKutta, Sigma, guided, latents, load, sample, solve
from sdediff.data import open_source
from sdediff.metrics import frechet_distance, noise_floor
from sdediff.pretrained import feature_extractor
from sdediff.pretrained.reference import reference
from sdediff.study import figures

PARTS = ("smooth", "share", "sheet", "floor", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--checkpoint", default="mnist")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    model: Any = load(given.checkpoint)
    make = {"smooth": smooth, "share": share, "sheet": sheet, "floor": lambda _: floor(given.samples)}
    make["quality"] = lambda m: quality(m, given.samples, given.calls)
    rows: list[dict[str, Any]] = []
    for part in given.part:
        for row in make[part](model):
            print(f"{row['what']} | {row['value']:.4g}", flush=True)
            rows.append(row)
    if tuple(given.part) == PARTS:
        write(DOCS / "results" / "mnist_network.csv", rows)


def smooth(model: Any) -> list[dict[str, Any]]:
    """RK4 with 50 and 100 steps."""
    x, asked = latents(model, 64), model.with_labels(torch.arange(64) % 10)
    rows = []
    for coordinates in (Sigma(), Angle()):
        a, b = (solve(RungeKutta("rk4", coordinates), asked, x, LogSNR().knots(model.schedule, n)).x for n in (50, 100))
        rows.append({"what": f"RK4, 50 against 100 steps, {coordinates!r}: RMS", "value": float((a - b).square().mean().sqrt())})
    return rows


def share(model: Any) -> list[dict[str, Any]]:
    """The network's part of the wall time at 50 steps, batch 100."""
    x, knots = latents(model, 100), LogSNR().knots(model.schedule, 50)
    inside = [0.0]
    asked = model.with_labels(torch.arange(100) % 10)
    net = asked.net

    def timed(*what: Any) -> Any:
        begin = time.perf_counter()
        answer = net(*what)
        inside[0] += time.perf_counter() - begin
        return answer

    asked.net = timed
    shares = []
    for _ in range(6):
        inside[0], begin = 0.0, time.perf_counter()
        solve(DDIM(), asked, x, knots)
        shares.append(inside[0] / (time.perf_counter() - begin))
    return [{"what": "network share of the time, DDIM 50 steps, batch 100", "value": statistics.median(shares[1:])}]


def sheet(model: Any) -> list[dict[str, Any]]:
    """docs/img/mnist_classes.png: classes in columns; without and with guidance."""
    labels, x = torch.arange(40) % 10, latents(model, 40, seed=1)
    plain, leaning = model.with_labels(labels), guided(model, ClassifierFree(2.0), labels)
    none = model.with_labels(torch.full((40,), 10))
    rows: list[tuple[str, Any]] = []
    for name, asked in (("no label", none), ("w = 1", plain), ("w = 2", leaning)):
        images = sample(asked, 40, calls=40, start=(x, model.schedule.knot(model.schedule.t_max)))
        rows += [(name if i == 0 else "", part) for i, part in enumerate(images[:20].split(10))]
    figures.sheet(rows, DOCS / "img" / "mnist_classes.png", title="The MNIST network: each column one class, the same latents", columns=10)
    return []


@torch.no_grad()
def quality(model: Any, n: int, calls: int) -> list[dict[str, Any]]:
    """Frechet distances and the classifier's agreement with the class asked for."""
    source, net, real = open_source("mnist"), feature_extractor("mnist"), reference("mnist")
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    _, labels = source.batch(chosen[:n])
    assert labels is not None
    x = sample(model.with_labels(labels), n, calls=calls, batch=250)
    features = torch.cat([net.features(part) for part in x.split(1000)])
    agree = float((net.head(features).argmax(1) == labels).float().mean())
    return [
        {"what": f"Frechet distance of {n} samples, {calls} calls", "value": frechet_distance(features, real)},
        {"what": "classifier agrees with the class asked for", "value": agree},
    ]


@torch.no_grad()
def floor(n: int, splits: int = 10) -> list[dict[str, Any]]:
    """n real images against the others, in several splits."""
    source, net = open_source("mnist"), feature_extractor("mnist")
    all_of = torch.cat([net.features(source.batch(rows)[0]) for rows in torch.arange(len(source)).split(1000)])
    mean, std = noise_floor(all_of, repeats=splits, size=n)
    what = f"floor: {n} real images against the others, {splits} splits"
    return [{"what": f"{what}: mean", "value": mean}, {"what": f"{what}: standard deviation", "value": std}]


if __name__ == "__main__":
    main()
