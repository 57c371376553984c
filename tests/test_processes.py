"""Many processes: they train as one does, whole or in shards; killed and continued; torch.compile. This file is its own child program."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from sdediff import ModelError, ScoreNet, Training, UserError, VPLinear, checkpoint, fit, load_model
from sdediff.accelerated import processes, units
from sdediff.data import InMemory
from sdediff.networks import MLP, DiT, UNet
from sdediff.objective import Objective
from sdediff.processes import Alone
from sdediff.times import Importance
from sdediff.train import Denoising, Task

TWENTY = Training(steps=20, batch=32, warmup=5, lr=5e-3)
LONG = Training(steps=400, batch=32, warmup=5)
HALF = 10  # a run that is continued was stopped after so many steps
STATE, MODEL = "state.safetensors", "model.safetensors"


def points() -> InMemory:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 1.0, 2.0]) + 1
    return InMemory(x, None, "points", None)


def pictures() -> InMemory:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (70,), generator=generator)
    x = torch.randn(70, 1, 8, 8, generator=generator) * 0.3 + labels[:, None, None, None] * 0.5
    return InMemory(x, labels, "pictures", 3)


def perceptron(objective: Objective | None = None, dropout: float = 0.0) -> Task:
    torch.manual_seed(0)
    net = MLP((3,), width=17, depth=1, embedding=8, features=4, dropout=dropout)  # 17: parts of two sizes
    return Denoising(ScoreNet(net, VPLinear(), shape=(3,)), objective)


def small_unet(**options) -> UNet:
    torch.manual_seed(0)
    options = {"width": 8, "groups": 4, "attention": (1,), "heads": 2, "classes": 3} | options
    return UNet(channels=1, **options)  # type: ignore[arg-type]


def flat_unet() -> Task:
    """Quick to compile."""
    return Denoising(ScoreNet(small_unet(multipliers=(1,), attention=()), VPLinear(), predicts="v", condition="lam", shape=(1, 8, 8)))


def unet() -> Task:
    return Denoising(ScoreNet(small_unet(), VPLinear(), predicts="v", condition="lam", shape=(1, 8, 8)), label_dropout=0.3)


CASES = {
    "plain": (perceptron, points, TWENTY),
    "accumulated": (perceptron, points, replace(TWENTY, accumulate=2)),
    "clipped": (perceptron, points, replace(TWENTY, clip=0.05)),
    "pictures": (unet, pictures, replace(TWENTY, steps=8, flip=True)),
    "remembered": (lambda: perceptron(Objective(times=Importance(bins=4, history=3))), points, TWENTY),
}
QUICK = "remembered"
REST = [case for case in CASES if case != QUICK]
KINDS = {"copies": False, "shards": True}


def trained(case: str, among=None, folder: Path | None = None, stop: int | None = None, task: Task | None = None) -> dict:
    """What a run did: its losses, the norms of its gradients, and the weights that it ends with."""
    make, data, training = CASES[case]
    task = task or make()
    done = list(islice(fit(task, data(), training, folder=folder, save_every=HALF, among=among), stop))
    report = {"loss": [float(p.loss) for p in done], "norm": [float(p.norm) for p in done]}
    return report | {"net": {k: v.clone() for k, v in task.net.state_dict().items()}}


# --- what the children do ---------------------------------------------------------------------------------------------


def all_cases(root: Path) -> None:
    """All cases in both ways."""
    for kind, sharded in KINDS.items():
        among = processes(sharded)
        for case in REST:
            torch.save(trained(case, among), root / f"{kind} {case} {among.rank}.pt")


def same_as_one(root: Path) -> None:
    """One case in both ways, and runs that are continued, one process by two and the other way round."""
    for kind, sharded in KINDS.items():
        among = processes(sharded)
        torch.save(averages(among), root / f"{kind} averages {among.rank}.pt")
        with written_by(among.rank):
            torch.save(trained(QUICK, among, root / kind / "whole"), root / f"{kind} {QUICK} {among.rank}.pt")
            trained(QUICK, among, root / kind / "stopped", stop=HALF + 3)  # three steps more than are kept
            if among.rank == 0:
                shutil.copytree(root / kind / "stopped", root / kind / "for one")
            torch.save(trained(QUICK, among, root / kind / "stopped"), root / f"{kind} stopped {among.rank}.pt")
            torch.save(trained(QUICK, among, root / kind / "of one"), root / f"{kind} of one {among.rank}.pt")
    among = processes()
    try:
        trained(QUICK, among, root / ("copies/whole" if among.rank == 0 else "a folder of another machine"))
    except UserError as wrong:
        (root / f"apart {among.rank}").write_text(str(wrong))


def averages(among) -> dict:
    """The average that is shown during training, beside the one that is computed from what is shown outside."""
    task = perceptron()
    shown = task.net
    average = average_shown = {k: v.clone() for k, v in shown.state_dict().items()}
    evaluation = False
    for p in fit(task, points(), replace(TWENTY, steps=6), among=among):
        with p.averaged():
            average_shown = {k: v.clone() for k, v in shown.state_dict().items()}
            evaluation = not shown.training
        now, decay = shown.state_dict(), TWENTY.decay_at(p.step - 1)
        average = {k: decay * average[k] + (1 - decay) * now[k] for k in now}
    return {"shown": average_shown, "computed": average, "evaluation": evaluation}


@contextmanager
def written_by(rank: int):
    """A process of another rank than 0 must write nothing."""
    write = checkpoint.write
    if rank:
        checkpoint.write = forbidden
    yield
    checkpoint.write = write


def forbidden(path, *rest):
    raise AssertionError(f"{path} is written by a process that must not write")


def until_killed(root: Path) -> None:
    """A long run that says where it is."""
    among = processes()
    task = perceptron(dropout=0.2)
    try:
        for p in fit(task, points(), LONG, folder=root / "killed", save_every=20, among=among):
            print(p.step, flush=True)
    except ModelError as wrong:
        sys.exit(str(wrong))


def after_killed(root: Path) -> None:
    """The killed run continued, and the same never stopped."""
    for folder in ("killed", "never killed"):
        for _ in fit(perceptron(dropout=0.2), points(), LONG, folder=root / folder, save_every=100, among=processes()):
            pass


# --- how they are started ---------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | more


def launched(*command: str, **env: str) -> str:
    """What two processes under torchrun say."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(**env), stdout=pipe, stderr=pipe, text=True) as job:
        try:
            _, told = job.communicate(timeout=200)
        finally:
            job.terminate()  # and it ends its children
    assert job.returncode == 0, told[-3000:]
    return told


def unwatched(what: str, root: Path) -> list[subprocess.Popen]:
    """Two processes that nobody watches."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    job = []
    for rank in ("0", "1"):
        env = environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        pipe = subprocess.PIPE
        job.append(subprocess.Popen([sys.executable, __file__, what, str(root)], env=env, stdout=pipe, stderr=pipe, text=True))
    return job


# --- the same as one process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where two processes have done everything that is compared below."""
    root = tmp_path_factory.mktemp("job")
    for kind in KINDS:
        trained(QUICK, folder=root / kind / "of one", stop=HALF)
    for process in unwatched("same_as_one", root):
        _, told = process.communicate(timeout=200)
        assert process.returncode == 0, told[-3000:]
    return root


@pytest.fixture(scope="module")
def more(tmp_path_factory) -> Path:
    """The rest of the cases."""
    root = tmp_path_factory.mktemp("more")
    launched(__file__, "all_cases", str(root))
    return root


def close(a: dict, b: dict) -> None:
    assert len(a["loss"]) == len(b["loss"])
    for what in ("loss", "norm"):
        assert a[what] == pytest.approx(b[what], rel=1e-5, abs=1e-5)
    assert list(a["net"]) == list(b["net"])
    for name, value in a["net"].items():
        torch.testing.assert_close(value, b["net"][name], rtol=1e-5, atol=1e-5)


def as_one(root: Path, kind: str, case: str) -> None:
    one = trained(case)
    assert max(one["loss"]) > 1.02 * min(one["loss"])
    for rank in (0, 1):
        close(torch.load(root / f"{kind} {case} {rank}.pt"), one)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(root, kind):
    as_one(root, kind, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("case", REST)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_in_every_way(more, kind, case):
    as_one(more, kind, case)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_of_two_ends_with_the_same_bits(root, kind):
    for rank in (0, 1):
        whole, again = (torch.load(root / f"{kind} {what} {rank}.pt") for what in (QUICK, "stopped"))
        assert whole["loss"][HALF:] == again["loss"]
        assert all(torch.equal(value, again["net"][name]) for name, value in whole["net"].items())
    written = load_model(root / kind / "stopped" / MODEL).net.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, written[name]) for name, value in whole["net"].items())
    states = [checkpoint.read(root / kind / run / STATE)[0] for run in ("whole", "stopped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_two_continue_what_one_began_and_the_other_way_round(root, kind):
    one = trained(QUICK)
    rest = one | {what: one[what][HALF:] for what in ("loss", "norm")}
    close(torch.load(root / f"{kind} of one 1.pt"), rest)
    assert checkpoint.read(root / kind / "for one" / STATE)[1]["step"] == HALF
    close(trained(QUICK, folder=root / kind / "for one"), rest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_shown_whole_in_every_process(root, kind):
    for rank in (0, 1):
        found = torch.load(root / f"{kind} averages {rank}.pt")
        assert found["evaluation"]
        for name, value in found["shown"].items():
            torch.testing.assert_close(value, found["computed"][name], rtol=1e-4, atol=1e-6)


def test_machines_that_do_not_share_the_folder_are_told(root):
    for rank in (0, 1):
        assert "choose a folder that all machines share" in (root / f"apart {rank}").read_text()


# --- an end that nobody wished ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_a_sentence_and_the_job_can_go_on(tmp_path):
    job = unwatched("until_killed", tmp_path)
    try:
        assert job[0].stdout is not None
        for _ in islice(job[0].stdout, 50):
            pass
        job[1].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        _, told = job[0].communicate(timeout=60)
        assert time.monotonic() - begin < 20
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert job[0].returncode == 1
    assert told.strip().splitlines()[-1].startswith("one of the 2 processes ended in step")
    assert "goes on from step" in told
    assert 40 <= checkpoint.read(tmp_path / "killed" / STATE)[1]["step"] < LONG.steps
    launched(__file__, "after_killed", str(tmp_path))
    one, two = (checkpoint.read(tmp_path / run / MODEL)[0] for run in ("killed", "never killed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_under_torchrun(tmp_path, kind):
    options = ["--config", "digits", "--steps", "12", "--batch", "32", "--out"]
    subprocess.run([sys.executable, "-m", "sdediff", "train", *options, str(tmp_path / "one")], env=environment(), check=True)
    told = launched("-m", "sdediff", "train", *options, str(tmp_path / "two"), ACCELERATE_USE_FSDP=str(KINDS[kind]).lower())
    assert told.count("trained in") == 1
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    one, two = (checkpoint.read(tmp_path / run / MODEL)[0] for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-5)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("make", "data"), [(perceptron, points), (flat_unet, pictures)], ids=["perceptron", "unet"])
def test_a_compiled_network_trains_as_it_is(make, data, precision):
    training = replace(TWENTY, steps=3, precision=precision)
    plain, compiled = ([float(p.loss) for p in fit(stirred(make()), data(), training, compiled=c)] for c in (False, True))
    # a compiled network rounds to bf16 elsewhere, since it joins operations: 2^-8 of every number
    assert compiled == pytest.approx(plain, rel=1e-4 if precision == "float32" else 1e-2)


def stirred(task: Task) -> Task:
    """With no layer that is still zero."""
    generator = torch.Generator().manual_seed(1)
    for p in task.net.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
    return task


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_one_process_is_alone(monkeypatch):
    assert isinstance(processes(), Alone)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(processes(sharded=True), Alone)


def test_without_accelerate_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"needs accelerate: pip install 'sdediff\[train\]'"):
        processes()


def test_more_processes_than_devices_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"process 2 .*there are 2.*nproc-per-node=2"):
        processes()


def test_a_batch_that_cannot_be_shared_is_refused():
    class Three(Alone):
        count = 3

    with pytest.raises(UserError, match=r"32 does not split evenly into 3 parts"):
        list(fit(perceptron(), points(), TWENTY, among=Three()))


def test_the_units_of_a_network_hold_its_blocks():
    nets = [MLP((2,), width=32, depth=3), small_unet(), DiT(width=32, depth=3)]
    assert [len(list(units(net))) for net in nets[::2]] == [3, 3]
    for net in nets:
        found = list(units(net))
        inside = {id(p) for unit in found for p in unit.parameters()}
        assert len(inside) == sum(1 for unit in found for _ in unit.parameters())  # none in two
        assert sum(p.numel() for p in net.parameters() if id(p) in inside) > 0.5 * sum(p.numel() for p in net.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
