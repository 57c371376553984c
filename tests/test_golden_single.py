"""Single-step and ancestral samplers: golden runs of the official implementations (float64, 1e-9), options, identities and edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_gaussian import alone, moments, overlapping
from test_golden import Recorded, load

from sdediff import (
    DDIM,
    DPM2,
    Angle,
    DEISRungeKutta,
    DPM2Ancestral,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2SAncestral,
    DPMSolverPPSDE,
    EDMHeun,
    Euler,
    EulerAncestral,
    ExponentialRungeKutta,
    ExponentialTableau,
    Fixed,
    FlowMatching,
    Gaussian,
    LogSNR,
    Mixture,
    RungeKutta,
    SciPy,
    Sigma,
    Tableau,
    Time,
    UserError,
    VPLinear,
    White,
    dpm_solver_orders,
    res2,
    res3,
    solve,
)  # fmt: skip
from sdediff.phi import EXPONENTIAL_TABLEAUX
from sdediff.solvers import named

SCHEDULE = VPLinear()
CHURN = EDMHeun(churn=8.0, s_min=0.05, s_max=50.0, s_noise=1.003, steps=20)


class Seen:
    """A model that writes down when it is called."""

    def __init__(self, model):
        self.model, self.schedule, self.shape, self.times = model, model.schedule, model.shape, []

    def __call__(self, x, t):
        self.times.append(t.time)
        return self.model(x, t)

    def rows(self, index):
        return self


class Fresh(Recorded):
    """The recorded draws as noise off the path."""

    def fresh(self, key):
        return torch.as_tensor(self.draws.pop(0))


@dataclass
class Path:
    """The recorded draws of dpmpp_sde, one for W(m) - W(t) and one for W(s) - W(t), asked for as increments t to m and m to s."""

    draws: list
    first: tuple = field(default=())

    def __call__(self, a, b, key=0):
        z = torch.as_tensor(self.draws.pop(0))
        if not self.first:
            self.first = a, z * (b - a) ** 0.5
            return self.first[1]
        (start, w), self.first = self.first, ()
        return z * (b - start) ** 0.5 - w


CASES = {
    "dpmsolver_singlestep_1__lam__nfe10": DPMSolver(1),
    "dpmsolver_singlestep_2__lam__nfe10": DPMSolver(2),
    "dpmsolver_singlestep_3__lam__nfe12": DPMSolver(3),
    "dpmsolver_singlestep_3_taylor__lam__nfe12": DPMSolver(3, kind="taylor"),
    "dpmsolver_singlestep_fixed_3__lam__nfe30": DPMSolver(3),
    "dpmsolverpp_singlestep_2__lam__nfe10": DPMSolverPP(2),
    "dpmsolverpp_singlestep_3__lam__nfe12": DPMSolverPP(3),
    "kd_dpm_fast_eta0__lam__nfe10": DPMSolver(3),
    "kd_dpm_2__lam__N10": DPM2(),
    "ds_dpm_2__karras7__N10": DPM2(),
    "kd_dpm_2_ancestral__lam__N10": DPM2Ancestral(),
    "kd_euler_ancestral__lam__N10": EulerAncestral(),
    "kd_dpmpp_2s_ancestral_eta0__lam__N10": DPMSolverPP2SAncestral(0.0),
    "kd_dpmpp_2s_ancestral_eta1__lam__N10": DPMSolverPP2SAncestral(),
    "kd_dpmpp_sde__lam__N10": DPMSolverPPSDE(),
    "kd_heun__karras7__N10": EDMHeun(),
    "kd_heun_churn__karras7__N20": CHURN,
    "edm_heun__karras7to0__N10": EDMHeun(),
    "edm_heun__karras7to0__N20": EDMHeun(),
    "edm_heun_churn__karras7to0__N20": CHURN,
    "edm_ablation_heun_edm_linear_none_a1__N10": EDMHeun(),
    "deis_rhork_2heun__karras7__N10": DEISRungeKutta("heun"),
    "deis_rhork_3kutta__karras7__N10": DEISRungeKutta("rk3"),
    "deis_rhork_4rk__karras7__N10": DEISRungeKutta("rk4"),
}


ADAPTIVE = {
    "dpmsolver_adaptive_3__adaptive__default": DPMSolver(3),
    "dpmsolverpp_adaptive_2__adaptive__default": DPMSolverPP(2),
    "kd_dpm_adaptive_o3__adaptive__default": DPMSolver(3),
}


@pytest.mark.parametrize(("name", "solver"), ADAPTIVE.items(), ids=ADAPTIVE)
def test_an_adaptive_run_is_the_same_steps_on_the_knots_it_accepted(name, solver):
    """Who chooses the knots is a controller's matter; the steps between them are these."""
    case, model, x = load(f"ring2__{name}")
    run = solve(solver, model, x, model.schedule.knots(case["times"]))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9


@pytest.mark.parametrize(("name", "solver"), CASES.items(), ids=CASES)
def test_the_official_implementation_takes_the_same_steps(name, solver):
    case, model, x = load(f"ring2__{name}")
    knots, noises, seen = model.schedule.knots(case["times"]), list(case.get("noises", [])), Seen(model)
    if solver is CHURN:  # the originals draw at every step and multiply by zero outside [s_min, s_max]
        noises = [z for z, k in zip(noises, knots, strict=False) if CHURN.s_min <= k.u <= CHURN.s_max]
    noise = Fresh(noises) if solver is CHURN else Path(noises) if isinstance(solver, DPMSolverPPSDE) else Recorded(noises)
    orders = tuple(map(int, case["orders"])) if "orders" in case else None
    run = solve(solver, seen, x, Fixed(knots, orders=orders), noise=noise)
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert not noises
    assert run.calls == (solver.calls(knots) if orders is None else sum(orders)) == int(case["nfe"])
    assert np.abs(np.array(seen.times) - case["eval_t"]).max() < 1e-9
    if "steps_argument" in case and case["method"] == "singlestep":
        assert dpm_solver_orders(int(case["steps_argument"]), int(case["order"])) == orders
    if name.startswith("kd_dpm_fast"):
        assert dpm_solver_orders(10) == orders == (3, 3, 3, 1)


def test_orders_for_a_budget():
    for calls in range(1, 40):
        for order in (1, 2, 3):
            orders = dpm_solver_orders(calls, order)
            assert sum(orders) == calls
            assert max(orders) <= order
            assert orders == tuple(sorted(orders, reverse=True))
    assert dpm_solver_orders(12) == (3, 3, 3, 2, 1)
    assert dpm_solver_orders(11) == (3, 3, 3, 2)
    assert dpm_solver_orders(5, 2) == (2, 2, 1)
    for wrong in ((0, 3), (10, 4)):
        with pytest.raises(UserError):
            dpm_solver_orders(*wrong)


# --- orders of the options that the laws do not run ------------------------------------------------------------------


def ring() -> Mixture:
    a = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(0.7 * torch.stack([a.cos(), a.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=SCHEDULE)


def down(n: int):
    return LogSNR().knots(SCHEDULE, n, 0.9, 0.02)


def start() -> torch.Tensor:
    return ring().sample(64, SCHEDULE.knot(0.9), seed=1)


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return solve(SciPy("DOP853", 1e-12, 1e-12), ring(), start(), down(1)).x


OPTIONS = [DPMSolver(1), DPMSolver(2), DPMSolver(2, r1=0.3), DPMSolver(2, r1=0.8, kind="taylor"), DPMSolver(3, kind="taylor")]
OPTIONS += [DPMSolver(3, r1=0.5), DPMSolver(3, r1=0.4, r2=0.9), DPMSolver(3, r1=0.4, r2=0.9, kind="taylor")]
OPTIONS += [DPMSolver(2, inner="quadratic"), DPMSolver(3, inner="time"), DPMSolver(3, inner="quadratic", kind="taylor")]
OPTIONS += [DPMSolverPP(1), DPMSolverPP(2), DPMSolverPP(2, kind="taylor"), DPMSolverPP(3, kind="taylor"), DPMSolverPP(3, r2=0.5)]
OPTIONS += [DPMSolverPP(3, inner="time"), DPM2(0.3), DPM2(1.0), EDMHeun(alpha=0.5), EDMHeun(alpha=2 / 3, coordinates=Time())]
OPTIONS += [EulerAncestral(0.0), DPM2Ancestral(0.0), DPMSolverPP2SAncestral(0.0), DPMSolverPPSDE(0.0), DPMSolverPPSDE(0.0, r=0.3)]
OPTIONS += [ExponentialRungeKutta(name) for name in EXPONENTIAL_TABLEAUX]
OPTIONS += [ExponentialRungeKutta(t) for t in (res2(0.3), res2(0.7), res3(0.4, 0.8), res3(0.25, 0.5))]
OPTIONS += [DEISRungeKutta("heun"), DEISRungeKutta(Tableau(a=((), (0.75,)), b=(1 / 3, 2 / 3), order=2))]


@pytest.mark.parametrize("solver", OPTIONS, ids=repr)
def test_order_to_the_probability_flow(solver, exact):
    errors = [float((solve(solver, ring(), start(), down(n)).x - exact).square().mean().sqrt()) for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.facts.ode, abs=0.15), errors
    assert named(repr(solver)) == solver
    assert solver.inverse == solver


def gaussian() -> Gaussian:
    return Gaussian([0.5, -1.0, 0.2], [[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]], schedule=SCHEDULE)


NOISY = [EulerAncestral(0.5), DPM2Ancestral(0.5), DPM2Ancestral(1.5), DPMSolverPP2SAncestral(0.5)]
NOISY += [DPMSolverPPSDE(0.5), DPMSolverPPSDE(1.5), DPMSolverPPSDE(r=1.0), EDMHeun(churn=4.0, s_max=4.0, steps=1)]


def off(solver, n: int) -> float:
    """The largest error of mean and covariance at any knot."""
    model, knots = gaussian(), down(n)
    found = [(m - model.moments(k)[0], c - model.moments(k)[1]) for (m, c), k in zip(moments(solver, model, knots), knots, strict=True)]
    return max(float(torch.maximum(m.abs().max(), c.abs().max())) for m, c in found)


@pytest.mark.parametrize("solver", NOISY, ids=repr)
def test_weak_order_from_exact_moments(solver):
    """With churn, a total over the run, each number of steps is a solver of its own."""
    steps = (150, 300)
    solvers = [EDMHeun(churn=solver.churn, s_max=solver.s_max, steps=n) if isinstance(solver, EDMHeun) else solver for n in steps]
    errors = [off(s, n) for s, n in zip(solvers, steps, strict=True)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.facts.weak, abs=0.15), errors
    assert errors[1] < 0.015
    assert not overlapping(alone(solvers[0], gaussian(), down(20))[1])


def test_inflated_churn_noise_is_biased_and_promises_nothing():
    solver = EDMHeun(churn=4.0, s_max=4.0, s_noise=1.01, steps=100)
    assert solver.facts.weak is None
    assert off(solver, 100) > 3 * off(EDMHeun(churn=4.0, s_max=4.0, steps=100), 100)


# --- identities ------------------------------------------------------------------------------------------------------

SAME = [
    (EulerAncestral(), DDIM(1.0)),
    (EulerAncestral(0.3), DDIM(0.3)),
    (EulerAncestral(1.5), DDIM(1.5)),
    (EulerAncestral(0.0), DDIM()),
    (DPM2(), DPMSolver(2)),
    (DPM2(0.3), DPMSolver(2, r1=0.3)),
    (DPM2Ancestral(0.0), DPM2()),
    (DPMSolverPP2SAncestral(0.0), DPMSolverPP(2)),
    (DPMSolverPPSDE(0.0, r=0.4), DPMSolverPP(2, r1=0.4)),
    (ExponentialRungeKutta("euler"), DDIM()),
    (ExponentialRungeKutta("midpoint"), DPMSolverPP(2)),
    (ExponentialRungeKutta("heun"), DPMSolverPP(2, r1=1.0)),
    (ExponentialRungeKutta("res2"), DPMSolverPP(2, kind="taylor")),
    (ExponentialRungeKutta("ho3"), DPMSolverPP(3)),
    (DEISRungeKutta("rk4"), RungeKutta("rk4", Sigma())),
    (EDMHeun(), RungeKutta("heun")),
    (EDMHeun(alpha=0.5), RungeKutta("midpoint")),
    (EDMHeun(alpha=2 / 3, coordinates=Angle()), RungeKutta("ralston", Angle())),
    (EDMHeun(churn=5.0, s_min=1e3, steps=9), EDMHeun()),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_the_same_method_under_two_names(one, other):
    for knots in (down(9), LogSNR().knots(SCHEDULE, 4, 1.0, 0.001)):
        a, b = (solve(s, ring(), start(), knots, noise=White(2)) for s in (one, other))
        assert torch.allclose(a.x, b.x, rtol=0, atol=1e-11)
        assert a.calls == b.calls


def test_the_stage_s_noise_is_the_first_part_of_the_step_s():
    """The increments of a run are the pieces of one path: t to m and m to s."""
    asked = alone(DPMSolverPPSDE(r=0.25), gaussian(), down(3))[1]
    spans = sorted(name[1:3] for name in asked)
    assert len(spans) == 6
    assert all(a[1] == b[0] for a, b in pairwise(spans))


# --- edges -----------------------------------------------------------------------------------------------------------

EVERY = [DPMSolver(), DPMSolverPP(), DPMSolver(2, inner="time"), DPMSolver(3, inner="quadratic"), ExponentialRungeKutta(), DEISRungeKutta()]
EVERY += [EDMHeun(), DPM2(), DPM2Ancestral(), DPMSolverPP2SAncestral(), DPMSolverPPSDE(), EulerAncestral(), EulerAncestral(2.0)]
EVERY += [DPM2Ancestral(2.0), DPM2Ancestral(0.0), DPMSolverPPSDE(2.0), EDMHeun(churn=3.0, s_max=1.0, steps=6)]
IN_U = (DEISRungeKutta, EDMHeun)  # u = sigma/alpha is infinite at alpha = 0


@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_from_pure_noise_to_the_data(solver):
    """From alpha = 0 where the method allows it, to sigma = 0; the call count is exact there, too, and the end is finite."""
    schedule = FlowMatching()
    model = Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=schedule)
    knots = schedule.knots([0.99 if isinstance(solver, IN_U) else 1.0, 0.7, 0.4, 0.4, 0.1, 0.0])
    x = torch.randn(32, 2, dtype=torch.float64)
    run = solve(solver, model, x, knots, noise=White(0))
    assert run.calls == solver.calls(knots)
    assert bool(torch.isfinite(run.x).all())
    last = solve(solver, model, x, schedule.knots([0.1, 0.0]), noise=White(0))
    if not getattr(solver, "churn", 0.0):
        assert torch.allclose(last.x, model(x, schedule.knot(0.1)).x0.tensor(), rtol=0, atol=1e-12)
        assert last.calls == 1


@pytest.mark.parametrize("solver", [s for s in EVERY if not s.facts.stochastic and not isinstance(s, IN_U)], ids=repr)
def test_encoding_from_the_data_and_back(solver):
    x, knots = ring().sample(32, SCHEDULE.knot(0.0), seed=3), (SCHEDULE.knot(0.0), *down(60)[::-1])
    up = solve(solver, ring(), x, knots)
    assert up.calls == solver.calls(knots)
    back = solve(solver, ring(), up.x, knots[::-1]).x
    assert float((back - x).square().mean().sqrt()) < 0.05


def test_churn_is_fresh_at_every_step_and_the_same_in_any_batch():
    solver = EDMHeun(churn=3.0, s_max=4.0, steps=9)
    names = alone(solver, gaussian(), down(9))[1]
    assert {name[0] for name in names} == {"fresh"}
    assert len(names) == sum(k.u <= 4.0 for k in down(9)[:-1])
    together = solve(solver, ring(), start(), down(9), noise=White(1)).x
    by_itself = solve(solver, ring(), start()[5:6], down(9), noise=White(1).on(start()[5:6], range(5, 6))).x
    assert torch.allclose(by_itself, together[5:6], rtol=0, atol=1e-12)


def test_the_limit_on_gamma():
    """gamma = min(churn/N, sqrt(2) - 1): beyond it more churn changes nothing."""
    most = EDMHeun(churn=9 * (math.sqrt(2) - 1), s_max=4.0, steps=9)
    a, b, c = (
        solve(s, ring(), start(), down(9), noise=White(1)).x
        for s in (most, EDMHeun(1e3, 0.0, 4.0, steps=9), EDMHeun(3.0, 0.0, 4.0, steps=9))
    )
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert not torch.allclose(a, c, atol=1e-3)


WRONG = [
    (lambda: DPMSolver(4), "order"),
    (lambda: DPMSolver(0), "order"),
    (lambda: DPMSolver(kind="tailor"), "Did you mean 'taylor'"),
    (lambda: DPMSolver(2, r1=0.0), r"\(0, 1\]"),
    (lambda: DPMSolver(2, r1="half"), r"\(0, 1\]"),
    (lambda: DPMSolverPP(3, r1=2 / 3), "two different stages"),
    (lambda: DPMSolverPP(2, r1=0.5, inner="time"), "leave r1 and r2 out"),
    (lambda: DPMSolverPP(inner="t"), "inner"),
    (lambda: ExponentialRungeKutta("krogstaad"), "Did you mean 'krogstad'"),
    (lambda: ExponentialRungeKutta(3), "ExponentialTableau"),  # type: ignore[arg-type]
    (lambda: DEISRungeKutta("4rk"), "rk4"),
    (lambda: EDMHeun(churn=10.0), "steps=18"),
    (lambda: EDMHeun(churn=-1.0, steps=4), "churn"),
    (lambda: EDMHeun(s_noise=float("nan")), "s_noise"),
    (lambda: EDMHeun(alpha=0.0), "alpha"),
    (lambda: EDMHeun(steps=0), "steps"),
    (lambda: DPM2(1.5), "log sigma"),
    (lambda: EulerAncestral(-1.0), "eta"),
    (lambda: DPMSolverPPSDE(r=0.0), "r is the place"),
    (lambda: EDMHeun(churn=10.0, steps=5).inverse, "no inverse"),
    (lambda: DPM2Ancestral().inverse, "no inverse"),
]


@pytest.mark.parametrize(("made", "says"), WRONG)
def test_bad_options_say_what_to_do(made, says):
    with pytest.raises(UserError, match=says):
        made()


def test_bad_runs_say_what_to_do():
    with pytest.raises(UserError, match="s_max below"):
        solve(EDMHeun(churn=3.0, steps=5), ring(), start(), LogSNR().knots(SCHEDULE, 5, 1.0, 0.01), noise=White(0))
    for solver in (EulerAncestral(), DPM2Ancestral(), DPMSolverPPSDE(), EDMHeun(churn=3.0, s_max=4.0, steps=5)):
        with pytest.raises(UserError, match="noise=White"):
            solve(solver, ring(), start(), down(5))


def test_exponential_tableaux_rebuild_from_their_repr():
    solver = ExponentialRungeKutta(res3(0.4, 0.8))
    assert named(repr(solver)) == solver
    assert isinstance(solver.tableau, ExponentialTableau)
    assert Euler().order == ExponentialRungeKutta("euler").order == 1
