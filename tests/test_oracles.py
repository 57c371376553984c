"""Oracles: score, prediction, flow and draws agree with the density they claim, at any time and at one time a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdediff import (
    EDM,
    VE,
    Angle,
    AngleUniform,
    Empirical,
    FlowMatching,
    Gaussian,
    Mixture,
    RungeKutta,
    SubVP,
    UserError,
    VPLinear,
    solve,
)  # fmt: skip

SCHEDULES = (VPLinear(), SubVP(), VE(), EDM(), FlowMatching())
MEAN = [1.0, -2.0, 0.5]
COV = np.array([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]])
POINTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WIDTHS = torch.tensor([[0.3, 0.1, 1.0], [0.5, 0.5, 0.2], [0.2, 0.9, 0.4], [1.0, 0.3, 0.3]])
MAKE = {
    "gaussian": lambda s: Gaussian(MEAN, 0.7, schedule=s),
    "diagonal": lambda s: Gaussian(MEAN, [0.2, 3.0, 1.0], schedule=s),
    "matrix": lambda s: Gaussian(MEAN, COV, schedule=s),
    "mixture": lambda s: Mixture(POINTS, [0.3, 0.6, 0.2, 1.0], [1.0, 2.0, 3.0, 0.5], schedule=s),
    "diagonal mixture": lambda s: Mixture(POINTS, WIDTHS, schedule=s),
    "empirical": lambda s: Empirical(POINTS, 0.4, schedule=s),
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def states(n=6, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- density, score, prediction ---------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@settings(max_examples=12, deadline=None)
@given(r=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_score_is_the_gradient_of_the_log_density(make, schedule, r, seed):
    oracle, t = make(schedule), schedule.knot(r * schedule.t_max)
    x = (t.alpha * states(seed=seed) + t.sigma * states(seed=seed + 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(x, t).sum(), x)
    x = x.detach()
    close(oracle.score(x, t), gradient, 1e-8)
    p = oracle(x, t)
    close(p.score.tensor(), gradient, 1e-8)
    close(t.alpha * p.x0.tensor() + t.sigma * p.eps.tensor(), x, 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_densities_are_scipys(schedule):
    t, x = schedule.knot(0.4 * schedule.t_max), states()
    total = t.alpha**2 * COV + t.sigma**2 * np.eye(3)
    expected = stats.multivariate_normal(t.alpha * np.array(MEAN), total).logpdf(x.numpy())
    close(MAKE["matrix"](schedule).log_density(x, t), torch.as_tensor(expected))
    mean, cov = MAKE["matrix"](schedule).moments(t)
    close(mean, t.alpha * torch.tensor(MEAN, dtype=torch.float64))
    close(cov, torch.as_tensor(total))
    parts = [
        stats.multivariate_normal(t.alpha * m, np.diag(t.alpha**2 * w**2 + t.sigma**2)).pdf(x.numpy())
        for m, w in zip(POINTS.numpy(), WIDTHS.double().numpy(), strict=True)
    ]
    close(MAKE["diagonal mixture"](schedule).log_density(x, t), torch.as_tensor(np.log(np.mean(parts, axis=0))), 1e-7)


def test_one_mode_is_a_gaussian_and_a_number_is_a_matrix():
    t, x = VPLinear().knot(0.3), states()
    one = Gaussian(MEAN, 0.49, schedule=VPLinear())
    others = [
        Gaussian(MEAN, [0.49] * 3, schedule=VPLinear()),
        Gaussian(MEAN, 0.49 * np.eye(3), schedule=VPLinear()),
        Mixture([MEAN], [0.7], schedule=VPLinear()),
        Mixture([MEAN] * 2, [[0.7] * 3] * 2, [3.0, 1.0], schedule=VPLinear()),
        Empirical([MEAN] * 5, 0.7, schedule=VPLinear()),
    ]
    for other in others:
        close(other.score(x, t), one.score(x, t))
        close(other.log_density(x, t), one.log_density(x, t))
        close(other(x, t).value, one(x, t).value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("bandwidth", [0.0, 0.05, 0.7])
def test_empirical_is_the_mixture_of_its_points(schedule, bandwidth):
    data = torch.randn(50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3
    kernel = Empirical(data, bandwidth, schedule=schedule, chunk=4)  # 6 states: two chunks
    mixture = Mixture(data, torch.full((50,), bandwidth, dtype=torch.float64), schedule=schedule)
    for r in (0.02, 0.3, 0.9):
        t = schedule.knot(r * schedule.t_max)
        x = t.alpha * data[:6] + t.sigma * states()
        close(kernel.score(x, t), mixture.score(x, t), 1e-9)
        close(kernel(x, t).value, mixture(x, t).value, 1e-9)
        close(kernel.log_density(x, t), mixture.log_density(x, t), 1e-9)
    images = Empirical(data.reshape(50, 3, 1), bandwidth, schedule=schedule)
    close(images.score(x, t), mixture.score(x, t), 1e-9)
    assert images.shape == (3,)


# --- flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", ["gaussian", "diagonal", "matrix"])
def test_the_gaussian_flow_is_the_limit_of_fine_steps(schedule, kind):
    oracle = MAKE[kind](schedule)
    knots = AngleUniform().knots(schedule, 150, start=0.9 * schedule.t_max, end=0.02 * schedule.t_max)
    t, s = knots[0], knots[-1]
    x = t.alpha * states() + t.sigma * states(seed=1)
    y = oracle.flow(x, t, s)
    close(solve(RungeKutta("rk4", Angle()), oracle, x, knots).x, y, 1e-5)
    close(oracle.flow(y, s, t), x, 1e-11)
    middle = knots[70]
    close(oracle.flow(oracle.flow(x, t, middle), middle, s), y, 1e-11)
    # the flow carries the density with it: a line at a fixed distance in standard deviations
    mean, cov = oracle.moments(s)
    from_mean, from_cov = oracle.moments(t)
    a, b = x - from_mean, y - mean
    close((a @ torch.linalg.inv(from_cov) * a).sum(1), (b @ torch.linalg.inv(cov) * b).sum(1), 1e-9)


# --- draws ------------------------------------------------------------------------------------------------------------


@every
def test_draws_have_the_moments_and_the_entropy_of_the_density(make):
    schedule, n = VPLinear(), 40_000
    oracle = make(schedule)
    for t in (None, schedule.knot(0.4)):
        x = oracle.sample(n, t, seed=3)
        at = t or schedule.knot(0.0)
        assert x.dtype == torch.float64
        # E score = 0 and E x score^T = -I (Stein), to 4.5 standard errors
        score = oracle.score(x, t or schedule.knot(1e-7))
        for values, expected in ((score, torch.zeros(3)), (x[:, :, None] * score[:, None, :], -torch.eye(3))):
            error = values.std(0) / math.sqrt(n)
            assert ((values.mean(0) - expected).abs() < 4.5 * error).all()
        if isinstance(oracle, Gaussian):
            mean, cov = oracle.moments(at)
            white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).T, upper=False)
            for row in white:
                assert stats.kstest(row.numpy(), "norm").pvalue > 1e-4
    assert torch.equal(oracle.sample(5, seed=1), oracle.sample(5, seed=1))
    assert not torch.equal(oracle.sample(5, seed=1), oracle.sample(5, seed=2))
    assert not torch.equal(oracle.sample(5, schedule.knot(0.4), seed=1), oracle.sample(5, seed=1))


def test_mixture_draws_follow_the_weights():
    oracle = Mixture([[0.0], [10.0], [20.0]], [0.1, 0.2, 0.3], [1.0, 0.0, 3.0], schedule=VPLinear())
    x = oracle.sample(20_000, seed=0)[:, 0]
    assert abs(float((x < 5).double().mean()) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 20_000)
    assert not ((x > 5) & (x < 15)).any()
    assert float(x[x > 15].std()) == pytest.approx(0.3, rel=0.03)


# --- shapes, dtypes, ends ---------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_time_a_sample_is_row_by_row(make, schedule):
    oracle, x = make(schedule), states()
    times = np.array([0.01, 0.1, 0.3, 0.5, 0.8, 0.99]) * schedule.t_max
    t = schedule.knot(times)
    rows = [(x[i : i + 1], schedule.knot(float(time))) for i, time in enumerate(times)]
    for ask in (oracle.score, lambda x, t: oracle(x, t).value, lambda x, t: oracle(x, t).x0.tensor()):
        close(ask(x, t), torch.cat([ask(*row) for row in rows]), 1e-10)


@every
def test_a_row_does_not_depend_on_its_batch_and_dtype_is_kept(make):
    oracle, x, t = make(VPLinear()), states(), VPLinear().knot(0.2)
    whole = oracle(x, t).value
    for i in range(len(x)):
        close(oracle(x[i : i + 1], t).value, whole[i : i + 1], 1e-12)
    assert oracle.rows(torch.tensor([1])) is oracle
    for dtype in (torch.float32, torch.float64):
        p = oracle(x.to(dtype), t)
        assert p.value.dtype == p.x0.tensor().dtype == oracle.score(x.to(dtype), t).dtype == dtype
        torch.testing.assert_close(p.value.double(), oracle(x.to(dtype).double(), t).value, rtol=2e-7, atol=1e-7)
        assert oracle.log_density(x.to(dtype), t).dtype == torch.float64
    assert oracle.shape == (3,)


@every
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_both_ends_are_finite(make, schedule):
    oracle, x = make(schedule), states()
    for time in (0.0, schedule.t_max):
        p = oracle(x, schedule.knot(time))
        for reading in (p.value, p.x0.tensor(), p.eps.tensor(), p.flow.tensor()):
            assert torch.isfinite(reading).all()
        if p.at.sigma == 0:
            close(p.x0.tensor(), x)
            close(p.eps.tensor(), torch.zeros_like(x))
        if p.at.alpha == 0:
            close(p.eps.tensor(), x)
            close(p.x0.tensor(), p.x0.tensor().mean(0).expand_as(x))  # nothing is known but the mean


def test_a_gaussian_without_variance_knows_the_data():
    oracle = Gaussian(MEAN, [0.0, 1.0, 0.0], schedule=FlowMatching())
    for time in (0.3, 1.0):
        x0 = oracle(states(), FlowMatching().knot(time)).x0.tensor()
        close(x0[:, [0, 2]], torch.tensor(MEAN, dtype=torch.float64)[[0, 2]].expand(6, 2))
    assert torch.isfinite(oracle(states(), FlowMatching().knot(0.0)).value).all()  # 0/0 without care


def test_gaussian_answers_are_elementwise():
    oracle, t = MAKE["diagonal"](VPLinear()), VPLinear().knot(0.37)
    x = states(301)
    for i in (0, 150, 300):
        assert torch.equal(oracle(x, t).value[i], oracle(x[i : i + 1], t).value[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Gaussian(MEAN, -1.0, schedule=s),
        lambda s: Gaussian(MEAN, [1.0, -1.0, 1.0], schedule=s),
        lambda s: Gaussian(MEAN, np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), schedule=s),
        lambda s: Gaussian(MEAN, np.eye(2), schedule=s),
        lambda s: Mixture([0.0, 1.0], [1.0, 1.0], schedule=s),
        lambda s: Mixture([[0.0], [1.0]], [1.0, -1.0], schedule=s),
        lambda s: Mixture([[0.0], [1.0]], [1.0, 1.0], [1.0, -1.0], schedule=s),
        lambda s: Mixture([[0.0], [1.0]], [1.0, 1.0], [0.0, 0.0], schedule=s),
        lambda s: Mixture([[0.0], [1.0]], [1.0, 1.0], [1.0], schedule=s),
        lambda s: Empirical(torch.zeros(0, 2), 1.0, schedule=s),
        lambda s: Empirical(torch.zeros(3, 2), -1.0, schedule=s),
        lambda s: Empirical(torch.zeros(3, 2), math.nan, schedule=s),
    ],
)
def test_impossible_oracles_are_refused(make):
    with pytest.raises(UserError):
        make(VPLinear())


# --- once broken --------------------------------------------------------------------------------


def test_a_negative_matrix_is_refused():
    with pytest.raises(UserError, match="negative"):
        Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], schedule=VPLinear())


@pytest.mark.parametrize("name", ["flow", "log_density"])
def test_gaussian_flow_and_density_at_one_time_a_sample(name):
    oracle, x, s = MAKE["matrix"](VPLinear()), states(2), VPLinear().knot(0.1)
    ask = (lambda x, t: oracle.flow(x, t, s)) if name == "flow" else oracle.log_density
    t = VPLinear().knot(np.array([0.3, 0.6]))
    close(ask(x, t), torch.cat([ask(x[:1], VPLinear().knot(0.3)), ask(x[1:], VPLinear().knot(0.6))]))


@pytest.mark.parametrize("make", [lambda: Empirical(POINTS, 0.0, schedule=EDM()), lambda: Mixture(POINTS, [0.0] * 4, schedule=EDM())])
def test_points_without_width_are_finite_at_the_data(make):
    assert torch.isfinite(make()(states(), EDM().knot(0.0)).value).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Gaussian(MEAN, [1.0, 2.0], schedule=s),
        lambda s: Mixture([[0.0], [1.0]], [1.0, 1.0, 1.0], schedule=s),
        lambda s: Empirical([1.0, 2.0], 1.0, schedule=s),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make):
    with pytest.raises(UserError):
        make(VPLinear())
