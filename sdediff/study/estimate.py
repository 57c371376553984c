"""How long a study will take, before it runs: one chunk of every kind of cell at its smallest budget is timed, and the rest follows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from ..metrics import Statistics
from ..names import UserError
from .cells import CHUNK
from .job import Job
from .judge import Judge
from .work import Sampling, features_of, wants_logits

_WIDE = 256  # features; the time of wider ones is extrapolated as d^3


class Planned(NamedTuple):
    """A cell: how many chunks of it are to be run, network calls for each sample (asked, or made by a few of them), and seconds of work.

    seconds are of all processes together; done: whether it is finished already; fails: why it will fail, as far as can be seen.
    """

    work: Sampling
    chunks: int
    calls: float
    seconds: float
    done: bool
    fails: str = ""


class Plan(NamedTuple):
    """Every cell, and the seconds of work for the real images."""

    cells: list[Planned]
    real: float
    processes: int

    @property
    def seconds(self) -> float:
        """Of the whole study, by the clock."""
        return (sum(c.seconds for c in self.cells if not c.done) + self.real) / self.processes

    @property
    def calls(self) -> float:
        """Network calls of single samples."""
        return sum(c.calls * c.work.cell.samples for c in self.cells if not c.done)


def plan(job: Job) -> Iterator[str | Plan]:
    """Time a study: yields what it is timing, and at last the `Plan`. Nothing is written."""
    real, *others = job.works
    works = [w for w in others if isinstance(w, Sampling)]
    yield "the metrics"
    images = job.problem.real_images(0, CHUNK)
    begin = time.perf_counter()
    features = features_of(job.problem, images, wants_logits(job.study))
    each = time.perf_counter() - begin
    judged = _judging(job, {k: v.shape[1] for k, v in features.items() if not k.endswith(" logits")})
    found = []
    for key, group in groupby(sorted(works, key=_kind), _kind):
        members = list(group)
        yield key
        found += _timed(job, members, each, judged)
    order = {id(w): i for i, w in enumerate(works)}
    found.sort(key=lambda p: order[id(p.work)])
    again = 0.0 if job.store.record(real.id) is not None else each * real.chunks + 10 * judged
    yield Plan(found, again, job.among.count)


def _kind(work: Sampling) -> str:
    """Cells whose calls cost the same."""
    cell = work.cell
    return f"{'flow ' if work.converges else ''}{cell.solver!r} {cell.guidance!r} {cell.tolerance!r}"


def _timed(job: Job, members: Sequence[Sampling], each: float, judged: float) -> list[Planned]:
    found, solution = [], None
    least, *rest = members = sorted(members, key=lambda w: w.cell.calls or 0)
    try:
        solution, seconds, _ = least.solved(0)
        if seconds < 1:  # the first run warms up
            solution, seconds, _ = least.solved(0)
    except UserError as wrong:
        failed = Planned(least, 0, 0.0, 0.0, job.store.record(least.id) is not None, str(wrong))
        return [failed, *(_timed(job, rest, each, judged) if rest else [])]
    made = float(solution.each.mean()) if solution.each is not None else float(solution.calls)
    for work in members:
        calls = made if work.cell.calls is None else work.cell.calls * made / (least.cell.calls or work.cell.calls)
        chunk = seconds * calls / max(made, 1) + each + 0.003
        finished = job.store.record(work.id) is not None
        there = 0 if finished else len(job.store.finished(work.id))
        left = 0 if finished else work.chunks - there
        unsure = seconds * calls / max(made, 1) / 2 if work.converges and work.cell.calls is not None and there == 0 else 0.0
        found.append(Planned(work, left, calls, left * chunk + judged + unsure, finished))
    return found


def _judging(job: Job, sizes: dict[str, int]) -> float:
    """Seconds for the metrics of one cell, on numbers of the same shape."""
    study, n = job.study, job.study.samples
    generator = torch.Generator().manual_seed(0)
    narrow = {k: min(d, _WIDE) for k, d in sizes.items()}
    made = {k: torch.randn(n, d, generator=generator) for k, d in narrow.items()}
    real = {k: torch.randn(min(len(job.problem.rows), n), d, generator=generator) for k, d in narrow.items()}
    moments = {}
    for name, x in real.items():
        statistics = Statistics()
        statistics.update(x)
        moments[name] = statistics.moments()
    judge = Judge.of(study.metrics, job.problem.extractor, real, moments)
    begin = time.perf_counter()
    judge.estimates(lambda what: made[what.partition(" ")[0]].split(CHUNK), n)
    return (time.perf_counter() - begin) * max((sizes[k] / narrow[k]) ** 3 for k in sizes)
