"""Adaptive SDE solvers on one Brownian path a sample: strong error against tolerance, and the bias of redrawing after a rejection:

python benchmarks/adaptive_sde.py [samples of the last part, 1000000 by default; 0: only the first two parts]

1. ShARK under `PID` on two mixtures, all tolerances on the same paths, against the fixed grid with as many calls; the truth is ShARK with
   FINE steps on these paths.
2. The bias of mean and variance against the tolerance: Gotta Go Fast as published (noise drawn again after a rejection) against the exact
   marginal; on a path, and ShARK, against fine steps on the same paths, sample by sample, which leaves little Monte-Carlo noise; and ShARK
   on the fixed grid with as many calls, where nothing is rejected.
3. The same three against the exact marginal with a million samples each, at the settings of MILLION; and the same paths on a fixed grid.
Prints tables, writes docs/results/adaptive_sde.csv and docs/img/adaptive_sde.png.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdediff import PID, Brownian, GottaGoFast, GottaGoFastControl, LogSNR, Mixture, ShARK, Uniform, VPLinear, White, solve

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = VPLinear()
WHOLE, SPAN = (0.9, 0.02), (0.5, 0.1)
DEPTH = 12  # of the paths of parts 2 and 3: a step goes over dozens of leaves, and where one time falls in a leaf the law is exact
PATHS, FINE, PART = 256, 3000, 8192
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PAIRED, COARSE = 16384, {"published": (0.1, 0.05, 0.02, 0.01), "path": (0.1, 0.05, 0.02, 0.01), "ShARK": (0.1, 0.03, 0.01, 0.002)}
MEANS, STDS, WEIGHTS = np.array([[0.6, 0.0], [-0.6, 0.3]]), np.array([0.5, 0.6]), np.array([0.4, 0.6])


@dataclass(frozen=True)
class Row:
    """One measurement; what has no meaning in its part is NaN."""

    part: str
    what: str
    tolerance: float
    samples: int
    calls: float
    rejected: float
    error: float = math.nan
    median: float = math.nan
    fixed: float = math.nan
    mean: float = math.nan
    mean_error: float = math.nan
    variance: float = math.nan
    variance_error: float = math.nan
    share: float = math.nan
    share_error: float = math.nan


def rms(x: Tensor) -> float:
    """Over all components of all samples."""
    return float(x.square().mean().sqrt())


# --- 1: strong error ---------------------------------------------------------------------------------------------------


def mixtures() -> dict[str, Mixture]:
    """Two modes that part in 2-D, six in 16-D."""
    means = 0.7 * np.random.default_rng(0).standard_normal((6, 16))
    return {
        "2-D, 2 modes": Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=SCHEDULE),
        "16-D, 6 modes": Mixture(means, [0.2, 0.3, 0.4, 0.2, 0.3, 0.25], schedule=SCHEDULE),
    }


def strong() -> Iterator[Row]:
    """Error of adaptive ShARK for each tolerance, and of as many fixed steps."""
    first, last = SCHEDULE.knots(WHOLE)
    for name, model in mixtures().items():
        x = model.sample(PATHS, first, seed=1)
        noise = Brownian(3, (last.u2, first.u2)).on(x)
        truth = solve(ShARK(), model, x, LogSNR().knots(SCHEDULE, FINE, *WHOLE), noise=noise).x
        for atol in TOLERANCES:
            run = solve(ShARK(), model, x, PID(atol=atol, times=WHOLE, most_calls=20_000), noise=noise)
            assert run.each is not None
            assert run.reached, run.reason
            calls = float(run.each.mean())
            even = solve(ShARK(), model, x, LogSNR().knots(SCHEDULE, round(calls / 2), *WHOLE), noise=noise)
            each = (run.x - truth).square().mean(1).sqrt()
            yield Row(
                "strong",
                name,
                atol,
                PATHS,
                calls,
                float(run.rejected.mean()),
                rms(run.x - truth),
                float(each.median()),
                rms(even.x - truth),
            )


# --- 2 and 3: bias -----------------------------------------------------------------------------------------------------


def model() -> Mixture:
    """A smooth problem: the bias of rejection must show against the error of the steps."""
    return Mixture(MEANS, STDS, WEIGHTS, schedule=SCHEDULE)


class Setting(NamedTuple):
    """A method with its tolerance; with `steps`, on the fixed grid instead. seed: of the paths and the starts."""

    name: str
    atol: float
    steps: int = 0
    seed: int = 0

    @property
    def label(self) -> str:
        return self.name + (", fixed" if self.steps else "") + (f", seed {self.seed}" if self.seed else "")

    def method(self) -> tuple[Any, Any, Any]:
        """(solver, controller, noise)."""
        (first, last), shark = SCHEDULE.knots(SPAN), self.name == "ShARK"
        ends = (last.u2, first.u2) if shark else (last.time, first.time)
        noise = White(self.seed) if self.name == "published" else Brownian(self.seed, ends, DEPTH)
        if self.steps:
            control = (LogSNR() if shark else Uniform()).knots(SCHEDULE, self.steps, *SPAN)
        else:
            control = PID(atol=self.atol, times=SPAN, most_calls=20_000) if shark else GottaGoFastControl(self.atol, self.atol, SPAN)
        return ShARK() if shark else GottaGoFast(), control, noise

    def starts(self, samples: int) -> Iterator[tuple[Tensor, range]]:
        """Exact samples of the marginal at the start in parts of PART, and which they are."""
        for first in range(0, samples, PART):
            n = min(PART, samples - first)
            yield model().sample(n, SCHEDULE.knot(SPAN[0]), seed=1000 + first + 899_000 * self.seed), range(first, first + n)


MILLION = (
    Setting("published", 0.02),
    Setting("path", 0.02),
    Setting("path", 0.02, steps=80),
    Setting("path", 0.02, seed=1),
    Setting("path", 0.02, steps=80, seed=1),
    Setting("ShARK", 0.002),
)


def truth() -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, variance and share of x_1 > 0 of the marginal at the end."""
    last = SCHEDULE.knot(SPAN[1])
    means, variances = last.alpha * MEANS, last.alpha**2 * STDS**2 + last.sigma**2
    mean = WEIGHTS @ means
    share = sum(w * 0.5 * math.erfc(-m / math.sqrt(2 * v)) for w, m, v in zip(WEIGHTS, means[:, 0], variances, strict=True))
    return mean, WEIGHTS @ (means**2 + variances[:, None]) - mean**2, share


@dataclass
class Moments:
    """Sums over the samples of f, f^2 for f = x, (x - exact mean)^2 and [x_1 > 0]: less those of a reference, if there is one."""

    count: int
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def none(cls) -> Moments:
        return cls(0, np.zeros(5), np.zeros(5))

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        """The samples x, less the reference sample by sample or less what is exact."""
        mean, variance, share = truth()
        features = lambda x: np.hstack([x.numpy(), (x.numpy() - mean) ** 2, x[:, :1].numpy() > 0])  # noqa: E731
        f = features(x) - (np.hstack([mean, variance, share]) if reference is None else features(reference))
        self.count, self.sums, self.squares = self.count + len(x), self.sums + f.sum(0), self.squares + (f**2).sum(0)

    def row(self, part: str, name: str, atol: float, calls: float, rejected: float) -> Row:
        """The worse component of the mean's bias in standard deviations, of the variance's relative to it, and of the share."""
        _, variance, _ = truth()
        scale = np.hstack([np.sqrt(variance), variance, 1.0])
        bias = self.sums / self.count / scale
        error = np.sqrt(self.squares / self.count - (self.sums / self.count) ** 2) / math.sqrt(self.count) / scale
        of_mean, of_variance = int(np.argmax(np.abs(bias[:2] / error[:2]))), 2 + int(np.argmax(np.abs(bias[2:4] / error[2:4])))
        pairs = [float(v[i]) for i in (of_mean, of_variance, 4) for v in (bias, error)]
        return Row(part, name, atol, self.count, calls, rejected, *[math.nan] * 3, *pairs)


def biased(part: str, setting: Setting, samples: int, reference: list[Tensor] | None) -> Row:
    """Run `samples` and take the moments."""
    solver, control, source = setting.method()
    moments, calls, rejected = Moments.none(), 0.0, 0.0
    for i, (x, index) in enumerate(setting.starts(samples)):
        run = solve(solver, model(), x, control, noise=source.on(x, index))
        moments.add(run.x, None if reference is None else reference[i])
        assert run.each is not None
        calls, rejected = calls + run.each.sum() / samples, rejected + np.sum(run.rejected) / samples
    return moments.row(part, setting.label, setting.atol, calls, rejected)


def fine(name: str) -> list[Tensor] | None:
    """The ends of the same paths by many steps."""
    if name == "published":
        return None
    setting = Setting(name, 0.0, steps=400 if name == "ShARK" else 800)
    solver, grid, source = setting.method()
    return [solve(solver, model(), x, grid, noise=source.on(x, index)).x for x, index in setting.starts(PAIRED)]


def weak() -> Iterator[Row]:
    """Bias against tolerance."""
    for name, tolerances in COARSE.items():
        reference = fine(name)
        for atol in tolerances:
            row = biased("weak", Setting(name, atol), PAIRED, reference)
            yield row
            if name == "ShARK":
                yield biased("weak", Setting(name, atol, steps=round(row.calls / 2)), PAIRED, reference)


# --- what is shown -----------------------------------------------------------------------------------------------------

COLOURS = {"published": "#b2182b", "path": "#2166ac", "ShARK": "#1b7837", "ShARK, fixed": "0.6"}
NAMES = {
    "published": "Gotta Go Fast, redrawn (published)",
    "path": "Gotta Go Fast on one path",
    "ShARK": "ShARK on one path",
    "ShARK, fixed": "ShARK, fixed grid, as many calls",
}


def show(row: Row) -> str:
    """One line."""
    head = f"{row.part:8} {row.what:14} {row.tolerance:7g} {row.samples:8} samples  {row.calls:7.1f} calls  {row.rejected:6.1f} rejected  "
    if row.part == "strong":
        return head + f"error {row.error:.2e} (median {row.median:.2e}), fixed grid {row.fixed:.2e}"
    parts = ((n, getattr(row, n), getattr(row, f"{n}_error")) for n in ("mean", "variance", "share"))
    return head + ", ".join(f"{n} {100 * b:+.3f} +- {100 * e:.3f} %" for n, b, e in parts)


def draw(rows: list[Row], path: Path) -> None:
    """Left the strong error against the tolerance, right the bias of the variance."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, colour), marker in zip((("2-D, 2 modes", "#762a83"), ("16-D, 6 modes", "#e08214")), "os", strict=True):
        own = [r for r in rows if r.what == name]
        left.loglog(
            [r.tolerance for r in own], [r.median for r in own], color=colour, marker=marker, label=f"{name}: slope {slope(own):.2f}"
        )
    ends = np.array([TOLERANCES[-1], TOLERANCES[0]])
    left.loglog(ends, ends, color="0.6", ls="--", lw=1, label="error = tolerance")
    left.set(xlabel="tolerance", ylabel="strong error, median of samples", title="Adaptive ShARK on one path a sample")
    for name, colour in COLOURS.items():
        for part, style in (("weak", {"marker": "o", "ls": "-"}), ("million", {"marker": "*", "ls": "", "ms": 14})):
            own = [r for r in rows if r.what == name and r.part == part]
            bars = ([r.tolerance for r in own], [100 * r.variance for r in own], [200 * r.variance_error for r in own])
            right.errorbar(*bars, color=colour, capsize=3, **style, label=NAMES[name] if part == "weak" else None)
    right.axhline(0, color="0.5", lw=0.8)
    right.set_xscale("log")
    right.set_yscale("symlog", linthresh=0.3)
    right.set_ylim(-30, 1000)
    right.set(xlabel="tolerance", ylabel="bias of the variance, %", title="What a redraw after rejection does")
    for axes in (left, right):
        axes.grid(visible=True, which="major", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=80)


def slope(rows: list[Row]) -> float:
    """Of log error against log tolerance."""
    return float(np.polyfit(np.log([r.tolerance for r in rows]), np.log([r.median for r in rows]), 1)[0])


def write(rows: list[Row], path: Path) -> None:
    """All rows, empty where a number has no meaning."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Row.__annotations__)
        table.writerows([("" if v != v else f"{v:.6g}") if isinstance(v, float) else v for v in asdict(r).values()] for r in rows)


def main() -> None:
    """All three parts."""
    torch.set_num_threads(1)
    samples, rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, []
    million = (biased("million", setting, samples, None) for setting in MILLION if samples)
    for part in (strong(), weak(), million):
        began = time.process_time()
        for row in part:
            rows.append(row)
            print(show(row), flush=True)
        print(f"{time.process_time() - began:.0f} s of one core", flush=True)
    write(rows, ROOT / "docs" / "results" / "adaptive_sde.csv")
    draw(rows, ROOT / "docs" / "img" / "adaptive_sde.png")


if __name__ == "__main__":
    main()
