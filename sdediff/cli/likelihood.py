"""`sdediff likelihood`: bits per dimension of images."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ..checkpoint import write_bytes
from ..data import read_images
from ..latent_diffusion import data_shape
from ..likelihood import KINDS, PARTS, STARTS, TRACES, Hutchinson, HutchPP, Levels, LogLikelihood, Trace, log_likelihood
from ..names import UserError, choose, positive
from .console import GridOption, bar, grid_named, print_table, say, solver_named
from .files import FirstOption, ImagesArgument, many, target_for
from .networks import FlowSolverOption, LimitsOption, ModelOption, expected_calls, limits_of, model_named, suited, watched

ROWS, AT_ONCE = 20, 100  # of the table that is shown; images at a time


def likelihood(
    images: ImagesArgument,
    checkpoint: ModelOption = None,
    levels: Annotated[
        int | None, typer.Option(help="Grey levels of the images; default 256 for bytes, none (a density) for floats.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; or give --tolerance.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the state, and of the log-density per dimension; default 1e-5.")] = None,
    solver: FlowSolverOption = None,
    grid: GridOption = None,
    trace: Annotated[str | None, typer.Option(help="exact, hutchinson or hutch++; default exact up to 64 dimensions.")] = None,
    probes: Annotated[int | None, typer.Option(help="Of hutchinson (default 8) or hutch++ (default 24).")] = None,
    dequantise: Annotated[str, typer.Option(help="uniform or truncated_normal.")] = "uniform",
    start: Annotated[str, typer.Option(help="clean: of data blurred by t_min; noised: a bound for the data itself.")] = "clean",
    limits: LimitsOption = None,
    seed: Annotated[int, typer.Option(help="Of probes and dequantisation.")] = 0,
    n: FirstOption = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = AT_ONCE,
    file: Annotated[Path | None, typer.Option("--out", help="A .csv table: each image, and the parts of its error budget in nats.")] = None,
) -> None:
    """Bits per dimension of images, or log-densities in nats, with standard errors and the budget of errors."""
    choose("--dequantise", dequantise, KINDS)
    choose("--start", start, STARTS)
    if file is not None:
        target_for(file, (".csv",), images)
    model, home = model_named(checkpoint)
    found = read_images(images, data_shape(model), n)
    x, bins = _levelled(found.x, levels, limits_of(limits, home) or (-1.0, 1.0))
    suited(model, x.dtype)
    method = solver_named(solver)
    expected = None if steps is None else expected_calls(method, steps, None, 1.5 * -(-len(x) // positive("--batch", batch)))
    with bar("likelihood", expected, "calls") as advance:
        result = log_likelihood(
            watched(model, advance), x, trace=_trace(trace, probes, x[0].numel()), tolerance=tolerance, steps=steps, solver=method,
            grid=grid_named(grid), start=start, levels=bins, dequantise=dequantise, seed=seed, batch=batch,
        )  # fmt: skip
    rows = _table(found.names, result)
    shown = [{k: v for k, v in row.items() if k not in PARTS} for row in rows[:ROWS]]
    print_table(f"Log-likelihood ({many(len(rows), 'image')}{f', the first {ROWS} shown' if len(rows) > ROWS else ''})", shown)
    say(str(result))
    if file is not None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(file, text.getvalue().encode())
        say(f"wrote {file}: {len(rows)} rows")


def _trace(name: str | None, probes: int | None, d: int) -> str | Trace | None:
    if name is not None:
        choose("--trace", name, TRACES)
    if probes is None:
        return name
    if name == "exact":
        raise UserError("--trace exact takes no probes: leave --probes out, or take --trace hutchinson.")
    return HutchPP(probes) if name == "hutch++" else Hutchinson(probes)


def _levelled(x: Tensor, count: int | None, limits: tuple[float, float]) -> tuple[Tensor, Levels | None]:
    """Images in the model's units, and their grey levels. Bytes are `count` levels spread over 0 to 255, rounded."""
    if x.dtype != torch.uint8:
        x = x if x.dtype == torch.float64 else x.float()
        return x, None if count is None else Levels(*limits, count)
    levels = Levels(*limits, 256 if count is None else count)
    apart = 255 / (levels.count - 1)
    number = (x.double() / apart).round()
    off = (number * apart - x).abs()
    if float(off.max()) >= min(1.0, 0.3 * apart):
        value = int(x.flatten()[off.argmax()])
        raise UserError(
            f"the images hold the value {value}, which is none of {levels.count} grey levels spread over 0 to 255: give other --levels."
        )
    return (levels.low + levels.width * number).float(), levels


def _table(names: Sequence[str], found: LogLikelihood) -> list[dict[str, Any]]:
    """A row for each image."""
    nat = found.dimension * math.log(2)
    rows = []
    for i, name in enumerate(names):
        value, error = float(found.value[i]), float(found.standard_error[i])
        bits = {} if found.levels is None else {"bits_per_dim": float(found.bits_per_dim[i]), "bits_error": error / nat}
        parts = {part: float(getattr(found.budget, part)[i]) for part in PARTS}
        rows.append({"image": name, **bits, "nats": value, "nats_error": error, **parts})
    return rows
