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
    "unknown config": (["study", "--config", "mnits"], "Did you mean 'mnist'?"),
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
        (["study", "--checkpoint", str(tiny(tmp_path / "plane.safetensors", (2,))), "--quick"], "not digits"),
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
    for command in ([], ["study"], ["train"], ["sample"], ["solvers"]):
        assert sdediff(*command, "--help").returncode == 0
    table = sdediff("solvers").stdout
    for name in ("DDPM", "DDIM", "EulerMaruyama", "Euler", "Heun", "RungeKutta", "TorchDiffEq", "SciPy", "TorchSDE"):
        assert name in table


def test_the_quick_study_writes_everything(sdediff, tmp_path):
    run = sdediff("study", "--quick", "--name", "q", "--seeds", "2")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "runs" / "q"
    pictures = {"steps_vs_fid.png", "error_vs_calls.png", "samples.png", "interpolation.png", "round_trip.png"}
    assert {f.name for f in folder.iterdir()} == pictures | {"results.csv", "report.html", "settings.txt"}
    frame = pd.read_csv(folder / "results.csv")
    asked = {"solver", "grid", "calls_asked", "calls_made", "frechet", "sliced_wasserstein", "error", "seconds"}
    assert asked <= set(frame.columns)
    assert set(frame["seed"]) == {0, 1}
    same = frame[frame["solver"].isin(["DDIM(eta=1.0)", "DDPM(variance='small')"])].groupby(["calls_asked", "seed"])["frechet"]
    assert (same.max() - same.min()).max() < 1e-3  # the same sampler
    euler, rk4 = (frame[(frame["solver"].str.startswith(n)) & (frame["calls_asked"] == 10)]["error"].mean() for n in ("Euler(", "Runge"))
    assert 0 < euler < 0.2
    assert 0 < rk4 < 0.2
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "noise floor" in page
    assert 'src="http' not in page
    assert "noise floor" in run.stdout


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
