"""`sdediff study`: step count against quality. `plan`, `run`, `report`, `compare`, `merge`; alone it runs and reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from .. import study as studies
from ..accelerated import processes
from ..names import UserError, choose
from ..processes import Processes
from ..recipe import read_recipe
from ..study import Study
from .console import checkpoint_path, complain, err, print_table, say, writable
from .training import follow

_ROWS = 12  # of the live table


class _Default(TyperGroup):
    """A group whose commands may be left out: `sdediff study --quick` is `sdediff study run --quick`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return TyperGroup.parse_args(self, ctx, args)


app = typer.Typer(cls=_Default, no_args_is_help=False, help="Step count against quality: plan, run, report, compare, merge. Alone: run.")

Config = Annotated[
    str,
    typer.Argument(help="A study of the package by its name (`sdediff study configs`), a TOML file, or the folder of a begun one."),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a study, e.g. runs/digits.", show_default=False)]
Name = Annotated[str | None, typer.Option(help="The results go to OUT/NAME; default: the config's name.")]
Out = Annotated[Path, typer.Option("--out", help="The folder of all studies.")]
Checkpoint = Annotated[str | None, typer.Option(help="A model.safetensors, a network of the package by its name, or hot_vs_cold.")]
Solvers = Annotated[list[str] | None, typer.Option("--solver", help="Only these solvers; repeat it for more.")]
Calls = Annotated[str | None, typer.Option(help="Network calls, e.g. 5,10,20.")]
Tolerances = Annotated[str | None, typer.Option("--tolerances", help="Of solvers that choose their own steps, e.g. 1e-2,1e-3.")]
Grids = Annotated[list[str] | None, typer.Option("--grid", help='Where the knots are, e.g. "Quadratic()"; repeat it for more.')]
Leanings = Annotated[list[str] | None, typer.Option("--guidance", help='E.g. "ClassifierFree(2.0)"; "" for none; repeat it for more.')]
Samples = Annotated[int | None, typer.Option(help="Latents for each seed.")]
Seeds = Annotated[str | None, typer.Option(help="How many seeds, e.g. 3; or which: 0,4,7.")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="The first is the headline; e.g. kid, or frechet@pixels.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Any key of the TOML, e.g. features.weights=PATH; repeat it for more.")]
Quick = Annotated[bool, typer.Option("--quick", help="Everything in seconds, with few samples: to try it out.")]
Threads = Annotated[int, typer.Option(help="Of the CPU, for each process; results are the same for the same number only.")]


@app.command("run")
def run_study(
    config: Config = "digits",
    folder: Out = Path("runs"),
    name: Name = None,
    checkpoint: Checkpoint = None,
    solver: Solvers = None,
    calls: Calls = None,
    tolerances: Tolerances = None,
    grid: Grids = None,
    guidance: Leanings = None,
    samples: Samples = None,
    seeds: Seeds = None,
    metric: Metrics = None,
    changes: Changes = None,
    quick: Quick = False,
    again: Annotated[bool, typer.Option("--again", help="Try cells that failed once more.")] = False,
    report: Annotated[bool, typer.Option(help="Draw the pictures and write report.html at the end.")] = True,
    threads: Threads = 1,
) -> None:
    """Run all that is not done of a study, and report. Killed and started again it goes on; under torchrun processes share every cell."""
    config, begun = _begun(config)
    study = _asked(config, changes, name, checkpoint, solver, calls, tolerances, grid, guidance, samples, seeds, metric, quick)
    among, target = _start(threads), begun if begun is not None and name is None else folder / study.name
    if among.rank == 0:
        writable(target)
    job = _job(study, target, among, threads)
    failed = _follow(job, again)
    if among.rank == 0:
        if report:
            _reported(target, failed)
        if failed:
            complain("error", f"{failed} of the cells failed: the reasons are in results.csv and in the report; --again tries them again.")
    if failed:
        raise typer.Exit(3)


@app.command()
def plan(
    config: Config = "digits",
    folder: Out = Path("runs"),
    name: Name = None,
    checkpoint: Checkpoint = None,
    solver: Solvers = None,
    calls: Calls = None,
    tolerances: Tolerances = None,
    grid: Grids = None,
    guidance: Leanings = None,
    samples: Samples = None,
    seeds: Seeds = None,
    metric: Metrics = None,
    changes: Changes = None,
    quick: Quick = False,
    threads: Threads = 1,
) -> None:
    """Print the cells, network calls and time of a study before anything runs: a chunk of each kind of cell is timed."""
    config, begun = _begun(config)
    study = _asked(config, changes, name, checkpoint, solver, calls, tolerances, grid, guidance, samples, seeds, metric, quick)
    among = _start(threads)
    if study.model.get("train"):
        say(f"the network is trained first, by the recipe {study.model['train']!r}; timed here: the package's own")
        study = studies.changed(study, checkpoint=study.model["train"])
    target = begun if begun is not None and name is None else folder / study.name
    job = studies.Job(study, studies.problem_of(study, device=among.device), studies.Store(target), among, threads)
    found: Any = None
    with err.status("timing") as status:
        for found in studies.plan(job):
            if isinstance(found, str):
                status.update(f"timing {found}")
    if among.rank == 0:
        _print_plan(found, study)


@app.command("report")
def report_study(folder: Folder) -> None:
    """Draw the pictures, write report.html and print the table of a study that ran, or is still running."""
    _report(folder)


@app.command()
def compare(
    folder: Folder,
    a: Annotated[str, typer.Argument(metavar="A", help='A line, e.g. "DDIM()@10", or the begin of a cell\'s id.', show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    metric: Annotated[str | None, typer.Option(help="One of the study's; default: all of them.")] = None,
) -> None:
    """Say whether A beats B, by how much, with a 95 % interval and p: sample by sample on the same latents."""
    found = studies.gathered(studies.open_folder(folder))
    lines = studies.groups_of(found.cells, found.records)
    if not lines:
        raise UserError(f"{folder}: no cell of the study is finished yet: `sdediff study run` runs them.")
    if metric is not None:
        choose("metric", metric, found.study.metrics)
    one, other = studies.chosen(lines, a), studies.chosen(lines, b)
    names = found.study.metrics if metric is None else (metric,)
    for name in names:
        say(studies.verdict(one, other, studies.column(name), studies.title(name)))


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="The folder of the whole study; made if it is not there.", show_default=False)],
    parts: Annotated[list[Path], typer.Argument(help="Folders of the same study from other machines.", show_default=False)],
) -> None:
    """Bring the finished cells of the same study from several folders into one; nothing is taken away from any."""
    taken, had = studies.merge(folder, parts)
    say(f"{folder}: {taken} records came in, {had} were there; `sdediff study run` runs what is left, `sdediff study report` shows it")


@app.command("configs")
def list_studies() -> None:
    """The studies that `sdediff study run` takes by name."""
    print_table("sdediff study run NAME", [{"name": name, "what": about} for name, about in studies.shipped().items()])


# --- what was asked ---------------------------------------------------------------------------------------------------


def _begun(config: str) -> tuple[str, Path | None]:
    """The TOML file, and, where what was given is the folder of a study that was begun, that folder."""
    held = Path(config) / "study.toml"
    return (str(held), Path(config)) if held.is_file() else (config, None)


def _asked(config, changes, name, checkpoint, solver, calls, tolerances, grid, guidance, samples, seeds, metric, quick) -> Study:
    study = studies.read_study(config, changes or ())
    if quick:
        study = studies.quick(study)
        checkpoint = checkpoint or study.model.get("train")
    if checkpoint not in (None, "hot_vs_cold"):
        checkpoint = str(checkpoint_path(Path(checkpoint))) if Path(checkpoint).is_file() else checkpoint
    return studies.changed(
        study,
        name=name,
        solvers=solver,
        calls=_numbers("calls", calls, int),
        tolerances=_numbers("tolerances", tolerances, float),
        grids=grid,
        guidance=guidance,
        samples=samples,
        seeds=_seeds(seeds),
        metrics=metric,
        checkpoint=checkpoint,
    )


def _numbers(what: str, text: str | None, kind: Any) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(c) for c in text.split(",")]
    except ValueError:
        kinds = "whole numbers" if kind is int else "numbers"
        example = "5,10,20" if kind is int else "1e-2,1e-3"
        raise UserError(f"--{what} takes {kinds} with commas between, e.g. {example}, not {text!r}.") from None


def _seeds(text: str | None) -> list[int] | None:
    found = _numbers("seeds", text, int)
    if found is None or (text is not None and "," in text):
        return found
    if found[0] < 1:
        raise UserError(f"--seeds takes how many, at least 1, or which, with commas between, not {text!r}.")
    return list(range(found[0]))


def _start(threads: int) -> Processes:
    """The processes of this job; each computes on so many threads of the CPU."""
    if threads < 1:
        raise UserError(f"--threads is a number of at least 1, not {threads}.")
    torch.set_num_threads(threads)
    return processes(sharded=False)


def _job(study: Study, target: Path, among: Processes, threads: int) -> studies.Job:
    """The job, its network trained if the study says so."""
    recipe = study.model.get("train")
    trained = None if recipe is None else follow(read_recipe(recipe), target / "network")
    problem = studies.problem_of(study, trained, among.device)
    return studies.Job(study, problem, studies.Store(target), among, threads)


# --- while it runs ----------------------------------------------------------------------------------------------------


def _follow(job: studies.Job, again: bool) -> int:
    """Run with a bar and a live table of the last lines in the first process; how many cells failed."""
    total = sum(w.chunks * w.calls for w in job.works)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[text]}"), console=err,
    )  # fmt: skip
    task = bar.add_task(f"study {job.study.name}", total=total, text="")
    over, rows, failed, begin = 0, [], 0, time.perf_counter()
    cells = sum(isinstance(w, studies.Sampling) for w in job.works)
    with Live(bar, console=err, refresh_per_second=4, transient=True) as live:
        for p in studies.run(job, again):
            text = str(p.work.cell) if isinstance(p.work, studies.Sampling) else p.work.id.partition("-")[0]
            text = f"{over} of {cells} cells; {'waiting for another job: ' if p.waits else ''}{text}"
            bar.update(task, advance=p.calls * job.among.count if p.record is None else p.calls, text=text)
            failed += p.record is not None and p.record.failed is not None
            if p.record is None or not isinstance(p.work, studies.Sampling):
                continue
            over += 1
            rows.append(_row(job, p.work, p.record))
            live.update(_live(bar, rows, job), refresh=True)
    failed = studies.all_hear(job, failed)
    if job.among.rank == 0:
        err.print(f"{over} cells in {time.perf_counter() - begin:.0f} s: {job.store.folder}", soft_wrap=True, highlight=False, markup=False)
    return failed


def _row(job: studies.Job, work: studies.Sampling, record: studies.Record) -> list[str]:
    name = studies.column(job.study.metrics[0])
    if record.failed is not None:
        return [str(work.cell), "failed", record.failed[:60], "", ""]
    found = studies.estimates(record)
    low, high = found[name].interval()
    error = f"{found['error'].value:.2g}" if "error" in found and not work.cell.stochastic and not work.converges else ""
    made, spent = record.about["made"]["mean"], record.about["costs"]["seconds"]
    text = ("converged flow: " if work.converges else "") + str(work.cell)
    return [text, f"{found[name].value:.3g} [{low:.3g}, {high:.3g}]", error, f"{made:.3g}", f"{spent:.3g}"]


def _live(bar: Progress, rows: list[list[str]], job: studies.Job) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("cell", studies.title(job.study.metrics[0]), "error", "calls", "seconds"):
        table.add_column(head, no_wrap=True, overflow="ellipsis")
    for one in rows[-_ROWS:]:
        table.add_row(*one)
    whole = Table.grid()
    whole.add_row(table)
    whole.add_row(bar)
    return whole


# --- after it ---------------------------------------------------------------------------------------------------------


def _reported(folder: Path, failed: int) -> None:
    """The report at the end of a run, which where all failed has nothing to show."""
    try:
        _report(folder)
    except UserError as wrong:
        if not failed:
            raise
        complain("error", str(wrong))


def _report(folder: Path) -> None:
    with err.status("drawing"):
        found = studies.write_report(folder)
    _print_lines(found)
    for sentence in found.answer:
        say(sentence)
    for cell, reason in found.failed:
        complain("warning", f"({cell}) failed: {reason}")
    say(f"wrote {folder / 'report.html'}")


def _print_lines(found: studies.Findings) -> None:
    """The headline metric by curve and calls, then errors and what chooses its steps."""
    fixed = [line for line in found.lines if line.calls is not None]
    title = f"{found.titles[found.metric]} [95 %] (columns: network calls asked; *: cannot be told from the best)"
    print_table(title, _by_calls(fixed, found.metric))
    plain = [line for line in fixed if not line.stochastic and "error" in line.measures]
    print_table(found.titles["error"], _by_calls(plain, "error", bare=True))
    free = [
        {"solver": line.solver, "calls made": round(line.made, 1), "least": line.fewest, "most": line.most}
        | {m: _shown(line, m) for m in (found.metric, "error") if m in line.measures}
        for line in found.lines
        if line.calls is None
    ]
    print_table("Solvers that choose their own steps", free)
    for name, _, rows in found.tables:
        print_table(name, [dict(r) for r in rows][:20])


def _by_calls(lines: list[Any], metric: str, bare: bool = False) -> list[dict[str, Any]]:
    budgets = sorted({line.calls for line in lines})
    table = []
    for curve in dict.fromkeys(line.curve for line in lines):
        own = {line.calls: line for line in lines if line.curve == curve}
        table.append({"solver": curve} | {str(c): _shown(own[c], metric, bare) if c in own else "" for c in budgets})
    return table


def _shown(line: Any, metric: str, bare: bool = False) -> str:
    found = line.measures[metric]
    return f"{found.value:.3g}" if bare else f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]" + ("*" if line.good else "")


def _print_plan(found: Any, study: Study) -> None:
    rows: dict[Any, dict[str, Any]] = {}
    for one in found.cells:
        cell = one.work.cell
        key = (one.work.converges, cell.curve, cell.grid, cell.guidance)
        line = rows.setdefault(key, {"cells": 0, "calls": [], "done": 0, "sample calls": 0.0, "seconds": 0.0})
        line["cells"] += 1
        line["done"] += one.done
        line["calls"].append(f"{one.calls:.0f}" if cell.calls is None else str(cell.calls))
        line["sample calls"] += 0.0 if one.done else one.calls * cell.samples
        line["seconds"] += 0.0 if one.done else one.seconds
    table = []
    for (flow, curve, grid, guidance), line in rows.items():
        what = ("converged flow: " if flow else "") + curve
        more = {"grid": "" if grid is None else repr(grid), "guidance": "" if guidance is None else repr(guidance)}
        calls = ", ".join(dict.fromkeys(line.pop("calls")))
        table.append(
            {"solver": what, **more, "network calls": calls, **{k: v for k, v in line.items() if k != "done"}, "done": line["done"]}
        )
    print_table(f"{study.name}: {study.samples} samples of {len(study.seeds)} seed(s)", table)
    for one in found.cells:
        if one.fails and not one.done:
            complain("warning", f"({one.work.cell}) will fail: {one.fails}")
    real = f", {found.real:.0f} s of it for the real images" if found.real > 1 else ""
    say(f"{sum(not c.done and not c.fails for c in found.cells)} cells to run, {found.calls:,.0f} network calls of single samples")
    say(f"about {_duration(found.seconds)} on {found.processes} process{'es' if found.processes > 1 else ''}{real}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
