"""Fixed-point inversion: the round trip, what it costs, and how one sees that it did not converge."""

from __future__ import annotations

import pytest
import torch
from test_laws import SCHEDULE, down, mixture, start

from sdediff import (
    DDIM,
    DDPM,
    Angle,
    DiscreteVP,
    Euler,
    EulerMaruyama,
    FixedPoint,
    Gaussian,
    Heun,
    Inverse,
    LogSNR,
    Mixture,
    RungeKutta,
    Uniform,
    UniPC,
    UserError,
    solve,
)  # fmt: skip
from sdediff.checkpoint import load_model
from sdediff.data import digits
from sdediff.pretrained import classifier_path
from sdediff.solvers import named

BASES = (None, Heun(), Euler(Angle()), RungeKutta("rk4"), EulerMaruyama(0.0))


def round_trip(solver, x, knots, model=None):
    """(largest error of the way there by the inverse and back, the inverse's sum of residuals, its calls)."""
    model = mixture() if model is None else model
    run = solve(solver.inverse, model, x, knots, error=True)
    back = solve(solver, model, run.x, knots[::-1]).x
    assert run.error is not None
    return float((back - x).abs().max()), float(run.error.max()), run.calls


@pytest.mark.parametrize("solver", [FixedPoint(b) for b in BASES] + [FixedPoint(iterations=12, acceleration="none")], ids=repr)
@pytest.mark.parametrize("up", [False, True])
def test_the_round_trip_is_at_rounding(solver, up):
    knots = down(40)[::-1] if up else down(40)
    x = mixture().sample(64, knots[0], seed=1)
    assert solver.facts.inverse == "exact"
    error, residual, calls = round_trip(solver, x, knots)
    assert error < 1e-12
    assert residual < 1e-11
    assert calls == Inverse(solver).calls(knots) == (1 + solver.iterations) * solver.calls(knots)


def test_what_is_not_enough_is_not_called_exact():
    """Plain iteration contracts by about 1/7 here; without iteration it would be DDIM inversion."""
    errors = {}
    for n in (1, 2, 4, 8):
        solver = FixedPoint(iterations=n, acceleration="none")
        assert solver.facts.inverse == "approximate"
        errors[n], residual, _ = round_trip(solver, start(), down(40))
        assert residual > errors[n]  # the residual is from before the last correction
    naive = solve(DDIM(), mixture(), solve(DDIM(), mixture(), start(), down(40)).x, down(40)[::-1]).x
    assert errors[1] < 0.5 * float((naive - start()).abs().max())
    assert errors[2] < 0.4 * errors[1]
    assert errors[4] < 0.1 * errors[2]
    assert errors[8] < 1e-3 * errors[4]


def test_the_factor_of_contraction_on_a_gaussian():
    """DDIM on N(0, d^2): y_s = r y_t, so that the error shrinks by exactly |1 - r| an iteration."""
    d, t, s = 0.25, SCHEDULE.knot(0.5), SCHEDULE.knot(0.3)
    model = Gaussian([0.0], d**2, schedule=SCHEDULE)
    x = torch.tensor([[1.0]], dtype=torch.float64)
    image = solve(DDIM(), model, x, (t, s)).x
    r = float(image) / Angle().scale(s) * Angle().scale(t)
    offs = [float(solve(Inverse(FixedPoint(None, n, "none")), model, image, (s, t)).x - x) for n in (1, 2, 3)]
    assert offs[1] / offs[0] == pytest.approx(1 - r, rel=1e-9)
    assert offs[2] / offs[1] == pytest.approx(1 - r, rel=1e-9)
    accelerated = solve(Inverse(FixedPoint(None, 2)), model, image, (s, t)).x
    assert abs(float(accelerated - x)) < 1e-14  # a secant is exact for an affine step in one dimension


def test_the_steps_are_those_of_the_base():
    for base in BASES[1:]:
        a, b = (solve(s, mixture(), start(), down(7)) for s in (FixedPoint(base), base))
        assert torch.equal(a.x, b.x)
        assert a.calls == b.calls
    assert torch.equal(solve(FixedPoint(), mixture(), start(), down(7)).x, solve(DDIM(), mixture(), start(), down(7)).x)


def test_a_residual_that_stays_says_that_it_did_not_converge():
    """Ten narrow modes in 64 dimensions: steps of 1/20 jump from one to the other, and there is more than one way back, or none."""
    g = torch.Generator().manual_seed(0)
    model = Mixture(0.6 * torch.randn(10, 64, generator=g, dtype=torch.float64), [0.15] * 10, schedule=SCHEDULE)
    x = model.sample(32, SCHEDULE.knot(1e-3))
    few, many = (LogSNR().knots(SCHEDULE, n)[::-1] for n in (10, 40))
    lost, residual, _ = round_trip(FixedPoint(), x, few, model)
    assert lost > 1e-3
    assert residual > 1e-3
    for acceleration in ("none", "anderson"):  # and it does not run away
        assert float(solve(Inverse(FixedPoint(None, 20, acceleration)), model, x, few).x.abs().max()) < 6
    error, residual, _ = round_trip(FixedPoint(iterations=20), x, many, model)
    assert error < 1e-10
    assert residual < 1e-9


def test_a_network_in_float32():
    model = load_model(classifier_path("digits").with_name("digits.safetensors"))
    x = digits().x[:8]
    knots = LogSNR().knots(model.schedule, 20)[::-1]
    assert round_trip(FixedPoint(), x, knots, model)[0] < 1e-5
    assert round_trip(FixedPoint(iterations=4), x, knots, model)[0] < 2e-3
    plain = solve(DDIM(), model, solve(DDIM(), model, x, knots).x, knots[::-1]).x
    assert float((plain - x).abs().max()) > 0.05


def test_each_sample_by_itself():
    model, knots = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE), down(9)  # elementwise
    x = start(5)
    together = solve(Inverse(FixedPoint()), model, x, knots).x
    for i in range(5):
        assert torch.equal(solve(Inverse(FixedPoint()), model, x[i : i + 1], knots).x[0], together[i])


def test_ends_without_noise_and_without_data():
    schedule = DiscreteVP.linear()
    model = Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=schedule)
    knots = Uniform().knots(schedule, 30, end=0.0)
    x = model.sample(16, knots[-1])
    assert round_trip(FixedPoint(iterations=12), x, knots[::-1], model)[0] < 1e-9
    same = knots[3]
    assert torch.allclose(Inverse(FixedPoint()).step(model, x, same, same, FixedPoint().init(model, x, same)).x, x, atol=1e-14, rtol=0)


def test_names_and_bad_input():
    for solver in (FixedPoint(Heun(), 5), FixedPoint(DDIM(), 3, "none"), Inverse(FixedPoint(Heun()))):
        assert named(repr(solver)) == solver
    for wrong in (DDPM(), DDPM("none"), DDIM(0.5), UniPC(), "DDIM", FixedPoint()):
        with pytest.raises(UserError, match="without memory"):
            FixedPoint(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="iterations"):
        FixedPoint(iterations=0)
    with pytest.raises(UserError, match="anderson"):
        FixedPoint(acceleration="andersen")
