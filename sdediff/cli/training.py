"""`sdediff train`: a score network by denoising score matching."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..data import digits, idx_images
from ..names import choose
from ..networks import MLP, NETWORKS, UNet
from ..pretrained.scores import DIGITS, digits_model
from ..schedules import VPLinear
from ..score import ScoreNet
from ..train import Training, fit
from .console import bar, err


def train(
    folder: Annotated[Path, typer.Option("--out", help="Where the run lives; started again there, it goes on.")] = Path("runs/train"),
    images: Annotated[Path | None, typer.Option(help="An idx file of images (MNIST format, gzip or not); default: the 8x8 digits.")] = None,
    steps: Annotated[int, typer.Option()] = DIGITS.steps,
    batch: Annotated[int, typer.Option()] = DIGITS.batch,
    lr: Annotated[float, typer.Option()] = DIGITS.lr,
    seed: Annotated[int, typer.Option()] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
    network: Annotated[str, typer.Option(help="mlp or unet.")] = "mlp",
) -> None:
    """Train a score network by denoising score matching; killed and started again, it ends with the same weights."""
    choose("network", network, [n for n in NETWORKS if n in ("mlp", "unet")])
    training = replace(DIGITS, steps=steps, batch=batch, lr=lr, seed=seed, precision=precision)
    data = digits().x if images is None else idx_images(images).x
    shape = tuple(data.shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(shape, width=256, depth=3) if network == "mlp" else UNet(channels=shape[0])
    _train(ScoreNet(net, VPLinear(), predicts="v", condition="lam", shape=shape), data, training, folder)


def train_digits(folder: Path, training: Training) -> Path:
    """Train the digits network in `folder`, or continue there; the path of the finished model."""
    model = folder / "model.safetensors"
    _train(digits_model(training.seed), digits().x, training, folder)
    return model


def _train(model: Any, data: torch.Tensor, training: Training, folder: Path) -> None:
    begin, smooth = time.perf_counter(), 0.0
    with bar("training", training.steps, "steps") as advance:
        done = 0
        for progress in fit(model, data, training, folder=folder):
            if progress.step % 50 == 0 or progress.step == training.steps:
                loss = float(progress.loss)
                smooth = loss if not smooth else 0.8 * smooth + 0.2 * loss
                advance(progress.step - done, f"loss {smooth:.4f}")
                done = progress.step
    err.print(f"trained in {time.perf_counter() - begin:.0f} s: {folder / 'model.safetensors'}", soft_wrap=True)
