"""Every way to encode and decode: what each costs and gives, on oracles and on networks.

    python benchmarks/inversion.py                     # all parts; writes docs/results/inversion*.csv and the tables of docs/inversion.md
    python benchmarks/inversion.py --part scorecard    # or: adaptive, rest, starts, table2
    python benchmarks/inversion.py --only ring8        # one problem of scorecard and adaptive; the others keep their rows
    python benchmarks/inversion.py --tables            # read the CSVs, do not measure

scorecard: draws of the data with the noise of t_min on them, up to t_max and down again. latent: error against the converged flow, RMS and
median over the draws; float64, float32: round trip with the memory kept; one: with one tensor kept; KS and std of the latents. Methods
that are not exact have the same figure in both columns. Each method has the best (by its latents) of three grids: even in lam, and on
the clocks root and roots of the angle; those that are exact to the bit have the grid of their clock.
adaptive: a tolerance instead of steps. rest: bits a pixel of the integers that one tensor lacks, uint8 images. starts: latents from clean
and from noised images. table2: the DDIM paper's table 2, error of the reconstruction against steps.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from default import ORACLES, ROOT, SHARED
from default_page import markdown
from torch import Tensor

from sdediff import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    PID,
    AdaptiveAdams,
    Angle,
    AngleUniform,
    AsinhLogSNR,
    AsynchronousLeapfrog,
    EmbeddedRungeKutta,
    ExponentialAdams,
    FixedPoint,
    Heun,
    Leapfrog,
    LogSNR,
    Milne,
    Model,
    ModelError,
    Reversible,
    ReversibleHeun,
    Rex,
    RungeKutta,
    SciPy,
    Solver,
    Time,
    Uniform,
    UserError,
    decode,
    encode,
    knots_for,
    load_model,
    solve,
)
from sdediff.bits import bits
from sdediff.data import digits, idx_images
from sdediff.inversion import upward
from sdediff.latent import Origin
from sdediff.metrics import gaussianity
from sdediff.names import label
from sdediff.pretrained.scores import digits_path

RESULTS = ROOT / "docs" / "results"
CALLS = (10, 20, 50, 100, 200)
GRIDS = {"lam": LogSNR(), "root": AngleUniform("root"), "roots": AngleUniform("roots")}
START = RungeKutta("rk4", Angle())
METHODS: dict[str, Solver] = {
    "naive DDIM inversion": DDIM(),
    "fixed point of DDIM": FixedPoint(),
    "EDICT(0.93)": EDICT(),
    "BDIA(0.5)": BDIA(0.5),
    "BDIA(1)": BDIA(1.0),
    "O-BELM": OBELM(),
    "reversible Heun, time": ReversibleHeun(Time()),
    "reversible Heun, angle": ReversibleHeun(Angle()),
    "McCallum-Foster, midpoint": Reversible("midpoint"),
    "McCallum-Foster, RK4": Reversible("rk4"),
    "Rex, midpoint, x0": Rex("midpoint", "x0"),
    "leapfrog, bits": Leapfrog(),
    **{f"asynchronous leapfrog {p}, {c}, bits": AsynchronousLeapfrog(p, 1.0, c) for c in ("roots", "root") for p in (2, 4)},
    "Milne, bits": Milne(),
    "Heun, angle": Heun(Angle()),
    "Adams 4, v in angle": ExponentialAdams(4, "v", "angle", corrector=True),
    "Adams 4, RK4 start": ExponentialAdams(4, "v", "angle", start=START),
}
ADAPTIVE: dict[str, Solver] = {
    "asynchronous leapfrog 2, bits": AsynchronousLeapfrog(2),
    "AdaptiveAdams": AdaptiveAdams(),
    "dopri5": EmbeddedRungeKutta("dopri5"),
}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
RESTS: dict[str, tuple[Solver, int]] = {
    "asynchronous leapfrog 4": (AsynchronousLeapfrog(4), 50),
    "Heun": (Heun(Angle()), 50),
    "Adams 4": (METHODS["Adams 4, v in angle"], 50),
    "naive DDIM": (DDIM(), 50),
}


Table = Any  # a pandas table: its stubs do not know columns by name


class Problem(NamedTuple):
    """A model, states (n, ...) at t_min, where the flow takes them at t_max, and the model for float32 states, if these are not."""

    model: Model
    x: Tensor
    latent: Tensor
    low: Model | None = None


# --- problems -----------------------------------------------------------------------------------------------------


def ends(model: Model):
    return model.schedule.knot(model.schedule.t_min), model.schedule.knot(model.schedule.t_max)


def _oracle(name: str, n: int) -> Problem:
    model: Any = ORACLES[name]().model
    x = model.sample(n, model.schedule.knot(model.schedule.t_min), seed=11)
    return Problem(model, x, solve(SciPy("DOP853", 1e-12, 1e-12, Angle()), model, x, ends(model)).x, model)


def noised(model: Model, images: Tensor) -> Tensor:
    return Origin(images.dtype, start="noised", seed=3).state(images, ends(model)[0])


def _digits(n: int = 64) -> Problem:
    """In float64, so that a float32 network's own rounding, 1e-4 of the latents, does not hide the methods."""
    model: Any = load_model(digits_path())
    model.net.double()
    x = noised(model, digits().x[:n].double())
    flow = solve(AdaptiveAdams(), model, x, PID(atol=1e-7, times=(model.schedule.t_min, model.schedule.t_max))).x
    return Problem(model, x, flow, load_model(digits_path()))


def mnist_network() -> Model:
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    return load_hot_vs_cold(SHARED / "weights" / "yichizz_ddpm_mnist_starter.pth")


def mnist_images(n: int) -> Tensor:
    """In the units of the network, [-0.5, 0.5]."""
    return idx_images(SHARED / "mnist" / "train-images-idx3-ubyte.gz").x[:n] / 2


def _mnist(n: int = 8) -> Problem:
    """float32; the flow by RK4 on many more steps than any method takes."""
    model = mnist_network()
    x = noised(model, mnist_images(n))
    return Problem(model, x, solve(START, model, x, AsinhLogSNR(-1.0, 2.0).knots(model.schedule, 200)[::-1]).x)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ring8": lambda: _oracle("ring8", 512),
    "2d 6 modes": lambda: _oracle("2d 6 modes", 512),
    "64d": lambda: _oracle("64d", 128),
    "digits network": _digits,
    "mnist network": _mnist,
}


def problems(only: str = "") -> Iterator[tuple[str, Problem]]:
    for name, make in PROBLEMS.items():
        if only and name != only:
            continue
        try:
            yield name, make()
        except (FileNotFoundError, UserError) as missing:
            print(f"without {name}: {missing}", file=sys.stderr, flush=True)


# --- measuring ----------------------------------------------------------------------------------------------------


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def per_sample(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).mean(1).sqrt()


def measure(problem: Problem, solver: Solver, places, calls: int, detail: bool = True) -> dict[str, Any] | None:
    """One cell; None if not even three steps fit."""
    model, x, exact, _ = problem
    try:
        knots = knots_for(model.schedule, solver, places, calls=calls)
    except UserError:
        return None
    if len(knots) < 3:
        return None
    try:
        up = solve(solver.inverse, model, x, knots[::-1])
    except ModelError:  # it grew beyond all bounds
        return {"calls": calls, "steps": len(knots) - 1, "rms": np.inf, "median": np.inf}
    off = per_sample(up.x - exact)
    found = {"calls": up.calls, "steps": len(knots) - 1, "rms": float(off.square().mean().sqrt()), "median": float(off.median())}
    if not detail:
        return found
    exactly = solver.facts.inverse != "approximate"
    one = solve(solver, model, up.x, knots).x
    back = solve(solver, model, up.x, knots, memory=up.memory).x if exactly else one
    found |= {"back": rms(back - x), "one": rms(one - x)}
    if problem.low is not None and exactly:
        low = x.float()
        try:
            there = solve(solver.inverse, problem.low, low, knots[::-1])
            again = solve(solver, problem.low, there.x, knots, memory=there.memory).x
        except ModelError:
            found |= {"back32": np.inf}
        else:
            held = solver.held(low, knots[-1]) if solver.facts.inverse == "bits" else low  # type: ignore[attr-defined]
            found |= {"back32": rms(again - low), "differing32": int((bits(again) != bits(held)).sum())}
    g = gaussianity(up.x / model.schedule.prior_std)
    return {**found, "std": g.std, "mean": g.mean, "ks": g.ks, "rejected": g.rejected}


def scorecard(only: str = "") -> pd.DataFrame:
    rows = []
    for name, problem in problems(only):
        for method, solver in METHODS.items():
            begun = time.time()
            for calls in CALLS[: 4 if name == "mnist network" else 5]:
                own = getattr(solver, "clock", None)
                tried = {g: measure(problem, solver, places, calls, detail=False) for g, places in GRIDS.items() if own in (None, g)}
                known = {g: r for g, r in tried.items() if r is not None}
                if not known:
                    continue
                best = min(known, key=lambda g: known[g]["rms"])
                found = measure(problem, solver, GRIDS[best], calls)
                rows.append({"problem": name, "method": method, "solver": label(solver), "asked": calls, "grid": best, **(found or {})})
            print(f"{name}, {method}: {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def adaptive(only: str = "") -> pd.DataFrame:
    """Steps of each sample's own: encode, then decode on the steps that encoding took."""
    rows = []
    for name, (model, x, exact, _) in problems(only):
        if name == "mnist network":
            continue  # rough in time: a tolerance below 1e-2 would only refine noise
        for method, solver in ADAPTIVE.items():
            for tol in TOLERANCES:
                up = solve(solver, model, x, upward(model.schedule, tol))
                back = solve(solver, model, up.x, up.recorded.reverse, memory=up.memory if solver.facts.inverse == "bits" else None)
                off = per_sample(up.x - exact)
                assert up.each is not None
                rows.append(
                    {"problem": name, "method": method, "tolerance": tol, "calls": up.each.mean(), "rms": float(off.square().mean().sqrt()),
                     "median": float(off.median()), "back": rms(back.x - x)}
                )  # fmt: skip
        print(f"{name}, adaptive", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def rest(n: int = 64) -> pd.DataFrame:
    """Bits a pixel of what one float32 tensor lacks of uint8 images."""
    rows = []
    sets: dict[str, Callable[[], tuple[Model, Tensor, tuple[float, float]]]] = {
        "digits network": lambda: (load_model(digits_path()), ((digits().x[:1024] + 1) * 127.5).round().to(torch.uint8), (-1.0, 1.0)),
        "mnist network": lambda: (mnist_network(), ((mnist_images(n) + 0.5) * 255).round().to(torch.uint8), (-0.5, 0.5)),
    }
    for name, make in sets.items():
        try:
            model, images, limits = make()
        except (FileNotFoundError, UserError) as missing:
            print(f"without {name}: {missing}", file=sys.stderr, flush=True)
            continue
        for method, (solver, calls) in RESTS.items():
            for start in ("clean", "noised"):
                latent = encode(model, images, calls=calls, solver=solver, start=start, limits=limits, compact=True)
                assert torch.equal(decode(model, latent), images)
                packed = len(latent.origin.rest or b"")
                off = rms(decode(model, latent.single(), check=False).double() - images.double())
                rows.append({"problem": name, "method": method, "calls": latent.calls, "start": start, "images": len(images),
                             "bits a pixel": 8 * packed / images.numel(), "grey levels off": off})  # fmt: skip
        print(f"{name}, rest", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def starts(n: int = 64) -> pd.DataFrame:
    """Latents of clean and of noised images."""
    rows = []
    sets: dict[str, Callable[[], tuple[Model, Tensor]]] = {
        "digits network": lambda: (load_model(digits_path()), digits().x[:512]),
        "mnist network": lambda: (mnist_network(), mnist_images(n)),
    }
    for name, make in sets.items():
        try:
            model, images = make()
        except (FileNotFoundError, UserError) as missing:
            print(f"without {name}: {missing}", file=sys.stderr, flush=True)
            continue
        for start in ("clean", "noised"):
            g = gaussianity(encode(model, images, calls=51, start=start).x)
            rows.append({"problem": name, "start": start, "images": len(images), "std": g.std, "lowest": g.lowest, "highest": g.highest,
                         "mean": g.mean, "ks": g.ks, "rejected": g.rejected})  # fmt: skip
    return pd.DataFrame(rows)


def table2(n: int = 8) -> pd.DataFrame:
    """Error of reconstruction per dimension, images in [0, 1] as in the paper: mean of squares."""
    model, images, rows = mnist_network(), mnist_images(n), []
    for steps in (10, 20, 50, 100, 200, 500, 1000):
        for method, solver in {"naive DDIM inversion": DDIM(), "Heun": Heun(), "asynchronous leapfrog": AsynchronousLeapfrog()}.items():
            if method == "Heun" and steps > 200:
                continue
            grid = Uniform() if method != "asynchronous leapfrog" else None
            back = decode(model, encode(model, images, steps=steps, solver=solver, grid=grid), check=False)
            rows.append({"method": method, "steps": steps, "error": float((back - images).double().square().mean())})
        print(f"table 2, {steps} steps", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


PARTS: dict[str, Callable[..., pd.DataFrame]] = {
    "scorecard": scorecard,
    "adaptive": adaptive,
    "rest": rest,
    "starts": starts,
    "table2": table2,
}


# --- tables -------------------------------------------------------------------------------------------------------


def number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if value == 0:
        return "**0**"
    if np.isinf(value):
        return "overflow"
    return f"{value:.2g}" if 1e-2 <= abs(value) < 1e3 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def card(table: Table, problem: str) -> str:
    """A line a method: latent error RMS (median) at each number of calls; the round trips and the latents at 50 calls."""
    rows = []
    for method, of in table[table.problem == problem].groupby("method", sort=False):
        at = {int(r["asked"]): r for r in of.to_dict("records")}
        fifty = at.get(50, {})
        row: dict[str, Any] = {"method": method}
        for calls in CALLS:
            if calls in set(table[table.problem == problem].asked):
                row[f"latent, {calls}"] = f"{number(at[calls]['rms'])} ({number(at[calls]['median'])})" if calls in at else ""
        row["round trip"] = number(fifty.get("back", np.nan))
        if "back32" in table and table[table.problem == problem].back32.notna().any():
            row["in float32"] = "0 bits" if fifty.get("differing32") == 0 else number(fifty.get("back32", np.nan))
        row["one tensor, 50"], row["100"] = number(fifty.get("one", np.nan)), number(at.get(100, {}).get("one", np.nan))
        row["std, KS"] = f"{number(fifty['std'])}, {fifty['ks']:.3f}" if pd.notna(fifty.get("std")) else ""
        rows.append(row)
    return markdown(rows)


def by_tolerance(table: Table) -> str:
    rows = []
    for (problem, method), of in table.groupby(["problem", "method"], sort=False):
        row = {"problem": problem, "method": method}
        for r in of.to_dict("records"):
            row[f"{r['tolerance']:.0e}".replace("e-0", "e-")] = f"{number(r['rms'])}, {r['calls']:.0f} calls, back {number(r['back'])}"
        rows.append(row)
    return markdown(rows)


def plain(table: Table) -> str:
    return markdown([{str(k): number(v) if isinstance(v, float) else v for k, v in r.items()} for r in table.to_dict("records")])


def paper(table: Table) -> str:
    published = dict(zip((10, 20, 50, 100, 200, 500, 1000), (0.014, 0.0065, 0.0023, 0.0009, 0.0004, 0.0001, 0.0001), strict=True))
    rows: list[dict[str, Any]] = [{"method": "DDIM, table 2 (CIFAR-10)", **{str(s): number(v) for s, v in published.items()}}]
    for method, of in table.groupby("method", sort=False):
        known = {int(r["steps"]): r["error"] for r in of.to_dict("records")}
        rows.append({"method": method, **{str(s): number(known[s]) if s in known else "" for s in published}})
    return markdown(rows)


def tables(found: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Markdown by the mark that it has on the page."""
    written = {}
    if "scorecard" in found:
        written |= {p: card(found["scorecard"], p) for p in PROBLEMS if p in set(found["scorecard"].problem)}
    for part, show in (("adaptive", by_tolerance), ("rest", plain), ("starts", plain), ("table2", paper)):
        if part in found:
            written[part] = show(found[part])
    return written


def fill(page: str, written: dict[str, str]) -> str:
    """The page with each table between `<!-- NAME -->` and `<!-- end -->`."""

    def new(match: re.Match[str]) -> str:
        return f"{match[1]}\n{written[match[2]]}\n{match[3]}" if match[2] in written else match[0]

    return re.sub(r"(<!-- ([^>]+) -->)\n.*?(<!-- end -->)", new, page, flags=re.DOTALL)


def file_of(part: str) -> Path:
    return RESULTS / ("inversion.csv" if part == "scorecard" else f"inversion_{part}.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one part only")
    parser.add_argument("--only", default="", help="one problem of the scorecard and of adaptive; the others keep their rows")
    parser.add_argument("--tables", action="store_true", help="read the CSVs, do not measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="encoding:|from sample")
    found = {}
    for part in [args.part] if args.part else ("scorecard", "adaptive") if args.only else PARTS:
        file = file_of(part)
        if not args.tables:
            measured = PARTS[part](args.only) if args.only else PARTS[part]()
            if args.only and file.exists():
                old = pd.read_csv(file)
                measured = pd.concat([old[old.problem != args.only], measured])
            measured.to_csv(file, index=False, float_format="%.4g", lineterminator="\n")
        if file.exists():
            found[part] = pd.read_csv(file)
    written = tables(found)
    print("\n\n".join(f"{name}\n\n{text}" for name, text in written.items()))
    page = ROOT / "docs" / "inversion.md"
    if page.exists():
        page.write_text(fill(page.read_text(), written))


if __name__ == "__main__":
    main()
