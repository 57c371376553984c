"""What a study runs: its cells (solver, grid, number of network calls), how many latents, which seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..coordinates import Angle, Time
from ..external import SciPy, TorchDiffEq
from ..grid import Grid, LogSNR, Quadratic
from ..names import UserError
from ..solver import Delegate, Solver
from ..solvers import DDIM, DDPM, Euler, EulerMaruyama, Heun, RungeKutta

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Cell:
    """One line of the results: a solver on a grid with a budget of network calls (None: the solver decides, by its tolerance)."""

    solver: Solver | Delegate
    grid: Grid
    calls: int | None

    @property
    def label(self) -> str:
        """The curve it belongs to, e.g. DDIM(0.5): the repr without option names; an adaptive method is one curve over its tolerances."""
        if isinstance(self.solver, TorchDiffEq | SciPy) and self.calls is None:
            return f"{type(self.solver).__name__}({self.solver.method!r})"
        return re.sub(r"\b\w+=", "", repr(self.solver))


@dataclass(frozen=True)
class Settings:
    """A study: which cells, `samples` latents a seed, seeds, and the budget of the converged flow (RK4 in Angle coordinates, steps)."""

    name: str
    solvers: tuple[Solver | Delegate, ...]
    calls: tuple[int, ...]
    many: tuple[Solver | Delegate, ...] = ()
    many_calls: int = 1000
    grid: Grid = field(default_factory=Quadratic)
    samples: int = 1000
    seeds: int = 3
    reference_steps: int = 100
    round_trip: tuple[int, ...] = (10, 20, 50, 100, 200)
    rows: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 1000)

    def __post_init__(self) -> None:
        if not self.solvers:
            raise UserError("a study needs at least one solver.")
        if not self.calls or any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in self.calls):
            raise UserError(f"calls are whole numbers of at least 1, not {self.calls}.")
        if self.samples < 2 or self.seeds < 1:
            raise UserError(f"a study needs at least 2 samples and 1 seed, not {self.samples} and {self.seeds}.")

    def cells(self) -> list[Cell]:
        """Every cell, in the order in which they run."""
        cells = []
        for solver in self.solvers:
            if isinstance(solver, Delegate) and solver.adaptive:
                cells.append(Cell(solver, self.grid, None))
                continue
            budgets = [*self.calls, *([self.many_calls] if solver in self.many else [])]
            cells += [Cell(solver, self.grid, c) for c in budgets if not isinstance(solver, Solver) or c >= solver.facts.evals]
        return cells

    def expected_calls(self) -> int:
        """About how many network calls the sweep makes for each seed."""
        return sum(c.calls or 150 for c in self.cells()) + 4 * self.reference_steps


def _adaptive(tolerances: Sequence[float]) -> tuple[Delegate, ...]:
    dopri5 = tuple(TorchDiffEq("dopri5", tol, tol, Angle()) for tol in tolerances)
    return dopri5 + tuple(SciPy("RK45", tol, tol, Time()) for tol in tolerances)


SOLVERS = (
    DDPM("small"),
    DDPM("large"),
    DDIM(),
    DDIM(0.5),
    DDIM(1.0),
    EulerMaruyama(),
    Euler(Time()),
    Heun(Angle()),
    RungeKutta("rk4", Angle()),
)
"""The fixed-step solvers of the main job. DDIM(eta=1.0) repeats DDPM("small"): the table shows that they are one."""

DIGITS = Settings(
    name="digits",
    solvers=(*SOLVERS, *_adaptive(TOLERANCES)),
    calls=(5, 10, 20, 50, 100, 200),
    # DDIM(eta=1.0) is DDPM("small") to 1e-12 (a law): at 1000 calls it is not run again
    many=(DDPM("small"), DDPM("large"), DDIM(), DDIM(0.5)),
)

MNIST = Settings(
    name="mnist",
    solvers=(*SOLVERS, *_adaptive(TOLERANCES[:3])),
    calls=(5, 10, 20, 50),
    samples=200,
    seeds=1,
    reference_steps=25,
    round_trip=(10, 20, 50),
    rows=(5, 10, 20, 50),
)

CONFIGS = {"digits": DIGITS, "mnist": MNIST}


def quick(settings: Settings) -> Settings:
    """The same study in seconds: few samples, few calls, one seed. For trying things out; its numbers mean little."""
    fewer = tuple(s for s in settings.solvers if not isinstance(s, SciPy | TorchDiffEq) or s.rtol == 1e-2)
    return replace(
        settings, solvers=fewer, calls=(5, 10), many=(), samples=64, seeds=1, reference_steps=20, round_trip=(10, 20), rows=(5, 10)
    )


REFERENCE_GRID = LogSNR()
