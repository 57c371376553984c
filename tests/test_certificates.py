"""Every public setting has its certificate (quick level), and what measures them can tell right from wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from certificates import FULL, QUICK, Level, certificates, certify, slope
from certificates_page import TOLERANCE, short
from linear_gaussian import Impulses, NotLinear, alone, marginals, moments, overlapping
from settings import family, settings, texts

from sdediff import DDIM, Ancestral, Facts, Gaussian, Heun, LogSNR, Model, OneStep, Step, VPLinear, White, combine, march, solve
from sdediff.combine import linear
from sdediff.solvers import SOLVERS, named

SCHEDULE = VPLinear()


# --- the certificates ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(request) -> dict:
    """The certificates of the settings that this run asks for, by two processes."""
    asked = [item.callspec.params["setting"] for item in request.session.items if "setting" in getattr(item, "callspec", _None).params]
    return {c.setting: c for c in certificates(list(dict.fromkeys(asked)), QUICK)}


class _None:
    params = ()


@pytest.mark.parametrize("setting", settings(), ids=lambda s: short(repr(s)))
@pytest.mark.timeout(600)
def test_every_promise_holds(setting, found):
    certificate = found[repr(setting)]
    assert not certificate.wrong, "; ".join(certificate.wrong)
    assert certificate.float32 < 1e-4
    facts = setting.facts
    promised = {k for k in ("ode", "strong", "weak") if getattr(facts, k) is not None}
    measured = {m.kind for m in certificate.measures}
    not_linear = {"weak"} if any("not linear" in note for note in certificate.notes) else set()
    assert measured == promised - not_linear


def test_all_solvers_are_among_the_settings():
    assert {type(s) for s in settings()} == set(SOLVERS)
    for text in texts():  # a text that cannot be read is a setting that is not measured
        assert named(text) in settings()


def test_short_names_rebuild_their_settings():
    assert all(named(short(repr(s))) == s for s in settings())
    assert short(repr(DDIM())) == "DDIM()"
    assert family(DDIM()) == "first order"


# --- what measures can fail ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skewed(OneStep):
    """Heun with one weight off: of order 1."""

    off: float = 0.3

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("none", ode=2, evals=2)

    def calls(self, knots) -> int:
        return 2 * (len(knots) - 1)

    def move(self, model: Model, x, t, s):
        euler, heun = DDIM().step(model, x, t, s).x, Heun().move(model, x, t, s)
        return combine(linear(heun, 1 - self.off) + linear(euler, self.off))


@dataclass(frozen=True)
class Louder(Ancestral):
    """DDIM(1) with a little more noise in every step: its law is off by a constant."""

    @property
    def order(self) -> int:
        return 1

    @property
    def facts(self) -> Facts:
        return Facts("none", strong=1, weak=1, stochastic=True, clock="snr")

    def step(self, model: Model, x, t, s, memory=None, noise=None) -> Step:
        right, more = DDIM(1.0).step(model, x, t, s, None, noise).x, self.drawn(noise, t, s)
        return Step(combine(linear(right) + 0.02 * s.sigma * (1 - math.exp(2 * (t.lam - s.lam))) ** 0.5 * more))


@dataclass(frozen=True)
class Doubled(Louder):
    """DDIM(1) that draws each step's increment twice, the second time at another place of the path: no path is followed."""

    def step(self, model: Model, x, t, s, memory=None, noise=None) -> Step:
        return DDIM(1.0).step(model, x, t, s, None, _Scrambled(noise))


@dataclass(frozen=True)
class _Scrambled:
    noise: object

    def __call__(self, a, b, key=0):
        return self.noise(a, b, key=hash((a, b)) & 0xFFFF)


SMALL = Level(QUICK.ode[:1], (), QUICK.strong, QUICK.weak, {**QUICK.steps, "ode": (20, 160, 320)})


def test_a_wrong_weight_fails():
    assert not certify(Skewed(0.0), SMALL).wrong
    (why,) = certify(Skewed(), SMALL).wrong
    assert why.startswith("ode order 2 is promised, and measured is 1.0")


def test_wrong_noise_fails():
    (why,) = certify(Louder(), SMALL).wrong
    assert why.startswith("weak order 1 is promised")


def test_noise_off_the_path_fails():
    (why,) = certify(Doubled(), SMALL).wrong
    assert why.startswith("strong order 1 is promised")


def test_the_slope_looks_at_errors_only():
    steps, floor = (10, 80, 640), 1e-11
    for p in (1, 2, 4):
        assert slope(lambda n, p=p: n**-p + 3 * n ** -(p + 1.0), steps, floor).order == pytest.approx(p, abs=0.02)
    rounding = slope(lambda n: n**-6.0 + 1e-13, (10, 640, 640), floor)
    assert rounding.order == pytest.approx(6, abs=0.02)  # the errors below the floor are left out
    assert rounding.steps == 40
    assert math.isnan(slope(lambda n: 1e-13, steps, floor).order)


def test_the_full_level_has_three_targets_and_two_grids():
    assert len({t for t, _ in FULL.ode}) >= 3
    assert len({g for _, g in FULL.ode}) >= 2
    assert TOLERANCE == 0.15


# --- exact moments ------------------------------------------------------------------------------------------------


def gaussian(full: bool = True) -> Gaussian:
    cov = [[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]] if full else [0.5, 0.3, 0.2]
    return Gaussian([0.5, -1.0, 0.2], cov, schedule=SCHEDULE)


def down(n: int):
    return LogSNR().knots(SCHEDULE, n, 0.9, 0.02)


@pytest.mark.parametrize("full", [True, False])
def test_moments_of_one_step_by_hand(full):
    """DDIM(eta): x_s = A x + n z with A known in closed form."""
    model, (t, s) = gaussian(full), down(1)
    (m0, c0), (m1, c1) = moments(DDIM(0.7), model, (t, s))
    total = t.alpha**2 * (model.variances) + t.sigma**2
    n = 0.7 * s.sigma * math.sqrt(-math.expm1(2 * (t.lam - s.lam)))
    gain = (s.alpha * t.alpha * model.variances + math.sqrt(s.sigma**2 - n**2) * t.sigma) / total
    axes = torch.eye(3).double() if model.axes is None else model.axes
    a = axes * gain @ axes.T
    assert torch.allclose(c1, a @ c0 @ a.T + n**2 * torch.eye(3).double(), rtol=0, atol=1e-13)
    assert torch.allclose(m1, s.alpha * model.mean + a @ (m0 - t.alpha * model.mean), rtol=0, atol=1e-13)


@pytest.mark.parametrize("text", ["SDEDPMSolverPP(order=2)", "SASolver(predictor=3, corrector=4, tau=1.0)", "DPMSolverPPSDE()", "SRA1()"])
def test_moments_are_what_many_samples_show(text):
    solver, model, knots, n = named(text), gaussian(False), down(6), 100_000
    x = solve(solver, model, model.sample(n, knots[0], seed=3), knots, noise=White(4)).x
    ((mean, variances), *_) = marginals(solver, model, knots)[-1:]
    assert torch.allclose(x.mean(0), mean, rtol=0, atol=5 * float((variances / n).sqrt().max()))
    assert torch.allclose(x.var(0), variances, rtol=5 * math.sqrt(2 / n), atol=0)


@pytest.mark.parametrize("text", ["ExponentialAdams(order=3)", "UniPC(order=3)", "SDEDPMSolverPP(order=2)", "PNDM()"])
def test_memory_does_not_depend_on_the_axes(text):
    """In the principal components all is diagonal, and the moments are the same ones, turned."""
    model = gaussian()
    turned = Gaussian(model.mean @ model.axes, model.variances, schedule=SCHEDULE)
    for (m, c), (mean, variances) in zip(moments(named(text), model, down(9)), marginals(named(text), turned, down(9)), strict=True):
        assert torch.allclose(m @ model.axes, mean, rtol=0, atol=1e-12)
        assert torch.allclose(model.axes.T @ c @ model.axes, torch.diag(variances), rtol=0, atol=1e-12)


@pytest.mark.parametrize("corrector", ["Langevin()", "Langevin(coupled=True)"])
def test_a_solver_that_is_not_linear_is_refused(corrector):
    with pytest.raises(NotLinear):
        moments(named(f"PredictorCorrector(corrector={corrector})"), gaussian(False), down(4))


@pytest.mark.parametrize("setting", [s for s in settings() if s.facts.stochastic], ids=lambda s: short(repr(s)))
def test_no_two_draws_overlap(setting):
    """White noise gives independent numbers for overlapping intervals, a Brownian path does not: a solver must not ask for both."""
    try:
        _, names = alone(setting, gaussian(False), down(6))
    except NotLinear:
        return
    assert not overlapping(names)


def test_impulses_are_unit_in_their_own_rows():
    x, units = torch.zeros(6, 2).double(), torch.ones(1, 2).double()
    noise = Impulses(x, units)
    first, (w, h) = noise(0.0, 4.0), noise.area(1.0, 4.0)
    assert first[2].tolist() == [2.0, 2.0]
    assert w[3].tolist() == pytest.approx([3**0.5] * 2)
    assert h[4].tolist() == [0.5, 0.5]
    assert torch.equal(noise(0.0, 4.0), first)
    assert [int(z[:-1].count_nonzero()) for z in (first, w, h)] == [2, 2, 2]


def test_march_and_moments_visit_the_same_knots():
    model, knots = gaussian(False), down(5)
    assert len(moments(DDIM(), model, knots)) == len(list(march(DDIM(), model, torch.zeros(1, 3).double(), knots)))
    assert replace(DDIM(), eta=0.0) == DDIM()
