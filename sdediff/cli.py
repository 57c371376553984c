"""The command line: `sdediff study | train | sample | solvers`, and `encode | decode | interpolate | likelihood` of `cli_flow`.

Every command is one call that a script could make.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from . import cli_flow, sampling
from . import study as studies
from .checkpoint import load_model, write
from .console import (
    CheckpointOption,
    GridOption,
    SolverOption,
    bar,
    checkpoint_path,
    complain,
    err,
    grid_named,
    out,
    print_table,
    warnings_said,
    writable,
)
from .data import DataError, digits, idx_images
from .external import DELEGATES
from .metrics import MetricError
from .names import UserError, choose, label
from .pretrained.scores import DIGITS, digits_model, digits_path
from .solver import Delegate, Solver
from .solvers import SOLVERS, AdaptiveAdams, named
from .train import Training, fit

app = typer.Typer(
    help="Solve the SDEs and ODEs of diffusion models, and measure every claim about a sampler.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130


def main() -> None:
    """Run the command line: what a user got wrong is one message and exit code 2, never a traceback."""
    try:
        with warnings_said():
            code = app(standalone_mode=False)  # typer gives an exit code back instead of raising it, 130 for an interrupt
    except (UserError, DataError, MetricError) as wrong:
        _fail(str(wrong))
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as wrong:
        if type(wrong).__module__.startswith(("click", "typer")) and hasattr(wrong, "format_message"):
            _fail(wrong.format_message())  # type: ignore[attr-defined]
        raise
    if code == INTERRUPTED:
        err.print(
            "[yellow]interrupted[/] finished files stay; a training run continues when the same command is given again.", soft_wrap=True
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    complain("error", message)
    sys.exit(2)


@app.command()
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
        problem = studies.mnist_problem(checkpoint_path(checkpoint))
    else:
        trained = checkpoint_path(checkpoint) or (digits_path() if quick else _train_digits(target / "network", DIGITS))
        problem = studies.digits_problem(trained)
    command = "sdediff " + " ".join(f'"{a}"' if " " in a or "(" in a else a for a in sys.argv[1:])
    outcome = _run_study(problem, settings, target, command)
    _print_study(outcome, target)


def _settings(config, quick, solver, calls, samples, seeds, grid) -> studies.Settings:
    from dataclasses import replace

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


def _train_digits(folder: Path, training: Training) -> Path:
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


@app.command()
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
    from dataclasses import replace

    from .networks import MLP, NETWORKS, UNet
    from .schedules import VPLinear
    from .score import ScoreNet

    choose("network", network, [n for n in NETWORKS if n in ("mlp", "unet")])
    training = replace(DIGITS, steps=steps, batch=batch, lr=lr, seed=seed, precision=precision)
    data = digits().x if images is None else idx_images(images).x
    shape = tuple(data.shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(shape, width=256, depth=3) if network == "mlp" else UNet(channels=shape[0])
    _train(ScoreNet(net, VPLinear(), predicts="v", condition="lam", shape=shape), data, training, folder)


@app.command()
def sample(
    checkpoint: CheckpointOption = None,
    n: Annotated[int, typer.Option("-n", "--samples", help="How many.")] = 64,
    solver: SolverOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps; or give --calls.")] = None,
    calls: Annotated[int | None, typer.Option(help="Network calls.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Or: the error at the end that you accept; each sample takes its steps.")] = None,
    grid: GridOption = None,
    seed: Annotated[int, typer.Option(help="Sample i is a function of the seed and i.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Samples at a time.")] = None,
    file: Annotated[Path, typer.Option("--out", help="A .png sheet of images, or a .safetensors of the states.")] = Path("samples.png"),
) -> None:
    """Draw samples from a trained network; steps default to 20."""
    from .study import figures

    model = load_model(checkpoint_path(checkpoint) or digits_path())
    method, places = None if solver is None else named(solver, DELEGATES), None if grid is None else grid_named(grid)
    steps = 20 if steps is None and calls is None and tolerance is None else steps
    x = sampling.sample(model, n, steps=steps, calls=calls, tolerance=tolerance, solver=method, grid=places, seed=seed, batch=batch)
    default = AdaptiveAdams() if tolerance is not None else sampling.recommend(model.schedule, steps or calls or 1)[0]
    used = method or default
    if file.suffix == ".png":
        columns = min(n, 16)
        figures.sheet([("", part) for part in x.split(columns)], file, title=f"{label(used)}, seed {seed}", columns=columns)
    elif file.suffix == ".safetensors":
        write(file, {"x": x}, {"solver": repr(used), "grid": grid, "calls": calls, "steps": steps, "tolerance": tolerance, "seed": seed})
    else:
        raise UserError(f"--out takes a .png or a .safetensors file, not {str(file)!r}.")
    out.print(f"wrote {file}: {n} samples by {label(used)}", soft_wrap=True)


@app.command()
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


for command in cli_flow.COMMANDS:
    app.command()(command)


if __name__ == "__main__":
    main()
