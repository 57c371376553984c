"""Roughness in time: none in closed forms, seen where it is, with a floor that solvers have; smoothing averages the embedding only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from sdediff import (
    EDM,
    AsinhLogSNR,
    DiscreteVP,
    ExponentialAdams,
    FlowMatching,
    Gaussian,
    Mixture,
    ModelError,
    ScoreNet,
    UserError,
    VPCosine,
    VPLinear,
    knots_for,
    latents,
    load_model,
    smooth_time,
    solve,
    time_roughness,
)
from sdediff.networks import MLP
from sdediff.prediction import Prediction

MEANS = np.array([[1.0, 0.3], [-0.8, 0.6], [0.1, -1.1]])


def mixture(schedule) -> Mixture:
    return Mixture(MEANS, [0.1, 0.2, 0.05], [1.0, 2.0, 1.0], schedule=schedule)


class Shaken:
    """Standard normal data whose v gets waves in time, in each component its own 40: of RMS `size`, and up to `rate` radians in all."""

    shape = (16,)

    def __init__(self, size: float, rate: float = 4000.0):
        rng = np.random.default_rng(0)
        self.model, self.size = Gaussian(np.zeros(16), np.ones(16), schedule=VPLinear()), size * np.sqrt(2 / 40)
        self.schedule = self.model.schedule
        self.rates, self.phases = rate * rng.uniform(0.25, 1.0, (16, 40)), rng.uniform(0, 2 * np.pi, (16, 40))

    def wave(self, time) -> np.ndarray:
        return self.size * np.sin(np.multiply.outer(time, self.rates) + self.phases).sum(-1)

    def __call__(self, x: Tensor, t) -> Prediction:
        return Prediction(x, t, self.model(x, t).v.tensor() + torch.as_tensor(self.wave(t.time)), "v")

    def rows(self, index: Tensor) -> Shaken:
        return self


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_closed_forms_are_smooth(schedule, dtype):
    model = mixture(schedule)
    found = time_roughness(model, latents(model, 8, seed=0, dtype=dtype))
    assert found.floor < (4e-9 if dtype == torch.float64 else 1e-6)
    assert not found.rough
    assert str(found).startswith("smooth in time")
    assert found.floor == time_roughness(model, latents(model, 8, seed=0, dtype=dtype)).floor


def test_waves_are_found_at_their_size_and_are_the_error_of_fixed_grids():
    """For standard normal data the waves are the whole velocity: their size is what is found, and the exact flow is one integral."""
    size = 1e-2
    model = Shaken(size)
    x = latents(model, 4, seed=0, dtype=torch.float64)
    found = time_roughness(model, x)
    middle = (np.array(found.times) > 0.05) & (np.array(found.times) < 0.95)
    assert np.sqrt(np.mean(np.array(found.sizes)[middle] ** 2)) == pytest.approx(size, rel=0.25)
    assert found.rough
    assert "rough in time" in str(found)
    fine = model.schedule.knot(np.linspace(1.0, model.schedule.t_min, 20_001))
    moved = torch.as_tensor(np.trapezoid(model.wave(fine.time), fine.angle[:, None], axis=0))
    missed = []
    for grid in (AsinhLogSNR(-1.0, 2.0), AsinhLogSNR(0.0, 2.0), AsinhLogSNR(-2.0, 3.0)):
        for order in (2, 4):
            solver = ExponentialAdams(order, "v", "angle", corrector=True)
            end = solve(solver, model, x, knots_for(model.schedule, solver, grid, calls=200)).x
            missed.append((end - x - moved).square().mean().item())
    assert 1 < np.sqrt(np.mean(missed)) / found.floor < 3


def test_a_slow_wave_is_not_roughness():
    model = Shaken(1e-2, rate=6.0)
    assert time_roughness(model, latents(model, 8, seed=0, dtype=torch.float64)).floor < 1e-7


def test_the_floor_falls_like_one_over_the_root_of_the_calls():
    model = Shaken(1e-2, rate=2e5)
    x = latents(model, 8, seed=0, dtype=torch.float64)
    few, many = time_roughness(model, x, calls=50), time_roughness(model, x, calls=800)
    assert many.floor == pytest.approx(few.at(800), rel=0.3)


def test_bad_input():
    model = Gaussian([0.0], [1.0], schedule=VPLinear())
    x = latents(model, 2)
    for call in (
        lambda: time_roughness(model, x, calls=5),
        lambda: time_roughness(model, x, instants=1),
        lambda: time_roughness(model, [1.0]),  # type: ignore[arg-type]
        lambda: time_roughness(model, x[:0]),
        lambda: smooth_time(model),
        lambda: smooth_time(net_model(), width=1.0),
        lambda: smooth_time(net_model(), most=0.0),
        lambda: smooth_time(net_model(), embedding="nothing"),
    ):
        with pytest.raises(UserError):
            call()
    with pytest.raises(ModelError, match="time"):
        time_roughness(Shaken(float("nan")), torch.zeros(2, 16, dtype=torch.float64))


# --- smoothing ----------------------------------------------------------------------------------------------------


def net_of(model: ScoreNet) -> Any:
    return model.net


def net_model(condition: str = "time", schedule=None, classes: int | None = None, labels=None) -> ScoreNet:
    torch.manual_seed(1)
    high = 0.3 if condition == "index" else 300.0
    net = MLP((2,), width=16, depth=1, embedding=8, features=8, low=high / 300, high=high, classes=classes).eval().requires_grad_(False)
    nn.init.normal_(net.leave.weight, std=0.3)
    return ScoreNet(net, schedule or VPLinear(), "eps", condition, labels=labels, shape=(2,))


class Named(nn.Module):
    """A foreign network: its own embedding of a scaled column of times."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = nn.Linear(1, 8)
        self.mix = nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.mix(torch.sin(self.waves(10.0 * t[:, None])))


@pytest.mark.parametrize("condition", ["time", "index", "lam", "c_noise"])
def test_it_is_the_average_of_the_embedding_over_the_window(condition):
    schedule = DiscreteVP(tuple(np.linspace(1e-4, 0.02, 1000)), "spline")
    model = net_model(condition, schedule)
    smooth = smooth_time(model, 0.2, 0.03, nodes=400)
    for time in (0.01, 0.1, 0.9):
        half = min(0.2 * time, 0.03)
        knots = schedule.knot(np.linspace(time - half, time + half, 4001))
        told = {"time": knots.time, "index": knots.time * 1000 - 1, "lam": knots.lam, "c_noise": -knots.lam / 4}[condition]
        want = net_of(model).embed(torch.as_tensor(told, dtype=torch.float32)).mean(0)
        knot = schedule.knot(np.array([time, 0.3]))
        at = {"time": knot.time, "index": knot.time * 1000 - 1, "lam": knot.lam, "c_noise": -knot.lam / 4}[condition]
        got = net_of(smooth).embed(torch.as_tensor(at, dtype=torch.float32))[0]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def test_ends_fold_back_and_close():
    model, schedule = net_model(), VPLinear()
    smooth = smooth_time(model, nodes=200)
    end = net_of(model).embed(torch.linspace(0.97, 1.0, 4001)).mean(0, keepdim=True)
    torch.testing.assert_close(net_of(smooth).embed(torch.tensor([1.0])), end, rtol=0, atol=1e-3)
    torch.testing.assert_close(net_of(smooth).embed(torch.zeros(1)), net_of(model).embed(torch.zeros(1)))
    x = torch.randn(3, 2)
    assert torch.isfinite(smooth(x, schedule.knot(1.0)).value).all()


def test_one_time_for_all_is_embedded_once_and_the_same():
    model = net_model(classes=3, labels=torch.tensor([0, 2, 1, 3]))
    smooth, x = smooth_time(model), torch.randn(4, 2)
    seen = []
    net_of(smooth).embed.inner.mix.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    one = smooth(x, model.schedule.knot(0.4)).value
    each = smooth(x, model.schedule.knot(np.full(4, 0.4))).value
    assert seen == [32, 4 * 32]
    torch.testing.assert_close(one, each)
    part = torch.tensor([2, 0])
    torch.testing.assert_close(smooth.rows(part)(x[part], model.schedule.knot(0.4)).value, one[part])
    mixed = smooth(x, model.schedule.knot(np.array([0.4, 0.1, 1.0, 1e-3]))).value
    torch.testing.assert_close(mixed[0], one[0])


def test_the_given_network_stays_as_it_was():
    model = net_model()
    before, x, t = copy.deepcopy(model), torch.randn(3, 2), VPLinear().knot(0.3)
    smooth = smooth_time(model)
    assert not torch.equal(smooth(x, t).value, model(x, t).value)
    net_of(smooth).double()
    assert torch.equal(model(x, t).value, before(x, t).value)
    assert smooth(x.double(), t).value.dtype == torch.float64


def test_a_foreign_network_names_its_embedding():
    net = Named().requires_grad_(False)
    model = ScoreNet(net, VPLinear(), shape=(2,))
    with pytest.raises(UserError, match=r"embedding=.*'waves'"):
        smooth_time(model)
    smooth = smooth_time(model, embedding="waves", scale=10.0)
    x = torch.randn(3, 2)  # the linear layer's average is its value at the middle
    for knot in (VPLinear().knot(0.5), VPLinear().knot(np.array([0.1, 0.5, 0.9]))):
        torch.testing.assert_close(smooth(x, knot).value, model(x, knot).value)
    with pytest.raises(UserError, match="condition alone"):
        smooth_time(model, embedding="mix")(x, VPLinear().knot(0.5))


def test_a_rough_network_becomes_smooth():
    model = net_model()
    x = latents(model, 8, seed=0)
    rough, smooth = time_roughness(model, x), time_roughness(smooth_time(model, 0.2, 0.03), x)
    assert smooth.floor < 0.1 * rough.floor


def test_the_networks_of_the_studies(real_data):
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    digits = load_model(ROOT / "sdediff" / "pretrained" / "digits.safetensors")
    assert time_roughness(digits, latents(digits, 2), instants=4).floor < 1e-6
    model = load_hot_vs_cold(real_data / "weights" / "yichizz_ddpm_mnist_starter.pth")
    x = latents(model, 1, seed=7)
    raw, smooth = (time_roughness(m, x, instants=8) for m in (model, smooth_time(model)))
    assert 3e-4 < raw.floor < 3e-3
    assert smooth.floor < 1e-4
