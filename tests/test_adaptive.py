"""Adaptive solves, one sample at a time: batch independence, replay, directions, tolerances, limits, and what may go wrong."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff import (
    DDIM,
    EDM,
    PID,
    VE,
    AdaptiveAdams,
    Brownian,
    DiscreteVP,
    EmbeddedExponential,
    EmbeddedRungeKutta,
    FlowMatching,
    Gaussian,
    Mixture,
    Recorded,
    SciPy,
    ScoreNet,
    ShARK,
    Sigma,
    Time,
    TorchDiffEq,
    UniPC,
    UserError,
    VPCosine,
    VPLinear,
    White,
    solve,
)  # fmt: skip
from sdediff.prediction import Prediction

SCHEDULE = VPLinear()
MEAN, VARIANCES = [0.3, -0.2, 0.1], [0.5, 0.1, 0.3]
CLOCKS = ("root", "lam", "angle", "time")

ADAMS = [AdaptiveAdams(), AdaptiveAdams(4, "x0", "lam"), AdaptiveAdams(3, "eps", "u"), AdaptiveAdams(5, "flow", "t")]
ADAMS += [AdaptiveAdams(4, "flow", "fraction", evaluations=2), AdaptiveAdams(8, "v", "angle", data_std=0.6)]
PAIRS = [EmbeddedRungeKutta(), EmbeddedRungeKutta("dopri5"), EmbeddedRungeKutta("tsit5", Time()), EmbeddedRungeKutta("heun_euler", Sigma())]
PAIRS += [EmbeddedExponential(), EmbeddedExponential("res2"), EmbeddedExponential("ho3")]
EMBEDDED = ADAMS + PAIRS
FEW = [AdaptiveAdams(), EmbeddedRungeKutta(), EmbeddedExponential()]
everyone = pytest.mark.parametrize("solver", EMBEDDED, ids=repr)
a_few = pytest.mark.parametrize("solver", FEW, ids=repr)


def gaussian(schedule=SCHEDULE) -> Gaussian:
    """Elementwise: no result depends on the batch by a single bit, and its flow is closed form."""
    return Gaussian(MEAN, VARIANCES, schedule=schedule)


def ring(schedule=SCHEDULE) -> Mixture:
    a = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(0.7 * torch.stack([a.cos(), a.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=schedule)


def latents(n: int, d: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def each_rms(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().square().flatten(1).mean(1).sqrt().numpy()


def visited(times: np.ndarray) -> np.ndarray:
    """The times of one sample, its end once."""
    return times[np.concatenate([[True], np.diff(times) != 0])]


@lru_cache(maxsize=8)
def ring_end(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, the end of their flow by an independent solver)."""
    x = latents(n, 2)
    return x, solve(SciPy("DOP853", 1e-11, 1e-11), ring(), x, SCHEDULE.knots([1.0, 1e-3])).x


class Watched:
    """A model that writes down which samples it is asked about, and may change the answers: change(value, x, t, call) -> value."""

    def __init__(self, model, ids, log: list, change=None):
        self.model, self.ids, self.log, self.change = model, ids, log, change
        self.schedule, self.shape = model.schedule, model.shape

    def __call__(self, x, t):
        assert len(x) == len(self.ids)
        self.log.append(self.ids)
        p = self.model(x, t)
        return p if self.change is None else Prediction(x, t, self.change(p.value, x, t, len(self.log)), p.kind)

    def rows(self, index):
        return Watched(self.model.rows(index), self.ids[index], self.log, self.change)


def watched(model, n: int, change=None) -> Watched:
    return Watched(model, torch.arange(n), [], change)


# --- batch independence -----------------------------------------------------------------------------------------------

N = 6
SDE_TIMES = (0.6, 0.05)


@lru_cache(maxsize=64)
def together(place: int, tol: float, clock: str):
    return solve(EMBEDDED[place], gaussian(), latents(N), PID(atol=tol, clock=clock))


def check_rows(alone, whole, part) -> None:
    """`alone` is the run of the samples `part` of the run `whole`, to the last bit."""
    assert torch.equal(alone.x, whole.x[torch.as_tensor(part)])
    assert torch.equal(alone.error, whole.error[torch.as_tensor(part)])
    for of_alone, of_whole in zip((alone.each, alone.rejected, alone.finished), (whole.each, whole.rejected, whole.finished), strict=True):
        assert np.array_equal(of_alone, of_whole[part])
    for i, sample in enumerate(part):
        times = visited(whole.recorded.times[:, sample])
        assert np.array_equal(visited(alone.recorded.times[:, i]), times)
        if whole.recorded.orders_taken is not None:
            steps = len(times) - 1
            assert np.array_equal(alone.recorded.orders_taken[:steps, i], whole.recorded.orders_taken[:steps, sample])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, len(EMBEDDED) - 1),
    st.sampled_from([1e-2, 1e-3]),
    st.sampled_from(CLOCKS),
    st.permutations(range(N)),
    st.sets(st.integers(1, N - 1), max_size=2),
)
def test_no_sample_knows_its_batch(place, tol, clock, order, cuts):
    """Any split, any order, to the last bit: states, steps, orders, calls, rejections and error estimates."""
    for part in np.split(np.array(order), sorted(cuts)):
        alone = solve(EMBEDDED[place], gaussian(), latents(N)[part], PID(atol=tol, clock=clock))
        check_rows(alone, together(place, tol, clock), part)


def on_path(x: torch.Tensor, index=None) -> Any:
    low, high = sorted(SCHEDULE.knot(t).u2 for t in SDE_TIMES)
    return Brownian(3, (low, high), 22).on(x, index)


@pytest.mark.parametrize("solver", [ShARK(), ShARK(0.5)], ids=repr)
def test_with_noise_no_sample_knows_its_batch_either(solver):
    """On one Brownian path; and the recorded steps give the same bits there."""
    x, pid = latents(N), PID(atol=2e-2, times=SDE_TIMES)
    run = solve(solver, gaussian(), x, pid, noise=on_path(x))
    for part in ([4], [5, 0], [3, 1, 2, 5]):
        alone = solve(solver, gaussian(), x[part], pid, noise=on_path(x[part], torch.tensor(part)))
        check_rows(alone, run, np.array(part))
    assert torch.equal(solve(solver, gaussian(), x, run.recorded, noise=on_path(x)).x, run.x)


@pytest.mark.parametrize("solver", [AdaptiveAdams(), AdaptiveAdams(3, "x0", "lam"), *PAIRS[:1], *PAIRS[4:5]], ids=repr)
def test_on_a_mixture_alone_and_together_agree(solver):
    x = latents(9, 2)
    together = solve(solver, ring(), x, PID(atol=1e-3))
    for rows in ([4], [8, 0, 3], range(1, 8)):
        alone = solve(solver, ring(), x[list(rows)], PID(atol=1e-3))
        assert torch.allclose(alone.x, together.x[list(rows)], rtol=0, atol=1e-12)
        assert np.array_equal(alone.each, together.each[list(rows)])


def test_a_batch_that_depends_on_its_company_is_seen(monkeypatch):
    """The test above can fail: an error norm that looks at the whole batch moves the steps."""
    from sdediff import adaptive

    true = adaptive.rms
    monkeypatch.setattr(adaptive, "rms", lambda x: true(x) * 0 + true(x).max())
    x = latents(N)
    together = solve(AdaptiveAdams(), gaussian(), x, PID())
    assert not torch.equal(solve(AdaptiveAdams(), gaussian(), x[:2], PID()).x, together.x[:2])


# --- finished samples leave, and labels go with their samples --------------------------------------------------------------


@everyone
def test_finished_samples_leave_and_every_call_is_counted(solver):
    model = watched(gaussian(), 12)
    run = solve(solver, model, latents(12) * torch.linspace(0.1, 2.5, 12)[:, None].double(), PID(atol=1e-3))
    asked = [ids.tolist() for ids in model.log]
    assert all(a[: len(a)] == sorted(a) for a in asked)
    assert [len(a) for a in asked] == sorted((len(a) for a in asked), reverse=True)
    assert np.array_equal(run.each, [sum(i in a for a in asked) for i in range(12)])
    assert run.calls == len(asked) == run.each.max()
    assert run.each.sum() == sum(map(len, asked))
    steps = np.array([len(visited(column)) - 1 for column in run.recorded.times.T])
    assert np.array_equal(run.each, 1 + solver.facts.evals * (steps + run.rejected))


def test_some_do_finish_before_others():
    for solver in (AdaptiveAdams(), EmbeddedRungeKutta()):
        model = watched(ring(), 24)
        solve(solver, model, latents(24, 2), PID(atol=1e-4))
        assert len(model.log[-1]) < 24


def test_labels_travel_with_the_samples():
    """Each label is another Gaussian: alone or among others, every sample ends where its own label takes it."""
    means, stds = torch.tensor([-2.0, 0.5, 3.0]).double(), torch.tensor([0.2, 1.0, 0.05]).double()

    def net(x, time, labels):
        t = SCHEDULE.knot(time.numpy())
        alpha, sigma = torch.as_tensor(t.alpha)[:, None], torch.as_tensor(t.sigma)[:, None]
        m, s = means[labels][:, None], stds[labels][:, None]
        return sigma * (x - alpha * m) / ((alpha * s) ** 2 + sigma**2)

    labels, x = torch.tensor([0, 2, 1, 0, 1, 2, 2]), latents(7, 2)
    for solver in FEW:
        run = solve(solver, ScoreNet(net, SCHEDULE, labels=labels), x, PID(atol=1e-3))
        assert len({*run.each.tolist()}) > 1
        for i in range(7):
            alone = solve(solver, ScoreNet(net, SCHEDULE, labels=labels[i : i + 1]), x[i : i + 1], PID(atol=1e-3))
            assert torch.equal(alone.x[0], run.x[i])
            own = Gaussian([float(means[labels[i]])] * 2, float(stds[labels[i]]) ** 2, schedule=SCHEDULE)
            assert each_rms(own.flow(x[i : i + 1], *SCHEDULE.knots([1.0, 1e-3])) - alone.x)[0] < 0.02


# --- replay ----------------------------------------------------------------------------------------------------------


@everyone
def test_recorded_steps_give_the_same_bits_with_no_rejections(solver):
    x = latents(10)
    run = solve(solver, gaussian(), x, PID(atol=1e-5 if solver.order >= 5 else 1e-4, clock="lam", first=6.0))
    again = solve(solver, gaussian(), x, run.recorded)
    assert run.rejected.min() > 0  # the first step was far too long
    assert torch.equal(again.x, run.x)
    assert not again.rejected.any()
    assert np.array_equal(again.each, run.each - run.rejected * solver.facts.evals)
    assert again.calls == again.each.max() < run.calls
    assert np.array_equal(again.recorded.times, run.recorded.times)
    assert again.reached
    assert torch.equal(solve(solver, gaussian(), x, again.recorded).x, run.x)


@pytest.mark.parametrize("solver", [AdaptiveAdams(), AdaptiveAdams(4, "x0", "lam"), *FEW[1:]], ids=repr)
def test_recorded_steps_of_a_run_in_which_some_took_none(solver):
    """Samples that had stopped before their first step stay; the others take theirs, at their orders."""

    def answer(value, x, t, call):
        return torch.where(bad[model.log[-1]][:, None], math.nan, value)

    x, bad = latents(5), torch.tensor([False, True, False, False, True])
    model = watched(gaussian(), 5, answer)
    run = solve(solver, model, x, PID(atol=1e-3))
    assert np.array_equal(run.finished, ~bad.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = watched(gaussian(), 5, answer)
        again = solve(solver, model, x, run.recorded)
    assert torch.equal(again.x, run.x)
    model = watched(gaussian(), 5, lambda value, x, t, call: value * math.nan)
    with pytest.raises(UserError, match="no sample took a step"):
        solve(solver, model, x, solve(solver, model, x, PID()).recorded)


@everyone
def test_recorded_steps_backward_encode(solver):
    x = latents(6)
    run = solve(solver, gaussian(), x, PID(atol=1e-4))
    back = solve(solver.inverse, gaussian(), run.x, run.recorded.reverse)
    for up, down in zip(back.recorded.times.T, run.recorded.times.T, strict=True):
        assert np.array_equal(visited(up), visited(down)[::-1])
    assert np.median(each_rms(back.x - x)) < 3e-2  # at full order upward: stretched by 1/std, and begun at order 1 at the data


def test_a_path_has_the_state_at_every_knot():
    x, model = latents(6), gaussian()
    for solver in FEW:
        run = solve(solver, model, x, PID(atol=1e-4), path=True)
        assert len(run.path) == len(run.knots) == len(run.recorded.times)
        assert all(p.shape == x.shape for p in run.path)
        assert torch.equal(run.path[0], x)
        assert torch.equal(run.path[-1], run.x)
        for state, knot in zip(run.path, run.knots, strict=True):
            assert np.median(each_rms(state - model.flow(x, run.knots[0], knot))) < 5e-4
    image = ScoreNet(lambda x, t: 0.5 * x, SCHEDULE)
    run = solve(AdaptiveAdams(), image, torch.randn(3, 2, 4, 4), PID(), path=True)
    assert run.path[1].shape == (3, 2, 4, 4)


# --- tolerance in, error out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_the_error_at_the_end_is_about_the_tolerance(clock, tol):
    x, end = ring_end()
    for model, start, truth in ((ring(), x, end), (gaussian(), latents(24), gaussian().flow(latents(24), *SCHEDULE.knots([1.0, 1e-3])))):
        run = solve(AdaptiveAdams(), model, start, PID(atol=tol, clock=clock))
        error = np.median(each_rms(run.x - truth))
        assert tol / 5 < error < 5 * tol
        assert error / 5 < run.error.median() < 5 * error


@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.4, 0.3, 0.0), (0.3, 0.3, 0.05), (0.2, 0.5, 0.0)])
@a_few
def test_every_controller_of_steps_keeps_its_word(coefficients, solver):
    x, end = ring_end()
    tol = 1e-3
    run = solve(solver, ring(), x, PID(atol=tol, coefficients=coefficients))
    plain = solve(solver, ring(), x, PID(atol=tol))
    assert tol / 12 < np.median(each_rms(run.x - end)) < 6 * tol
    assert run.each.mean() < 1.6 * plain.each.mean()


def test_relative_tolerance_follows_the_size_of_the_state():
    x = latents(24)
    for scale in (1.0, 100.0):
        model = Gaussian([scale * m for m in MEAN], [scale**2 * v for v in VARIANCES], schedule=EDM(sigma_max=80.0 * scale))
        start = x * 80 * scale
        run = solve(AdaptiveAdams(data_std=scale), model, start, PID(rtol=1e-3, atol=0.0, data_std=scale))
        truth = model.flow(start, *(model.schedule.knot(t) for t in (model.schedule.t_max, model.schedule.t_min)))
        assert 1 / 5 < np.median(each_rms(run.x - truth) / each_rms(truth)) / 1e-3 < 5


def test_the_first_step_may_be_given():
    """Too long ones are rejected, too short ones grow: the error does not depend on it."""
    x, end = ring_end()
    for clock, sizes in (("lam", (0.01, 0.2, 5.0)), ("time", (1e-4, 0.1, 0.99)), ("angle", (1e-3, 0.1, 1.5))):
        for first in sizes:
            run = solve(AdaptiveAdams(), ring(), x, PID(atol=1e-3, clock=clock, first=first))
            assert 1e-3 / 6 < np.median(each_rms(run.x - end)) < 6e-3
            if first == sizes[0]:
                went = abs(run.knots[1].clock(clock) - run.knots[0].clock(clock))
                assert np.allclose(went, first, rtol=1e-6)
            assert (run.rejected > 0).all() or first != sizes[2]


def test_more_is_asked_more_is_called():
    calls = [solve(AdaptiveAdams(), ring(), ring_end()[0], PID(atol=10.0**-e)).each.mean() for e in (1, 2, 3, 4, 5)]
    assert calls == sorted(calls)
    assert calls[-1] < 70


def test_the_tolerance_of_a_wrong_controller_is_missed(monkeypatch):
    """The laws above can fail: an error weighed a hundred times too little ends a hundred tolerances off."""
    monkeypatch.setattr(PID, "_local", lambda self, tolerance: 250 * tolerance)
    x, end = ring_end()
    assert np.median(each_rms(solve(AdaptiveAdams(), ring(), x, PID(atol=1e-4)).x - end)) > 5e-4


# --- directions, schedules, ends, dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*ADAMS, EmbeddedRungeKutta(), EmbeddedRungeKutta("dopri5")], ids=repr)
def test_they_encode_and_decode(solver):
    x0, tol = ring().sample(16, SCHEDULE.knot(1e-3), seed=2), 1e-4
    up = solve(solver.inverse, ring(), x0, PID(atol=tol, times=(1e-3, 1.0)))
    down = solve(solver, ring(), up.x, PID(atol=tol))
    assert up.reached
    assert (up.knots[-1].time == 1.0).all()
    assert np.median(each_rms(down.x - x0)) < (10 if solver in ADAMS else 40) * tol  # 5(4) pairs are too sure of long steps


SCHEDULES = [VPLinear(), VPCosine(), EDM(), VE(), FlowMatching(), DiscreteVP.linear()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@a_few
def test_every_schedule(schedule, solver):
    x, tol = schedule.prior_std * latents(16), 1e-3
    run = solve(solver, gaussian(schedule), x, PID(atol=tol))
    truth = gaussian(schedule).flow(x, schedule.knot(schedule.t_max), schedule.knot(schedule.t_min))
    assert run.reached
    assert np.array_equal(run.knots[-1].time, np.full(16, schedule.t_min))
    assert np.median(each_rms(run.x - truth)) < 5 * tol
    vp = solve(solver, gaussian(), latents(16), PID(atol=tol))
    assert run.each.mean() == pytest.approx(vp.each.mean(), rel=0.3)  # in the angle they are one flow: errors at noise shrink with it


@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [*EMBEDDED, EmbeddedRungeKutta("dopri5", Sigma())], ids=repr)
@pytest.mark.parametrize("up", [False, True])
def test_runs_that_touch_both_ends(schedule, solver, up):
    """From alpha = 0 to sigma = 0 and back, without a warning: near the flow, or stopped and said so, or one sentence with a cure."""
    times = (0.0, schedule.t_max) if up else (schedule.t_max, 0.0)
    x = (1.0 if up else schedule.prior_std) * latents(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if getattr(solver, "coordinates", None) == Time() else "error")  # dsigma/dt may be infinite
        try:
            run = solve(solver, gaussian(schedule), x, PID(atol=1e-3, times=times, most_calls=200))
        except UserError as wrong:
            said = str(wrong)
        else:
            said = None
    if said is not None:
        assert "short of it" in said
        assert len(said) < 400
        return
    assert torch.isfinite(run.x).all()
    if run.reached:
        assert (run.knots[-1].time == times[1]).all()
    else:
        assert run.reason
    if not up and run.reached:
        assert np.median(each_rms(run.x - gaussian(schedule).flow(x, *(schedule.knot(t) for t in times)))) < 1e-2


@pytest.mark.parametrize("solver", [AdaptiveAdams(), AdaptiveAdams(4, "flow", "fraction"), *FEW[1:]], ids=repr)
@pytest.mark.parametrize("clock", CLOCKS)
def test_v_and_flow_go_from_pure_noise_to_the_data(solver, clock):
    schedule, x = FlowMatching(), latents(12)
    run = solve(solver, gaussian(schedule), x, PID(atol=1e-3, times=(1.0, 0.0), clock=clock))
    assert run.reached
    assert np.median(each_rms(run.x - gaussian(schedule).flow(x, *schedule.knots([1.0, 0.0])))) < 1e-2


@everyone
def test_float32(solver):
    x = latents(16).float()
    run = solve(solver, gaussian(), x, PID(atol=1e-3))
    assert run.x.dtype == torch.float32
    double = solve(solver, gaussian(), x.double(), PID(atol=1e-3))
    assert run.reached
    assert np.median(each_rms(run.x - double.x)) < 1e-4
    assert abs(run.each.mean() - double.each.mean()) < 1
    fine = solve(AdaptiveAdams(), gaussian(), x, PID(atol=5e-6))
    assert fine.reached


# --- limits ----------------------------------------------------------------------------------------------------------------


@everyone
def test_a_limit_of_calls_stops_with_the_state_of_where_it_is(solver):
    x, model = latents(8), gaussian()
    run = solve(solver, model, x, PID(atol=1e-8, most_calls=25))
    assert not run.reached
    assert "limit of 25 calls" in run.reason
    assert "samples" in run.reason
    assert run.finished.dtype == bool
    assert not run.finished.all()
    assert (run.each <= 25).all()
    assert (run.each[~run.finished] > 25 - solver.facts.evals).all()
    last = run.knots[-1]
    assert ((last.time > 1e-3) == ~run.finished).all()
    assert bool((torch.isfinite(run.error) & (run.error > 0)).all())
    flow = model.flow(x, SCHEDULE.knot(np.ones(8)), last)
    assert each_rms(run.x - flow).max() < 1e-3
    assert torch.equal(solve(solver, model, x, run.recorded).x, run.x)


def test_some_reach_the_end_and_the_others_are_named():
    x, _ = ring_end()
    free = solve(AdaptiveAdams(), ring(), x, PID(atol=1e-4))
    limit = int(np.median(free.each))
    run = solve(AdaptiveAdams(), ring(), x, PID(atol=1e-4, most_calls=limit))
    assert 0 < run.finished.sum() < len(x)
    assert np.array_equal(run.finished, free.each <= limit)
    stopped = np.flatnonzero(~run.finished)
    assert f"{len(stopped)} of 24 samples" in run.reason
    assert str(stopped[0]) in run.reason
    assert torch.allclose(run.x[run.finished], free.x[run.finished], rtol=0, atol=1e-12)
    short = run.x[stopped]
    for i, sample in enumerate(stopped[:3]):
        knots = [SCHEDULE.knot(1.0), SCHEDULE.knot(float(run.knots[-1].time[sample]))]
        truth = solve(SciPy("DOP853", 1e-11, 1e-11), ring(), x[sample : sample + 1], knots).x
        assert each_rms(truth - short[i : i + 1])[0] < 2e-3


# --- NaN, and networks that are not smooth ---------------------------------------------------------------------------------


def times_of(t, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.broadcast_to(t.time, len(like)).copy())[:, None]


@a_few
def test_a_nan_that_passes_is_stepped_over(solver):
    def once(value, x, t, call):
        return value * math.nan if call == 5 else value

    x, end = ring_end()
    model = watched(ring(), len(x), once)
    run = solve(solver, model, x, PID(atol=1e-3))
    assert run.reached
    assert (run.rejected >= 1).all()
    assert np.median(each_rms(run.x - end)) < 5e-3


@a_few
def test_a_nan_far_from_the_path_is_avoided(solver):
    """A model that is NaN where only too long a step leads."""

    def outside(value, x, t, call):
        return torch.where(x.square().mean(1, keepdim=True) > 9.0, math.nan, value)

    x, end = ring_end()
    run = solve(solver, watched(ring(), len(x), outside), x, PID(atol=1e-3, clock="lam", first=9.0))
    assert run.reached
    assert np.median(each_rms(run.x - end)) < 5e-3


@a_few
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_that_stays_ends_the_run_of_those_who_meet_it(solver, value):
    """All before it is kept: states, times, calls, finite error; bounded calls; those who do not meet it go on, to the same bits."""
    meets = torch.tensor([True, False, True, False, False, True])

    def below(answer, x, t, call):
        ids = model.log[-1]
        return torch.where((times_of(t, x) < 0.3) & meets[ids][:, None], value, answer)

    x = latents(6)
    model = watched(gaussian(), 6, below)
    run = solve(solver, model, x, PID(atol=1e-3, most_calls=400))
    free = solve(solver, gaussian(), x, PID(atol=1e-3))
    assert np.array_equal(run.finished, ~meets.numpy())
    assert "of 6 samples" in run.reason
    assert torch.equal(run.x[~meets], free.x[~meets])
    assert torch.isfinite(run.x).all()
    assert torch.isfinite(run.error).all()
    stopped = run.knots[-1].time[meets.numpy()]
    assert ((stopped >= 0.3) & (stopped < 0.35)).all()
    flow = gaussian().flow(x, SCHEDULE.knot(np.ones(6)), run.knots[-1])
    assert each_rms((run.x - flow)[meets]).max() < 1e-2
    assert (run.each <= 400).all()


@a_few
def test_nan_from_the_start(solver):
    run = solve(solver, watched(gaussian(), 3, lambda value, x, t, call: value * math.nan), latents(3), PID())
    assert not run.reached
    assert "NaN" in run.reason
    assert torch.equal(run.x, latents(3))
    assert (run.knots[-1].time == 1.0).all()
    assert run.each.max() < 100


def noisy(size: float):
    """Noise in time that no step resolves: the sine of a huge multiple of t."""

    def change(value, x, t, call):
        return value + size * torch.sin(1e7 * times_of(t, x))

    return change


@a_few
def test_a_network_that_is_rough_in_time_ends_with_a_result_or_a_reason(solver):
    x, end = (v[:8] for v in ring_end())
    for size, tol in ((1e-2, 1e-3), (1e-2, 1e-5), (1.0, 1e-4)):
        run = solve(solver, watched(ring(), len(x), noisy(size)), x, PID(atol=tol, most_calls=120))
        assert torch.isfinite(run.x).all()
        assert torch.isfinite(run.error).all()
        assert run.each.max() <= 120
        if not run.reached:
            assert "of 8 samples" in run.reason
        if (size, tol) == (1e-2, 1e-3):
            assert run.reached
            assert np.median(each_rms(run.x - end)) < 2e-2


@a_few
def test_a_jump_is_crossed(solver):
    model = watched(ring(), 8, lambda value, x, t, call: value + 0.1 * (times_of(t, x) < 0.3213))
    run = solve(solver, model, latents(8, 2), PID(atol=1e-4))
    assert run.reached
    assert run.each.max() < 150


# --- gradients ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [AdaptiveAdams(), AdaptiveAdams(3, "x0", "lam"), EmbeddedRungeKutta("dopri5"), EmbeddedExponential()], ids=repr
)
def test_gradients_are_those_of_the_recorded_steps(solver):
    x = latents(4, 2).requires_grad_()
    weight, direction = latents(4, 2, seed=5), latents(4, 2, seed=6)
    run = solve(solver, ring(), x, PID(atol=1e-3), grad=True)
    (gradient,) = torch.autograd.grad((run.x * weight).sum(), x)
    h = 1e-5
    with torch.no_grad():
        high, low = (solve(solver, ring(), x + sign * h * direction, run.recorded).x for sign in (1, -1))
    slope = float(((high - low) / (2 * h) * weight).sum())
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)
    assert not solve(solver, ring(), x, PID(atol=1e-3)).x.requires_grad


# --- bad input -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"atol": 0.0}, "must be positive"),
        ({"atol": -1e-3}, "must be positive"),
        ({"atol": math.nan}, "must be positive"),
        ({"atol": math.inf}, "must be positive"),
        ({"rtol": -1.0}, "must be positive"),
        ({"rtol": math.nan}, "must be positive"),
        ({"clock": "lamb"}, "Did you mean 'lam'"),
        ({"times": (0.5, 0.5)}, "two different times"),
        ({"times": (0.5,)}, "two different times"),
        ({"coefficients": (1.0, 0.0)}, "three numbers"),
        ({"coefficients": (0.0, 0.0, 1.0)}, "p \\+ i > 0"),
        ({"safety": 1.5}, "safety"),
        ({"shrink": 1.0}, "shrink"),
        ({"grow": 0.9}, "grow"),
        ({"first": 0.0}, "positive"),
        ({"first": -0.1}, "positive"),
        ({"first": math.nan}, "positive"),
        ({"data_std": 0.0}, "positive"),
        ({"most_calls": 0}, "at least one call"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(UserError, match=said):
        PID(**options)


def test_times_outside_the_schedule():
    for times in ((2.0, 0.1), (math.nan, 0.1), (1.0, -0.1)):
        with pytest.raises(UserError, match="outside the schedule"):
            solve(AdaptiveAdams(), gaussian(), latents(2), PID(times=times))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_state_of_low_precision(dtype):
    with pytest.raises(UserError, match="keep it in float32"):
        solve(AdaptiveAdams(), gaussian(), latents(2).to(dtype), PID())


def test_a_tolerance_below_the_dtype():
    with pytest.raises(UserError, match="float32 cannot hold a tolerance of 1e-08"):
        solve(AdaptiveAdams(), gaussian(), latents(2).float(), PID(atol=1e-8))
    with pytest.raises(UserError, match="float64 cannot hold"):
        solve(AdaptiveAdams(), gaussian(), latents(2), PID(atol=1e-16))


@pytest.mark.parametrize("solver", [DDIM(), UniPC()], ids=repr)
def test_a_solver_without_an_error_estimate(solver):
    with pytest.raises(UserError, match=r"take AdaptiveAdams\(\)"):
        solve(solver, gaussian(), latents(2), PID())


@pytest.mark.parametrize("noise", [White(0), None], ids=repr)
def test_noise_that_would_be_drawn_again(noise):
    with pytest.raises(UserError, match="Brownian"):
        solve(ShARK(), gaussian(), latents(2), PID(times=SDE_TIMES), noise=noise)


def test_recorded_for_another_batch():
    run = solve(AdaptiveAdams(), gaussian(), latents(4), PID())
    with pytest.raises(UserError, match="recorded for 4 samples, not for 5"):
        solve(AdaptiveAdams(), gaussian(), latents(5), run.recorded)
    assert isinstance(run.recorded, Recorded)


def test_delegates_take_the_same_call():
    x, end = ring_end()
    for delegate in (TorchDiffEq(), TorchDiffEq("dopri8"), SciPy(), SciPy("DOP853", each=True)):
        run: Any = solve(delegate, ring(), x, PID(rtol=1e-4, atol=1e-4))
        assert 1e-8 < np.median(each_rms(run.x - end)) < 1e-3
        assert run.each.shape == (24,)
        assert [k.time for k in run.knots] == [1.0, 1e-3]
    run = solve(TorchDiffEq(), ring(), x, PID(rtol=1e-4, atol=1e-4, times=(1e-3, 1.0)))
    assert run.knots[-1].time == 1.0
    with pytest.raises(UserError, match="does not choose its steps"):
        solve(TorchDiffEq("rk4"), ring(), x, PID(rtol=1e-4))
    recorded = solve(AdaptiveAdams(), ring(), x, PID()).recorded
    with pytest.raises(UserError, match="takes knots, or PID"):
        solve(TorchDiffEq(), ring(), x, recorded)


def test_pid_is_a_value():
    pid = PID(1e-3, 1e-2, clock="lam", times=(1.0, 0.0))
    assert eval(repr(pid), {"PID": PID}) == pid
    assert hash(pid) == hash(PID(1e-3, 1e-2, clock="lam", times=(1.0, 0.0)))


def test_a_step_is_taken_up_to_its_tolerance_and_no_further():
    """At power q the estimate may be 2.5 q times the tolerance of the end, in the frame of unit variance: a hair less is taken."""
    model, x = Gaussian([0.0], 0.25, schedule=VPLinear()), torch.zeros(2, 1, dtype=torch.float64)
    controller, solver = PID(atol=1e-3), AdaptiveAdams()
    t, s, plan = controller.start(solver, model, x)
    for size, taken in ((0.999, True), (1.001, False)):
        step = solver.step(model, x, t, s, solver.init(model, x, t))
        error = torch.full_like(x, size * 2.5 * 2 * 1e-3)
        assert controller.judge(t, s, x, step._replace(error=error), plan).accept.tolist() == [taken] * 2
