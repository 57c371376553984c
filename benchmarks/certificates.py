"""The oracle of orders: what every public solver promises (`facts`) against what is measured on closed-form targets, in float64.

    python benchmarks/certificates.py            # all settings; writes docs/certificates.md and docs/results/certificates.csv
    python benchmarks/certificates.py --quick    # fewer targets and steps, writes nothing; the test suite runs this level
    python benchmarks/certificates.py --only UniPC --only "DDIM(eta=0.0"

An order is the slope -d log2(error) / d log2(steps). How it is measured does not look at what is promised.
- ode: RMS distance to the exact probability flow (closed form for Gaussians, else SciPy's DOP853 at rtol 1e-13) at the end of the grid.
  Steps double until two successive slopes agree (at the full level to 640 steps at least); errors near rounding do not count. The slope
  is p + O(1/steps), so the last two are extrapolated. A multistep method whose `start` is not set takes its first steps with RK4: this is
  the order of its formula.
- own start: the same as published, from its own first steps of lower order, on a short run amid the data's scales (from t = 0.3). From
  high noise these first steps cost so little that their order shows at thousands of steps only.
- strong: distance between the runs with N/2 and N steps on one Brownian path, which falls as the error does, so that no finite reference
  enters. It is random: a line through all octaves of many paths keeps the slope's own error near 0.05. RMS where paths stay in their
  modes; the median over paths on the mixtures.
- weak: the largest error of mean or variance over all knots, from `linear_gaussian`: exact moments, no Monte-Carlo noise. As ode.
The order of a method is its worst case: a certificate holds if the least order measured over all targets and grids is the promised one
to 0.15. (Some are better on some targets: explicit midpoint in Sigma coordinates has order 3 on every Gaussian, exactly.)
Exit code 1 if a certificate fails.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from certificates_page import Certificate, Measure, report, short, write_csv
from linear_gaussian import NotLinear, marginals
from settings import family, of_steps, settings
from torch import Tensor

from sdediff import (
    Angle,
    Brownian,
    Gaussian,
    Knot,
    LogSNR,
    Mixture,
    Quadratic,
    RungeKutta,
    SciPy,
    Solver,
    VPLinear,
    White,
    solve,
)
from sdediff.noise import Noise
from sdediff.solvers import named

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = VPLinear()
LONG, AMID, PARTING = (0.9, 0.02), (0.3, 0.02), (0.17, 0.12)  # times from and to
GRIDS = {"LogSNR": LogSNR(), "Quadratic": Quadratic()}
BEGIN = RungeKutta("rk4", Angle())
AGREE = 0.04  # of two successive slopes
PATHS = {"gaussian": 256, "mixture": 512, "sharp": 64, "parting": 2048}
FLOOR = {"exact": 1e-12, "ode": 1e-11, "weak": 1e-12, "bits": 1e-11}  # smaller errors are rounding (to 2^-44: bits), or the reference's


@dataclass(frozen=True)
class Level:
    """How much is measured: targets and grids of each kind, and step counts (first, least last, most)."""

    ode: tuple[tuple[str, str], ...]
    own_start: tuple[tuple[str, str], ...]
    strong: tuple[tuple[str, str], ...]
    weak: tuple[tuple[str, str], ...]
    steps: dict[str, tuple[int, int, int]]


def _pairs(targets: Iterable[str], grids: Iterable[str]) -> tuple[tuple[str, str], ...]:
    grids = tuple(grids)
    return tuple((t, g) for t in targets for g in grids)


FULL = Level(
    _pairs(("gaussian", "mixture", "sharp"), GRIDS),
    _pairs(("gaussian", "mixture"), GRIDS),
    _pairs(("gaussian", "mixture", "sharp", "parting"), GRIDS),
    _pairs(("gaussian",), GRIDS),
    {"ode": (20, 640, 2560), "own_start": (40, 640, 2560), "strong": (128, 512, 512), "weak": (50, 400, 6400)},
)
QUICK = Level(
    (("mixture", "Quadratic"),),
    (),
    (("parting", "LogSNR"),),
    (("gaussian", "LogSNR"),),
    {"ode": (20, 160, 2560), "own_start": (40, 160, 640), "strong": (32, 128, 128), "weak": (50, 200, 6400)},
)


# --- targets ------------------------------------------------------------------------------------------------------


@cache
def target(name: str) -> Gaussian | Mixture:
    """gaussian: standard deviations 0.1 to 1.2; mixture: five modes in 2-D; sharp: six narrow ones in 16-D; parting: two in 2-D."""
    if name == "gaussian":
        return Gaussian([0.5, -1.0, 0.2, 0.0], [1.5, 0.4, 0.05, 0.01], schedule=SCHEDULE)
    if name == "parting":
        return Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=SCHEDULE)
    if name == "mixture":
        angles = torch.arange(5) * 2 * math.pi / 5
        means = 0.7 * torch.stack([angles.cos(), angles.sin()], dim=1)
        return Mixture(means, [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=SCHEDULE)
    means = torch.randn(6, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Mixture(means, torch.linspace(0.05, 0.1, 6), torch.arange(1, 7), schedule=SCHEDULE)


@cache
def starts(name: str, span: tuple[float, float] = LONG, n: int = 32) -> Tensor:
    """Draws of the target's marginal at the beginning of the span."""
    return target(name).sample(n, SCHEDULE.knot(span[0]), seed=1)


@cache
def flowed(name: str, span: tuple[float, float] = LONG) -> Tensor:
    """The starts carried to the end of the span by the exact probability flow."""
    model, (first, last) = target(name), knots("LogSNR", 1, span)
    if isinstance(model, Gaussian):
        return model.flow(starts(name, span), first, last)
    return solve(SciPy("DOP853", 1e-13, 1e-13), model, starts(name, span), (first, last)).x


@cache
def knots(grid: str, n: int, span: tuple[float, float] = LONG) -> tuple[Knot, ...]:
    """n steps of the grid over the span."""
    return GRIDS[grid].knots(SCHEDULE, n, *span)


@dataclass
class Remembered:
    """A bound noise that keeps what it gave (as far as memory allows): all stochastic solvers follow the same paths."""

    noise: Noise
    given: dict[tuple, Any] = field(default_factory=dict)

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        return self._kept((a, b, key), self.noise)

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        return self._kept(("area", a, b, key), self.noise.area)

    def fresh(self, key: int) -> Tensor:
        return self._kept(("fresh", key), self.noise.fresh)

    def rows(self, index: Tensor) -> Noise:
        return self.noise.rows(index)

    def _kept(self, name: tuple, draw: Callable[..., Any]) -> Any:
        if name not in self.given:
            if len(self.given) >= 1000:  # stages of one solver that no other asks for
                return draw(*(w for w in name if not isinstance(w, str)))
            self.given[name] = draw(*(w for w in name if not isinstance(w, str)))
        return self.given[name]


@cache
def paths(name: str, grid: str, clock: str) -> tuple[Remembered, Tensor, tuple[float, float]]:
    """One Brownian path for each of many starts, on this clock; the starts, and the span.

    "parting" is a short span on which two modes part: the drift bends most against the noise there, and strong order 1.5 shows.
    On long spans such methods look like order 2 up to thousands of steps.
    """
    span = PARTING if name == "parting" else LONG
    x = starts(name, span, PATHS[name])
    low, high = sorted(k.clock(clock) for k in knots(grid, 1, span))
    return Remembered(Brownian(3, (low, high)).on(x)), x, span


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# --- slopes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """A measured order, nan if there is none; the steps and the error at the end; all errors, at step counts that double."""

    order: float
    steps: int
    errors: tuple[float, ...]


def slope(error: Callable[[int], float], steps: tuple[int, int, int], floor: float) -> Slope:
    """Double the steps, from `least` on until two successive slopes agree, or the error nears the floor; extrapolate the last two."""
    n, least, most = steps
    errors, order, change = [error(n)], math.nan, math.nan
    while 2 * n <= most and errors[-1] > 2 * floor:
        new = error(2 * n)
        if not new > 2 * floor:
            break
        n, before, order = 2 * n, order, math.log2(errors[-1] / new)
        change = order - before
        errors.append(new)
        if n >= least and abs(change) <= AGREE:
            break
    return Slope(order + change if abs(change) <= 0.2 else order, n, tuple(errors))


def ode(solver: Solver, name: str, grid: str, steps: tuple[int, int, int], span: tuple[float, float] = LONG) -> Slope:
    """The order to the probability flow."""

    def error(n: int) -> float:
        return rms(solve(solver, target(name), starts(name, span), knots(grid, n, span)).x - flowed(name, span))

    n, least, most = steps
    least = 2 * least if solver.order >= 4 else least  # a high order shows later
    floor = FLOOR["ode"] if name != "gaussian" else FLOOR["bits" if solver.facts.inverse == "bits" else "exact"]
    return slope(error, (n, least, most), floor)


def formula(solver: Solver, name: str, grid: str, steps: tuple[int, int, int]) -> Slope:
    """The order to the probability flow, of the formula: first steps of high order where the solver leaves them open."""
    return ode(replace(solver, start=BEGIN) if unstarted(solver) else solver, name, grid, steps)  # type: ignore[type-var]


def own_start(solver: Solver, name: str, grid: str, steps: tuple[int, int, int]) -> Slope:
    """The order as published, on a run that begins where the data's structure shows."""
    return ode(solver, name, grid, steps, AMID)


def unstarted(solver: Solver) -> bool:
    """Whether it is a multistep method of more than one step with its option `start` not set."""
    return any(f.name == "start" and getattr(solver, f.name) is None for f in fields(solver)) and solver.order > 1  # type: ignore[arg-type]


def strong(solver: Solver, name: str, grid: str, steps: tuple[int, int, int]) -> Slope:
    """The order on one Brownian path a sample: the line through the distances of the runs with n/2 and n steps."""
    first, _, most = steps
    noise, x, span = paths(name, grid, solver.facts.clock)
    counts = [first // 2 * 2**i for i in range(int(math.log2(most / first)) + 2)]
    runs = [solve(solver, target(name), x, knots(grid, n, span), noise=noise).x for n in counts]
    errors = [_typical(name, a - b) for a, b in pairwise(runs)]
    octaves = [i - (len(errors) - 1) / 2 for i in range(len(errors))]
    line = sum(o * math.log2(e) for o, e in zip(octaves, errors, strict=True)) / sum(o * o for o in octaves)
    return Slope(-line, most, tuple(errors))


def _typical(name: str, off: Tensor) -> float:
    """The root mean square; the median where single paths change from mode to mode (its order is the same or higher)."""
    return rms(off) if name in ("gaussian", "parting") else float(off.square().mean(1).sqrt().median())


def weak(solver: Solver, name: str, grid: str, steps: tuple[int, int, int]) -> Slope:
    """The order of mean and variance at every knot. Raises `NotLinear` for a solver whose moments do not close."""
    model = target(name)
    assert isinstance(model, Gaussian)

    def error(n: int) -> float:
        worst = 0.0
        for (mean, variances), k in zip(marginals(of_steps(solver, n), model, knots(grid, n)), knots(grid, n), strict=True):
            true_mean, true_cov = model.moments(k)
            worst = max(worst, float((mean - true_mean).abs().max()), float((variances - true_cov.diagonal()).abs().max()))
        return worst

    return slope(error, steps, FLOOR["weak"])


ORDERS = {"ode": formula, "own_start": own_start, "strong": strong, "weak": weak}


# --- certificates -------------------------------------------------------------------------------------------------


def certify(solver: Solver, level: Level = FULL) -> Certificate:
    """Measure every order that the solver promises."""
    facts, measures, notes = solver.facts, [], []
    promises = {"ode": facts.ode, "strong": facts.strong, "weak": facts.weak}
    if facts.ode is not None and unstarted(solver):
        promises["own_start"] = math.nan
    kept = {kind: promised for kind, promised in promises.items() if promised is not None}
    for kind, promised in kept.items():
        for name, grid in getattr(level, kind):
            try:
                found = ORDERS[kind](solver, name, grid, level.steps[kind])
            except NotLinear as why:
                notes.append(f"{kind} order not measured: not linear ({why})")
                break
            measures.append(Measure(kind, name, grid, promised, found.order, found.steps, found.errors))
    if not kept:
        notes.append("promises no order")
    calls = solver.calls(knots("LogSNR", 100)) / 100
    return Certificate(
        repr(solver), family(solver), solver.order, calls, float32(solver, 50 if calls <= 10 else 5), tuple(measures), tuple(notes)
    )


def float32(solver: Solver, steps: int) -> float:
    """RMS difference between a float32 and a float64 run on the mixture, with the same noise."""
    x = starts("mixture").float()
    low, high = (solve(solver, target("mixture"), y, knots("LogSNR", steps), noise=White(1)).x.double() for y in (x, x.double()))
    return rms(low - high)


def _certified(job: tuple[str, Level]) -> Certificate:
    torch.set_num_threads(1)
    return certify(named(job[0]), job[1])


def certificates(chosen: Sequence[Solver], level: Level, workers: int = 2) -> Iterator[Certificate]:
    """The certificates of these settings, in their order, by `workers` processes of one thread each."""
    jobs = [(repr(s), level) for s in chosen]
    if workers < 2 or len(jobs) < 2:
        yield from map(_certified, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_certified, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer targets and steps; writes nothing")
    parser.add_argument("--only", action="append", default=[], help="settings whose repr contains this text; writes nothing")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    chosen = [s for s in settings() if not given.only or any(text in repr(s) for text in given.only)]
    began, found = time.perf_counter(), []
    for c in certificates(chosen, QUICK if given.quick else FULL, given.workers):
        found.append(c)
        orders = "  ".join(f"{k} {'/'.join(f'{m.measured:.2f}' for m in c.of(k))}" for k in ORDERS if c.of(k))
        print(f"{'FAILS' if c.wrong else 'holds'}  {short(c.setting)}  {orders}  {'; '.join(c.notes)}", flush=True)
    for c in found:
        for wrong in c.wrong:
            print(f"{c.setting}: {wrong}", file=sys.stderr)
    print(f"{len(found)} settings, {sum(not c.wrong for c in found)} hold, {time.perf_counter() - began:.0f} s")
    if not given.quick and not given.only:
        write_csv(found, ROOT / "docs" / "results" / "certificates.csv")
        (ROOT / "docs" / "certificates.md").write_text(report(found) + "\n")
    return int(any(c.wrong for c in found))


if __name__ == "__main__":
    sys.exit(main())
