"""Adaptive SDE solvers: an embedded error, one path through rejections, and Gotta Go Fast as published and on a path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from test_golden import load

from sdediff import (
    PID,
    SRA1,
    Brownian,
    EulerMaruyama,
    Gaussian,
    GottaGoFast,
    GottaGoFastControl,
    Heun,
    LogSNR,
    Mixture,
    ShARK,
    Uniform,
    UserError,
    VPLinear,
    White,
    solve,
)  # fmt: skip

SCHEDULE = VPLinear()
MODEL = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=SCHEDULE)
GAUSSIAN = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE)  # elementwise
ENDS = SCHEDULE.knots([0.5, 0.05])
TIMES = (0.5, 0.05)
EMBEDDED = [ShARK(), SRA1(), ShARK(0.5), ShARK(0.0), GottaGoFast(), GottaGoFast(0.5)]


def start(n: int, model=MODEL) -> torch.Tensor:
    return model.sample(n, ENDS[0], seed=1)


def path(clock: str, seed: int = 3, depth: int = 24) -> Brownian:
    low, high = sorted(k.clock(clock) for k in ENDS)
    return Brownian(seed, (low, high), depth)


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


# --- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", EMBEDDED, ids=repr)
@pytest.mark.parametrize("time", [0.5, 0.2])
def test_the_embedded_error_shrinks_with_its_order(solver, time):
    t = SCHEDULE.knot(time)
    x = MODEL.sample(4000, t, seed=1)
    assert solver.embedded
    errors = []
    for h in (0.02, 0.005):
        step = solver.step(MODEL, x, t, t.at(lam=t.lam + h), solver.init(MODEL, x, t), White(0).on(x))
        errors.append(rms(step.error.tensor()))
    eta = solver.eta
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(1.5 if eta else 2, abs=0.12)
    assert step.error_order == (1.5 if eta else 2)


def test_the_embedded_error_is_the_distance_to_the_lower_method():
    """Of ShARK to the step with its first slope alone, of Gotta Go Fast to Euler-Maruyama."""
    x, (t, s), noise = start(50), SCHEDULE.knots([0.3, 0.28]), White(2).on(start(50))
    step = GottaGoFast().step(MODEL, x, t, s, GottaGoFast().init(MODEL, x, t), noise)
    euler = EulerMaruyama().step(MODEL, x, t, s, None, noise).x
    assert torch.allclose(step.x - step.error.tensor(), euler, rtol=0, atol=1e-13)
    assert torch.equal(step.memory.before, x)
    assert torch.allclose(step.memory.last, euler, rtol=0, atol=1e-13)
    step, (w, h) = ShARK().step(MODEL, x, t, s, None, noise), noise.area(t.u2, s.u2)
    y = x / t.alpha
    slope = MODEL(t.alpha * (y + h), t).eps.tensor() / t.u
    lower = s.alpha * (y + (s.u2 - t.u2) * slope + w)
    assert torch.allclose(step.x - step.error.tensor(), lower, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", EMBEDDED, ids=repr)
def test_a_step_with_a_knot_for_each_sample_is_that_of_each(solver):
    """Also where some of them end at the data."""
    before, after = np.array([0.5, 0.3, 0.2, 0.9]), np.array([0.4, 0.29, 0.0, 0.0])
    x, clock = start(4), solver.facts.clock
    source = Brownian(3, (0.0, SCHEDULE.knot(0.95).clock(clock)))
    t, s = SCHEDULE.knot(before), SCHEDULE.knot(after)
    step = solver.step(MODEL, x, t, s, solver.init(MODEL, x, t), source.on(x))
    for i in range(4):
        one, (t, s) = x[i : i + 1], SCHEDULE.knots([before[i], after[i]])
        alone = solver.step(MODEL, one, t, s, solver.init(MODEL, one, t), source.on(one, range(i, i + 1)))
        scale = 1e-11 * (1 + s.alpha / t.alpha)
        assert torch.allclose(step.x[i], alone.x[0], rtol=0, atol=scale)
        assert torch.allclose(step.error.tensor()[i], alone.error.tensor()[0], rtol=0, atol=scale)


@pytest.mark.parametrize("solver", EMBEDDED, ids=repr)
def test_upward_and_nowhere_have_no_error(solver):
    x, (s, t) = start(3), SCHEDULE.knots([0.3, 0.2])
    for a, b in ((t, t), (t, s)) if solver.eta else ((t, t),):
        step = solver.step(MODEL, x, a, b, solver.init(MODEL, x, a), White(0).on(x))
        assert float(step.error.tensor().abs().max()) == 0


# --- adaptive ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    """The solutions on the paths, by many small steps."""
    return solve(ShARK(), MODEL, start(96), LogSNR().knots(SCHEDULE, 500, *TIMES), noise=path("u2")).x


def test_the_strong_error_is_proportional_to_the_tolerance(exact):
    """On one path a sample, through all rejections: the slope is 1, and a factor of thirty in tolerance is one in error."""
    tolerances, errors = (0.1, 0.018, 0.0033), []
    for atol in tolerances:
        run = solve(ShARK(), MODEL, start(96), PID(atol=atol, times=TIMES), noise=path("u2"))
        assert run.reached
        assert run.rejected.mean() > 1
        errors.append(float((run.x - exact).square().mean(1).sqrt().median()))
    assert np.polyfit(np.log(tolerances), np.log(errors), 1)[0] == pytest.approx(1, abs=0.2), errors
    assert errors[-1] < tolerances[-1]


def test_a_redrawn_path_is_another_one(exact):
    """The same solver and steps with noise that is drawn again at every query: nowhere near."""

    class Redrawn:
        def __init__(self, noise):
            self.noise = noise

        def area(self, a, b, key=0):
            return self.noise.area(a, b, key)

        def rows(self, index):
            return Redrawn(self.noise.rows(index))

    run = solve(ShARK(), MODEL, start(96), PID(atol=0.0033, times=TIMES), noise=Redrawn(White(0).on(start(96))))
    assert float((run.x - exact).square().mean(1).sqrt().median()) > 0.1
    with pytest.raises(UserError, match="one path"):
        solve(ShARK(), MODEL, start(4), PID(atol=0.01, times=TIMES), noise=White(0))


def controlled(solver):
    return GottaGoFastControl(0.02, 0.02, TIMES) if isinstance(solver, GottaGoFast) else PID(atol=0.01, times=TIMES)


@pytest.mark.parametrize("solver", [ShARK(), SRA1(0.5), GottaGoFast()], ids=repr)
@pytest.mark.parametrize("source", ["path", "white"])
def test_adaptive_runs_do_not_depend_on_the_batch(solver, source):
    """Bitwise, with samples that leave at their own time."""
    if source == "white" and not isinstance(solver, GottaGoFast):
        return
    noise = White(1) if source == "white" else path(solver.facts.clock)
    x = start(9, GAUSSIAN)
    together = solve(solver, GAUSSIAN, x, controlled(solver), noise=noise.on(x))
    assert len(set(together.each)) > 1
    for rows in (range(4, 5), range(1, 4), range(2, 9)):
        part = x[rows.start : rows.stop]
        run = solve(solver, GAUSSIAN, part, controlled(solver), noise=noise.on(part, rows))
        assert torch.equal(run.x, together.x[rows.start : rows.stop])
        assert (run.each == together.each[rows.start : rows.stop]).all()
        assert (run.rejected == together.rejected[rows.start : rows.stop]).all()


@pytest.mark.parametrize("solver", [ShARK(), GottaGoFast()], ids=repr)
def test_recorded_steps_on_the_path_give_the_same_states(solver):
    x, noise = start(6), path(solver.facts.clock)
    run = solve(solver, MODEL, x, controlled(solver), noise=noise)
    again = solve(solver, MODEL, x, run.recorded, noise=noise)
    assert torch.allclose(again.x, run.x, rtol=0, atol=1e-10)
    assert again.each.mean() < run.each.mean()


def test_adaptive_to_the_data_itself():
    x = start(40)
    top = ENDS[0].u2
    run = solve(ShARK(), MODEL, x, PID(atol=0.02, times=(0.5, 0.0)), noise=Brownian(0, (0.0, top)))
    assert run.reached
    assert bool(torch.isfinite(run.x).all())
    assert (run.knots[-1].time == 0).all()
    run = solve(GottaGoFast(), MODEL, x, PID(atol=0.02, times=(0.5, 0.0), clock="time"), noise=Brownian(0, (0.0, 0.5)))
    assert run.reached
    assert (run.knots[-1].time == 0).all()


# --- Gotta Go Fast ----------------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """The recorded draws, one for each turn of the loop, of the samples that still run."""

    draws: np.ndarray
    samples: np.ndarray
    turn: list = field(default_factory=lambda: [0])

    def __call__(self, a, b, key=0):
        z = self.draws[self.turn[0], self.samples]
        self.turn[0] += 1
        return torch.as_tensor(z * np.sqrt(np.abs(b - a))[:, None])

    def rows(self, index):
        return Drawn(self.draws, self.samples[index.numpy()], self.turn)


def test_gotta_go_fast_takes_the_published_steps():
    case, model, x = load("ring2__ggf__adaptive__rtol0.05")
    tolerances = float(case["rtol"]), float(case["atol"])
    control = GottaGoFastControl(
        *tolerances, tuple(case["times"]), float(case["h_init"]), float(case["safety"]), exponent=float(case["exp"])
    )
    noise = Drawn(case["noises"], np.arange(16))
    run = solve(GottaGoFast(), model, x, control, noise=noise)
    assert noise.turn[0] == int(case["iterations"])
    assert run.calls == 2 * noise.turn[0] == int(case["nfe"]) - 1  # the last one is the denoising
    end = run.knots[-1]
    denoised = run.x + torch.as_tensor(end.sigma**2)[:, None] * model(run.x, end).score.tensor()
    assert np.abs(denoised.numpy() - case["x_end"]).max() < 1e-9
    times = case["eval_t_samples"][:-1:2]
    for i in range(16):
        seen = np.unique(run.knots[0].time[i : i + 1].tolist() + [k.time[i] for k in run.knots])[::-1]
        published = [t for k, t in enumerate(times[:, i]) if k == 0 or t < times[:k, i].min() - 1e-9]
        assert np.allclose(seen[: len(published)], published, rtol=0, atol=1e-9)
    assert (run.each == 2 * (np.array([len(np.unique([k.time[i] for k in run.knots])) for i in range(16)]) - 1 + run.rejected)).all()


def test_rejection_biases_the_published_sampler_and_not_the_path():
    """Noise that moves the state far is refused and drawn again: the variance comes out wrong by many standard errors."""
    model, n = Gaussian([0.0, 0.0], 0.25, schedule=SCHEDULE), 6000
    x, control = model.sample(n, ENDS[0], seed=4), GottaGoFastControl(0.02, 0.02, TIMES)
    exact = float(model.moments(ENDS[1])[1][0, 0])
    off = {}
    for name, noise in (("published", White(0)), ("path", path("time", depth=14))):
        run = solve(GottaGoFast(), model, x, control, noise=noise)
        assert run.rejected.mean() > 5
        off[name] = float(run.x.var(0).mean() / exact - 1) * math.sqrt(n)  # in standard errors: two components of n
    assert abs(off["path"]) < 4
    assert abs(off["published"]) > 6


@pytest.mark.parametrize("control", [GottaGoFastControl(0.05, 0.05, TIMES), PID(atol=0.03, times=TIMES, clock="time")], ids=repr)
def test_gotta_go_fast_on_the_path_follows_it(control):
    x, noise = start(32), path("time")
    fine = solve(GottaGoFast(), MODEL, x, Uniform().knots(SCHEDULE, 500, *TIMES), noise=noise).x
    run = solve(GottaGoFast(), MODEL, x, control, noise=noise)
    assert run.reached
    assert float((run.x - fine).square().mean(1).sqrt().median()) < 0.1


def test_bad_options_and_limits():
    for wrong in ({"rtol": -1.0}, {"atol": 0.0}, {"safety": 2.0}, {"first": 0.0}, {"exponent": -0.9}, {"times": (0.1, 0.5)}):
        with pytest.raises(UserError):
            GottaGoFastControl(**wrong)
    for eta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="eta"):
            GottaGoFast(eta)
    with pytest.raises(UserError, match="drives GottaGoFast"):
        solve(Heun(), MODEL, start(2), GottaGoFastControl())
    with pytest.raises(UserError, match="draws noise"):
        solve(GottaGoFast(), MODEL, start(2), GottaGoFastControl(times=TIMES))
    run = solve(GottaGoFast(), MODEL, start(4), GottaGoFastControl(times=TIMES, most_calls=10), noise=White(0))
    assert not run.reached
    assert (run.each == 10).all()
    assert "limit of 10 calls" in run.reason


def test_a_nan_in_a_trial_step_is_refused_and_shrinks_the_step():
    class Broken:
        schedule, shape, calls = SCHEDULE, (2,), 0

        def __call__(self, x, t):
            p = MODEL(x, t)
            self.calls += 1
            if self.calls == 3:
                p.value[0] = math.nan
            return p

        def rows(self, index):
            return self

    run = solve(GottaGoFast(), Broken(), start(3), GottaGoFastControl(0.05, 0.05, TIMES), noise=path("time"))
    assert run.reached
    assert bool(torch.isfinite(run.x).all())
    assert run.rejected[0] > 0
