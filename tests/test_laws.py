"""The laws: what every public solver promises, measured on closed-form oracles in float64. A new solver is measured without being told."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_gaussian import moments

from sdediff import (
    DDIM,
    DDPM,
    AdaptiveAdams,
    Angle,
    Brownian,
    Euler,
    EulerMaruyama,
    Fixed,
    Gaussian,
    Heun,
    LogSNR,
    Mixture,
    RungeKutta,
    SciPy,
    Sigma,
    Sigmas,
    Tableau,
    Time,
    TorchDiffEq,
    TorchSDE,
    Uniform,
    UserError,
    VPLinear,
    White,
    march,
    solve,
)  # fmt: skip
from sdediff.exponential import Multistep
from sdediff.solvers import SOLVERS, named
from sdediff.weights import TABLEAUX

SCHEDULE = VPLinear()
COORDINATES = (Time(), Sigma(), Angle(), Angle(0.5))
# AdaptiveAdams() has order 7, which is at rounding before it is in its asymptotic range: measured one of order 5
ALL = [AdaptiveAdams(4) if made is AdaptiveAdams else made() for made in SOLVERS]
ALL += [s for s in (DDPM("large"), DDPM("none"), DDIM(0.5), DDIM(1.0), EulerMaruyama(0.5), EulerMaruyama(0.0)) if s not in ALL]
ALL += [s for made in (Euler, Heun) for c in COORDINATES if (s := made(c)) not in ALL]
ALL += [RungeKutta(name, c) for name in TABLEAUX for c in (Sigma(), Angle()) if RungeKutta(name, c) not in ALL]
ALL += [RungeKutta("rk4", Time()), RungeKutta(Tableau(a=((), (0.75,)), b=(1 / 3, 2 / 3), order=2), Angle())]
STOCHASTIC = [s for s in ALL if s.facts.stochastic]
ODE = [s for s in ALL if s.facts.ode is not None]
all_solvers = pytest.mark.parametrize("solver", ALL, ids=repr)

RING = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in np.arange(5) * 2 * math.pi / 5]).double()


def mixture() -> Mixture:
    return Mixture(0.7 * RING, [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=SCHEDULE)


def gaussian() -> Gaussian:
    return Gaussian([0.5, -1.0, 0.2], [[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]], schedule=SCHEDULE)


def down(n: int, start: float = 0.9, end: float = 0.02):
    return LogSNR().knots(SCHEDULE, n, start, end)


def slope(errors: list[float]) -> float:
    """The order seen between the last two errors, at step counts that double."""
    return math.log2(errors[-2] / errors[-1])


def start(n: int = 64, t: float = 0.9) -> torch.Tensor:
    return mixture().sample(n, SCHEDULE.knot(t), seed=1)


# --- 1: orders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converged() -> torch.Tensor:
    """The flow of the mixture by an independent solver at a tight tolerance."""
    return solve(SciPy("DOP853", 1e-12, 1e-12), mixture(), start(), down(1)).x


@pytest.mark.parametrize("solver", ODE, ids=repr)
def test_order_to_the_probability_flow(solver, converged):
    counts = (80, 160) if solver.facts.ode == 3 else (160, 320)
    errors = [float((solve(solver, mixture(), start(), down(n)).x - converged).square().mean().sqrt()) for n in counts]
    assert slope(errors) == pytest.approx(solver.facts.ode, abs=0.15), errors


@pytest.mark.parametrize("solver", [s for s in STOCHASTIC if s.facts.strong == 1], ids=repr)  # 1.5: test_strong_order.py
def test_strong_order_on_one_brownian_path(solver):
    clock = solver.facts.clock
    ends = sorted(k.clock(clock) for k in down(1))
    noise = Brownian(3, (ends[0], ends[1]))
    model = Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=SCHEDULE)
    runs = [solve(solver, model, start(512), down(n), noise=noise).x for n in (64, 128, 1024)]
    errors = [float((x - runs[-1]).square().mean().sqrt()) for x in runs[:-1]]
    # against N = 1024 instead of the limit, an order p shows a little high: by log2((1/64^p - 1/1024^p) / (1/128^p - 1/1024^p)) if the
    # errors add (0.10), hardly if they are independent (their squares add); so the tolerance is around the middle
    p = solver.facts.strong
    most = math.log2((64**-p - 1024**-p) / (128**-p - 1024**-p))
    assert (p + most) / 2 - 0.2 < slope(errors) < most + 0.15, errors


@pytest.mark.parametrize("solver", [s for s in STOCHASTIC if s.facts.weak], ids=repr)
def test_weak_order_from_exact_moments(solver):
    """Reverse SDE and oracle agree in mean and covariance at EVERY time, to the promised order."""
    model, errors = gaussian(), []
    for n in (400, 800):
        knots = down(n)
        found = moments(solver, model, knots)
        exact = [model.moments(k) for k in knots]
        off = [torch.maximum((m - em).abs().max(), (c - ec).abs().max()) for (m, c), (em, ec) in zip(found, exact, strict=True)]
        errors.append(float(max(off)))
    assert errors[-1] < 0.01
    assert slope(errors) == pytest.approx(solver.facts.weak, abs=0.15), errors


@pytest.mark.parametrize("solver", ODE, ids=repr)
def test_the_flow_keeps_the_marginals_at_every_time(solver):
    model, knots = gaussian(), down(400)
    found = moments(solver, model, knots)
    worst = max(
        float(torch.maximum((m - model.moments(k)[0]).abs().max(), (s - model.moments(k)[1]).abs().max()))
        for (m, s), k in zip(found, knots, strict=True)
    )
    assert worst < {1: 0.02, 2: 1e-4}.get(solver.facts.ode, 1e-6)


def test_without_noise_ancestral_sampling_loses_variance():
    """DDPM("none") keeps the posterior mean only: for Gaussian data the variance that is lost is no rounding matter."""
    model, knots = Gaussian([0.0], 0.25, schedule=SCHEDULE), down(400)
    for solver, low, high in ((DDPM("none"), 0.0, 0.2), (DDPM("small"), 0.97, 1.0)):
        got, true = moments(solver, model, knots)[-1][1], model.moments(knots[-1])[1]
        assert low <= float(got / true) <= high
    # in closed form: the mean's steps telescope to the squared correlation of both ends
    (first, last), v = (knots[0], knots[-1]), lambda k: float(model.moments(k)[1])
    expected = (first.alpha / last.alpha) ** 2 * v(last) / v(first)
    assert float(moments(DDPM("none"), model, knots)[-1][1]) / v(last) == pytest.approx(expected, rel=1e-9)


# --- 2 to 8 -------------------------------------------------------------------------------------------------------


def upward(solver) -> bool:
    return not solver.facts.stochastic and not isinstance(solver, DDPM)


@all_solvers
def test_calls_are_counted_exactly(solver):
    grids = [down(7), Uniform().knots(SCHEDULE, 5, end=0.0), SCHEDULE.knots([0.9, 0.5, 0.7, 0.2])]
    grids += [down(7)[::-1]] if upward(solver) else []
    for knots in grids:
        run = solve(solver, mixture(), start(4), knots, noise=White(0))
        assert run.calls == solver.calls(knots)
        assert run.knots == tuple(knots)


@all_solvers
def test_a_step_to_the_same_time_is_the_identity(solver):
    x, t = start(8), SCHEDULE.knot(0.5)
    step = solver.step(mixture(), x, t, t, solver.init(mixture(), x, t), White(0).on(x))
    assert torch.allclose(step.x, x, rtol=0, atol=1e-12)


@all_solvers
def test_the_same_arguments_give_the_same_bits(solver):
    x, t, s = start(8), SCHEDULE.knot(0.5), SCHEDULE.knot(0.4)
    before = x.clone()
    memory = solver.init(mixture(), x, t)
    a, b = (solver.step(mixture(), x, t, s, memory, White(0).on(x)).x for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(x, before)


@all_solvers
def test_the_inverse_undoes_what_it_promises(solver):
    if solver.facts.inverse is None:
        with pytest.raises(UserError):
            _ = solver.inverse
        return
    assert solver.inverse.inverse == solver
    if solver.facts.inverse != "approximate":
        return _comes_back(solver)
    x, errors = start(), []
    for n in (40, 80):
        up = solve(solver.inverse, mixture(), x, down(n)).x  # "upward" is any direction: encode down, decode up
        back = solve(solver, mixture(), up, down(n)[::-1]).x
        errors.append(float((back - x).square().mean().sqrt()))
    # upward a multistep method starts at the data, where its first-order start counts
    promised = min(solver.facts.ode, 2) if isinstance(solver, Multistep | AdaptiveAdams) else solver.facts.ode
    assert slope(errors) > promised - 0.3, errors


def _comes_back(solver):
    """With its memory, there and back: to the bit of what an integer holds ("bits"), or to rounding in float64 and float32 ("exact").

    `growth`, of methods that have one, is by how much a step multiplies what rounding leaves.
    """
    regular, irregular = down(40)[::-1], SCHEDULE.knots([0.02, 0.2, 0.21, 0.6, 0.9])
    for x, most in ((start(), 1e-12), (start().float(), 1e-5)):
        for knots in (regular, irregular) if solver.facts.inverse == "bits" else (regular,):
            up = solve(solver.inverse, mixture(), x, knots)
            back = solve(solver, mixture(), up.x, knots[::-1], memory=up.memory)
            assert float((up.x - x).abs().max()) > 0.1
            if solver.facts.inverse == "bits":
                assert torch.equal(back.x, solver.held(x, knots[0]))
                again = solve(solver.inverse, mixture(), back.x, knots, memory=back.memory)  # and from the data up again
                assert torch.equal(again.x, up.x)
            off = float((back.x - x).square().mean().sqrt() / x.square().mean().sqrt())
            assert off < most * getattr(solver, "growth", 1.0) ** (len(knots) - 1)


@all_solvers
def test_results_do_not_depend_on_the_batch(solver):
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE)  # elementwise
    x, knots = start(6), down(9)
    together = solve(solver, model, x, knots, noise=White(5).on(x)).x
    for rows in (range(0, 1), range(1, 4), range(4, 6)):
        part = x[rows.start : rows.stop]
        assert torch.equal(solve(solver, model, part, knots, noise=White(5).on(part, rows)).x, together[rows.start : rows.stop])
    alone = solve(solver, mixture(), x[2:3], knots, noise=White(5).on(x[2:3], range(2, 3))).x
    assert torch.allclose(alone, solve(solver, mixture(), x, knots, noise=White(5)).x[2:3], rtol=0, atol=1e-12)


@all_solvers
def test_dtype_in_is_dtype_out(solver):
    x, knots = start(8), down(6)
    low = solve(solver, mixture(), x.float(), knots, noise=White(1)).x
    assert low.dtype == torch.float32
    assert torch.allclose(low.double(), solve(solver, mixture(), x, knots, noise=White(1)).x, atol=2e-4)


@all_solvers
def test_the_repr_rebuilds_the_solver(solver):
    assert named(repr(solver)) == solver
    assert hash(named(repr(solver))) == hash(solver)


# --- 9: identities, and agreement with independent solvers --------------------------------------------------------


def test_euler_in_sigma_is_ddim():
    knots = Uniform().knots(SCHEDULE, 20)
    a, b = (solve(s, mixture(), start(), knots).x for s in (Euler(Sigma()), DDIM()))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [1e-3, 0.0])
def test_ddim_of_eta_one_is_ddpm_small(end):
    knots = Uniform().knots(SCHEDULE, 20, end=end)
    a, b = (solve(s, mixture(), start(), knots, noise=White(0)).x for s in (DDIM(1.0), DDPM("small")))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_any_sigmas_keep_every_marginal_given_x0(seed):
    """DDIM's lemma 1: with the true x0 in the place of the network's, q(x_t | x0) = N(alpha x0, sigma^2) at every time."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.01, 1.0, 9))[::-1]
    knots = SCHEDULE.knots(times)
    eta = Sigmas(tuple(times), tuple(rng.uniform(0, 1, 8) * [k.sigma for k in knots[1:]]))
    model = Gaussian([0.7, -1.3], 0.0, schedule=SCHEDULE)  # all data at one point: the oracle knows x0
    for (mean, cov), k in zip(moments(DDIM(eta), model, knots), knots, strict=True):
        assert torch.allclose(mean, k.alpha * model.mean, rtol=0, atol=1e-12)
        assert torch.allclose(cov, k.sigma**2 * torch.eye(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_torchsde_takes_the_same_steps_on_the_same_path(eta):
    knots, noise = Uniform().knots(SCHEDULE, 30, end=0.01), Brownian(2, (0.01, 1.0))
    ours, theirs = (solve(s, mixture(), start(), knots, noise=noise) for s in (EulerMaruyama(eta), TorchSDE("euler", eta)))
    assert torch.allclose(ours.x, theirs.x, rtol=0, atol=1e-12)
    assert ours.calls == theirs.calls == 30


def test_torchsde_heun_converges_to_the_same_path():
    noise = Brownian(2, (0.01, 1.0))
    fine, coarse = (Uniform().knots(SCHEDULE, n, end=0.01) for n in (2000, 250))
    reference = solve(EulerMaruyama(), mixture(), start(16), fine, noise=noise).x
    runs = [solve(TorchSDE(m), mixture(), start(16), coarse, noise=noise).x for m in ("heun", "milstein")]
    assert max(float((x - reference).abs().max()) for x in runs) < 0.1


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
@pytest.mark.parametrize("coordinates", COORDINATES, ids=repr)
def test_torchdiffeq_finds_the_same_flow(method, coordinates, converged):
    tolerance = 1e-7 if method == "bosh3" else 1e-9
    run = solve(TorchDiffEq(method, tolerance, tolerance, coordinates), mixture(), start(), down(1))
    assert float((run.x - converged).abs().max()) < 100 * tolerance
    assert run.calls > 50


def test_a_delegate_on_fixed_knots_is_our_runge_kutta():
    for name, ours in (
        ("midpoint", RungeKutta("midpoint", Angle())),
        ("rk4", RungeKutta("rk4_38", Angle())),
        ("euler", Euler(Angle())),
    ):
        a, b = (solve(s, mixture(), start(), down(12)) for s in (TorchDiffEq(name, coordinates=Angle()), ours))
        assert torch.allclose(a.x, b.x, rtol=0, atol=1e-12)
        assert a.calls == b.calls


@pytest.mark.parametrize("delegate", [TorchDiffEq(), SciPy(), TorchDiffEq("rk4"), TorchSDE()], ids=repr)
def test_delegates_never_look_outside_their_interval(delegate):
    seen = []

    class Watched:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            seen.append(t.time)
            return mixture()(x, t)

        def rows(self, index):
            return self

    run = solve(delegate, Watched(), start(8), down(10), noise=White(0))
    assert min(seen) >= 0.02 - 1e-15
    assert max(seen) <= 0.9 + 1e-15
    assert run.calls == len(seen)


# --- the loop -----------------------------------------------------------------------------------------------------


def test_march_and_solve_and_stepping_by_hand_agree():
    x, knots, solver = start(4), down(5), Heun()
    frames = list(march(solver, mixture(), x, Fixed(knots)))
    run = solve(solver, mixture(), x, knots, path=True)
    by_hand = x
    for t, s in pairwise(knots):
        by_hand = solver.step(mixture(), by_hand, t, s, None, None).x
    assert torch.equal(frames[-1].x, run.x)
    assert torch.equal(by_hand, run.x)
    assert [f.t for f in frames] == list(run.knots) == list(knots)
    assert run.path is not None
    assert all(torch.equal(f.x, p) for f, p in zip(frames, run.path, strict=True))


def test_the_forward_process_upward_has_the_oracle_s_moments():
    """An up-step of a stochastic solver is the forward SDE, exact in law for any step size."""
    model, knots = gaussian(), SCHEDULE.knots([0.1, 0.15, 0.6, 0.9])
    for solver in STOCHASTIC:
        for (mean, cov), k in zip(moments(solver, model, knots), knots, strict=True):
            assert torch.allclose(mean, model.moments(k)[0], rtol=0, atol=1e-12)
            assert torch.allclose(cov, model.moments(k)[1], rtol=0, atol=1e-12)


def test_gradients_flow_through_a_solve_when_asked():
    x = start(4).requires_grad_()
    assert not solve(DDIM(), mixture(), x, down(5)).x.requires_grad
    run = solve(DDIM(), mixture(), x, down(5), grad=True)
    (g,) = torch.autograd.grad(run.x.sum(), x)
    assert g.abs().sum() > 0
