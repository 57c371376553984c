"""Exponential Adams methods: exact in the linear part, a polynomial through the last readings in the rest.

`x_s = A x_t + sum_j c_j m_j`, m one of x0, eps, v, flow, interpolated in lam, u = sigma/alpha, the angle, ... (Hochbruck & Ostermann
2011 for the exponential form; SA-Solver, Xue et al. 2023, with noise level tau). Published multistep samplers are values of it: DEIS is
eps in t, u or log u; LMS is eps in u; SA-Solver is x0 in lam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..combine import Linear
from ..exponential import Multistep, check_start, reading
from ..names import UserError, choose, positive
from ..prediction import Prediction
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import AXES, READINGS, Update, exponential_adams, exponential_moments

MOST = 8  # values behind a step: polynomials of a higher degree only amplify


@dataclass(frozen=True)
class ExponentialAdams(Multistep):
    """x_s = A x_t + sum_j c_j m_j + N z through the last `order` readings; with `corrector`, again through order + 1 once s is evaluated.

    predicts: "x0", "eps", "v" or "flow"; axis, in which m is a polynomial: "lam", "u", "angle", "fraction" (sigma/(alpha + sigma), time of
    flow matching) or "t"; tau: noise level (0: probability flow, 1: reverse SDE); data_std: of v and of the angle; start: a one-step
    solver for the first order - 1 steps (else they are of lower order, and the first of them caps the order at 2, at 3 with corrector,
    once h is small or when a run starts amid the data's scales). One call a step. Order `order`, order + 1 with corrector; tau > 0: strong
    order 1, weak order 2 (1 for order=1 without corrector). Upward with tau = 0 it encodes, approximately.
    """

    order: int = 3  # type: ignore[assignment]
    predicts: str = "x0"
    axis: str = "lam"
    corrector: bool = False
    tau: float = 0.0
    data_std: float = 1.0
    start: OneStep | None = None

    def __post_init__(self) -> None:
        if positive("order", self.order) > MOST:
            raise UserError(f"ExponentialAdams(order) goes up to {MOST}, not {self.order}: longer histories only amplify errors.")
        choose("predicts", self.predicts, READINGS)
        choose("axis", self.axis, AXES)
        if not (0 <= self.tau < math.inf):
            raise UserError(f"tau must be a number of at least 0, not {self.tau!r}.")
        if not (0 < self.data_std < math.inf):
            raise UserError(f"data_std must be positive, not {self.data_std!r}.")
        check_start(self.start)
        if self.start is not None and self.tau:
            raise UserError("start= takes deterministic steps: only with tau = 0.")

    @property
    def corrected_by(self) -> int:
        return self.order + 1 if self.corrector else 0

    @property
    def facts(self) -> Facts:
        reference = "exponential Adams; Hochbruck & Ostermann 2011; Xue et al. 2023 (SA-Solver), eq. 14 to 20"
        if self.tau:
            return Facts(reference, strong=1, weak=min(self.order + self.corrector, 2), stochastic=True, clock="snr")
        return Facts(reference, ode=self.order + self.corrector, inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return reading(p, self.predicts, self.data_std)

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return exponential_adams(self.predicts, self.axis, t, s, nodes, tau=self.tau, data_std=self.data_std)


@dataclass(frozen=True)
class DEIS(Multistep):
    """x_s = (alpha_s/alpha_t) x_t + sum_j C_j eps_j: eps a polynomial through the last `order` values in t, rho = sigma/alpha or log rho.

    axis "t" is tAB-DEIS, "rho" rhoAB-DEIS, "log_rho" the form in diffusers. The paper's integer counts the values besides the newest:
    tAB3 is order=4 here. Its coefficients are exact (the official code sums 10 000 points from the left: off by 7e-6 to 6e-3).
    One call a step, order `order` (without `start` the first step caps it at 2). Zhang & Chen 2023 (DEIS), eq. 14 and 15.
    """

    order: int = 3  # type: ignore[assignment]
    axis: str = "t"
    start: OneStep | None = None

    def __post_init__(self) -> None:
        choose("order", self.order, range(1, 5))
        choose("axis", self.axis, _DEIS_AXES)
        check_start(self.start)

    @property
    def facts(self) -> Facts:
        return Facts("Zhang & Chen 2023 (DEIS), eq. 14 and 15", ode=self.order, inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return exponential_adams("eps", _DEIS_AXES[self.axis], t, s, nodes)


_DEIS_AXES = {"t": "t", "rho": "u", "log_rho": "lam"}


@dataclass(frozen=True)
class LMS(Multistep):
    """y_s = y_t + sum_j c_j eps_j in y = x/alpha: Adams-Bashforth with unequal steps in sigma/alpha, through the last `order` values.

    k-diffusion's LMS sampler, with its integrals in closed form; DEIS(order, "rho") is the same method. One call a step, order `order`
    (without `start` the first step caps it at 2). Katherine Crowson, k-diffusion, sample_lms; Hairer, Norsett & Wanner I, III.5.
    """

    order: int = 4  # type: ignore[assignment]
    start: OneStep | None = None

    def __post_init__(self) -> None:
        choose("order", self.order, range(1, 5))
        check_start(self.start)

    @property
    def facts(self) -> Facts:
        return Facts("k-diffusion, sample_lms; Hairer, Norsett & Wanner I, III.5", ode=self.order, inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return exponential_adams("eps", "u", t, s, nodes)


@dataclass(frozen=True)
class Between:
    """A noise level that is `value` at times from `low` to `high` and 0 elsewhere (SA-Solver's tau(t): 1 on [0.2, 0.8])."""

    low: float
    high: float
    value: float

    def __post_init__(self) -> None:
        if not (self.low <= self.high and 0 <= self.value < math.inf):
            raise UserError(f"Between(low, high, value) needs low <= high and a value of at least 0, not {self!r}.")

    def at(self, t: Knot) -> float:
        """tau at an instant."""
        return self.value if self.low <= t.time <= self.high else 0.0


@dataclass(frozen=True)
class SASolver(Multistep):
    """x0 in lam at noise level tau: predict through `predictor` values, correct through `corrector` (the new one included; 0: never).

    x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sum_j c_j x0_j + sigma_s sqrt(1 - e^(-2 tau^2 h)) z, tau taken at s and the same z in the
    corrector. tau: a number or `Between(low, high, value)`. few_steps: the paper's rescaling (appendix D) where two values are used.
    One call a step. tau = 0: order min(corrector, predictor + 1), `predictor` without corrector; constant tau: strong order 1, weak order
    2 (its moments on Gaussian data) whatever the orders, 1 for one value. Xue et al. 2023, eq. 14 to 20.
    """

    predictor: int = 3
    corrector: int = 4
    tau: float | Between = Between(0.2, 0.8, 1.0)
    few_steps: bool = False
    start: OneStep | None = None

    def __post_init__(self) -> None:
        choose("predictor", self.predictor, range(1, 5))
        choose("corrector", self.corrector, range(5))
        if not isinstance(self.tau, Between) and not (isinstance(self.tau, int | float) and 0 <= self.tau < math.inf):
            raise UserError(f"tau must be a number of at least 0 or Between(low, high, value), not {self.tau!r}.")
        check_start(self.start)
        if self.start is not None and self.tau != 0:
            raise UserError("start= takes deterministic steps: only with tau = 0.")

    @property
    def order(self) -> int:
        return max(self.predictor, self.corrector - 1)

    def at_order(self, order: int) -> SASolver:
        return replace(self, predictor=min(self.predictor, order), corrector=min(self.corrector, order + 1))

    @property
    def facts(self) -> Facts:
        reference = "Xue et al. 2023 (SA-Solver), eq. 14 to 20, appendix D"
        order = min(self.corrector, self.predictor + 1) if self.corrector else self.predictor
        if self.tau == 0:
            return Facts(reference, ode=order, inverse="approximate")
        # a tau that jumps has no strong order: steps straddle its edges
        strong, weak = None if isinstance(self.tau, Between) else 1, min(order, 2)
        return Facts(reference, strong=strong, weak=weak, stochastic=True, clock="snr")

    @property
    def history(self) -> int:
        return self.predictor

    @property
    def corrected_by(self) -> int:
        return self.corrector

    def reading(self, p: Prediction) -> Linear:
        return p.x0

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        tau = self.tau.at(s) if isinstance(self.tau, Between) else self.tau
        plan = exponential_adams("x0", "lam", t, s, nodes, tau=tau)
        if not self.few_steps or len(nodes) != 2 or math.isinf(s.lam):
            return plan
        # the exact weight INT (l - lam_t) e^(-(1+tau^2)(lam_s - l)) dl of the difference becomes h^2/2 (as UniPC's bh1 has it)
        h, more = s.lam - t.lam, 1 + tau * tau
        shift = s.alpha * more * h**2 * (0.5 - exponential_moments(more * h, 2)[1]) / (nodes[0].lam - nodes[1].lam)
        return plan._replace(weights=(plan.weights[0] + shift, plan.weights[1] - shift))
