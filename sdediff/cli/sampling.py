"""`sdediff sample`, and `sdediff solvers`, the table of what can be taken for it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from ..accelerated import processes
from ..checkpoint import write
from ..external import DELEGATES
from ..names import label
from ..pretrained.scores import load
from ..shards import GROUP, shards
from ..solver import Delegate, Solver
from ..solvers import SOLVERS
from ..study.problem import model_mark, networks
from .console import CheckpointOption, GridOption, SolverOption, bar, checkpoint_path, out, print_table
from .drawing import draw
from .files import target_for


def sample(
    checkpoint: CheckpointOption = None,
    n: Annotated[int, typer.Option("-n", "--samples", help="How many.")] = 64,
    solver: SolverOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps; or give --calls.")] = None,
    calls: Annotated[int | None, typer.Option(help="Network calls.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Or: the error at the end that you accept; each sample takes its steps.")] = None,
    grid: GridOption = None,
    labels: Annotated[str | None, typer.Option(help="Classes, over and over: 3 or 0,1,7 or 0-9.")] = None,
    guidance: Annotated[str | None, typer.Option(help='As its repr shows it, e.g. "ClassifierFree(2.0)"; scale 1 is none.')] = None,
    classifier: Annotated[Path | None, typer.Option(help="A classifier of noisy images, for ClassifierGuidance.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i is a function of the seed and i.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Samples at a time.")] = None,
    file: Annotated[
        Path, typer.Option("--out", help="A .png sheet of images, a .safetensors of the states, or a folder of shards, for many.")
    ] = Path("samples.png"),
    size: Annotated[int, typer.Option("--shard", help="Samples in a file of a folder.")] = 1024,
    kind: Annotated[str, typer.Option("--as", help="Files of a folder: npz (bytes of images) or safetensors (float32).")] = "npz",
) -> None:
    """Draw samples from a trained network; steps default to 20. A folder of shards goes on after a stop, and is shared under torchrun."""
    from ..study import figures

    target = target_for(file, (".png", ".safetensors", ""))
    model = load(checkpoint_path(checkpoint))
    if target.kind == "":
        asked = {"labels": labels, "guidance": guidance, "solver": solver, "grid": grid, "steps": steps, "calls": calls}
        return _stream(model, n, {**asked, "tolerance": tolerance, "seed": seed}, classifier, file, size, kind)
    found = draw(
        model, n, labels=labels, guidance=guidance, classifier=classifier, solver=solver, grid=grid, steps=steps, calls=calls,
        tolerance=tolerance, seed=seed, batch=batch,
    )  # fmt: skip
    if target.kind == ".png":
        columns = min(n, 16)
        figures.sheet([("", part) for part in found.x.split(columns)], file, title=f"{label(found.solver)}, seed {seed}", columns=columns)
    else:
        about = {"grid": grid, "calls": calls, "steps": steps, "tolerance": tolerance, "seed": seed, "labels": labels, "guidance": guidance}
        write(file, {"x": found.x}, {"solver": repr(found.solver), **about})
    out.print(f"wrote {file}: {n} samples by {label(found.solver)}", soft_wrap=True)


def _stream(model: Any, n: int, asked: dict[str, Any], classifier: Path | None, folder: Path, size: int, kind: str) -> None:
    """Write shards, each process its own; the first one shows a bar."""
    among = processes(sharded=False)
    for net in networks(model):
        net.to(among.device or "cpu")
    about = {**asked, "classifier": None if classifier is None else str(classifier), "weights": model_mark(model, tuple(model.shape or ()))}
    if asked["steps"] is asked["calls"] is asked["tolerance"] is None:
        about["steps"] = 20

    def some(first: int, count: int) -> Tensor:
        return draw(model, count, first=first, total=first + count, classifier=classifier, batch=GROUP, **asked).x

    with bar("sampling", n, "samples") if among.rank == 0 else nullcontext(lambda *_: None) as advance:
        done = there = 0
        for shard in shards(some, n, folder, about, kind=kind, size=size, among=among):
            there += shard.there
            more = min(shard.n * among.count, n - done)  # the other processes are about as far
            done += more
            advance(more, shard.path.name)
    if among.rank == 0:
        out.print(
            f"wrote {folder}: {n} samples in shards of {-(-size // GROUP) * GROUP}" + (f", {there} of them there before" if there else ""),
            soft_wrap=True,
        )


def solvers() -> None:
    """Every solver: order, calls a step, whether it draws noise, reference."""
    rows = []
    values: list[Solver | Delegate] = [made() for made in (*SOLVERS, *DELEGATES)]
    for value in values:
        facts = value.facts
        orders = {"ode": facts.ode, "strong": facts.strong, "weak": facts.weak}
        rows.append(
            {
                "solver": type(value).__name__,
                "options": repr(value).removeprefix(type(value).__name__)[1:-1],
                "order": ", ".join(f"{k} {v:g}" for k, v in orders.items() if v is not None) or "–",
                "calls a step": "adaptive" if isinstance(value, Delegate) and value.adaptive else f"{facts.evals:g}",
                "stochastic": "yes" if facts.stochastic else "no",
                "inverse": facts.inverse or "–",
                "reference": facts.reference,
            }
        )
    print_table("Solvers, with their default options", rows)
