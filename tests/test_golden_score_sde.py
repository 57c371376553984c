"""Agreement with score-SDE's samplers, azula's predictor-corrector and Restart, with the recorded noises, float64, 1e-9.

score-SDE evaluates at N times linspace(1, t_end, N) but steps by the N-step chain: its Markov-chain samplers by betas of index N - 1 - i,
Euler-Maruyama by dt = 1/N, whatever the spacing. So the published step length is a schedule of N betas beside the network's own times, or,
for Euler-Maruyama, a knot with its time set back by 1/N. `denoise` returns the mean of the last predictor step, which is ours at time 0.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_golden import Recorded, load

from sdediff import (
    DDIM,
    DDPM,
    DiscreteVP,
    EulerMaruyama,
    Heun,
    Langevin,
    Mixture,
    Prediction,
    PredictorCorrector,
    Renoise,
    Restart,
    ReverseDiffusion,
    White,
    solve,
)  # fmt: skip


class InOrder(Recorded):
    """Recorded draws for increments and for draws off the path, in the order asked for."""

    def fresh(self, key):
        return torch.as_tensor(self.draws.pop(0))


class Silent:
    """No noise: a step of a stochastic solver is its mean."""

    def __call__(self, a, b, key=0):
        return torch.zeros(1, dtype=torch.float64)


class AtTheirTimes:
    """The chain's knots, the network's own times: the score at `eval_t[i]` where the chain stands at index N - 1 - i."""

    shape = (2,)

    def __init__(self, model: Mixture, chain: DiscreteVP, times):
        self.model, self.schedule = model, chain
        self.own = {k.time: model.schedule.knot(float(t)) for k, t in zip(knots_of(chain), times, strict=False)}

    def __call__(self, x, t):
        return Prediction(x, t, self.model.score(x, self.own[t.time]), "score")

    def rows(self, index):
        return self


def knots_of(chain: DiscreteVP):
    """All indices, noisiest first, then the data."""
    return chain.knots([chain.time_of(i) for i in range(chain.n - 1, -1, -1)] + [0.0])


CHAINS = {
    "reverse_diffusion__t__N100": ReverseDiffusion(),
    "ancestral_sampling__t__N100": DDPM("large"),
    "langevin__t__N50": PredictorCorrector(None, Langevin(snr=0.16, steps=2, coupled=True)),
    "reverse_diffusion_langevin__t__N50": PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16, steps=1, coupled=True)),
}


def run_chain(name, solver):
    case, own, x = load(f"ring2__score_sde_{name}")
    chain = DiscreteVP(case["discrete_betas"])
    assert list(case["discrete_index"]) == list(range(chain.n - 1, -1, -1))
    knots, draws = knots_of(chain), list(case["noises"])
    run = solve(solver, AtTheirTimes(own, chain, case["times"]), x, knots, noise=InOrder(draws))
    assert run.calls == solver.calls(knots) == int(case["nfe"])
    return np.abs(run.x.numpy() - case["x_end"]).max(), draws


@pytest.mark.parametrize(("name", "solver"), CHAINS.items(), ids=CHAINS)
def test_score_sde_s_chains(name, solver):
    off, left = run_chain(name, solver)
    assert off < 1e-9
    assert len(left) == (0 if name.startswith("langevin") else 1)  # the last predictor's draw is masked by `denoise`


def test_the_published_corrector_couples_the_batch_and_ours_does_not():
    corrector = Langevin(snr=0.16, steps=1, coupled=False)
    assert run_chain("reverse_diffusion_langevin__t__N50", PredictorCorrector(ReverseDiffusion(), corrector))[0] > 1e-3


@pytest.mark.parametrize(("name", "denoise"), [("euler_maruyama__t__N100", True), ("euler_maruyama_nodenoise__t__N50", False)])
def test_score_sde_s_euler_maruyama_with_its_own_step_length(name, denoise):
    case, model, x = load(f"ring2__score_sde_{name}")
    times, draws, dt = case["times"], InOrder(list(case["noises"])), float(case["dt"])
    for t in map(model.schedule.knot, times):
        s = replace(model.schedule.knot(0.5), time=t.time + dt)  # only its time is read
        x = EulerMaruyama().step(model, x, t, s, None, Silent() if denoise and t.time == times[-1] else draws).x
    assert np.abs(x.numpy() - case["x_end"]).max() < 1e-9


def test_azula_s_predictor_corrector():
    case, model, x = load("ring2__azula_pc__lam__N10")
    knots = model.schedule.knots(case["times"])
    solver = PredictorCorrector(DDIM(), Renoise(float(case["delta"]), int(case["corrections"])))
    run = solve(solver, model, x, knots, noise=InOrder(list(case["noises"])))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert run.calls == solver.calls(knots) == int(case["nfe"])


class Jumps:
    """The recorded draws of the jumps: the published code draws before every step as well and multiplies by zero."""

    def __init__(self, draws):
        self.draws = draws

    def fresh(self, key):
        return torch.as_tensor(self.draws.pop(0))


@pytest.mark.parametrize("base", [None, Heun()], ids=repr)
def test_restart(base):
    case, model, x = load("ring2__restart__karras7to0__N10")
    nodes, rounds, low, high = json.loads(str(case["restart_info"]))["0"]
    knots = model.schedule.knots(case["times"])
    at = min(range(len(knots)), key=lambda i: abs(knots[i].u - low))  # the published code takes the nearest knot for u_min
    solver = Restart(((nodes, rounds, knots[at].u, high),), base)
    jumps = [at + k * nodes for k in range(rounds)]  # after `at` steps of the grid; then nodes - 1 steps a round
    run = solve(solver, model, x, knots, noise=Jumps([case["noises"][i] for i in jumps]))
    assert np.abs(run.x.numpy() - case["x_end"]).max() < 1e-9
    assert run.calls == solver.calls(knots) == int(case["nfe"])


def test_the_sampler_draws_what_its_key_says():
    """Off the recorded files: the corrector's draws differ from step to step and do not touch the predictor's."""
    case, model, x = load("ring2__azula_pc__lam__N10")
    knots, seen = model.schedule.knots(case["times"]), []

    class Watched:
        def __init__(self, noise):
            self.noise = noise

        def __call__(self, a, b, key=0):
            return self.noise(a, b, key)

        def fresh(self, key):
            seen.append(key)
            return self.noise.fresh(key)

    solve(PredictorCorrector(DDPM(), Langevin(steps=3)), model, x, knots, noise=Watched(White(0).on(x)))
    assert len(set(seen)) == len(seen) == 30
