"""Run a study: every piece of work once, whoever does it, in chunks that are shared by the processes of a job.

A process that ends takes with it the chunk it was at. Others of its job say so and end; the same command goes on. Two jobs on one folder
share its cells: each is held by one of them at a time.
"""

from __future__ import annotations

import json
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple
from uuid import uuid4

import torch

from ..metrics import MetricError
from ..names import UserError
from ..prediction import ModelError
from ..processes import Alone, Processes
from .cells import Study, study_of
from .extras import Extras
from .judge import Judge
from .problem import Problem
from .results import Lines, lines_of, write_results
from .store import Chunk, Record, Store, StoreError
from .work import Real, Sampling, Work, judge_of

DONE, RUN, BUSY = 0, 1, 2
ORDER = "order.json"  # the ids of the study's records, in order
_LONG = 0.5  # seconds between two looks at a cell that another job is running


class Progress(NamedTuple):
    """After a chunk or a piece of work. calls: network calls of 64 samples since the last; record: of work that is over, now or before."""

    work: Work
    calls: float
    record: Record | None = None
    waits: bool = False  # for another job


@dataclass(frozen=True)
class Job:
    """A study, its problem, its folder, and who runs it; `works` is everything in the order in which it is done."""

    study: Study
    problem: Problem
    store: Store
    among: Processes = field(default_factory=Alone)
    threads: int = 1
    written: dict[str, tuple[int | None, Lines | None]] = field(default_factory=dict, repr=False, compare=False)  # as `_write` read them

    @cached_property
    def works(self) -> list[Work]:
        """The real images, the converged flow of each guidance and seed, the cells."""
        real = Real(self.study, self.problem)

        @cache
        def judge() -> Judge:
            record = self.store.record(real.id)
            if record is None:
                raise UserError(f"the record of the real images is not there, in {self.store.folder}: run the study again.")
            if record.failed is not None:
                raise UserError(f"the real images could not be measured: {record.failed}")
            return judge_of(self.study, self.problem.extractor, record.tensors)

        device = self.among.device or torch.device("cpu")
        common: dict[str, Any] = {"store": self.store, "judge": judge, "threads": self.threads, "device": device}
        flows = {
            (cell.guidance, cell.seed): Sampling(self.study, self.problem, cell, converges=True, **common)
            for cell in self.study.references()
        }
        cells = [
            Sampling(self.study, self.problem, cell, reference=flows.get((cell.guidance, cell.seed)), **common)
            for cell in self.study.cells()
        ]
        extras = [Extras(self.study, self.problem, judge)] if self.study.extras else []
        return [real, *flows.values(), *cells, *extras]


def run(job: Job, again: bool = False) -> Iterator[Progress]:
    """Do all that is not done; yields `Progress`. again: cells that failed are tried once more.

    results.csv and costs.csv are written after every cell. A cell that fails is recorded with the reason, and the rest goes on. Raises
    `UserError` if the folder is another study's or cannot be written, and `ModelError` if another process of the job has ended.
    """
    among, works = job.among, job.works
    busy: list[Work] = []
    with ExitStack() as stack:
        if among.rank == 0:
            _claim(job, stack)
        for work in works:
            found = yield from _do(job, work, again, wait=isinstance(work, Real) or work.kept)
            if not found:
                busy.append(work)
        for work in busy:
            yield from _do(job, work, again, wait=True)
        if among.rank == 0:
            _write(job)
        _together(job, among.meet)


def _write(job: Job) -> None:
    """results.csv and costs.csv of the cells that are over."""
    found = []
    for i in [w.id for w in job.works if isinstance(w, Sampling)]:
        stamp, lines = job.written.get(i, (None, None))
        now = job.store.stamp(i)
        if now is not None and now != stamp:  # a record is read once, not after every cell
            record = job.store.record(i)
            lines = None if record is None else lines_of(job.study, i, record)
            job.written[i] = (now, lines)
        if now is not None and lines is not None:
            found.append(lines)
    write_results(job.store, found)


def _claim(job: Job, stack: ExitStack) -> None:
    """Write down what is asked, and that this job is running, as long as the stack is open.

    `UserError` in the folder of another study, and where another job is running with other settings.
    """
    store, text = job.store, job.study.text()
    with store.lock("claim", wait=60) as alone:
        if not alone:
            raise StoreError(f"{store.folder}: another job has been starting there for a minute: take {store.folder / 'locks'} away.")
        held = _held(store)
        if held is not None and held.name != job.study.name:
            raise UserError(
                f"{store.folder} is the folder of the study {held.name!r}, not of {job.study.name!r}: give another folder, or that name."
            )
        if not store.others():
            store.tidy()
        elif held is not None and held.text() != text:
            raise UserError(f"another job is running in {store.folder} with other settings: wait for it, or give another --name.")
        store.write_text("study.toml", text)
        store.write_text(ORDER, json.dumps([{"kind": w.about()["kind"], "id": w.id} for w in job.works], indent=1) + "\n")
        stack.enter_context(store.lock(f"job-{uuid4().hex[:8]}"))


def _held(store: Store) -> Study | None:
    """The study that the folder was last asked; None, with a warning, where that is damaged."""
    text = store.text("study.toml")
    if text is None:
        return None
    try:
        return study_of(tomllib.loads(text), "study.toml")
    except (tomllib.TOMLDecodeError, UserError) as wrong:
        warnings.warn(f"{store.folder / 'study.toml'} cannot be read ({wrong}): it is written anew; records are kept.", stacklevel=2)
        return None


def _do(job: Job, work: Work, again: bool, wait: bool) -> Iterator[Progress]:
    """Do a piece of work unless it is done; whether it is done now (else another job is doing it)."""
    with ExitStack() as stack:
        # all look again together: nobody waits in silence for longer than processes wait for one another
        while (state := _told(job, _look(job, work, again, wait, stack) if job.among.rank == 0 else DONE)) == BUSY and wait:
            yield Progress(work, 0.0, waits=True)
        if state == RUN:
            yield from _run(job, work)
        if state != BUSY:
            record = job.store.record(work.id) if job.among.rank == 0 else None
            yield Progress(work, work.chunks * work.calls if state == DONE else 0.0, record)
    return state != BUSY


def _look(job: Job, work: Work, again: bool, wait: bool, stack: ExitStack) -> int:
    """Whether the work is to be run here: then it is locked, as long as the stack is open."""

    def done() -> bool:
        record = job.store.record(work.id)
        if record is None or (record.failed is not None and again):
            return False
        return record.failed is not None or not _lacks_error(job, work, record)

    if done():
        if not work.kept:
            job.store.drop_chunks(work.id)  # of a job that was killed before it could
        return DONE
    if not stack.enter_context(job.store.lock(work.id, _LONG if wait else 0.0)):
        return BUSY
    return DONE if done() else RUN


def _lacks_error(job: Job, work: Work, record: Record) -> bool:
    """Whether it was measured while the converged flow had failed, which is there now."""
    if "error" in record.tensors or not isinstance(work, Sampling) or work.reference is None:
        return False
    flow = job.store.record(work.reference.id)
    return flow is not None and flow.failed is None


def _run(job: Job, work: Work) -> Iterator[Progress]:
    """This process's share of the chunks, and, in the first process, the record."""
    store, among = job.store, job.among
    there = torch.zeros(work.chunks)
    if among.rank == 0:
        for number in store.finished(work.id):
            there[number] = float(number < work.chunks and store.chunk(work.id, number) is not None)
    there = _shared(job, there)
    if bool(there.any()):
        yield Progress(work, float(there.sum()) * work.calls / among.count)
    missing = [int(i) for i in (there == 0).nonzero()]
    reason = ""
    for number in missing[among.rank :: among.count]:
        chunk, reason = _tried(lambda number=number: work.run(number))
        if chunk is None:
            break
        store.write_chunk(work.id, chunk)
        yield Progress(work, work.calls)
    if reason:
        store.write_text(f"parts/{work.id}/failed-{among.rank}.txt", reason)
    failed = _together(job, lambda: among.gather(torch.tensor([float(bool(reason))], device=among.device)))
    if among.rank != 0:
        return
    if bool(failed.any()):
        reasons = [store.text(f"parts/{work.id}/failed-{rank}.txt") for rank in failed.nonzero().flatten().tolist()]
        record = _failure(work, next((r for r in reasons if r), "another process failed"))
    else:
        finished, reason = _tried(lambda: work.finish(lambda: _all(store, work)))
        record = _failure(work, reason) if finished is None else finished
    store.write_record(work.id, record)
    if not (work.kept and record.failed is None):
        store.drop_chunks(work.id)
    _write(job)


def _all(store: Store, work: Work) -> Iterator[Chunk]:
    """The chunks of a piece of work, in order."""
    for number in range(work.chunks):
        chunk = store.chunk(work.id, number)
        if chunk is None:
            raise UserError(f"chunk {number} of {work.id} is gone from {store.folder}: run the study again.")
        yield chunk


def _tried(what: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives, or None and the reason why not, with the traceback of what nobody foresaw."""
    try:
        return what(), ""
    except StoreError:
        raise
    except (UserError, ModelError, MetricError) as wrong:
        return None, str(wrong)
    except Exception as wrong:
        return None, f"{type(wrong).__name__}: {wrong}\n{traceback.format_exc()}"


def _failure(work: Work, reason: str) -> Record:
    told, _, trace = reason.partition("\n")
    return Record({**work.about(), "status": "failed", "reason": told, "traceback": trace}, {})


def _told(job: Job, value: int) -> int:
    """What the first process says."""
    return int(_shared(job, torch.tensor([float(value)]))[0])


def _shared(job: Job, values: torch.Tensor) -> torch.Tensor:
    """The first process's values (n,), in all."""
    gathered = _together(job, lambda: job.among.gather(values.to(job.among.device or "cpu")[None]))
    return gathered[0].cpu()


def _together(job: Job, what: Callable[[], Any]) -> Any:
    """Something that all processes do at once. `ModelError` if one of them has ended."""
    try:
        return what()
    except RuntimeError as wrong:
        if not job.among.lost(wrong):
            raise
        raise ModelError(
            f"one of the {job.among.count} processes ended: its own message, or that of what started it, says why. Finished chunks are "
            f"kept in {job.store.folder}: give the same command again, and the study goes on."
        ) from None


def all_hear(job: Job, value: int) -> int:
    """The first process's number, in all."""
    return _told(job, value)
