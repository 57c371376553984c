"""`sdediff sample`, and `sdediff solvers`, the table of what can be taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import write
from ..external import DELEGATES
from ..names import label
from ..pretrained.scores import load
from ..solver import Delegate, Solver
from ..solvers import SOLVERS
from .console import CheckpointOption, GridOption, SolverOption, checkpoint_path, out, print_table
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
    file: Annotated[Path, typer.Option("--out", help="A .png sheet of images, or a .safetensors of the states.")] = Path("samples.png"),
) -> None:
    """Draw samples from a trained network; steps default to 20."""
    from ..study import figures

    target = target_for(file, (".png", ".safetensors"))
    model = load(checkpoint_path(checkpoint))
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
