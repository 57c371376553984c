"""Variable-step variable-order exponential Adams: every weight against an independent integral, orders, calls, memory."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff import (
    AdaptiveAdams,
    FlowMatching,
    Gaussian,
    Linear,
    LogSNR,
    Mixture,
    SciPy,
    UserError,
    VPLinear,
    march,
    solve,
)  # fmt: skip
from sdediff.prediction import Prediction
from sdediff.recorded import Recorded
from sdediff.solvers import named
from sdediff.solvers.adaptive_adams import History
from sdediff.weights import AXES, READINGS, axis_reading, exponential_adams, quadrature

SCHEDULE = VPLinear()
WIDTH = 12  # of the states in which basis vectors stand for readings


def ring(schedule=SCHEDULE) -> Mixture:
    a = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(0.7 * torch.stack([a.cos(), a.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=schedule)


def down(n: int):
    return LogSNR().knots(SCHEDULE, n, 0.9, 0.02)


def start(n: int = 32, t: float = 0.9) -> torch.Tensor:
    return ring().sample(n, SCHEDULE.knot(t), seed=1)


def tensor(x: torch.Tensor | Linear) -> torch.Tensor:
    return x.tensor() if isinstance(x, Linear) else x


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


# --- every weight -------------------------------------------------------------------------------------------------
#
# The state, the past readings and the new one are basis vectors: then a step's result is the list of its weights.


def basis(i: int, rows: int) -> torch.Tensor:
    out = torch.zeros(rows, WIDTH, dtype=torch.float64)
    out[:, i] = 1.0
    return out


class NewReading:
    """A model whose reading (of this kind) is the last basis vector, whatever the state."""

    schedule, shape = SCHEDULE, None

    def __init__(self, solver: AdaptiveAdams):
        self.solver = solver

    def __call__(self, x, t):
        value = basis(WIDTH - 1, len(x))
        if self.solver.predicts != "v" or self.solver.data_std == 1.0:
            return Prediction(x, t, value, self.solver.predicts)
        # velocity = -s/(r d) x0 + c d/r eps with x = alpha x0 + sigma eps: the eps of which the velocity is `value`
        alpha, sigma = (torch.as_tensor(np.reshape(v, (-1, 1))) for v in (t.alpha, t.sigma))
        d, r = self.solver.data_std, torch.sqrt((alpha * self.solver.data_std) ** 2 + sigma**2)
        a, b = -sigma / (r * d), alpha * d / r
        return Prediction(x, t, (value - a * x / alpha) / (b - a * sigma / alpha), "eps")

    def rows(self, index):
        return self


def expected(solver: AdaptiveAdams, t, s, nodes, new: bool, weigh=exponential_adams) -> np.ndarray:
    """Weights of (x, past readings, ..., new reading) of the step through these nodes and, for a corrector, through s."""
    all_nodes = [*nodes, s] if new else list(nodes)
    out = np.zeros(WIDTH)
    update = exponential_adams(solver.predicts, solver.axis, t, s, all_nodes, data_std=solver.data_std)
    weights = update.weights if weigh is exponential_adams else weigh(solver.predicts, solver.axis, t, s, all_nodes, 0.0, solver.data_std)
    out[0], out[1 : 1 + len(nodes)] = update.keep, weights[: len(nodes)]
    if new:
        out[-1] = weights[-1]
    return out


def remembered(solver: AdaptiveAdams, pasts, count) -> History:
    """Pasts: knots, newest first; places beyond them repeat the oldest."""
    n = solver.order + 1
    filled = [*pasts, *[pasts[-1]] * n][:n]
    rows = len(np.atleast_1d(pasts[0].time))
    readings = tuple(axis_reading(solver.axis, k, solver.data_std) for k in filled)
    return History(readings, tuple(basis(1 + min(j, len(pasts) - 1), rows) for j in range(n)), count)


solvers = st.builds(
    AdaptiveAdams,
    order=st.integers(1, 8),
    predicts=st.sampled_from(READINGS),
    axis=st.sampled_from(AXES),
    data_std=st.sampled_from([1.0, 0.5]),
)
gaps = st.lists(st.floats(0.08, 0.9), min_size=10, max_size=10)


def instants(gaps: list[float], upward: bool, shift: float) -> list:
    """Newest (the target) first: lam going down in the list for steps down, up for steps up."""
    lam = np.cumsum([0.0, *gaps])
    lam = (3.5 + shift - lam) if not upward else (-4.0 - shift + lam)
    return [SCHEDULE.knot_at("lam", float(v)) for v in np.clip(lam, -4.9, 6.0)]


def check_weights(found: torch.Tensor, wanted: np.ndarray, size: float = 0.0) -> None:
    assert np.allclose(found.numpy(), wanted, rtol=0, atol=1e-9 * max(1.0, size, np.abs(wanted).max()))


@settings(max_examples=120, deadline=None)
@given(solvers, gaps, st.booleans(), st.floats(-0.5, 0.5), st.integers(1, 9), st.integers(1, 8))
def test_every_weight_on_numbers(solver, gaps, upward, shift, count, limit):
    """Predictor, corrector, and the errors of this order and its neighbours, against closed forms and against quadrature."""
    s, t, *past = instants(gaps[:9], upward, shift)
    pasts = [t, *past][: min(count, solver.order + 1)]
    count = len(pasts)
    step = solver.at_order(limit).step(NewReading(solver), basis(0, 1), t, s, remembered(solver, pasts, count))
    k = min(limit, solver.order, count)
    nodes = pasts[:k]
    predicted, corrected = (expected(solver, t, s, nodes, new) for new in (False, True))
    size = float(np.abs(corrected).max())
    check_weights((step.x - tensor(step.error))[0], predicted, size)
    check_weights(step.x[0], corrected)
    assert np.all(step.error_order == k + 1)
    offered = {int(np.max(c.order)): c for c in step.choices if np.all(c.allowed)}
    assert set(offered) == {j for j in (k - 1, k + 1) if 1 <= j <= min(count, solver.order)}
    for j, choice in offered.items():
        wanted = expected(solver, t, s, pasts[:j], True) - expected(solver, t, s, pasts[:j], False)
        check_weights(tensor(choice.error)[0], wanted, size)
    if k <= 5:
        check_weights(step.x[0], expected(solver, t, s, nodes, True, quadrature))


@settings(max_examples=60, deadline=None)
@given(solvers, st.data())
def test_every_weight_on_arrays(solver, data):
    """Each sample with its own instants, direction, length of history and order: the weights of each, bitwise as alone."""
    rows = data.draw(st.integers(2, 4))
    upward = [data.draw(st.booleans()) for _ in range(rows)]
    grids = [instants(data.draw(gaps), up, data.draw(st.floats(-0.5, 0.5))) for up in upward]
    most = solver.order + 1
    count = np.array([data.draw(st.integers(1, most)) for _ in range(rows)])
    limit = np.array([data.draw(st.integers(1, 8)) for _ in range(rows)], dtype=float)
    columns = [SCHEDULE.knot(np.array([g[j].time for g in grids])) for j in range(most + 1)]
    s, t = columns[0], columns[1]
    memory = remembered(solver, columns[1:], count)
    x = basis(0, rows)
    step = solver.at_order(limit).step(NewReading(solver), x, t, s, memory)
    for i, grid in enumerate(grids):
        k = int(min(limit[i], solver.order, count[i]))
        knots = [SCHEDULE.knot(float(c.time[i])) for c in columns]
        predicted, corrected = (expected(solver, knots[1], knots[0], knots[1 : 1 + k], new) for new in (False, True))
        size = float(np.abs(corrected).max())
        check_weights((step.x - tensor(step.error))[i], predicted, size)
        check_weights(step.x[i], corrected)
        assert step.error_order[i] == k + 1
        one = slice(i, i + 1)
        alone = solver.at_order(limit[one]).step(
            NewReading(solver),
            x[one],
            SCHEDULE.knot(t.time[one]),
            SCHEDULE.knot(s.time[one]),
            History(tuple(a[one] for a in memory.at), tuple(v[one] for v in memory.values), count[one]),
        )
        assert torch.equal(alone.x, step.x[one])
        assert torch.equal(tensor(alone.error), tensor(step.error)[one])
        del grid


def test_the_weights_of_a_wrong_rule_are_found(monkeypatch):
    """The two tests above can fail: one weight off by 1e-6 is seen."""
    from sdediff.solvers import adaptive_adams

    true = adaptive_adams.adams_measure

    def wrong(*args):
        keep, measure = true(*args)
        (r, w), *rest = measure
        return keep, [(r, w * (1 + 1e-4)), *rest]

    solver = AdaptiveAdams(3)
    s, t, *past = instants([0.3] * 9, False, 0.0)
    pasts = [t, *past][:3]
    monkeypatch.setattr(adaptive_adams, "adams_measure", wrong)
    step = solver.step(NewReading(solver), basis(0, 1), t, s, remembered(solver, pasts, 3))
    with pytest.raises(AssertionError):
        check_weights(step.x[0], expected(solver, t, s, pasts, True))


@pytest.mark.parametrize("predicts", READINGS)
@pytest.mark.parametrize("axis", AXES)
def test_after_a_turn_only_what_lies_behind_counts(predicts, axis):
    """The history of a run that turns is ahead of the new step: it starts again with one reading."""
    solver = AdaptiveAdams(4, predicts, axis)
    t, s = SCHEDULE.knots([0.5, 0.6])
    pasts = [t, *SCHEDULE.knots([0.55, 0.65, 0.7])]  # came down to 0.5, now turns up
    step = solver.step(NewReading(solver), basis(0, 1), t, s, remembered(solver, pasts, 4))
    check_weights(step.x[0], expected(solver, t, s, pasts[:1], True))
    assert step.error_order == 2
    assert step.memory.count == 2
    array = [SCHEDULE.knot(np.array([k.time, k.time])) for k in (t, s, *pasts)]
    both = solver.step(NewReading(solver), basis(0, 2), array[0], array[1], remembered(solver, array[2:], np.array([4, 4])))
    assert torch.allclose(both.x[0], step.x[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [AdaptiveAdams(4), AdaptiveAdams(4, "x0", "lam", evaluations=2)], ids=repr)
def test_numbers_and_arrays_agree_on_a_run(solver):
    """On one grid, once as floats and once as the same array for each sample."""
    knots, x = down(12), start(8)
    floats = solve(solver, ring(), x, knots, path=True)
    times = np.repeat(np.array([[k.time] for k in knots]), 8, axis=1)
    arrays = solve(solver, ring(), x, Recorded(times, None, SCHEDULE), path=True)
    assert floats.path is not None
    assert arrays.path is not None
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(floats.path, arrays.path, strict=True))
    assert floats.calls == arrays.calls == solver.calls(knots)


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converged() -> torch.Tensor:
    return solve(SciPy("DOP853", 1e-12, 1e-12), ring(), start(16), down(1)).x


NATURAL = [("v", "angle"), ("x0", "lam"), ("eps", "u"), ("flow", "fraction")]
CONVERGING = [AdaptiveAdams(k, *form) for form in NATURAL for k in (1, 2, 3)]
CONVERGING += [AdaptiveAdams(k, *form, evaluations=2) for form in NATURAL[:2] for k in (1, 3)]
CONVERGING += [AdaptiveAdams(4), AdaptiveAdams(4, "x0", "lam", evaluations=2), AdaptiveAdams(2, "v", "t")]


@pytest.mark.parametrize("solver", CONVERGING, ids=repr)
def test_order_of_convergence_on_fixed_grids(solver, converged):
    """A corrected step through k past readings is of order k + 1; the few steps at the start are not seen at these errors."""
    counts = (80, 160) if solver.order < 4 else (160, 320)
    errors = [rms(solve(solver, ring(), start(16), down(n)).x - converged) for n in counts]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order + 1, abs=0.15 if solver.order < 3 else 0.3), errors


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_order_of_the_error_estimate(order):
    """Of a step with its history full, at one place: E_k ~ h^(k+1)."""
    solver, sizes = AdaptiveAdams(order), []
    for n in (192, 384):
        knots = down(n)[n // 2 : 3 * n // 4 + 1]
        frames = list(march(solver, ring(), start(8, knots[0].time), knots))
        sizes.append(rms(tensor(frames[-1].error)))
    assert math.log2(sizes[0] / sizes[1]) == pytest.approx(order + 1, abs=0.3), sizes


def test_the_estimate_is_about_the_error_of_the_prediction():
    """One step from exact history: predictor's error = E_k + smaller terms, at every order."""
    model = Gaussian([0.5, -1.0], [0.5, 0.2], schedule=SCHEDULE)
    knots = SCHEDULE.knots(np.linspace(0.62, 0.4, 8))
    x = model.sample(64, knots[0], seed=3)
    states = [model.flow(x, knots[0], k) for k in knots]
    for order in (1, 2, 3, 4, 5):
        solver = AdaptiveAdams(order)
        past = [solver._value(model, y, k) for y, k in zip(states, knots, strict=True)]
        n, at = order + 1, [axis_reading("angle", k) for k in knots]
        memory = History(tuple(at[6::-1][:n]), tuple(past[6::-1][:n]), n)
        step = solver.step(model, states[6], knots[6], knots[7], memory)
        predicted = step.x - tensor(step.error)
        assert rms(tensor(step.error)) == pytest.approx(rms(predicted - states[7]), rel=0.3)
        assert rms(step.x - states[7]) < 0.3 * rms(predicted - states[7])
        for choice in step.choices:
            lower = solver.at_order(int(choice.order)).step(model, states[6], knots[6], knots[7], memory)
            assert rms(tensor(choice.error)) == pytest.approx(rms(tensor(lower.error)), rel=0.3)


# --- calls, memory, options -------------------------------------------------------------------------------------------

SOME = [AdaptiveAdams(), AdaptiveAdams(1), AdaptiveAdams(8, "x0", "lam"), AdaptiveAdams(3, "flow", "t"), AdaptiveAdams(3, evaluations=2)]
SOME += [AdaptiveAdams(2, "eps", "u", evaluations=2), AdaptiveAdams(4, data_std=0.5)]


@pytest.mark.parametrize("solver", SOME, ids=repr)
def test_calls_are_exact_and_the_repr_rebuilds(solver):
    for knots in (down(1), down(7), down(7)[::-1], SCHEDULE.knots([0.9, 0.5, 0.5, 0.7, 0.7, 0.2])):
        run = solve(solver, ring(), start(4), knots)
        assert run.calls == solver.calls(knots) == 1 + solver.evaluations * sum(a != b for a, b in pairwise(knots))
        assert np.array_equal(run.each, np.full(4, run.calls))
        assert torch.isfinite(run.x).all()
    assert named(repr(solver)) == solver
    assert solver.facts.evals == solver.evaluations
    assert solver.embedded
    assert solver.inverse == solver


def test_a_step_forgets_nothing_and_changes_no_argument():
    solver, knots = AdaptiveAdams(3), down(6)
    frames = list(march(solver, ring(), start(4), knots))
    assert [f.memory.count for f in frames] == [1, 2, 3, 4, 4, 4, 4]
    before = frames[3]
    kept = [v.clone() for v in before.memory.values], before.x.clone()
    step = solver.step(ring(), before.x, knots[3], knots[4], before.memory)
    assert torch.equal(step.x, frames[4].x)
    assert all(torch.equal(a, b) for a, b in zip(before.memory.values, kept[0], strict=True))
    assert torch.equal(before.x, kept[1])
    assert all(new is old for new, old in zip(step.memory.values[1:], before.memory.values[:-1], strict=True))


def test_a_run_goes_on_from_its_memory():
    knots, x = down(10), start(4)
    for solver in (AdaptiveAdams(4), AdaptiveAdams(4, evaluations=2)):
        first = solve(solver, ring(), x, knots[:6])
        second = solve(solver, ring(), first.x, knots[5:], memory=first.memory)
        assert torch.equal(second.x, solve(solver, ring(), x, knots).x)


def test_pece_evaluates_the_corrected_state():
    """Its memory holds the reading at the state it returns; PEC's the one at the predicted state."""
    model, (t, s), x = ring(), down(1), start(8)
    for evaluations in (1, 2):
        solver = AdaptiveAdams(3, evaluations=evaluations)
        step = solver.step(model, x, t, s, solver.init(model, x, t))
        at_x = solver._value(model, step.x, s)
        at_predicted = solver._value(model, step.x - tensor(step.error), s)
        assert torch.allclose(step.memory.values[0], at_x if evaluations == 2 else at_predicted, rtol=0, atol=1e-12)
        assert not torch.allclose(step.memory.values[0], at_predicted if evaluations == 2 else at_x, rtol=0, atol=1e-6)


def test_it_encodes_and_decodes_on_fixed_knots():
    x, errors = start(t=0.02), []
    for n in (40, 80):
        up = solve(AdaptiveAdams(3), ring(), x, down(n)[::-1]).x
        errors.append(rms(solve(AdaptiveAdams(3), ring(), up, down(n)).x - x))
    assert errors[1] < errors[0] / 4 < 1e-3


def test_float32_stays_float32():
    for solver in (AdaptiveAdams(), AdaptiveAdams(3, "x0", "lam")):
        low = solve(solver, ring(), start().float(), down(10)).x
        assert low.dtype == torch.float32
        assert torch.allclose(low.double(), solve(solver, ring(), start(), down(10)).x, atol=2e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AdaptiveAdams(9), "goes up to 8"),
        (lambda: AdaptiveAdams(0), "order"),
        (lambda: AdaptiveAdams(2.5), "order"),  # type: ignore[arg-type]
        (lambda: AdaptiveAdams(3, "score"), "choose one of"),
        (lambda: AdaptiveAdams(3, "v", "angel"), "Did you mean 'angle'"),
        (lambda: AdaptiveAdams(3, evaluations=3), "evaluations"),
        (lambda: AdaptiveAdams(3, data_std=0.0), "positive"),
        (lambda: AdaptiveAdams(3, data_std=math.nan), "positive"),
    ],
)
def test_options_that_cannot_be(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize("solver", [AdaptiveAdams(3, "x0", "lam"), AdaptiveAdams(3, "eps", "u"), AdaptiveAdams(3, "v", "lam")], ids=repr)
def test_an_infinite_axis_is_an_error_with_a_cure(solver):
    schedule = FlowMatching()
    model = Gaussian([0.5, 0.5], 0.3, schedule=schedule)
    with pytest.raises(UserError, match=r"from time 1 to 0\.5, .* take v in the angle, or start or end short of it"):
        solve(solver, model, torch.ones(3, 2).double(), schedule.knots([1.0, 0.5, 0.1]))


@pytest.mark.parametrize("solver", [AdaptiveAdams(), AdaptiveAdams(4, "flow", "fraction"), AdaptiveAdams(4, "flow", "t")], ids=repr)
def test_v_and_flow_run_from_pure_noise_to_the_data(solver):
    schedule = FlowMatching()
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=schedule)
    knots, x = schedule.knots(np.linspace(1.0, 0.0, 80)), torch.randn(16, 2, dtype=torch.float64)
    assert rms(solve(solver, model, x, knots).x - model.flow(x, knots[0], knots[-1])) < 1e-5
    back = solve(solver, model, model.flow(x, knots[0], knots[-1]), knots[::-1]).x
    assert rms(back - x) < 1e-3
