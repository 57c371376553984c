"""Every system that the recipes train on the digits, for the same time: the Frechet distance of what it samples, and a sheet of it.

Each recipe runs for SECONDS of processor time (its steps are set by a short trial), then 1000 samples by its own [sampling] are compared
with the 1797 digits in the features of our classifier; where classes are asked for, "right" is how often the classifier sees them.
The floor is that of two random halves of the digits. DDIM takes DDPM's weights.
`--part giant`: one decoder call from the VAE's prior beside 1, 5 and 20 diffusion steps (of a class-conditional network, classes even).

    python benchmarks/systems.py [--only ddpm edm] [--seconds 60]          # about 20 minutes on 2 cores; docs/models.md
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdediff import load_model
from sdediff.checkpoint import load_autoencoder
from sdediff.cli.drawing import draw, labels_named
from sdediff.data import digits
from sdediff.latent_diffusion import from_prior
from sdediff.metrics import frechet_distance, noise_floor
from sdediff.pretrained import feature_extractor
from sdediff.recipe import Recipe, model_file, read_recipe, run
from sdediff.study import figures

DOCS = Path(__file__).parents[1] / "docs"
SYSTEMS = ("ddpm", "iddpm", "iddpm-vlb", "adm", "cfg", "dit", "latent", "ve", "subvp", "edm", "flow")
N, TRIAL = 1000, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--part", choices=("systems", "giant"), default="systems")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.part == "giant":
            giant(Path(folder), given.seconds)
        else:
            systems(given.only, given.seconds, Path(folder))


def systems(names: tuple[str, ...], seconds: float, folder: Path) -> None:
    """Print the table, write docs/results/systems.csv (rows of other systems stay) and a sheet for each system."""
    floor = noise_floor(features(digits().x))
    print(f"noise floor of two halves: {floor[0]:.2f} ± {floor[1]:.2f}\n")
    rows: list[dict[str, Any]] = []
    for name in names:
        recipe, spent = trained(name, folder / name, seconds)
        model: Any = load_model(folder / name / model_file(recipe))
        ways: list[tuple[str, dict[str, Any]]] = [(name, dict(recipe.sampling))]
        ways += [("ddim (ddpm's weights)", {"solver": "DDIM()", "grid": "DDPMSubsequence()", "steps": 100})] if name == "ddpm" else []
        for shown, how in ways:
            x = samples(model, how, folder / name)
            rows.append(
                {
                    "system": shown,
                    "steps": recipe.how().steps,
                    "seconds": round(spent),
                    "frechet": distance(x),
                    "right": right(model, how, x),
                }
            )
            print(" | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
            picture = DOCS / "img" / "systems" / f"{shown.split()[0]}.png"
            figures.sheet([("", part) for part in x[:40].split(10)], picture, title=shown, columns=10)
    write(path := DOCS / "results" / "systems.csv", merged(path, rows))


def merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file, new ones in the place of those of the same system."""
    old: dict[str, Any] = {}
    if path.exists():
        with path.open(newline="") as file:
            old = {row["system"]: row for row in csv.DictReader(file)}
    return list((old | {row["system"]: row for row in rows}).values())


def trained(name: str, folder: Path, seconds: float) -> tuple[Recipe, float]:
    """The recipe with as many steps as fit into the time, and the processor time that it took, companions apart."""
    recipe = read_recipe(name)
    with tempfile.TemporaryDirectory() as trial:
        begin = None
        for stage in run(replace(recipe.changed(steps=TRIAL), classifier={}, sampling={}), trial):
            if stage.recipe.name == name and stage.progress.step == 2:
                begin = time.process_time()
        assert begin is not None
        a_step = (time.process_time() - begin) / (TRIAL - 2)
    recipe = recipe.changed(steps=max(TRIAL, round(seconds / a_step)))
    begin = 0.0
    spent = 0.0
    for stage in run(recipe, folder):
        if stage.recipe.name == name:
            begin = begin or time.process_time()
            spent = time.process_time() - begin
    return recipe, spent


def samples(model: Any, how: dict[str, Any], folder: Path) -> torch.Tensor:
    """N samples as [sampling] asks; classes in the proportions of a balanced set."""
    if "ClassifierGuidance" in str(how.get("guidance")):
        how = {**how, "classifier": folder / "classifier" / "model.safetensors"}
    if asks_for_classes(model, how):
        how = {**how, "labels": "0-9"}
    return draw(model, N, **how).x


def asks_for_classes(model: Any, how: dict[str, Any]) -> bool:
    return bool(how.get("guidance")) or getattr(model, "classes", None) is not None


@torch.no_grad()
def right(model: Any, how: dict[str, Any], x: torch.Tensor) -> float | None:
    """How often the classifier sees the class that was asked for."""
    found = feature_extractor("digits")(x).argmax(1) == torch.arange(len(x)) % 10
    return float(found.float().mean()) if asks_for_classes(model, how) else None


def giant(folder: Path, seconds: float) -> None:
    """One decoder call from the prior, and few diffusion steps."""
    recipe = read_recipe("vae")
    for _ in run(recipe, folder / "vae"):
        pass
    x = from_prior(load_autoencoder(folder / "vae" / "model.safetensors"), N, (8, 8))
    print(f"VAE, one decoder call | {distance(x):.2f}", flush=True)
    diffusion, _ = trained("cfg", folder / "cfg", seconds)
    model: Any = load_model(folder / "cfg" / model_file(diffusion)).with_labels(labels_named("0-9", N))  # type: ignore[union-attr]
    rows = [{"sampler": "VAE, one decoder call", "calls": 1, "frechet": distance(x)}]
    sheets = [("VAE, 1 call", x[:14])]
    for calls in (1, 5, 20):
        x = draw(model, N, solver="DDIM()", steps=calls).x
        rows.append({"sampler": "diffusion, DDIM", "calls": calls, "frechet": distance(x)})
        sheets.append((f"DDIM, {calls} step{'s' * (calls > 1)}", x[:14]))
        print(f"diffusion, {calls} | {distance(x):.2f}", flush=True)
    figures.sheet(sheets, DOCS / "img" / "giant_step.png", title="One giant step, and small ones")
    write(DOCS / "results" / "giant_step.csv", rows)


@torch.no_grad()
def features(x: torch.Tensor) -> torch.Tensor:
    return feature_extractor("digits").features(x)


def distance(x: torch.Tensor) -> float:
    return frechet_distance(features(x), features(digits().x))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(k for row in rows for k in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
