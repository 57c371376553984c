"""The command line as a user meets it: every mistake is one clear sentence with the cure, exit code 2, and no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from sdediff import cli, save_model
from sdediff.networks import MLP
from sdediff.pretrained.scores import digits_path
from sdediff.schedules import VPLinear
from sdediff.score import ScoreNet


@dataclass
class Run:
    """What a command gave back."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def sdediff(monkeypatch, capsys, tmp_path):
    """The command line in this process, in an empty folder: anything but SystemExit would be a traceback."""

    def run(*arguments: str) -> Run:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sdediff", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return Run(code, said.out, said.err)

    return run


def tiny(path: Path, shape: tuple[int, ...]) -> Path:
    save_model(path, ScoreNet(MLP(shape, width=8, depth=1), VPLinear(), "v", "lam", shape=shape))
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(digits_path().read_bytes()[:5000])
    return path


MISTAKES = {
    "unknown solver": (["study", "--solver", "DDMI()"], "Did you mean 'DDIM'?"),
    "misspelt option": (["study", "--solver", "DDIM(etta=0.5)"], "has no option 'etta'; it has eta"),
    "wrong value": (["study", "--solver", "DDPM('medium')"], "choose one of 'small', 'large', 'none'"),
    "code instead of a solver": (["study", "--solver", "__import__('os').system('touch hacked')"], "is not a solver"),
    "unknown grid": (["sample", "--grid", "Karas()"], "Did you mean 'Karras'?"),
    "grid outside the schedule": (["sample", "--grid", "Times(2.0, 0.1)", "--steps", "1"], "outside the schedule"),
    "grid that goes up": (["sample", "--grid", "Times(0.1, 0.9)", "--steps", "1"], "must strictly decrease"),
    "zero steps": (["sample", "--steps", "0"], "at least 1"),
    "negative steps": (["sample", "--steps", "-3"], "at least 1"),
    "calls that are no numbers": (["study", "--calls", "5,x"], "whole numbers"),
    "zero calls": (["study", "--calls", "0"], "at least 1"),
    "unknown config": (["study", "run", "mnits"], "Did you mean 'mnist'?"),
    "no such study": (["study", "run", "nowhere.toml"], "there is no config nowhere.toml"),
    "unknown option of a study": (["study", "--sample", "5"], "--sample"),
    "unknown metric": (["study", "--metric", "fretchet"], "Did you mean 'frechet'?"),
    "unknown extractor of a metric": (["study", "--quick", "--metric", "kid@nothing"], "there is no extractor 'nothing'"),
    "seeds that are no numbers": (["study", "--seeds", "one"], "--seeds takes whole numbers"),
    "no seeds": (["study", "--seeds", "0"], "--seeds takes how many, at least 1"),
    "seeds twice": (["study", "--seeds", "1,1"], "none twice"),
    "tolerances that are no numbers": (["study", "--tolerances", "a"], "--tolerances takes numbers"),
    "a tolerance of nothing": (["study", "--solver", "AdaptiveAdams()", "--tolerances", "0"], "tolerances must be above 0"),
    "one sample": (["study", "--samples", "1"], "samples must be a whole number of at least 2"),
    "no threads": (["study", "--threads", "0"], "--threads is a number of at least 1"),
    "unknown guidance": (["study", "--guidance", "ClasifierFree(2.0)"], "Did you mean 'ClassifierFree'?"),
    "unknown grid of a study": (["study", "--grid", "Karas()"], "Did you mean 'Karras'?"),
    "a study's name that is a path": (["study", "--name", "a/b"], "names a folder"),
    "plan of nothing": (["study", "plan", "mnits"], "Did you mean 'mnist'?"),
    "report of nothing": (["study", "report", "nowhere"], "is not the folder of a study"),
    "compare in nothing": (["study", "compare", "nowhere", "A", "B"], "is not the folder of a study"),
    "merge of nothing": (["study", "merge", "all", "nowhere"], "is not the folder of a study"),
    "shards of no kind": (["sample", "--out", "many", "--as", "jpg"], "kind of shards 'jpg' does not exist"),
    "shards of no size": (["sample", "--out", "many", "--shard", "0"], "size must be a whole number of at least 1"),
    "no such checkpoint": (["sample", "--checkpoint", "nowhere.safetensors"], "there is no checkpoint"),
    "unknown command": (["stdy"], "study"),
    "wrong type": (["study", "--samples", "many"], "--samples"),
    "unknown file type": (["sample", "--out", "x.jpg"], ".png or a .safetensors"),
    "no such images": (["train", "--data", "nothing.idx"], "nothing.idx"),
    "unknown precision": (["train", "--precision", "fp8"], "float32"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_sentence(case, sdediff, tmp_path):
    arguments, expected = MISTAKES[case]
    run = sdediff(*arguments)
    assert run.returncode == 2, run.stderr
    assert expected in " ".join(run.stderr.split()), run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "hacked").exists()


def test_files_that_are_wrong(sdediff, tmp_path):
    (tmp_path / "file").write_text("I am in the way")
    (tmp_path / "images.idx").write_bytes(b"\x00\x00\x08\x03" + bytes(20))
    torch.save({"a": 1}, tmp_path / "model.pth")
    cases = [
        (["sample", "--checkpoint", str(truncated(tmp_path / "cut.safetensors"))], "not a whole safetensors file"),
        (["sample", "--checkpoint", "model.pth"], "pickle"),
        (["study", "--checkpoint", str(tiny(tmp_path / "plane.safetensors", (2,))), "--quick"], "belong together"),
        (["study", "--quick", "--out", "file"], "cannot be written"),
        (["train", "--out", "file", "--steps", "10"], "cannot be written"),
        (["train", "--data", "images.idx"], "images.idx"),
    ]
    for arguments, expected in cases:
        run = sdediff(*arguments)
        assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
        assert expected in " ".join(run.stderr.split()), run.stderr


def test_as_a_process_a_mistake_exits_with_two(tmp_path):
    command = [sys.executable, "-m", "sdediff", "study", "--solver", "DDMI()"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, "Traceback" in run.stderr, "DDIM" in run.stderr) == (2, False, True)


def test_an_interrupt_says_what_stays(tmp_path):
    command = [sys.executable, "-m", "sdediff", "train", "--out", "r", "--batch", "64", "--steps", "100000"]

    def heard():  # where the tests run in the background, a child would inherit "ignore"
        signal.signal(signal.SIGINT, signal.default_int_handler)

    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    until = time.monotonic() + 60
    while not (tmp_path / "r" / "state.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_help_and_the_table_of_solvers(sdediff):
    for command in ([], ["study"], ["study", "run"], ["study", "plan"], ["train"], ["sample"], ["solvers"]):
        assert sdediff(*command, "--help").returncode == 0
    table = sdediff("solvers").stdout
    for name in ("DDPM", "DDIM", "EulerMaruyama", "Euler", "Heun", "RungeKutta", "TorchDiffEq", "SciPy", "TorchSDE"):
        assert name in table


PICTURES = {f"{name}.{kind}" for name in ("steps_vs_frechet", "error_vs_calls", "pareto") for kind in ("png", "pdf")}
FILES = {"study.toml", "order.json", "results.csv", "costs.csv", "report.html", "cells", "parts", "locks"}
SMALL = ("--samples", "70", "--calls", "3,5", "--metric", "frechet", "--solver", "DDIM()", "--solver", "DDIM(1.0)", "--solver", "DDPM()")


def test_the_quick_study_writes_everything(sdediff, tmp_path):
    run = sdediff("study", "--quick", "--name", "q", "--seeds", "2", *SMALL)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "runs" / "q"
    assert {f.name for f in folder.iterdir()} == FILES | PICTURES
    frame = pd.read_csv(folder / "results.csv")
    assert {"solver", "grid", "calls_asked", "calls_made", "frechet", "frechet_low", "frechet_high", "error"} <= set(frame.columns)
    assert set(frame["seed"]) == {0, 1}
    assert set(frame["status"]) == {"done"}
    cells = frame[frame["kind"] == "cell"]
    assert len(cells) == 12
    same = cells[cells["solver"].isin(["DDIM(eta=1.0)", "DDPM(variance='small')"])].groupby(["calls_asked", "seed"])["frechet"]
    assert same.size().eq(2).all()
    assert (same.max() - same.min()).max() < 1e-3  # the same sampler
    error = cells[cells["solver"] == "DDIM(eta=0.0)"].groupby("calls_asked")["error"].mean()
    assert 0 < error[5] < error[3] < 0.5
    page = (folder / "report.html").read_text()
    assert 'src="http' not in page
    for text in (page, run.stdout):
        assert "Three errors apart" in text
        assert "DDIM(1.0)" in text
    assert "12 cells" in run.stderr or "14 cells" in run.stderr
    before = (folder / "results.csv").read_bytes()
    again = sdediff("study", "run", str(folder / "study.toml"))  # as the page says that it is made again
    assert again.returncode == 0, again.stderr
    assert (folder / "results.csv").read_bytes() == before


def test_a_study_is_compared_merged_and_planned(sdediff, tmp_path):
    one, other = (["study", "run", "digits", "--quick", "--name", "d", "--no-report", *SMALL[:7]] for _ in range(2))
    assert sdediff(*one, "DDIM()", "--out", "a").returncode == 0
    assert sdediff(*other, "DDPM()", "--out", "b").returncode == 0
    merged = sdediff("study", "merge", "runs/d", "a/d", "b/d")
    assert merged.returncode == 0, merged.stderr
    assert "6 records came in, 2 were there" in merged.stdout
    planned = sdediff("study", "plan", "digits", "--quick", "--name", "d", *SMALL)
    assert planned.returncode == 0, planned.stderr
    assert "2 cells to run, 560 network calls of single samples" in planned.stdout
    assert "about" in planned.stdout
    whole = sdediff("study", "run", "digits", "--quick", "--name", "d", "--no-report", *SMALL)
    assert whole.returncode == 0, whole.stderr
    frame = pd.read_csv(tmp_path / "runs" / "d" / "results.csv")
    assert list(frame[frame["kind"] == "cell"]["curve"]) == ["DDIM()"] * 2 + ["DDIM(1.0)"] * 2 + ["DDPM()"] * 2
    told = sdediff("study", "compare", "runs/d", "DDIM()@3", "DDPM()@3")
    assert told.returncode == 0, told.stderr
    assert "DDIM()@3 beats DDPM()@3 in Frechet distance by " in told.stdout or "A tie in Frechet distance: DDIM()@3" in told.stdout
    for arguments, expected in (
        (["compare", "runs/d", "DDMI()@3", "DDPM()@3"], "Did you mean 'DDIM()@3'?"),
        (["compare", "runs/d", "DDIM()@3", "DDPM()@3", "--metric", "kid"], "'kid'"),
        (["run", "mnist", "--quick", "--name", "d", "--out", "a", "--checkpoint", "digits"], "belong together"),
    ):
        run = sdediff("study", *arguments)
        assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
        assert expected in run.stderr, run.stderr


def test_cells_that_fail_are_told_by_the_exit_code(sdediff, tmp_path):
    rk4 = ["study", "--quick", *SMALL[:6], "--name", "f", "--solver", "RungeKutta('rk4', Angle())", "--solver", "DDIM()"]
    planned = sdediff("study", "plan", *rk4[1:])
    assert "3 calls, seed 0) will fail: one step of RungeKutta" in planned.stderr, planned.stderr
    run = sdediff(*rk4)
    assert run.returncode == 3
    assert "1 of the cells failed" in run.stderr
    assert "3 are too few" in run.stderr
    assert "Traceback" not in run.stderr
    folder = tmp_path / "runs" / "f"
    assert list(pd.read_csv(folder / "results.csv")["status"]) == ["done", "failed", "done", "done", "done"]
    assert "are too few" in (folder / "report.html").read_text()
    every = sdediff("study", "--quick", *SMALL[:2], *SMALL[4:6], "--name", "g", "--calls", "3", "--solver", "RungeKutta('rk4', Angle())")
    assert every.returncode == 3
    assert "all that ran failed" in every.stderr


def test_a_study_is_not_written_into_another_one(sdediff, tmp_path):
    few = ["study", "--quick", "--no-report", *SMALL[:8]]
    assert sdediff(*few, "--name", "one").returncode == 0
    (tmp_path / "runs" / "one").rename(tmp_path / "runs" / "two")
    run = sdediff(*few, "--name", "two")
    assert run.returncode == 2
    assert "is the folder of the study 'one', not of 'two'" in run.stderr


def test_a_disk_that_is_full_ends_a_study_with_a_sentence(sdediff, tmp_path, monkeypatch):
    import errno
    import os

    plain, writes = os.fsync, []

    def full(file):
        writes.append(file)
        if len(writes) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(file)

    few = ["study", "--quick", "--no-report", *SMALL[:8], "--name", "d"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        run = sdediff(*few)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
    assert "cannot be written (No space left on device): choose another folder, or free some space." in run.stderr
    assert list((tmp_path / "runs" / "d").rglob("*.safetensors"))
    assert sdediff(*few).returncode == 0


def test_samples_in_shards(sdediff, tmp_path):
    """Sample i has the label i mod classes and the same bits, whatever the shard."""
    from safetensors.torch import load_file

    from sdediff.networks import UNet

    torch.manual_seed(1)
    net = UNet(channels=1, width=8, groups=4, multipliers=(1,), attention=(), classes=3)
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    save_model(tmp_path / "net.safetensors", ScoreNet(net, VPLinear(), "v", "lam", shape=(1, 8, 8)))
    draw = ["sample", "--checkpoint", "net.safetensors", "-n", "130", "--calls", "2", "--labels", "0-2", "--as", "safetensors"]
    for size in ("64", "1000"):
        run = sdediff(*draw, "--out", size, "--shard", size)
        assert run.returncode == 0, run.stderr
    assert sdediff(*draw[:-2], "--batch", "64", "--out", "whole.safetensors").returncode == 0
    small = torch.cat([load_file(p)["x"] for p in sorted((tmp_path / "64").glob("*.safetensors"))])
    assert torch.equal(small, load_file(tmp_path / "1000" / "000000.safetensors")["x"])
    torch.testing.assert_close(small, load_file(tmp_path / "whole.safetensors")["x"], rtol=1e-4, atol=1e-5)
    assert "3 of them there before" in sdediff(*draw, "--out", "64", "--shard", "64").stdout
    other = sdediff(*draw, "--out", "64", "--shard", "64", "--seed", "1")
    assert other.returncode == 2
    assert "holds samples of other settings: seed (0 there, 1 asked)" in other.stderr


def test_sampling_by_the_command_line_is_a_function_of_the_seed(sdediff, tmp_path):
    for name, batch in (("a", "8"), ("b", "3")):
        run = sdediff("sample", "-n", "8", "--calls", "6", "--batch", batch, "--out", f"{name}.safetensors")
        assert run.returncode == 0, run.stderr
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / f"{name}.safetensors")["x"] for name in "ab")
    assert torch.allclose(a, b, atol=1e-5)
    assert sdediff("sample", "-n", "4", "--out", "sheet.png").returncode == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_the_third_party_mnist_network_makes_digits(real_data):
    from sdediff import DDIM, DiscreteVP, Quadratic, sample
    from sdediff.data import mnist
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold
    from sdediff.metrics import frechet_distance
    from sdediff.pretrained import feature_extractor

    path = real_data / "weights" / "yichizz_ddpm_mnist_starter.pth"
    model = load_hot_vs_cold(path)
    assert isinstance(model.schedule, DiscreteVP)
    theirs = torch.load(path, map_location="cpu", weights_only=True)["alpha_t"].double()
    ours = torch.tensor([model.schedule.knot(i / 1000).alpha ** 2 for i in range(1, 1001)], dtype=torch.float64)
    assert torch.allclose(ours, theirs[1:], atol=1e-6)
    images, classifier = mnist(real_data / "mnist", "test").x[:2000], feature_extractor("mnist")
    few, many = (sample(model, 64, steps=n, solver=DDIM(), grid=Quadratic()) * 2 for n in (3, 12))
    far, near = (frechet_distance(classifier.features(x), classifier.features(images)) for x in (few, many))
    assert near < 0.7 * far
    assert float((many < -0.9).float().mean()) > 0.6  # a clean dark background
