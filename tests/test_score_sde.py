"""The score-SDE family beyond the laws: what is exact in closed form, what a corrector may wrap, and what the numbers mean."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import moments

from sdediff import (
    DDIM,
    DDPM,
    EDM,
    VE,
    AnalyticDPM,
    AnnealedLangevin,
    Consistency,
    EulerMaruyama,
    FlowMatching,
    Gaussian,
    Heun,
    Karras,
    Langevin,
    LogSNR,
    Mixture,
    Prediction,
    PredictorCorrector,
    Quadratic,
    Renoise,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    SciPy,
    ScorePower,
    UserError,
    VPLinear,
    White,
    solve,
)  # fmt: skip
from sdediff.solvers import named

SCHEDULE = VPLinear()
MODEL = Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=SCHEDULE)


def down(n, start=0.9, end=0.02):
    return LogSNR().knots(SCHEDULE, n, start, end)


def anisotropic():
    return Gaussian([0.5, -1.0, 0.2], [[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]], schedule=SCHEDULE)


def worst(solver, model, knots) -> float:
    """The largest error of mean and covariance over all knots but the first."""
    found = moments(solver, model, knots)
    exact = [model.moments(k) for k in knots]
    return max(float(torch.maximum((m - em).abs().max(), (c - ec).abs().max())) for (m, c), (em, ec) in zip(found, exact, strict=True))


# --- Analytic-DPM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("std", [1.0, 0.5, 0.1])
def test_the_optimal_variance_is_exact_on_a_gaussian_of_one_variance(eta, std):
    model = Gaussian([0.3, -0.2], std**2, schedule=SCHEDULE)
    for knots in (down(3), down(10), Quadratic().knots(SCHEDULE, 10)):
        assert worst(AnalyticDPM(std, eta), model, knots) < 1e-12
        if eta == 1.0 and std < 1.0:
            assert worst(DDPM("small"), model, knots) > 1e-3
            assert worst(DDPM("large"), model, knots) > 1e-3


@pytest.mark.parametrize("schedule", [VE(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_on_any_schedule(schedule):
    model = Gaussian([0.3, -0.2], 0.25, schedule=schedule)
    knots = LogSNR().knots(schedule, 6, 0.8 * schedule.t_max, max(schedule.t_min, 1e-2))
    scale = max(k.sigma for k in knots) ** 2
    assert worst(AnalyticDPM(0.5), model, knots) < 1e-11 * max(scale, 1)


def test_the_power_of_the_score_is_estimated_from_data():
    """On anisotropic data the table is the exact mean, and its variance beats both of DDPM's."""
    model, knots = anisotropic(), down(10)
    exact = tuple(float((k.sigma**2 / (k.alpha**2 * model.variances + k.sigma**2)).mean()) for k in knots[:-1])
    table = ScorePower.fit(model, model.sample(20000, seed=3), knots, seed=1)
    assert table.times == tuple(k.time for k in knots[:-1])
    assert table.values == pytest.approx(exact, rel=0.03)
    best = worst(AnalyticDPM(table), model, knots)
    for variance in ("small", "large"):
        assert best < 0.5 * worst(DDPM(variance), model, knots)
    truly = ScorePower(table.times, exact)
    # the trace of the covariance is then exact in the first step: the mean variance is what was asked for
    for solver in (AnalyticDPM(truly), AnalyticDPM(truly, eta=0.0)):
        (_, cov), (_, true) = moments(solver, model, knots[:2])[-1], model.moments(knots[1])
        assert float(cov.trace()) == pytest.approx(float(true.trace()), rel=1e-9)


def test_the_fit_does_not_depend_on_the_batch_and_its_limits_hold():
    model, knots = anisotropic(), down(5)
    data = model.sample(100, seed=3)
    a, b = (ScorePower.fit(model, data, knots, batch=n, draws=2) for n in (100, 7))
    assert a.values == pytest.approx(b.values, rel=1e-12)
    with pytest.raises(UserError, match="no value at time"):
        solve(AnalyticDPM(a), model, data, down(6), noise=White(0))
    with pytest.raises(UserError, match="no value at time"):
        ScorePower((0.5,), (0.1,)).at(SCHEDULE.knot(0.4))
    # theorem 2: no component of x0 varies by more than half the range
    t, s = knots[:2]
    free, bound = (
        (moments(AnalyticDPM(2.0, half_range=r), Gaussian([0.0], 4.0, schedule=SCHEDULE), (t, s))[-1][1]) for r in (math.inf, 0.1)
    )
    assert float(bound) < float(free)
    for wrong in (
        lambda: AnalyticDPM(-1.0),
        lambda: AnalyticDPM(eta=1.5),
        lambda: AnalyticDPM(half_range=0.0),
        lambda: ScorePower((1.0,), ()),
    ):
        with pytest.raises(UserError):
            wrong()
    assert named(repr(AnalyticDPM(a))) == AnalyticDPM(a)


def test_at_the_data_no_noise_is_added_and_ddpm_s_mean_is_taken():
    knots = SCHEDULE.knots([0.5, 0.2, 0.0])
    x = MODEL.sample(4, knots[1], seed=0)
    a, b = (solve(s, MODEL, x, knots[1:], noise=White(0)).x for s in (AnalyticDPM(), DDPM()))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


# --- Consistency --------------------------------------------------------------------------------------------------


class ExactJump:
    """The consistency function of Gaussian data, in closed form: the end of the flow at level u_min, as x0."""

    def __init__(self, gaussian: Gaussian, u_min: float):
        self.gaussian, self.schedule, self.shape, self.mean = gaussian, gaussian.schedule, gaussian.shape, gaussian.mean
        self.axes = gaussian.axes
        self.end = gaussian.schedule.knot(0.0) if u_min == 0 else gaussian.schedule.knot_at("u", u_min)

    def moments(self, t):
        return self.gaussian.moments(t)

    def __call__(self, x, t):
        return Prediction(x, t, self.gaussian.flow(x, t, self.end) / self.end.alpha, "x0")

    def rows(self, index):
        return self


@pytest.mark.parametrize("u_min", [0.0, 0.05])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_exact_consistency_function_gives_the_exact_law_in_any_number_of_steps(n, u_min):
    model, solver = ExactJump(anisotropic(), u_min), Consistency(u_min)
    knots = (*LogSNR().knots(SCHEDULE, n, 0.95, 0.3)[:-1], model.end)
    assert worst(solver, model, knots) < 1e-10
    x = anisotropic().sample(8, knots[-2], seed=0)
    assert torch.allclose(solve(solver, model, x, knots[-2:], noise=White(0)).x, model.gaussian.flow(x, knots[-2], model.end), atol=1e-12)


def test_a_model_of_the_mean_loses_variance():
    model = anisotropic()
    cov = moments(Consistency(), model, down(10))[-1][1]
    assert float(cov.trace()) < 0.5 * float(model.moments(SCHEDULE.knot(0.02))[1].trace())
    with pytest.raises(UserError, match="level"):
        Consistency(-0.1)


# --- Restart ------------------------------------------------------------------------------------------------------


def test_a_restart_keeps_the_marginals_to_the_order_of_its_base():
    model, errors = anisotropic(), []
    for n in (20, 40):
        solver = Restart(((n, 2, 0.2, 0.8), (n, 1, 0.5, 2.0)), Heun())
        errors.append(worst(solver, model, down(n)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)
    assert errors[-1] < 5e-3


def test_restart_contracts_the_error_that_was_made_before():
    """The point of the method: Euler to u_min with few steps, then rounds: the first error is forgotten."""
    model, knots = Gaussian([0.0, 0.0], 0.25, schedule=SCHEDULE), Karras().knots(SCHEDULE, 8, 1.0, 0.02)
    plain, fresh = (worst_end(s, model, knots) for s in (DDIM(), Restart(((12, 3, 0.3, 3.0),), Heun())))
    assert fresh < 0.1 * plain


def worst_end(solver, model, knots) -> float:
    (mean, cov), (m, c) = moments(solver, model, knots)[-1], model.moments(knots[-1])
    return float(torch.maximum((mean - m).abs().max(), (cov - c).abs().max()))


def test_where_a_restart_happens_and_what_it_costs():
    inside = Restart(((3, 2, 0.5, 2.0),), Heun())
    knots = down(12)
    assert inside.calls(knots) == 2 * (12 + 1) + 2 * 2 * 2  # one step is cut, two rounds of two Heun steps
    at_a_knot = Restart(((3, 2, knots[8].u, 2.0),), Heun())
    assert at_a_knot.calls(knots) == 2 * 12 + 2 * 2 * 2
    last = Restart(((3, 2, knots[-1].u, 2.0),), Heun())
    assert last.calls(knots) == 2 * 12 + 2 * 2 * 2
    never = Restart(((3, 2, 0.9 * knots[-1].u, 2.0),), Heun())
    assert never.calls(knots) == 2 * 12
    x = MODEL.sample(8, knots[0], seed=0)
    for solver in (
        inside,
        at_a_knot,
        last,
        never,
        Restart(((3, 2, 0.0, 0.5),)),
        Restart(((3, 1, 0.1, 1.0), (3, 2, 0.1, 0.5), (4, 2, 0.6, 1.0))),
    ):
        for k in (knots, SCHEDULE.knots([1.0, 0.5, 0.2, 0.0])):
            assert solve(solver, MODEL, x, k, noise=White(0)).calls == solver.calls(k)
    assert torch.equal(solve(never, MODEL, x, knots, noise=White(0)).x, solve(Heun(), MODEL, x, knots).x)
    assert torch.equal(
        solve(Restart(((3, 2, 0.5, 2.0),)), MODEL, x, knots, noise=White(0)).x, solve(inside, MODEL, x, knots, noise=White(0)).x
    )


def test_the_rounds_have_noise_of_their_own():
    x, knots = MODEL.sample(8, down(4)[0], seed=0), down(4)
    ends = [solve(Restart(((4, k, 0.3, 1.0),)), MODEL, x, knots, noise=White(0)).x for k in (1, 2, 3)]
    assert min(float((a - b).abs().max()) for a, b in pairwise(ends)) > 1e-2
    for wrong in (((1, 2, 0.1, 0.3),), ((3, 2, 0.3, 0.1),), ((3, 2),), 5):
        with pytest.raises(UserError):
            Restart(wrong)
    with pytest.raises(UserError, match="one-step"):
        Restart(base=DDPM())


# --- Reverse diffusion as a flow ---------------------------------------------------------------------------------


def test_the_flow_by_reverse_diffusion_has_order_one_down_and_up():
    solver, x = ReverseDiffusion(probability_flow=True), MODEL.sample(64, SCHEDULE.knot(0.9), seed=1)
    true = solve(SciPy("DOP853", 1e-12, 1e-12), MODEL, x, down(1)).x
    runs = [solve(solver, MODEL, x, down(n)) for n in (160, 320)]
    errors = [float((run.x - true).square().mean().sqrt()) for run in runs]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)
    assert [run.calls for run in runs] == [160, 320]
    back = [solve(solver.inverse, MODEL, run.x, down(n)[::-1]).x for run, n in zip(runs, (160, 320), strict=True)]
    off = [float((b - x).square().mean().sqrt()) for b in back]
    assert math.log2(off[0] / off[1]) > 0.7
    with pytest.raises(UserError, match="draws noise"):
        _ = ReverseDiffusion().inverse


# --- Predictor-corrector ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", [None, DDIM(), Heun(), RungeKutta("rk4"), DDPM(), EulerMaruyama(), ReverseDiffusion(True)], ids=repr)
@pytest.mark.parametrize("corrector", [Langevin(steps=2), Langevin(coupled=True), Renoise(0.02, 2)], ids=repr)
def test_any_predictor_without_memory(predictor, corrector):
    solver = PredictorCorrector(predictor, corrector)
    x = MODEL.sample(8, SCHEDULE.knot(0.9), seed=0)
    for knots in (down(7), SCHEDULE.knots([0.9, 0.4, 0.0]), SCHEDULE.knots([0.9, 0.5, 0.7, 0.2])):
        run = solve(solver, MODEL, x, knots, noise=White(0))
        assert run.calls == solver.calls(knots)
    assert named(repr(solver)) == solver
    assert solver.step(MODEL, x, knots[0], knots[0], None, White(0).on(x)).x is x


def test_a_predictor_with_memory_is_refused():
    class Remembers(DDIM):
        def init(self, model, x, t):
            return t

    x = MODEL.sample(8, SCHEDULE.knot(0.9), seed=0)
    with pytest.raises(UserError, match="remembers what it saw before the corrector"):
        solve(PredictorCorrector(Remembers()), MODEL, x, down(4), noise=White(0))
    for wrong in (
        lambda: PredictorCorrector("DDIM"),
        lambda: PredictorCorrector(PredictorCorrector()),
        lambda: PredictorCorrector(DDIM(), DDIM()),
    ):
        with pytest.raises(UserError):
            wrong()
    for wrong in (lambda: Langevin(0.0), lambda: Langevin(steps=0), lambda: Renoise(2.0), lambda: AnnealedLangevin(0.0)):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(UserError, match="draws noise"):
        solve(PredictorCorrector(DDIM()), MODEL, x, down(4))


def test_the_per_sample_step_has_the_same_ratio_for_each_sample_and_the_coupled_one_does_not():
    t, s = SCHEDULE.knot(0.5), SCHEDULE.knot(0.45)
    x = MODEL.sample(64, t, seed=0)
    z = White(0).on(x).fresh(0)
    a2 = (t.alpha / s.alpha) ** 2
    score = MODEL.score(x, t)
    for coupled in (False, True):
        of_score, of_z = score.norm(dim=1, keepdim=True), z.norm(dim=1, keepdim=True)
        if coupled:
            of_score, of_z = of_score.mean(), of_z.mean()
        e = 2 * a2 * (0.16 * of_z / of_score) ** 2
        expected = x + e * score + (2 * e).sqrt() * z
        assert torch.allclose(Langevin(coupled=coupled).move(MODEL, x, t, s, z), expected, rtol=0, atol=1e-12)
    still = Langevin().move(Gaussian([0.0], 1.0, schedule=SCHEDULE), torch.zeros(2, 1).double(), t, s, z[:2, :1])
    assert torch.equal(still, torch.zeros(2, 1).double())  # no score, no direction


def test_the_corrector_repairs_what_the_predictor_lost():
    """DDPM's mean alone loses variance; corrections at each knot bring most of it back."""
    model, knots = Gaussian([0.0, 0.0], 0.25, schedule=SCHEDULE), down(40)
    true = float(model.moments(knots[-1])[1][0, 0])
    lost = float(moments(DDPM("none"), model, knots)[-1][1][0, 0])
    mended = float(moments(PredictorCorrector(DDPM("none"), Renoise(0.3, 4)), model, knots)[-1][1][0, 0])
    assert lost < 0.05 * true
    assert mended > 0.5 * true


# --- Annealed Langevin --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VE(), VPLinear()], ids=lambda s: type(s).__name__)
def test_annealed_langevin_forgets_its_start_and_finds_each_level(schedule):
    """With enough steps its variance is that of the chain's own law, V/(1 - a/(4 V)), a = r sigma^2: the level's V to order r."""
    model = Gaussian([0.3, -0.2], 0.25, schedule=schedule)
    knots = [schedule.knot_at("u", u) for u in (4.0, 2.0, 1.0, 0.5)]
    mean, cov = moments(AnnealedLangevin(eps=0.1 * 1e-4, steps=300, sigma_min=0.01), model, knots)[-1]
    (true_mean, true), a = model.moments(knots[-1]), 0.1 * knots[-1].sigma ** 2
    v = float(true[0, 0])
    assert float(cov[0, 0]) == pytest.approx(v / (1 - a / (4 * v)), rel=1e-5)
    assert torch.allclose(mean, true_mean, rtol=0, atol=1e-3)


def test_ncsn_by_hand():
    schedule = VE()
    model = Gaussian([0.3, -0.2], 0.25, schedule=schedule)
    t, s = schedule.knot_at("u", 2.0), schedule.knot_at("u", 1.0)
    x, draws = model.sample(4, t, seed=0), []

    class Listen:
        def fresh(self, key):
            draws.append(White(0).on(x).fresh(key))
            return draws[-1]

    y = AnnealedLangevin(2e-5, 5, 0.01).step(model, x, t, s, None, Listen()).x
    expected, a = x, 2e-5 * s.sigma**2 / 0.01**2
    for z in draws:
        expected = expected + a / 2 * model.score(expected, s) + a**0.5 * z
    assert len(draws) == 5
    assert torch.allclose(y, expected, rtol=0, atol=1e-12)
