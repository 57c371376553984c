"""Agreement with the official implementations of exactly invertible samplers: sampling, encoding, decoding; float64, 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_golden import Recorded, load

from sdediff import BDIA, EDICT, OBELM, Kept, Reversible, ReversibleHeun, Rex, RungeKutta, Time, solve

CASES = {
    "ring2__dfx_reversible_heun__t__N50": ReversibleHeun(Time()),
    "ring2__reversible_heun_g0__t__N50": ReversibleHeun(Time()),
    "ring2__reversible_heun__t__N50": ReversibleHeun(Time(), eta=1.0),
    "ring2__mccallum_foster_euler__t__N20": Reversible("euler", 0.999, Time()),
    "ring2__mccallum_foster_midpoint__t__N20": Reversible(RungeKutta("midpoint", Time()), 0.999, Time()),
    "ring2__rex_euler_data__t__N20": Rex("euler", "x0"),
    "ring2__rex_rk4_noise__t__N20": Rex("rk4", "eps"),
    "ring2disc__edict_leapfrog__leading__N10": EDICT(0.93),
    "ring2disc__edict_noalt__leading1__N10": EDICT(0.93, leapfrog=False),
    "ring2disc__bdia__leading1__N10": BDIA(0.5),
    "ring2disc__bdia_ldm__leading1__N10": BDIA(1.0),
    "ring2disc__obelm__leading1__N10": OBELM(),
}
every_case = pytest.mark.parametrize(("name", "solver"), CASES.items(), ids=CASES)


def off(x: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(x.numpy() - expected).max())


def sampled(name, solver, x=None, memory=None):
    """(file, model, knots, run) of the case: from its own start, or decoding (x, memory)."""
    case, model, start = load(name)
    knots = model.schedule.knots(case["times"])
    noise = Recorded(list(case.get("noises", [])))
    return case, model, knots, solve(solver, model, start if x is None else x, knots, memory=memory, noise=noise)


@every_case
def test_sampling_takes_the_same_steps(name, solver):
    case, _, knots, run = sampled(name, solver)
    assert off(run.x, case["x_end"]) < 1e-9
    second = [k for k in ("z_end", "xhat_end", "y_end", "state_end_0") if k in case]
    assert all(off(run.memory.tensors[0], case[k]) < 1e-9 for k in second)
    if "state_end_1" in case:
        assert off(run.memory.tensors[1], case["state_end_1"]) < 1e-9
    theirs = int(case["nfe"]) - ("PyPI torchsde" in str(case["source"]))  # which asks for the first slope twice
    assert run.calls == solver.calls(knots) == theirs


@every_case
def test_the_way_back_with_the_memory(name, solver):
    case, model, knots, run = sampled(name, solver)
    back = solve(solver.inverse, model, run.x, knots[::-1], memory=run.memory, noise=Recorded(list(case.get("noises", []))[::-1]))
    tolerance = 1e-8 if solver.facts.stochastic else 1e-10  # rounding grows on the way back along the paths of the SDE
    assert off(back.x, case["x_T"]) < tolerance
    if "x_back" in case:
        assert off(back.x, case["x_back"]) < 1e-9


@pytest.mark.parametrize(("name", "solver"), [(n, s) for n, s in CASES.items() if "ldm" not in n and "reversible_heun" not in n])
def test_encoding_and_decoding(name, solver):
    case, model, _ = load(name)
    knots = model.schedule.knots(case["times"])
    x = torch.as_tensor(case["enc_x0"])
    run = solve(solver.inverse, model, x, knots[::-1])
    if "bdia" not in name:
        assert off(run.x, case["enc_state_a"]) < 1e-9
        assert "enc_state_b" not in case or off(run.memory.tensors[0], case["enc_state_b"]) < 1e-9
    back = solve(solver, model, run.x, knots, memory=run.memory)
    assert off(back.x, case["enc_x0"]) < 1e-10
    assert off(back.x, case.get("dec_x", case["enc_x0"])) < 1e-9
    assert "dec_y" not in case or off(back.memory.tensors[0], case["dec_y"]) < 1e-9
    assert run.calls == back.calls + isinstance(solver, BDIA | OBELM) == solver.calls(knots)  # the swap costs nothing


def test_the_encoder_of_bdia_in_belm_leaves_the_network_out_of_its_first_step():
    """Their first step adds the NUMBER sigma in the place of sigma eps. From there on it is the method; the latent is another one."""
    case, model, _ = load("ring2disc__bdia__leading1__N10")
    up, x = model.schedule.knots(case["times"])[::-1], torch.as_tensor(case["enc_x0"])
    solver = BDIA(float(case["gamma"]))
    theirs = up[1].alpha / up[0].alpha * x + up[1].sigma
    run = solve(solver.inverse, model, theirs, up[1:], memory=Kept((x,), (up[0],)))
    assert off(run.x, case["enc_state_a"]) < 1e-9
    assert off(run.memory.tensors[0], case["enc_state_b"]) < 1e-9
    assert off(solve(solver, model, run.x, up[::-1], memory=run.memory).x, case["dec_x"]) < 1e-9
    ours = solve(solver.inverse, model, x, up)
    assert off(ours.x, case["enc_state_a"]) == pytest.approx(3.93, abs=0.01)


def test_a_run_of_an_odd_number_of_steps_whose_first_mover_was_x():
    """EDICT's own encoder knows how many steps its decoder will take; ours, without a memory, takes it for an even number."""
    case, model, _ = load("ring2disc__edict_leapfrog__leading__N10")
    up, x, solver = model.schedule.knots(case["times"])[::-1][:6], torch.as_tensor(case["enc_x0"]), EDICT()
    told = solve(solver.inverse, model, x, up, memory=solver.init(model, x, up[0])._replace(turn=5))
    untold = solve(solver.inverse, model, x, up)
    assert (told.memory.turn, untold.memory.turn) == (0, -5)
    assert float((told.x - untold.x).abs().max()) > 1e-4
    for run in (told, untold):
        assert off(solve(solver, model, run.x, up[::-1], memory=run.memory).x, case["enc_x0"]) < 1e-10
