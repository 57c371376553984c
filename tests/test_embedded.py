"""Embedded pairs, explicit and exponential: order conditions, measured orders of solution and error, calls, ends, arrays of knots."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import RK23, RK45

from sdediff import (
    Angle,
    DPMSolver,
    DPMSolverPP,
    EmbeddedExponential,
    EmbeddedRungeKutta,
    ExponentialRungeKutta,
    ExponentialTableau,
    FlowMatching,
    Gaussian,
    Linear,
    LogSNR,
    Mixture,
    RungeKutta,
    Schedule,
    SciPy,
    Sigma,
    Step,
    Tableau,
    Time,
    Uniform,
    UserError,
    VPLinear,
    solve,
)  # fmt: skip
from sdediff.phi import EXPONENTIAL_PAIRS, EXPONENTIAL_TABLEAUX, phi
from sdediff.prediction import Counted
from sdediff.solvers import named
from sdediff.weights import PAIRS, TABLEAUX

SCHEDULE = VPLinear()


def ring(schedule: Schedule = SCHEDULE) -> Mixture:
    a = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(0.7 * torch.stack([a.cos(), a.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=schedule)


def down(n: int):
    return LogSNR().knots(SCHEDULE, n, 0.9, 0.02)


def start(n: int = 64, t: float = 0.9) -> torch.Tensor:
    return ring().sample(n, SCHEDULE.knot(t), seed=1)


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return solve(SciPy("DOP853", 1e-12, 1e-12), ring(), start(), down(1)).x


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def error_of(step: Step) -> torch.Tensor:
    assert isinstance(step.error, Linear)
    return step.error.tensor()


# --- order conditions -----------------------------------------------------------------------------------------------
#
# A rooted tree is the sorted tuple of its root's branches. A method has order p if for every tree of at most p nodes the sum over its
# stages of b_i Phi_i(tree) is 1/gamma(tree) (Hairer, Norsett & Wanner I, theorem II.2.13).


def trees(n: int) -> list[tuple]:
    """All rooted trees with n nodes."""
    if n == 1:
        return [()]
    smaller = [tree for m in range(1, n) for tree in trees(m)]
    return [b for k in range(1, n) for b in combinations_with_replacement(smaller, k) if sum(map(nodes, b)) == n - 1]


def nodes(tree: tuple) -> int:
    return 1 + sum(map(nodes, tree))


def gamma(tree: tuple) -> int:
    return nodes(tree) * math.prod(map(gamma, tree))


def elementary(tree: tuple, a: np.ndarray) -> np.ndarray:
    """Phi_i of every stage."""
    found = np.ones(len(a))
    for branch in tree:
        found = found * (a @ elementary(branch, a))
    return found


def defect(weights, a: np.ndarray, order: int) -> float:
    """The largest defect of the conditions for trees of exactly `order` nodes."""
    return max(abs(float(np.asarray(weights) @ elementary(tree, a)) - 1 / gamma(tree)) for tree in trees(order))


def matrix(rows) -> np.ndarray:
    a = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        a[i, : len(row)] = row
    return a


def test_there_are_as_many_trees_as_there_should_be():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", PAIRS)
def test_order_conditions_of_the_pairs(name):
    pair = PAIRS[name].with_last_first()
    a, p = matrix(pair.a), pair.order
    assert pair.lower is not None
    assert max(defect(pair.b, a, n) for n in range(1, p + 1)) < 1e-12
    assert max(defect(pair.lower, a, n) for n in range(1, p)) < 1e-12
    assert defect(pair.b, a, p + 1) > 1e-4
    assert defect(pair.lower, a, p) > 1e-4
    assert pair.last_is_first
    assert pair.with_last_first() is pair


@pytest.mark.parametrize("name", [n for n in TABLEAUX if n != "euler"])
def test_the_plain_tableaux_meet_them_too(name):
    tableau = TABLEAUX[name]
    assert max(defect(tableau.b, matrix(tableau.a), n) for n in range(1, tableau.order + 1)) < 1e-12


@pytest.mark.parametrize(("name", "theirs"), [("dopri5", RK45), ("bosh3", RK23)])
def test_scipy_has_the_same_coefficients(name, theirs):
    pair = PAIRS[name]
    assert pair.lower is not None
    n = theirs.n_stages
    assert np.allclose(matrix(pair.a)[:n, : theirs.A.shape[1]], theirs.A, rtol=0, atol=1e-15)
    assert np.allclose(pair.b[:n], theirs.B, rtol=0, atol=1e-15)
    assert np.allclose(np.subtract(pair.lower, pair.b), theirs.E, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", EXPONENTIAL_PAIRS)
def test_order_conditions_of_the_exponential_pairs(name):
    """At z = 0 they are Runge-Kutta pairs; for every z the lower weights integrate polynomials of degree order - 2 exactly."""
    pair = EXPONENTIAL_PAIRS[name]
    stages, b, lower = pair.pair_weights(0.0)
    c = np.array([0.0, *pair.c, 1.0])
    a = np.zeros((len(c), len(c)))
    for i, row in enumerate([*stages, b], start=1):
        a[i, 1 : 1 + len(row)] = row
    a[:, 0] = c - a.sum(1)
    high, low = (np.array([1 - sum(w), *w]) for w in ((*b, 0.0), lower))
    p = pair.order
    assert max(defect(high, a, n) for n in range(1, p + 1)) < 1e-12
    assert max(defect(low, a, n) for n in range(1, p)) < 1e-12
    assert defect(low, a, p) > 1e-3
    for z in (-0.3, -2.0, 1.0):
        lower = pair.pair_weights(z)[2]
        for k in range(2, p):
            assert sum(w * x ** (k - 1) / math.factorial(k - 1) for w, x in zip(lower, c[1:], strict=True)) == pytest.approx(
                phi(k, z), abs=1e-13
            )


# --- measured orders ------------------------------------------------------------------------------------------------

SOLVERS = [EmbeddedRungeKutta(p) for p in PAIRS] + [EmbeddedRungeKutta("bosh3", c) for c in (Sigma(), Time(), Angle(0.5))]
SOLVERS += [EmbeddedExponential(p) for p in EXPONENTIAL_PAIRS]
everyone = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


@everyone
def test_order_to_the_probability_flow(solver, exact):
    counts = {5: (48, 96), 4: (80, 160)}.get(solver.order, (120, 240))
    errors = [rms(solve(solver, ring(), start(), down(n)).x - exact) for n in counts]
    # Tsitouras's pair is near order six until steps are far too small to be told from rounding
    assert solver.order - 0.15 < math.log2(errors[0] / errors[1]) < solver.order + (0.9 if solver.order == 5 else 0.15), errors
    assert named(repr(solver)) == solver
    assert solver.inverse == solver


@everyone
def test_order_of_the_error_estimate(solver):
    t, model = SCHEDULE.knot(0.4), ring()
    x = model.sample(64, t, seed=2)
    memory, sizes = solver.init(model, x, t), []
    for h in (0.04, 0.02):
        step = solver.step(model, x, t, t.at(lam=t.lam + h), memory)
        assert step.error_order == solver.order
        sizes.append(rms(error_of(step)))
    assert math.log2(sizes[0] / sizes[1]) == pytest.approx(solver.order, abs=0.15)


@everyone
def test_the_error_is_the_difference_of_two_solutions(solver):
    t, s, model, x = SCHEDULE.knot(0.4), SCHEDULE.knot(0.3), ring(), start(t=0.4)
    step = solver.step(model, x, t, s, solver.init(model, x, t))
    if isinstance(solver, EmbeddedRungeKutta):
        pair = PAIRS[str(solver.pair)]
        assert pair.lower is not None
        high, low = (RungeKutta(Tableau(pair.a, w, 1), solver.coordinates).step(model, x, t, s).x for w in (pair.b, pair.lower))
    else:
        pair, plain = EXPONENTIAL_PAIRS[solver.pair], EXPONENTIAL_TABLEAUX[solver.pair]
        high = ExponentialRungeKutta(plain).step(model, x, t, s).x
        # the lower solution as a method of its own, with one stage more: the new state
        inside = ExponentialTableau((*plain.c, 1.0), (*plain.a, plain.b), pair.lower, 1)  # type: ignore[arg-type]
        low = ExponentialRungeKutta(inside).step(model, x, t, s).x
    assert torch.allclose(step.x, high, rtol=0, atol=1e-13)
    assert torch.allclose(step.x - error_of(step), low, rtol=0, atol=1e-13)


def test_the_same_steps_as_the_plain_method():
    for name in ("krogstad", "ho4", "ho3"):
        a, b = (solve(s, ring(), start(), down(9)).x for s in (EmbeddedExponential(name), ExponentialRungeKutta(name)))
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    pair = PAIRS["tsit5"]
    plain = RungeKutta(Tableau(pair.a, pair.b, 5), Time())
    assert torch.allclose(*(solve(s, ring(), start(), down(9)).x for s in (EmbeddedRungeKutta("tsit5", Time()), plain)), rtol=0, atol=1e-12)


# --- calls and memory -----------------------------------------------------------------------------------------------


@everyone
def test_a_step_costs_one_call_less_than_it_has_stages_also_if_rejected(solver):
    model, x, t = Counted(ring()), start(t=0.5), SCHEDULE.knot(0.5)
    cost = solver.facts.evals
    assert (
        cost
        == {"heun_euler": 2, "bosh3": 3, "dopri5": 6, "tsit5": 6, "etd2rk": 2, "res2": 2, "ho3": 3, "etd3rk": 3, "krogstad": 4, "ho4": 5}[
            solver.pair
        ]
    )
    memory = solver.init(model, x, t)
    assert model.calls == 1
    for tried, s in enumerate(SCHEDULE.knots([0.2, 0.3, 0.4]), start=1):  # two rejected, one accepted: the memory stays
        step = solver.step(model, x, t, s, memory)
        assert model.calls == 1 + tried * cost
        assert torch.equal(step.memory, solver.init(ring(), step.x, s))
    again = solver.step(model, x, t, t, memory)
    assert model.calls == 1 + 3 * cost
    assert torch.equal(again.x, x)
    assert again.memory is memory
    assert rms(error_of(again)) == 0.0


@everyone
def test_calls_of_a_run_that_touches_the_data_and_repeats_knots(solver):
    # Time() is singular at the data (dsigma/dt), the exponential ones are at lam = inf
    up = [] if isinstance(solver, EmbeddedExponential) or solver.coordinates == Time() else [0.0, 0.0, 0.1]
    knots = SCHEDULE.knots([0.9, 0.4, 0.4, 0.1, 0.0, *up])
    run = solve(solver, ring(), start(8), knots)
    assert run.calls == solver.calls(knots) == 1 + 2 * solver.facts.evals + 1 + (1 + solver.facts.evals if up else 0)
    assert bool(torch.isfinite(run.x).all())


def test_a_pair_of_one_s_own_gets_the_last_stage():
    """Fehlberg's 2(1) pair without its last stage, by values: it is FSAL, and so is what we make of the others."""
    own = Tableau(a=((), (1 / 2,), (1 / 256, 255 / 256)), b=(1 / 512, 255 / 256, 1 / 512), order=2, lower=(1 / 256, 255 / 256, 0.0))
    solver = EmbeddedRungeKutta(own, Sigma())
    assert named(repr(solver)) == solver
    assert solver.facts.evals == 3
    assert solve(solver, ring(), start(4), down(5)).calls == solver.calls(down(5)) == 16
    exponential = EmbeddedExponential(EXPONENTIAL_PAIRS["res2"])
    assert named(repr(exponential)) == exponential


# --- the ends, where sigma = 0 or alpha = 0 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [EmbeddedRungeKutta("dopri5"), EmbeddedRungeKutta("bosh3", Sigma()), EmbeddedRungeKutta("tsit5", Time()), EmbeddedExponential()],
    ids=repr,
)
def test_the_last_step_to_the_data_is_of_order_two_and_knows_its_error(solver):
    model, errors = ring(), []
    for time in (0.02, 0.01):
        t, s = SCHEDULE.knots([time, 0.0])
        x = model.sample(64, t, seed=2)
        true = solve(SciPy("DOP853", 1e-12, 1e-12, Angle()), model, x, [t, s]).x
        step = solver.step(model, x, t, s, solver.init(model, x, t))
        assert (step.memory, step.error_order) == (None, 2)
        euler = step.x - error_of(step)
        assert rms(euler - true) == pytest.approx(rms(error_of(step)), rel=0.2)
        errors.append(rms(step.x - true))
        assert errors[-1] < 0.3 * rms(error_of(step))
    assert errors[1] < 0.5 * errors[0]


def test_from_pure_noise():
    """At alpha = 0 the exponential pair's first step is the midpoint rule in alpha/sigma."""
    schedule = FlowMatching()
    model = Flow(ring(schedule))
    t, s = schedule.knots([1.0, 0.98])
    x = torch.randn(64, 2, dtype=torch.float64)
    true = solve(SciPy("DOP853", 1e-12, 1e-12, Angle()), model, x, [t, s]).x
    solver = EmbeddedExponential()
    step = solver.step(model, x, t, s, solver.init(model, x, t))
    ddim = step.x - error_of(step)
    assert rms(ddim - true) == pytest.approx(rms(error_of(step)), rel=0.1)
    assert rms(step.x - true) < 0.05 * rms(error_of(step))
    for knots in (schedule.knots([1.0, 0.7, 0.3, 0.0]), schedule.knots([1.0, 0.0])):
        run = solve(solver, model, x, knots)
        assert run.calls == solver.calls(knots)
        assert bool(torch.isfinite(run.x).all())
    angle = solve(EmbeddedRungeKutta("dopri5"), model, x, schedule.knots([1.0, 0.5, 0.0]))
    assert angle.calls == 1 + 6 + 1


class Flow:
    """The oracle read as a flow: it answers also at alpha = 0."""

    def __init__(self, model):
        self.model, self.schedule, self.shape = model, model.schedule, model.shape

    def __call__(self, x, t):
        p = self.model(x, t)
        return type(p)(x, t, p.flow.tensor(), "flow")

    def rows(self, index):
        return Flow(self.model.rows(index))


def test_what_they_cannot_do():
    with pytest.raises(UserError, match="no lower weights"):
        EmbeddedRungeKutta(TABLEAUX["rk4"])
    with pytest.raises(UserError, match="no lower weights"):
        EmbeddedExponential(EXPONENTIAL_TABLEAUX["krogstad"])
    with pytest.raises(UserError, match="Did you mean 'dopri5'"):
        EmbeddedRungeKutta("dopri")
    with pytest.raises(UserError, match="etd3rk"):
        EmbeddedExponential(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Angle"):
        EmbeddedRungeKutta("bosh3", "angle")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="as many as the weights"):
        Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2, lower=(1.0,))
    with pytest.raises(UserError, match="one more than b"):
        ExponentialTableau((0.5,), (), (((1, 1),),), 2, ((),))
    with pytest.raises(UserError, match="cannot begin at sigma = 0"):
        solve(EmbeddedExponential(), ring(), start(4), SCHEDULE.knots([0.0, 0.1, 0.2]))
    model, x = Flow(ring(FlowMatching())), torch.randn(4, 2, dtype=torch.float64)
    times = FlowMatching().knot(np.array([1.0, 1.0, 0.9, 1.0])), FlowMatching().knot(np.array([0.9, 0.8, 0.7, 0.9]))
    with pytest.raises(UserError, match="infinite at one of them"):
        EmbeddedRungeKutta("bosh3", Sigma()).step(model, x, *times, torch.zeros_like(x))
    with pytest.raises(UserError, match="no error estimate at"):
        DPMSolver(3).step(model, x, *times)


# --- one knot a sample ----------------------------------------------------------------------------------------------

ARRAYS = [EmbeddedRungeKutta(p, c) for p in ("heun_euler", "bosh3", "dopri5", "tsit5") for c in (Angle(), Time())]
ARRAYS += [EmbeddedRungeKutta("dopri5", Sigma())] + [EmbeddedExponential(p) for p in EXPONENTIAL_PAIRS]


@pytest.mark.parametrize("solver", ARRAYS, ids=repr)
def test_a_knot_a_sample_is_the_same_step_of_each_bitwise_alone(solver):
    """Samples in mid-run, at the ends sigma = 0 and alpha = 0, up and down in one batch: each as by itself, to the last bit."""
    schedule = FlowMatching()
    model = Flow(Gaussian([0.3, -0.2], [0.5, 0.1], schedule=schedule))  # elementwise
    first = 0.97 if getattr(solver, "coordinates", None) == Sigma() else 1.0
    t = np.array([0.9, 0.5, 0.3, 0.2, first, first, 0.1, 0.6])
    s = np.array([0.7, 0.3, 0.6, 0.0, 0.8, 0.0, 0.0, 0.599])
    x = torch.randn(8, 2, dtype=torch.float64)
    T, S = schedule.knot(t), schedule.knot(s)
    memory = solver.init(model, x, T)
    together = solver.step(model, x, T, S, memory)
    error = error_of(together)
    assert together.memory.shape == x.shape
    assert bool(torch.isfinite(together.memory).all())
    for i in range(8):
        one = slice(i, i + 1)
        alone = solver.step(model, x[one], schedule.knot(t[one]), schedule.knot(s[one]), memory[one])
        assert torch.equal(alone.x, together.x[one])
        assert torch.equal(alone.memory, together.memory[one])
        assert torch.equal(error_of(alone), error[one])
        plain = solver.step(model, x[one], schedule.knot(float(t[i])), schedule.knot(float(s[i])), memory[one])
        assert torch.allclose(plain.x, together.x[one], rtol=0, atol=1e-12)
        assert torch.allclose(error_of(plain), error[one], rtol=0, atol=1e-12)
        order = np.broadcast_to(together.error_order, (8,))[i]
        assert order == plain.error_order
        if plain.memory is not None:
            assert torch.allclose(plain.memory, together.memory[one], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "solver",
    [DPMSolver(3), DPMSolver(3, kind="taylor"), DPMSolverPP(2), DPMSolverPP(3, inner="quadratic"), DPMSolver(2, inner="time")],
    ids=repr,
)
def test_dpm_solver_takes_a_knot_a_sample(solver):
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE)
    t, s, x = np.array([0.9, 0.5, 0.3]), np.array([0.7, 0.1, 0.4]), torch.randn(3, 2, dtype=torch.float64)
    together = solver.step(model, x, SCHEDULE.knot(t), SCHEDULE.knot(s))
    for i in range(3):
        one = slice(i, i + 1)
        alone = solver.step(model, x[one], SCHEDULE.knot(t[one]), SCHEDULE.knot(s[one]))
        plain = solver.step(model, x[one], SCHEDULE.knot(float(t[i])), SCHEDULE.knot(float(s[i])))
        assert torch.equal(alone.x, together.x[one])
        assert torch.equal(error_of(alone), error_of(together)[one])
        assert torch.allclose(plain.x, together.x[one], rtol=0, atol=1e-13)
        assert torch.allclose(error_of(plain), error_of(together)[one], rtol=0, atol=1e-13)


def test_weights_of_an_array_are_those_of_each_element_in_any_company():
    z = np.concatenate([-np.logspace(-6, 2, 33), [0.0, -8.5, 3.0, 12.0], np.linspace(-20, 0, 17)])
    for pair in EXPONENTIAL_PAIRS.values():
        for together, alone in zip(
            _flat(pair.pair_weights(z)), zip(*(_flat(pair.pair_weights(z[i : i + 1])) for i in range(len(z))), strict=True), strict=True
        ):
            assert np.array_equal(np.broadcast_to(together, z.shape), np.concatenate([np.broadcast_to(w, 1) for w in alone]))
        for together, single in zip(
            _flat(pair.pair_weights(z)), zip(*(_flat(pair.pair_weights(float(v))) for v in z), strict=True), strict=True
        ):
            assert np.allclose(together, single, rtol=1e-13, atol=1e-15)


def _flat(weights) -> list:
    a, b, lower = weights
    return [*(w for row in a for w in row), *b, *lower]


def test_they_encode_and_decode():
    x = start(32, 0.02)
    for solver in (EmbeddedRungeKutta(), EmbeddedExponential()):
        up = solve(solver, ring(), x, down(40)[::-1]).x
        assert rms(solve(solver.inverse, ring(), up, down(40)).x - x) < 1e-4


def test_errors_are_summed_over_a_run():
    knots = Uniform().knots(SCHEDULE, 6, end=0.0)
    for solver in (EmbeddedRungeKutta("bosh3"), EmbeddedExponential("ho3"), DPMSolver(3)):
        run = solve(solver, ring(), start(8), knots, error=True)
        assert run.error is not None
        assert run.error.shape == (8,)
        assert bool((run.error > 0).all())
    assert all(a.time > b.time for a, b in pairwise(knots))
