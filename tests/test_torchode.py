"""The delegates that give every sample its own steps: torchode, and SciPy a sample at a time."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sdediff import (
    Angle,
    Gaussian,
    LogSNR,
    Mixture,
    ModelError,
    Prediction,
    SciPy,
    ScoreNet,
    Sigma,
    Time,
    TorchODE,
    UserError,
    VPLinear,
    solve,
)
from sdediff.external import DELEGATES
from sdediff.names import label
from sdediff.solvers import named

SCHEDULE = VPLinear()
MODEL = Mixture([[1.5, 0.0], [-0.5, 1.0], [0.0, -1.0]], [0.1, 0.3, 0.2], [0.5, 0.3, 0.2], schedule=SCHEDULE)
ENDS = LogSNR().knots(SCHEDULE, 1, 0.9, 0.02)
ONE_AT_A_TIME = [SciPy(m, 1e-5, 1e-5, Angle(), each=True) for m in ("RK45", "DOP853", "LSODA")]


@pytest.fixture(autouse=True)
def _torchode():
    pytest.importorskip("torchode")


def start(n: int = 24) -> torch.Tensor:
    return MODEL.sample(n, ENDS[0], seed=1)


def error(run, exact: torch.Tensor) -> float:
    return float((run.x - exact).square().mean().sqrt())


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return solve(SciPy("DOP853", 1e-12, 1e-12, Angle()), MODEL, start(), ENDS).x


@pytest.mark.parametrize("coordinates", [Time(), Sigma(), Angle(), Angle(0.5)], ids=repr)
@pytest.mark.parametrize(("method", "tolerance", "least"), [("dopri5", 1e-7, 1e-5), ("tsit5", 1e-7, 1e-5), ("heun", 1e-4, 3e-3)])
def test_torchode_follows_the_flow(method, tolerance, least, coordinates, exact):
    runs = [solve(TorchODE(method, tol, tol, coordinates), MODEL, start(), ENDS) for tol in (100 * tolerance, tolerance)]
    assert runs[1].reached
    assert error(runs[1], exact) < least
    assert error(runs[1], exact) < error(runs[0], exact) / 10
    assert runs[1].calls > runs[0].calls


@pytest.mark.parametrize("solver", ONE_AT_A_TIME, ids=lambda s: s.method)
def test_scipy_a_sample_at_a_time(solver, exact):
    run = solve(solver, MODEL, start(), ENDS)
    assert error(run, exact) < 1e-3
    assert run.reached
    assert run.calls == run.each.sum()
    assert len(set(run.each)) > 1
    together = solve(SciPy(solver.method, 1e-5, 1e-5, Angle()), MODEL, start(1), ENDS)
    alone = solve(solver, MODEL, start(1), ENDS)
    assert torch.equal(alone.x, together.x)
    assert alone.each.tolist() == [together.calls]


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "heun"])
def test_a_sample_alone_takes_the_same_steps_and_pays_for_its_own(method):
    solver, x = TorchODE(method, 1e-4, 1e-4, Angle()), start()
    run = solve(solver, MODEL, x, ENDS)
    assert run.calls == run.each.max() > run.each.min()
    for i in range(0, len(x), 5):
        alone = solve(solver, MODEL, x[i : i + 1], ENDS)
        assert alone.each.tolist() == [alone.calls] == [run.each[i]]
        assert alone.rejected.tolist() == [run.rejected[i]]
        assert torch.allclose(alone.x, run.x[i : i + 1], rtol=0, atol=1e-12)
    assert run.rejected.sum() > 0


def test_torchode_s_own_count_makes_every_sample_pay_for_the_slowest():
    """What `each` corrects: the calls of a tableau with f(start) of the next step known are 2 to find the first step, then 6 a step."""
    run = solve(TorchODE("dopri5", 1e-4, 1e-4, Angle()), MODEL, start(), ENDS)
    assert ((run.each - 2) % 6 == 0).all()
    assert run.each.mean() < 0.9 * run.calls


@pytest.mark.parametrize("solver", [TorchODE("tsit5", 1e-3, 1e-3, Sigma()), TorchODE(coordinates=Time()), *ONE_AT_A_TIME], ids=repr)
@pytest.mark.parametrize("up", [False, True])
def test_never_outside_the_interval(solver, up):
    seen = []

    class Watched:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            seen.append(np.ravel(t.time))
            return MODEL(x, t)

        def rows(self, index):
            return self

    run = solve(solver, Watched(), start(8), ENDS[::-1] if up else ENDS)
    times = np.concatenate(seen)
    assert times.min() >= ENDS[-1].time
    assert times.max() <= ENDS[0].time
    assert run.calls == len(seen)


@pytest.mark.parametrize(
    "solver", [TorchODE(rtol=1e-7, atol=1e-7, coordinates=Angle()), SciPy("DOP853", 1e-9, 1e-9, Angle(), True)], ids=repr
)
def test_there_and_back(solver):
    x = start(8)
    below = solve(solver, MODEL, x, ENDS)
    assert torch.allclose(solve(solver.inverse, MODEL, below.x, ENDS[::-1]).x, x, rtol=0, atol=1e-4)


def test_the_limit_of_steps_does_not_raise():
    run = solve(TorchODE("dopri5", 1e-6, 1e-6, Angle(), most_steps=7), MODEL, start(), ENDS)
    assert not run.reached
    assert "max steps" in run.reason
    assert run.calls == 2 + 6 * 7
    time = run.knots[-1].time
    assert ((time > ENDS[-1].time) & (time < ENDS[0].time)).all()
    for i in range(0, 24, 5):  # how far it came, and the flow there
        there = solve(SciPy("DOP853", 1e-11, 1e-11, Angle()), MODEL, start()[i : i + 1], [ENDS[0], SCHEDULE.knot(float(time[i]))]).x
        assert torch.allclose(run.x[i : i + 1], there, rtol=0, atol=1e-4)


def test_images_in_float32_and_labels_that_travel():
    weights = torch.linspace(0.5, 2.0, 6)

    def net(x, time, labels):
        return x * weights[labels].reshape(-1, 1, 1, 1) / (1 + time.reshape(-1, 1, 1, 1))

    x = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    model = ScoreNet(net, SCHEDULE, "eps", labels=torch.arange(6))
    flow = solve(SciPy("DOP853", 1e-9, 1e-9, Angle()), model, x.double(), ENDS).x.float()
    for solver in (TorchODE(rtol=1e-5, atol=1e-5), SciPy("RK45", 1e-6, 1e-6, Time(), each=True)):
        run = solve(solver, model, x, ENDS)
        assert run.x.shape == x.shape
        assert run.x.dtype == torch.float32
        assert torch.allclose(run.x, flow, rtol=1e-3, atol=1e-3)


def test_a_network_that_costs_two_counts_two():
    class Two:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            p = MODEL(x, t)
            return Prediction(p.x, p.at, p.value, p.kind, cost=2)

        def rows(self, index):
            return self

    for solver in (TorchODE("tsit5", 1e-3, 1e-3, Angle()), SciPy("RK45", 1e-3, 1e-3, Angle(), True)):
        one, two = (solve(solver, m, start(5), ENDS) for m in (MODEL, Two()))
        assert (two.each == 2 * one.each).all()
        assert two.calls == 2 * one.calls


@pytest.mark.parametrize("solver", [TorchODE(), SciPy(each=True)], ids=repr)
def test_nan_says_where(solver):
    def answer(x, t):
        return torch.where(t[:, None] < 0.55, torch.nan, x)

    with pytest.raises(ModelError, match=r"at time 0\.[0-5]+ the model returned NaN"):
        solve(solver, ScoreNet(answer, SCHEDULE, "eps"), start(4), ENDS)


def test_an_interval_of_no_length():
    x = start(3)
    run = solve(TorchODE(), MODEL, x, [ENDS[0], ENDS[0]])
    assert torch.equal(run.x, x)
    assert run.calls == 0


def test_gradients_pass():
    model, x = Gaussian([0.3, -0.2], [0.5, 0.2], schedule=SCHEDULE), start(3).requires_grad_()
    run = solve(TorchODE(rtol=1e-6, atol=1e-6, coordinates=Angle()), model, x, ENDS, grad=True)
    run.x.sum().backward()
    ratio = model.flow(torch.ones(1, 2), *ENDS) - model.flow(torch.zeros(1, 2), *ENDS)  # the flow of a Gaussian is affine
    assert x.grad is not None
    assert torch.allclose(x.grad, ratio.to(x).expand(3, 2), rtol=1e-3)


def test_without_torchode(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchode", None)
    with pytest.raises(UserError, match="pip install torchode"):
        solve(TorchODE(), MODEL, start(2), ENDS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TorchODE("dopri6"), "Did you mean"),
        (lambda: TorchODE(rtol=0.0), "positive"),
        (lambda: TorchODE(coefficients=(1.0, 0.0)), "three coefficients"),
        (lambda: TorchODE(most_steps=0), "at least one step"),
    ],
)
def test_options_that_cannot_be(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_labels_rebuild_them():
    for delegate in (TorchODE(), TorchODE("tsit5", 1e-3, 1e-2, Angle(0.5), (0.0, 1.0, 0.0)), SciPy("LSODA", each=True)):
        assert named(repr(delegate), DELEGATES) == named(label(delegate), DELEGATES) == delegate
    assert "each" not in label(SciPy())
