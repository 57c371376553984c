"""What the commands of the command line share: where they speak, common options, a progress bar, tables, and things by their names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..checkpoint import write_bytes
from ..external import DELEGATES
from ..grid import GRIDS, Grid
from ..names import UserError, from_repr
from ..pretrained.scores import model_path
from ..solver import Delegate, Solver
from ..solvers import named
from ..study.report import show

out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)

CheckpointOption = Annotated[Path | None, typer.Option(help="A model.safetensors to use, or a network of the package by its name.")]
SolverOption = Annotated[str | None, typer.Option(help='A solver as its repr shows it, e.g. "DDIM(eta=0.5)"; default: recommended.')]
GridOption = Annotated[str | None, typer.Option(help='Where the knots are, e.g. "Karras(rho=7)"; default: recommended, or LogSNR().')]


def say(text: str) -> None:
    """One line on standard output, as it is."""
    out.print(text, soft_wrap=True, markup=False, highlight=False)


def complain(kind: str, text: str) -> None:
    """One message on standard error: kind is "error" or "warning"."""
    style = "bold red" if kind == "error" else "yellow"
    err.print(f"[{style}]{kind}[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Inside, a warning is one message, without the line of code that it came from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: complain("warning", str(message))
        yield


@contextmanager
def bar(what: str, total: float | None, unit: str) -> Iterator[Any]:
    """A progress bar on standard error: `advance(n, text)`. total: how many are expected, if known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[text]}"),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(what, total=total, text="")
        try:
            yield lambda n, text="": progress.update(task, advance=n, text=text)
        except BaseException:
            progress.live.transient = True  # gone, so that the message stands alone
            raise
        progress.update(task, total=progress.tasks[0].completed)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows under the names of the first one's columns."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for i, (key, value) in enumerate(rows[0].items()):
        number = not isinstance(value, str) or value[:1].isdigit()
        table.add_column(key.replace("_", " "), justify="right" if i and number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(escape(show(v)) for v in row.values()))
    out.print(table)


def grid_named(text: str | None) -> Grid | None:
    """The grid whose repr is `text`; None for none."""
    return None if text is None else from_repr(text, {g.__name__: g for g in GRIDS}, "grid")


def solver_named(text: str | None) -> Solver | Delegate | None:
    """The solver, ours or another library's, whose repr is `text`; None for none."""
    return None if text is None else named(text, DELEGATES)


def checkpoint_path(path: Path | None) -> Path:
    """The file of a `--checkpoint`: a path, or the name of a network in the package."""
    return path if path is not None and path.is_file() else model_path("digits" if path is None else str(path))


def writable(folder: Path) -> None:
    """`UserError` unless files can be written there, before the work is done and not after it; makes the folder."""
    trial = folder / ".writable"
    try:
        write_bytes(trial, b"")
    except UserError as wrong:
        raise UserError(str(wrong).replace(str(trial), str(folder))) from None
    trial.unlink(missing_ok=True)  # another job may be looking too
