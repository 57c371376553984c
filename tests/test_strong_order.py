"""Strong order 1.5 with space-time integrals (SRA1, ShARK) and the exponential SDE methods SEEDS, on one Brownian path a sample."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_gaussian import marginals
from test_golden import Recorded, load

from sdediff import (
    DDIM,
    SEEDS,
    SRA1,
    Brownian,
    FlowMatching,
    Gaussian,
    LogSNR,
    Mixture,
    SciPy,
    ShARK,
    Uniform,
    UserError,
    VPLinear,
    White,
    solve,
)

SCHEDULE = VPLinear()
MODEL = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=SCHEDULE)
ENDS = SCHEDULE.knots([0.17, 0.12])  # where the two modes part: the drift bends most there, so that the order shows at few steps
COUNTS, FINE = (32, 64, 128), 1024
TWO_STAGES = [SRA1(), ShARK()]
ALL_SEEDS = [SEEDS(order, predicts) for order in (1, 2, 3) for predicts in ("eps", "x0")]


def knots(n: int):
    return LogSNR().knots(SCHEDULE, n, ENDS[0].time, ENDS[1].time)


def start(n: int = 1024) -> torch.Tensor:
    return MODEL.sample(n, ENDS[0], seed=1)


class Path:
    """One Brownian path on a clock; what was asked once is kept, so that several solvers share the work."""

    def __init__(self, clock: str):
        self.noise = Brownian(3, tuple(sorted(k.clock(clock) for k in ENDS))).on(start())
        self.known = {}

    def __call__(self, a, b, key=0):
        known = self.known.get((a, b))
        return known if known is not None else self._keep((a, b), self.noise(a, b))

    def area(self, a, b, key=0):
        known = self.known.get(("area", a, b))
        return known if known is not None else self._keep(("area", a, b), self.noise.area(a, b))

    def _keep(self, name, value):
        self.known[name] = value
        return value


@pytest.fixture(scope="module")
def path() -> Path:
    return Path("u2")


@pytest.fixture(scope="module")
def fine(path) -> dict:
    """The runs with many steps, one a method."""
    return {solver: solve(solver, MODEL, start(), knots(FINE), noise=path).x for solver in TWO_STAGES}


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def fitted(errors: list[float]) -> float:
    """The order: the slope of the line through all errors, at step counts that double."""
    return float(-np.polyfit(range(len(errors)), np.log2(errors), 1)[0])


@pytest.mark.parametrize("solver", TWO_STAGES, ids=repr)
@pytest.mark.parametrize("reference", TWO_STAGES, ids=lambda s: f"to {s!r}")
def test_strong_order_one_and_a_half(solver, reference, path, fine):
    """To its own limit and to the other method's: both follow the same path."""
    errors = [rms(solve(solver, MODEL, start(), knots(n), noise=path).x - fine[reference]) for n in COUNTS]
    assert fitted(errors) == pytest.approx(1.5, abs=0.1), errors


def test_both_methods_end_on_one_path(fine):
    assert rms(fine[SRA1()] - fine[ShARK()]) < 5e-6


@pytest.mark.parametrize("solver", TWO_STAGES, ids=repr)
def test_without_the_right_integral_the_order_is_one(solver, path, fine):
    class OtherIntegral:
        def area(self, a, b, key=0):
            return path.area(a, b)[0], White(5).on(start()).area(a, b)[1]

    errors = [rms(solve(solver, MODEL, start(), knots(n), noise=OtherIntegral()).x - fine[solver]) for n in COUNTS]
    assert fitted(errors) == pytest.approx(1.0, abs=0.15), errors


@pytest.mark.parametrize("solver", [made(eta) for made in (SRA1, ShARK) for eta in (0.5, 1.0)], ids=repr)
def test_weak_order_two(solver):
    assert weak_slope(solver, 100) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("solver", [SRA1(0.0), ShARK(0.0)], ids=repr)
def test_without_noise_they_follow_the_flow_to_order_two_and_back(solver):
    exact = solve(SciPy("DOP853", 1e-12, 1e-12), MODEL, start(64), ENDS).x
    errors = [rms(solve(solver, MODEL, start(64), knots(n)).x - exact) for n in (80, 160)]
    assert fitted(errors) == pytest.approx(solver.facts.ode, abs=0.15)
    assert solver.inverse == solver
    back = [rms(solve(solver, MODEL, solve(solver, MODEL, start(64), knots(n)).x, knots(n)[::-1]).x - start(64)) for n in (40, 80)]
    assert fitted(back) > 1.7
    assert solver.calls(knots(7)) == solver.calls(knots(7)[::-1]) == 14


@pytest.mark.parametrize("solver", TWO_STAGES, ids=repr)
def test_coefficients_satisfy_the_order_conditions(solver):
    c, v, b = solver._coefficients
    assert sum(b) == pytest.approx(1)
    assert b[1] * c == pytest.approx(1 / 2)
    assert b[0] * v[0] + b[1] * v[1] == pytest.approx(1)
    assert b[1] * c**2 + (b[0] * v[0] ** 2 + b[1] * v[1] ** 2) / 12 == pytest.approx(1 / 2)


@pytest.mark.parametrize("solver", [*TWO_STAGES, *ALL_SEEDS], ids=repr)
def test_upward_the_state_moves_with_the_path(solver):
    """The forward SDE: x/alpha (eps form) is the start plus the increment on u^2, whatever the number of steps."""
    up = knots(6)[::-1]
    noise = Brownian(3, tuple(sorted(k.clock(solver.facts.clock) for k in ENDS))).on(start())
    run = solve(solver, MODEL, start(), up, noise=noise)
    assert run.calls == solver.calls(up) == 0
    if solver.facts.clock == "u2":
        assert torch.allclose(run.x / up[-1].alpha, start() / up[0].alpha + noise(up[0].u2, up[-1].u2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [*TWO_STAGES, SRA1(0.0), SEEDS(3), SEEDS(2, "x0")], ids=repr)
def test_the_data_itself_is_an_ordinary_end(solver):
    grid = Uniform().knots(SCHEDULE, 60, end=0.0)
    x = MODEL.sample(4000, grid[0], seed=2)
    run = solve(solver, MODEL, x, grid, noise=White(0))
    assert run.calls == solver.calls(grid) == (120 if "SEEDS" not in repr(solver) else 59 * solver.order + 1)
    left = run.x[:, 0] < 0
    assert float(left.double().mean()) == pytest.approx(0.5, abs=0.05)
    for side, mean, std in ((~left, [1.0, 0.0], 0.3), (left, [-1.0, 0.5], 0.4)):
        assert torch.allclose(run.x[side].mean(0), torch.tensor(mean).double(), rtol=0, atol=0.05)
        assert torch.allclose(run.x[side].std(0), torch.tensor([std, std]).double(), rtol=0.08)


def test_starts_without_data_or_without_noise_are_refused():
    model = Gaussian([0.0], 1.0, schedule=FlowMatching())
    pure, t = model.schedule.knots([1.0, 0.5])
    with pytest.raises(UserError, match="short of it"):
        solve(SRA1(), model, torch.ones(2, 1).double(), (pure, t), noise=White(0))
    clean, t = SCHEDULE.knots([0.0, 0.5])
    with pytest.raises(UserError, match="short of it"):
        solve(ShARK(0.0), MODEL, start(2), (clean, t))
    with pytest.raises(UserError, match="draws noise"):
        solve(ShARK(), MODEL, start(2), ENDS)
    for bad in (-1.0, math.inf, math.nan, "1"):
        with pytest.raises(UserError, match="eta"):
            SRA1(bad)


# --- SEEDS --------------------------------------------------------------------------------------------------------


def weak_slope(solver, n: int) -> float:
    """The order of mean and variance, at every knot of a whole run on Gaussian data."""
    model, errors = Gaussian([0.5, -1.0], [0.5, 0.1], schedule=SCHEDULE), []
    for count in (n, 2 * n):
        grid = LogSNR().knots(SCHEDULE, count, 0.9, 0.02)
        off = 0.0
        for (mean, variances), k in zip(marginals(solver, model, grid), grid, strict=True):
            true_mean, true_cov = model.moments(k)
            off = max(off, float((mean - true_mean).abs().max()), float((variances - true_cov.diagonal()).abs().max()))
        errors.append(off)
    return fitted(errors)


@pytest.mark.parametrize("solver", ALL_SEEDS, ids=repr)
def test_weak_order_of_seeds(solver):
    assert weak_slope(solver, 400) == pytest.approx(min(solver.order, 2), abs=0.15)


@pytest.mark.parametrize("solver", ALL_SEEDS, ids=repr)
def test_strong_order_of_seeds(solver, path, fine):
    if solver.predicts == "eps":  # the same path, hence the same limit
        errors = [rms(solve(solver, MODEL, start(), knots(n), noise=path).x - fine[ShARK()]) for n in COUNTS]
    else:
        own = Path("snr")
        runs = [solve(solver, MODEL, start(), knots(n), noise=own).x for n in (16, *COUNTS)]
        errors = [rms(a - b) for a, b in pairwise(runs)]
    assert fitted(errors) == pytest.approx(1, abs=0.15), errors


def test_seeds_1_in_x0_is_ddpm_and_in_eps_the_first_order_sde_solver():
    grid = knots(12)
    a, b = (solve(s, MODEL, start(64), grid, noise=White(0)).x for s in (SEEDS(1, "x0"), DDIM(1.0)))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    case, model, x = load("ring2__df_sdedpmsolver1__lam__N20")
    run = solve(SEEDS(1), model, x, model.schedule.knots(case["times"]), noise=Recorded(list(case["noises"])))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9


def test_stage_noises_have_the_paper_s_variances():
    """For data at one point of weight zero in the drift: what a stage adds, in units of sigma_k, is sqrt(e^(2 r h) - 1) in all."""
    t, s = ENDS
    asked = []

    class Watched:
        def __call__(self, a, b, key=0):
            asked.append(abs(b - a))
            return torch.zeros_like(start(2))

    SEEDS(3).step(MODEL, start(2), t, s, None, Watched())
    h = s.lam - t.lam
    expected = [math.exp(2 * h) - math.exp(4 / 3 * h), math.exp(4 / 3 * h) - math.exp(2 / 3 * h), math.expm1(2 / 3 * h)]
    assert np.allclose([a / s.u2 for a in asked], expected, rtol=1e-12)


def test_wrong_options_of_seeds():
    for wrong in ({"order": 4}, {"order": 0}, {"predicts": "v"}):
        with pytest.raises(UserError):
            SEEDS(**wrong)
    with pytest.raises(UserError, match="draws noise"):
        solve(SEEDS(), MODEL, start(2), ENDS)
