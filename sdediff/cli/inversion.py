"""`sdediff encode | decode | interpolate`: images to latents and back, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from .. import inversion
from ..data import read_images
from ..latent import STARTS, Latent, load_latent
from ..latent_diffusion import data_shape
from ..names import UserError, choose, label
from ..prediction import Model
from ..recorded import Recorded
from ..round_trip import determinism, round_trip
from ..solver import Delegate
from .console import GridOption, bar, grid_named, say, solver_named
from .files import FirstOption, ImagesArgument, ImagesOut, bytes_of, dtype_of, many, shape_of, target_for
from .networks import FlowSolverOption, LimitsOption, ModelOption, expected_calls, limits_of, model_named, suited, watched

SAME = "decodes to the same bits (on the same machine, with the same network)"
STEPS = 50  # by default

LatentsArgument = Annotated[Path, typer.Argument(help="A file that `sdediff encode` wrote.", show_default=False)]
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="Whether the network must be the one that encoded.")]


def encode(
    images: ImagesArgument,
    file: Annotated[Path, typer.Option("--out", help="A .safetensors file.")] = Path("latents.safetensors"),
    checkpoint: ModelOption = None,
    steps: Annotated[int | None, typer.Option(help=f"Steps; or give --calls or --tolerance. Default {STEPS}.")] = None,
    calls: Annotated[int | None, typer.Option(help="Network calls.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Or: the error of the latents that you accept; each image takes its steps.")
    ] = None,
    solver: FlowSolverOption = None,
    grid: GridOption = None,
    start: Annotated[str, typer.Option(help="clean, or noised: with the noise of t_min, which decoding takes off again.")] = "clean",
    seed: Annotated[int, typer.Option(help="Of that noise.")] = 0,
    limits: LimitsOption = None,
    n: FirstOption = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Store one tensor and the few bits that it lacks: exact all the same.")
    ] = False,
    single: Annotated[bool, typer.Option("--single", help="Store one tensor alone: decoding is then approximate.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Decode again, and say how good round trip and latents are.")] = False,
) -> None:
    """Encode images as latents; `decode` gives the same bits back. Default: 50 steps of AsynchronousLeapfrog()."""
    if compact and single:
        raise UserError("--compact stores what a single tensor lacks, --single drops it: give one of the two.")
    choose("--start", start, STARTS)
    target_for(file, (".safetensors",), images)
    steps = STEPS if steps is None and calls is None and tolerance is None else steps
    model, home = model_named(checkpoint)
    limits = limits_of(limits, home)
    x = read_images(images, data_shape(model), n).x
    suited(model, x.dtype)
    method = solver_named(solver)
    options: dict[str, Any] = {"steps": steps, "calls": calls, "tolerance": tolerance, "solver": method, "start": start, "seed": seed}
    options |= {"grid": grid_named(grid), "limits": limits, "compact": compact}
    with bar("encoding", expected_calls(method, steps, calls, 2 if compact else 1), "calls") as advance:
        latent = inversion.encode(watched(model, advance), x, **options)
    latent = latent.single() if single else latent
    latent.save(file)
    size = f"{bytes_of(file.stat().st_size)}, {file.stat().st_size / x.numel():.3g} bytes a value"
    say(f"wrote {file}: latents of {many(len(x), 'image')} {shape_of(x)} of {dtype_of(x)} ({size})")
    say(f"by {label(latent.solver)}, {_steps(latent)}, {latent.calls} calls; {_promise(latent)}")
    if report:
        with bar("round trip", None, "calls") as advance:
            found = round_trip(watched(model, advance), x, **options)
            same = determinism(model, latent.origin.state(inversion.data_of(model, latent, x), latent.end))
        say(str(found))
        say(
            f"network        {'the same' if same.repeats else 'OTHER'} bits when asked twice; without the other samples "
            f"{'the same bits' if same.alone else f'others, off by {same.off:.1g}: decode the whole batch'}"
        )


def decode(
    latents: LatentsArgument,
    file: ImagesOut = Path("images.png"),
    checkpoint: ModelOption = None,
    check: CheckOption = True,
) -> None:
    """Decode latents into images, in their own type: to the bit, exactly or approximately, as it says."""
    latent = _latent(latents)
    target = target_for(file, (".npz", ".safetensors", ".png", ""), [latents], latent)
    model = _checked(latents, latent, checkpoint, check)
    x = _decoded(model, latent)
    said = target.save(x.split(min(len(x), 16)), [f"{i:0{len(str(len(x) - 1))}}" for i in range(len(x))], x)
    say(f"wrote {file}: {said}")
    say(f"by {label(latent.solver)}, {_steps(latent)}; {_promise(latent)}")


def interpolate(
    latents: Annotated[list[Path], typer.Argument(help="Two files of latents, or one.", show_default=False)],
    file: ImagesOut = Path("between.png"),
    n: Annotated[int, typer.Option("-n", "--samples", help="Images from one to the other, both ends included.")] = 9,
    kind: Annotated[str, typer.Option(help="slerp (along the great circle) or linear.")] = "slerp",
    pairs: Annotated[
        bool, typer.Option("--pairs", help="One file: first to second, second to third, ...; else first half to second.")
    ] = False,
    checkpoint: ModelOption = None,
    check: CheckOption = True,
) -> None:
    """Decode what lies between latents: first to first, second to second, one row for each pair."""
    choose("--kind", kind, ("slerp", "linear"))
    if n < 2:
        raise UserError(f"-n counts both ends, so it is at least 2, not {n}.")
    a, b = _ends(latents, pairs)
    target = target_for(file, (".npz", ".safetensors", ".png", ""), latents, a)
    model = _checked(latents[0], a, checkpoint, check)
    if check:
        _checked(latents[-1], b, checkpoint, check)
    between = inversion.interpolate((a, b), n, kind)
    x = _decoded(model, between).unflatten(0, (n, -1)).transpose(0, 1)  # (pairs, n, c, h, w)
    width, last = len(str(len(x) - 1)), len(str(n - 1))
    said = target.save(list(x), [f"{i:0{width}}-{j:0{last}}" for i in range(len(x)) for j in range(n)], x)
    say(f"wrote {file}: {said}, {many(len(x), 'pair')}")
    say(f"{kind}, decoded by {label(between.solver)}, {_steps(between)}")


def _latent(path: Path) -> Latent:
    if not path.is_file():
        raise UserError(f"there is no file {path}: `sdediff encode IMAGES --out {path}` would make it.")
    return load_latent(path)


def _ends(files: Sequence[Path], pairs: bool) -> tuple[Latent, Latent]:
    """The two batches between which to interpolate."""
    if len(files) > 2:
        raise UserError(f"interpolate takes one file of latents or two, not {len(files)}.")
    found = [_latent(f) for f in files]
    if len(found) == 2:
        if pairs:
            raise UserError("--pairs is for one file of latents: with two, each of the first goes to the same of the second.")
        if len(found[0]) != len(found[1]):
            raise UserError(f"{files[0]} holds {len(found[0])} latents, {files[1]} {len(found[1])}: encode as many of both (encode -n N).")
        return found[0], found[1]
    latent, half = found[0], len(found[0]) // 2
    if len(latent) < 2:
        raise UserError(f"{files[0]} holds one latent: give a second file.")
    if pairs:
        return latent.of(latent.x[:-1]), latent.of(latent.x[1:])
    if len(latent) % 2:
        raise UserError(f"{files[0]} holds {len(latent)} latents, which have no two halves: give --pairs, or an even number (encode -n N).")
    return latent.of(latent.x[:half]), latent.of(latent.x[half:])


def _checked(path: Path, latent: Latent, checkpoint: Path | None, check: bool) -> Model:
    """The model, after `Latent.check`."""
    model, _ = model_named(checkpoint)
    suited(model, latent.images.dtype)
    if check:
        try:
            latent.check(model)
        except UserError as wrong:
            raise UserError(f"{path}: {wrong} (On the command line: --checkpoint, --no-check.)") from None
    return model


def _decoded(model: Model, latent: Latent) -> Tensor:
    steps = len(latent.knots.times if isinstance(latent.knots, Recorded) else latent.knots) - 1
    with bar("decoding", expected_calls(latent.solver, steps, None, 1), "calls") as advance:
        return inversion.decode(watched(model, advance), latent, check=False)


def _steps(latent: Latent) -> str:
    if isinstance(latent.knots, Recorded):
        return f"at most {len(latent.knots.times) - 1} steps an image"
    if isinstance(latent.solver, Delegate) and latent.solver.adaptive:
        return "steps of its own"
    return many(len(latent.knots) - 1, "step")


def _promise(latent: Latent) -> str:
    """How exactly it decodes."""
    if latent.outer is not None:
        return f"the autoencoder's codes: {_promise(replace(latent, outer=None))}; the images are what the autoencoder makes of them"
    kept, promise = latent.memory is not None, latent.solver.facts.inverse
    if (kept and promise == "bits") or latent.origin.rest is not None:
        return SAME
    if kept and promise == "exact":
        return "decodes exactly, up to rounding"
    return "decodes approximately" + (", from one tensor alone" if promise in ("bits", "exact") else "")
