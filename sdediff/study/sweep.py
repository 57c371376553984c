"""The sweep: every cell from the same latents, judged against the real images and against the converged probability flow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..coordinates import Angle
from ..sampling import knots_for, latents, run
from ..solve import solve
from ..solver import Solver
from ..solvers import RungeKutta
from .problem import Judge, Problem
from .settings import REFERENCE_GRID, Cell, Settings


@dataclass(frozen=True)
class Row:
    """One line of results.csv. error: RMS distance to the converged flow from the same latents, pixels in [-1, 1]."""

    solver: str
    grid: str
    calls_asked: int | None
    calls_made: int
    seed: int
    samples: int
    frechet: float
    frechet_pixels: float
    sliced_wasserstein: float
    error: float
    seconds: float
    curve: str
    stochastic: bool


DDIM_CURVE, DDPM_CURVE = "DDIM(0.0)", "DDPM('small')"
"""The two curves of the DDIM paper's story."""


@dataclass
class Results:
    """Rows of the sweep, and the samples of the first seed by (curve, calls asked) for the pictures."""

    rows: list[Row] = field(default_factory=list)
    converged: dict[int, Tensor] = field(default_factory=dict)
    converged_distances: dict[int, dict[str, float]] = field(default_factory=dict)
    samples: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)

    @property
    def converged_frechet(self) -> float:
        """The Frechet distance of the converged flow, mean over seeds: what a solver's error can no longer explain."""
        return sum(d["frechet"] for d in self.converged_distances.values()) / len(self.converged_distances)

    def frame(self) -> Any:
        """The rows as a pandas frame."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.rows], columns=list(Row.__dataclass_fields__))


def starts(problem: Problem, settings: Settings, seed: int) -> Tensor:
    """The latents of a seed: every cell starts from these."""
    return latents(problem.model, settings.samples, seed=seed, shape=problem.shape)


def converge(problem: Problem, x: Tensor, steps: int) -> Tensor:
    """The images of the probability flow from latents x, converged: RK4 in Angle coordinates on `steps` steps even in lam."""
    knots = REFERENCE_GRID.knots(problem.model.schedule, steps)
    return problem.images(solve(RungeKutta("rk4", Angle()), problem.model, x, knots).x)


def sweep(problem: Problem, settings: Settings, judge: Judge, results: Results) -> Iterator[int]:
    """Run every cell for every seed, adding to `results`; yields the network calls of each piece of work when it is done."""
    for seed in range(settings.seeds):
        x = starts(problem, settings, seed)
        results.converged[seed] = converge(problem, x, settings.reference_steps)
        results.converged_distances[seed] = judge.distances(results.converged[seed])
        yield 4 * settings.reference_steps
        for cell in settings.cells():
            row, samples = measure(problem, cell, x, results.converged[seed], judge, seed)
            results.rows.append(row)
            if seed == 0:
                results.samples[cell.label, cell.calls] = samples
            yield cell.calls or 150


def measure(problem: Problem, cell: Cell, x: Tensor, converged: Tensor, judge: Judge, seed: int) -> tuple[Row, Tensor]:
    """One cell from latents x: its row, and its images."""
    schedule = problem.model.schedule
    if cell.calls is not None and isinstance(cell.solver, Solver):
        knots = knots_for(schedule, cell.solver, cell.grid, calls=cell.calls)
    else:
        knots = cell.grid.knots(schedule, cell.calls or 1)
    begin = time.perf_counter()
    solution = run(cell.solver, problem.model, x, knots, seed=seed)
    seconds = time.perf_counter() - begin
    images = problem.images(solution.x)
    error = float((images - converged).square().mean().sqrt()) * problem.scale
    row = Row(
        solver=repr(cell.solver),
        grid=repr(cell.grid),
        calls_asked=cell.calls,
        calls_made=solution.calls,
        seed=seed,
        samples=len(x),
        **judge.distances(images),
        error=error,
        seconds=seconds,
        curve=cell.label,
        stochastic=cell.solver.facts.stochastic,
    )
    return row, images
