"""The improved-DDPM claim in small: bits/dim at few ancestral steps, of learned variances against both fixed ones, cosine against linear.

Two digits networks of the recipe `iddpm` (hybrid loss), one on the cosine and one on the linear betas, 80 % of the digits to train on. The
bound of the held-out fifth, `elbo` with the discretised decoder of 17 levels, on even sub-sequences of N = 4 to 1000 of the 1000 steps:
the same network with the learned, the small and the large variance, and with one number for each step, fitted to the error of the mean on
as many training images (Bao et al. 2022 have it in closed form). x0 is clipped to [-1, 1] as in the published code: at alpha = 5e-5, where
few steps begin, an error of eps is divided by that otherwise. ± is the standard error over images, steps and draws.

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
from sdediff.elbo import Bound
from sdediff.recipe import Recipe, model_file, read_recipe
from sdediff.train import Denoising, fit

BUDGETS = (4, 10, 25, 100, 1000)
TIMES = 50  # steps at most, drawn, at which the bound is looked at
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
            if n > 100:  # a number for each step needs every step
                continue
            found = fitted(model, train.batch(torch.arange(len(images)))[0], images, n)
            rows.append({"betas": betas, "steps": n, "variance": "fitted", "bits_per_dim": found[0], "error": found[1]})
            print(f"{betas} | {n} | fitted | {found[0]:.3f} ± {found[1]:.3f}", flush=True)
    write(DOCS / "results" / "improved_ddpm.csv", rows)


def learned(recipe: Recipe, train: Any, folder: Path) -> Any:
    task = recipe.task(train)
    assert isinstance(task, Denoising)
    for _ in fit(task, train, recipe.how(), folder=folder):
        pass
    return load_model(folder / model_file(recipe))


def bound(model: Any, images: torch.Tensor, n: int, variance: str) -> tuple[float, float]:
    """(bits/dim, its standard error) of n of the schedule's own 1000 steps, the decoder being the last."""
    (value, error), scale = measured(model, images, n, variance).mean(), images[0].numel() * math.log(2)
    return -value / scale, error / scale


def fitted(model: Any, known: torch.Tensor, images: torch.Tensor, n: int) -> tuple[float, float]:
    """The same with a variance for each step fitted to `known`; the standard error from ten parts of the images.

    A step whose mean costs m nats with q's own variance costs least with 1 + 2 m/d times that.
    """
    d = images[0].numel()
    ratios = [1 + 2 * term.nats / d for term in measured(model, known, n, "small", times=n - 1).steps]
    values = []
    for index in torch.arange(len(images)).chunk(10):
        found = measured(model, images[index], n, "small", index, times=n - 1)
        values.append(float((found.parts.prior - found.parts.reconstruction).mean()) + sum(rescaled(found, ratios)))
    bits = torch.tensor(values) / (d * math.log(2))
    return float(bits.mean()), float(bits.std() / math.sqrt(len(bits)))


def rescaled(small: Bound, ratios: list[float]) -> list[float]:
    """What the steps cost with the variances r n^2: m/r + d/2 (1/r - 1 + ln r), where m = k^2 |x0 - x0_hat|^2/(2 n^2) is that with n^2."""
    return [t.nats / r + small.dimension / 2 * (1 / r - 1 + math.log(r)) for t, r in zip(small.steps, ratios, strict=True)]


def measured(model: Any, images: torch.Tensor, n: int, variance: str, index: torch.Tensor | None = None, times: int = TIMES) -> Bound:
    schedule = model.schedule
    kept = torch.linspace(0, schedule.n - 1, n).round().long().flip(0).tolist()
    knots = tuple(schedule.knot(schedule.time_of(i)) for i in kept)
    decoder = DiscretizedDecoder(17)
    return elbo(clipped(model), images, knots=knots, variance=variance, decoder=decoder, times=min(n - 1, times), index=index)


if __name__ == "__main__":
    main()
