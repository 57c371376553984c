"""A study in many processes, and killed at any moment: the same bytes in the end. This file is its own child program."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import torch
from test_processes import environment
from test_study import oracle, table, toy_problem, toy_study
from torch import Tensor

from sdediff import UserError
from sdediff.accelerated import processes
from sdediff.prediction import Model, Prediction
from sdediff.schedule import Knot, Schedule
from sdediff.study import Job, Product, Sampling, Store, Study, run, work, write_report
from sdediff.study.store import StoreError

PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
SOLVERS = Product(("DDIM()", "DDPM()", "SDEDPMSolverPP(2)"), calls=(3, 5))
TOY = toy_study(products=(SOLVERS,), samples=150, seeds=(0, 1))


@dataclass(frozen=True)
class Slow:
    """An oracle that takes its time, so that a kill comes in the middle of something."""

    model: Model
    seconds: float

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        time.sleep(self.seconds)
        return self.model(x, t)

    def rows(self, index: Tensor) -> Slow:
        return self


def job_in(folder: Path, study: Study = TOY, seconds: float = 0.0) -> Job:
    return Job(study, toy_problem(Slow(oracle(), seconds)), Store(folder), processes(sharded=False))


# --- what the children do ---------------------------------------------------------------------------------------------


def study(root: Path, seconds: str = "0") -> None:
    """Run it, and write down which chunks of cells were run here."""
    plain = work.Sampling.run
    name = f"{os.getpid()}.log"

    def logged(self: Sampling, number: int):
        chunk = plain(self, number)
        with (root.parent / name).open("a") as log:
            log.write(f"{self.id} {number}\n")
        return chunk

    work.Sampling.run = logged
    job = job_in(root, seconds=float(seconds))
    print("ready", flush=True)
    try:
        for _ in run(job):
            pass
    except UserError as wrong:
        sys.exit(f"said: {wrong}")


def failing(root: Path) -> None:
    """The second process fails in one cell, and cannot write in another."""
    plain = work.Sampling.run

    def breaks(self: Sampling, number: int):
        if self.cell.calls == 3 and number == 1 and not self.converges:  # the second process's own
            raise ZeroDivisionError("here only")
        return plain(self, number)

    work.Sampling.run = breaks
    for _ in run(job_in(root)):
        pass


def full_in_one(root: Path) -> None:
    """The second process cannot write."""
    among = job_in(root).among
    if among.rank == 1:
        Store.write_chunk = no_room  # type: ignore[method-assign]
    try:
        for _ in run(job_in(root)):
            pass
    except UserError as wrong:
        sys.exit(f"said: {wrong}")


def no_room(self: Store, cell: str, chunk: object) -> None:
    raise StoreError("no room")


def limited(root: Path) -> None:
    """No file may be larger than 4 KB: as on a full disk, a write ends in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    study(root)


# --- how they are started ---------------------------------------------------------------------------------------------

FORKS = get_context("forkserver")  # so that a child begins at once, and not with seconds of imports


def imported() -> None:
    """Start what children are forked from, which finds its modules on PYTHONPATH only."""
    FORKS.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


class Child:
    """A process of its own that does one of the above. told: what it has said on both outputs."""

    def __init__(self, what: str, root: Path, *more: str, env: dict[str, str] | None = None) -> None:
        root.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=root.parent, suffix=".said", delete=False) as file:
            self.out = Path(file.name)
        imported()
        self.process = FORKS.Process(target=_child, args=(what, root, more, env or {}, self.out))
        self.process.start()

    @property
    def told(self) -> str:
        return self.out.read_text()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)


def _child(what: str, root: Path, more: tuple[str, ...], env: dict[str, str], out: Path) -> None:
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update({"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **env})
    torch.set_num_threads(1)
    globals()[what](root, *more)


def together(count: int, what: str, root: Path, *more: str) -> list[Child]:
    """Processes as torchrun starts them, that nobody watches."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Child(what, root, *more, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(count)]


def ended(jobs: list[Child], timeout: float = 120) -> list[tuple[int | None, str]]:
    """The exit code and words of each, when it has ended."""
    for job in jobs:
        job.process.join(timeout)
    codes = [job.process.exitcode for job in jobs]
    for job, code in zip(jobs, codes, strict=True):
        if code is None:
            job.kill()
            job.process.join()
    return [(code, job.told) for code, job in zip(codes, jobs, strict=True)]


def well(jobs: list[Child]) -> None:
    for code, text in ended(jobs):
        assert code == 0, text[-3000:]


def killed(jobs: list[Child], after: float, which: int = 0) -> None:
    """Kill one of them so many seconds after it began to work."""
    until = time.monotonic() + 60
    while "ready" not in jobs[which].told and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(after)
    jobs[which].kill()


def chunks_run(folder: Path) -> list[str]:
    return [line for log in folder.glob("*.log") for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for _ in run(job_in(folder)):
        pass
    return folder


def same(folder: Path, undisturbed: Path) -> None:
    """All but the clock: results.csv, the order, and the records' tensors."""
    for name in ("results.csv", "order.json", "study.toml"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for path in sorted((undisturbed / "cells").glob("*.safetensors")):
        a, b = (Store(f).record(path.stem) for f in (folder, undisturbed))
        assert a is not None
        assert b is not None
        assert {k: v for k, v in a.about.items() if k not in ("costs", "sum")} == {
            k: v for k, v in b.about.items() if k not in ("costs", "sum")
        }
        assert a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(v, b.tensors[k]) for k, v in a.tensors.items())
    assert not [p for p in folder.rglob(".*") if p.is_file()]
    assert {p.name.partition("-")[0] for p in (folder / "parts").iterdir()} == {"flow"}


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def test_killed_three_times_and_started_again(tmp_path, undisturbed):
    moments = random.Random(0)
    folder = tmp_path / "s"
    for _ in range(3):
        job = Child("study", folder, "0.004")
        killed([job], moments.uniform(0.05, 0.5))
        assert ended([job])[0][0] == -signal.SIGKILL
    well([Child("study", folder)])
    same(folder, undisturbed)
    seen = chunks_run(tmp_path)
    assert len(seen) - len(set(seen)) <= 3  # a kill loses the chunk that was running


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path, undisturbed):
    """With other numbers of processes before and after; nothing differs but the clock."""
    moments, folder = random.Random(), tmp_path / "s"
    for i in range(10):
        count = moments.choice([1, 1, 2])
        jobs = together(count, "study", folder, "0.03")
        killed(jobs, moments.uniform(0, 0.35), which=moments.randrange(count))
        for code, text in ended(jobs):
            assert code == -signal.SIGKILL or "said: one of the 2 processes ended" in text, (i, text[-2000:])
    well(together(2, "study", folder))
    same(folder, undisturbed)
    assert [r["cell"] for r in table(folder, "costs.csv")] == [r["cell"] for r in table(undisturbed, "costs.csv")]


# --- many processes ---------------------------------------------------------------------------------------------------


def test_two_processes_give_the_same_bytes_as_one(tmp_path, undisturbed):
    folder = tmp_path / "s"
    well(together(2, "study", folder))
    same(folder, undisturbed)
    seen = chunks_run(tmp_path)
    assert len(seen) == len(set(seen)) == 14 * 3
    shares = [len(log.read_text().splitlines()) for log in tmp_path.glob("*.log")]
    assert sorted(shares) == [14, 28]  # chunks 0 and 2, and chunk 1


@pytest.mark.slow
def test_four_processes_give_the_same_bytes_as_one(tmp_path, undisturbed):
    well(together(4, "study", tmp_path / "s"))
    same(tmp_path / "s", undisturbed)


@pytest.mark.slow
def test_torchrun(tmp_path, undisturbed):
    """As people start it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "study", str(tmp_path / "s")]
    subprocess.run(command, env=environment(PYTHONPATH=PATH), check=True, timeout=200, capture_output=True)
    same(tmp_path / "s", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_of_two_one_is_killed(tmp_path, undisturbed, which):
    """The other one says so, and ends; the same command goes on."""
    folder = tmp_path / "s"
    jobs = together(2, "study", folder, "0.01")
    killed(jobs, 0.4, which)
    begin = time.monotonic()
    codes = ended(jobs)
    assert time.monotonic() - begin < 30
    code, text = codes[1 - which]
    assert code == 1
    assert "said: one of the 2 processes ended" in text.strip().splitlines()[-1]
    assert "give the same command again, and the study goes on" in text
    well(together(2, "study", folder))
    same(folder, undisturbed)


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all(tmp_path):
    """A cell that fails in the second process is recorded with its reason, and all go on together."""
    well(together(2, "failing", tmp_path))
    rows = table(tmp_path)
    assert [r["status"] for r in rows if r["calls_asked"] == "3"] == ["failed"] * 6
    assert {r["reason"] for r in rows if r["calls_asked"] == "3"} == {"ZeroDivisionError: here only"}
    assert {r["status"] for r in rows if r["calls_asked"] != "3"} == {"done"}


@pytest.mark.slow
def test_a_process_that_cannot_write_ends_the_job(tmp_path, undisturbed):
    (_, first), (code, second) = ended(together(2, "full_in_one", tmp_path))
    assert code == 1
    assert "said: no room" in second
    assert "said: one of the 2 processes ended" in first
    well(together(2, "study", tmp_path))
    same(tmp_path, undisturbed)


def test_two_jobs_on_one_folder_share_its_cells(tmp_path, undisturbed):
    folder = tmp_path / "s"
    jobs = [Child("study", folder, "0.004") for _ in range(2)]
    well(jobs)
    same(folder, undisturbed)
    seen = chunks_run(tmp_path)
    assert len(seen) == len(set(seen)) == 14 * 3  # every chunk once
    assert min(len(log.read_text().splitlines()) for log in tmp_path.glob("*.log")) > 3  # by both
    assert len(write_report(folder).lines) == 6


def test_files_that_may_not_grow(tmp_path, undisturbed):
    """As a full disk: the write of a record ends in the middle."""
    folder = tmp_path / "s"
    ((code, text),) = ended([Child("limited", folder)])
    assert code == 1
    assert "cannot be written (File too large): choose another folder, or free some space." in text
    assert not [p for p in folder.rglob(".*") if p.is_file()]
    well([Child("study", folder)])
    same(folder, undisturbed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
