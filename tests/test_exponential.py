"""The exponential Adams engine: its weights against quadrature and exact integrals, and what its steps promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from sdediff import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    PNDM,
    Angle,
    Between,
    DPMSolverMultistep,
    DPMSolverPPMultistep,
    Euler,
    ExponentialAdams,
    Fixed,
    FlowMatching,
    Gaussian,
    Heun,
    LogSNR,
    Mixture,
    RungeKutta,
    SASolver,
    SciPy,
    SDEDPMSolverPP,
    Uniform,
    UniPC,
    UserError,
    VPLinear,
    White,
    solve,
)  # fmt: skip
from sdediff.weights import AXES, READINGS, exponential_adams, exponential_moments, lagrange, power_moments, quadrature

SCHEDULE = VPLinear()
CORRECTING = [ExponentialAdams(2, corrector=True), UniPC(3), SASolver(3, 4, 0.0)]


def mixture(schedule=SCHEDULE) -> Mixture:
    return Mixture([[0.7, 0.0], [-0.5, 0.4], [0.1, -0.6]], [0.15, 0.3, 0.2], [1.0, 2.0, 1.0], schedule=schedule)


def start(t: float = 0.9, n: int = 32) -> torch.Tensor:
    return mixture().sample(n, SCHEDULE.knot(t), seed=1)


def slope(solver, first: float, last: float, counts=(80, 160)) -> float:
    x = start(first)
    ends = LogSNR().knots(SCHEDULE, 1, first, last)
    exact = solve(SciPy("DOP853", 1e-13, 1e-13), mixture(), x, ends).x
    errors = [
        float((solve(solver, mixture(), x, LogSNR().knots(SCHEDULE, n, first, last)).x - exact).square().mean().sqrt()) for n in counts
    ]
    return math.log2(errors[0] / errors[1])


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-60.0, -3.0, -1e-9, 0.0, 1e-12, 0.3, 4.0, 29.9, 30.1, 400.0])
def test_exponential_moments_against_quadrature(z):
    for k, found in enumerate(exponential_moments(z, 5)):
        points = [1 - 1 / max(z, 2)]
        exact = integrate.quad(lambda r, k=k: r**k * math.exp(-z * (1 - r)), 0, 1, epsabs=0, epsrel=1e-13, limit=200, points=points)[0]
        assert found == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("q", [-50.0, -0.1, 0.0, 1e-10, 0.5, 0.99, 1 - 1e-4])
def test_power_moments_against_quadrature(q):
    for k, found in enumerate(power_moments(q, 2.0, 4)):
        exact = integrate.quad(lambda r, k=k: r**k * (1 - q * r) ** -2.0, 0, 1, epsabs=0, epsrel=1e-12, limit=500)[0]
        assert found == pytest.approx(exact, rel=1e-9)


@given(st.lists(st.floats(-20, 1), min_size=1, max_size=6, unique=True))
def test_lagrange_polynomials_are_one_at_their_node_and_zero_at_the_others(nodes):
    nodes = sorted({round(v, 2) for v in nodes})
    values = lagrange(nodes) @ np.vander(nodes, len(nodes), increasing=True).T
    assert np.allclose(values, np.eye(len(nodes)), atol=1e-6)
    assert np.allclose(lagrange(nodes).sum(0), [1.0] + [0.0] * (len(nodes) - 1), atol=1e-4)


PAIRS = list(itertools.product(READINGS, AXES))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PAIRS),
    st.lists(st.floats(0.002, 0.999), min_size=3, max_size=6, unique_by=lambda t: round(t, 3)),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.booleans(),
)
def test_weights_are_the_integrals_for_any_nodes(pair, times, tau, data_std, upward, corrector):
    predicts, axis = pair
    knots = SCHEDULE.knots(sorted(times, reverse=not upward))
    t, s = knots[-2:]
    nodes = ([s] if corrector else []) + list(knots[-2::-1])
    found = np.array(exponential_adams(predicts, axis, t, s, nodes, tau=tau, data_std=data_std).weights)
    exact = quadrature(predicts, axis, t, s, nodes, tau, data_std)
    assert np.abs(found - exact).max() <= 1e-9 * np.abs(exact).max()


@pytest.mark.parametrize(("predicts", "axis"), PAIRS)
def test_a_polynomial_reading_is_integrated_exactly(predicts, axis):
    """With m a polynomial of degree p - 1 on its axis, p nodes give the integral by an independent quadrature."""
    t, s = SCHEDULE.knot(0.5), SCHEDULE.knot(0.35)
    nodes = SCHEDULE.knots([0.5, 0.62, 0.8])
    on = {
        "lam": lambda k: k.lam,
        "u": lambda k: k.u,
        "angle": lambda k: k.angle,
        "fraction": lambda k: k.sigma / (k.alpha + k.sigma),
        "t": lambda k: k.time,
    }[axis]

    def m(k):
        return 1.0 + 0.7 * on(k) - 0.3 * on(k) ** 2

    def integrand(l):
        k = t.at(lam=l)
        n_v, n_f = math.hypot(s.alpha, s.sigma), s.alpha + s.sigma
        return (
            m(k)
            * {
                "x0": s.sigma * math.exp(l),
                "eps": -s.alpha * math.exp(-l),
                "v": -n_v * k.u / (1 + k.u**2),
                "flow": -n_f * k.u / (1 + k.u) ** 2,
            }[predicts]
        )

    plan = exponential_adams(predicts, axis, t, s, nodes)
    exact = integrate.quad(integrand, t.lam, s.lam, epsabs=0, epsrel=1e-12)[0]
    assert sum(w * m(k) for w, k in zip(plan.weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("predicts", READINGS)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_one_step_keeps_the_marginal_of_a_point(predicts, tau):
    """For data at one point every reading is known exactly, and each step keeps N(alpha x0, sigma^2) whatever its size."""
    model = Gaussian([0.7], 0.0, schedule=SCHEDULE)
    t, s = SCHEDULE.knot(0.9), SCHEDULE.knot(0.2)
    if predicts == "x0":  # constant along the path, so one value is exact; the others vary
        plan = exponential_adams(predicts, "lam", t, s, [t], tau=tau)
        mean = plan.keep * t.alpha * 0.7 + plan.weights[0] * 0.7
        assert mean == pytest.approx(s.alpha * 0.7, rel=1e-12)
    plan = exponential_adams(predicts, "lam", t, s, [t], tau=tau)
    # the noise is that of the exact linear part: check its variance by adding many small steps
    variance = 0.0
    knots = LogSNR().knots(SCHEDULE, 400, 0.9, 0.2)
    for a, b in itertools.pairwise(knots):
        small = exponential_adams(predicts, "lam", a, b, [a], tau=tau)
        variance = small.keep**2 * variance + small.std**2
    assert plan.std**2 == pytest.approx(variance, rel=1e-9)
    assert model.shape == (1,)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ExponentialAdams(1), DDIM()),
        (ExponentialAdams(1, "v", "angle", data_std=0.5), Euler(Angle(0.5))),
        (LMS(3), DEIS(3, "rho")),
        (ExponentialAdams(3, "eps", "lam"), DEIS(3, "log_rho")),
        (ExponentialAdams(3), DPMSolverPPMultistep(3, "heun", corrected=True)),
        (ExponentialAdams(3, "eps"), DPMSolverMultistep(3, "heun", corrected=True)),
        (ExponentialAdams(2, corrector=True), UniPC(2, "vary", corrected=True)),
        (ExponentialAdams(3, corrector=True), SASolver(3, 4, 0.0)),
        (IPNDM(4, variable=True, corrected=True), LMS(4)),
    ],
    ids=repr,
)
def test_methods_that_are_the_same_mathematics_take_the_same_steps(a, b):
    knots = LogSNR().knots(SCHEDULE, 12)
    one, two = (solve(s, mixture(), start(), knots).x for s in (a, b))
    assert torch.allclose(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize("predicts", ["x0", "eps"])
def test_sde_dpm_solver_is_the_exponential_step_of_tau_one(predicts):
    knots, x = LogSNR().knots(SCHEDULE, 12), start()
    pair = SDEDPMSolverPP(2, kind="heun", predicts=predicts), ExponentialAdams(2, predicts, tau=1.0)
    one, two = (solve(s, mixture(), x, knots, noise=White(0)).x for s in pair)
    assert torch.allclose(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "capped", "full"),
    [(DPMSolverPPMultistep(3, corrected=True), 2, 3), (LMS(4), 2, 4), (ExponentialAdams(3, "v", "angle"), 2, 3), (UniPC(4), 3, 5)],
    ids=repr,
)
def test_a_start_of_matching_order_lifts_the_cap_of_a_run_from_the_middle(solver, capped, full):
    from dataclasses import replace

    assert slope(solver, 0.5, 0.1, (320, 640)) < capped + 0.5
    assert slope(replace(solver, start=RungeKutta("rk4")), 0.5, 0.1) == pytest.approx(full, abs=0.15)


@pytest.mark.parametrize("solver", [ExponentialAdams(3, start=Heun()), LMS(4, start=RungeKutta("rk4")), UniPC(3, start=Heun())], ids=repr)
def test_the_calls_of_a_start_are_counted(solver):
    knots = LogSNR().knots(SCHEDULE, 8)
    run = solve(solver, mixture(), start(n=4), knots)
    assert run.calls == solver.calls(knots) > 8


@pytest.mark.parametrize("solver", CORRECTING, ids=repr)
def test_a_correction_is_the_difference_that_a_step_reports(solver):
    knots = LogSNR().knots(SCHEDULE, 5)
    first = solver.step(mixture(), start(), knots[0], knots[1], solver.init(mixture(), start(), knots[0]), None)
    assert first.error is None
    second = solver.step(mixture(), first.x, knots[1], knots[2], first.memory, None)
    assert torch.allclose(first.x + second.error.tensor(), second.memory.x, rtol=0, atol=1e-13)


def test_history_is_dropped_where_the_grid_turns():
    """Down, up and down again: values ahead of the step are no history, and no two nodes coincide."""
    knots = SCHEDULE.knots([0.9, 0.7, 0.5, 0.7, 0.9, 0.7, 0.5])
    for solver in (ExponentialAdams(3), UniPC(3), DPMSolverPPMultistep(2), IPNDM(4), LMS(4, start=Heun())):
        run = solve(solver, mixture(), start(), knots)
        assert torch.isfinite(run.x).all()
        assert run.calls == solver.calls(knots)


def test_the_order_falls_at_the_end_when_asked():
    knots = LogSNR().knots(SCHEDULE, 6)
    x = start()
    low = solve(UniPC(3), mixture(), x, Fixed(knots, lower_final=True)).x
    by_orders = solve(UniPC(3), mixture(), x, Fixed(knots, orders=(3, 3, 3, 3, 2, 1))).x
    assert torch.equal(low, by_orders)
    assert not torch.equal(low, solve(UniPC(3), mixture(), x, knots).x)


@pytest.mark.parametrize("predicts", ["x0", "v", "flow"])
@pytest.mark.parametrize("axis", AXES)
def test_grids_that_touch_both_ends(predicts, axis):
    """From alpha = 0 (zero terminal SNR) to sigma = 0, where lam is infinite: finite, and right for Gaussian data."""
    schedule = FlowMatching()
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=schedule)
    knots = Uniform().knots(schedule, 40, end=0.0)
    x = torch.randn(16, 2, dtype=torch.float64)
    run = solve(ExponentialAdams(2, predicts, axis), model, x, knots)
    assert float((run.x - model.flow(x, knots[0], knots[-1])).abs().max()) < 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialAdams(0),
        lambda: ExponentialAdams(9),
        lambda: ExponentialAdams(2, "noise"),
        lambda: ExponentialAdams(2, "x0", "rho"),
        lambda: ExponentialAdams(2, tau=-1.0),
        lambda: ExponentialAdams(2, tau=1.0, start=Heun()),
        lambda: ExponentialAdams(2, start=DDIM()),
        lambda: ExponentialAdams(2, data_std=0.0),
        lambda: UniPC(5),
        lambda: UniPC(2, "bh3"),
        lambda: DEIS(2, "lam"),
        lambda: SASolver(5),
        lambda: SASolver(3, 4, 1.0, start=Heun()),
        lambda: Between(0.8, 0.2, 1.0),
        lambda: SDEDPMSolverPP(2, eta=-1.0),
        lambda: PNDM(4, "heun"),
        lambda: Fixed(LogSNR().knots(SCHEDULE, 3), orders=(1, 2)),
        lambda: Heun().at_order(1),
    ],
)
def test_options_that_cannot_be_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_a_stochastic_one_asks_for_noise():
    with pytest.raises(UserError, match="noise=White"):
        solve(SASolver(), mixture(), start(), LogSNR().knots(SCHEDULE, 5))


@pytest.mark.parametrize("solver", CORRECTING, ids=repr)
def test_the_summed_corrections_bound_the_error(solver):
    """From 20 steps on, the sum of what the corrector changed is above the true error of nearly every sample."""
    model, x = mixture(), torch.randn(128, 2, dtype=torch.float64)
    exact = solve(SciPy("DOP853", 1e-11, 1e-11, Angle()), model, x, LogSNR().knots(SCHEDULE, 1)).x
    previous = math.inf
    for n in (20, 40):
        run = solve(solver, model, x, LogSNR().knots(SCHEDULE, n), error=True)
        true = (run.x - exact).square().mean(1).sqrt()
        assert run.error is not None
        assert float((true < run.error).double().mean()) > 0.95
        assert float(run.error.median()) < previous
        previous = float(run.error.median())


def test_a_method_without_corrector_has_no_error_estimate():
    with pytest.raises(UserError, match="UniPC"):
        solve(DDIM(), mixture(), start(), LogSNR().knots(SCHEDULE, 5), error=True)
