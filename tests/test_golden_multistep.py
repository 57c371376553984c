"""Agreement of the multistep family with the official implementations, float64, 1e-9."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_golden import Recorded, load

from sdediff import (
    DEIS,
    IPNDM,
    LMS,
    PNDM,
    Between,
    DPMSolverMultistep,
    DPMSolverPPMultistep,
    ExponentialAdams,
    Fixed,
    Mixture,
    SASolver,
    Schedule,
    SDEDPMSolverPP,
    UniPC,
    solve,
)

LOWER = True  # the official run lowers the order of its last steps

CASES = {
    "ring2__azula_ito__lam__N10": (ExponentialAdams(1, "eps", tau=1.0), False),
    "ring2__azula_vab3__lam__N10": (ExponentialAdams(3, "flow", "fraction"), False),
    "ring2__azula_xeab2__lam__N10": (ExponentialAdams(2), False),
    "ring2__azula_xeab3__lam__N10": (ExponentialAdams(3), False),
    "ring2__azula_xeab3__lam__N20": (DPMSolverPPMultistep(3, "heun", corrected=True), False),
    "ring2__azula_zab3__lam__N10": (ExponentialAdams(3, "eps", "u"), False),
    "ring2__azula_zeab3__lam__N10": (ExponentialAdams(3, "eps"), False),
    "ring2__deis_ipndm__t__N10": (IPNDM(4), False),
    "ring2__df_deis_logrho_2__lam__N10": (DEIS(2, "log_rho"), False),
    "ring2__df_deis_logrho_3__lam__N10": (DEIS(3, "log_rho"), False),
    "ring2__df_dpmsolverpp2_heun__lam__N10": (DPMSolverPPMultistep(2, "heun"), False),
    "ring2__df_sasolver_P2C2_tau0.4__lam__N20": (SASolver(2, 2, 0.4, few_steps=True), False),
    "ring2__df_sasolver_P3C4_tau0__lam__N10": (SASolver(3, 4, 0.0, few_steps=True), False),
    "ring2__df_sasolver_P3C4_tau1__lam__N10": (SASolver(3, 4, 1.0, few_steps=True), False),
    "ring2__df_sdedpmsolver1__lam__N20": (SDEDPMSolverPP(1, predicts="eps"), False),
    "ring2__df_sdedpmsolver2_midpoint__lam__N20": (SDEDPMSolverPP(2, predicts="eps"), False),
    "ring2__df_sdedpmsolverpp1__lam__N10": (SDEDPMSolverPP(1), False),
    "ring2__df_sdedpmsolverpp2_heun__lam__N20": (SDEDPMSolverPP(2, kind="heun"), False),
    "ring2__df_sdedpmsolverpp2_midpoint__lam__N10": (SDEDPMSolverPP(2), False),
    "ring2__df_unipc_bh2_2__lam__N10": (UniPC(2, "bh2"), False),
    "ring2__dpmsolver_multistep_2__lam__N10": (DPMSolverMultistep(2), False),
    "ring2__dpmsolver_multistep_3__lam__N10": (DPMSolverMultistep(3), False),
    "ring2__dpmsolverpp_multistep_2__lam__N10": (DPMSolverPPMultistep(2), False),
    "ring2__dpmsolverpp_multistep_2__lam__N20": (DPMSolverPPMultistep(2), False),
    "ring2__dpmsolverpp_multistep_2__lam__N8": (DPMSolverPPMultistep(2), LOWER),
    "ring2__dpmsolverpp_multistep_2__t__N20": (DPMSolverPPMultistep(2), False),
    "ring2__dpmsolverpp_multistep_2_nolof__lam__N8": (DPMSolverPPMultistep(2), False),
    "ring2__dpmsolverpp_multistep_3__lam__N10": (DPMSolverPPMultistep(3), False),
    "ring2__dpmsolverpp_multistep_3__lam__N20": (DPMSolverPPMultistep(3), False),
    "ring2__dpmsolverpp_multistep_3__lam__N9": (DPMSolverPPMultistep(3), LOWER),
    "ring2__ds_ipndm_3__lam__N10": (IPNDM(3), False),
    "ring2__ds_ipndm_4__lam__N10": (IPNDM(4), False),
    "ring2__ds_ipndm_4__t__N20": (IPNDM(4), False),
    "ring2__ds_ipndm_v_4__lam__N10": (IPNDM(4, variable=True), False),
    "ring2__kd_dpmpp_2m__karras7to0__N10": (DPMSolverPPMultistep(2), False),
    "ring2__kd_dpmpp_2m__lam__N10": (DPMSolverPPMultistep(2), False),
    "ring2__kd_dpmpp_2m__lam__N20": (DPMSolverPPMultistep(2), False),
    "ring2__kd_dpmpp_2m_sde_heun__lam__N10": (SDEDPMSolverPP(2, kind="heun"), False),
    "ring2__kd_dpmpp_2m_sde_midpoint__lam__N10": (SDEDPMSolverPP(2), False),
    "ring2__kd_dpmpp_2m_sde_midpoint__lam__N20": (SDEDPMSolverPP(2), False),
    "ring2__kd_dpmpp_3m_sde__lam__N10": (SDEDPMSolverPP(3, kind="heun"), False),
    "ring2__kd_lms__lam__N10": (LMS(4), False),
    "ring2__kd_lms_o2__lam__N10": (LMS(2), False),
    "ring2__unipc_bh1_2_x0__lam__N10": (UniPC(2, "bh1"), LOWER),
    "ring2__unipc_bh1_3_eps__lam__N10": (UniPC(3, "bh1", "eps"), LOWER),
    "ring2__unipc_bh1_3_x0__lam__N10": (UniPC(3, "bh1"), LOWER),
    "ring2__unipc_bh2_2_x0__lam__N10": (UniPC(2, "bh2"), LOWER),
    "ring2__unipc_bh2_3_x0__lam__N10": (UniPC(3, "bh2"), LOWER),
    "ring2__unipc_bh2_3_x0__lam__N20": (UniPC(3, "bh2"), LOWER),
    "ring2disc__df_pndm_plms__leading__N10": (PNDM(4, "plms"), False),
    "ring2disc__df_pndm_prk__leading__N10": (PNDM(4, "prk"), False),
    "ring2disc__pndm_fpndm__uniform__N10": (PNDM(4, "prk"), False),
    "ring2disc__pndm_spndm__uniform__N10": (PNDM(2, "plms"), False),
}


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_the_official_implementation_takes_the_same_steps(name, case):
    solver, lower_final = case
    golden, model, x = load(name)
    knots = model.schedule.knots(golden["times"])
    run = solve(solver, model, x, Fixed(knots, lower_final), noise=Recorded(list(golden.get("noises", []))))
    assert np.abs(run.x.numpy() - golden["x_end"]).max() < 1e-9
    assert run.calls == solver.calls(knots)
    assert run.calls == int(golden["nfe"])


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        (f"ring2__deis_{axis}ab{k}__{grid}__N10", DEIS(k + 1, clock))
        for k in (1, 2, 3)
        for axis, grid, clock in (("t", "quad", "t"), ("rho", "karras7", "rho"))
    ],
)
def test_deis_with_exact_integrals(name, solver):
    """The official coefficients are left sums over 10 000 points: pinned at their own distance from the exact ones."""
    golden, model, x = load(name)
    run = solve(solver, model, x, model.schedule.knots(golden["times"]))
    assert np.abs(run.x.numpy() - golden["x_end_exact_coeff"]).max() < 1e-9
    published = np.abs(run.x.numpy() - golden["x_end"]).max()
    assert published == pytest.approx(float(golden["quadrature_error_max"]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ring2__sasolver_few_steps_P2C2_tau0.4__lam__N10", SASolver(2, 2, 0.4, few_steps=True)),
        ("ring2__sasolver_few_steps_P3C4_tau0__lam__N10", SASolver(3, 4, 0.0, few_steps=True)),
        ("ring2__sasolver_few_steps_P3C4_tau1__lam__N10", SASolver(3, 4, 1.0, few_steps=True)),
    ],
)
def test_sa_solver_for_few_steps(name, solver):
    """Their last step takes tau = 0, and the first recorded draw is never used."""
    golden, model, x = load(name)
    knots = model.schedule.knots(golden["times"])
    if solver.tau:
        solver = SASolver(solver.predictor, solver.corrector, Between(knots[-2].time, 1.0, solver.tau), few_steps=True)
    run = solve(solver, model, x, Fixed(knots, lower_final=True), noise=Recorded(list(golden.get("noises", [None])[1:])))
    assert np.abs(run.x.numpy() - golden["x_end"]).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ring2__sasolver_more_steps_P1C0_tau1__lam__N10", SASolver(1, 0, 1.0)),
        ("ring2__sasolver_more_steps_P3C4_tau0__lam__N10", SASolver(3, 4, 0.0)),
        ("ring2__sasolver_more_steps_P3C4_tauinterval__lam__N20", SASolver(3, 4, Between(0.2, 0.8, 1.0))),
    ],
)
def test_sa_solver_for_more_steps(name, solver):
    """They correct the last state too (one more evaluation) and return the x0 of a further call there."""
    golden, model, x = load(name)
    knots = model.schedule.knots(golden["times"])
    draws = [z for z, tau in zip(golden.get("noises", [])[1:], golden["tau_at_times"][1:], strict=False) if tau]  # tau = 0 draws nothing
    run = solve(solver, model, x, Fixed(knots, lower_final=True), noise=Recorded(draws))
    beyond = model.schedule.knot(0.5 * knots[-1].time)
    last = solver.at_order(1).step(model, run.x, knots[-1], beyond, run.memory, Recorded([torch.zeros_like(x)]))
    corrected = run.x if last.memory.x is None else last.memory.x
    assert np.abs(model(corrected, knots[-1]).x0.tensor().numpy() - golden["x_end"]).max() < 1e-9


def test_the_inverse_of_dpm_solver_pp_2m():
    golden, model, x = load("ring2__dpmsolverpp_inverse_multistep_2__lam__N20")
    knots = model.schedule.knots(golden["times"])
    encoded = solve(DPMSolverPPMultistep(2).inverse, model, x, knots).x
    assert np.abs(encoded.numpy() - golden["x_encoded"]).max() < 1e-9
    assert np.abs(solve(DPMSolverPPMultistep(2), model, encoded, knots[::-1]).x.numpy() - golden["x_decoded"]).max() < 1e-9


@dataclass(frozen=True)
class Fitted(Schedule):
    """diff-sampler's own VP time for a grid of sigmas: beta_min fitted at sigma 0.002 and 80, here below zero."""

    beta_min: float
    beta_max: float
    t_max: float = 2.0

    def log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _time_at(self, lam):
        slope, more = self.beta_max - self.beta_min, np.log1p(np.exp(-2 * lam))
        return (np.sqrt(self.beta_min**2 + 2 * slope * more) - self.beta_min) / slope

    def time_at(self, lam):
        return float(self._time_at(np.asarray(lam))) if np.ndim(lam) == 0 else self._time_at(lam)


def test_diff_sampler_s_deis_interpolates_in_a_time_of_its_own():
    """Its coefficients are left sums over 10 000 points of a VP time fitted to the sigmas: pinned at its distance from the exact ones."""
    golden, model, x = load("ring2__ds_deis_tab3__lam__N10")
    schedule = Fitted(float(golden["edm2t_beta_0"]), float(golden["edm2t_beta_1"]))
    knots = tuple(schedule.knot_at("lam", model.schedule.knot(t).lam) for t in golden["times"])
    same = Mixture(golden["mix_means"], golden["mix_stds"], golden["mix_weights"], schedule=schedule)
    off = np.abs(solve(DEIS(3, "t"), same, x, knots).x.numpy() - golden["x_end"]).max()
    assert 1e-6 < off < 2e-3, off
