"""Objectives against closed forms: the least loss there is, weightings that are the same loss for every reading, the variational bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gradient_variance
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sdediff import (
    EDM,
    P2,
    VE,
    VLB,
    DiscreteVP,
    DiscretizedDecoder,
    EDMWeight,
    FlowMatching,
    Gaussian,
    GaussianDecoder,
    Hybrid,
    Importance,
    Indices,
    LogitNormal,
    LogNormal,
    MinSNR,
    Mixture,
    Objective,
    Prediction,
    ScoreNet,
    Shifted,
    SubVP,
    TruncatedSNR,
    UniformTimes,
    UserError,
    VPCosine,
    VPLinear,
    elbo,
    objective_named,
)
from sdediff.elbo.draws import STATE, Random
from sdediff.networks import MLP
from sdediff.objective import OBJECTIVES, VALUES, WEIGHTINGS, x0_error
from sdediff.prediction import KINDS
from sdediff.times import TIMES, chain_times

SCHEDULES = (VPLinear(), VPCosine(), SubVP(), VE(), EDM(), FlowMatching(), DiscreteVP.linear(50))
WEIGHTS = [name for name in WEIGHTINGS if name != "simple"]
BITS = math.log(2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(n, d=1, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def expectation(f):
    """E f(z) over z ~ N(0, 1)."""
    return integrate.quad(lambda z: stats.norm.pdf(z) * f(z), -7, 7, epsabs=1e-10, limit=200)[0]


# --- weightings ---------------------------------------------------------------------------------------------------


class Off:
    """A model whose x0 is wrong by `error`, and who says so as `kind`."""

    def __init__(self, schedule, x0, noise, error, kind, data_std=1.0):
        self.schedule, self.shape, self.kind, self.d = schedule, (1,), kind, data_std
        self.x0, self.noise, self.error = x0, noise, error

    def __call__(self, x, t):
        p = Prediction(x, t, self.x0 + self.error, "x0")
        if self.kind == "v" and self.d != 1.0:
            r = np.hypot(t.alpha * self.d, t.sigma)
            return Prediction(x, t, p.mixed(-t.sigma / r / self.d, t.alpha * self.d / r).tensor(), "v", data_std=self.d)
        return Prediction(x, t, getattr(p, self.kind).tensor(), self.kind)

    def rows(self, index):
        return self


def of_papers(name, t):
    """The weight of |x0 - x0_hat|^2 as the papers write it."""
    snr = (t.alpha / t.sigma) ** 2
    return {
        "likelihood": 0.5 * t.g2 * (t.alpha / t.sigma**2) ** 2,  # g2/2 |score error|^2, and score = (alpha x0 - x)/sigma^2
        "snr": snr,
        "truncated_snr": np.maximum(snr, 1),
        "min_snr": np.minimum(snr, 5),
        "p2": snr / (1 + snr),
        "edm": ((t.sigma / t.alpha) ** 2 + 0.25) / (t.sigma / t.alpha * 0.5) ** 2,
    }[name]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weighting_is_the_same_loss_for_every_reading_and_every_network(schedule, name):
    times = np.linspace(0.02, 0.97, 40) * schedule.t_max
    x0, noise, error = (normals(40, 3, seed) for seed in range(3))
    expected = torch.as_tensor(of_papers(name, schedule.knot(times))) * error.square().mean(1)
    for kind, d in (*((k, 1.0) for k in KINDS), ("v", 0.5), ("v", 3.0)):
        model = Off(schedule, x0, noise, error, kind, d)
        for target in (None, *KINDS):
            loss = Objective(target, name).per_sample(model, x0, times, noise)
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_what_a_weighting_is_of_the_other_readings():
    """Min-SNR: min(SNR, g)/SNR of eps, min(SNR, g)/(SNR + 1) of v (VP); P2: 1/(k + SNR)^g of eps; EDM: 1 of its F."""
    t = VPLinear().knot(np.linspace(0.05, 0.95, 7))
    snr = t.snr
    np.testing.assert_allclose(Objective(weighting=MinSNR(2.0)).weight("eps", t), np.minimum(snr, 2) / snr, rtol=1e-12)
    np.testing.assert_allclose(Objective(weighting="min_snr").weight("v", t), np.minimum(snr, 5) / (snr + 1), rtol=1e-12)
    np.testing.assert_allclose(Objective(weighting=P2(0.3, 0.5)).weight("eps", t), (0.3 + snr) ** -0.5, rtol=1e-12)
    np.testing.assert_allclose(Objective(weighting="snr").weight("eps", t), 1.0, rtol=1e-12)
    np.testing.assert_allclose(Objective(weighting="truncated_snr").weight("eps", t), np.maximum(1, 1 / snr), rtol=1e-12)
    np.testing.assert_allclose(Objective(weighting=TruncatedSNR(4.0)).weight("x0", t), np.maximum(4, snr), rtol=1e-12)
    for schedule in SCHEDULES:
        t = schedule.knot(np.linspace(0.1, 0.9, 5) * schedule.t_max)
        np.testing.assert_allclose(Objective(weighting=EDMWeight(0.3)).weight("v", t, 0.3), 1.0, rtol=1e-12)
        np.testing.assert_allclose(x0_error("score", t), t.sigma**2 / t.alpha, rtol=1e-12)


ENDS = (FlowMatching(), Shifted(FlowMatching(), 3.0), *(s for s in SCHEDULES if not isinstance(s, FlowMatching)))


@pytest.mark.parametrize("schedule", ENDS, ids=repr)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_have_their_limits_at_the_ends(schedule, name):
    """At t_min and t_max, also where alpha = 0; and never NaN."""
    ends = schedule.t_min or 1e-3, schedule.t_max
    near = schedule.knot(np.array([ends[0], ends[1] * (1 - 1e-7)]))
    objective = Objective(weighting=name)
    for target in KINDS:
        found = objective.weight(target, schedule.knot(np.array(ends)))
        singly = [float(objective.weight(target, schedule.knot(t))) for t in ends]
        np.testing.assert_allclose(found, singly, rtol=1e-12)
        assert not np.isnan(found).any()
        finite = np.isfinite(found)
        np.testing.assert_allclose(found[finite], objective.weight(target, near)[finite], rtol=1e-4, atol=1e-5)
        assert finite.all() or (near.alpha[1] < 1e-5 and target in ("eps", "score"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weighted_loss_at_alpha_0(name):
    x0, noise, error = (normals(4, 3, seed) for seed in range(3))
    schedule, t = FlowMatching(), np.array([0.3, 0.9, 1.0, 1.0])
    for target in ("v", "flow", "x0", None):
        assert Objective(target, name).per_sample(Off(schedule, x0, noise, error, "flow"), x0, t, noise).isfinite().all()
    loss = Objective(weighting=name)
    if name in ("snr", "min_snr", "p2"):
        assert loss.of(Prediction(noise, schedule.knot(t), noise + error, "eps"), x0, noise).isfinite().all()
    else:
        with pytest.raises(UserError, match="infinite at time 1: compare another reading"):
            loss.of(Prediction(noise, schedule.knot(t), noise + error, "eps"), x0, noise)


@pytest.mark.parametrize("preconditioning", ["edm", "input"])
def test_the_edm_weighting_has_the_network_s_data_std(preconditioning):
    x0, noise = normals(5, 2), normals(5, 2, 1)
    t = np.linspace(0.1, 0.9, 5)
    model = ScoreNet(lambda x, c: torch.zeros_like(x), VPLinear(), preconditioning=preconditioning, data_std=0.9)
    for target in (None, "x0"):
        told, given = (Objective(target, w).per_sample(model, x0, t, noise) for w in (EDMWeight(0.9), "edm"))
        assert torch.equal(told, given)
    plain = ScoreNet(lambda x, c: torch.zeros_like(x), VPLinear())
    told, given = (Objective(weighting=w).per_sample(plain, x0, t, noise) for w in (EDMWeight(0.5), "edm"))
    assert torch.equal(told, given)


def test_the_bound_and_its_times_are_of_one_chain():
    chain = set(chain_times(VPLinear(), 50, 0.01))
    index = Objective(times="index")
    for loss in (
        VLB(steps=50, t_min=0.01),
        VLB(steps=50, t_min=0.01, times=Importance(Indices())),
        VLB(steps=50, t_min=0.01, times="importance"),
        Hybrid(index, bound=VLB(steps=50, t_min=0.01)),
        Hybrid(Objective(times="importance", t_min=0.01), bound=VLB(steps=50, t_min=0.01)),
    ):
        memory = loss.memory(VPLinear())
        assert memory is None or len(memory) == 50
        assert set(loss.draw(VPLinear(), 2000, generator(), memory).t) == chain


# --- the least loss -----------------------------------------------------------------------------------------------

D = 0.6


@dataclass(frozen=True)
class Modes:
    """A mixture in one dimension, and the posterior variance of its x0 by quadrature."""

    means: tuple[float, ...] = (-1.0, 0.3, 1.5)
    stds: tuple[float, ...] = (0.2, 0.4, 0.1)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)

    def oracle(self, schedule):
        return Mixture([[m] for m in self.means], self.stds, self.weights, schedule=schedule)

    def least(self, t):
        """E Var(x0 | x_t)."""
        means, var = np.array(self.means), np.array(self.stds) ** 2
        total = t.alpha**2 * var + t.sigma**2

        x = np.linspace(-1, 1, 100_001)[:, None] * (8 * t.sigma + 4 * t.alpha)
        joint = np.array(self.weights) * stats.norm(t.alpha * means, np.sqrt(total)).pdf(x)
        mean = means + t.alpha * var * (x - t.alpha * means) / total
        density, first = joint.sum(1), (joint * mean).sum(1)
        second = (joint * (var * t.sigma**2 / total + mean**2)).sum(1)
        return float(np.trapezoid(second - first**2 / np.maximum(density, 1e-300), x[:, 0]))


class Normal:
    def oracle(self, schedule):
        return Gaussian([0.2], D**2, schedule=schedule)

    def least(self, t):
        return D**2 * t.sigma**2 / (t.alpha**2 * D**2 + t.sigma**2)


def least_of(target, t, rho):
    """What an error of variance rho of x0 is of the reading."""
    r = math.hypot(t.alpha, t.sigma)
    factor = {"x0": 1, "eps": t.alpha / t.sigma, "v": r / t.sigma, "score": t.alpha / t.sigma**2, "flow": (t.alpha + t.sigma) / t.sigma}
    return rho * factor[target] ** 2


@pytest.mark.parametrize("data", [Normal(), Modes()], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("target", KINDS)
def test_the_exact_model_has_the_least_loss_there_is(data, schedule, target):
    """At each time: of eps it is alpha^2 d^2/(alpha^2 d^2 + sigma^2) for Gaussian data, and for a mixture a quadrature."""
    oracle, n = data.oracle(schedule), 20_000
    for share in (0.02, 0.3, 0.8):
        t = schedule.knot(share * schedule.t_max)
        expected = least_of(target, t, data.least(t))
        x0, noise = oracle.sample(n, seed=1), normals(n, seed=2)
        loss = Objective(target).per_sample(oracle, x0, np.full(n, t.time), noise)
        assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / math.sqrt(n)
        if isinstance(data, Normal) and target == "eps":
            assert expected == pytest.approx(t.alpha**2 * D**2 / (t.alpha**2 * D**2 + t.sigma**2), rel=1e-12)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), FlowMatching()], ids=repr)
def test_a_weighted_loss_over_times_is_its_integral(schedule, name):
    low, oracle, n = 0.02 * schedule.t_max, Normal().oracle(schedule), 40_000
    objective = Objective(weighting=name, t_min=low)

    def at(time):
        t = schedule.knot(time)
        return of_papers(name, t) * Normal().least(t)

    top = schedule.t_max
    expected = integrate.quad(at, low, top * (1 - 1e-12), limit=200)[0] / (top - low)
    draw = objective.draw(schedule, n, generator(3))
    assert draw.weight is None
    loss = objective.per_sample(oracle, oracle.sample(n, seed=4), draw.t, normals(n, seed=5))
    assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / math.sqrt(n)


def test_the_edm_loss_of_edm_noise_levels_is_a_normal_quadrature():
    """Data of another std than data_std; E over ln sigma ~ N(-1.2, 1.2^2) of lambda(sigma) rho(sigma)."""
    schedule, n = EDM(1e-4, 1e4), 50_000
    oracle, objective = Normal().oracle(schedule), Objective(weighting="edm", times="log_normal")

    def at(z):
        t = schedule.knot(np.exp(-1.2 + 1.2 * z))
        return of_papers("edm", t) * Normal().least(t)

    draw = objective.draw(schedule, n, generator(6))
    loss = objective.per_sample(oracle, oracle.sample(n, seed=7), draw.t, normals(n, seed=8))
    assert abs(float(loss.mean()) - expectation(at)) < 4 * float(loss.std()) / math.sqrt(n)


def test_the_likelihood_weighted_loss_has_the_gradient_of_the_divergence():
    """Gaussian data, and the exact model of data of another std c: d/dc of the loss times t_max - t_min is d/dc KL(data || model).

    The bound of Song et al. 2021b, theorem 1, is tight for scores of one diffusion; both ends are put where they weigh nothing.
    """
    schedule, low = VPLinear(), 1e-5

    def integrand(time, c):
        t = schedule.knot(time)
        of_data, of_model = (t.alpha**2 * v + t.sigma**2 for v in (D**2, c**2))
        error2 = t.sigma**2 * (1 / of_data - 1 / of_model) ** 2 * of_data  # of eps, beyond the least
        return Objective(weighting="likelihood").weight("eps", t) * error2

    def loss(c):
        return integrate.quad(integrand, low, 1.0, args=(c,), epsabs=1e-13, epsrel=1e-11, limit=400, points=[1e-3, 1e-2, 0.1])[0]

    def divergence(c, t):
        of_data, of_model = (t.alpha**2 * v + t.sigma**2 for v in (D**2, c**2))
        return 0.5 * (of_data / of_model - 1 - math.log(of_data / of_model))

    h, c = 1e-4, 0.8
    first, last = schedule.knot(low), schedule.knot(1.0)
    slopes = [(f(c + h) - f(c - h)) / (2 * h) for f in (loss, lambda c: divergence(c, first) - divergence(c, last))]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-6)


class Scale(torch.nn.Module):
    """A network of one number: it answers eps = w x."""

    def __init__(self, w=0.4):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x, condition):
        return self.w * x


def test_gradients_of_a_weighted_loss_are_those_of_its_closed_form():
    schedule, n = VPLinear(), 40_000
    net = Scale()
    objective = Objective(weighting="likelihood", times="uniform", t_min=0.05)

    def at(time, w):
        t = schedule.knot(time)
        error2 = (1 - w * t.sigma) ** 2 + (w * t.alpha * D) ** 2
        return 0.5 * t.g2 / t.sigma**2 * error2 / 0.95

    slope = [integrate.quad(at, 0.05, 1.0, args=(w,))[0] for w in (0.4 + 1e-5, 0.4 - 1e-5)]
    expected = (slope[0] - slope[1]) / 2e-5
    gradients = []
    for seed in range(20):
        t = objective.draw(schedule, n // 20, generator(seed)).t
        loss = objective(ScoreNet(net, schedule), D * normals(n // 20, seed=100 + seed), t, normals(n // 20, seed=200 + seed))
        gradients.append(float(torch.autograd.grad(loss, net.w)[0]))
    assert abs(np.mean(gradients) - expected) < 4 * np.std(gradients, ddof=1) / math.sqrt(20)


# --- times --------------------------------------------------------------------------------------------------------


def test_times_have_the_distributions_that_they_are_named_after():
    n = 20_000
    for schedule in (EDM(1e-4, 1e4), VPLinear(), FlowMatching(), VE(1e-3, 1e3)):
        t = LogNormal(-0.5, 0.7).draw(schedule, n, generator()).t
        assert stats.kstest(-schedule.knot(t).lam, stats.norm(-0.5, 0.7).cdf).pvalue > 1e-3
        t = LogitNormal(0.3, 0.8).draw(schedule, n, generator()).t / schedule.t_max
        assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
        low = schedule.t_min
        t = (UniformTimes().draw(schedule, n, generator()).t - low) / (schedule.t_max - low)
        assert stats.kstest(t, stats.uniform().cdf).pvalue > 1e-3
    u = np.linspace(0, 1, 50, endpoint=False)
    same = (d.at(FlowMatching(), u, 1e-3) for d in (LogNormal(0.2, 1.1), LogitNormal(0.2, 1.1)))  # ln u is the logit of t
    np.testing.assert_allclose(*same, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("times", list(TIMES.values()), ids=list(TIMES))
def test_times_lie_on_the_schedule_and_are_a_function_of_the_generator(schedule, times):
    for t_min in (None,) if isinstance(schedule, DiscreteVP) else (None, 0.3 * schedule.t_max):
        objective = Objective(times=times, t_min=t_min)
        draw = objective.draw(schedule, 500, generator(1), objective.memory(schedule))
        low = schedule.t_min if t_min is None else t_min
        assert draw.t.shape == (500,)
        assert draw.t.dtype == np.float64
        assert draw.t.min() >= low
        assert draw.t.max() <= schedule.t_max
        np.testing.assert_array_equal(draw.t, objective.draw(schedule, 500, generator(1), objective.memory(schedule)).t)
    with pytest.raises(UserError, match="t_min"):
        Objective(times=times, t_min=2 * schedule.t_max).draw(schedule, 5, generator())


def test_indices_are_ddpm_s_and_all_are_equally_likely():
    schedule = DiscreteVP.linear(100)
    t = Objective(times="index").draw(schedule, 50_000, generator()).t
    index = t * 100 - 1
    assert set(t.tolist()) == {schedule.time_of(i) for i in range(100)}
    np.testing.assert_allclose(index, np.round(index), atol=1e-10)
    assert stats.chisquare(np.bincount(np.round(index).astype(int))).pvalue > 1e-3
    assert sorted(Indices(low_discrepancy=True).draw(schedule, 100, generator()).t.tolist()) == [schedule.time_of(i) for i in range(100)]
    even = Indices(11).at(FlowMatching(), np.arange(11) / 11)
    np.testing.assert_allclose(even, np.linspace(1e-3, 1, 11), rtol=1e-15)
    with pytest.raises(UserError, match="chain of its own"):
        Indices(10).draw(schedule, 5, generator())


def test_low_discrepancy_works_for_every_distribution():
    for times in (UniformTimes, Indices, LogNormal, LogitNormal):
        even = times(low_discrepancy=True)
        t = np.sort(even.draw(VPLinear(), 64, generator()).t)
        edges = even.at(VPLinear(), np.append(np.arange(64) / 64, 1 - 1e-12))
        assert ((t >= edges[:-1]) & (t <= edges[1:])).all()


# --- importance sampling ------------------------------------------------------------------------------------------


def loss_of(base, schedule):
    """Something whose size changes a lot over the times of `base`: exp(-6 share) + 0.01 at the quantile `share`."""
    grid = np.linspace(0, 1 - 1e-9, 1001)
    times = base.at(schedule, grid)
    return lambda t: torch.as_tensor(np.exp(-6 * np.interp(t, times, grid)) + 0.01)


@pytest.mark.parametrize(
    ("times", "schedule"),
    [(Importance(), DiscreteVP.linear(50)), (Importance(), VPLinear()), (Importance(LogNormal(), bins=20, history=4), EDM()),
     (Importance("index", low_discrepancy=True, floor=0.1), VPLinear()), (Importance(Indices(30)), FlowMatching())],
)  # fmt: skip
def test_importance_sampling_keeps_the_mean_and_draws_large_losses_more(times, schedule):
    objective, memory = Objective(times=times), Objective(times=times).memory(schedule)
    bins, history = len(memory), memory.shape[1] - 2
    assert objective.draw(schedule, 9, generator(), memory).weight == pytest.approx(np.ones(9))
    base = times._base(schedule)
    loss_at = loss_of(base, schedule)
    for seed in range(200):
        t = base.draw(schedule, 500, generator(seed)).t
        new = objective.remember(memory, t, loss_at(t))
        assert new is not memory
        memory = new
        if memory[:, 1].min() >= history:
            break
    assert float(memory[:, 1].sum()) == 500 * (seed + 1)
    p = times.probabilities(memory)
    assert p.sum() == pytest.approx(1)
    assert p.min() >= times.floor / bins * (1 - 1e-9)
    inner = loss_at(base.at(schedule, (np.arange(bins) + 0.5) / bins)).numpy()
    wanted = (1 - times.floor) * inner / inner.sum() + times.floor / bins
    assert np.abs(p / wanted - 1).max() < 0.35  # the loss changes within a bin of continuous time
    n = 40_000
    draw = objective.draw(schedule, n, generator(9), memory)
    t = base.draw(schedule, n, generator(10)).t
    weighted, plain = (loss_at(draw.t) * torch.as_tensor(draw.weight)).numpy(), loss_at(t).numpy()
    error = math.hypot(weighted.std(), plain.std()) / math.sqrt(n)
    assert abs(weighted.mean() - plain.mean()) < 4 * error
    assert weighted.std() < 0.5 * plain.std()


def test_what_importance_sampling_remembers():
    """The last `history` losses of each index, in a ring; uniform until each has as many."""
    times, schedule = Importance(history=3), DiscreteVP.linear(4)
    memory = times.memory(schedule)
    np.testing.assert_array_equal(memory[:, 0].numpy(), np.arange(1, 5) / 4)
    t = np.array([0.25, 0.5, 0.25, 0.25, 0.25, 1.0])
    memory = times.remember(memory, t, torch.arange(1.0, 7.0))
    assert memory[:, 1].tolist() == [4, 1, 0, 1]
    assert sorted(memory[0, 2:].tolist()) == [3, 4, 5]
    assert sorted(memory[3, 2:].tolist()) == [0, 0, 6]
    assert (times.probabilities(memory) == 0.25).all()
    memory = times.remember(memory, np.repeat([0.25, 0.5, 0.75, 1.0], 3), torch.tensor([1.0] * 3 + [2.0] * 3 + [3.0] * 3 + [4.0] * 3))
    np.testing.assert_allclose(times.probabilities(memory), 0.999 * np.array([1, 2, 3, 4]) / 10 + 0.001 / 4)
    split = times.remember(times.memory(schedule), t[:2], torch.arange(1.0, 3.0))
    split = times.remember(split, t[2:], torch.arange(3.0, 7.0))
    torch.testing.assert_close(split, times.remember(times.memory(schedule), t, torch.arange(1.0, 7.0)))


def test_the_gradient_of_importance_sampled_times_is_that_of_uniform_ones():
    schedule, net = DiscreteVP.linear(60), Scale()
    model = ScoreNet(net, schedule)
    objective = Objective(weighting="likelihood", times=Importance())
    memory = objective.memory(schedule)
    for seed in range(15):
        t = Indices(low_discrepancy=True).draw(schedule, 120, generator(seed)).t
        memory = objective.remember(memory, t, objective.per_sample(model, D * normals(120, seed=seed), t, normals(120, seed=50 + seed)))

    def gradients(memory):
        found = []
        for seed in range(150):
            draw = objective.draw(schedule, 200, generator(300 + seed), memory)
            loss = objective.per_sample(model, D * normals(200, seed=500 + seed), draw.t, normals(200, seed=900 + seed))
            found.append(float(torch.autograd.grad((loss * torch.as_tensor(draw.weight)).mean(), net.w)[0]))
        return np.array(found)

    fresh = Objective(times=Importance()).memory(schedule)
    sampled, uniform = gradients(memory), gradients(fresh)
    assert abs(sampled.mean() - uniform.mean()) < 4 * math.hypot(sampled.std(), uniform.std()) / math.sqrt(150)
    assert sampled.var() < 0.8 * uniform.var()


# --- the variational bound ----------------------------------------------------------------------------------------


class Exact:
    """A Gaussian oracle that knows the variance of its reverse step too: V = n^2 + k^2 Var(x0 | x_t)."""

    def __init__(self, oracle, loss):
        self.oracle, self.schedule, self.shape, self.loss = oracle, oracle.schedule, (1,), loss

    def __call__(self, x, t):
        p = self.oracle(x, t)
        chain = chain_times(self.schedule, self.loss.steps, self.loss.t_min)
        s = np.array([chain[i - 1] if i else np.nan for i in np.abs(t.time[:, None] - chain).argmin(1)])
        rho = D**2 * t.sigma**2 / (t.alpha**2 * D**2 + t.sigma**2)
        with np.errstate(all="ignore"):
            k = self.schedule.knot(np.where(np.isnan(s), chain[0], s))
            part = -np.expm1(2 * (t.lam - k.lam))
            small, large = part * k.sigma**2, part * t.sigma**2
            exact = small + (k.alpha * part) ** 2 * rho
            at, before = self.schedule.knot(chain[1]), self.schedule.knot(chain[0])
            first = -math.expm1(2 * (at.lam - before.lam)) * before.sigma**2
            small, large, exact = (np.where(np.isnan(s), a, b) for a, b in ((first, small), (t.u2, large), (rho, exact)))
        w = np.log(exact / small) / np.log(large / small)
        return Prediction(x, t, p.value, p.kind, torch.as_tensor(2 * w - 1)[:, None].expand_as(x))


@pytest.mark.parametrize(
    "schedule", [DiscreteVP.linear(40, 1e-3, 0.3), DiscreteVP.cosine(40), VPLinear(), FlowMatching(), EDM(0.05, 20.0)], ids=repr
)
def test_the_bound_of_the_exact_model_with_exact_variances_is_the_entropy(schedule):
    """The reverse chain is the true one, so the bound is tight: sum of all terms = H(x0) - E KL(q(x_T | x0) || q(x_T))."""
    steps = None if isinstance(schedule, DiscreteVP) else 40
    loss = VLB(steps=steps, decoder=GaussianDecoder())
    model = Exact(Normal().oracle(schedule), loss)
    chain = chain_times(schedule, steps)
    top = schedule.knot(chain[-1])
    wanted = 0.5 * math.log(2 * math.pi * math.e * D**2) - 0.5 * math.log1p((top.alpha * D / top.sigma) ** 2)
    points = math.sqrt(2) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)  # the mean of any quadratic
    x0, noise = 0.2 + D * points[:, :1], points[:, 1:]
    terms = [float(loss.per_sample(model, x0, np.full(4, time), noise).mean()) for time in chain]
    assert np.mean(terms) == pytest.approx(wanted / BITS, rel=1e-9)


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(12, 1e-2, 0.5), VPLinear(), EDM(0.1, 5.0)], ids=repr)
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("decoder", [GaussianDecoder(), GaussianDecoder(0.05), DiscretizedDecoder(5)], ids=repr)
def test_the_terms_are_those_of_the_elbo(schedule, variance, decoder):
    """The same noise, step by step: sum = -(value + prior) in bits/dim."""
    model = Mixture([[-1.0, 0.2], [0.5, 1.0]], [0.3, 0.5], schedule=schedule)
    x = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.5, -0.5]], dtype=torch.float64)
    steps = None if isinstance(schedule, DiscreteVP) else 12
    loss = VLB(variance, steps, decoder)
    chain = chain_times(schedule, steps)
    knots = tuple(schedule.knot(float(t)) for t in chain[::-1])
    bound = elbo(model, x, knots, variance=variance, decoder=decoder, draws=1, decoder_draws=1)
    noise, total = Random(0, x, torch.arange(3)), 0
    for j, k in enumerate(knots[:-1]):
        total = total + loss.per_sample(model, x, np.full(3, k.time), noise.normal(j, 0, STATE))
    consistency = total / len(chain)
    torch.testing.assert_close(consistency, bound.parts.consistency / (2 * BITS), rtol=1e-9, atol=0)
    last = loss.per_sample(model, x, np.full(3, chain[0]), noise.normal(0, 0, 2)) / len(chain)
    torch.testing.assert_close(last, -bound.parts.reconstruction / (2 * BITS), rtol=1e-9, atol=1e-12)


class Learning(torch.nn.Module):
    """eps = a x, w = b, a number each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, 0.3))

    def forward(self, x, condition):
        return torch.cat([self.a * x, self.b.expand_as(x)], 1)


def test_the_hybrid_loss_moves_the_mean_by_l_simple_alone():
    schedule, net = DiscreteVP.linear(30, 1e-3, 0.3), Learning()
    model = ScoreNet(net, schedule, variance=True)
    hybrid, n = Hybrid(bound=VLB(decoder=DiscretizedDecoder(9))), 400
    x0 = (torch.randint(9, (n, 1), generator=generator()) / 4 - 1).double()
    t, noise = hybrid.draw(schedule, n, generator(1)).t, normals(n, seed=2)
    loss, simple, bound = (o.per_sample(model, x0, t, noise) for o in (hybrid, hybrid.simple, hybrid.bound))
    torch.testing.assert_close(loss, simple + 1e-3 * bound)
    a, b = torch.autograd.grad(loss.mean(), (net.a, net.b), retain_graph=True)
    torch.testing.assert_close(a, torch.autograd.grad(simple.mean(), net.a, retain_graph=True)[0])
    torch.testing.assert_close(b, 1e-3 * torch.autograd.grad(bound.mean(), net.b)[0])
    assert float(b.abs()) > 0
    at = (t * 30 - 1).round() == 0
    assert at.any()
    assert not at.all()


def test_t_over_1000():
    """A chain of N steps: the term of one step, in bits/dim, counts N weight = N/1000 (improved DDPM's rescaling)."""
    for n in (50, 1000):
        schedule = DiscreteVP.linear(n)
        oracle = Normal().oracle(schedule)
        x0, noise, t = oracle.sample(1), normals(1, seed=3), np.array([7 / n])
        bits = VLB("small", decoder=GaussianDecoder()).per_sample(oracle, x0, t, noise)
        s, k = schedule.knot(6 / n), schedule.knot(7 / n)
        q, p = (
            schedule.posterior(a, schedule.forward(x0, k, noise), k, s) for a in (x0, oracle(schedule.forward(x0, k, noise), k).x0.tensor())
        )
        normal = torch.distributions.Normal
        nats = torch.distributions.kl_divergence(normal(q.mean, q.variance**0.5), normal(p.mean, p.variance**0.5))
        torch.testing.assert_close(bits, n * nats[:, 0] / BITS, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_bound_are_finite_in_the_far_tails(dtype):
    """White and black pixels (open bins), a mean far from the data, at every step."""
    schedule = DiscreteVP.cosine(20)
    x0 = torch.tensor([[-1.0, 1.0, 0.0, 127 / 127.5 - 1]], dtype=dtype).expand(20, 4)
    for scale in (0.0, 1.0, 100.0):
        both = torch.full((20, 8), scale, dtype=dtype, requires_grad=True)
        model = ScoreNet(lambda x, c, both=both: both, schedule, "x0", variance=True)
        with torch.autograd.set_detect_anomaly(True):
            loss = VLB().per_sample(model, x0, chain_times(schedule), torch.ones(20, 4, dtype=dtype))
            gradient = torch.autograd.grad(loss.sum(), both)[0]
        assert torch.isfinite(loss[1:]).all()
        assert torch.isfinite(gradient[1:]).all()
        if scale < 2:
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


# --- training -----------------------------------------------------------------------------------------------------


SETTINGS = {
    "eps": (VE(0.02, 20.0), {"preconditioning": "input", "data_std": 0.9}, Objective("eps")),
    "v": (VPCosine(), {"predicts": "v"}, Objective()),
    "x0": (VPLinear(), {"predicts": "x0"}, Objective(weighting="min_snr")),
    "flow": (FlowMatching(), {"predicts": "flow"}, Objective(times="logit_normal")),
    "edm": (EDM(), {"preconditioning": "edm", "data_std": 0.9}, Objective(weighting=EDMWeight(0.9), times="log_normal")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_small_network_learns_to_the_least_loss(name):
    schedule, options, objective = SETTINGS[name]
    torch.manual_seed(0)
    net = MLP((1,), width=64, depth=2, embedding=32)
    model = ScoreNet(net, schedule, condition="lam", shape=(1,), **options)
    optimiser = torch.optim.Adam(net.parameters(), lr=8e-3)
    steps, rng = 150, generator(1)
    oracle = Modes((-1.0, 0.8), (0.3, 0.4), (0.4, 0.6)).oracle(schedule)
    data = oracle.sample(20_000, seed=2).float()
    for k in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 8e-3 * 0.5 * (1 + math.cos(math.pi * k / steps))
        draw = objective.draw(schedule, 512, rng)
        x0 = data[torch.randint(len(data), (512,), generator=rng)]
        loss = objective(model, x0, draw.t, torch.randn(512, 1, generator=rng))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    x0, noise, t = oracle.sample(40_000, seed=5), normals(40_000, seed=6), objective.draw(schedule, 40_000, generator(7)).t
    with torch.no_grad():
        found = float(objective(model, x0.float(), t, noise.float()))
    target = options.get("predicts", "eps")
    exact = objective if name == "edm" else Objective(target, objective.weighting)
    least = float(exact(oracle, x0, t, noise))
    print(f"{name}: {found:.4f} of {least:.4f}, {found / least - 1:+.2%}")
    assert -0.005 < found / least - 1 < 0.05


# --- text, and bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective("eps", MinSNR(2.0), times=LogNormal(0.0, 2.0)), Objective(times=Importance(Indices(20), low_discrepancy=True)),
     Hybrid(), Hybrid(Objective("v", "p2", times="index"), 0.01, VLB(steps=5)),
     VLB("small", 12, GaussianDecoder(0.1), Importance(Indices(12)), 0.1),
     Objective(times=LogitNormal(std=2.0))],
)  # fmt: skip
def test_reprs_rebuild_objectives(objective):
    assert objective_named(repr(objective)) == objective
    assert hash(objective) == hash(objective_named(repr(objective)))


def test_names_are_found():
    assert objective_named("VLB") == VLB()
    assert set(OBJECTIVES) == {"Objective", "Hybrid", "VLB"}
    assert "Importance" in VALUES
    with pytest.raises(UserError, match="Did you mean 'Hybrid'"):
        objective_named("hybrid()")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(weighting="min-snr"), "Did you mean 'min_snr'"),
        (lambda: Objective(weighting=3), "choose one of"),
        (lambda: Objective(times="indices"), "Did you mean 'index'"),
        (lambda: Objective(times=3), "choose one of"),
        (lambda: VLB("learnt"), "Did you mean 'learned'"),
        (lambda: Hybrid(weight=-1.0), "at least 0"),
        (lambda: LogNormal(std=0.0), "positive std"),
        (lambda: Importance(history=0), "history"),
        (lambda: Importance(floor=0.0), "floor"),
        (lambda: Importance("even"), "choose one of"),
        (lambda: LogNormal(50.0, 0.1).draw(VPLinear(), 3, generator()), "no probability"),
        (lambda: VLB(steps=1).draw(VPLinear(), 3, generator()), "at least 2"),
        (
            lambda: VLB().per_sample(Normal().oracle(VPLinear()), normals(3).tanh(), np.full(3, 0.5), normals(3)),
            "Prediction.variance",
        ),
        (lambda: VLB().per_sample(Normal().oracle(VPLinear()), 3 * torch.ones(3, 1), np.full(3, 0.5), normals(3)), "grey levels"),
        (lambda: VLB(steps=50, times=Importance(Indices(1000))), "chain of 50 steps"),
        (lambda: VLB(times=Indices(50)), "draws other times"),
        (lambda: VLB(times="uniform"), "draws other times"),
        (lambda: VLB(times=Importance("log_normal")), "draws other times"),
        (lambda: Hybrid(Objective(times="index", t_min=0.01)), "say t_min in VLB alone"),
        (lambda: Hybrid(Objective()), "draws other times"),
        (lambda: Hybrid(Objective(times=Indices(20)), bound=VLB(steps=50)), "chain of 50 steps"),
        (lambda: Hybrid(bound=VLB("small")), "trains the variance alone"),
        (lambda: Hybrid(bound=VLB(times="importance")), "are those of simple"),
        (lambda: Importance(bins=2000).memory(DiscreteVP.linear(1000)), "more than the 1000 times"),
        (lambda: Importance(Indices(20), bins=100).memory(VPLinear()), "more than the 20 times"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_benchmark_of_gradient_variances_runs():
    rows = gradient_variance.main(["--quick"])
    assert len(rows) == 10
    least = {r["loss"]: float(r["ratio"].split()[0]) for r in rows if r["steps chosen by"] == "importance"}
    assert least["L_vlb"] < least["L_simple"] < 0.6
