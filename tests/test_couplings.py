"""The exactly invertible couplings: what is undone, to which digit, and what they are equal to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from certificates import QUICK, certify

from sdediff import (
    BDIA,
    DDIM,
    DDPM,
    EDICT,
    OBELM,
    Angle,
    Brownian,
    DPMSolverPP,
    Euler,
    ExponentialRungeKutta,
    FlowMatching,
    Gaussian,
    Heun,
    Inverse,
    Kept,
    LogSNR,
    Mixture,
    OneStep,
    Quadratic,
    Reversible,
    ReversibleHeun,
    Rex,
    RungeKutta,
    Sigma,
    Time,
    Uniform,
    UserError,
    VPLinear,
    White,
    solve,
)  # fmt: skip
from sdediff.solvers import named

SCHEDULE = VPLinear()
NOISE = Brownian(4, (1e-3, 1.0))
SOLVERS = [
    EDICT(),
    EDICT(leapfrog=False),
    EDICT(0.8),
    BDIA(),
    BDIA(0.9),
    BDIA(0.5),
    OBELM(),
    ReversibleHeun(),
    ReversibleHeun(Sigma()),
    ReversibleHeun(Time()),
    ReversibleHeun(Time(), eta=1.0),
    Reversible(),
    Reversible("euler", couple=0.9),
    Reversible("rk4", couple=1.0, coordinates=Time()),
    Reversible("rk3", coordinates=Sigma()),
    Reversible(Heun(), coordinates=Angle(0.5)),
    Reversible(DPMSolverPP(order=2)),
    Reversible(ExponentialRungeKutta("etd3rk")),
    Rex(),
    Rex("rk4", "eps"),
    Rex("euler", "x0", 0.9),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
DETERMINISTIC = [s for s in SOLVERS if not s.facts.stochastic]
# what grows on the way: what is coupled in x/alpha when it goes up, by the span of 1/alpha and more; the paths of an SDE run backwards
FRAGILE = {
    Rex("rk4", "eps"): (1e-11, 1e-2),
    Reversible("rk3", coordinates=Sigma()): (1e-11, 1e-2),
    ReversibleHeun(Sigma()): (1e-12, 1e-4),
    ReversibleHeun(Time(), eta=1.0): (1e-11, 3e-3),
}
FEW = (BDIA(0.5), EDICT(0.8))  # their inverses lose a factor of 2, of 1.6 a step: not for 40 steps


def ring() -> Mixture:
    means = 0.7 * torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in np.arange(5) * 2 * math.pi / 5]).double()
    return Mixture(means, [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=SCHEDULE)


def wide() -> Mixture:
    means = 0.5 * torch.randn(6, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Mixture(means, torch.linspace(0.1, 0.3, 6), torch.arange(1, 7), schedule=SCHEDULE)


MODELS = {"ring": ring(), "wide": wide()}


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def there_and_back(solver, model, x, knots, noise=NOISE):
    """(error of the round trip, the latent) of the inverse over the knots and the solver over them reversed, with the memory."""
    run = solve(solver.inverse, model, x, knots, noise=noise)
    back = solve(solver, model, run.x, knots[::-1], memory=run.memory, noise=noise)
    assert back.x.dtype == run.x.dtype == x.dtype
    return rms(back.x - x), run.x


# --- exactly ------------------------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_round_trips_with_the_memory(solver, model, up):
    knots = LogSNR().knots(SCHEDULE, 1, 0.9, 0.02)
    x = model.sample(32, knots[1 if up else 0], seed=2)
    assert solver.inverse.inverse == solver
    assert solver.facts.inverse == "exact"
    double, single = FRAGILE.get(solver, (1e-12, 1e-5))
    for grid, n in ((Quadratic(), 10), (LogSNR(), 10), (LogSNR(), 40))[: 2 if solver in FEW else 3]:
        knots = grid.knots(SCHEDULE, n, 0.9, 0.02)[:: -1 if up else 1]
        assert there_and_back(solver, model, x, knots)[0] < double
        assert there_and_back(solver, model, x.float(), knots)[0] < single


def test_gamma_below_one_costs_a_factor_of_one_over_gamma_a_step():
    x, knots = MODELS["ring"].sample(32, SCHEDULE.knot(0.02), seed=2), LogSNR().knots(SCHEDULE, 40, 0.9, 0.02)[::-1]
    latents = {}
    for gamma in (1.0, 0.9, 0.5):
        error, latents[gamma] = there_and_back(BDIA(gamma), MODELS["ring"], x, knots)
        assert error < 1e-15 * max(1e2, rms(latents[gamma]))
    assert rms(latents[1.0]) < 2
    assert rms(latents[0.5]) > 1e6
    plain = solve(DDIM(), MODELS["ring"], x, knots).x
    for gamma, worst in ((1.0, 0.1), (0.9, 0.3)):
        assert rms(latents[gamma] - plain) < worst


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, BDIA | OBELM)], ids=repr)
@pytest.mark.parametrize("noise", [NOISE, White(3)], ids=repr)
def test_one_step_is_undone_whatever_the_memory(solver, noise):
    """Not only near the solution: for any pair of states, down and up, a step and its inverse are the identity on both."""
    rng, model = torch.Generator().manual_seed(1), MODELS["ring"]
    for t, s in pairwise(SCHEDULE.knots([0.6, 0.5, 0.45, 0.7, 0.2, 0.8])):
        x, y = torch.randn(2, 8, 2, generator=rng).double()
        memory = solver.init(model, x, t)
        memory = memory._replace(tensors=(y, *solver.init(model, y, t).tensors[1:]), turn=3)
        bound = noise.on(x)
        new = solver.step(model, x, t, s, memory, bound)
        old = solver.inverse.step(model, new.x, s, t, new.memory, bound)
        assert torch.allclose(old.x, x, rtol=0, atol=1e-12)
        assert torch.allclose(old.memory.tensors[0], y, rtol=0, atol=1e-12)
        assert old.memory.turn in (0, 3)  # the others do not count


@pytest.mark.parametrize("solver", [BDIA(), BDIA(0.5), OBELM()], ids=repr)
def test_the_rule_of_two_steps_is_undone_for_any_states(solver):
    """x_s from (x_t, x_r), then x_r from (x_t, x_s); O-BELM by the very same rule, on any three knots."""
    rng, model = torch.Generator().manual_seed(1), MODELS["ring"]
    for times in ([0.6, 0.5, 0.45], [0.3, 0.5, 0.9], [0.5, 0.52, 0.1]):
        r, t, s = SCHEDULE.knots(times)
        x, before = torch.randn(2, 8, 2, generator=rng).double()
        new = solver.step(model, x, t, s, Kept((before,), (r,)), None)
        assert torch.equal(new.memory.tensors[0], x)
        assert new.memory.knots == (t,)
        swapped = solver.inverse.step(model, new.x, s, t, new.memory, None)
        assert torch.equal(swapped.x, x)
        assert torch.equal(swapped.memory.tensors[0], new.x)
        old = solver.inverse.step(model, swapped.x, t, r, swapped.memory, None)
        assert torch.allclose(old.x, before, rtol=0, atol=1e-12)
        again = solver.inverse.step(model, old.x, r, t, old.memory, None)
        assert torch.equal(again.x, x)


def test_the_noise_of_the_reverse_sde_is_the_same_both_ways():
    """Down by the SDE and up again over the same noise; over another, or without any, it is not undone."""
    solver, model, knots = ReversibleHeun(Time(), eta=1.0), MODELS["ring"], Uniform().knots(SCHEDULE, 20, 0.9, 0.1)
    x = model.sample(16, knots[0], seed=2)
    for noise in (NOISE, White(7)):
        run = solve(solver, model, x, knots, noise=noise)
        assert rms(solve(solver, model, run.x, knots[::-1], memory=run.memory, noise=noise).x - x) < 1e-12
        assert rms(solve(solver, model, run.x, knots[::-1], memory=run.memory, noise=White(8)).x - x) > 0.1
    with pytest.raises(UserError, match="noise=White"):
        solve(solver, model, x, knots)


def test_the_orders_to_the_reverse_sde_on_a_short_span():
    for eta in (0.5, 1.0):
        found = certify(ReversibleHeun(Time(), eta=eta), QUICK)
        assert not found.wrong
        assert {m.kind for m in found.measures} == {"strong", "weak"}


def test_both_ends_of_the_schedule():
    """To sigma = 0 and back is exact; from alpha = 0 it is exact, or one sentence says what to do."""
    for schedule in (SCHEDULE, FlowMatching()):
        model = Gaussian([0.5, 0.5], 0.3, schedule=schedule)
        for solver in DETERMINISTIC:
            knots = Uniform().knots(schedule, 6, start=0.9, end=0.0)
            x = model.sample(8, knots[0], seed=1)
            try:
                run = solve(solver, model, x, knots)
            except UserError as said:
                assert Time() in (getattr(solver, "coordinates", None),)
                assert "short of it" in str(said)  # noqa: PT017
                continue
            assert torch.isfinite(run.x).all()
            assert rms(solve(solver.inverse, model, run.x, knots[::-1], memory=run.memory).x - x) < 1e-12
    knots, finite = Uniform().knots(FlowMatching(), 6, end=0.0), []
    for solver in DETERMINISTIC:
        try:
            run = solve(solver, model, x, knots)
        except UserError as said:
            assert "short of it" in str(said)  # noqa: PT017
            continue
        assert rms(solve(solver.inverse, model, run.x, knots[::-1], memory=run.memory).x - x) < 1e-12
        finite.append(solver)
    assert {BDIA(), ReversibleHeun(), Reversible(), Rex(), Rex("rk4", "eps")} <= set(finite)
    assert not {OBELM(), EDICT()} & set(finite)


def test_a_wrong_coefficient_is_not_undone():
    @dataclass(frozen=True)
    class Off(OBELM):
        def _rule(self, model, x, t, s, before, r, undo):
            return super()._rule(model, x, t, s, before, r, undo) + 1e-3 * before

    knots = LogSNR().knots(SCHEDULE, 10, 0.9, 0.02)
    assert there_and_back(Off(), MODELS["ring"], MODELS["ring"].sample(32, knots[0], seed=2), knots)[0] > 1e-3


# --- what they are equal to ---------------------------------------------------------------------------------------


def ends(*solvers, n=12, end=0.02):
    knots = LogSNR().knots(SCHEDULE, n, 0.9, end)
    x = MODELS["ring"].sample(16, knots[0], seed=2)
    return [solve(s, MODELS["ring"], x, knots).x for s in solvers]


@pytest.mark.parametrize(
    "same",
    [
        (Rex("rk4", "eps"), Reversible("rk4", coordinates=Sigma()), Reversible(RungeKutta("rk4", Sigma()), coordinates=Sigma())),
        (Reversible(), Reversible(RungeKutta("midpoint", Angle())), Reversible(RungeKutta("midpoint", Angle()), coordinates=Time())),
        (Reversible(DDIM_BASE := Euler(Sigma()), coordinates=Sigma()), Rex("euler", "eps"), Reversible("euler", coordinates=Sigma())),
        (Reversible("heun", couple=0.9, coordinates=Sigma()), Reversible(Heun(), couple=0.9, coordinates=Sigma())),
    ],
    ids=lambda s: repr(s[0]),
)
def test_different_names_of_one_method(same):
    first, *rest = ends(*same)
    assert all(torch.allclose(first, x, rtol=0, atol=1e-12) for x in rest)


def test_first_steps_and_limits():
    ddim, bdia, obelm = ends(DDIM(), BDIA(0.7), OBELM(), n=1)
    assert torch.equal(ddim, bdia)
    assert torch.equal(ddim, obelm)
    many, none = ends(DDIM(), BDIA(1e-13))  # gamma = 0 forgets the state before
    assert torch.allclose(many, none, rtol=0, atol=1e-10)
    # from equal states the coupling takes the base's own step; so does Rex of order 1, which is DDIM in both of its variables
    base, coupled = ends(DPMSolverPP(order=2), Reversible(DPMSolverPP(order=2), 0.7), n=1)
    assert torch.allclose(base, coupled, rtol=0, atol=1e-14)
    assert all(torch.allclose(ddim, x, rtol=0, atol=1e-13) for x in ends(Rex("euler", "x0"), Rex("euler", "eps"), n=1))


def test_obelm_on_equal_steps_in_sigma_over_alpha_is_the_leapfrog():
    knots = [SCHEDULE.knot_at("u", u) for u in (2.0, 1.5, 1.0)]
    r, t, s = knots
    x, before = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(1)).double()
    new = OBELM().step(MODELS["ring"], x, t, s, Kept((before,), (r,)), None).x
    expected = before / r.alpha - 2 * 0.5 * MODELS["ring"](x, t).eps.tensor()
    assert torch.allclose(new / s.alpha, expected, rtol=0, atol=1e-12)


def test_edict_written_out():
    """Wallace et al., eq. 14 and 15, in their letters; with leapfrog the two change roles in the second step."""
    model, (t, s, r) = MODELS["ring"], SCHEDULE.knots([0.5, 0.4, 0.3])
    x = y = model.sample(8, t, seed=2)
    run = solve(EDICT(0.9), model, x, (t, s, r))
    for leads, (now, to) in enumerate(((t, s), (s, r))):
        a = to.alpha / now.alpha
        b = to.sigma - now.sigma * a
        pair = [y, x] if leads else [x, y]
        pair[0] = a * pair[0] + b * model(pair[1], now).eps.tensor()
        pair[1] = a * pair[1] + b * model(pair[0], now).eps.tensor()
        x, y = pair[::-1] if leads else pair
        x = 0.9 * x + 0.1 * y
        y = 0.9 * y + 0.1 * x
    assert torch.allclose(run.x, x, rtol=0, atol=1e-13)
    assert torch.allclose(run.memory.tensors[0], y, rtol=0, atol=1e-13)
    assert run.memory.turn == 2


def test_edict_keeps_the_digits_that_the_state_has_no_room_for():
    model, knots = MODELS["ring"], LogSNR().knots(SCHEDULE, 10, 0.9, 0.02)
    x = model.sample(8, knots[0], seed=2).float()
    run = solve(EDICT(), model, x, knots)
    y, rounded = run.memory.tensors
    assert (run.x.dtype, y.dtype, rounded.dtype) == (torch.float32, torch.float64, torch.float32)
    assert 0 < float(rounded.abs().max()) < 1e-7
    assert len(solve(EDICT(), model, x.double(), knots).memory.tensors) == 1


# --- counts, names, bad input -------------------------------------------------------------------------------------


@every_solver
def test_calls_are_counted_on_any_walk(solver):
    model = MODELS["ring"]
    for times in ([0.9, 0.5, 0.7, 0.5, 0.2], [0.9, 0.5, 0.5, 0.2], [0.2, 0.5, 0.2, 0.5], [0.9, 0.5, 0.2, 0.0]):
        knots = SCHEDULE.knots(times)
        if knots[-1].sigma == 0 and getattr(solver, "coordinates", None) == Time():
            continue  # raw time has no slope there
        x = model.sample(4, knots[0], seed=1)
        run = solve(solver, model, x, knots, noise=NOISE)
        assert run.calls == solver.calls(knots)
        again = solve(solver.inverse, model, x, knots, noise=NOISE)
        assert again.calls == solver.inverse.calls(knots)


@every_solver
def test_the_repr_rebuilds_it_and_its_inverse(solver):
    assert named(repr(solver)) == solver
    assert named(repr(solver.inverse)) == solver.inverse
    assert solver.inverse == (solver if isinstance(solver, OBELM | ReversibleHeun) else Inverse(solver))


@every_solver
def test_a_step_of_no_length_changes_nothing(solver):
    t, model = SCHEDULE.knot(0.5), MODELS["ring"]
    run = solve(solver, model, model.sample(4, SCHEDULE.knot(0.6), seed=1), SCHEDULE.knots([0.6, 0.5]), noise=NOISE)
    step = solver.step(model, run.x, t, t, run.memory, NOISE.on(run.x))
    if not isinstance(solver, EDICT):  # which mixes
        assert step.x is run.x
        assert step.memory is run.memory
        back = solver.inverse.step(model, run.x, t, t, run.memory, NOISE.on(run.x))
        assert back.x is run.x


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EDICT(0.0), "weight in"),
        (lambda: EDICT(1.1), "weight in"),
        (lambda: BDIA(0.0), "DDIM"),
        (lambda: BDIA("half"), "number in"),
        (lambda: ReversibleHeun(eta=0.5), r"ReversibleHeun\(Time\(\), eta=0.5\)"),
        (lambda: ReversibleHeun(Time(), eta=-1.0), "at least 0"),
        (lambda: ReversibleHeun("angle"), "coordinates must be"),
        (lambda: Reversible("midpont"), "Did you mean 'midpoint'"),
        (lambda: Reversible(DDPM()), "without memory and noise"),
        (lambda: Reversible(OBELM()), "without memory and noise"),
        (lambda: Reversible(couple=0.0), "0.999 is usual"),
        (lambda: Rex(couple=2.0), "0.999 is usual"),
        (lambda: Rex(predicts="v"), "choose one of"),
        (lambda: Rex("rk5"), "Did you mean"),
    ],
)
def test_options_that_cannot_be(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_the_base_may_be_any_explicit_one_step_method():
    bases = [b for b in (Euler(), Heun(), RungeKutta("ralston"), DPMSolverPP(), ExponentialRungeKutta()) if isinstance(b, OneStep)]
    assert len(bases) == 5
    for base in bases:
        solver = Reversible(base)
        assert (solver.order, solver.facts.ode, solver.facts.evals) == (base.order, base.facts.ode, 2 * base.facts.evals)
