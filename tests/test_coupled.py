"""The published adaptive step sizes: golden runs with their own choice of steps, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_golden import load

from sdediff import (
    DDIM,
    DPMSolver,
    DPMSolverAdaptive,
    DPMSolverPP,
    EmbeddedExponential,
    FlowMatching,
    KDiffusionPID,
    LogSNR,
    ModelError,
    Prediction,
    SciPy,
    UserError,
    VPLinear,
    solve,
)  # fmt: skip

GOLDEN = {
    "ring2__dpmsolver_adaptive_3": (DPMSolver(3), DPMSolverAdaptive()),
    "ring2__dpmsolverpp_adaptive_2": (DPMSolverPP(2), DPMSolverAdaptive()),
    "ring2__kd_dpm_adaptive_o3": (DPMSolver(3), KDiffusionPID()),
}
golden_runs = pytest.mark.parametrize(("name", "solver", "controller"), [(n, *v) for n, v in GOLDEN.items()], ids=GOLDEN)


class Seen:
    """A model that writes down when it is called, and answers NaN at the calls `broken`."""

    def __init__(self, model, broken=()):
        self.model, self.schedule, self.shape, self.times, self.broken = model, model.schedule, model.shape, [], broken

    def __call__(self, x, t):
        self.times.append(t.time)
        if len(self.times) in self.broken:
            return Prediction(x, t, torch.full_like(x, torch.nan), "eps")
        return self.model(x, t)

    def rows(self, index):
        return self


def ring():
    return load("ring2__dpmsolver_adaptive_3__adaptive__default")[1]


@golden_runs
def test_the_official_runs_choose_these_very_steps(name, solver, controller):
    case, model, x = load(f"{name}__adaptive__default")
    seen = Seen(model)
    run = solve(solver, seen, x, controller)
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert np.abs(np.array([k.time for k in run.knots]) - case["times"]).max() < 1e-9
    assert np.abs(np.array(seen.times) - case["eval_t"]).max() < 1e-9
    assert run.calls == int(case["nfe"])
    assert run.calls == (len(run.knots) - 1 + run.rejected) * solver.order
    assert run.reached
    if "n_reject" in case:
        assert (len(run.knots) - 1, run.rejected) == (int(case["n_accept"]), int(case["n_reject"]))


@golden_runs
def test_a_sample_depends_on_its_batch(name, solver, controller):
    """As published, which is what is wrong with them: the same latent ends elsewhere alone than among others."""
    _, model, x = load(f"{name}__adaptive__default")
    together = solve(solver, model, x, controller).x
    moved = [float((solve(solver, model, x[i : i + 1], controller).x - together[i]).abs().max()) for i in range(len(x))]
    assert max(moved) > 0.01
    knots = LogSNR().knots(model.schedule, 12)  # it is the choice of steps that couples them
    alone = solve(solver, model, x[3:4], knots).x
    assert torch.allclose(alone, solve(solver, model, x, knots).x[3:4], rtol=0, atol=1e-12)


def test_one_rms_over_the_batch_hardly_sees_a_difficult_sample():
    """Among 63 copies of an easy latent the difficult one is given the steps of the easy ones."""
    model, solver = ring(), DPMSolver(3)
    torch.manual_seed(1)
    x = torch.randn(32, 2, dtype=torch.float64)
    calls = [solve(solver, model, x[i : i + 1], KDiffusionPID()).calls for i in range(len(x))]
    hard, easy = int(np.argmax(calls)), int(np.argmin(calls))
    crowd = torch.cat([x[hard : hard + 1], x[easy : easy + 1].expand(63, -1)])
    run = solve(solver, model, crowd, KDiffusionPID())
    assert min(calls) <= run.calls < max(calls)


def test_a_tighter_tolerance_is_closer_whatever_the_pair():
    model = ring()
    torch.manual_seed(2)
    x = torch.randn(16, 2, dtype=torch.float64)
    exact = solve(SciPy("DOP853", 1e-10, 1e-10), model, x, model.schedule.knots([1.0, 1e-3])).x
    for solver in (DPMSolver(3), DPMSolver(2, kind="taylor"), EmbeddedExponential("ho3")):
        for make in (DPMSolverAdaptive, KDiffusionPID):
            loose, tight = (solve(solver, model, x, make(rtol=r * 0.05, atol=r * 0.0078)) for r in (1.0, 0.01))
            assert float((tight.x - exact).abs().max()) < 0.2 * float((loose.x - exact).abs().max())
            assert tight.calls > loose.calls


def test_pid_coefficients_change_the_steps_and_it_goes_both_ways():
    model = ring()
    torch.manual_seed(3)
    x = torch.randn(8, 2, dtype=torch.float64)
    elementary, smooth = KDiffusionPID(rtol=1e-4, atol=1e-4), KDiffusionPID(rtol=1e-4, atol=1e-4, coefficients=(0.4, 0.3, 0.05))
    a, b = (solve(DPMSolver(3), model, x, c) for c in (elementary, smooth))
    assert a.knots != b.knots
    assert torch.allclose(a.x, b.x, rtol=0, atol=5e-3)
    back = solve(DPMSolver(3), model, a.x, KDiffusionPID(rtol=1e-4, atol=1e-4, times=(1e-3, 1.0)))
    assert [back.knots[0].time, back.knots[-1].time] == [1e-3, 1.0]
    assert torch.allclose(back.x, x, rtol=0, atol=0.02)


def test_dpm_solver_s_first_step_may_pass_the_end_and_comes_back():
    """As published; k-diffusion's does not."""
    model = ring()
    x, times = torch.randn(4, 2, dtype=torch.float64), (0.5, 0.499)
    run = solve(DPMSolver(3), model, x, DPMSolverAdaptive(times=times))
    assert run.knots[1].time < 0.499
    assert run.knots[-1].time == 0.499
    assert [k.time for k in solve(DPMSolver(3), model, x, KDiffusionPID(times=times)).knots] == [0.5, 0.499]


@pytest.mark.parametrize("make", [DPMSolverAdaptive, KDiffusionPID])
def test_what_they_cannot_do(make):
    model, x = ring(), torch.randn(4, 2, dtype=torch.float64)
    for wrong in ({"rtol": -0.1}, {"rtol": 0.0, "atol": 0.0}, {"atol": float("nan")}, {"first": 0.0}):
        with pytest.raises(UserError, match="positive"):
            make(**wrong)
    for solver in (DDIM(), DPMSolver(1)):
        with pytest.raises(UserError, match=r"DPMSolver\(3\)"):
            solve(solver, model, x, make())
    with pytest.raises(UserError, match="short of alpha = 0"):
        solve(DPMSolver(3), model, x, make(times=(1.0, 0.0)))
    flow = Seen(model)
    flow.schedule = FlowMatching()
    with pytest.raises(UserError, match="short of alpha = 0"):
        solve(DPMSolver(3), flow, x, make())
    with pytest.raises(ModelError, match="NaN or infinite"):  # the originals go on for ever
        solve(DPMSolver(3), Seen(model, broken=(8,)), x, make())


def test_dpm_solver_s_own_only_samples():
    with pytest.raises(UserError, match="KDiffusionPID also encodes"):
        solve(DPMSolver(3), ring(), torch.randn(4, 2, dtype=torch.float64), DPMSolverAdaptive(times=(0.001, 1.0)))


@pytest.mark.parametrize("plus", [DPMSolver, DPMSolverPP])
@pytest.mark.parametrize("kind", ["dpmsolver", "taylor"])
def test_the_error_is_the_difference_from_the_order_below(plus, kind):
    model = ring()
    t, s = VPLinear().knot(0.6), VPLinear().knot(0.45)
    x = torch.randn(8, 2, dtype=torch.float64)
    for order, below in ((2, plus(1)), (3, plus(2, r1=1 / 3, kind=kind))):
        step = plus(order, kind=kind).step(model, x, t, s)
        assert step.error_order == order
        assert step.error is not None
        lower = below.step(model, x, t, s).x
        assert torch.allclose(step.x - step.error.tensor(), lower, rtol=0, atol=1e-13)
    assert not plus(1).embedded
    assert plus(3, kind=kind).embedded
