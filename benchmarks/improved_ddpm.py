"""The improved-DDPM claim in small: bits/dim at few ancestral steps, of learned variances against both fixed ones, cosine against linear.

Two digits networks of the recipe `iddpm` (hybrid loss), one on the cosine and one on the linear betas, 80 % of the digits to train on. The
bound of the held-out fifth, `elbo` with the discretised decoder of 17 levels, on even sub-sequences of N = 4 to 1000 of the 1000 steps:
the same network with the learned, the small and the large variance. x0 is clipped to [-1, 1] as in the published code: at alpha = 5e-5,
where few steps begin, an error of eps is divided by that otherwise. ± is the standard error over images, steps and draws.

    python benchmarks/improved_ddpm.py [--steps 3000] [--images 200]        # about 10 minutes on 2 cores; docs/models.md
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from systems import DOCS, write

from sdediff import clipped, elbo, load_model
from sdediff.data import held_out, open_source
from sdediff.decoders import DiscretizedDecoder
from sdediff.recipe import Recipe, model_file, read_recipe
from sdediff.train import Denoising, fit

BUDGETS = (4, 10, 25, 100, 1000)
VARIANCES = ("learned", "small", "large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, test = held_out(open_source("digits"))
    images, _ = test.batch(torch.arange(min(given.images, len(test))))
    rows: list[dict[str, Any]] = []
    for betas in ("cosine", "linear"):
        recipe = replace(read_recipe("iddpm"), schedule={"name": f"DiscreteVP.{betas}"}).changed(steps=given.steps)
        with tempfile.TemporaryDirectory() as folder:
            model = learned(recipe, train, Path(folder))
        for n in BUDGETS:
            for variance in VARIANCES:
                found = bound(model, images, n, variance)
                rows.append({"betas": betas, "steps": n, "variance": variance, "bits_per_dim": found[0], "error": found[1]})
                print(f"{betas} | {n} | {variance} | {found[0]:.3f} ± {found[1]:.3f}", flush=True)
    write(DOCS / "results" / "improved_ddpm.csv", rows)


def learned(recipe: Recipe, train: Any, folder: Path) -> Any:
    task = recipe.task(train)
    assert isinstance(task, Denoising)
    for _ in fit(task, train, recipe.how(), folder=folder):
        pass
    return load_model(folder / model_file(recipe))


def bound(model: Any, images: torch.Tensor, n: int, variance: str) -> tuple[float, float]:
    """(bits/dim, its standard error) of n of the schedule's own 1000 steps, the decoder being the last."""
    schedule = model.schedule
    kept = torch.linspace(0, schedule.n - 1, n).round().long().flip(0).tolist()
    knots = tuple(schedule.knot(schedule.time_of(i)) for i in kept)
    found = elbo(clipped(model), images, knots=knots, variance=variance, decoder=DiscretizedDecoder(17), times=min(n - 1, 50))
    (value, error), scale = found.mean(), images[0].numel() * math.log(2)
    return -value / scale, error / scale


if __name__ == "__main__":
    main()
