"""The variational bound: against the joint Gaussian densities of a linear model, its gap to ln p, its forms against one another."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sdediff import (
    EDM,
    VE,
    AngleUniform,
    DiscreteVP,
    DiscretizedDecoder,
    FlowMatching,
    Gaussian,
    GaussianDecoder,
    LogSNR,
    Mixture,
    ModelError,
    Prediction,
    ScoreNet,
    Sigmas,
    Uniform,
    UserError,
    VPCosine,
    VPLinear,
    continuous_bound,
    elbo,
    noise_weights,
)

MEAN, COV = [0.4, -0.7], [[0.8, 0.3], [0.3, 0.4]]
X = torch.tensor([[0.5, -0.2], [1.3, 0.1], [-2.0, -1.5]], dtype=torch.float64)
MIX = Mixture([[-1.0, 0.2], [1.2, 0.5], [0.0, -1.0]], [0.3, 0.5, 0.2], schedule=VPLinear())


# --- linear-Gaussian models: both joint densities written down ----------------------------------------------------


class Chain(NamedTuple):
    """x_{t_0}, x_{t_1}, ..: the mean (n d,), the precision (n d, n d) and its log-determinant."""

    mean: np.ndarray
    precision: np.ndarray
    log_det: float


def chain(first, links) -> Chain:
    """first = (mean, variance); links: (matrix, offset, variance) of each next state given the one before."""
    d, n = len(first[0]), len(links) + 1
    difference, means, variances = np.eye(n * d), [np.asarray(first[0])], [first[1]]
    for i, (matrix, offset, variance) in enumerate(links, 1):
        difference[i * d : (i + 1) * d, (i - 1) * d : i * d] = -matrix
        means.append(matrix @ means[-1] + offset)
        variances.append(variance)
    weights = np.repeat(1 / np.array(variances), d)
    return Chain(np.concatenate(means), difference.T @ (weights[:, None] * difference), float(np.log(weights).sum()))


def affine(model: Gaussian, t):
    """(B, a): the model's x0 is B x_t + a."""
    _, total = model.moments(t)
    cov = (total.numpy() - t.sigma**2 * np.eye(2)) / t.alpha**2 if t.alpha else np.array(COV)
    matrix = t.alpha * cov @ np.linalg.inv(total.numpy())
    return matrix, model.mean.numpy() - t.alpha * matrix @ model.mean.numpy()


def added(t, s, sigma) -> float:
    if isinstance(sigma, Sigmas):
        return sigma.between(t, s)
    return sigma * s.sigma * math.sqrt(1 - (s.u / t.u) ** 2)


def joints(model: Gaussian, knots, x0, sigma=1.0, variance="small", decoder=None) -> tuple[Chain, Chain]:
    """(q(x_{t_0} .. x_{t_N} | x0), p(x_{t_0} .. x_{t_N}, x0)), written from the papers' formulas."""
    of_q, of_p, eye = [], [], np.eye(2)
    for t, s in pairwise(knots):
        n = added(t, s, sigma)
        keep = math.sqrt(s.sigma**2 - n**2) / t.sigma
        matrix, offset = affine(model, t)
        of_q.append((keep * eye, (s.alpha - keep * t.alpha) * x0, n**2))
        v = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
        pull = s.alpha - keep * t.alpha
        of_p.append((pull * matrix + keep * eye, pull * offset, v if variance == "large" else n**2))
    top, last = knots[0], knots[-1]
    matrix, offset = affine(model, last)
    of_p.append((matrix, offset, last.u2 if decoder is None else decoder))
    prior_std = model.schedule.prior_std
    return chain((top.alpha * x0, top.sigma**2), of_q), chain((np.zeros(2), prior_std**2), of_p)


def exact_elbo(q: Chain, p: Chain, x0) -> float:
    """E_q [ln p(x_{t_0} .. x_{t_N}, x0) - ln q(x_{t_0} .. x_{t_N} | x0)], the joint densities as they are."""
    n = len(q.mean)
    off = np.concatenate([q.mean, x0]) - p.mean
    spread = np.trace(p.precision[:n, :n] @ np.linalg.inv(q.precision))
    log_p = 0.5 * (p.log_det - len(p.mean) * math.log(2 * math.pi) - off @ p.precision @ off - spread)
    return log_p - 0.5 * (q.log_det - n * math.log(2 * math.pi) - n)


def exact_gap(q: Chain, p: Chain, x0) -> tuple[float, float]:
    """(ln p(x0), KL(q(. | x0) || p(. | x0)))."""
    n = len(q.mean)
    cov = np.linalg.inv(p.precision)
    log_p = stats.multivariate_normal(p.mean[n:], cov[n:, n:]).logpdf(x0)
    inner = p.precision[:n, :n]
    off = p.mean[:n] - np.linalg.solve(inner, p.precision[:n, n:] @ (x0 - p.mean[n:])) - q.mean
    kl = 0.5 * (np.trace(inner @ np.linalg.inv(q.precision)) + off @ inner @ off - n - np.linalg.slogdet(inner)[1] + q.log_det)
    return float(log_p), float(kl)


def some_sigmas(knots) -> Sigmas:
    return Sigmas(tuple(k.time for k in knots), tuple(s.sigma * (0.3 + 0.1 * i) for i, s in enumerate(knots[1:])))


CASES = {
    "DDPM": (VPLinear(), 1.0, "small"),
    "large": (VPLinear(), 1.0, "large"),
    "cosine": (VPCosine(), 1.0, "small"),
    "VE": (VE(0.3, 8.0), 1.0, "large"),
    "EDM": (EDM(0.1, 10.0), 1.0, "small"),
    "flow from alpha = 0": (FlowMatching(), 1.0, "small"),
    "eta 0.4": (VPLinear(), 0.4, "small"),
    "eta 0.4, large": (VPLinear(), 0.4, "large"),
    "Sigmas": (VPLinear(), some_sigmas, "small"),
}


def setting(name):
    schedule, sigma, variance = CASES[name]
    knots = AngleUniform().knots(schedule, 6, end=0.3 if isinstance(schedule, EDM) else 0.1)
    return Gaussian(MEAN, COV, schedule=schedule), knots, sigma(knots) if callable(sigma) else sigma, variance


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("decoder", [None, 0.05])
def test_the_bound_of_a_linear_gaussian_model_is_its_closed_form_and_its_gap_is_the_kl(name, decoder):
    model, knots, sigma, variance = setting(name)
    for form in ("kl", "noise", "sampled", "pairs"):
        if form == "noise" and knots[0].alpha == 0:
            continue
        bound = elbo(
            model, X, knots, sigma=sigma, variance=variance, form=form, draws="cubature", decoder=GaussianDecoder(decoder)
        )  # fmt: skip
        for i, x0 in enumerate(X.numpy()):
            q, p = joints(model, knots, x0, sigma, variance, decoder)
            log_p, kl = exact_gap(q, p, x0)
            assert abs(float(bound.value[i]) - exact_elbo(q, p, x0)) < 1e-10 * max(1, abs(log_p)), (form, i)
            assert abs(log_p - float(bound.value[i]) - kl) < 1e-10 * max(1, abs(log_p)), (form, i)
            assert kl > 0


def test_parts_and_table_add_up():
    model, knots, _, variance = setting("large")
    bound = elbo(model, X, knots, variance=variance, draws="cubature")
    prior, consistency, reconstruction = bound.parts
    torch.testing.assert_close(bound.value, reconstruction - prior - consistency, rtol=0, atol=0)
    top = knots[0]
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(top.alpha * X, top.sigma), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(prior, wanted.sum(1), rtol=1e-12, atol=1e-14)
    assert sum(row.nats for row in bound.steps) == pytest.approx(float(consistency.mean()), rel=1e-13)
    assert [(row.time, row.to, row.snr, row.snr_to) for row in bound.steps] == [(t.time, s.time, t.snr, s.snr) for t, s in pairwise(knots)]
    assert bound.calls == 6 * 4 + 4
    torch.testing.assert_close(bound.bits_per_dim(), -bound.value / (2 * math.log(2)))
    assert "reconstruction" in str(bound)
    assert len(str(elbo(model, X, steps=40)).splitlines()) == 3 + 12 + 1


# --- DDIM's theorem 1 ---------------------------------------------------------------------------------------------


def noise_error(model: Gaussian, t, x0) -> float:
    """E |eps - eps_hat|^2 over eps: eps - eps_hat = (I - sigma^2 S^-1) eps - sigma alpha S^-1 (x0 - m)."""
    inverse = np.linalg.inv(model.moments(t)[1].numpy())
    shift = t.sigma * t.alpha * inverse @ (x0 - model.mean.numpy())
    return float(np.trace(np.linalg.matrix_power(np.eye(2) - t.sigma**2 * inverse, 2)) + shift @ shift)


@pytest.mark.parametrize("name", ["DDPM", "large", "eta 0.4", "eta 0.4, large", "Sigmas", "EDM"])
def test_theorem_1_of_ddim(name):
    """J_sigma = L_gamma + C over the data, with one C for all models: the prior, the decoder's norm, and what V and n^2 differ by."""
    right, knots, sigma, variance = setting(name)
    models = right, Gaussian([0.0, 0.3], [[0.5, -0.2], [-0.2, 1.0]], schedule=right.schedule)
    root = np.linalg.cholesky(COV) * math.sqrt(2)
    data = [np.array(MEAN) + sign * column for column in root.T for sign in (1, -1)]  # their mean of a quadratic is that of the data
    gamma, constant = noise_weights(knots, variance=variance, sigma=sigma, decoder=GaussianDecoder(0.02))
    top, prior_std = knots[0], right.schedule.prior_std
    prior = np.mean([stats_kl(top.alpha * x0, top.sigma, prior_std) for x0 in data])
    for model in models:
        j = -np.mean([exact_elbo(*joints(model, knots, x0, sigma, variance, 0.02), x0) for x0 in data])
        l_gamma = np.mean([sum(g * noise_error(model, t, x0) for g, t in zip(gamma, knots, strict=True)) for x0 in data])
        assert j == pytest.approx(l_gamma + prior + 2 * constant.sum(), rel=1e-10, abs=1e-10)
        x = torch.tensor(np.array(data))
        bound = elbo(model, x, knots, sigma=sigma, variance=variance, decoder=GaussianDecoder(0.02), draws="cubature")
        assert -bound.mean()[0] == pytest.approx(j, rel=1e-10, abs=1e-10)


def stats_kl(mean, std: float, prior_std: float) -> float:
    r = (std / prior_std) ** 2
    return float(0.5 * (len(mean) * (r - 1 - math.log(r)) + mean @ mean / prior_std**2))


def test_weights_are_those_of_ddpm():
    schedule = DiscreteVP.linear(50, 1e-3, 0.2)
    knots = Uniform().knots(schedule, 49, end=1 / 50)
    betas = np.array(schedule.betas)[::-1][:-1]
    bar, before = (np.array([k.alpha**2 for k in part]) for part in (knots[:-1], knots[1:]))
    for variance, of_p in (("large", betas), ("small", betas * (1 - before) / (1 - bar))):
        gamma = noise_weights(knots, variance=variance).gamma[:-1]
        np.testing.assert_allclose(gamma, betas**2 / (2 * of_p * (1 - betas) * (1 - bar)), rtol=1e-11)  # eq. 12
    snr, cleaner = (np.array([k.snr for k in part]) for part in (knots[:-1], knots[1:]))
    np.testing.assert_allclose(gamma * snr, 0.5 * (cleaner - snr), rtol=1e-11)  # of |x0 - x0_hat|^2


# --- the forms ----------------------------------------------------------------------------------------------------


class Learned:
    """An oracle that also says where its variance lies, somewhere else in each component."""

    def __init__(self, model, w=None):
        self.model, self.schedule, self.shape, self.w = model, model.schedule, model.shape, w

    def __call__(self, x, t):
        p = self.model(x, t)
        w = torch.tanh(x + 0.3) if self.w is None else torch.full_like(x, self.w)
        return Prediction(x, t, p.value, p.kind, variance=w)

    def rows(self, index):
        return self


@pytest.mark.parametrize("steps", [5, 200])
@pytest.mark.parametrize(("variance", "sigma"), [("small", 1.0), ("large", 1.0), ("small", 0.3), ("learned", 1.0)])
def test_the_noise_form_is_the_kl_form(variance, sigma, steps):
    model = Learned(MIX)
    knots = LogSNR().knots(MIX.schedule, steps)
    a, b = (elbo(model, X, knots, variance=variance, sigma=sigma, form=form, draws=1, decoder_draws=1) for form in ("kl", "noise"))
    torch.testing.assert_close(a.parts.consistency, b.parts.consistency, rtol=1e-12, atol=0)
    assert torch.isnan(a.standard_error).all()


def test_learned_variances():
    """The KL of two diagonal Gaussians, against torch's and the posterior of the schedule; and its ends are the small and the large one."""
    schedule = MIX.schedule
    t, s = schedule.knot(0.6), schedule.knot(0.5)
    bound = elbo(Learned(MIX), X, (t, s), variance="learned", draws=1)
    from sdediff import White

    z = White(0).on(X).fresh(0)
    x_t = schedule.forward(X, t, z)
    p = Learned(MIX)(x_t, t)
    q, hat = schedule.posterior(X, x_t, t, s), schedule.posterior(p.x0.tensor(), x_t, t, s)
    small, large = q.variance, t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    w = (p.variance + 1) / 2
    std = torch.exp(0.5 * (w * math.log(large) + (1 - w) * math.log(small)))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(q.mean, small**0.5), normal(hat.mean, std)).sum(1)
    torch.testing.assert_close(bound.parts.consistency, wanted, rtol=1e-11, atol=0)
    for w, fixed in ((-1.0, "small"), (1.0, "large")):
        a, b = elbo(Learned(MIX, w), X, steps=20, variance="learned"), elbo(MIX, X, steps=20, variance=fixed)
        torch.testing.assert_close(a.value, b.value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("form", ["sampled", "pairs"])
def test_sampled_ratios_have_the_mean_of_the_kl_and_more_variance(form, variance):
    model, x = Learned(MIX), MIX.sample(2000)
    knots = LogSNR().knots(MIX.schedule, 60)
    kl, sampled = (elbo(model, x, knots, variance=variance, form=f, draws=1, decoder_draws=1).parts.consistency for f in ("kl", form))
    off = sampled - kl
    assert abs(float(off.mean())) < 4 * float(off.std()) / 2000**0.5
    if (form, variance) == ("sampled", "small"):
        assert float(off.var()) == pytest.approx(2 * float(kl.mean()), rel=0.1)  # a log-ratio of equal variances is N(KL, 2 KL)
    assert off.var() > kl.var()


# --- the error bar, and what a sample's noise depends on ------------------------------------------------------------


@pytest.mark.parametrize("times", ["all", 4, 12])
@pytest.mark.parametrize("form", ["kl", "sampled"])
def test_the_standard_error_is_right(times, form):
    """1000 copies of one sample, each with its own noise: unbiased, and the stated variance is the variance."""
    model = Gaussian(MEAN, COV, schedule=VPLinear())
    knots = Uniform().knots(model.schedule, 12, end=0.05)
    truth = elbo(model, X[:1], knots, draws="cubature").value
    bound = elbo(model, X[:1].expand(1000, 2).clone(), knots, times=times, form=form, seed=3)
    off = bound.value - truth
    assert abs(float(off.mean())) < 4 * float(off.std()) / 1000**0.5
    assert float(bound.standard_error.square().mean() / off.var()) == pytest.approx(1.0, abs=0.15)
    assert sum(row.nats for row in bound.steps) == pytest.approx(float(bound.parts.consistency.mean()))
    error = bound.mean()[1]
    assert error == pytest.approx(float(off.std()) / 1000**0.5)


@pytest.mark.parametrize("schedule", [VPLinear(), FlowMatching()])
def test_steps_of_very_different_lengths_are_drawn_and_weighted(schedule):
    """Also from alpha = 0, where the first step is infinitely long in lam."""
    model = Gaussian(MEAN, COV, schedule=schedule)
    knots = schedule.knots((1.0, 0.9, 0.5, 0.49, 0.48, 0.47, 0.1))
    truth = elbo(model, X[:1], knots, draws="cubature").parts.consistency
    found = elbo(model, X[:1].expand(1000, 2).clone(), knots, times=2, draws=40).parts.consistency
    error = float(found.std()) / 1000**0.5
    assert error < 0.01 * float(truth)
    assert abs(float(found.mean() - truth)) < 4 * error


@pytest.mark.parametrize("times", ["all", 3])
def test_a_sample_does_not_depend_on_its_batch(times):
    whole = elbo(MIX, X, steps=8, times=times, seed=5)
    torch.testing.assert_close(elbo(MIX, X, steps=8, times=times, seed=5, batch=2).value, whole.value, rtol=1e-13, atol=0)
    alone = elbo(MIX, X[2:], steps=8, times=times, seed=5, index=range(2, 3))
    torch.testing.assert_close(alone.value, whole.value[2:], rtol=1e-13, atol=0)
    assert not torch.equal(elbo(MIX, X, steps=8, times=times, seed=6).value, whole.value)


def test_labels_leave_with_their_samples():
    def net(x, condition, labels):
        assert len(labels) == len(x)
        return 0.1 * labels[:, None] * x

    model = ScoreNet(net, VPLinear(), "eps", labels=torch.tensor([0.0, 1.0, 2.0]))
    whole, parts = (elbo(model, X.float(), steps=4, batch=batch) for batch in (None, 1))
    torch.testing.assert_close(whole.value, parts.value)


# --- continuous time ----------------------------------------------------------------------------------------------


def exact_continuous(model: Gaussian, x0, first, last) -> float:
    at = model.schedule.knot_at
    return integrate.quad(lambda lam: noise_error(model, at("lam", lam), x0), first.lam, last.lam, epsabs=1e-13, epsrel=1e-12, limit=200)[0]


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(0.1, 10.0)])
def test_the_continuous_bound_is_its_integral(schedule):
    model, ends = Gaussian(MEAN, COV, schedule=schedule), (schedule.t_max, 0.1)
    wanted = [exact_continuous(model, x0, *map(schedule.knot, ends)) for x0 in X.numpy()]
    bound = continuous_bound(model, X, start=ends[0], end=ends[1], times=40, draws="cubature")
    np.testing.assert_allclose(bound.parts.consistency.numpy(), wanted, rtol=1e-10)
    discrete = elbo(model, X, schedule.knots(ends), draws="cubature")
    torch.testing.assert_close(bound.parts.reconstruction, discrete.parts.reconstruction, rtol=1e-12, atol=0)
    torch.testing.assert_close(bound.parts.prior, discrete.parts.prior, rtol=0, atol=0)
    for clock in ("lam", "time"):
        x = X[:1].expand(1000, 2).clone()
        drawn = continuous_bound(model, x, start=ends[0], end=ends[1], clock=clock, times=5).parts.consistency
        assert abs(float(drawn.mean()) - wanted[0]) < 4 * float(drawn.std()) / 1000**0.5


def test_the_continuous_bound_is_the_limit_of_the_discrete_one():
    """Consistency falls to its limit like 1/N, from above: every finer chain is a better bound (Kingma et al. 2021, eq. 14)."""
    model = Gaussian(MEAN, COV, schedule=VPLinear())
    limit = continuous_bound(model, X, end=0.05, times=40, draws="cubature").value
    gaps = []
    for n in (40, 80, 160):
        knots = LogSNR().knots(model.schedule, n, end=0.05)
        gaps.append(float((limit - elbo(model, X, knots, draws="cubature").value).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.05)
    for variance in ("large",):
        far = elbo(model, X, LogSNR().knots(model.schedule, 640, end=0.05), variance=variance, draws="cubature").value
        assert float((limit - far).max()) < 0.1


# --- the discretised decoder --------------------------------------------------------------------------------------


def test_the_grey_levels_of_the_decoder_add_up_to_one():
    t = VPLinear().knot(0.1)
    decoder = DiscretizedDecoder(levels=5)
    grey = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    for mean in (-1.3, 0.0, 0.2, 0.9, 40.0):
        log_p = decoder.log_density(grey, torch.full_like(grey, mean), t)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-14)
        assert bool(torch.isfinite(log_p).all())
    wanted = stats.norm.cdf((0.75 - 0.2) / t.u) - stats.norm.cdf((0.25 - 0.2) / t.u)
    found = decoder.log_density(grey[3:4], torch.full((1, 1), 0.2, dtype=torch.float64), t)
    assert float(found) == pytest.approx(math.log(wanted), rel=1e-12)


def test_far_tails_of_the_decoder_are_exact():
    """A level 60 standard deviations off: ln of the tail's mass, not ln 0."""
    decoder = DiscretizedDecoder(levels=3, variance=0.01**2)
    x = torch.tensor([[0.0]], dtype=torch.float64)
    for mean in (1.1, -1.1):
        found = float(decoder.log_density(x, torch.full_like(x, mean), VPLinear().knot(0.1)))
        assert found == pytest.approx(float(stats.norm.logsf(60)), rel=1e-12)


def test_grey_levels_that_a_model_knows_cost_their_entropy():
    """Two equally likely levels in each of two coordinates, and a model that knows it: 1 bit a dimension is the truth."""
    model = Mixture([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], [1e-3] * 4, schedule=VPLinear())
    x = torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64).repeat(400, 1)
    bound = continuous_bound(model, x, decoder=DiscretizedDecoder(levels=2), times=40)
    assert bound.discrete
    assert float(bound.parts.reconstruction.abs().max()) < 1e-12
    value, error = (number / (2 * math.log(2)) for number in bound.mean())
    assert error < 0.02
    assert abs(-value - 1) < 4 * error
    with pytest.raises(UserError, match="256 grey levels"):
        elbo(MIX, X, steps=4, decoder=DiscretizedDecoder())


# --- bad input ----------------------------------------------------------------------------------------------------

K = Uniform().knots(VPLinear(), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knots": K[::-1]}, "reverse them"),
        ({"knots": (*K, VPLinear().knot(0.0))}, "sigma = 0"),
        ({"knots": (*K[:2], *K[1:])}, "reverse them, and drop repetitions"),
        ({"knots": K[:1]}, "at least two knots"),
        ({"x": X * math.nan}, r"NaN or infinite in samples \[0, 1, 2\]"),
        ({"x": X[:, :1]}, "the model works on"),
        ({"x": X[0, :]}, "floating point tensor"),
        ({"x": X.long()}, "floating point tensor"),
        ({"model": 3}, "wrap a network"),
        ({"variance": "learned"}, "Prediction.variance"),
        ({"variance": "smal"}, "Did you mean 'small'"),
        ({"form": "K"}, "choose one of"),
        ({"sigma": 0.0}, "above 0 in every step"),
        ({"sigma": -1.0}, "eta of at least 0"),
        ({"sigma": Sigmas((1.0, 0.5), (0.1,))}, "make it on the knots"),
        ({"times": 6}, "times = 6 of 5 steps"),
        ({"times": 0}, "at least 1"),
        ({"times": 2, "draws": "cubature"}, "take times="),
        ({"draws": 0}, "at least 1"),
        ({"draws": "cubature", "decoder": DiscretizedDecoder(levels=3)}, "grey levels|GaussianDecoder"),
        ({"index": range(2)}, "3 samples need 3 indices"),
    ],
)
def test_bad_input_says_what_to_do(change, message):
    arguments = {"model": MIX, "x": X, "knots": K, **change}
    with pytest.raises(UserError, match=message):
        elbo(arguments.pop("model"), arguments.pop("x"), arguments.pop("knots"), **arguments)


def test_more_bad_input():
    with pytest.raises(UserError, match='take form="kl"'):
        elbo(Gaussian([0.0], 1.0, schedule=FlowMatching()), X[:, :1], steps=5, form="noise")
    with pytest.raises(UserError, match="start short of it"):
        continuous_bound(Gaussian([0.0], 1.0, schedule=FlowMatching()), X[:, :1])
    with pytest.raises(UserError, match="no table"):
        noise_weights(K, variance="learned")
    with pytest.raises(UserError, match="positive number"):
        GaussianDecoder(0.0)
    with pytest.raises(UserError, match="at least 2 levels"):
        DiscretizedDecoder(1)
    broken = ScoreNet(lambda x, t: x / 0, VPLinear(), "eps")
    with pytest.raises(ModelError, match=r"NaN or infinity at time 1: check"):
        elbo(broken, X, K)


# --- the improved-DDPM table --------------------------------------------------------------------------------------


def test_steps_with_other_variances_cost_what_the_bound_with_them_says():
    from improved_ddpm import rescaled

    from sdediff.elbo.weights import Chain as Steps

    knots = LogSNR().knots(VPLinear(), 12)
    small, large = (elbo(MIX, X, knots, variance=v) for v in ("small", "large"))
    of_large = Steps.of(knots, "large", 1.0)
    ratios = [math.exp(v - q) for v, q in zip(of_large.log_large, of_large.log_q, strict=True)]
    assert rescaled(small, ratios) == pytest.approx([t.nats for t in large.steps], rel=1e-10)
    least = [1 + 2 * t.nats / small.dimension for t in small.steps]
    for other in (0.9, 1.1):
        away = rescaled(small, [other * r for r in least])
        assert all(a > b for a, b in zip(away, rescaled(small, least), strict=True))
