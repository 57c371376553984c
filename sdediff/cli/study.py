"""`sdediff study`: step count against quality."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .. import study as studies
from ..external import DELEGATES
from ..names import UserError, choose
from ..recipe import read_recipe
from ..solvers import named
from .console import CheckpointOption, bar, checkpoint_path, grid_named, out, print_table, writable
from .training import follow


def study(
    config: Annotated[str, typer.Option(help="digits (8x8, trained here) or mnist (the third-party network in SDEDIFF_DATA).")] = "digits",
    name: Annotated[str | None, typer.Option(help="The results go to OUT/NAME; default: the config's name.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="The folder of all runs.")] = Path("runs"),
    checkpoint: CheckpointOption = None,
    solver: Annotated[list[str] | None, typer.Option(help="Only these solvers; repeat it for more.")] = None,
    calls: Annotated[str | None, typer.Option(help="Network calls, e.g. 5,10,20.")] = None,
    samples: Annotated[int | None, typer.Option(help="Latents for each seed.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    grid: Annotated[str | None, typer.Option(help='Where the knots are; default "Quadratic()".')] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Everything in seconds, with few samples: to try it out.")] = False,
) -> None:
    """Step count against quality: train a score network (or take one), run every solver, write tables, pictures and report.html."""
    choose("config", config, studies.CONFIGS)
    settings = _settings(config, quick, solver, calls, samples, seeds, grid)
    target = folder / (name or config)
    writable(target)
    if config == "mnist":
        problem = studies.mnist_problem(checkpoint and checkpoint_path(checkpoint))
    else:
        given = checkpoint is not None or quick
        trained = checkpoint_path(checkpoint) if given else follow(read_recipe("digits"), target / "network")
        problem = studies.digits_problem(trained)
    command = "sdediff " + " ".join(f'"{a}"' if " " in a or "(" in a else a for a in sys.argv[1:])
    outcome = _run_study(problem, settings, target, command)
    _print_study(outcome, target)


def _settings(config, quick, solver, calls, samples, seeds, grid) -> studies.Settings:
    settings = studies.CONFIGS[config]
    if quick:
        settings = studies.quick(settings)
    if solver:
        chosen = tuple(named(s, DELEGATES) for s in solver)
        settings = replace(settings, solvers=chosen, many=tuple(s for s in settings.many if s in chosen))
    if calls:
        try:
            budgets = tuple(int(c) for c in calls.split(","))
        except ValueError:
            raise UserError(f"--calls takes whole numbers with commas between, e.g. 5,10,20, not {calls!r}.") from None
        settings = replace(settings, calls=budgets, many=(), rows=budgets)
    changed = {k: v for k, v in (("samples", samples), ("seeds", seeds)) if v is not None}
    return replace(settings, **changed, **({"grid": grid_named(grid)} if grid else {}))


def _run_study(problem: studies.Problem, settings: studies.Settings, target: Path, command: str) -> studies.Outcome:
    total = settings.seeds * settings.expected_calls() + sum(4 * n for n in settings.round_trip) + 400
    with bar("solving", total, "calls") as advance:
        for step in studies.study(problem, settings, target, command):
            if isinstance(step, studies.Outcome):
                return step
            advance(step.calls, step.what)
    raise AssertionError("a study ends with its outcome")


def _print_study(outcome: studies.Outcome, target: Path) -> None:
    floor, pixels = outcome.judge.floor, outcome.judge.floor_pixels
    limit = outcome.results.converged_frechet
    print_table("Frechet distance in features (columns: network calls)", studies.by_calls(outcome.results))
    print_table("Frechet distance in pixels", studies.by_calls(outcome.results, "frechet_pixels"))
    print_table("RMS error against the converged flow, pixels in [-1, 1]", studies.by_calls(outcome.results, "error", spread=False))
    print_table("Adaptive solvers", studies.adaptive(outcome.results))
    print_table("Consistency: the same latents at few steps and at many", outcome.consistency)
    print_table("Midpoints of latents", outcome.midpoints)
    print_table("Round trips of real images", outcome.round_trip)
    floors = f"{floor[0]:.2f} ± {floor[1]:.2f} in features, {pixels[0]:.2f} ± {pixels[1]:.2f} in pixels"
    out.print(f"noise floor (two halves of the real data): {floors}", soft_wrap=True)
    out.print(f"converged probability flow: {limit:.2f} in features, {limit / floor[0]:.2f} times the floor", soft_wrap=True)
    out.print(f"wrote {target / 'report.html'}", soft_wrap=True)
