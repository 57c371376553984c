"""The CIFAR-10 study without weights: what the published tables would cost, and the whole of it run once in small.

    SDEDIFF_DATA=/path/to/data python benchmarks/cifar10_dry_run.py

1. `sdediff study plan cifar10-ddim` with a random network of DDPM's size (35.7 M parameters) and Inception with random weights: the cost on
   this machine. 2. The same study end to end with a network of the same architecture a quarter as wide, few samples and calls. The numbers
that come out mean nothing: that they come out, and what they cost, is the result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sdediff import save_model
from sdediff.recipe import read_recipe
from sdediff.train import Denoising

TINY = ("network.width=32", "network.groups=8", "network.features=32")


def network(path: Path, changes: tuple[str, ...] = ()) -> Path:
    """A freshly initialised network of the recipe `ddpm-cifar10`."""
    recipe = read_recipe("ddpm-cifar10", changes)
    task = recipe.task(recipe.source())
    assert isinstance(task, Denoising)
    save_model(path, task.model)
    return path


def sdediff(*words: str) -> str:
    """What the command line prints."""
    run = subprocess.run([sys.executable, "-m", "sdediff", *words], check=True, capture_output=True, text=True)
    return run.stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "cost", "run"), default="all")
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = ("cifar10-ddim", "--set", "features.weights=random", "--out", folder)
        if part != "run":
            print(sdediff("study", "plan", *options, "--checkpoint", str(network(home / "ddpm.safetensors"))))
        if part != "cost":
            begin = time.perf_counter()
            small = ("--samples", "64", "--set", "data.references=128", "--set", "features.size=64", "--metric", "frechet")
            solvers = ("--solver", "DDIM(0.0)", "--solver", "DDPM('large')", "--calls", "2,4")
            tiny = str(network(home / "tiny.safetensors", TINY))
            print(sdediff("study", "run", *options, "--checkpoint", tiny, "--name", "dry", *small, *solvers))
            print(f"end to end in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
