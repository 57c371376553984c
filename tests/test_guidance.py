"""Guidance on a labelled mixture, where every score, conditional or not, and the classifier are closed form; and on small networks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdediff import (
    DDIM,
    DDPM,
    PID,
    AdaptiveAdams,
    AsynchronousLeapfrog,
    CFGPlusPlus,
    ClassifierFree,
    ClassifierGuidance,
    ClassifierNet,
    Counted,
    DPMSolverPPMultistep,
    EulerAncestral,
    ExponentialAdams,
    FlowMatching,
    Heun,
    Interval,
    LabelledMixture,
    LogSNR,
    Model,
    ModelError,
    Prediction,
    ScoreNet,
    Training,
    UserError,
    VPLinear,
    White,
    analytic_first_step,
    clipped,
    continuous_bound,
    decode,
    dynamic_threshold,
    elbo,
    encode,
    fit,
    guided,
    load_model,
    log_likelihood,
    picard,
    sample,
    save_model,
    solve,
)  # fmt: skip
from sdediff.checkpoint import load_classifier, save_classifier
from sdediff.data import InMemory
from sdediff.guidance import GUIDANCES, VALUES, _deviation, log_probability_gradient
from sdediff.latent_diffusion import LatentDiffusion
from sdediff.metrics import sliced_wasserstein
from sdediff.names import from_repr
from sdediff.networks import MLP, Autoencoder, NoisyClassifier, UNet
from sdediff.prediction import InPlace
from sdediff.tasks import ClassifierTask

SCHEDULE = VPLinear()
KNOTS = LogSNR().knots(SCHEDULE, 10, 1.0, 0.02)
MEANS = [[1.0, 0.0], [0.3, 0.9], [-0.9, 0.4], [-0.6, -0.8], [0.5, -0.9]]
MIXTURE = LabelledMixture(MEANS, [0.2, 0.3, 0.25, 0.2, 0.35], (0, 0, 1, 1, 2), [1, 2, 3, 2, 1], schedule=SCHEDULE)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2])
INTERVAL = Interval(0.3, 3.0)


def start(n: int = 8, t: float = 1.0) -> Tensor:
    return MIXTURE.sample(n, SCHEDULE.knot(t), seed=1)


def exact(w: float | ClassifierFree | CFGPlusPlus, **options) -> Model:
    return guided(MIXTURE, w if not isinstance(w, float) else ClassifierFree(w), LABELS, **options)


def network(classes: int | None = 3, variance: bool = False, width: int = 16) -> ScoreNet:
    """A small network that answers something to states (B, 1, 4, 4) and labels."""
    torch.manual_seed(3)
    net = MLP((1, 4, 4), width=width, depth=1, classes=classes, **({"variance": True} if variance else {})).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return ScoreNet(net.eval(), SCHEDULE, "v", "lam", shape=(1, 4, 4), variance=variance)


def images(n: int = 8) -> Tensor:
    return torch.randn(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# --- the oracle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0.05, 0.3, 0.8])
def test_the_labelled_mixture_is_bayes(time):
    t, x = SCHEDULE.knot(time), start(8, time)
    conditional = MIXTURE.with_labels(LABELS)
    share = MIXTURE.log_weights.exp()[MIXTURE.of == 1].sum()
    of_class = LabelledMixture(MEANS[2:4], [0.25, 0.2], (0, 0), [3, 2], schedule=SCHEDULE)
    rows = LABELS == 1
    assert torch.allclose(conditional.log_density(x, t)[rows], of_class.log_density(x[rows], t), rtol=0, atol=1e-12)
    assert torch.allclose(conditional(x, t).value[rows], of_class(x[rows], t).value, rtol=0, atol=1e-12)
    posterior = conditional.log_density(x, t)[rows] + share.log() - MIXTURE.log_density(x, t)[rows]
    for model in (MIXTURE, conditional):
        logits = model.classify(x, t)
        assert torch.allclose(logits[rows, 1], posterior, rtol=0, atol=1e-12)
        assert torch.allclose(logits.exp().sum(1), torch.ones(8).double(), rtol=0, atol=1e-12)
    nobody = MIXTURE.with_labels(torch.full((8,), 3))
    assert torch.allclose(nobody(x, t).value, MIXTURE(x, t).value, rtol=0, atol=1e-12)


# --- what is guided -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("time", [0.05, 0.3, 0.8])
def test_the_guided_score_is_that_of_p_x_times_p_y_given_x_to_the_w(w, time):
    t, x = SCHEDULE.knot(time), start(8, time)
    z = x.clone().requires_grad_()
    density = MIXTURE.log_density(z, t).sum() + w * MIXTURE.classify(z, t)[torch.arange(8), LABELS].sum()
    (expected,) = torch.autograd.grad(density, z)
    for model in (exact(w), guided(MIXTURE, ClassifierGuidance(w), LABELS, classifier=MIXTURE.classify)):
        assert torch.allclose(model(x, t).score.tensor(), expected, rtol=0, atol=1e-12 * (1 + w) / t.sigma**2)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("w", [0.7, 3.0])
def test_in_whatever_kind_the_networks_answer(kind, w):
    """Guidance is the same function of eps for every kind, also of two models that answer with different ones."""
    t, x = SCHEDULE.knot(0.4), start(8, 0.4)

    class Answers:
        schedule, shape = SCHEDULE, (2,)

        def __init__(self, model, kind):
            self.model, self.kind = model, kind

        def __call__(self, x, t):
            return Prediction(x, t, getattr(self.model(x, t), self.kind).tensor(), self.kind)

        def rows(self, index):
            return Answers(self.model.rows(index), self.kind)

    expected = exact(w)(x, t).eps.tensor()
    conditional = Answers(MIXTURE.with_labels(LABELS), kind)
    for other in (kind, "eps", "x0", "v", "score", "flow"):
        p = guided(conditional, ClassifierFree(w), weaker=Answers(MIXTURE, other))(x, t)
        assert (p.kind, p.cost) == (kind, 2)
        assert torch.allclose(p.eps.tensor(), expected, rtol=0, atol=1e-11)
    p = guided(Answers(MIXTURE, kind), ClassifierGuidance(w), LABELS, classifier=MIXTURE.classify)(x, t)
    assert p.kind == kind
    assert torch.allclose(p.eps.tensor(), expected, rtol=0, atol=1e-11)
    p = guided(conditional, ClassifierGuidance(w), LABELS, classifier=MIXTURE.classify)(x, t)  # on top of the label: 1 + w
    assert torch.allclose(p.eps.tensor(), exact(1 + w)(x, t).eps.tensor(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_classifier_is_the_difference_of_two_scores_along_a_whole_run(dtype):
    x = start().to(dtype)
    free = solve(Heun(), exact(2.5), x, KNOTS)
    by = guided(MIXTURE, ClassifierGuidance(2.5), LABELS, classifier=MIXTURE.classify)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            run = solve(Heun(), by, x, KNOTS)
            assert run.x.dtype == dtype
            assert not run.x.requires_grad
        assert torch.allclose(run.x, free.x, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)
        assert run.calls == free.calls == 2 * Heun().calls(KNOTS)
    with torch.inference_mode():
        state = x.clone()  # made here, it may not be part of any graph
        assert torch.equal(solve(Heun(), by, state, KNOTS).x, run.x)


def test_gradients_go_through_a_guided_run_when_asked():
    x = start(8, 0.5).requires_grad_()
    knots = LogSNR().knots(SCHEDULE, 3, 0.5, 0.1)
    found = []
    for model in (exact(2.0), guided(MIXTURE, ClassifierGuidance(2.0), LABELS, classifier=MIXTURE.classify)):
        run = solve(DDIM(), model, x, knots, grad=True)
        found.append(torch.autograd.grad(run.x.square().sum(), x)[0])
    assert torch.allclose(*found, rtol=0, atol=1e-10)


def test_the_likelihood_of_a_classifier_guided_model_of_scale_one_is_the_conditional_one():
    labels = LABELS[:3]
    x = MIXTURE.with_labels(labels).sample(3, seed=2)
    by = guided(MIXTURE, ClassifierGuidance(1.0), labels, classifier=MIXTURE.classify)
    values = [log_likelihood(m, x, steps=40).value for m in (by, MIXTURE.with_labels(labels))]
    assert torch.allclose(*values, rtol=0, atol=1e-8)


# --- samples ------------------------------------------------------------------------------------------------------


def test_at_scale_one_samples_are_those_of_the_class():
    """Sliced Wasserstein distance to p(x | y) against what two sets of exact samples have between them."""
    n = 2000
    labels = torch.full((n,), 1)
    conditional = MIXTURE.with_labels(labels)
    floor = [sliced_wasserstein(conditional.sample(n, seed=i), conditional.sample(n, seed=i + 100), 64) for i in range(8)]
    by = guided(MIXTURE, ClassifierGuidance(1.0), labels, classifier=MIXTURE.classify)
    for model in (guided(MIXTURE, ClassifierFree(1.0), labels), by):
        x = sample(model, n, steps=15, dtype=torch.float64)
        assert sliced_wasserstein(x, conditional.sample(n, seed=50), 64) < np.mean(floor) + 4 * np.std(floor) + 0.005
    wrong = sample(guided(MIXTURE, ClassifierFree(1.5), labels), n, steps=20, dtype=torch.float64)
    assert sliced_wasserstein(wrong, conditional.sample(n, seed=50), 64) > np.mean(floor) + 6 * np.std(floor)


def test_accuracy_rises_and_spread_falls_with_the_scale():
    n = 3 * 400
    labels = torch.arange(n) % 3
    accuracy, spread = [], []
    for w in (0.0, 0.5, 1.0, 2.0, 4.0):
        x = sample(guided(MIXTURE, ClassifierFree(w), labels), n, steps=20, dtype=torch.float64)
        accuracy.append(float((MIXTURE.classify(x, SCHEDULE.knot(0.02)).argmax(1) == labels).double().mean()))
        spread.append(float(sum(x[labels == y].var(0).sum() for y in range(3)).sqrt()))
    assert all(a < b + 0.01 for a, b in pairwise(accuracy)), accuracy
    assert accuracy[0] < 0.5 < 0.95 < accuracy[2] < accuracy[4], accuracy
    assert all(a > b for a, b in pairwise(spread)), spread
    assert spread[4] < 0.85 * spread[2]


# --- CFG++, rescale, thresholding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_cfg_plus_plus_is_its_own_ddim_step(scale):
    model = exact(CFGPlusPlus(scale))
    conditional, x = MIXTURE.with_labels(LABELS), start()
    run = solve(DDIM(), model, x, KNOTS)
    for t, s in pairwise(KNOTS):
        e_c, e_u = conditional(x, t).eps.tensor(), MIXTURE(x, t).eps.tensor()
        denoised = (x - t.sigma * ((1 - scale) * e_u + scale * e_c)) / t.alpha
        stepped = s.alpha * denoised + s.sigma * e_u
        plain = exact(ClassifierFree(scale / (1 - s.u / t.u)))(x, t)  # the same step by plain guidance, whose scale is the step's
        assert torch.allclose(DDIM().step(model, x, t, s).x, stepped, rtol=0, atol=1e-12)
        assert torch.allclose((s.alpha * plain.x0 + s.sigma * plain.eps).tensor(), stepped, rtol=0, atol=1e-11)
        x = stepped
    assert torch.allclose(run.x, x, rtol=0, atol=1e-11)
    assert run.calls == (1 if scale == 0 else 2) * DDIM().calls(KNOTS)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "flow"])
def test_every_reading_but_x0_is_of_the_noise_that_is_put_back(kind):
    t, x = SCHEDULE.knot(0.4), start(8, 0.4)
    own, other = MIXTURE(x, t), MIXTURE.with_labels(LABELS)(x, t).eps.tensor()
    p = Prediction(x, t, getattr(own, kind).tensor(), kind, eps_used=other)
    x0, r = own.x0.tensor(), math.hypot(t.alpha, t.sigma)
    expected = {"x0": x0, "eps": other, "flow": other - x0, "v": (t.alpha * other - t.sigma * x0) / r, "score": -other / t.sigma}
    for name, value in expected.items():
        assert torch.allclose(getattr(p, name).tensor(), value, rtol=0, atol=1e-11), name


@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.7), DDIM(1.0), EulerAncestral(0.7), EulerAncestral(1.0)], ids=repr)
def test_what_sample_takes_for_cfg_plus_plus_steps_in_its_form(solver):
    """s.alpha x0 + b eps_used + n z with b^2 + n^2 = s.sigma^2, and x itself nowhere else: of any x0 and eps."""
    t, s, x = KNOTS[3], KNOTS[4], start()
    x0, eps = images(8).flatten(1)[:, :2], images(8).flatten(1)[:, 2:4]

    class Two:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            return Prediction(x, t, self.x0, "x0", eps_used=self.eps)

    def step(x, x0, eps, seed):
        model = Two()
        model.x0, model.eps = x0, eps
        return solver.step(model, x, t, s, None, White(seed).on(x)).x

    drawn = step(x, 0 * x0, 0 * eps, 0)
    assert torch.allclose(step(7 * x, x0, 0 * eps, 0) - drawn, s.alpha * x0, rtol=0, atol=1e-12)
    b = (step(7 * x, 0 * x0, eps, 0) - drawn) / eps
    assert torch.allclose(b, b[0, 0].expand_as(b), rtol=0, atol=1e-11)
    z = White(0).on(x)(t.clock("snr"), s.clock("snr")) / (s.snr - t.snr) ** 0.5
    n = drawn.norm() / z.norm()
    assert float(b[0, 0] ** 2 + n**2) == pytest.approx(s.sigma**2, rel=1e-9)


def latent_model(seed: int = 0, **scaled) -> LatentDiffusion:
    torch.manual_seed(seed)
    inner = ScoreNet(UNet(2, width=8, multipliers=(1,), classes=3), SCHEDULE, "v", "lam", shape=(2, 4, 4))
    nn.init.normal_(inner.net.leave.weight, std=0.1)
    return LatentDiffusion(inner, Autoencoder(channels=1, latent=2, width=8, multipliers=(1, 2)).eval(), **scaled)


def test_sample_steps_as_ddim_under_cfg_plus_plus():
    labels, plus = LABELS[:2], CFGPlusPlus(0.5)
    for model in (guided(MIXTURE, plus, labels), clipped(guided(MIXTURE, plus, labels)), guided(latent_model(), plus, labels)):
        assert torch.equal(sample(model, 2, steps=4), sample(model, 2, steps=4, solver=DDIM(), grid=LogSNR()))
        assert torch.equal(sample(model, 2, calls=4), sample(model, 2, steps=4))
        assert sample(model, 2, steps=4, solver=EulerAncestral()).isfinite().all()
        for solver in (Heun(), DDPM(), DPMSolverPPMultistep(), ExponentialAdams(2, "flow", "lam")):
            with pytest.raises(UserError, match="is not known to take them"):
                sample(model, 2, steps=4, solver=solver)
        with pytest.raises(UserError, match="no limit of small steps"):
            sample(model, 2, tolerance=0.1)
    free = guided(MIXTURE, ClassifierFree(2.0), labels)
    assert not torch.equal(sample(free, 2, steps=4), sample(free, 2, steps=4, solver=DDIM()))


def test_the_command_line_says_which_solver_it_took_for_cfg_plus_plus():
    from sdediff.cli.drawing import draw

    net = network()
    net.net.float()
    for model in (net, latent_model()):
        assert draw(model, 2, labels="0,1", guidance="CFGPlusPlus(0.5)", steps=2).solver == DDIM()
        assert draw(model, 2, labels="0,1", guidance="ClassifierFree(2.0)", steps=2).solver != DDIM()


@pytest.mark.parametrize("wrap", [lambda m: m, clipped, lambda m: analytic_first_step(m, KNOTS[0])], ids=["bare", "clipped", "first"])
def test_cfg_plus_plus_has_no_density_and_no_code(wrap):
    x, model = start(2, 0.02), wrap(guided(MIXTURE, CFGPlusPlus(0.5), LABELS[:2]))
    for verb, arguments in ((log_likelihood, {"steps": 4}), (elbo, {"steps": 4}), (continuous_bound, {}), (encode, {"steps": 4})):
        with pytest.raises(UserError, match=f"{verb.__name__} needs one prediction of the noise, and CFG\\+\\+ has two") as error:
            verb(model, x, **arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("phi", [0.4, 1.0])
@pytest.mark.parametrize("kind", [None, "eps", "x0", "v"])
def test_rescale_is_the_published_formula(phi, kind):
    published = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    t, x, net = SCHEDULE.knot(0.4), images(), network()
    c, g = net.with_labels(LABELS)(x, t), guided(net, ClassifierFree(3.0), LABELS)(x, t)
    p = guided(net, ClassifierFree(3.0, rescale=phi, rescaled=kind), LABELS)(x, t)
    expected = published(*(getattr(q, kind or "v").tensor() for q in (g, c)), phi)
    assert torch.allclose(getattr(p, kind or "v").tensor(), expected, rtol=0, atol=1e-12)
    assert (p.value - g.value).abs().max() > 1e-3
    assert p.cost == 2


def test_rescale_inside_an_interval_changes_nothing_outside_it():
    x, net = images(), network()
    guidance = ClassifierFree(3.0, INTERVAL, rescale=0.7, rescaled="x0")
    times = np.linspace(0.05, 0.95, 8)
    inside = np.array([INTERVAL.holds(SCHEDULE.knot(t)) for t in times])
    assert 0 < inside.sum() < 8
    p, c = guided(net, guidance, LABELS)(x, SCHEDULE.knot(times)), net.with_labels(LABELS)(x, SCHEDULE.knot(times))
    assert torch.equal(p.value[~inside], c.value[~inside])
    for i in np.flatnonzero(inside):
        one = guided(net, guidance, LABELS[[i]])(x[[i]], SCHEDULE.knot(times[i]))
        assert torch.allclose(p.x0.tensor()[[i]], one.x0.tensor(), rtol=0, atol=1e-12)


def test_the_spread_of_an_image_has_the_same_bits_in_any_batch():
    """torch shares the sum over a single large sample among threads, and over several it does not."""
    x = torch.randn(40, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    try:
        together = _deviation(x)
        alone = torch.cat([_deviation(x[[i]]) for i in range(40)])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(together, alone)
    assert torch.allclose(together.flatten(), x.double().flatten(1).std(1, correction=0), rtol=1e-12)


def test_a_sample_without_spread_is_left_as_it_is():
    flat = ScoreNet(lambda x, c, y: torch.zeros_like(x) + y[:, None, None, None], SCHEDULE, "v", "lam")
    p = guided(flat, ClassifierFree(3.0, rescale=1.0), LABELS, none=0)(images(), SCHEDULE.knot(0.4))
    assert torch.isfinite(p.value).all()


def test_thresholding_goes_around_guidance():
    t, x = SCHEDULE.knot(0.5), 3 * start(8, 0.5)
    p, q = exact(4.0)(x, t), clipped(exact(4.0), -0.5, 0.5)(x, t)
    assert torch.equal(q.x0.tensor(), p.x0.tensor().clamp(-0.5, 0.5))
    assert (p.x0.tensor().abs() > 0.5).any()
    assert q.cost == 2
    plus = dynamic_threshold(exact(CFGPlusPlus(0.8)), bound=0.5)(x, t)
    assert torch.equal(plus.eps.tensor(), exact(CFGPlusPlus(0.8))(x, t).eps.tensor())
    assert float(plus.x0.tensor().abs().max()) <= 0.5 + 1e-12
    # guidance around thresholding that keeps the eps: both readings are guided
    c, u = (clipped(m, -0.5, 0.5, original_eps=True) for m in (MIXTURE.with_labels(LABELS), MIXTURE))
    both = guided(c, ClassifierFree(3.0), weaker=u)(x, t)
    assert torch.allclose(both.eps.tensor(), (3 * c(x, t).eps - 2 * u(x, t).eps).tensor(), rtol=0, atol=1e-12)
    assert torch.allclose(both.x0.tensor(), (3 * c(x, t).x0 - 2 * u(x, t).x0).tensor(), rtol=0, atol=1e-12)


# --- calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPMSolverPPMultistep(), DDPM()], ids=repr)
def test_calls_are_counted_exactly(solver):
    x, noise = start(), White(0)
    for w, cost in ((1.0, 1), (0.0, 1), (3.0, 2)):
        assert solve(solver, exact(w), x, KNOTS, noise=noise).calls == cost * solver.calls(KNOTS)
    by = guided(MIXTURE, ClassifierGuidance(2.0), LABELS, classifier=MIXTURE.classify)
    assert solve(solver, by, x, KNOTS, noise=noise).calls == 2 * solver.calls(KNOTS)
    assert solve(solver, replace(by, w=0.0), x, KNOTS, noise=noise).calls == solver.calls(KNOTS)
    strong, weak = [], []
    model = guided(_watched(MIXTURE.with_labels(LABELS), strong), ClassifierFree(3.0, INTERVAL), weaker=_watched(MIXTURE, weak))
    run = solve(solver, model, x, KNOTS, noise=noise)
    assert len(strong) == solver.calls(KNOTS)
    assert weak == [t for t in strong if INTERVAL.holds(t)]
    assert 0 < len(weak) < len(strong)
    assert run.calls == len(strong) + len(weak)
    assert list(run.each) == [run.calls] * 8


def _watched(model: Model, asked: list) -> Model:
    class Watched:
        schedule, shape = model.schedule, model.shape

        def __call__(self, x, t):
            asked.append(t)
            return model(x, t)

        def rows(self, index):
            return _watched(model.rows(index), asked)

    return Watched()


def test_one_network_is_asked_once_for_both_halves():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"classes": 3}

        def forward(self, x, condition, labels=None):
            seen.append((len(x), None if labels is None else labels.tolist()))
            return x * 0.1

    model = guided(ScoreNet(Spy(), SCHEDULE, "v", "lam"), ClassifierFree(2.0, Interval(0.0, 1.0)), LABELS)
    counted = Counted(model)
    counted(images(), SCHEDULE.knot(0.1))
    assert seen == [(16, LABELS.tolist() + [3] * 8)]
    counted(images(), SCHEDULE.knot(0.9))
    assert seen[1:] == [(8, LABELS.tolist())]
    assert counted.calls == 3
    counted.rows(torch.tensor([2, 5]))(images(2), SCHEDULE.knot(0.1))
    assert seen[2:] == [(4, [2, 0, 3, 3])]


def test_the_pair_is_the_two_networks():
    t, x = SCHEDULE.knot(0.4), images()
    for variance in (False, True):
        net = network(variance=variance)
        c, u = net.with_labels(LABELS)(x, t), net(x, t)
        p = guided(net, ClassifierFree(2.5), LABELS)(x, t)
        assert torch.allclose(p.value, u.value + 2.5 * (c.value - u.value), rtol=0, atol=1e-12)
        assert (c.value - u.value).abs().max() > 1e-2
        if variance:
            assert torch.allclose(p.variance, c.variance, rtol=0, atol=1e-12)


def test_autoguidance_gives_the_labels_to_both():
    t, x = SCHEDULE.knot(0.4), images()
    good, bad = network(), network(width=8)
    p = guided(good, ClassifierFree(2.0), LABELS, weaker=bad)(x, t)
    expected = 2 * good.with_labels(LABELS)(x, t).value - bad.with_labels(LABELS)(x, t).value
    assert torch.allclose(p.value, expected, rtol=0, atol=1e-12)
    as_they_stand = guided(good.with_labels(LABELS), ClassifierFree(2.0), weaker=bad)(x, t)
    assert torch.allclose(as_they_stand.value, 2 * good.with_labels(LABELS)(x, t).value - bad(x, t).value, rtol=0, atol=1e-12)


# --- each sample its own ------------------------------------------------------------------------------------------

OPTIONS = [
    ClassifierFree(2.5),
    ClassifierFree((0.0, 1.0, 3.0)),
    ClassifierFree((0.0, 1.0, 3.0), rescale=0.7),
    ClassifierFree((0.0, 1.0, 3.0), rescale=0.7, rescaled="x0"),
    ClassifierFree(2.5, INTERVAL),
    ClassifierFree((0.5, 1.0, 3.0), INTERVAL, rescale=0.7),
    ClassifierFree(2.5, INTERVAL, rescale=0.7, rescaled="x0"),
    CFGPlusPlus(0.6),
    CFGPlusPlus((0.0, 0.5, 1.0), INTERVAL),
    ClassifierGuidance(1.5),
    ClassifierGuidance((0.0, 1.0, 2.0), INTERVAL),
]


def under(guidance, labels: Tensor) -> Model:
    return guided(MIXTURE, guidance, labels, classifier=MIXTURE.classify if isinstance(guidance, ClassifierGuidance) else None)


@pytest.mark.parametrize("guidance", OPTIONS, ids=repr)
def test_results_do_not_depend_on_the_batch_by_a_bit(guidance):
    x, model = start(), under(guidance, LABELS)
    run = solve(DDIM(), model, x, KNOTS)
    for part in ([0], [3, 1], [7, 6, 5, 2]):
        alone = solve(DDIM(), under(guidance, LABELS[part]), x[part], KNOTS)
        left = solve(DDIM(), model.rows(torch.tensor(part)), x[part], KNOTS)
        assert torch.equal(alone.x, run.x[part])
        assert torch.equal(left.x, run.x[part])
        assert list(run.each[part]) == list(alone.each)


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_who_is_not_guided_is_answered_alike_in_any_batch(phi):
    """At w = 0 the weaker model's answer and variance, also of one that answers in other terms; at w = 1 the model's."""
    t, x, net = SCHEDULE.knot(0.4), images(), network(variance=True)
    weak = ScoreNet(net.net, SCHEDULE, "eps", "lam", shape=(1, 4, 4), variance=True)
    guidance = ClassifierFree((0.0, 1.0, 3.0), rescale=phi)
    for weaker in (None, weak):
        model = guided(net, guidance, LABELS, weaker=weaker)
        p = model(x, t)
        for rows in ([0, 5], [1, 4], [0, 1], [2, 3, 0]):
            q = InPlace(model, 8).rows(torch.tensor(rows))(x[rows], t)
            one = model.rows(torch.tensor(rows))(x[rows], t)
            assert one.kind == p.kind
            for name in ("value", "variance"):
                assert torch.equal(getattr(q, name), getattr(p, name)[rows])
                assert torch.allclose(getattr(one, name), getattr(p, name)[rows], rtol=0, atol=1e-12)
        alone = net(x, t) if weaker is None else weak.with_labels(LABELS)(x, t)
        assert torch.allclose(p.x0.tensor()[LABELS == 0], alone.x0.tensor()[LABELS == 0], rtol=0, atol=1e-11)
        assert torch.allclose(p.variance[LABELS == 0], alone.variance[LABELS == 0], rtol=0, atol=1e-12)


def test_calls_are_what_ran_and_each_what_was_needed():
    asked = []
    strong = _watched(MIXTURE.with_labels(LABELS), asked)
    model = guided(strong, ClassifierFree(), weaker=_watched(MIXTURE, asked), scales=torch.arange(8) % 2)
    for around in (model, clipped(model), InPlace(model, 8)):
        counted = Counted(around, each=np.zeros(8, np.int64))
        asked.clear()
        counted(start(), KNOTS[3])
        assert (counted.calls, len(asked)) == (2, 2)
        assert list(counted.each) == [1] * 8
    run = solve(DDIM(), model, start(), KNOTS)
    assert run.calls == 2 * DDIM().calls(KNOTS)
    assert list(run.each) == [DDIM().calls(KNOTS)] * 8


@pytest.mark.parametrize("guidance", OPTIONS, ids=repr)
def test_steps_of_each_sample_s_own(guidance):
    """Samples pass the ends of an interval one by one, and leave one by one: neither result nor count tells."""
    x, model, tolerance = start(), under(guidance, LABELS), PID(atol=1e-2, times=(1.0, 0.02))
    run = solve(AdaptiveAdams(), model, x, tolerance)
    assert run.reached or guidance.rescale  # of two components, whose spread vanishes on a line: no method is smooth across it
    for i in range(2):
        alone = solve(AdaptiveAdams(), under(guidance, LABELS[[i]]), x[[i]], tolerance)
        assert torch.equal(alone.x[0], run.x[i])
        assert alone.each[0] == run.each[i]
    if not (isinstance(guidance, CFGPlusPlus) or guidance.interval):
        fine = solve(Heun(), model, x, LogSNR().knots(SCHEDULE, 100, 1.0, 0.02))
        assert (fine.x - run.x).square().mean(1).sqrt().max() < 0.03


def test_calls_of_each_sample_in_a_solve_of_its_own_steps():
    """Exact: what the sample's network is asked, once outside the interval and twice inside."""
    t = SCHEDULE.knot(np.linspace(0.05, 0.95, 8))
    inside = INTERVAL.holds(t)
    assert 0 < inside.sum() < 8
    for guidance in (ClassifierFree(2.0, INTERVAL), CFGPlusPlus(0.5, INTERVAL), ClassifierGuidance(2.0, INTERVAL)):
        counted = Counted(under(guidance, LABELS), each=np.zeros(8, np.int64))
        p = counted(start(), t)
        assert list(counted.each) == list(1 + inside)
        assert counted.calls == 2
        assert torch.equal(p.value[~inside], _plain(guidance)(start(), t).value[~inside])
        some = counted.rows(torch.from_numpy(np.flatnonzero(~inside)))
        some(start()[~inside], SCHEDULE.knot(t.time[~inside]))
        assert list(counted.each) == list(1 + inside + ~inside)
        assert counted.calls == 3


def _plain(guidance) -> Model:
    return MIXTURE if isinstance(guidance, ClassifierGuidance) else MIXTURE.with_labels(LABELS)


def test_in_place_a_network_s_answers_keep_every_bit():
    """A network's last bits depend on its batch: with `InPlace` they must not depend on who is inside the interval, nor on who left."""
    net, x, labels = network(width=64), images(3).float(), LABELS[:3]
    net.net.float()
    t = np.array([0.05, 0.3, 0.95])
    assert list(INTERVAL.holds(SCHEDULE.knot(t))) == [False, True, False]
    for guidance in (ClassifierFree(2.0), ClassifierFree(2.0, INTERVAL, rescale=0.5), CFGPlusPlus(0.5, INTERVAL)):
        model = InPlace(guided(net, guidance, labels), 3)
        p = model(x, SCHEDULE.knot(t))
        for rows in ([0], [1], [2, 0], [1, 2]):
            q = model.rows(torch.tensor(rows))(x[rows], SCHEDULE.knot(t[rows]))
            assert torch.equal(q.value, p.value[rows])
            assert list(np.broadcast_to(q.cost, len(rows))) == list(np.broadcast_to(p.cost, 3)[rows])


@pytest.mark.parametrize("guidance", [ClassifierFree(2.0), ClassifierFree(2.0, INTERVAL)], ids=repr)
def test_encoding_under_guidance_comes_back_to_the_bit(guidance):
    net = network(width=64)
    with torch.no_grad():
        for p in net.net.float().parameters():
            p.mul_(0.5)
    model, x = guided(net, guidance, LABELS[:3]), images(3).float().clamp(-1, 1)
    for how in ({"steps": 10}, {"tolerance": 1e-2, "solver": AsynchronousLeapfrog()}):
        assert torch.equal(decode(model, encode(model, x, **how)), x)


def test_many_instants_at_once():
    for guidance in (*OPTIONS[:3], *OPTIONS[4:6]):
        model, x = under(guidance, LABELS[:3]), start(3)
        run, parallel = solve(DDIM(), model, x, KNOTS), picard(DDIM(), model, x, KNOTS, tolerance=0.0)
        assert torch.allclose(run.x, parallel.x, rtol=0, atol=1e-10)


def test_scales_travel_with_their_samples():
    scales = torch.linspace(0.0, 4.0, 8)
    x, t = start(), KNOTS[3]
    model = guided(MIXTURE, ClassifierFree(), LABELS, scales=scales)
    p = model(x, t)
    for i, w in enumerate(scales.tolist()):
        assert torch.equal(p.value[i], exact(w)(x, t).value[i]) if w in (0.0, 1.0) else torch.allclose(p.value[i], exact(w)(x, t).value[i])
    index = torch.tensor([6, 1])
    assert torch.equal(model.rows(index)(x[index], t).value, p.value[index])
    per_class = guided(MIXTURE, ClassifierFree((1.5, 2.0, 3.0)), LABELS)
    told = guided(MIXTURE, ClassifierFree(), LABELS, scales=torch.tensor([1.5, 2.0, 3.0])[LABELS])
    assert torch.equal(per_class(x, t).value, told(x, t).value)


def test_the_interval_is_closed_and_on_any_clock():
    t = SCHEDULE.knot(0.4)
    for clock in ("u", "time", "lam", "angle"):
        at = t.clock(clock)
        assert Interval(at, at + 1, clock).holds(t)
        assert Interval(at - 1, at, clock).holds(t)
        assert not Interval(at + 1e-9, at + 1, clock).holds(t)
        assert not Interval(at - 1, at - 1e-9, clock).holds(t)
    assert Interval(1.0, math.inf).holds(SCHEDULE.knot(1.0))


def test_at_both_ends_of_time():
    """alpha = 0 and sigma = 0 on flow matching, with exact models and with networks that predict flow."""
    flow = FlowMatching()
    mixture = LabelledMixture(MEANS, 0.3 * np.ones(5), (0, 0, 1, 1, 2), schedule=flow)
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    knots = flow.knots([1.0, 0.7, 0.3, 0.0])
    for guidance in (ClassifierFree(2.0), CFGPlusPlus(0.5), ClassifierFree(2.0, rescale=0.5)):
        assert torch.isfinite(solve(DDIM(), guided(mixture, guidance, LABELS), x, knots).x).all()
    by = guided(mixture, ClassifierGuidance(2.0), LABELS, classifier=mixture.classify)
    with pytest.raises(UserError, match="no signal"):
        solve(DDIM(), by, x, knots)
    by = guided(mixture, ClassifierGuidance(2.0, Interval(0.0, 1e3)), LABELS, classifier=mixture.classify)
    assert torch.isfinite(solve(DDIM(), by, x, knots).x).all()


# --- networks, memory, values -------------------------------------------------------------------------------------


def test_sampling_from_a_guided_network_in_batches():
    net = ScoreNet(UNet(width=8, multipliers=(1,), classes=3), SCHEDULE, "v", "lam", shape=(1, 8, 8))
    labels = torch.arange(6) % 3
    model = guided(net, ClassifierFree(2.0, INTERVAL), labels)
    with torch.no_grad():
        net.net.leave.weight.normal_(generator=torch.Generator().manual_seed(0))
    x = sample(model, 6, steps=4)
    assert torch.allclose(x, sample(model, 6, steps=4, batch=2), rtol=0, atol=1e-4)
    assert (x[0] - sample(guided(net, ClassifierFree(2.0), 2 - labels), 6, steps=4)[0]).abs().max() > 1e-3


def test_a_latent_model_is_guided_in_its_latents():
    model = latent_model()
    asked = guided(model, ClassifierFree(2.0), LABELS[:2])
    assert isinstance(asked, LatentDiffusion)
    assert asked(torch.randn(2, 2, 4, 4), KNOTS[2]).cost == 2
    assert sample(asked, 2, steps=2).shape == (2, 1, 8, 8)
    z = torch.randn(2, 2, 4, 4)
    weak = latent_model()  # the same autoencoder, in other memory
    two = guided(model, ClassifierFree(2.0), LABELS[:2], weaker=weak)
    assert torch.equal(two(z, KNOTS[2]).value, guided(model.inner, ClassifierFree(2.0), LABELS[:2], weaker=weak.inner)(z, KNOTS[2]).value)


def test_a_latent_model_is_wrapped_in_its_latents():
    model, z = latent_model(), 3 * torch.randn(2, 2, 4, 4)
    for wrap in (clipped, dynamic_threshold, lambda m: analytic_first_step(m, KNOTS[0])):
        wrapped = wrap(model)
        assert isinstance(wrapped, LatentDiffusion)
        for t in (KNOTS[0], KNOTS[2]):
            assert torch.equal(wrapped(z, t).value, wrap(model.inner)(z, t).value)
        assert sample(wrapped, 2, steps=2).shape == (2, 1, 8, 8)


def test_no_graph_is_kept():
    """The gradient of a classifier must not hold on to the states of earlier steps."""
    import gc
    import weakref

    kept = []

    def classifier(x, t):
        kept.append(weakref.ref(x))
        return MIXTURE.classify(x, t)

    model = guided(MIXTURE, ClassifierGuidance(2.0), LABELS, classifier=classifier)
    run = solve(DDIM(), model, start(), KNOTS)
    gc.collect()
    assert len(kept) == 10
    assert all(ref() is None for ref in kept)
    assert run.x.grad_fn is None
    assert not model(start(), KNOTS[2]).value.requires_grad


def test_a_classifier_network_is_told_the_condition():
    told = []

    def net(x, condition):
        told.append(condition)
        return x.flatten(1)[:, :3] * condition[:, None]

    x, t = images(), SCHEDULE.knot(0.4)
    for condition, value in (("lam", t.lam), ("time", t.time)):
        g = log_probability_gradient(ClassifierNet(net, SCHEDULE, condition), x, t, LABELS)
        assert torch.allclose(told[-1], torch.full((8,), value, dtype=torch.float64))
        share = torch.softmax(x.flatten(1)[:, :3] * value, 1)
        expected = value * (nn.functional.one_hot(LABELS, 3) - share)
        assert torch.allclose(g.flatten(1)[:, :3], expected, rtol=0, atol=1e-12)
    per_sample = ClassifierNet(net, SCHEDULE)(x, SCHEDULE.knot(np.linspace(0.1, 0.9, 8)))
    assert per_sample.shape == (8, 3)


def images_of(mixture: LabelledMixture) -> Model:
    """The mixture of 16 components as a model of 4x4 images."""

    class Images:
        schedule, shape = mixture.schedule, (1, 4, 4)

        def __call__(self, x, t):
            return replace(mixture(x.flatten(1), t), x=x, value=mixture(x.flatten(1), t).value.reshape(x.shape))

        def rows(self, index):
            return images_of(mixture.rows(index))

    return Images()


def test_a_trained_classifier_of_noisy_images_comes_near_bayes_and_guides(tmp_path):
    mixture = LabelledMixture(0.6 * torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), [0.3] * 3, (0, 1, 2), schedule=SCHEDULE)
    labels = torch.arange(1500) % 3
    x0 = mixture.with_labels(labels).sample(1500, seed=1).float().reshape(-1, 1, 4, 4)
    torch.manual_seed(0)
    config = {"size": 4, "width": 8, "multipliers": (2,), "patch": 2, "classes": 3, "middle_attention": False}
    task = ClassifierTask(NoisyClassifier(**config), SCHEDULE)
    training = Training(steps=100, batch=128, lr=1e-2, warmup=10)
    losses = [float(p.loss) for p in fit(task, InMemory(x0, labels, "toy", 3), training, folder=tmp_path)]
    assert losses[0] == pytest.approx(math.log(3), rel=1e-5)  # a fresh one finds all classes equally likely
    classifier = load_classifier(tmp_path / "model.safetensors")
    assert repr(classifier.schedule) == repr(SCHEDULE)
    for time, off in ((0.2, 0.08), (0.4, 0.08), (0.7, 0.02)):
        t, y = SCHEDULE.knot(time), labels[:600]
        x = mixture.with_labels(y).sample(600, t, seed=2)
        z = x.float().reshape(-1, 1, 4, 4)
        assert torch.equal(classifier(z, t), task.classifier(z, t))
        of_net, of_bayes = (float(nn.functional.cross_entropy(f, y)) for f in (classifier(z, t).double(), mixture.classify(x, t)))
        assert of_bayes < of_net + 0.01
        assert of_net < of_bayes + off
        g, exact_g = (log_probability_gradient(f, s, t, y).flatten().double() for f, s in ((classifier, z), (mixture.classify, x)))
        assert float(nn.functional.cosine_similarity(g, exact_g, dim=0)) > 0.5
    y = torch.arange(120) % 3
    models = [guided(images_of(mixture), ClassifierGuidance(w), y, classifier=classifier) for w in (0.0, 1.0, 3.0)]
    found = [mixture.classify(sample(m, 120, steps=10).flatten(1), SCHEDULE.knot(0.01)).argmax(1) == y for m in models]
    accuracy = [float(f.double().mean()) for f in found]
    assert accuracy[0] < 0.5 < 0.75 < accuracy[1] <= accuracy[2], accuracy


def test_what_cannot_be_learned_or_loaded_as_a_classifier_is_refused(tmp_path):
    net, x = NoisyClassifier(size=4, width=8, multipliers=(1,), classes=2), torch.zeros(8, 1, 4, 4)
    task, how = ClassifierTask(net, SCHEDULE), Training(steps=1, batch=4)
    wrong = [
        (lambda: ClassifierTask(network().net, SCHEDULE), "NoisyClassifier"),
        (lambda: ClassifierTask(net, SCHEDULE, times="importance"), "without a memory"),
        (lambda: list(fit(task, x, how)), "these data have none"),
        (lambda: list(fit(task, InMemory(x, torch.full((8,), 2), "toy", 3), how)), "label 2 does not exist for a classifier of 2"),
        (lambda: save_classifier(tmp_path / "a", ClassifierNet(network().net, SCHEDULE)), "only a sdediff.networks.NoisyClassifier"),
        (lambda: load_classifier(tmp_path / "net"), "holds no classifier of noisy data"),
        (lambda: load_model(tmp_path / "cl"), "no score network"),
    ]
    save_model(tmp_path / "net", network())
    save_classifier(tmp_path / "cl", task.classifier)
    for make, said in wrong:
        with pytest.raises(UserError, match=said):
            make()


@pytest.mark.parametrize("guidance", [*OPTIONS, ClassifierFree(3, Interval(0.1, 2.0, "time"), 0.2, "x0")], ids=repr)
def test_the_repr_rebuilds_the_value(guidance):
    names, values = {g.__name__: g for g in GUIDANCES}, {v.__name__: v for v in VALUES}
    assert from_repr(repr(guidance), names, "guidance", values) == guidance
    assert hash(guidance) == hash(replace(guidance))


# --- bad input ----------------------------------------------------------------------------------------------------

WRONG = [
    (lambda: ClassifierFree(float("nan")), "needs a number of at least 0"),
    (lambda: ClassifierFree(-1.0), "needs a number of at least 0"),
    (lambda: ClassifierFree(math.inf), "needs a number of at least 0"),
    (lambda: ClassifierFree(()), "one for each class"),
    (lambda: ClassifierFree(True), "needs a number"),
    (lambda: ClassifierGuidance(-0.1), "needs a number of at least 0"),
    (lambda: CFGPlusPlus(1.5), r"in \[0, 1\]"),
    (lambda: ClassifierFree(2.0, rescale=1.2), "rescale is a part"),
    (lambda: ClassifierFree(2.0, rescale=0.5, rescaled="x1"), "x0"),
    (lambda: Interval(3.0, 0.3), "low below high, not 3.0 and 0.3"),
    (lambda: Interval(float("nan"), 1.0), "low below high"),
    (lambda: Interval(0.0, 1.0, "sigma"), "clock 'sigma' does not exist"),
    (lambda: guided(MIXTURE, ClassifierFree(2.0)), r"give labels, guided\(model"),
    (
        lambda: guided(MIXTURE, ClassifierFree(2.0), torch.tensor([0, 1, 7])),
        "label 7 of sample 2 does not exist; there are 3 classes, 0 to 2",
    ),
    (lambda: guided(network(), ClassifierFree(2.0), torch.tensor([0, -1])), "label -1 of sample 1 does not exist; there are 3 classes"),
    (lambda: guided(network(), ClassifierFree(2.0), torch.tensor([0.5])), "whole numbers"),
    (lambda: guided(network(None), ClassifierFree(2.0), LABELS), "this network has no classes"),
    (lambda: guided(ScoreNet(lambda x, c, y: x, SCHEDULE), ClassifierFree(2.0), LABELS), "none="),
    (lambda: guided(clipped(MIXTURE), ClassifierFree(2.0), LABELS), "before it is wrapped"),
    (lambda: guided(clipped(MIXTURE), ClassifierFree(2.0)), "as weaker="),
    (lambda: guided(MIXTURE, 2.0, LABELS), "ClassifierFree"),
    (lambda: guided(MIXTURE, ClassifierFree, LABELS), "ClassifierFree"),
    (lambda: guided(lambda x, t: x, ClassifierFree(2.0), LABELS), "a model needs"),
    (lambda: guided(MIXTURE, ClassifierFree((1.0, 2.0)), LABELS), "2 scales, but there are 3 classes"),
    (lambda: under(ClassifierGuidance((1.0, 2.0)), LABELS), "2 scales, but there is a label 2"),
    (lambda: guided(MIXTURE, ClassifierFree(), LABELS, scales=torch.ones(3)), r"shape \(8,\), not \(3,\)"),
    (lambda: guided(MIXTURE, CFGPlusPlus(), LABELS, scales=2 * torch.ones(8)), r"in \[0, 1\]"),
    (lambda: guided(MIXTURE, ClassifierGuidance(), LABELS), "needs classifier="),
    (lambda: guided(MIXTURE, ClassifierGuidance(), classifier=MIXTURE.classify), "give labels"),
    (lambda: guided(MIXTURE, ClassifierFree(), LABELS, weaker=network()), "both must be about the same"),
    (lambda: guided(MIXTURE, ClassifierFree(), LABELS, classifier=MIXTURE.classify), "asks no classifier: leave out classifier="),
    (lambda: guided(MIXTURE, CFGPlusPlus(), LABELS, classifier=MIXTURE.classify), "asks no classifier"),
    (
        lambda: guided(MIXTURE, ClassifierGuidance(), LABELS, classifier=MIXTURE.classify, weaker=MIXTURE),
        "ClassifierGuidance has no weaker model",
    ),
    (
        lambda: guided(MIXTURE, ClassifierGuidance(), LABELS, classifier=ClassifierNet(lambda x, c: x, FlowMatching())),
        "the classifier is of FlowMatching",
    ),
    (lambda: guided(latent_model(), ClassifierFree(), LABELS, weaker=latent_model(1)), "the codes of another autoencoder"),
    (lambda: guided(latent_model(), ClassifierFree(), LABELS, weaker=latent_model(scale=2.0)), "other scaled codes"),
    (lambda: guided(latent_model(), ClassifierFree(), LABELS, weaker=latent_model(shift=0.1)), "other scaled codes"),
    (lambda: exact(2.0)(start(3), KNOTS[2]), "8 labels for 3 samples"),
    (lambda: sample(exact(2.0), 9, steps=2), "sample 8 has no label: there are 8 labels"),
    (lambda: sample(under(ClassifierGuidance(), LABELS), 9, steps=2), "sample 8 has no label"),
    (lambda: LabelledMixture(MEANS, np.ones(5), (0, 0, 2, 2, 2), schedule=SCHEDULE), "without gaps"),
    (lambda: LabelledMixture(MEANS, np.ones(5), (0, 1), schedule=SCHEDULE), "each of the 5 modes"),
    (lambda: MIXTURE.with_labels(LABELS).sample(5), "8 labels"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_argument_ends_in_one_sentence(number):
    make, said = WRONG[number]
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        (lambda x, t: x.sum(1), "must give logits"),
        (lambda x, t: x[:2], "must give logits"),
        (lambda x, t: x.detach(), "no gradient"),
        (lambda x, t: x, "label 2 .*2 classes"),
    ],
)
def test_a_wrong_classifier_ends_in_one_sentence(classifier, said):
    with pytest.raises(UserError, match=said):
        guided(MIXTURE, ClassifierGuidance(), LABELS, classifier=classifier)(start(), KNOTS[2])
    assert issubclass(ModelError, UserError)
