"""Commands that run the probability flow on images: `sdediff encode | decode | interpolate | likelihood`, in `COMMANDS`.

Images come from files by `read_images`, untouched, and go back into files of any of the kinds that `Target` knows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from . import inversion
from .budget import PARTS, LogLikelihood
from .checkpoint import load_model, write, write_bytes
from .console import GridOption, bar, checkpoint_path, grid_named, print_table, say, writable
from .data import data_folder, read_images
from .data.images import PICTURES, npz, pixels, png, sheet
from .dequantise import KINDS, Levels
from .external import DELEGATES
from .interop.hot_vs_cold import load_hot_vs_cold
from .latent import STARTS, Latent, load_latent
from .likelihood import log_likelihood
from .names import UserError, choose, label, positive
from .prediction import Model, Prediction
from .pretrained.scores import digits_path
from .recorded import Recorded
from .round_trip import determinism, round_trip
from .schedule import Knot, Schedule
from .score import ScoreNet
from .solver import Delegate, Solver
from .solvers import named
from .trace import TRACES, Hutchinson, HutchPP, Trace

SAME = "decodes to the same bits (on the same machine, with the same network)"
STEPS, ROWS, SHEET, AT_ONCE = 50, 20, 256, 100  # default steps; rows of a table, images on a sheet, images at a time

ImagesArgument = Annotated[
    list[Path], typer.Argument(help=".png or .jpg files, folders of them, .npz, .npy, .safetensors (x) or idx files.", show_default=False)
]
LatentsArgument = Annotated[Path, typer.Argument(help="A file that `sdediff encode` wrote.", show_default=False)]
ModelOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A model.safetensors; 'digits' (default), or 'mnist', the third-party one in SDEDIFF_DATA."),
]
FlowSolverOption = Annotated[str | None, typer.Option("--solver", help='A solver as its repr shows it, e.g. "DDIM()" or "EDICT(p=0.93)".')]
LimitsOption = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="What the network calls black and white: the values of 0 and 255. Default -1 1."),
]
FirstOption = Annotated[int | None, typer.Option("-n", "--samples", help="Only the first ones.")]
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="Whether the network must be the one that encoded.")]
ImagesOut = Annotated[Path, typer.Option("--out", help="images.npz, .safetensors, a sheet .png, or a folder of .png files.")]


# --- commands -----------------------------------------------------------------------------------------------------


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
    _target(file, (".safetensors",), images)
    steps = STEPS if steps is None and calls is None and tolerance is None else steps
    model, home = _model(checkpoint)
    limits = _limits(limits, home)
    x = read_images(images, model.shape, n).x
    _suited(model, x.dtype)
    method = None if solver is None else named(solver, DELEGATES)
    options: dict[str, Any] = {"steps": steps, "calls": calls, "tolerance": tolerance, "solver": method, "start": start, "seed": seed}
    options |= {"grid": None if grid is None else grid_named(grid), "limits": limits, "compact": compact}
    with bar("encoding", _expected(method, steps, calls, 2 if compact else 1), "calls") as advance:
        latent = inversion.encode(Watched(model, advance), x, **options)
    latent = latent.single() if single else latent
    latent.save(file)
    size = f"{_bytes(file.stat().st_size)}, {file.stat().st_size / x.numel():.3g} bytes a value"
    say(f"wrote {file}: latents of {_many(len(x), 'image')} {_shape(x)} of {_dtype(x)} ({size})")
    say(f"by {label(latent.solver)}, {_steps(latent)}, {latent.calls} calls; {SAME if compact else _promise(latent)}")
    if report:
        with bar("round trip", None, "calls") as advance:
            found = round_trip(Watched(model, advance), x, **options)
            same = determinism(model, latent.origin.state(x, latent.end))
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
    target = _target(file, (".npz", ".safetensors", ".png", ""), [latents], latent)
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
    target = _target(file, (".npz", ".safetensors", ".png", ""), latents, a)
    model = _checked(latents[0], a, checkpoint, check)
    if check:
        _checked(latents[-1], b, checkpoint, check)
    between = inversion.interpolate((a, b), n, kind)
    x = _decoded(model, between).unflatten(0, (n, -1)).transpose(0, 1)  # (pairs, n, c, h, w)
    width, last = len(str(len(x) - 1)), len(str(n - 1))
    said = target.save(list(x), [f"{i:0{width}}-{j:0{last}}" for i in range(len(x)) for j in range(n)], x)
    say(f"wrote {file}: {said}, {_many(len(x), 'pair')}")
    say(f"{kind}, decoded by {label(between.solver)}, {_steps(between)}")


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
        _target(file, (".csv",), images)
    model, home = _model(checkpoint)
    found = read_images(images, model.shape, n)
    x, bins = _levelled(found.x, levels, _limits(limits, home) or (-1.0, 1.0))
    _suited(model, x.dtype)
    method = None if solver is None else named(solver, DELEGATES)
    expected = None if steps is None else _expected(method, steps, None, 1.5 * -(-len(x) // positive("--batch", batch)))
    with bar("likelihood", expected, "calls") as advance:
        result = log_likelihood(
            Watched(model, advance), x, trace=_trace(trace, probes, x[0].numel()), tolerance=tolerance, steps=steps, solver=method,
            grid=None if grid is None else grid_named(grid), start=start, levels=bins, dequantise=dequantise, seed=seed, batch=batch,
        )  # fmt: skip
    rows = _table(found.names, result)
    shown = [{k: v for k, v in row.items() if k not in PARTS} for row in rows[:ROWS]]
    print_table(f"Log-likelihood ({_many(len(rows), 'image')}{f', the first {ROWS} shown' if len(rows) > ROWS else ''})", shown)
    say(str(result))
    if file is not None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(file, text.getvalue().encode())
        say(f"wrote {file}: {len(rows)} rows")


COMMANDS = (encode, decode, interpolate, likelihood)


# --- models and latents -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """A model that tells of every call."""

    model: Model
    tell: Callable[[int], None]

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        p = self.model(x, t)
        self.tell(p.cost)
        return p

    def rows(self, index: Tensor) -> Watched:
        return Watched(self.model.rows(index), self.tell)


def _model(checkpoint: Path | None) -> tuple[ScoreNet, tuple[float, float] | None]:
    """The network, and the limits of its images where they are not -1 and 1."""
    if checkpoint is None or str(checkpoint) != "mnist":
        return load_model(checkpoint_path(checkpoint) or digits_path()), None
    folder = data_folder()
    if folder is None:
        raise UserError("the third-party MNIST network is in a folder with weights/: export SDEDIFF_DATA=/path/to/it.")
    return load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth"), (-0.5, 0.5)


def _suited(model: ScoreNet, images: torch.dtype) -> None:
    """Images of float64 are asked about in float64, all others in float32."""
    if images == torch.float64 and isinstance(model.net, torch.nn.Module):
        model.net.double()


def _limits(given: tuple[float, float] | None, home: tuple[float, float] | None) -> tuple[float, float] | None:
    if given is not None and not -float("inf") < given[0] < given[1] < float("inf"):
        raise UserError(f"--limits takes two numbers, the smaller first, e.g. --limits -1 1, not {given[0]:g} {given[1]:g}.")
    return given or home


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
        a, b = found
        if isinstance(a.knots, Recorded) and isinstance(b.knots, Recorded) and a.solver == b.solver:
            return a.of(a.x), a.of(b.x)  # each sample had steps of its own, which nothing between two samples has
        return a, b
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
    model, _ = _model(checkpoint)
    _suited(model, latent.origin.dtype)
    if check:
        try:
            latent.check(model)
        except UserError as wrong:
            raise UserError(f"{path}: {wrong} (On the command line: --checkpoint, --no-check.)") from None
    return model


def _decoded(model: Model, latent: Latent) -> Tensor:
    steps = len(latent.knots.times if isinstance(latent.knots, Recorded) else latent.knots) - 1
    with bar("decoding", _expected(latent.solver, steps, None, 1), "calls") as advance:
        return inversion.decode(Watched(model, advance), latent, check=False)


def _expected(solver: Solver | Delegate | None, steps: int | None, calls: int | None, runs: float) -> float | None:
    """About how many network calls."""
    each = calls if steps is None else steps * (1 if solver is None else solver.facts.evals)
    return None if each is None else round(runs * each) + 1


def _steps(latent: Latent) -> str:
    if isinstance(latent.knots, Recorded):
        return f"at most {len(latent.knots.times) - 1} steps an image"
    if isinstance(latent.solver, Delegate) and latent.solver.adaptive:
        return "steps of its own"
    return _many(len(latent.knots) - 1, "step")


def _promise(latent: Latent) -> str:
    """How exactly it decodes."""
    kept, promise = latent.memory is not None, latent.solver.facts.inverse
    if (kept and promise == "bits") or latent.origin.rest is not None:
        return SAME
    if kept and promise == "exact":
        return "decodes exactly, up to rounding"
    return "decodes approximately" + (", from one tensor alone" if promise in ("bits", "exact") else "")


# --- likelihood ---------------------------------------------------------------------------------------------------


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
    nat = found.dimension * 0.6931471805599453
    rows = []
    for i, name in enumerate(names):
        value, error = float(found.value[i]), float(found.standard_error[i])
        bits = {} if found.levels is None else {"bits_per_dim": float(found.bits_per_dim[i]), "bits_error": error / nat}
        parts = {part: float(getattr(found.budget, part)[i]) for part in PARTS}
        rows.append({"image": name, **bits, "nats": value, "nats_error": error, **parts})
    return rows


# --- files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A file or folder to write images to: kind is the ending, "" for a folder; limits as in `Origin`."""

    path: Path
    kind: str
    limits: tuple[float, float] = (-1.0, 1.0)

    def save(self, rows: Sequence[Tensor], names: Sequence[str], whole: Tensor) -> str:
        """Write images given as rows (of a sheet), with names (of files), and as one tensor; says what was written."""
        said = f"images {tuple(whole.shape)} of {_dtype(whole)}"
        if self.kind == ".npz":
            write_bytes(self.path, npz(whole))
            return said
        if self.kind == ".safetensors":
            write(self.path, {"x": whole}, {"kind": "images", "limits": list(self.limits)})
            return said
        rounded = "" if whole.dtype == torch.uint8 else f", {_dtype(whole)} rounded to 8 bits"
        if self.kind == ".png":
            columns = min(len(rows[0]), SHEET)
            drawn = [pixels(r[:columns], self.limits) for r in rows[: SHEET // columns]]
            write_bytes(self.path, sheet(drawn))
            shown = sum(map(len, drawn))
            return f"a sheet of {f'the first {shown} of ' if shown < len(names) else ''}{_many(len(names), 'image')}{rounded}"
        each = [image for row in rows for image in row]
        others = [f.name for f in self.path.iterdir() if f.suffix.lower() in PICTURES and f.stem not in names]
        if others:
            raise UserError(f"{self.path} already holds other images ({others[0]}, ...): choose an empty folder.")
        for name, image in zip(names, each, strict=True):
            write_bytes(self.path / f"{name}.png", png(pixels(image, self.limits)))
        return f"{_many(len(names), '.png file')}{rounded}"


def _target(path: Path, kinds: Sequence[str], sources: Sequence[Path], latent: Latent | None = None) -> Target:
    """Where to write, looked at before the work: kinds are endings, "" stands for a folder. latent: whose images these will be."""
    kind = "" if path.is_dir() else path.suffix.lower()
    if kind not in kinds:
        ends = [k for k in kinds if k]
        folder = " file, or a folder" if "" in kinds else " file"
        listed = " or a ".join([", ".join(ends[:-1]), ends[-1]] if len(ends) > 1 else ends)
        raise UserError(f"--out takes a {listed}{folder}, not {'the folder ' if path.is_dir() else ''}{str(path)!r}.")
    if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
        raise UserError(f"--out {path} would overwrite what is read: choose another name.")
    if latent is not None and kind in (".png", "") and (latent.x.ndim != 4 or latent.x.shape[1] not in (1, 3)):
        raise UserError(f"samples of shape {tuple(latent.x.shape[1:])} are no pictures: write them to a .npz or .safetensors file.")
    if latent is not None and kind == ".npz" and latent.origin.dtype == torch.bfloat16:
        raise UserError("these images are bfloat16, which NumPy does not have: write them to a .safetensors file.")
    writable(path if kind == "" else path.parent)
    return Target(path, kind) if latent is None else Target(path, kind, latent.origin.limits)


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape[1:]))


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
