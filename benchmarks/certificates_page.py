"""What a certificate is, and how certificates are shown: docs/certificates.md and docs/results/certificates.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from sdediff import Solver, UserError
from sdediff.solvers import named

TOLERANCE = 0.15


@dataclass(frozen=True)
class Measure:
    """One measured order: of which kind, where, what was promised (nan for `own_start`), and the error constant error * steps^promised."""

    kind: str
    target: str
    grid: str
    promised: float
    measured: float
    steps: int
    errors: tuple[float, ...]

    @property
    def constant(self) -> float:
        return self.errors[-1] * self.steps**self.promised


@dataclass(frozen=True)
class Certificate:
    """All that was measured of one setting. calls: network calls a step on 100 steps; float32: RMS effect of float32 on 50 steps."""

    setting: str
    family: str
    claimed: int
    calls: float
    float32: float
    measures: tuple[Measure, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: str) -> list[Measure]:
        return [m for m in self.measures if m.kind == kind]

    @property
    def wrong(self) -> list[str]:
        """The promises that are not what is measured, in words."""
        found = []
        for kind in ("ode", "strong", "weak"):
            least = min(self.of(kind), key=lambda m: -math.inf if math.isnan(m.measured) else m.measured, default=None)
            if least and not abs(least.measured - least.promised) <= TOLERANCE:
                where = ", ".join(f"{m.measured:.2f} on {m.target}/{m.grid}" for m in self.of(kind))
                found.append(f"{kind} order {least.promised:g} is promised, and measured is {where}")
        return found


PUBLISHED = [
    # (what, where, claimed, measured on the published code, what deviates, our settings: as published, corrected)
    (
        "DPM-Solver++(3M)",
        "LuChengTHU/dpm-solver, k-diffusion (3m_sde), diffusers, diff-sampler",
        "3",
        "2.02",
        "the second difference D2 lacks its factor 2 (the same code's single-step Taylor form has it). Error at 320 steps 1.1e-6, "
        "and 8.4e-8 with the factor; at h = 0.46 the published one is 1.4 times better, at 0.23 equal, and loses below",
        ("DPMSolverPPMultistep(order=3)", "DPMSolverPPMultistep(order=3, corrected=True)"),
    ),
    (
        "DPM-Solver multistep 3 (eps)",
        "LuChengTHU/dpm-solver, diffusers, diff-sampler",
        "3",
        "2.06",
        "the same factor",
        ("DPMSolverMultistep(order=3)", "DPMSolverMultistep(order=3, corrected=True)"),
    ),
    (
        "UniPC, vary_coeff, order 2 and 3",
        "wl-zhao/UniPC (issue 10)",
        "p + 1",
        "0.98, 0.99",
        "the corrector leaves out a row of the inverse matrix; summing all rows over all differences restores 3.02 and 3.86",
        ("UniPC(order=2, b='vary')", "UniPC(order=2, b='vary', corrected=True)"),
    ),
    (
        "iPNDM, orders 2 to 4",
        "diff-sampler, PNDM",
        "4",
        "2.0",
        "the Adams-Bashforth weights of equal steps, whatever the grid",
        ("IPNDM(order=4)", "IPNDM(order=4, variable=True, corrected=True)"),
    ),
    (
        "iPNDM_v, order 3 and more",
        "diff-sampler",
        "4",
        "2.91",
        "a misplaced bracket: nodes with steps 1, 1.5, 2.5 give weights 1.806, -1.089, 0.283 instead of 1.514, -0.622, 0.108",
        ("IPNDM(order=4, variable=True)", "IPNDM(order=4, variable=True, corrected=True)"),
    ),
    (
        "LMS, order 4; azula xEAB-3",
        "k-diffusion; azula",
        "4; 3",
        "2.28; 2.25",
        "correct formulas, started by steps of order 1, 2, ...: these cap the order at 2",
        ("LMS(order=4)", "LMS(order=4, start=RungeKutta(tableau='rk4'))"),
    ),
    (
        "ER-SDE-3, ODE form",
        "QinpengCui/ER-SDE-Solver",
        "3",
        "1.31, falling",
        "its integrals are left sums of 100 points",
        ("ERSDE(order=3, noise_scale='ode')", "ERSDE(order=3, noise_scale='ode', corrected=True)"),
    ),
    (
        "SDE-DPM-Solver++ of order 3",
        "diffusers",
        "3",
        "1 (weak)",
        "a wrong sign on 1/2 in the coefficient of D2 (limit -1 instead of 0); relative variance error .17, .092, .044, .021, .010 at 10 "
        "to 160 steps, more than its own order 2 has (.044, .015, .0040, .0010, 2.5e-4)",
        ("", "SDEDPMSolverPP(order=3, corrected=True)"),
    ),
    (
        "SA-Solver, few_steps, P3C4, tau = 0",
        "scxue/SA-Solver",
        "4",
        "2.0",
        "the order is capped where two values are used (diffusers' SASolver without that cap: 3.85)",
        ("SASolver(predictor=3, corrector=4, tau=0.0, few_steps=True)", "SASolver(predictor=3, corrector=4, tau=0.0)"),
    ),
    (
        "REAB-1, 2, 3",
        "azula",
        "1, 2, 3",
        "1.0",
        "sigma_t stands where sigma_s is meant, in the last line",
        ("", "ExponentialAdams(order=3, predicts='eps')"),
    ),
    (
        "DEIS, tAB",
        "qsh-zh/deis",
        "p",
        "",
        "coefficients by a left sum of 10 000 points: results 7e-6 to 6e-3 away from those with exact integrals",
        ("", "DEIS(order=3, axis='t')"),
    ),
    (
        "Euler-Maruyama, reverse diffusion",
        "yang-song/score_sde",
        "1",
        "",
        "the grid has N points from 1 to 1e-3 and the step is 1/N: the two disagree, and there is no consistent last time",
        ("", "EulerMaruyama()"),
    ),
]


def promised_and_measured(found: list[Measure]) -> list[str]:
    """promised, least and greatest order measured, the error constant on the mixture (on the first target, if it is not there)."""
    if not found:
        return ["", "", ""]
    orders = sorted(m.measured for m in found)
    constant = next((m for m in found if (m.target, m.grid) == ("mixture", "LogSNR")), found[0]).constant
    spread = f"{orders[0]:.2f}" if orders[-1] - orders[0] < 0.005 else f"{orders[0]:.2f} to {orders[-1]:.2f}"
    return [f"{found[0].promised:g}", spread, f"{constant:.1e}"]


def short(setting: str) -> str:
    """The repr without the options that are at their defaults."""
    solver: Any = named(setting)
    shown = []
    for f in fields(solver):
        value = getattr(solver, f.name)
        if value != (f.default_factory() if f.default_factory is not MISSING else f.default):
            shown.append(f"{f.name}={short(repr(value)) if isinstance(value, Solver) else repr(value)}")
    return f"{type(solver).__name__}({', '.join(shown)})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]


def report(found: Sequence[Certificate]) -> str:
    """docs/certificates.md."""
    failed = [c for c in found if c.wrong]
    lines = [
        "# Certificates",
        "",
        "Written by `python benchmarks/certificates.py` (`make certificates`); do not edit. All numbers: `docs/results/certificates.csv`.",
        "",
        f"**{len(found)} settings, {len(found) - len(failed)} certificates hold, {len(failed)} fail.** A certificate holds if the least "
        "order measured, over all targets and grids, is the promised one to 0.15. Claimed is the order as the paper counts it.",
        "",
        "Targets: an anisotropic Gaussian (standard deviations 0.1 to 1.2), a 2-D mixture of five modes, a sharp 16-D mixture of six modes "
        "(standard deviations 0.05 to 0.1), on `VPLinear` from t = 0.9 to 0.02. Grids: `LogSNR`, `Quadratic`. All in float64.",
        "",
        "- **order**: of the global error to the probability flow; of multistep methods that of the formula (the first steps by RK4 where "
        "`start` is open). **own start**: the least order as published, from first steps of lower order, on a run from t = 0.3: a "
        "first-order start caps the order at 2, at 3 with a corrector. From high noise the cap is not seen below thousands of steps.",
        "- **strong**: on one Brownian path a sample, also on a short span on which two modes part (t from 0.17 to 0.12). "
        "**weak**: of exact mean and variance at every knot (Gaussian data, no Monte Carlo).",
        "- **constant**: error times steps^order, on the mixture with `LogSNR` (weak: on the Gaussian). **float32**: RMS difference "
        "between a float32 and a float64 run of 50 steps, with the same noise.",
        "- Each range is from the least to the greatest over targets and grids: a method may do better than its order on some target. "
        "Explicit midpoint in Sigma coordinates has order 3 on every Gaussian, exactly.",
        "",
    ]
    for title in dict.fromkeys(c.family for c in found):
        members = [c for c in found if c.family == title]
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        flows = [c for c in members if not c.of("strong") and not c.of("weak") and c.of("ode")]
        if flows:
            rows = []
            for c in flows:
                own = min((m.measured for m in c.of("own_start")), default=None)
                promised, measured, constant = promised_and_measured(c.of("ode"))
                rest = [f"{c.calls:g}", f"{c.float32:.0e}", "**fails**" if c.wrong else "holds"]
                rows.append(
                    [f"`{short(c.setting)}`", f"{c.claimed}", promised, measured, "" if own is None else f"{own:.2f}", constant, *rest]
                )
            head = ["setting", "claimed", "promised", "measured", "own start", "constant", "calls a step", "float32", "certificate"]
            lines += _table(head, rows)
        noisy = [c for c in members if c.of("strong") or c.of("weak")]
        if noisy:
            rows = []
            for c in noisy:
                promised = [*promised_and_measured(c.of("strong")), *promised_and_measured(c.of("weak"))]
                rest = [f"{c.calls:g}", f"{c.float32:.0e}", "**fails**" if c.wrong else "holds"]
                rows.append([f"`{short(c.setting)}`", f"{c.claimed}", *promised, *rest])
            head = [
                "setting",
                "claimed",
                "strong",
                "measured",
                "constant",
                "weak",
                "measured",
                "constant",
                "calls a step",
                "float32",
                "certificate",
            ]
            lines += _table(head, rows)
        silent = [c for c in members if not c.of("ode") and c not in noisy]
        if silent:
            lines += ["No order is promised or can be measured:", ""]
            lines += _table(
                ["setting", "calls a step", "float32", "note"],
                [[f"`{short(c.setting)}`", f"{c.calls:g}", f"{c.float32:.0e}", "; ".join(c.notes)] for c in silent],
            )
    if failed:
        lines += ["## Certificates that fail", ""] + [f"- `{short(c.setting)}`: {'; '.join(c.wrong)}" for c in failed] + [""]
    return "\n".join(lines + deviations(found))


def deviations(found: Sequence[Certificate]) -> list[str]:
    """The published implementations that miss their claim, beside what is measured of ours."""
    by_name = {c.setting: c for c in found}

    def ours(text: str) -> str:
        try:
            c = by_name.get(repr(named(text))) if text else None
        except UserError:
            c = None
        if c is None:
            return ""
        kind = next((k for k in ("ode", "weak", "strong") if c.of(k)), "")
        if not kind:
            return f"`{short(c.setting)}`"
        own = [m.measured for m in c.of("own_start")]
        measured = promised_and_measured(c.of(kind))[1]
        return f"{measured}{f' ({kind})' if kind != 'ode' else ''}{f'; own start {min(own):.2f}' if own else ''}: `{short(c.setting)}`"

    rows = [[what, where, claimed, there, why, ours(a), ours(b)] for what, where, claimed, there, why, (a, b) in PUBLISHED]
    return [
        "## Published implementations that deviate",
        "",
        "Measured on the published code itself, in float64, on a 2-D mixture of three modes, uniform-lambda grid from sigma 5 to 0.05, "
        "slope between 160 and 320 steps; beside it the orders of our settings as published and corrected (least to greatest, from above).",
        "",
        *_table(["method", "where", "claimed", "measured there", "what deviates", "ours, as published", "ours, corrected"], rows),
    ]


def write_csv(found: Sequence[Certificate], path: Path) -> None:
    """One row for each measured order (one without numbers for a setting that promises none)."""
    head = ["setting", "family", "claimed", "calls_a_step", "float32", "certificate", "kind", "target", "grid", "promised", "measured"]
    head += ["steps", "error", "constant", "errors"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        for c in found:
            of = [short(c.setting), c.family, c.claimed, f"{c.calls:g}", f"{c.float32:.2e}", "fails" if c.wrong else "holds"]
            for m in c.measures:
                promised, constant = ("", "") if math.isnan(m.promised) else (f"{m.promised:g}", f"{m.constant:.4e}")
                errors = " ".join(f"{e:.2e}" for e in m.errors)
                table.writerow(
                    [*of, m.kind, m.target, m.grid, promised, f"{m.measured:.4f}", m.steps, f"{m.errors[-1]:.4e}", constant, errors]
                )
            if not c.measures:
                table.writerow([*of, *[""] * (len(head) - len(of))])
