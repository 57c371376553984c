"""DPM-Solver and DPM-Solver++ as multistep methods (2M, 3M), and their SDE forms.

With H = h (SDE: (1 + eta) h), r0, r1 the earlier steps over h, m0, m1, m2 the last readings and
`D1 = (m0 - m1)/r0 [+ r0/(r0+r1) (a - b)]`, `D2 = 2 (a - b)/(r0 + r1)`, a = (m0 - m1)/r0, b = (m1 - m2)/r1:
`x_s = A x_t + front H (mu_0 m0 + mu_1 D1 + mu_2/2 D2) + N z`, mu_k = INT_0^1 r^k e^(-H(1-r)) dr, front = alpha_s for x0. For eps the
exponent changes sign and front = -sigma_s. The published third order has D2 without its 2, in every repository: it is of order 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..combine import Linear
from ..exponential import Multistep, check_start, finite
from ..names import UserError, choose
from ..prediction import Prediction
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import Update, exponential_moments

KINDS = ("midpoint", "heun")


def _update(predicts: str, t: Knot, s: Knot, nodes: Sequence[Knot], kind: str, corrected: bool, eta: float = 0.0) -> Update:
    """The step from t to s through one to three values."""
    if s.lam == t.lam:
        return Update(1.0, (0.0,) * len(nodes))
    nodes, h = finite(t, s, nodes), s.lam - t.lam
    lost = eta * h if eta else 0.0
    if predicts == "x0":
        keep, std = math.exp(s.log_sigma - t.log_sigma - lost), s.sigma * math.sqrt(max(-math.expm1(-2 * lost), 0.0))
    else:
        keep, std = math.exp(s.log_alpha - t.log_alpha), s.alpha * math.sqrt(max(eta * (t.u**2 - s.u**2), 0.0)) if eta else 0.0
    if len(nodes) == 1:
        whole = -s.alpha * math.expm1(-(h + lost)) if predicts == "x0" else (1 + eta) * (s.sigma - s.alpha * t.u)
        return Update(keep, (whole,), std)
    if predicts == "x0":
        front, mu = s.alpha * (h + lost), exponential_moments(h + lost, 3).tolist()
    else:
        front, mu = -s.sigma * (h + lost), exponential_moments(-h, 3).tolist()
    slope = mu[0] / 2 if kind == "midpoint" and len(nodes) == 2 else mu[1]
    r0 = (nodes[0].lam - nodes[1].lam) / h
    if len(nodes) == 2:
        return Update(keep, (front * (mu[0] + slope / r0), -front * slope / r0), std)
    r1 = (nodes[1].lam - nodes[2].lam) / h
    bend = (2 if corrected else 1) * mu[2] / 2
    of_a = slope * (1 + r0 / (r0 + r1)) + bend / (r0 + r1)
    of_b = -slope * r0 / (r0 + r1) - bend / (r0 + r1)
    weights = (mu[0] + of_a / r0, -of_a / r0 + of_b / r1, -of_b / r1)
    return Update(keep, tuple(front * w for w in weights), std)


@dataclass(frozen=True)
class _Deterministic(Multistep):
    """What both forms share; they differ in the reading and in the source."""

    order: int = 2  # type: ignore[assignment]
    kind: str = "midpoint"
    corrected: bool = False
    start: OneStep | None = None

    predicts: ClassVar[str]
    source: ClassVar[str]

    def __post_init__(self) -> None:
        choose("order", self.order, (1, 2, 3))
        choose("kind", self.kind, KINDS)
        check_start(self.start)

    @property
    def facts(self) -> Facts:
        return Facts(self.source, ode=self.order if self.corrected else min(self.order, 2), inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return p.x0 if self.predicts == "x0" else p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return _update(self.predicts, t, s, nodes, self.kind, self.corrected)


@dataclass(frozen=True)
class DPMSolverMultistep(_Deterministic):
    """DPM-Solver as a multistep method in eps: x_s = (alpha_s/alpha_t) x_t - sigma_s h (mu_0 e0 + mu_1 D1 + mu_2/2 D2).

    kind "midpoint" puts mu_0/2 for mu_1 at order 2 (the published default), "heun" (their "taylor") keeps it. One call a step. Order 2;
    order=3 as published is of order 2 too (D2 lacks its factor 2), with corrected=True of order 3. Lu et al. 2022, DPM-Solver, and the
    official code's multistep update.
    """

    predicts = "eps"
    source = "Lu et al. 2022 (DPM-Solver), multistep form of the official code"


@dataclass(frozen=True)
class DPMSolverPPMultistep(_Deterministic):
    """DPM-Solver++(2M), (3M): x_s = (sigma_s/sigma_t) x_t + alpha_s h (mu_0 m0 + mu_1 D1 + mu_2/2 D2) with m = x0.

    kind "midpoint" puts mu_0/2 for mu_1 at order 2 (the published default), "heun" keeps it. One call a step. Order 2; order=3 as
    published is of order 2 too (D2 lacks its factor 2; at large steps its error is the smaller one), with corrected=True of order 3.
    Lu et al. 2022 (DPM-Solver++), algorithm 2 and the official code's third order.
    """

    predicts = "x0"
    source = "Lu et al. 2022 (DPM-Solver++), algorithm 2"


@dataclass(frozen=True)
class SDEDPMSolverPP(Multistep):
    """SDE-DPM-Solver++ (2M SDE, 3M SDE): the multistep step with H = (1 + eta) h, and noise sigma_s sqrt(1 - e^(-2 eta h)) z.

    eta: 0 is the flow, 1 the reverse SDE (it is our tau squared). predicts "eps" is SDE-DPM-Solver. One call a step. Strong order 1 (the
    values of a history do not follow the path's noise between them), weak order 2 for order 2 and 3, 1 for order 1. Lu et al. 2022
    (DPM-Solver++), section 5; k-diffusion, sample_dpmpp_2m_sde and sample_dpmpp_3m_sde (its D2 lacks its factor 2; corrected=True has it).
    """

    order: int = 2  # type: ignore[assignment]
    eta: float = 1.0
    kind: str = "midpoint"
    predicts: str = "x0"
    corrected: bool = False
    start: OneStep | None = None

    def __post_init__(self) -> None:
        check_start(self.start)
        choose("order", self.order, (1, 2, 3))
        choose("kind", self.kind, KINDS)
        choose("predicts", self.predicts, ("x0", "eps"))
        if not (isinstance(self.eta, int | float) and 0 <= self.eta < math.inf):
            raise UserError(f"SDEDPMSolverPP(eta) needs a number of at least 0, not {self.eta!r}.")
        if self.start is not None and self.eta:
            raise UserError("start= takes deterministic steps: only with eta = 0.")

    @property
    def facts(self) -> Facts:
        reference = "Lu et al. 2022 (DPM-Solver++), section 5; k-diffusion, sample_dpmpp_2m_sde and 3m_sde"
        if self.eta == 0:
            return Facts(reference, ode=self.order if self.corrected else min(self.order, 2), inverse="approximate", clock="snr")
        return Facts(reference, strong=1, weak=min(self.order, 2), stochastic=True, clock="snr")

    def reading(self, p: Prediction) -> Linear:
        return p.x0 if self.predicts == "x0" else p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return _update(self.predicts, t, s, nodes, self.kind, self.corrected, self.eta)
