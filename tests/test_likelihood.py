"""The likelihood under the flow: closed forms, error bars that hold, every part of the budget, bits per dimension, and what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import missing
from torch import Tensor

from sdediff import (
    EDM,
    VE,
    Angle,
    DPMSolverPPMultistep,
    EmbeddedRungeKutta,
    Empirical,
    EulerMaruyama,
    ExactTrace,
    ExponentialAdams,
    FlowMatching,
    Gaussian,
    Heun,
    Hutchinson,
    HutchPP,
    Levels,
    LogSNR,
    Mixture,
    RungeKutta,
    SciPy,
    ScoreNet,
    SubVP,
    TorchDiffEq,
    UserError,
    VPCosine,
    VPLinear,
    load_model,
    log_likelihood,
    smooth_time,
)
from sdediff.data import digits
from sdediff.likelihood import Budget, LogLikelihood
from sdediff.prediction import Prediction

VP = VPLinear()
BITS = math.log(2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(d: int, schedule=VP, modes: int = 5, std: float = 0.3) -> Mixture:
    means = 0.7 * torch.randn(modes, d, generator=generator(d), dtype=torch.float64)
    return Mixture(means, [std * (1 + 0.2 * i) for i in range(modes)], schedule=schedule)


def correlated(d: int, schedule=VP) -> Gaussian:
    a = torch.randn(d, d, generator=generator(d), dtype=torch.float64) / math.sqrt(d)
    return Gaussian(torch.linspace(-0.5, 0.5, d), a @ a.T + 0.02 * torch.eye(d, dtype=torch.float64), schedule=schedule)


def closed(model, x: Tensor, t_min: float | None = None) -> Tensor:
    """log density of the data blurred by u of t_min: that of "clean"."""
    t = model.schedule.knot(model.schedule.t_min if t_min is None else t_min)
    return model.log_density(t.alpha * x, t) + x.shape[1] * t.log_alpha


def worst(found: LogLikelihood, truth: Tensor) -> float:
    return float((found.value - truth).abs().max())


# --- the value ------------------------------------------------------------------------------------------------------


CASES = [(VP, 2), (VP, 16), (VP, 64), (EDM(), 64), (VE(), 16), (VPCosine(), 16), (FlowMatching(), 16), (SubVP(), 2)]


@pytest.mark.parametrize(("schedule", "d"), CASES, ids=lambda v: type(v).__name__ if not isinstance(v, int) else str(v))
def test_the_exact_trace_is_the_closed_form_to_1e_4_nats(schedule, d):
    for model in (mixture(d, schedule), correlated(d, schedule)):
        x = model.sample(4, seed=1)
        found = log_likelihood(model, x, prior=model, tolerance=1e-6)
        assert found.reached
        assert worst(found, closed(model, x)) < 1e-4


SOLVERS = [
    (Heun(), 60, 0.1),
    (RungeKutta(), 30, 1e-2),
    (ExponentialAdams(4, "v", "angle", corrector=True), 80, 1e-2),
    (DPMSolverPPMultistep(3, corrected=True), 80, 5e-2),
    (None, 80, 5e-3),
]


@pytest.mark.parametrize(("solver", "steps", "within"), SOLVERS, ids=repr)
def test_any_solver_on_knots(solver, steps, within):
    model = mixture(8)
    x = model.sample(8, seed=1)
    truth = closed(model, x)
    found = log_likelihood(model, x, prior=model, solver=solver, steps=steps)
    assert worst(found, truth) < within
    assert worst(log_likelihood(model, x, prior=model, solver=solver, steps=2 * steps), truth) < within / 2
    rms = [float(e.square().mean().sqrt()) for e in (found.value - truth, found.budget.ode)]
    assert rms[0] < 1.5 * rms[1], "the difference to half the steps is not below the error"
    assert found.calls > steps


@pytest.mark.parametrize("solver", [None, EmbeddedRungeKutta(), TorchDiffEq(), SciPy(coordinates=Angle())], ids=repr)
def test_any_adaptive_solver_keeps_the_tolerance(solver):
    model = mixture(8)
    x = model.sample(8, seed=1)
    found = log_likelihood(model, x, prior=model, solver=solver, tolerance=1e-5)
    assert worst(found, closed(model, x)) < 3 * 8 * 1e-5


@pytest.mark.parametrize("schedule", [VP, EDM()], ids=lambda s: type(s).__name__)
def test_the_estimate_of_the_steps_error_is_honest(schedule):
    """True error over the estimate of AdaptiveAdams: below 2 for 95 % of the samples, and not below a hundredth in the median."""
    ratios = []
    for d in (2, 24):
        model = mixture(d, schedule)
        x = model.sample(16, seed=2)
        for tolerance in (1e-4, 1e-6):
            found = log_likelihood(model, x, prior=model, tolerance=tolerance)
            ratios.append((found.value - closed(model, x)).abs() / found.budget.ode)
            assert float(found.budget.ode.max()) < 3 * d * tolerance
    ratio = torch.cat(ratios)
    assert float(ratio.quantile(0.95)) < 2
    assert float(ratio.median()) > 0.01


def test_images_keep_their_shape_and_the_network_its_dtype():
    seen = []

    def net(x: Tensor, lam: Tensor) -> Tensor:
        seen.append((x.dtype, tuple(x.shape)))
        alpha, sigma = (torch.sigmoid(s * lam).sqrt()[:, None, None, None] for s in (2, -2))
        return sigma * (x - 0.5 * alpha) / (0.25 * alpha**2 + sigma**2)

    model = ScoreNet(net, VP, "eps", "lam", shape=(1, 3, 3))
    x = 0.5 + 0.5 * torch.randn(8, 1, 3, 3, generator=generator())
    found = log_likelihood(model, x)
    oracle = Gaussian(0.5 * torch.ones(9), 0.25, schedule=VP)
    assert worst(found, closed(oracle, x.double().flatten(1))) < 0.05, "N(0, 1) is not the marginal at t_max"
    assert worst(log_likelihood(model, x, prior=oracle), closed(oracle, x.double().flatten(1))) < 1e-3
    assert {dtype for dtype, _ in seen} == {torch.float32}
    assert all(shape[1:] == (1, 3, 3) for _, shape in seen)
    assert found.latent.shape == x.shape
    assert found.value.dtype == torch.float64
    assert torch.isfinite(found.budget.prior).all()
    lost = (found.value - log_likelihood(model, x, prior=oracle).value).abs()
    assert 0.2 < float(lost.square().mean().sqrt() / found.budget.prior.square().mean().sqrt()) < 1.5


# --- the trace ------------------------------------------------------------------------------------------------------

TRACES = [Hutchinson(8), Hutchinson(8, "gaussian"), Hutchinson(8, "sphere"), HutchPP(15)]


@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_the_interval_covers_the_truth_in_93_to_97_percent_of_1000_runs(trace):
    model = correlated(24)
    x = model.sample(1000, seed=3)
    truth = closed(model, x)
    found = log_likelihood(model, x, trace=trace, prior=model, tolerance=1e-4)
    low, high = found.interval()
    assert 0.93 <= float(((low <= truth) & (truth <= high)).double().mean()) <= 0.97
    error = found.value - truth
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(1000), "biased"
    ratio = found.standard_error.square().mean() / error.square().mean()
    assert 0.85 < float(ratio) < 1.15


def test_the_interval_holds_where_the_estimates_are_skewed():
    """A mixture of few modes: one direction matters, and Student's interval holds for 85 to 90 %."""
    model = mixture(16, modes=8, std=0.25)
    x = model.sample(1000, seed=4)
    found = log_likelihood(model, x, trace=Hutchinson(12), prior=model, tolerance=1e-4)
    truth, (low, high) = closed(model, x), found.interval()
    assert 0.925 <= float(((low <= truth) & (truth <= high)).double().mean()) <= 0.975
    plain = (found.value - truth).abs() < 2.201 * found.standard_error
    assert float(plain.double().mean()) < 0.93


def test_hutch_plus_plus_beats_hutchinson_at_the_same_cost():
    model = mixture(64, modes=8, std=0.25)
    x = model.sample(40, seed=5)
    truth = closed(model, x)
    rms = [
        float((log_likelihood(model, x, trace=t, prior=model, tolerance=1e-4).value - truth).square().mean().sqrt())
        for t in (HutchPP(18), Hutchinson(18))
    ]
    assert rms[0] < 0.6 * rms[1]


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(4), HutchPP(6)], ids=repr)
def test_a_sample_does_not_depend_on_its_batch(trace):
    model = correlated(12)
    x = model.sample(7, seed=6)
    options = {"trace": trace, "prior": model, "start": "noised", "tolerance": 1e-4}
    whole = log_likelihood(model, x, seed=3, **options)
    parts = log_likelihood(model, x, seed=3, batch=3, **options)
    torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(parts.standard_error, whole.standard_error, rtol=0, atol=1e-9)
    tail = log_likelihood(model, x[4:], seed=3, first=4, **options)
    torch.testing.assert_close(tail.value, whole.value[4:], rtol=0, atol=1e-9)
    assert not torch.allclose(log_likelihood(model, x, seed=4, **options).value, whole.value)


def test_one_probe_has_no_error_bar():
    model = correlated(6)
    found = log_likelihood(model, model.sample(3), trace=Hutchinson(1))
    assert torch.isnan(found.standard_error).all()
    assert math.isfinite(found.mean[1])
    assert torch.isnan(found.interval()[0]).all()


def test_the_probes_of_a_trajectory_are_fixed():
    """A second run with other steps has the same probes: the estimates agree to the steps' error, far below the scatter."""
    model = correlated(12)
    x = model.sample(4, seed=6)
    a, b = (log_likelihood(model, x, trace=Hutchinson(4), tolerance=tol) for tol in (1e-5, 1e-7))
    assert float((a.estimates - b.estimates).abs().max()) < 1e-3 < float(a.standard_error.min())


def test_the_interval_of_symmetric_estimates_is_students():
    estimates = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    error = estimates.std(1) / math.sqrt(5)
    found = LogLikelihood(zero, error, Budget(*[zero] * 5), estimates[:, :1], estimates, 5, 1)
    low, high = found.interval()
    assert float(high) == pytest.approx(2.7764 * float(error), rel=1e-4)
    assert float(low) == pytest.approx(-float(high))
    skewed = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0]], dtype=torch.float64) - 1
    low, high = LogLikelihood(zero, error, Budget(*[zero] * 5), estimates[:, :1], skewed, 5, 1).interval()
    assert float(high) > -2 * float(low) > 0


# --- truncation and prior -------------------------------------------------------------------------------------------


def test_truncation_is_what_the_blur_costs():
    model = mixture(8)
    x = model.sample(40, seed=7)
    found = log_likelihood(model, x, prior=model, t_min=1e-4, tolerance=1e-6)
    lost = (model.log_density(x, VP.knot(0.0)) - found.value).abs()
    torch.testing.assert_close(found.budget.truncation, lost, rtol=0.05, atol=2e-4)


def test_noised_is_off_by_the_decoder_only():
    """By Bayes the draw is log p_0 + log N(x; x0, u^2) - log N(x; x0, rho u^2), x0 = rho (x + u e): its mean in closed form."""
    model, d = Gaussian(torch.zeros(4), 0.04, schedule=VP), 4
    one = model.sample(1, seed=8)
    for t_min in (0.005, 0.02):
        u2 = VP.knot(t_min).u2
        rho = 0.04 / (0.04 + u2)
        found = log_likelihood(model, one.repeat(2000, 1), prior=model, start="noised", t_min=t_min, tolerance=1e-4)
        miss = (1 - rho) ** 2 * one.square() / u2 + rho**2  # E (x - x0)^2/u^2
        gap = float((-0.5 * math.log(rho) - 0.5 * (1 / rho - 1) * miss).sum())
        value, precision = found.mean
        assert value == pytest.approx(float(model.log_density(one, VP.knot(0.0))) - gap, abs=4 * precision + 1e-3)
        typical = d / 2 * (rho - 1 - math.log(rho))
        assert float(found.budget.truncation.mean()) == pytest.approx(typical, rel=1e-3)


def test_the_prior_is_known_for_an_oracle():
    model = mixture(6)
    x = model.sample(30, seed=9)
    plain, right = log_likelihood(model, x), log_likelihood(model, x, prior=model)
    torch.testing.assert_close(plain.budget.prior, (plain.value - right.value).abs(), rtol=0, atol=1e-5)
    assert not right.budget.prior.any()


def test_a_gaussian_with_the_datas_moments_is_a_better_prior():
    model = mixture(6)
    draws = model.sample(20_000, seed=10)
    fitted = Gaussian(draws.mean(0), draws.T.cov(), schedule=VP)
    x = model.sample(50, seed=9)
    off = [worst(log_likelihood(model, x, prior=p), closed(model, x)) for p in (None, fitted)]
    assert off[1] < 0.05 * off[0]


# --- grey levels ----------------------------------------------------------------------------------------------------


def log_mass(levels: Levels, x: Tensor, std: float) -> Tensor:
    """log P of independent Gaussians, bin by bin."""
    low, high = (edge / std for edge in levels.edges(x))
    return (torch.special.ndtr(high) - torch.special.ndtr(low)).log().sum(1)


DEQUANTISED = [
    ("clean", "uniform", None),
    ("clean", "truncated_normal", None),
    ("clean", "truncated_normal", 1e-3),
    ("noised", "uniform", 1e-5),
]


@pytest.mark.parametrize(("start", "kind", "t_min"), DEQUANTISED)
@pytest.mark.parametrize("levels", [Levels(-1, 1, 17), Levels(0, 1.5, 25, place=0.0)], ids=repr)
def test_the_bound_is_below_the_true_mass_by_what_the_budget_says(levels, start, kind, t_min):
    model, n = Gaussian(torch.zeros(3), 0.2**2, schedule=VP), 1500
    x = levels.low + levels.width * torch.tensor([[8.0, 9, 7], [5, 9, 8]] if levels.low else [[0.0, 1, 2], [4, 0, 1]], dtype=torch.float64)
    found = log_likelihood(
        model, x.repeat_interleave(n, 0), levels=levels, dequantise=kind, start=start, t_min=t_min, tolerance=1e-3, prior=model
    )
    t = VP.knot_at("u", levels.width / 6) if t_min is None and kind != "uniform" else VP.knot(VP.t_min if t_min is None else t_min)
    truth = log_mass(levels, x, math.hypot(0.2, t.u if start == "clean" else 0.0))
    value = found.value.reshape(2, n)
    gap, precision = truth - value.mean(1), value.std(1) / math.sqrt(n)
    assert bool((gap > -4 * precision).all()), "a bound above the truth"
    said = found.budget.dequantisation.reshape(2, n).mean(1)
    assert float((gap - said).abs().max()) < 4 * float(precision.max()) + 0.05 * float(gap.max()) + 2e-3
    assert torch.equal(found.bits_per_dim, -found.value / (3 * BITS))


def test_the_bound_approaches_the_mass_as_bins_shrink():
    model = Gaussian(torch.zeros(3), 0.2**2, schedule=VP)
    gaps = []
    for count in (9, 33, 129):
        levels = Levels(-1, 1, count)
        x = levels.low + levels.width * ((model.sample(200, seed=1).clamp(-1, 1) + 1) / levels.width).round()
        found = log_likelihood(model, x, levels=levels, prior=model, tolerance=1e-4)
        gaps.append(float((log_mass(levels, x, math.hypot(0.2, VP.knot(1e-3).u)) - found.value).mean()))
    assert gaps[0] > 0.1 > 4 * gaps[1]
    assert abs(gaps[2]) < 0.02


def test_the_offset_of_bits_per_dimension():
    """b - log2(high - low) for 2^b bins that fill [low, high]; bytes as x/127.5 - 1 have bins of 2/255, bytes as x/256 of 1/256."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert Levels(-1, 1, 256).width == 2 / 255
    assert Levels(0, 255 / 256, 256, place=0.0).width == pytest.approx(1 / 256)
    assert float(Levels(0, 255 / 256, 256, place=0.0).bits(zero, 7)) == pytest.approx(8)
    edge = 1 - 1 / 32
    assert float(Levels(-edge, edge, 32).bits(zero, 7)) == pytest.approx(5 - 1)
    # the same images, in two conventions: the same bits
    std, scale = 0.2, 3.0
    bits = []
    for s in (1.0, scale):
        levels = Levels(-s, s, 33)
        model = Gaussian(torch.zeros(2), (s * std) ** 2, schedule=VP)
        x = s * torch.tensor([[0.125, -0.25]], dtype=torch.float64)
        found = log_likelihood(model, x.repeat(400, 1), levels=levels, prior=model, t_min=1e-5, tolerance=1e-4)
        bits.append(found.mean_bits[0])
        continuous = log_likelihood(model, x, prior=model, t_min=1e-5, tolerance=1e-4)
        assert float(continuous.bits(levels)) == pytest.approx(bits[-1], abs=0.02)
    assert bits[0] == pytest.approx(bits[1], abs=2e-3)


def test_where_a_level_lies_in_its_bin():
    x = torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64)
    for place, first in ((0.5, -0.125), (0.0, 0.0), (1.0, -0.25)):
        low, high = Levels(0, 1, 5, place).edges(x)
        torch.testing.assert_close(low, x + first)
        torch.testing.assert_close(high, low + 0.25)


def test_the_levels_as_float32_hold_them():
    levels = Levels(-1, 1, 256)
    x = (torch.arange(256, dtype=torch.float32) / 127.5 - 1).reshape(1, -1)
    levels.check(x)
    low, high = levels.edges(x)
    assert bool(((low < x) & (x < high)).all())
    torch.testing.assert_close((high - low)[0], torch.full((256,), 2 / 255, dtype=torch.float64))


# --- networks and real data -----------------------------------------------------------------------------------------


def digits_split() -> tuple[Tensor, Tensor]:
    x = digits().x
    order = torch.randperm(len(x), generator=generator())
    return x[order[:1500]], x[order[1500:]]


def test_held_out_digits_under_their_kde_to_1e_3_bits_a_dimension():
    pytest.importorskip("sklearn")
    train, held_out = digits_split()
    model = Empirical(train, 0.2, schedule=VP)
    x = held_out[:3].flatten(1).double()
    found = log_likelihood(model, x, prior=model, tolerance=1e-4)
    assert worst(found, closed(model, x)) / (64 * BITS) < 1e-3
    fine = log_likelihood(model, x[:1], prior=model, tolerance=1e-4, t_min=1e-4)
    assert worst(fine, model.log_density(x[:1], VP.knot(0.0))) / (64 * BITS) < 1e-3


def test_bits_of_the_digits_network():
    pytest.importorskip("sklearn")
    from sdediff.pretrained.scores import digits_path

    model, x = load_model(digits_path()), digits_split()[1][:12]
    levels = Levels(-1, 1, 17)
    exact = log_likelihood(model, x, levels=levels, tolerance=1e-4)
    assert 1.5 < exact.mean_bits[0] < 3
    rough = log_likelihood(model, x, levels=levels, tolerance=1e-4, trace=HutchPP(16))
    low, high = rough.interval(0.99)
    assert float(((low <= exact.value) & (exact.value <= high)).double().mean()) > 0.85
    text = str(exact)
    assert all(f"\n{part}" in text for part in ("probes", "ode", "truncation", "dequantisation", "prior"))
    assert "bits per dimension" in text


def test_bits_of_the_third_party_mnist_network(mnist_folder):
    from sdediff.data import mnist
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    path = mnist_folder.parent / "weights" / "yichizz_ddpm_mnist_starter.pth"
    if not path.exists():
        missing(f"needs {path}, which is not here")
    model = smooth_time(load_hot_vs_cold(path))
    found = log_likelihood(model, mnist(mnist_folder, "test").x[:2] / 2, levels=Levels(-0.5, 0.5, 256), trace=Hutchinson(2), steps=16)
    assert 2 < found.mean_bits[0] < 6
    assert bool((found.standard_error > 0).all())


# --- what is refused ------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"x": torch.full((2, 3), math.nan)}, "NaN"),
        ({"x": torch.zeros(2, 4)}, "works on"),
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, "floating point"),
        ({"x": torch.zeros(0, 3)}, "at least one"),
        ({"x": 3.0}, "floating point"),
        ({"model": "digits"}, "wrap a network"),
        ({"solver": EulerMaruyama()}, "probability flow"),
        ({"steps": 10, "tolerance": 1e-3}, "not both"),
        ({"steps": 1}, "half of them"),
        ({"steps": 8, "solver": SciPy()}, "tolerance="),
        ({"grid": LogSNR()}, "steps="),
        ({"tolerance": -1.0}, "positive"),
        ({"trace": "hutchinson"}, "exact trace"),
        ({"trace": "hutch"}, "Did you mean"),
        ({"trace": 3}, "trace must be"),
        ({"start": "dirty"}, "does not exist"),
        ({"dequantise": "gauss"}, "does not exist"),
        ({"levels": Levels(-1, 1, 3), "dequantise": "truncated_normal", "start": "noised"}, "noise of t_min"),
        ({"levels": Levels(-1, 1, 3), "dequantise": "truncated_normal", "t_min": 0.0}, "sigma > 0"),
        ({"levels": Levels(0.5, 1, 3)}, "range from"),
        ({"levels": Levels(-1, 1, 4)}, "between the 4 levels"),
        ({"prior": VP}, "log_density"),
        ({"t_min": 1.0}, "below t_max"),
    ],
    ids=str,
)
def test_bad_input(options, says):
    asked = {"model": mixture(3), "x": X, **options}
    with pytest.raises(UserError, match=says):
        log_likelihood(**asked)


def test_bad_values():
    for make, says in [
        (lambda: Levels(1, -1, 8), "low < high"),
        (lambda: Levels(0, 1, 1), "two levels"),
        (lambda: Hutchinson(0), "at least 1"),
        (lambda: Hutchinson(4, "normal"), "kind"),
        (lambda: HutchPP(2), "at least 3"),
    ]:
        with pytest.raises(UserError, match=says):
            make()
    found = log_likelihood(mixture(3), X)
    with pytest.raises(UserError, match="levels"):
        _ = found.bits_per_dim
    with pytest.raises(UserError, match="between 0 and 1"):
        found.interval(95)


def test_a_network_without_gradients_is_refused():
    model = ScoreNet(lambda x, t: x.detach(), VP, "eps")
    with pytest.raises(UserError, match="no gradient"):
        log_likelihood(model, X)


class Jumping:
    """A model whose answers jump in time for one of the samples, those with a positive mean."""

    def __init__(self, model):
        self.model, self.schedule, self.shape = model, model.schedule, model.shape

    def __call__(self, x, t):
        p = self.model(x, t)
        wild = torch.as_tensor(np.sin(1e7 * np.asarray(t.time)), dtype=x.dtype).reshape(-1, 1) * (x.detach()[:, :1] > 50)
        return Prediction(x, t, p.value + wild * x, p.kind)

    def rows(self, index):
        return self


def test_a_sample_that_does_not_arrive_has_no_value_and_the_others_do():
    model = Gaussian([0.0, 0.0], [1.0, 1.0], schedule=VP)
    x = torch.tensor([[0.5, 0.1], [100.0, 0.1]], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = log_likelihood(Jumping(model), x)
    assert not found.reached
    assert told
    assert "sample" in str(told[0].message)
    assert math.isfinite(found.value[0])
    assert math.isnan(found.value[1])


def test_in_inference_mode_and_without_gradients():
    model = correlated(4)
    x = model.sample(2)
    with torch.inference_mode():
        a = log_likelihood(model, x.clone())
    torch.testing.assert_close(a.value, log_likelihood(model, x).value)
