"""ER-SDE: the official runs, the integrals of the corrected twin, and what the published left sums and clip cost."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_gaussian import marginals
from scipy import integrate
from test_golden import Recorded, load

from sdediff import DDIM, ERSDE, Fixed, Gaussian, LogSNR, Mixture, RungeKutta, SciPy, Uniform, UserError, VPLinear, White, solve
from sdediff.solvers.ersde import NOISE_SCALES

SCHEDULE = VPLinear()
SCALES = (*NOISE_SCALES, 1, 1.3, 2, 2.5)
CASES = {
    "ring2__ersde1_f7__lam__N10": ERSDE(1),
    "ring2__ersde2_f7__lam__N10": ERSDE(2),
    "ring2__ersde3_f1__lam__N10": ERSDE(3, "ode"),
    "ring2__ersde3_f7__lam__N10": ERSDE(3),
    "ring2__ersde3_f7__lam__N20": ERSDE(3),
}


def down(n: int):
    return LogSNR().knots(SCHEDULE, n, 0.9, 0.02)


def mixture() -> Mixture:
    return Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=SCHEDULE)


def start(n: int = 64) -> torch.Tensor:
    return mixture().sample(n, SCHEDULE.knot(0.9), seed=1)


def scale(name):
    """F by its formula."""
    if not isinstance(name, str):
        return lambda u: u**name
    return {
        "ode": lambda u: u,
        "sde": lambda u: u**2,
        "sde1": lambda u: u * (math.exp(-1 / u) + 10),
        "sde2": lambda u: u**1.5,
        "sde3": lambda u: u**2.5,
        "sde4": lambda u: u**0.9 * math.log10(1 + 100 * u**1.5),
        "default": lambda u: u * (math.exp(u**0.3) + 10),
    }[name]


@pytest.mark.parametrize(("name", "solver"), CASES.items(), ids=CASES)
def test_the_official_implementation_takes_the_same_steps(name, solver):
    case, model, x = load(name)
    knots = model.schedule.knots(case["times"])
    run = solve(solver, model, x, knots, noise=Recorded(list(case["noises"])))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert run.calls == solver.calls(knots) == int(case["nfe"])


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("times", [(0.9, 0.4), (0.5, 0.49), (0.02, 0.001), (0.3, 0.3 - 1e-9)])
def test_the_corrected_step_is_the_integral(name, times):
    """Weights of x0, x0', x0'' and the variance against adaptive quadrature of the exact step."""
    t, s = SCHEDULE.knots(times)
    solver, f = ERSDE(3, name, corrected=True), scale(name)
    for k, found in enumerate(solver._integrals(t, s)):
        with warnings.catch_warnings(action="ignore"):  # the tiny step's integrand is rounding to 1e-7
            exact = integrate.quad(lambda u, k=k: (f(s.u) / f(u) - 1) * (u - t.u) ** k, s.u, t.u, epsabs=0, epsrel=1e-11)[0]
        assert found == pytest.approx(exact, rel=1e-6 if t.u - s.u < 1e-6 else 1e-10)
    keep, (weight,), std = solver.update(t, s, (t,), False)
    r = f(s.u) / f(t.u)
    assert keep == pytest.approx(s.alpha / t.alpha * r, rel=1e-12)
    assert weight == pytest.approx(s.alpha * (1 - r), rel=1e-5 if t.u - s.u < 1e-6 else 1e-11)
    if t.u - s.u > 1e-6:  # the naive formula has no digits there
        assert std == pytest.approx(s.alpha * math.sqrt(max(s.u**2 - r**2 * t.u**2, 0.0)), rel=1e-9, abs=1e-12)


def test_closed_forms_of_flow_and_reverse_sde():
    t, s = SCHEDULE.knots([0.6, 0.2])
    u, v = t.u, s.u
    assert np.allclose(
        ERSDE(3, "ode", True)._integrals(t, s),
        (v - u + v * math.log(u / v), (v - u) ** 2 / 2 + v * (u - v) - u * v * math.log(u / v)),
        rtol=1e-13,
    )
    assert np.allclose(
        ERSDE(3, "sde", True)._integrals(t, s),
        (v - u + v * v * (1 / v - 1 / u), (v - u) ** 2 / 2 + v * v * (math.log(u / v) + 1 - u / v)),
        rtol=1e-13,
    )


@pytest.mark.parametrize("corrected", [False, True])
def test_the_step_is_exact_for_a_quadratic_x0(corrected):
    """x0 = p + q u + r u^2: only the corrected derivatives see its slope at u_t."""
    nodes = SCHEDULE.knots([0.5, 0.55, 0.61])
    s = SCHEDULE.knot(0.47)
    t, u = nodes[0], [k.u for k in nodes]
    p, q, r = 0.3, -0.7, 0.9
    keep, weights, _ = ERSDE(3, "sde", corrected).update(t, s, nodes, False)
    found = sum(w * (p + q * v + r * v * v) for w, v in zip(weights, u, strict=True))
    # dy/du = 2 (y - x0)/u for F = u^2, from y = 0: y_s = -u_s^2 int_{u_t}^{u_s} 2 x0/u^3 du
    exact = s.alpha * s.u**2 * integrate.quad(lambda v: 2 * (p + q * v + r * v * v) / v**3, s.u, t.u, epsabs=0, epsrel=1e-12)[0]
    assert (abs(found - exact) < 1e-12) == corrected
    assert abs(found - exact) < 0.1
    assert keep == pytest.approx(s.alpha / t.alpha * (s.u / t.u) ** 2)


@pytest.mark.parametrize("corrected", [False, True])
def test_first_order_is_ddim_and_ddpm(corrected):
    knots = down(12)
    for scale, eta in (("ode", 0.0), (1, 0.0), ("sde", 1.0), (2, 1.0), (1.25, 0.5)):
        a, b = (solve(s, mixture(), start(), knots, noise=White(0)).x for s in (ERSDE(1, scale, corrected), DDIM(eta)))
        if eta == 0.5:  # DDIM's eta is this family to first order only
            assert 1e-3 < float((a - b).abs().max()) < 0.5
        else:
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


# --- orders -----------------------------------------------------------------------------------------------------------


def flow_errors(solver, counts) -> list[float]:
    exact = solve(SciPy("DOP853", 1e-12, 1e-12), mixture(), start(), down(1)).x
    return [float((solve(solver, mixture(), start(), down(n)).x - exact).square().mean().sqrt()) for n in counts]


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrected_flow_has_its_order(order):
    solver = ERSDE(order, "ode", corrected=True)
    assert slopes(flow_errors(solver, (80, 160)))[-1] == pytest.approx(solver.facts.ode, abs=0.15)
    assert solver.facts.ode == order
    started = ERSDE(order, "ode", corrected=True, start=RungeKutta("rk4"))
    assert slopes(flow_errors(started, (80, 160)))[-1] == pytest.approx(order, abs=0.15)
    assert started.calls(down(5)) == 5 + 3 * (order - 1)


@pytest.mark.parametrize("order", [2, 3])
def test_the_published_flow_falls_to_order_one(order):
    found = slopes(flow_errors(ERSDE(order, "ode"), (20, 40, 160, 320, 1280, 2560)))[::2]
    assert found[0] > 1.9
    assert found[1] == pytest.approx({2: 1.56, 3: 1.35}[order], abs=0.05)
    assert found[2] == pytest.approx(ERSDE(order, "ode").facts.ode, abs=0.15)
    assert ERSDE(order, 1).facts == ERSDE(order, "ode").facts


def weak_errors(solver, counts) -> list[float]:
    model, errors = Gaussian([0.5, -1.0], [0.5, 0.1], schedule=SCHEDULE), []
    for n in counts:
        worst = 0.0
        for (mean, variances), k in zip(marginals(solver, model, down(n)), down(n), strict=True):
            true_mean, true_cov = model.moments(k)
            worst = max(worst, float((mean - true_mean).abs().max()), float((variances - true_cov.diagonal()).abs().max()))
        errors.append(worst)
    return errors


@pytest.mark.parametrize("name", ["default", "sde", "sde1", 1.5])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_weak_order_of_the_corrected_family(order, name):
    solver = ERSDE(order, name, corrected=True)
    assert slopes(weak_errors(solver, (200, 400)))[-1] == pytest.approx(solver.facts.weak, abs=0.15)


def test_the_published_family_loses_its_weak_order():
    for order, at_100, at_400 in ((2, 1.82, 1.47), (3, 1.60, 1.24)):
        found = slopes(weak_errors(ERSDE(order), (100, 200, 400, 800)))
        assert found[0] == pytest.approx(at_100, abs=0.05)
        assert found[2] == pytest.approx(at_400, abs=0.05)
        assert ERSDE(order).facts.weak is None
    assert slopes(weak_errors(ERSDE(1), (100, 200)))[-1] == pytest.approx(1, abs=0.15)


def test_the_published_clip_takes_the_noise_of_small_steps():
    t, s = SCHEDULE.knots([0.02, 0.0199])
    assert ERSDE(1).update(t, s, (t,), False).std == 0.0
    assert ERSDE(1, corrected=True).update(t, s, (t,), False).std > 0.0
    t, s = SCHEDULE.knots([0.9, 0.8])
    assert ERSDE(1).update(t, s, (t,), False) == ERSDE(1, corrected=True).update(t, s, (t,), False)


# --- options and ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [ERSDE(3), ERSDE(3, "ode"), ERSDE(2, "sde", True), ERSDE(3, "sde4"), ERSDE(3, "sde1", True)], ids=repr)
def test_the_data_itself_is_an_end_and_up_and_down_work(solver):
    grid = Uniform().knots(SCHEDULE, 30, end=0.0)
    run = solve(solver, mixture(), mixture().sample(64, grid[0], seed=1), grid, noise=White(0))
    assert run.calls == solver.calls(grid) == 30
    assert float(run.x.abs().max()) < 2.5
    zigzag = SCHEDULE.knots([0.9, 0.5, 0.7, 0.4, 0.4, 0.2])
    run = solve(solver, mixture(), start(), zigzag, noise=White(0))
    assert bool(torch.isfinite(run.x).all())


def test_lower_order_at_the_end_uses_the_same_memory():
    knots = down(8)
    run = solve(ERSDE(3), mixture(), start(), Fixed(knots, lower_final=True), noise=White(0))
    assert run.calls == 8
    assert not torch.equal(run.x, solve(ERSDE(3), mixture(), start(), knots, noise=White(0)).x)


def test_what_is_refused():
    for wrong in ({"order": 4}, {"noise_scale": "sde9"}, {"noise_scale": 0.9}, {"noise_scale": math.nan}, {"start": RungeKutta()}):
        with pytest.raises(UserError):
            ERSDE(**wrong)
    with pytest.raises(UserError, match="draws noise"):
        solve(ERSDE(), mixture(), start(), down(3))
    wide = VPLinear(beta_max=60.0)
    t, s = wide.knot_at("u", 1e6), wide.knot_at("u", 1e5)  # beyond u = 1000 or so F(u)/u falls
    with pytest.raises(UserError, match="no noise scale"):
        ERSDE(1, "sde4").update(t, s, (t,), False)
