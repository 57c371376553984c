"""Agreement with the schedulers of the diffusers package itself, run in its own loop: whole trajectories, float64, 1e-9 relative.

The package keeps its tables and some of its arithmetic in float32: while these tests run, its modules see float64 under that name.
Its network is the exact noise prediction of a mixture, asked at the level that the package's own table names.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)  # fmt: skip
from test_golden import LabelledAhead, Recorded
from test_golden_single import Path

from sdediff import (
    DDIM,
    DDPM,
    DEIS,
    DPM2,
    EDM,
    IPNDM,
    LMS,
    PNDM,
    Consistency,
    DiscreteVP,
    DPM2Ancestral,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPP,
    DPMSolverPPMultistep,
    DPMSolverPPSDE,
    EDMHeun,
    Euler,
    EulerAncestral,
    ExponentialRungeKutta,
    ExponentialTableau,
    Fixed,
    FlowMatching,
    Heun,
    Knot,
    Mixture,
    Prediction,
    SASolver,
    Schedule,
    SDEDPMSolverPP,
    Sigma,
    Time,
    UniPC,
    solve,
)  # fmt: skip

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "DeprecationWarning")]

VP = DiscreteVP.linear()
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
STEPS = (7, 20)


class Double:
    """torch or numpy, with float64 under the name float32."""

    def __init__(self, module: Any, double: Any):
        self.module, self.float32 = module, double

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.fixture(autouse=True)
def draws(monkeypatch):
    """The package in float64, and the normal draws that it takes, in order."""
    noises = list(torch.randn(64, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    left = list(noises)
    for name, module in sys.modules.items():
        if name.startswith("diffusers.schedulers.scheduling_"):
            monkeypatch.setattr(module, "torch", Double(torch, torch.float64))
            if "np" in vars(module):
                monkeypatch.setattr(module, "np", Double(np, np.float64))
            if "randn_tensor" in vars(module):
                monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: left.pop(0))
    torch.set_default_dtype(torch.float64)
    yield noises
    torch.set_default_dtype(torch.float32)


def recorded(draws: list[torch.Tensor], kind: Any = Recorded) -> Any:
    """The same draws for our run."""
    return kind(list(draws))


def mixture(schedule: Schedule) -> Mixture:
    angle = torch.arange(5).double() * 2 * math.pi / 5
    return Mixture(torch.stack([angle.cos(), angle.sin()], 1), [0.1, 0.15, 0.2, 0.15, 0.3], [1, 2, 3, 2, 1], schedule=schedule)


def latents() -> torch.Tensor:
    return torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def made(scheduler: Any, steps: int, options: dict[str, Any], **more: Any) -> Any:
    """A scheduler of the package, ready for its loop."""
    ready = scheduler(**options, **more)
    ready.set_timesteps(steps)
    return ready


def scaled(scheduler: Any, t: Any) -> float:
    """alpha, by which the package scales its state before a call: 1 where it holds the state of the forward process itself."""
    return float(scheduler.scale_model_input(torch.ones(()), t))


def level(scheduler: Any, call: int, t: Any) -> Knot:
    """The instant at which the package asks its network."""
    if not hasattr(scheduler, "sigmas"):
        return VP.knot((int(t) + 1) / 1000)
    alpha = scaled(scheduler, t)
    return VP.knot_at("u", float(scheduler.sigmas[call]) if alpha == 1 else math.sqrt(alpha**-2 - 1))


def grid(scheduler: Any, schedule: Schedule = VP) -> tuple[Knot, ...]:
    """The instants between which the package steps."""
    if not hasattr(scheduler, "sigmas"):
        indices = sorted({int(t) for t in getattr(scheduler, "_timesteps", scheduler.timesteps)}, reverse=True)
        return VP.knots([*((i + 1) / 1000 for i in indices), 0.0])
    sigmas = scheduler.sigmas.tolist()
    if scheduler.order == 2:  # every level has two entries there, one a call
        sigmas = list(dict.fromkeys(sigmas))
    return tuple(schedule.knot_at("u", sigma) if sigma else schedule.knot(0.0) for sigma in sigmas)


def theirs(scheduler: Any, model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The package's own loop."""
    x = x / scaled(scheduler, scheduler.timesteps[0])
    for call, t in enumerate(scheduler.timesteps):
        eps = model(scheduler.scale_model_input(x, t), level(scheduler, call, t)).eps.tensor()
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def apart(ours: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((ours - other).abs().max() / other.abs().max())


def ended(knots: Any, solver: Any, ends: str) -> Fixed:
    """How the package ends a run: "few" lowers the order of the last steps below 15 steps only."""
    if ends == "euler":
        return Fixed(knots, orders=(solver.order,) * (len(knots) - 2) + (1,))
    return Fixed(knots, lower_final=ends == "always" or (ends == "few" and len(knots) <= 15))


class Tau(NamedTuple):
    """A constant noise level, as the package asks for it."""

    value: float

    def at(self, t: Any) -> float:
        return self.value


class Pair(NamedTuple):
    scheduler: Any
    options: dict[str, Any]
    solver: Any
    ends: str = "plain"
    step: dict[str, Any] | None = None


def name(pair: Pair) -> str:
    return f"{pair.scheduler.__name__.removesuffix('Scheduler')}-{type(pair.solver).__name__}"


TO_ONE = {"set_alpha_to_one": True}
RAW = {"clip_sample": False}
MIN, ZERO = {"final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "zero"}
KARRAS = {"use_karras_sigmas": True}
DPM, SDE, NOISE = {"algorithm_type": "dpmsolver"}, {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver"}
EPS = {"predict_x0": False}
MULTI, UNI = DPMSolverMultistepScheduler, UniPCMultistepScheduler

PAIRS = [
    Pair(DDPMScheduler, RAW | {"variance_type": "fixed_small"}, DDPM("small")),
    Pair(DDPMScheduler, RAW | {"variance_type": "fixed_large"}, DDPM("large")),
    # the package adds 1e-10 z in the last step here, the floor of its variance
    Pair(DDPMScheduler, RAW | {"timestep_spacing": "trailing"}, DDPM("small")),
    Pair(DDIMScheduler, RAW | TO_ONE, DDIM()),
    Pair(DDIMScheduler, RAW | TO_ONE, DDIM(0.5), step={"eta": 0.5}),
    Pair(PNDMScheduler, TO_ONE | {"skip_prk_steps": True}, PNDM(4, "plms")),
    Pair(PNDMScheduler, TO_ONE, PNDM(4, "prk")),
    *(Pair(EulerDiscreteScheduler, o, solver) for o in ({}, KARRAS) for solver in (DDIM(), Euler(Sigma()))),
    Pair(EulerAncestralDiscreteScheduler, {}, EulerAncestral()),
    Pair(EulerAncestralDiscreteScheduler, {}, DDPM("small")),
    *(Pair(HeunDiscreteScheduler, o, solver) for o in ({}, KARRAS) for solver in (Heun(), EDMHeun())),
    *(Pair(KDPM2DiscreteScheduler, o, DPM2()) for o in ({}, KARRAS)),
    *(Pair(KDPM2AncestralDiscreteScheduler, o, DPM2Ancestral()) for o in ({}, KARRAS)),
    *(Pair(LMSDiscreteScheduler, KARRAS, LMS(k), step={"order": k}) for k in (2, 3, 4)),
    Pair(LMSDiscreteScheduler, {}, LMS(4)),
    *(Pair(MULTI, o | {"solver_order": 1}, DDIM(), "few") for o in (ZERO, MIN, DPM | MIN)),
    *(Pair(MULTI, o | {"solver_order": k}, DPMSolverPPMultistep(k), "few") for k in (2, 3) for o in (ZERO, MIN, KARRAS)),
    *(Pair(MULTI, DPM | MIN | {"solver_order": k}, DPMSolverMultistep(k), "few") for k in (2, 3)),
    Pair(MULTI, {"solver_type": "heun"}, DPMSolverPPMultistep(2, "heun"), "few"),
    Pair(MULTI, DPM | MIN | {"solver_type": "heun"}, DPMSolverMultistep(2, "heun"), "few"),
    *(Pair(MULTI, MIN | {"solver_order": k, "lower_order_final": False}, DPMSolverPPMultistep(k)) for k in (2, 3)),
    Pair(MULTI, MIN | {"solver_order": 3, "lower_order_final": False, "euler_at_final": True}, DPMSolverPPMultistep(3), "euler"),
    *(Pair(MULTI, SDE | {"solver_order": k}, SDEDPMSolverPP(k), "few") for k in (1, 2)),
    Pair(MULTI, SDE | KARRAS | {"solver_type": "heun"}, SDEDPMSolverPP(2, kind="heun"), "few"),
    *(Pair(MULTI, NOISE | MIN | {"solver_order": k}, SDEDPMSolverPP(k, predicts="eps"), "few") for k in (1, 2)),
    Pair(MULTI, NOISE | MIN | {"solver_type": "heun"}, SDEDPMSolverPP(2, kind="heun", predicts="eps"), "few"),
    *(Pair(UNI, ZERO | {"solver_order": k}, UniPC(k, "bh2"), "always") for k in (1, 2, 3)),
    *(Pair(UNI, MIN | {"solver_order": k, "solver_type": "bh1"}, UniPC(k, "bh1"), "always") for k in (1, 2, 3)),
    *(Pair(UNI, MIN | EPS | {"solver_order": k, "solver_type": "bh1"}, UniPC(k, "bh1", "eps"), "always") for k in (1, 2, 3)),
    *(Pair(UNI, MIN | EPS | {"solver_order": k, "solver_type": "bh2"}, UniPC(k, "bh2", "eps"), "always") for k in (1, 2, 3)),
    Pair(UNI, MIN | {"solver_order": 3, "lower_order_final": False}, UniPC(3, "bh2")),
    Pair(UNI, KARRAS | {"solver_order": 3}, UniPC(3, "bh2"), "always"),
    *(Pair(DEISMultistepScheduler, {"solver_order": k}, DEIS(k, "log_rho"), "few") for k in (1, 2, 3)),
    Pair(DEISMultistepScheduler, KARRAS | {"solver_order": 3}, DEIS(3, "log_rho"), "few"),
    Pair(UNI, KARRAS | MIN | {"solver_order": 3}, UniPC(3, "bh2"), "always"),
    Pair(DPMSolverMultistepInverseScheduler, {}, DPMSolverPPMultistep(2).inverse, "few"),
    Pair(DPMSolverMultistepInverseScheduler, DPM, DPMSolverMultistep(2).inverse, "few"),
    *(
        Pair(
            SASolverScheduler,
            {"predictor_order": p, "corrector_order": c, "tau_func": tau.at},
            SASolver(p, c, tau.value, few_steps=True),
            "always",
        )
        for p, c in ((1, 1), (2, 2), (3, 4))
        for tau in (Tau(0.0), Tau(1.0))
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_the_package_takes_the_same_steps(pair, steps, draws):
    scheduler = made(pair.scheduler, steps, BETAS | pair.options)
    model, knots = mixture(VP), grid(scheduler)
    run = solve(pair.solver, model, latents(), ended(knots, pair.solver, pair.ends), noise=recorded(draws))
    assert apart(run.x, theirs(scheduler, model, latents(), **(pair.step or {}))) < 1e-9
    assert run.calls == len(scheduler.timesteps)


@pytest.mark.parametrize("steps", STEPS)
def test_dpm_solver_sde(steps, draws):
    """Its Brownian tree is replaced by the recorded draws, one for the first half of a step and one for all of it."""
    scheduler = made(DPMSolverSDEScheduler, steps, BETAS)
    left = list(draws)
    scheduler.noise_sampler = lambda *_: left.pop(0)
    model, knots = mixture(VP), grid(scheduler)
    run = solve(DPMSolverPPSDE(), model, latents(), knots, noise=recorded(draws, Path))
    assert apart(run.x, theirs(scheduler, model, latents())) < 1e-9
    assert run.calls == len(scheduler.timesteps)


def chunks(scheduler: Any) -> Iterator[tuple[Knot, Knot, list[Knot]]]:
    """The steps of a single-step scheduler: where each begins and ends, and the levels between, which its stages take from the grid."""
    knots, starts = grid(scheduler), [i for i, order in enumerate(scheduler.order_list) if order == 1]
    for i, j in pairwise([*starts, len(knots) - 1]):
        yield knots[i], knots[j], list(knots[i + 1 : j])


def stepped(scheduler: Any, model: Any, method: Any) -> torch.Tensor:
    """The same steps by `method(order, r1, r2)`."""
    x = latents()
    for t, s, inner in chunks(scheduler):
        r = [(k.lam - t.lam) / (s.lam - t.lam) for k in inner]
        x = solve(method(1 + len(r), *r), model, x, (t, s)).x
    return x


def data_midpoint(order: int, r1: float | None = None, r2: float | None = None) -> Any:
    """The package's "midpoint" at order 3: its second stage has phi_1/2 where the paper has phi_2."""
    if order < 3 or r1 is None or r2 is None:
        return DPMSolverPP(order, r1)
    return ExponentialRungeKutta(ExponentialTableau((r1, r2), ((((0.5 * r2**2 / r1, 1, r2),),),), ((), ((1 / r2, 2),)), 2))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "method"),
    [
        (ZERO | {"solver_type": "heun"}, partial(DPMSolverPP, kind="taylor")),
        (DPM | MIN | {"solver_type": "heun"}, partial(DPMSolver, kind="taylor")),
        (MIN, data_midpoint),
    ],
    ids=["data", "noise", "midpoint"],
)
def test_single_step_dpm_solver(options, method, order, steps):
    scheduler = made(DPMSolverSinglestepScheduler, steps, BETAS | options, solver_order=order)
    model = mixture(VP)
    assert apart(stepped(scheduler, model, method), theirs(scheduler, model, latents())) < 1e-9


@pytest.mark.parametrize("steps", STEPS)
def test_ipndm(steps):
    """Its network predicts v, and its table of betas holds sigma: here that of our own knots, down to the data."""
    model, knots = mixture(VP), VP.knots(np.linspace(1, 0, steps + 1))
    scheduler = made(IPNDMScheduler, steps, {"trained_betas": [k.sigma for k in knots]})
    x = latents()
    for k, t in zip(knots, scheduler.timesteps, strict=False):
        assert float(t) == pytest.approx(k.angle * 2 / math.pi)
        x = scheduler.step(model(x, k).v.tensor(), t, x).prev_sample
    assert apart(solve(IPNDM(4), model, latents(), knots).x, x) < 1e-9


class Bounded:
    """A model whose x0 is mixed with the state, as LCM does: c_skip x + c_out x0, by the level."""

    def __init__(self, model: Any, weights: Any):
        self.model, self.schedule, self.shape, self.weights = model, model.schedule, model.shape, weights

    def __call__(self, x: torch.Tensor, t: Knot) -> Prediction:
        c_skip, c_out = map(float, self.weights(t))
        return Prediction(x, t, c_out * self.model(x, t).x0.tensor() + c_skip * x, "x0")

    def rows(self, index: torch.Tensor) -> Any:
        return self


@pytest.mark.parametrize("steps", STEPS)
def test_latent_consistency(steps, draws):
    scheduler = made(LCMScheduler, steps, BETAS)
    model, knots = mixture(VP), grid(scheduler)
    bounded = Bounded(model, lambda t: scheduler.get_scalings_for_boundary_condition_discrete(round(t.time * 1000) - 1))
    run = solve(Consistency(), bounded, latents(), knots, noise=recorded(draws))
    assert apart(run.x, theirs(scheduler, model, latents())) < 1e-9


# --- sigma = t: the package's network is preconditioned ---------------------------------------------------------------

VE = EDM()


def weights(scheduler: Any, sigma: float) -> tuple[Any, Any]:
    """(c_skip, c_out) of x0 = c_skip x + c_out answer."""
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        return scheduler.get_scalings_for_boundary_condition(torch.tensor(sigma))
    one, zero = torch.ones(()), torch.zeros(())
    return scheduler.precondition_outputs(one, zero, sigma), scheduler.precondition_outputs(zero, one, sigma)


EDM_PAIRS = [
    *(Pair(EDMEulerScheduler, {"sigma_schedule": kind}, DDIM()) for kind in ("karras", "exponential")),
    *(Pair(EDMDPMSolverMultistepScheduler, o | {"solver_order": k}, DPMSolverPPMultistep(k), "few") for k in (2, 3) for o in (MIN, ZERO)),
    Pair(EDMDPMSolverMultistepScheduler, {"solver_type": "heun", "sigma_schedule": "exponential"}, DPMSolverPPMultistep(2, "heun"), "few"),
    *(Pair(EDMDPMSolverMultistepScheduler, SDE | {"solver_order": k}, SDEDPMSolverPP(k), "few") for k in (1, 2)),
    Pair(CMStochasticIterativeScheduler, {"clip_denoised": False}, Consistency(0.002)),
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("pair", EDM_PAIRS, ids=name)
def test_schedulers_of_edm(pair, steps, draws):
    scheduler = made(pair.scheduler, steps, pair.options)
    model, knots, x = mixture(VE), grid(scheduler, VE), scheduler.sigmas[0] * latents()
    run = solve(pair.solver, model, x, ended(knots, pair.solver, pair.ends), noise=recorded(draws))
    for k, t in zip(knots, scheduler.timesteps, strict=False):
        scheduler.scale_model_input(x, t)
        c_skip, c_out = weights(scheduler, k.u)
        x = scheduler.step((model(x, k).x0.tensor() - c_skip * x) / c_out, t, x).prev_sample
    assert apart(run.x, x) < 1e-9
    assert run.calls == len(scheduler.timesteps)


# --- flow matching: the network predicts the velocity -----------------------------------------------------------------

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_PAIRS = [
    Pair(FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, DDIM()),
    Pair(FlowMatchEulerDiscreteScheduler, {}, Euler(Time())),
    Pair(FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}, Consistency()),
    Pair(FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, Heun(Time())),
    Pair(MULTI, FLOW | {"flow_shift": 3.0}, DPMSolverPPMultistep(2), "few"),
    Pair(UNI, FLOW | {"flow_shift": 3.0, "solver_order": 3}, UniPC(3, "bh2"), "always"),
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("pair", FLOW_PAIRS, ids=name)
def test_schedulers_of_flow_matching(pair, steps, draws):
    scheduler, flow = made(pair.scheduler, steps, pair.options), FlowMatching()
    sigmas = scheduler.sigmas.tolist()
    model, knots, x = mixture(flow), flow.knots(dict.fromkeys(sigmas)), latents()
    run = solve(pair.solver, model, x, ended(knots, pair.solver, pair.ends), noise=recorded(draws))
    for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(model(x, flow.knot(sigma)).flow.tensor(), t, x).prev_sample
    assert apart(run.x, x) < 1e-9
    assert run.calls == len(scheduler.timesteps)


# --- where the package deviates from the method ----------------------------------------------------------------------


@dataclass(frozen=True)
class WrongSign(SDEDPMSolverPP):
    """The package's order 3: the weight of the second difference has -1/2 where integration gives +1/2, so that it is of order 1."""

    def update(self, t, s, nodes, corrector):
        plan = super().update(t, s, nodes, corrector)
        if len(nodes) < 3 or math.isinf(s.lam):
            return plan
        h, past = s.lam - t.lam, [a.lam - b.lam for a, b in pairwise(nodes)]
        c = s.alpha * h / sum(past)
        a, b = c * h / past[0], c * h / past[1]
        return plan._replace(weights=tuple(w + d for w, d in zip(plan.weights, (-a, a + b, -b), strict=True)))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("options", "published", "corrected"),
    [
        # the second difference lacks its factor 2: of order 2
        ({}, DPMSolverPPMultistep(3), DPMSolverPPMultistep(3, corrected=True)),
        (DPM, DPMSolverMultistep(3), DPMSolverMultistep(3, corrected=True)),
        (SDE, WrongSign(3), SDEDPMSolverPP(3)),
        (SDE, WrongSign(3), SDEDPMSolverPP(3, corrected=True)),
    ],
)
def test_the_third_order_of_multistep_dpm_solver(options, published, corrected, steps, draws):
    scheduler = made(MULTI, steps, BETAS | MIN | options, solver_order=3)
    model, knots = mixture(VP), grid(scheduler)
    other = theirs(scheduler, model, latents())
    ours = [solve(k, model, latents(), ended(knots, k, "few"), noise=recorded(draws)).x for k in (published, corrected)]
    assert apart(ours[0], other) < 1e-9
    assert apart(ours[1], other) > 1e-4


@pytest.mark.parametrize(("scheduler", "options"), [(MULTI, NOISE | MIN), (EDMDPMSolverMultistepScheduler, SDE)])
def test_stochastic_third_orders_that_the_package_does_not_have(scheduler, options):
    """It accepts the options, and fails at the first step of order 3: no formula is there."""
    scheduler = made(scheduler, 7, options, solver_order=3)
    x = latents()
    for t in scheduler.timesteps[:2]:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(UnboundLocalError):
        scheduler.step(x, scheduler.timesteps[2], x)


def test_single_step_dpm_solver_3_has_another_second_stage():
    """Its "midpoint" takes the update of order 2 for the second stage, with phi_1/2 where the paper's algorithm has phi_2."""
    scheduler = made(DPMSolverSinglestepScheduler, 7, BETAS | MIN, solver_order=3)
    model = mixture(VP)
    assert apart(stepped(scheduler, model, DPMSolverPP), theirs(scheduler, model, latents())) > 1e-3


def test_unipc_of_bh1_down_to_the_data_is_not_a_number():
    """B(h) = h is infinite in the last step, and is multiplied by a sum of no differences."""
    scheduler = made(UNI, 7, BETAS | ZERO, solver_type="bh1")
    model = mixture(VP)
    assert not theirs(scheduler, model, latents()).isfinite().any()
    assert solve(UniPC(2, "bh1"), model, latents(), Fixed(grid(scheduler), lower_final=True)).x.isfinite().all()


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_inversion_is_one_label_ahead(steps):
    scheduler = made(DDIMInverseScheduler, steps, BETAS | RAW | TO_ONE)
    model, knots = mixture(VP), grid(scheduler)[::-1]
    data = model.sample(8)
    other = theirs(scheduler, model, data)
    assert apart(solve(DDIM(), LabelledAhead(model, knots), data, knots).x, other) < 1e-9
    assert apart(solve(DDIM(), model, data, knots).x, other) > 1e-3


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 7), ("linspace", 20), ("trailing", 7)])
def test_ddim_steps_past_other_grids(spacing, steps):
    """It always goes 1000//steps indices down, and calls the network there with the label of the grid."""
    scheduler = made(DDIMScheduler, steps, BETAS | RAW | TO_ONE, timestep_spacing=spacing)
    model, x = mixture(VP), latents()
    other = theirs(scheduler, model, x)
    for t in scheduler.timesteps.tolist():
        to = max(t + 1 - 1000 // steps, 0)
        x = DDIM().step(model, x, VP.knot((t + 1) / 1000), VP.knot(to / 1000)).x
    assert apart(x, other) < 1e-9
    assert apart(solve(DDIM(), model, latents(), grid(scheduler)).x, other) > 1e-3


def test_ipndm_throws_its_first_answer_away():
    """Its own table starts at alpha = 0, where the answer v is multiplied by alpha: x0 is taken to be 0 there, and it is -v."""
    ends = []
    for answer in (0.0, 1.0):
        scheduler = made(IPNDMScheduler, 7, {})
        ends.append(scheduler.step(torch.full((8, 2), answer), scheduler.timesteps[0], latents()).prev_sample)
    assert torch.equal(*ends)
