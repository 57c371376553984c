"""`sdediff train`: a network as a recipe says; `sdediff configs`: the recipes in the package."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..accelerated import processes
from ..checkpoint import load_model
from ..data import NAMES
from ..names import UserError
from ..recipe import Recipe, Stage, configs, model_file, read_recipe, run
from .console import bar, err, print_table
from .drawing import draw_as


def train(
    config: Annotated[str, typer.Option(help="A recipe of the package (see `sdediff configs`) or a .toml file.")] = "digits",
    folder: Annotated[Path, typer.Option("--out", help="Where the run lives; started again there, it goes on.")] = Path("runs/train"),
    data: Annotated[str | None, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or a path to images.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, e.g. network.width=64; repeat it for more.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first weights and of everything drawn.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read the data.")] = 0,
    compiled: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time: keep only blocks' inputs.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write OUT/tensorboard.")] = False,
    sheets: Annotated[int, typer.Option(help="A sheet of samples every so many steps; 0: at the end only.")] = 0,
) -> None:
    """Train a network as a recipe says; killed and started again it ends with the same weights. Under torchrun processes share a batch."""
    recipe = read_recipe(config, changes or ())
    recipe = recipe.changed(steps=steps, batch=batch, lr=lr, seed=seed, precision=precision)
    if data is not None:
        kept = {k: v for k, v in recipe.data.items() if k not in ("name", "path")}
        recipe = replace(recipe, data={"name" if data in NAMES or not Path(data).exists() else "path": data, **kept})
    if sheets < 0:
        raise UserError(f"--sheets is a number of steps, or 0 for one sheet at the end, not {sheets}.")
    follow(recipe, folder, workers=workers, compiled=compiled, checkpointing=checkpointing, tensorboard=tensorboard, sheets=sheets)


def list_configs() -> None:
    """The recipes that `sdediff train --config` takes by name."""
    print_table("sdediff train --config NAME", [{"name": name, "what": about} for name, about in configs().items()])


def follow(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int = 0,
    compiled: bool = False,
    checkpointing: bool = False,
    tensorboard: bool = False,
    sheets: int = 0,
) -> Path:
    """Train by a recipe with a bar for each network, then draw `samples.png` as it says; the path of the model."""
    among = processes()
    first, begin = among.rank == 0, time.perf_counter()
    with _Teller(tensorboard) as teller:
        for stage in run(recipe, folder, workers=workers, compiled=compiled, checkpointing=checkpointing, among=among):
            if first:
                teller.tell(stage)
            if sheets and stage.progress.step % sheets == 0 and stage.model is not None:
                with stage.progress.averaged():  # all processes together: their shards become whole
                    if first:
                        draw_as(recipe, stage.model, folder / "samples" / f"{stage.progress.step}.png")
    model = folder / model_file(recipe)
    if first:
        err.print(f"trained in {time.perf_counter() - begin:.0f} s: {escape(str(model))}", soft_wrap=True)
    if first and recipe.kind in ("score", "latent"):
        draw_as(recipe, load_model(model), folder / "samples.png", folder)
        err.print(f"samples: {escape(str(folder / 'samples.png'))}", soft_wrap=True)
    return model


class _Teller:
    """Shows each network's progress every 50 steps: a bar, the running mean of its loss, and perhaps TensorBoard's files."""

    def __init__(self, tensorboard: bool):
        self.tensorboard, self.stack = tensorboard, ExitStack()
        self.folder: Path | None = None

    def __enter__(self) -> _Teller:
        return self

    def __exit__(self, *wrong: Any) -> None:
        self.stack.__exit__(*wrong)

    def tell(self, stage: Stage) -> None:
        if self.folder != stage.folder:
            self._begin(stage)
        step, progress = stage.progress.step, stage.progress
        if step % 50 and step != stage.recipe.how().steps:
            return
        loss = float(progress.loss)
        self.loss = 0.8 * self.loss + 0.2 * loss if self.done else loss
        self.advance(step - self.done, f"loss {self.loss:.4f}")
        self.done = step
        write_line(stage.folder / "log.csv", ("step", "loss", "norm", "lr"), (step, loss, float(progress.norm), progress.lr))
        if self.writer is not None:
            for name, value in (("loss", loss), ("gradient norm", float(progress.norm)), ("learning rate", progress.lr)):
                self.writer.add_scalar(name, value, step)

    def _begin(self, stage: Stage) -> None:
        self.stack.close()
        self.folder, self.done, self.loss = stage.folder, 0, 0.0
        self.advance = self.stack.enter_context(bar(f"training {stage.recipe.name}", stage.recipe.how().steps, "steps"))
        self.writer = self.stack.enter_context(_writer(stage.folder / "tensorboard", stage.progress.step)) if self.tensorboard else None


def write_line(path: Path, names: tuple[str, ...], values: tuple[float, ...]) -> None:
    """Append a line to a CSV; a run that goes on repeats the steps that it had not saved."""
    begin = "" if path.exists() else ",".join(names) + "\n"
    with path.open("a") as file:
        file.write(begin + ",".join(f"{v:.6g}" for v in values) + "\n")


def _writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not installed: pip install 'sdediff[train]'.") from None
    return SummaryWriter(folder, purge_step=first)
