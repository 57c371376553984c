"""Training: it learns, it can be stopped or killed anywhere without a trace, and its files are read whole or refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.integrate import quad

from sdediff import (
    EDM,
    VE,
    DiscreteVP,
    FlowMatching,
    Gaussian,
    ModelError,
    Objective,
    Prediction,
    ScoreNet,
    Shifted,
    SubVP,
    Training,
    UserError,
    VPCosine,
    VPLinear,
    combine,
    fit,
    load_model,
    save_model,
)  # fmt: skip
from sdediff import checkpoint as files
from sdediff.data import InMemory
from sdediff.networks import MLP
from sdediff.objective import NORMS, WEIGHTINGS
from sdediff.prediction import KINDS
from sdediff.train import Denoising, power_of

DATA = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 1.0]) + 1
SHORT = Training(steps=24, batch=32, warmup=5, lr=5e-3)
STATE = "state.safetensors"


def network(width=16, schedule=None, dropout=0.0, **options) -> ScoreNet:
    torch.manual_seed(0)
    net = MLP((2,), width=width, depth=1, embedding=8, features=4, dropout=dropout)
    return ScoreNet(net, schedule or VPLinear(), shape=(2,), **options)


def run(training=SHORT, folder=None, stop=None, data=DATA, save_every=4, objective=None, **options) -> ScoreNet:
    model = network(**options)
    torch.seed()  # what the global generator holds must not matter
    for _ in islice(fit(Denoising(model, objective), data, training, folder=folder, save_every=save_every), stop):
        pass
    return model


def same(a: ScoreNet, b: ScoreNet) -> bool:
    one, two = a.net.state_dict(), b.net.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"predicts": "v", "schedule": VPCosine()},
        {"predicts": "x0", "condition": "lam"},
        {"predicts": "flow", "schedule": FlowMatching()},
        {"schedule": DiscreteVP.linear(100), "condition": "index"},
    ],
    ids=["eps", "v", "x0", "flow", "index"],
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_loss_falls(options, precision):
    model = network(**options)
    training = Training(steps=150, batch=50, warmup=10, lr=5e-3, precision=precision)
    progress = list(fit(model, DATA, training))
    assert [p.step for p in progress] == list(range(1, 151))
    losses = [float(p.loss) for p in progress]
    assert np.mean(losses[-30:]) < 0.75 * np.mean(losses[:10])
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.net.parameters())
    assert not model.net.training


def test_the_network_ends_with_the_average_of_its_weights():
    model = network()
    steps = fit(model, DATA, SHORT)
    average = {k: v.clone() for k, v in model.net.state_dict().items()}
    for progress in steps:
        if progress.step <= SHORT.steps:
            k = progress.step - 1
            decay = min(SHORT.ema, (1 + k) / (10 + k))
            average = {n: decay * average[n] + (1 - decay) * v for n, v in model.net.state_dict().items()}
    for name, value in model.net.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)


def test_the_learning_rate():
    training = Training(steps=100, lr=1.0, warmup=10)
    assert training.lr_at(0) == pytest.approx(0.1)
    assert training.lr_at(4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert training.lr_at(50) == pytest.approx(0.5)
    assert training.lr_at(99) < 1e-3
    assert Training(steps=100, lr=1.0, warmup=0, decay="constant").lr_at(99) == 1.0


def test_seeds_and_data_matter_and_the_global_generator_does_not():
    one = run()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = network()
    torch.set_rng_state(before)
    list(fit(model, DATA, SHORT))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, model)
    assert not same(one, run(Training(steps=24, batch=32, warmup=5, lr=5e-3, seed=1)))
    assert not same(one, run(data=DATA + 1))


def test_every_sample_is_seen_once_an_epoch():
    seen = []

    class Watch(torch.Tensor):
        def __getitem__(self, rows):
            seen.append(rows)
            return self.as_subclass(torch.Tensor)[rows]

    run(Training(steps=10, batch=30), data=DATA.as_subclass(Watch))  # 3 epochs of 100
    order = torch.cat(seen)
    assert order.shape == (300,)
    for epoch in order.split(100):
        assert sorted(epoch.tolist()) == list(range(100))
    assert not torch.equal(order[:100], order[100:200])


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}], ids=["plain", "dropout"])
def test_a_run_that_is_stopped_ends_with_the_same_weights(tmp_path, options):
    whole = run(folder=tmp_path / "whole", **options)
    assert same(whole, run(**options))
    for stop in (1, 4, 7, 12, 23, 24):
        folder = tmp_path / f"stopped at {stop}"
        run(folder=folder, stop=stop, **options)
        assert same(run(folder=folder, stop=2, **options), whole) == (stop == 24)
        assert same(run(folder=folder, **options), whole)
        assert same(load_model(folder / "model.safetensors"), whole)
    again = run(folder=tmp_path / "whole", stop=1, **options)  # a finished run has no step left
    assert same(again, whole)


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from test_training import DATA, LONG, fit, network
for progress in fit(network(dropout=0.2), DATA, LONG, folder=sys.argv[2], save_every=1):
    print(progress.step, flush=True)
"""
LONG = Training(steps=150, batch=32, warmup=5)


def test_a_run_that_is_killed_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
            assert child.stdout is not None
            for _ in islice(child.stdout, random.Random().randrange(5, 60)):  # any moment will do
                pass
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
    _, about = files.read(tmp_path / STATE)
    assert 10 <= about["step"] < LONG.steps
    assert not (tmp_path / "model.safetensors").exists()
    assert same(run(LONG, tmp_path, dropout=0.2, save_every=50), run(LONG, dropout=0.2))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"training": Training(steps=24, batch=32, warmup=5, lr=1e-3)}, "other settings.*training"),
        ({"objective": Objective(norm="l1")}, "learned"),
        ({"width": 8}, "config"),
        ({"schedule": VPLinear(0.2)}, "schedule"),
        ({"predicts": "v"}, "predicts"),
        ({"condition": "lam"}, "condition"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_run_of_other_settings_is_refused(tmp_path, settings, match):
    run(folder=tmp_path, stop=4)
    with pytest.raises(UserError, match=f"{match}.*another folder"):
        run(folder=tmp_path, **settings)


@pytest.mark.parametrize(("clip", "beta2"), [(math.inf, 0.99), (1e-3, 0.99), (math.inf, 0.999)])
def test_the_gradient_is_clipped_and_averaged_as_asked(tmp_path, clip, beta2):
    first = next(iter(fit(network(), DATA, replace(SHORT, clip=clip, beta2=beta2), folder=tmp_path, save_every=1)))
    tensors, _ = files.read(tmp_path / STATE)
    mean, square = ([v.double() for k, v in tensors.items() if k.endswith(name)] for name in (".exp_avg", ".exp_avg_sq"))
    length = min(float(first.norm), clip)  # of the gradient; Adam's averages begin at 0
    assert sum(float(m.square().sum()) for m in mean) == pytest.approx((0.1 * length) ** 2, rel=1e-4)
    assert sum(float(s.sum()) for s in square) == pytest.approx((1 - beta2) * length**2, rel=1e-4)


def test_a_run_asked_for_more_steps_goes_on_and_says_where(tmp_path):
    flat = replace(SHORT, decay="constant")
    whole = run(flat)
    run(replace(flat, steps=10), tmp_path)
    assert same(run(flat, tmp_path), whole)  # one rate throughout: the longer run itself
    for file in ("model.safetensors", STATE):
        about = files.read(tmp_path / file)[1]
        assert (about["lengthened"], about["training"]["steps"]) == ([10], flat.steps), file
    with pytest.raises(UserError, match=r"other settings \(differing: training\.steps \(10 asked, 24 there\)\)"):
        run(replace(flat, steps=10), tmp_path)  # not shortened
    run(replace(flat, steps=30), tmp_path, stop=2)
    run(replace(flat, steps=30), tmp_path)
    assert files.read(tmp_path / STATE)[1]["lengthened"] == [10, 24]
    tensors, about = files.read(tmp_path / STATE)
    del about["training"]["beta2"]  # a file older than the option
    files.write(tmp_path / STATE, tensors, about)
    run(replace(flat, steps=31), tmp_path)
    with pytest.raises(UserError, match=r"other settings.*training\.beta2"):
        run(replace(flat, steps=32, beta2=0.9), tmp_path)
    longer, folder = replace(SHORT, steps=30), tmp_path / "falling"
    run(folder=folder, stop=1)
    assert same(run(replace(SHORT, steps=25), folder, save_every=99), run(replace(SHORT, steps=25)))  # from step 0 it is the longer run
    assert "lengthened" not in files.read(folder / STATE)[1]
    folder = tmp_path / "falling on"
    falling = run(folder=folder, stop=12)
    assert [p.lr for p in fit(falling, DATA, longer, folder=folder)] == [longer.lr_at(k) for k in range(12, 30)]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "a file").write_text("")
    for folder in (tmp_path / "a file", tmp_path / "a file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written.*another folder"):
            run(folder=folder, stop=1)  # before any work is done
    (tmp_path / STATE).mkdir()
    with pytest.raises(UserError):
        run(folder=tmp_path)


def test_a_damaged_state_is_refused(tmp_path):
    run(folder=tmp_path, stop=4)
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        run(folder=tmp_path)
    save_model(tmp_path / STATE, network())
    with pytest.raises(UserError, match="training"):
        run(folder=tmp_path)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match=r"batch of 128 is larger than the data \(100"):
        run(Training())
    with pytest.raises(UserError, match=r"nn\.Module"):
        list(fit(ScoreNet(lambda x, t: x, VPLinear()), DATA, SHORT))
    for bad in (torch.full_like(DATA, math.nan), torch.full_like(DATA, 1e30)):
        with pytest.raises(ModelError, match="gradient became NaN or infinite at step 1"):
            run(data=bad)


def test_a_network_of_another_library_trains_without_a_folder():
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.BatchNorm1d(16), torch.nn.SiLU(), torch.nn.Linear(16, 2))

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = net

        def forward(self, x, t):
            return self.inside(x)

    torch.manual_seed(0)
    model = ScoreNet(Wrapped(), VPLinear(), predicts="v")
    losses = [float(p.loss) for p in fit(model, DATA, replace(SHORT, steps=60))]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert int(net[1].num_batches_tracked) == 60


def test_more_parts_go_on_in_the_same_folder_and_other_data_do_not(tmp_path):
    run(folder=tmp_path, stop=4)
    for a, b in zip(run(replace(SHORT, accumulate=2), folder=tmp_path).net.parameters(), run().net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match=r"other settings.*data"):
        run(folder=tmp_path, data=DATA.flip(1) * 0.9)
    middle = DATA[::13].mean()  # of the samples that are looked at
    with pytest.raises(UserError, match=r"other settings.*data"):
        run(folder=tmp_path, data=middle + 2 * (DATA - middle))  # the same sum


def test_data_that_do_not_fit_the_network_are_refused_in_a_sentence():
    net = MLP((2,), width=8, depth=1, embedding=8, features=4, classes=3)
    with pytest.raises(UserError, match="labels 0 to 9, but the network has 3 classes"):
        list(fit(ScoreNet(net, VPLinear()), InMemory(DATA, torch.arange(100) % 10, "ten", 10), SHORT))
    with pytest.raises(UserError, match=r"samples of shape \(3,\), the model is of \(2,\)"):
        list(fit(network(), torch.randn(100, 3), SHORT))
    with pytest.raises(UserError, match=r"takes samples of shape \(2,\)"):
        list(fit(ScoreNet(MLP((2,)), VPLinear()), torch.randn(100, 3), SHORT))
    with pytest.raises(UserError, match="flip mirrors images"):
        run(replace(SHORT, flip=True))


def test_nan_after_a_while_keeps_the_last_state(tmp_path):
    model = network()
    calls = []
    model.net.register_forward_hook(lambda *given: calls.append(1) or (given[2] * math.nan if len(calls) > 6 else None))
    with pytest.raises(ModelError, match=r"NaN or infinite at step 7: lower lr.*the state of step 4 is kept"):
        list(fit(model, DATA, SHORT, folder=tmp_path, save_every=4))
    tensors, about = files.read(tmp_path / STATE)
    assert about["step"] == 4
    assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize(
    "wrong", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_ends_says_what_to_try(wrong):
    model = network()

    def full(*_):
        raise wrong

    model.net.register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"with 16 samples at a time: try accumulate=4 \(the same batch of 32, 8 at a time"):
        list(fit(model, DATA, replace(SHORT, accumulate=2)))


def test_accumulated_parts_give_the_gradient_of_the_batch():
    one, two = run(), run(replace(SHORT, accumulate=4))
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    norms = [[float(p.norm) for p in fit(network(), DATA, replace(SHORT, accumulate=n))] for n in (1, 4)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-3)  # Adam alone would not see a gradient four times as large
    with pytest.raises(UserError, match="a batch of 32 does not split evenly into 5"):
        run(replace(SHORT, accumulate=5))


def test_the_power_function_average():
    for width in (0.05, 0.1, 0.2):
        g = power_of(width)
        assert ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 == pytest.approx(width)
        training = Training(steps=4000, ema_width=width)
        weight, total, at = 1.0, [], []
        for k in reversed(range(4000)):  # the weight of the weights after step k in the average at the end
            total.append(weight * (1 - training.decay_at(k)))
            at.append((k + 1) / 4000)
            weight *= training.decay_at(k)
        w, t = np.array(total), np.array(at)
        assert w.sum() == pytest.approx(1)
        assert np.sqrt((w * t**2).sum() - (w * t).sum() ** 2) == pytest.approx(width, rel=0.01)


def test_images_are_mirrored_and_labels_left_out_as_asked():
    net = MLP((1, 2, 2), width=8, depth=1, embedding=8, features=4, classes=3)
    seen = []
    net.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[2])))
    x = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).expand(200, 1, 2, 2)
    model = ScoreNet(net, EDM(sigma_max=2e-3 + 1e-6), labels=torch.ones(200, dtype=torch.long))  # hardly noised
    task = Denoising(model, Objective(t_min=1e-6), label_dropout=0.25)
    list(fit(task, x, Training(steps=20, batch=100, flip=True)))
    mirrored = torch.cat([given[:, 0, 0, 0] > 0 for given, _ in seen]).float().mean()
    left_out = torch.cat([labels == 3 for _, labels in seen]).float().mean()
    assert float(mirrored) == pytest.approx(0.5, abs=0.05)
    assert float(left_out) == pytest.approx(0.25, abs=0.04)
    with pytest.raises(UserError, match="label_dropout"):
        Denoising(network(), label_dropout=0.1)


def test_the_average_can_be_looked_at_on_the_way():
    model = network()
    for progress in fit(model, DATA, SHORT):
        before = {k: v.clone() for k, v in model.net.state_dict().items()}
        with progress.averaged():
            assert not model.net.training
            inside = {k: v.clone() for k, v in model.net.state_dict().items()}
        assert all(torch.equal(before[k], v) for k, v in model.net.state_dict().items())
        assert model.net.training
        if progress.step == 10:
            assert not all(torch.equal(before[k], inside[k]) for k in before)
    assert same(model, run())  # looking changes nothing


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"accumulate": 0},
        {"ema_width": 0.5},
        {"batch": 2.0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"clip": 0.0},
        {"flip": "False"},
        {"seed": "x"},
        {"warmup": 1.5},
        {"ema": 1.0},
        {"decay": "cos"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_impossible_training_is_refused(options):
    with pytest.raises(UserError):
        Training(**options)


# --- files ------------------------------------------------------------------------------------------------------------

MODELS = {
    "VPLinear": {},
    "betas": {"schedule": DiscreteVP.cosine(10), "condition": "index"},
    "spline": {"schedule": DiscreteVP.linear(200, interpolation="spline"), "predicts": "mean"},
    "shifted": {"schedule": Shifted(FlowMatching(), 3.0), "predicts": "flow", "condition": "lam"},
    "EDM": {"schedule": EDM(), "condition": "c_noise", "predicts": "v"},
    "VE": {"schedule": VE(0.02, 30.0)},
    "SubVP": {"schedule": SubVP(0.2, 10.0), "predicts": "score"},
    "VPCosine": {"schedule": VPCosine(0.01), "predicts": "x0"},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_a_model_comes_back_as_it_was(tmp_path, options):
    model = network(**options)
    torch.nn.init.normal_(model.net.leave.weight)
    save_model(tmp_path / "deep" / "model.safetensors", model, {"note": "x"})
    back = load_model(tmp_path / "deep" / "model.safetensors")
    assert same(model, back)
    for name in ("schedule", "predicts", "condition", "shape"):
        assert getattr(back, name) == getattr(model, name)
    t = model.schedule.knot(0.5 * model.schedule.t_max)
    assert torch.equal(back(DATA, t).value, model(DATA, t).value)
    assert not back.net.training
    assert not any(p.requires_grad for p in back.net.parameters())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model.safetensors"]  # no half-written file left


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(path, network())
    return path, path.read_bytes()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused(saved, data):
    path, whole = saved
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cut = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(0, header)))
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"not a whole safetensors file.*damaged"):
        load_model(damaged)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(changed)
    try:
        load_model(damaged)
    except UserError as wrong:
        assert len(str(wrong)) > 20  # noqa: PT017  (loading may also succeed)


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(Path(__file__).parent / "executed"),)


def test_foreign_files_are_refused(tmp_path, saved):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no checkpoint at"):
        load_model(path)
    with pytest.raises(UserError, match="no checkpoint at"):
        load_model(tmp_path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"pickle.*never loaded"):
        load_model(path)
    torch.save({"net": Trap()}, path)
    with pytest.raises(UserError, match=r"pickle.*never loaded"):
        load_model(path)
    assert not (Path(__file__).parent / "executed").exists()
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not one that sdediff wrote"):
        load_model(path)
    files.write(path, {"x": torch.zeros(2)}, {"classifier": 1})
    with pytest.raises(UserError, match=r"holds no score network.*classifier"):
        load_model(path)


def test_another_architecture_is_refused(tmp_path, saved):
    tensors, about = files.read(saved[0])
    path, config = tmp_path / "other.safetensors", about["config"]
    wrong = [
        (about | {"network": "transformer"}, "transformer"),
        (about | {"config": config | {"width": 8}}, r"another architecture.*\(16.*for \(8"),
        (about | {"config": config | {"depth": 2}}, "another architecture.*blocks.1.*more"),
        (about | {"config": config | {"colour": 2}}, "colour"),
        (about | {"schedule": {"name": "VPQuadratic"}}, "VPQuadratic"),
        (about | {"schedule": {"name": "Knot"}}, "Knot"),
        (about | {"schedule": {"name": "VPLinear", "beta": 1}}, "beta"),
        (about | {"predicts": "noise"}, "predicts 'noise' does not exist"),
        ({k: v for k, v in about.items() if k != "condition"}, "condition"),
    ]
    for description, match in wrong:
        files.write(path, tensors, description)
        with pytest.raises(UserError, match=match):
            load_model(path)
    files.write(path, {k: v for k, v in tensors.items() if not k.startswith("leave")}, about)
    with pytest.raises(UserError, match="not fitting: leave"):
        load_model(path)


def test_a_model_of_a_foreign_network_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="not Linear"):
        save_model(tmp_path / "x", ScoreNet(torch.nn.Linear(2, 2), VPLinear()))


def test_an_old_file_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, network())
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left.*free some space"):
        save_model(path, network(width=8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- Objective --------------------------------------------------------------------------------------------------------

SCHEDULES = (VPLinear(), SubVP(), VE(), EDM(), FlowMatching())


def batch(schedule, n=64, objective=None):
    generator = torch.Generator().manual_seed(3)
    t = (objective or Objective()).draw_times(schedule, n, generator) * 0.999
    x0, noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return x0, np.maximum(t, 1e-3 * schedule.t_max), noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_of_the_truth_is_zero(schedule, weighting, norm):
    _, t, noise = batch(schedule)
    point = torch.tensor([1.0, -2.0], dtype=torch.float64)
    oracle = Gaussian(point, 0.0, schedule=schedule)  # knows x0, hence eps
    for target in (None, *KINDS):
        objective = Objective(target, weighting, norm)
        loss = objective.per_sample(oracle, point.expand_as(noise), t, noise)
        knot = schedule.knot(t)
        size = objective.weight(target or "v", knot) * (1 + 1 / knot.sigma) ** 2
        assert (loss.numpy() <= 1e-9 * size).all()


class Off:
    """A model that is wrong by `error` in eps, answering as `kind`."""

    def __init__(self, schedule, x0, noise, error, kind):
        self.schedule, self.shape, self.parts, self.kind = schedule, None, (x0, noise, error), kind

    def __call__(self, x, t):
        _, noise, error = self.parts
        return Prediction(x, t, combine(getattr(Prediction(x, t, noise + error, "eps"), self.kind)), self.kind)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_weighting_is_the_same_for_every_target(schedule, kind):
    x0, t, noise = batch(schedule)
    error = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model, knot = Off(schedule, x0, noise, error, kind), schedule.knot(t)
    # g2/2 |score error|^2, the mean over the components
    expected = torch.as_tensor(0.5 * knot.g2 / knot.sigma**2) * error.square().mean(1)
    for target in (None, *KINDS):
        loss = Objective(target, "likelihood").per_sample(model, x0, t, noise)
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)


def test_norms_and_simple_weighting_are_their_formulas():
    x0, t, noise = batch(VPLinear())
    error = torch.linspace(-2, 2, 128, dtype=torch.float64).reshape(64, 2)
    model = Off(VPLinear(), x0, noise, error, "eps")
    size, delta = error.abs(), 0.3
    huber = torch.where(size < delta, 0.5 * size**2 / delta, size - 0.5 * delta)
    for norm, expected in (("l2", error**2), ("l1", size), ("huber", huber)):
        objective = Objective(norm=norm, delta=delta)
        torch.testing.assert_close(objective.per_sample(model, x0, t, noise), expected.mean(1), rtol=1e-9, atol=1e-12)
        assert float(objective(model, x0, t, noise)) == pytest.approx(float(expected.mean()), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 2**31), t_min=st.one_of(st.none(), st.floats(0, 0.5)))
def test_low_discrepancy_times_cover_the_strata(n, seed, t_min):
    for schedule in (VPLinear(), EDM()):
        t = Objective(t_min=t_min).draw_times(schedule, n, torch.Generator().manual_seed(seed))
        low = schedule.t_min if t_min is None else t_min
        place = np.sort((t - low) / (schedule.t_max - low)) * n
        assert t.dtype == np.float64
        assert ((t >= low) & (t <= schedule.t_max)).all()
        np.testing.assert_allclose(place - place[0], np.arange(n), atol=1e-9)
        assert -1e-9 <= place[0] < 1


def test_uniform_times_do_not_cover_the_strata():
    t = Objective(times="uniform").draw_times(VPLinear(), 500, torch.Generator().manual_seed(0))
    assert 0.4 < t.mean() < 0.6
    assert len(np.unique((t * 500).astype(int))) < 400


@pytest.mark.parametrize("times", ["low_discrepancy", "uniform"])
@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
@pytest.mark.parametrize("target", ["eps", "x0", "v", "score"])
def test_the_loss_of_the_exact_score_is_the_least_there_is(times, weighting, target):
    """E|eps - E[eps | x]|^2 is the posterior variance alpha^2 c/S of eps, S = alpha^2 c + sigma^2; x0's is sigma^2 c/S."""
    schedule, n = VPLinear(), 20_000
    variances = np.array([0.25, 2.0])
    oracle = Gaussian([1.0, -1.0], variances, schedule=schedule)
    objective = Objective(target, weighting, times=times, t_min=0.05)

    def least(time):
        k = schedule.knot(time)
        of_eps = np.mean(k.alpha**2 * variances / (k.alpha**2 * variances + k.sigma**2))
        of_target = of_eps * {"eps": 1, "x0": k.u**2, "v": 1 / k.alpha**2, "score": 1 / k.sigma**2}[target]
        return of_eps * 0.5 * k.g2 / k.sigma**2 if weighting == "likelihood" else of_target

    expected = quad(least, 0.05, 1.0)[0] / 0.95
    generator = torch.Generator().manual_seed(1)
    t = objective.draw_times(schedule, n, generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    loss = objective.per_sample(oracle, oracle.sample(n, seed=2), t, noise)
    assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / math.sqrt(n)


@pytest.mark.parametrize("options", [{"target": "noise"}, {"weighting": "SNR"}, {"norm": "l3"}, {"times": "sobol"}], ids=str)
def test_impossible_objectives_are_refused(options):
    with pytest.raises(UserError, match="does not exist; choose one of"):
        Objective(**options)


# --- once broken --------------------------------------------------------------------------------


@pytest.mark.parametrize("about", [1, None, {"schedule": 1}, {"schedule": None}, {"config": {"shape": [2], "width": -1}}], ids=str)
def test_an_odd_description_is_refused(saved, tmp_path, about):
    tensors, whole = files.read(saved[0])
    shown = json.dumps(whole | about if isinstance(about, dict) else about)
    save_file(tensors, tmp_path / "x", metadata={"sdediff": shown})
    with pytest.raises(UserError):
        load_model(tmp_path / "x")


def test_a_run_on_other_data_is_refused(tmp_path):
    run(folder=tmp_path, stop=4)
    with pytest.raises(UserError):
        run(folder=tmp_path, data=DATA[:50])


def test_labels_travel_with_their_samples():
    net = MLP((2,), width=8, depth=1, embedding=8, features=4, classes=10)
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[2])))
    labels = torch.arange(100) % 10
    low = Objective(t_min=1e-6, times="uniform")
    model = ScoreNet(net, EDM(sigma_max=2e-3 + 1e-6), labels=labels)  # hardly noised: the label can be read off the sample
    list(fit(Denoising(model, low), 10.0 * labels[:, None].expand(100, 2).float(), Training(steps=5, batch=20)))
    assert len(seen) == 5
    assert all(torch.equal((x[:, 0] / 10).round().long(), label) for x, label in seen)


def test_saving_every_0_steps_is_refused(tmp_path):
    with pytest.raises(UserError):
        run(folder=tmp_path, save_every=0)
