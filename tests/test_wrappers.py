"""Models around models: static and dynamic thresholding, and the analytic first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_golden import Recorded, load

from sdediff import (
    DDIM,
    DDPM,
    DiscreteVP,
    Gaussian,
    Heun,
    LogSNR,
    Mixture,
    ModelError,
    Prediction,
    ScoreNet,
    UserError,
    VPLinear,
    White,
    analytic_first_step,
    clipped,
    dynamic_threshold,
    picard,
    solve,
)  # fmt: skip

SCHEDULE = VPLinear()
KNOTS = LogSNR().knots(SCHEDULE, 12, 1.0, 0.02)
MODEL = Mixture([[0.9, 0.0], [-0.5, 0.8]], [0.2, 0.3], schedule=SCHEDULE)
WRAPPED = [clipped(MODEL, -0.6, 0.7), dynamic_threshold(MODEL, 0.9, bound=0.5), analytic_first_step(MODEL, KNOTS[0], 0.7)]


def start(n: int = 16) -> torch.Tensor:
    return MODEL.sample(n, KNOTS[0], seed=1)


def outside() -> tuple[torch.Tensor, object]:
    """A state whose x0 leaves the bounds, and its knot."""
    t = SCHEDULE.knot(0.3)
    return 3 * MODEL.sample(64, t, seed=2), t


def test_sigma_hat_with_clamped_data_is_the_published_one():
    case, model, x = load("ring2disc__ddim_sigmahat_clip__uniform__N10")
    run = solve(DDPM("large"), clipped(model), x, model.schedule.knots(case["times"]), noise=Recorded(list(case["noises"])))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert run.calls == int(case["nfe"])


def test_the_clamped_x0_and_the_eps_that_goes_with_it():
    x, t = outside()
    p, q = MODEL(x, t), clipped(MODEL, -0.6, 0.7)(x, t)
    assert torch.equal(q.x0.tensor(), p.x0.tensor().clamp(-0.6, 0.7))
    assert (q.x0.tensor() - p.x0.tensor()).abs().max() > 0.1
    assert torch.allclose(t.alpha * q.x0 + t.sigma * q.eps, x, rtol=0, atol=1e-12)
    assert (q.eps.tensor() - p.eps.tensor()).abs().max() > 0.1
    kept = clipped(MODEL, -0.6, 0.7, original_eps=True)(x, t)
    assert torch.equal(kept.x0.tensor(), q.x0.tensor())
    assert torch.allclose(kept.eps.tensor(), p.eps.tensor(), rtol=0, atol=1e-14)
    # DDIM takes the mixture that was asked for
    s = SCHEDULE.knot(0.1)
    for model, eps in ((clipped(MODEL, -0.6, 0.7), q.eps), (clipped(MODEL, -0.6, 0.7, original_eps=True), p.eps)):
        expected = (s.alpha * q.x0 + s.sigma * eps).tensor()
        assert torch.allclose(DDIM().step(model, x, t, s).x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top", [float("inf"), 1.5])
def test_dynamic_thresholding_by_numpy(top):
    x, t = outside()
    x0 = MODEL(x, t).x0.tensor().numpy()
    s = np.clip(np.quantile(np.abs(x0), 0.9, axis=1), 0.5, top)[:, None]
    q = dynamic_threshold(MODEL, 0.9, top, bound=0.5)(x, t)
    assert np.abs(q.x0.tensor().numpy() - np.clip(x0, -s, s) * 0.5 / s).max() < 1e-12
    assert float(q.x0.tensor().abs().max()) <= 0.5 + 1e-15
    assert torch.allclose(t.alpha * q.x0 + t.sigma * q.eps, x, rtol=0, atol=1e-12)


def test_inside_the_bounds_nothing_changes_and_at_its_maximum_it_is_static():
    x, t = outside()
    small = Gaussian([0.0, 0.1], 0.01, schedule=SCHEDULE)
    p, q = small(0.1 * x, t), dynamic_threshold(small)(0.1 * x, t)
    assert torch.equal(p.x0.tensor(), q.x0.tensor())
    a, b = dynamic_threshold(MODEL, 0.5, max=1.0)(x, t).x0.tensor(), clipped(MODEL)(x, t).x0.tensor()
    assert torch.allclose(a, b, rtol=0, atol=1e-15)


def test_images_of_any_size_and_dtype_keep_theirs():
    model = ScoreNet(lambda x, t: 0.5 * x, SCHEDULE, "x0")
    for wrap in (clipped, dynamic_threshold):
        x = torch.randn(3, 2, 8, 8, dtype=torch.float32) * 5
        p = wrap(model)(x, KNOTS[5])
        assert p.value.shape == x.shape
        assert p.value.dtype == x.dtype
        assert float(p.x0.tensor().abs().max()) <= 1.0


@pytest.mark.parametrize("model", WRAPPED, ids=["clipped", "dynamic", "first"])
def test_results_do_not_depend_on_the_batch_or_on_the_form_of_the_knots(model):
    x = start(6)
    together = solve(Heun(), model, x, KNOTS).x
    alone = torch.cat([solve(Heun(), model.rows(torch.tensor([i])), x[i : i + 1], KNOTS).x for i in range(6)])
    assert torch.allclose(alone, together, rtol=0, atol=1e-12)
    assert torch.allclose(picard(Heun(), model, x, KNOTS, tolerance=0.0).x, together, rtol=0, atol=1e-10)  # knots as arrays


@pytest.mark.parametrize("model", WRAPPED, ids=["clipped", "dynamic", "first"])
def test_a_run_to_the_data_is_finite(model):
    knots = SCHEDULE.knots([1.0, 0.6, 0.3, 0.0])
    for solver in (DDIM(), Heun(), DDPM(), DDIM(1.0)):
        assert torch.isfinite(solve(solver, model, start(), knots, noise=White(0)).x).all()
    x = MODEL.sample(4)
    if model is not WRAPPED[2]:
        assert torch.equal(model(x, SCHEDULE.knot(0.0)).value, MODEL(x, SCHEDULE.knot(0.0)).value)


@pytest.mark.parametrize("std", [1.0, 0.7])
def test_the_analytic_first_step_is_the_gaussian_oracle_and_costs_nothing(std):
    gaussian = Gaussian([0.0, 0.0], std**2, schedule=SCHEDULE)
    model = analytic_first_step(MODEL, KNOTS[0], std)
    x = start()
    p, q = model(x, KNOTS[0]), gaussian(x, KNOTS[0])
    assert torch.allclose(p.x0.tensor(), q.x0.tensor(), rtol=0, atol=1e-10)
    assert torch.allclose(p.eps.tensor(), q.eps.tensor(), rtol=0, atol=1e-12)
    assert torch.equal(model(x, KNOTS[1]).value, MODEL(x, KNOTS[1]).value)
    for solver in (DDIM(), Heun()):
        run, plain = solve(solver, model, x, KNOTS), solve(solver, MODEL, x, KNOTS)
        assert run.calls == plain.calls - 1
        assert float((run.x - plain.x).abs().max()) < 0.05
        by_hand = solve(solver, model, x, KNOTS[:2]).x
        if solver == DDIM():
            assert torch.allclose(by_hand, solve(solver, gaussian, x, KNOTS[:2]).x, rtol=0, atol=1e-12)


def test_a_learned_variance_the_cost_and_the_eps_of_guidance_pass_through():
    x, t = outside()

    class Guided:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            p = MODEL(x, t)
            return Prediction(x, t, p.value, "v", variance=torch.ones_like(x), eps_used=torch.zeros_like(x), cost=2)

        def rows(self, index):
            return self

    for original in (False, True):
        p = clipped(Guided(), original_eps=original)(x, t)
        assert p.cost == 2
        assert p.variance is not None
        assert torch.equal(p.eps.tensor(), torch.zeros_like(x))
    assert solve(DDIM(), clipped(Guided()), x, KNOTS).calls == 24


def test_bad_bounds_and_answers_say_so():
    for make, said in (
        (lambda: clipped(MODEL, 1.0, -1.0), "low below high"),
        (lambda: dynamic_threshold(MODEL, 1.5), "quantile"),
        (lambda: dynamic_threshold(MODEL, max=0.5), "bound <= max"),
        (lambda: analytic_first_step(MODEL, KNOTS[0], -1.0), "standard deviation"),
    ):
        with pytest.raises(UserError, match=said):
            make()
    with pytest.raises(ModelError, match="shape"):
        solve(DDIM(), clipped(ScoreNet(lambda x, t: x[:, :1], SCHEDULE)), start(), KNOTS)
    eps = ScoreNet(lambda x, t: x, DiscreteVP(np.linspace(1e-4, 0.02, 10)), "eps")
    assert torch.isfinite(solve(DDIM(), clipped(eps), start(), eps.schedule.knots([1.0, 0.5, 0.0])).x).all()
