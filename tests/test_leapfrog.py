"""Methods that are undone to the last bit: on any input, on any knots, in any float type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sdediff import (
    PID,
    AngleUniform,
    AsynchronousLeapfrog,
    FlowMatching,
    Leapfrog,
    Milne,
    Mixture,
    ModelError,
    Prediction,
    SciPy,
    UserError,
    VPCosine,
    VPLinear,
    solve,
)
from sdediff.bits import bits, missing, repaired, to_fixed, to_float

SCHEDULE = VPLinear()
RULES = [AsynchronousLeapfrog(), AsynchronousLeapfrog(4), Leapfrog(), Milne()]
FORMS = [
    *RULES,
    AsynchronousLeapfrog(2, 1.0, "root"),
    AsynchronousLeapfrog(2, 0.5, "angle"),
    AsynchronousLeapfrog(4, 1.0, "lam"),
    Leapfrog(0.5, "lam"),
    Milne(0.5, "angle"),
]


def mixture(schedule=SCHEDULE) -> Mixture:
    a = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(0.7 * torch.stack([a.cos(), a.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=schedule)


def upward(n: int, schedule=SCHEDULE):
    return AngleUniform("roots").knots(schedule, n)[::-1]


def returned(solver, model, x, knots, memory=True):
    """(up, back) of a run there and back."""
    up = solve(solver.inverse, model, x, knots)
    return up, solve(solver, model, up.x, knots[::-1], memory=up.memory if memory else None)


# --- to the bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", FORMS, ids=repr)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_a_run_comes_back_to_the_bit(solver, steps):
    x = mixture().sample(64, seed=3).float()
    up, back = returned(solver, mixture(), x, upward(steps))
    assert torch.equal(back.x, solver.held(x, up.knots[0]))
    assert float((back.x - x).abs().max()) < 1e-6
    assert up.calls == solver.calls(up.knots)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", RULES, ids=repr)
def test_all_that_the_integers_hold_comes_back_exactly(solver, dtype):
    """The memory too: the integers themselves, not only what is read from them."""
    x = mixture().sample(64, seed=3).to(dtype)
    up, back = returned(solver, mixture(), x, upward(20))
    again = solve(solver.inverse, mixture(), back.x, up.knots, memory=back.memory)
    places = 2 if isinstance(solver, AsynchronousLeapfrog) else solver.width
    assert all(torch.equal(a, b) for a, b in zip(again.memory.tensors[:places], up.memory.tensors[:places], strict=True))
    assert back.memory.tensors[0].dtype == torch.int64


FLOATS = arrays.arrays(np.uint32, (100, 2), elements=st.integers(0, 2**32 - 1))
EDGES = [0.0, -0.0, 1e-20, -1e-45, 1e-38, 2.0**-44, 0.1, 1 - 2**-24, 3e5, -1e30, 3.4e38]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FLOATS, st.sampled_from(RULES), st.integers(1, 8))
def test_any_float32_comes_back_to_the_bit(raw, solver, steps):
    """10,000 pairs of any bits but NaN and infinity, denormals and -0.0 among them: what integers cannot hold is in the rest."""
    x = torch.from_numpy(raw.view(np.float32).copy())
    x = torch.where(torch.isfinite(x), x, 0.5)
    flat = x.flatten()
    flat[: len(EDGES)] = torch.tensor(EDGES)
    _, back = returned(solver, mixture(), x, upward(steps))
    held = solver.held(x, upward(steps)[0])
    assert torch.equal(bits(back.x), bits(held))
    assert torch.equal(bits(repaired(back.x, missing(x, held))), bits(x))


@settings(max_examples=40, deadline=None)
@example([0.001, 0.0010000000000000002], AsynchronousLeapfrog())  # different times, the same reading of the clock
@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=12, unique=True), st.sampled_from(FORMS))
def test_any_knots_will_do(times, solver):
    knots = SCHEDULE.knots(sorted(times))
    x = mixture().sample(16, seed=1)
    up, back = returned(solver, mixture(), x, knots)
    assert torch.equal(back.x, solver.held(x, knots[0]))
    assert up.calls == solver.calls(knots)


@pytest.mark.parametrize("atol", [1e-2, 1e-3])
def test_steps_of_each_sample_s_own_come_back_to_the_bit(atol):
    solver, x = AsynchronousLeapfrog(), mixture().sample(32, seed=2).float()
    up = solve(solver, mixture(), x, PID(atol=atol, times=(SCHEDULE.t_min, SCHEDULE.t_max)))
    assert len(set(up.each)) > 1
    back = solve(solver, mixture(), up.x, up.recorded.reverse, memory=up.memory)
    assert torch.equal(back.x, solver.held(x, SCHEDULE.knot(SCHEDULE.t_min)))


@pytest.mark.parametrize("schedule", [VPCosine(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("solver", RULES, ids=repr)
def test_from_the_data_itself_to_pure_noise(solver, schedule):
    """sigma = 0 at one end, alpha = 0 at the other: the clocks on the angle are finite at both."""
    knots = AngleUniform("roots").knots(schedule, 12, end=0.0)[::-1]
    x = mixture(schedule).sample(16, seed=1)
    up, back = returned(solver, mixture(schedule), x, knots)
    assert bool(torch.isfinite(up.x).all())
    assert torch.equal(back.x, solver.held(x, knots[0]))


def test_one_unit_is_enough_to_be_seen():
    """The laws above can fail: another step size, one bit in the memory, a network that answers differently the second time."""
    solver, x, knots = AsynchronousLeapfrog(), mixture().sample(16, seed=3), upward(20)
    up = solve(solver, mixture(), x, knots)
    held = solver.held(x, knots[0])
    other = [SCHEDULE.knot(k.time * (1 + 1e-12)) if 0 < i < 20 else k for i, k in enumerate(knots)]
    assert not torch.equal(solve(solver, mixture(), up.x, other[::-1], memory=up.memory).x, held)
    y, v, f = up.memory.tensors
    memory = up.memory._replace(tensors=(y + 1, v, f))
    assert not torch.equal(solve(solver, mixture(), up.x, knots[::-1], memory=memory).x, held)
    assert not torch.equal(solve(solver, Restless(mixture()), up.x, knots[::-1], memory=up.memory).x, held)


class Restless:
    """A model whose answer changes a little with every call."""

    def __init__(self, model):
        self.model, self.schedule, self.shape, self.count = model, model.schedule, model.shape, 0

    def __call__(self, x, t):
        p, self.count = self.model(x, t), self.count + 1
        return Prediction(x, t, p.value * (1 + 1e-9 * self.count), p.kind)

    def rows(self, index):
        return self


# --- order and cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", FORMS, ids=repr)
def test_the_order_on_its_own_clock(solver):
    model, x = mixture(), mixture().sample(64, SCHEDULE.knot(0.02), seed=3)
    ends = {"start": 0.9, "end": 0.02}
    exact = solve(SciPy("DOP853", 1e-12, 1e-12), model, x, AngleUniform().knots(SCHEDULE, 1, **ends)[::-1]).x
    errors = []
    for n in (80, 160):
        if solver.clock == "lam":
            knots = [
                SCHEDULE.knot(0.02),
                *(SCHEDULE.knot_at("lam", v) for v in np.linspace(lam(0.02), lam(0.9), n + 1)[1:-1]),
                SCHEDULE.knot(0.9),
            ]
        else:
            knots = AngleUniform(solver.clock).knots(SCHEDULE, n, **ends)[::-1]
        errors.append(float((solve(solver, model, x, knots).x - exact).square().mean(1).sqrt().median()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.35), errors


def lam(t: float) -> float:
    return SCHEDULE.knot(t).lam


def test_a_composed_step_is_five_steps():
    """Order 4 is order 2 on the shares w of the step: McLachlan's conditions sum w = 1, sum w^3 = 0."""
    from sdediff.solvers.asynchronous import _FRACTIONS

    w = _FRACTIONS[4]
    assert sum(w) == pytest.approx(1, abs=1e-15)
    assert sum(x**3 for x in w) == pytest.approx(0, abs=1e-15)
    assert w == w[::-1]


def test_calls():
    knots = upward(10)
    assert [s.calls(knots) for s in RULES] == [11, 51, 2 + 9, 3 * 4 + 7]
    _, back = returned(Milne(), mixture(), mixture().sample(4, seed=0), knots)
    assert back.calls == 7 - 1  # three steps to known states, one whose velocities are known too, six with a call
    assert AsynchronousLeapfrog().calls((knots[0], knots[0], knots[1])) == 2


def test_a_run_that_turns_before_its_window_is_full_begins_anew():
    """Two steps up, and down past the start: there is no fourth state to go back from."""
    knots, x = SCHEDULE.knots([0.3, 0.35, 0.4]), mixture().sample(8, SCHEDULE.knot(0.3), seed=0)
    up = solve(Milne(), mixture(), x, knots)
    down = solve(Milne(), mixture(), up.x, [*knots[::-1], SCHEDULE.knot(0.28)], memory=up.memory)
    assert down.calls == 4
    assert torch.equal(down.x, solve(Milne(), mixture(), Milne().held(x, knots[0]), [knots[0], SCHEDULE.knot(0.28)]).x)


def test_floats_take_the_same_steps():
    x, knots = mixture().sample(16, seed=3), upward(20)
    for solver in RULES:
        floats, memory = solver.smooth(solve(solver, mixture(), x, knots).memory)
        assert not floats.bits
        assert memory.tensors[0].dtype == torch.float64
        assert torch.allclose(solve(floats, mixture(), x, knots).x, solve(solver, mixture(), x, knots).x, rtol=0, atol=1e-11)
        assert floats.facts.inverse == "exact"


def test_gradients_flow_through_the_float_form():
    x = mixture().sample(4, seed=3).requires_grad_()
    for solver in RULES:
        (g,) = torch.autograd.grad(
            solve(solver.smooth(solver.init(mixture(), x.detach(), upward(5)[0]))[0], mixture(), x, upward(5), grad=True).x.sum(), x
        )
        assert float(g.abs().min()) > 0


# --- numbers ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_the_rest_repairs_any_float(values, dtype):
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    near = to_float(to_fixed(torch.nan_to_num(x))).to(dtype)
    assert torch.equal(bits(repaired(near, missing(x, near))), bits(x))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-500, 500), min_size=1))
def test_fixed_point_holds_unit_variance_to_6e_14(values):
    x = torch.tensor(values, dtype=torch.float64)
    assert float((to_float(to_fixed(x)) - x).abs().max()) <= 2.0**-45


def test_numbers_beyond_the_limit_are_held_at_it():
    assert to_float(to_fixed(torch.tensor([1e30, -3e38, 2.0**18]))).tolist() == [2.0**18, -(2.0**18), 2.0**18]


# --- bad input ----------------------------------------------------------------------------------------------------


def test_what_no_integer_can_hold_is_refused():
    knots, x = upward(5), mixture().sample(4, seed=0)
    for solver in RULES:
        for bad in (math.nan, math.inf):
            with pytest.raises(UserError, match="NaN or infinity"):
                solve(solver, mixture(), x.masked_fill(torch.eye(4, 2) > 0, bad), knots)

    class Broken(Restless):
        def __call__(self, x, t):
            p = self.model(x, t)
            return Prediction(x, t, p.value * (math.nan if t.time > 0.3 else 1.0), p.kind)

    with pytest.raises(ModelError, match="time 0"):
        solve(AsynchronousLeapfrog(), Broken(mixture()), x, knots)
    with pytest.raises(UserError, match="clock"):
        AsynchronousLeapfrog(clock="time")
    with pytest.raises(UserError, match="order"):
        AsynchronousLeapfrog(3)
    with pytest.raises(UserError, match="roots"):
        solve(AsynchronousLeapfrog(clock="lam"), mixture(VPCosine()), x, AngleUniform().knots(VPCosine(), 5, end=0.0))
    with pytest.raises(UserError, match="positive"):
        Leapfrog(data_std=0.0)
    with pytest.raises(UserError, match="clock"):
        AngleUniform("time")
