"""Every public solver at every order and main option: what the certificates and the exact Frechet distances are measured for.

`settings()` is the defaults of all of `sdediff.solvers.SOLVERS` and the table below, each text built by `sdediff.solvers.named`. A solver
that is new is measured with its defaults without being told; its options belong in the table.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from sdediff import AdaptiveAdams, EDMHeun, Solver
from sdediff.phi import EXPONENTIAL_TABLEAUX
from sdediff.solvers import SOLVERS, VALUES, named
from sdediff.weights import TABLEAUX

MID = "midpoint"
START = {2: "start=RungeKutta(tableau='midpoint')", 3: "start=RungeKutta(tableau='rk3')", 4: "start=RungeKutta(tableau='rk4')"}


def _each(pattern: str, *options: object) -> list[str]:
    """The pattern with each option in the place of {}."""
    return [pattern.format(o) for o in options]


TEXTS: dict[str, list[str]] = {
    "first order": [
        *_each("DDPM(variance={!r})", "small", "large", "none"),
        *_each("DDIM(eta={})", 0.0, 0.5, 1.0),
        *_each("EulerMaruyama(eta={})", 0.0, 0.5, 1.0),
    ],
    "Runge-Kutta": [
        *_each("Euler({})", "Sigma()", "Angle()", "Angle(data_std=0.5)", "Time()"),
        *_each("Heun({})", "Sigma()", "Angle()", "Angle(data_std=0.5)", "Time()"),
        *(f"RungeKutta(tableau={t!r}, coordinates={c}())" for t in TABLEAUX for c in ("Sigma", "Angle", "Time")),
        *_each("EDMHeun(alpha={})", 1.0, 0.5, 0.75),
        "EDMHeun(churn=20.0, s_max=50.0, steps=50)",
        *_each("DPM2(r={})", 0.5, 0.3),
        *_each("DEISRungeKutta(tableau={!r})", "heun", "rk3", "rk4"),
    ],
    "exponential, single step": [
        *_each("DPMSolver(order={})", 1, 2, 3),
        *_each("DPMSolverPP(order={})", 1, 2, 3),
        *(f"DPMSolver{pp}(order=2, r1={r})" for pp in ("", "PP") for r in (0.3, 1.0)),
        *(f"DPMSolver{pp}(order={p}, kind='taylor')" for pp in ("", "PP") for p in (2, 3)),
        *(f"DPMSolver{pp}(order={p}, inner='time')" for pp in ("", "PP") for p in (2, 3)),
        *_each("ExponentialRungeKutta(tableau={!r})", *EXPONENTIAL_TABLEAUX),
    ],
    "exponential, multistep": [
        *(f"DPMSolver{pp}Multistep(order={p}, kind={k!r})" for pp in ("", "PP") for p, k in ((1, MID), (2, MID), (2, "heun"), (3, MID))),
        *(f"DPMSolver{pp}Multistep(order=3, corrected=True)" for pp in ("", "PP")),
        *(f"DPMSolver{pp}Multistep(order=3, corrected=True, {START[3]})" for pp in ("", "PP")),
        *(f"UniPC(order={p}, b={b!r}, predicts={m!r})" for p in (1, 2, 3, 4) for b in ("bh1", "bh2", "vary") for m in ("x0", "eps")),
        *(f"UniPC(order={p}, b='vary', corrected=True)" for p in (2, 3, 4)),
        *(f"UniPC(order={p}, {START[p + 1]})" for p in (2, 3)),
        *(f"DEIS(order={p}, axis={a!r})" for p in (1, 2, 3, 4) for a in ("t", "rho", "log_rho")),
        f"DEIS(order=3, axis='t', {START[3]})",
        *_each("LMS(order={})", 1, 2, 3, 4),
        *(f"LMS(order={p}, {START[p]})" for p in (3, 4)),
        *(f"IPNDM(order={p}, variable={v})" for p in (1, 2, 3, 4) for v in (False, True)),
        *(f"IPNDM(order={p}, variable=True, corrected=True)" for p in (3, 4)),
        *(f"PNDM(order={p}, warmup={w!r})" for p in (2, 4) for w in ("prk", "plms")),
    ],
    "exponential Adams": [
        *(f"ExponentialAdams(order={p}, predicts={m!r})" for p in (1, 2, 3, 4) for m in ("x0", "eps", "v")),
        *(f"ExponentialAdams(order=3, predicts={m!r}, axis={a!r})" for m in ("x0", "eps", "v") for a in ("u", "angle", "t")),
        *(f"ExponentialAdams(order={p}, predicts={m!r}, axis='angle', corrector=True)" for p in (1, 2, 3, 4) for m in ("x0", "v")),
        *(f"ExponentialAdams(order={p}, {START[p]})" for p in (2, 3, 4)),
        *(f"ExponentialAdams(order={p}, tau=1.0)" for p in (1, 2, 3)),
        "ExponentialAdams(order=2, corrector=True, tau=1.0)",
    ],
    "with an error estimate": [
        *_each("AdaptiveAdams(order={})", 1, 2, 3),
        *_each("AdaptiveAdams(order={}, evaluations=2)", 1, 2),
        "AdaptiveAdams(order=2, predicts='x0', axis='lam')",
        *_each("EmbeddedRungeKutta(pair={!r})", "heun_euler", "bosh3"),
        *_each("EmbeddedExponential(pair={!r})", "etd2rk", "res2", "ho3", "etd3rk", "krogstad", "ho4"),
    ],
    "stochastic": [
        *(f"SDEDPMSolverPP(order={p}, kind={k!r})" for p, k in ((1, MID), (2, MID), (2, "heun"), (3, MID))),
        *_each("SDEDPMSolverPP(order=2, eta={})", 0.0, 0.5),
        "SDEDPMSolverPP(order=2, predicts='eps')",
        *_each("SDEDPMSolverPP(order=3, corrected=True, eta={})", 0.0, 1.0),
        "DPMSolverPPSDE()",
        *(f"SASolver(predictor={p}, corrector={c}, tau={t})" for p, c in ((1, 0), (2, 2), (3, 0), (3, 4)) for t in (0.0, 0.4, 1.0)),
        "SASolver(predictor=3, corrector=4, tau=Between(low=0.2, high=0.8, value=1.0))",
        *_each("SASolver(predictor=2, corrector=2, few_steps=True, tau={})", 0.0, 1.0),
        "SASolver(predictor=3, corrector=4, few_steps=True, tau=0.0)",
        *(f"SEEDS(order={p}, predicts={m!r})" for p in (1, 2, 3) for m in ("eps", "x0")),
        *(
            f"ERSDE(order={p}, noise_scale={f!r}, corrected={c})"
            for p in (1, 2, 3)
            for f in ("default", "ode", "sde")
            for c in (False, True)
        ),
        *(f"{name}(eta={eta})" for name in ("EulerAncestral", "DPM2Ancestral", "DPMSolverPP2SAncestral") for eta in (0.0, 0.5, 1.0)),
        *_each("DPMSolverPPSDE(eta={})", 0.0, 0.5),
        *_each("ReverseDiffusion(probability_flow={})", False, True),
        *_each("AnalyticDPM(eta={})", 0.0, 1.0),
        *_each("PredictorCorrector(corrector={})", "Langevin()", "Langevin(coupled=True)", "Renoise()"),
        "Restart()",
        "AnnealedLangevin()",
        "Consistency()",
        *(f"{name}(eta={eta})" for name in ("SRA1", "ShARK") for eta in (0.0, 0.5, 1.0)),
    ],
    "exactly invertible": [
        *(f"AsynchronousLeapfrog(order={p}, clock={c!r})" for p in (2, 4) for c in ("roots", "root", "lam")),
        *(f"{name}(clock={c!r})" for name in ("Leapfrog", "Milne") for c in ("roots", "lam")),
        "FixedPoint()",
        "FixedPoint(base=Heun())",
        *(f"EDICT(p={p}, leapfrog={a})" for p in (0.93, 0.8) for a in (True, False)),
        *_each("BDIA(gamma={})", 1.0, 0.5),
        "OBELM()",
        *_each("ReversibleHeun({})", "Angle()", "Sigma()", "Time()"),
        "Reversible()",
        *_each("Reversible(base={}, couple=0.9)", "'euler'", "'midpoint'", "'rk3'", "'rk4'"),
        *_each("Reversible(base={}, couple=0.9)", "DPMSolverPP(order=2)", "ExponentialRungeKutta(tableau='etd3rk')"),
        "Rex()",
        *(f"Rex(tableau={t!r}, predicts={m!r}, couple=0.9)" for t in ("midpoint", "rk4") for m in ("x0", "eps")),
    ],
}


def texts() -> list[str]:
    """Every setting of the table."""
    return [text for family in TEXTS.values() for text in family]


@cache
def settings() -> tuple[Solver, ...]:
    """Every setting, each once: the table in its order, then defaults of solvers that are not in it."""
    known = {c.__name__ for c in (*SOLVERS, *VALUES)}
    read = [named(text) for text in texts() if set(re.findall(r"\b([A-Z]\w*)\b(?=\()", text)) <= known]
    return tuple(dict.fromkeys([*read, *(made() for made in SOLVERS if made not in _HIGH)]))


_HIGH = (AdaptiveAdams,)  # their defaults are at rounding before they are in their asymptotic range: lower orders are measured


def of_steps(solver: Solver, n: int) -> Solver:
    """The setting for a run of n steps: EDM's churn is a total over its steps, which the solver must be told."""
    return replace(solver, steps=n) if isinstance(solver, EDMHeun) and solver.churn else solver


def family(solver: Solver) -> str:
    """The family of the table that names the solver's class, else the file it is defined in."""
    name = type(solver).__name__
    for title, members in TEXTS.items():
        if any(m.startswith(f"{name}(") for m in members):
            return title
    return type(solver).__module__.rsplit(".", 1)[-1].replace("_", " ")
