"""The solution between knots: exact at the knots, of the method's order between them, refused where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdediff import (
    DDIM,
    PID,
    AdaptiveAdams,
    Angle,
    EmbeddedExponential,
    EmbeddedRungeKutta,
    ExponentialAdams,
    Gaussian,
    Heun,
    LogSNR,
    Mixture,
    RungeKutta,
    SciPy,
    UserError,
    VPLinear,
    White,
    latents,
    solve,
    time_roughness,
)  # fmt: skip

SCHEDULE = VPLinear()
TIMES = (0.7, 0.4, 0.2, 0.08, 0.03, 0.006)


def gaussian() -> Gaussian:
    return Gaussian([0.3, -0.2, 0.1], [0.5, 0.02, 1.5], schedule=SCHEDULE)


def exact(x: torch.Tensor, t: float) -> torch.Tensor:
    return gaussian().flow(x, SCHEDULE.knot(1.0), SCHEDULE.knot(t))


def start(n: int = 8) -> torch.Tensor:
    return latents(gaussian(), n, seed=3, dtype=torch.float64)


FIXED = [DDIM(), Heun(Angle()), RungeKutta("rk4", Angle()), ExponentialAdams(3, "v", "angle"), AdaptiveAdams(3)]
FIXED += [EmbeddedRungeKutta("bosh3"), EmbeddedExponential("ho3")]
ADAPTIVE = [AdaptiveAdams(), AdaptiveAdams(3, "x0", "lam"), EmbeddedRungeKutta("bosh3"), EmbeddedExponential("ho3")]


@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_between_the_knots_the_order_is_the_methods(solver):
    x, knots = start(), {n: LogSNR().knots(SCHEDULE, n) for n in (40, 80)}
    worst = {}
    for n, grid in knots.items():
        run = solve(solver, gaussian(), x, grid, path=True)
        between = [float(np.sqrt(a.time * b.time)) for a, b in zip(grid[n // 4 : -2], grid[n // 4 + 1 :], strict=False)]
        worst[n] = max(float((run.at(t) - exact(x, t)).abs().max()) for t in between)
        at_knots = max(float((p - exact(x, k.time)).abs().max()) for p, k in zip(run.path, run.knots, strict=True))
        assert worst[n] < 2 * at_knots  # no worse than the steps themselves
    order = min(solver.facts.ode, 3 if isinstance(solver, AdaptiveAdams | ExponentialAdams) else 4)
    assert math.log2(worst[40] / worst[80]) > order - 0.4


@pytest.mark.parametrize("solver", [DDIM(), RungeKutta("rk4", Angle()), AdaptiveAdams(3)], ids=repr)
def test_at_the_knots_it_is_the_states(solver):
    run = solve(solver, gaussian(), start(), LogSNR().knots(SCHEDULE, 15), path=True)
    for knot, state in zip(run.knots, run.path, strict=True):
        assert torch.allclose(run.at(knot), state, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_between_adaptive_knots_it_is_as_good_as_at_them(solver, tol):
    x = start(24)
    run = solve(solver, gaussian(), x, PID(atol=tol), path=True)
    at_end = float((run.x - exact(x, 1e-3)).square().mean(1).sqrt().median())
    for t in TIMES:
        assert float((run.at(t) - exact(x, t)).square().mean(1).sqrt().median()) < 4 * max(at_end, tol)
    for n, state in enumerate(run.path):
        assert torch.allclose(run.at(run.knots[n].time), state, rtol=0, atol=1e-12)


def test_each_sample_may_be_asked_at_its_own_time():
    x, times = start(6), np.array([0.9, 0.5, 0.25, 0.1, 0.01, 1e-3])
    run = solve(AdaptiveAdams(), gaussian(), x, PID(atol=1e-4), path=True)
    together = run.at(times)
    for i, t in enumerate(times):
        assert torch.equal(together[i], run.at(float(t))[i])


def test_it_agrees_with_an_independent_solver_on_a_mixture():
    model = Mixture([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], [0.2, 0.15, 0.3], schedule=SCHEDULE)
    x = latents(model, 16, seed=5, dtype=torch.float64)
    run = solve(AdaptiveAdams(), model, x, PID(atol=1e-5), path=True)
    for t in (0.5, 0.13, 0.02):
        truth = solve(SciPy("DOP853", 1e-10, 1e-10, Angle()), model, x, SCHEDULE.knots([1.0, t])).x
        assert float((run.at(t) - truth).square().mean(1).sqrt().median()) < 5e-5


def test_upward_too():
    x0 = exact(start(), 1e-3)
    run = solve(AdaptiveAdams(), gaussian(), x0, PID(atol=1e-5, times=(1e-3, 1.0)), path=True)
    assert float((run.at(0.3) - exact(start(), 0.3)).abs().max()) < 1e-3


def test_where_there_is_nothing_to_say_it_says_so():
    x, knots = start(), LogSNR().knots(SCHEDULE, 8)
    with pytest.raises(UserError, match="path=True"):
        solve(DDIM(), gaussian(), x, knots).at(0.5)
    with pytest.raises(UserError, match="no noise"):
        solve(DDIM(1.0), gaussian(), x, knots, noise=White(0), path=True).at(0.5)
    zigzag = (*knots[:4], knots[2], *knots[3:])
    with pytest.raises(UserError, match="one way"):
        solve(DDIM(), gaussian(), x, zigzag, path=True).at(0.5)
    run = solve(AdaptiveAdams(), gaussian(), x, PID(atol=1e-2, times=(1.0, 0.1)), path=True)
    for outside in (0.05, float("nan"), np.array([0.5] * 7 + [1.1])):
        with pytest.raises(UserError, match="solved from time"):
            run.at(outside)


def test_below_the_floor_of_a_rough_model_nothing_is_refined():
    x, floor = start(), 1e-2
    rough = solve(AdaptiveAdams(), gaussian(), x, PID(atol=1e-5, floor=floor))
    plain = solve(AdaptiveAdams(), gaussian(), x, PID(atol=floor))
    assert torch.equal(rough.x, plain.x)
    assert not rough.reached
    assert "rough in time" in rough.reason
    assert rough.error is not None
    assert bool((rough.error >= floor).all())
    smooth = time_roughness(gaussian(), x).floor
    assert solve(AdaptiveAdams(), gaussian(), x, PID(atol=1e-5, floor=smooth)).reached
