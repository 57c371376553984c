"""The whole study as a generator of progress; it writes everything into one folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..checkpoint import write_bytes
from ..names import UserError
from .extras import midpoints, round_trips
from .outcome import Outcome
from .page import draw, write_page
from .problem import Judge, Problem
from .settings import Settings
from .sweep import DDIM_CURVE, DDPM_CURVE, Results, sweep
from .tables import consistency


class Progress(NamedTuple):
    """Network calls (about) that the last piece of work took, and what it was."""

    calls: int
    what: str


def study(problem: Problem, settings: Settings, folder: str | Path, command: str = "sdediff study") -> Iterator[Progress | Outcome]:
    """Run a study and write results.csv, the pictures and report.html into `folder`. Yields `Progress`, and at last the `Outcome`.

    results.csv is written whole after every seed; every file appears only when it is complete. Raises `UserError` if the folder cannot
    be written, or pandas or POT is missing, before anything is run.
    """
    for module, name in (("pandas", "pandas"), ("ot", "POT")):
        if find_spec(module) is None:
            raise UserError(f"the study needs {name}, which is not installed: pip install 'sdediff[study]'.")
    folder = Path(folder)
    write_bytes(folder / "settings.txt", f"{command}\n{settings}\n".encode())
    judge, results = Judge.of(problem, settings.samples), Results()
    per_seed = len(settings.cells()) + 1
    for i, calls in enumerate(sweep(problem, settings, judge, results), start=1):
        if i % per_seed == 0:
            write_bytes(folder / "results.csv", results.frame().to_csv(index=False).encode())
        yield Progress(calls, results.rows[-1].solver if results.rows else "the converged flow")
    trips = []
    for trip in round_trips(problem, settings):
        trips.append(trip)
        yield Progress(2 * (trip["steps"] or 100), "round trips")
    middle = list(midpoints(problem, settings, judge))
    outcome = Outcome(results, judge, trips, consistency(problem, results, (DDIM_CURVE, DDPM_CURVE)), middle)
    pictures = draw(problem, settings, outcome, folder)
    write_page(problem, settings, outcome, folder, pictures, command)
    yield outcome
