"""PNDM, PLMS and iPNDM: Adams-Bashforth with the weights of equal steps, put into one DDIM transfer.

`y_s = y_t + (u_s - u_t) sum_j w_j eps_j` in y = x/alpha, u = sigma/alpha, with w = (1), (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24
whatever the steps are. On unequal steps that is of order 2 at best, and often the best below 8 calls all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..combine import Linear, combine
from ..exponential import Multistep, check_start
from ..names import choose
from ..prediction import Model, Prediction
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import Update, exponential_adams

EQUAL_STEPS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def transfer(t: Knot, s: Knot, weights: Sequence[float]) -> Update:
    """One DDIM step with a mean of eps: alpha_s/alpha_t x + (sigma_s - alpha_s u_t) sum_j w_j eps_j."""
    return Update(s.alpha / t.alpha, tuple((s.sigma - s.alpha * t.u) * w for w in weights))


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM: y_s = y_t + (u_s - u_t) sum_j w_j eps_j with the weights of equal steps; variable=True adapts them to the steps (iPNDM_v).

    One call a step, lower orders at the start. Order 1 for order=1, else 2 on unequal steps. variable=True as published has a misplaced
    bracket from order 3 on, which leaves order=4 of order 2 on some grids; with corrected=True it is `LMS`. Zhang & Chen 2023 (DEIS),
    section 4; Zhou et al. 2024, diff-sampler, ipndm_sampler and ipndm_v_sampler.
    """

    order: int = 4  # type: ignore[assignment]
    variable: bool = False
    corrected: bool = False
    start: OneStep | None = None

    def __post_init__(self) -> None:
        choose("order", self.order, range(1, 5))
        check_start(self.start)

    @property
    def facts(self) -> Facts:
        exact = self.variable and (self.corrected or self.order < 4)
        order = self.order if exact else min(self.order, 2)
        return Facts("Zhang & Chen 2023 (DEIS); diff-sampler, ipndm_sampler, ipndm_v_sampler", ode=order, inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        if not self.variable:
            return transfer(t, s, EQUAL_STEPS[len(nodes) - 1])
        if self.corrected or len(nodes) < 3:
            return exponential_adams("eps", "u", t, s, nodes)
        return transfer(t, s, _published(s.u - t.u, [a.u - b.u for a, b in pairwise(nodes)]))


def _published(h: float, past: list[float]) -> tuple[float, ...]:
    """The weights of diff-sampler's ipndm_v for three or four values: `1 - a*b` where (1 - a) b is meant, in the last difference."""
    h1, h2 = past[0], past[1]
    a = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    first, second, third = (2 + h / h1) / 2 + a, -(h / h1) / 2 - (1 + h1 / h2) * a, a * h1 / h2
    if len(past) == 2:
        return first, second, third
    h3 = past[2]
    b = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    b *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    q = h1 * (h1 + h2) / (h2 * (h2 + h3))
    second -= (1 + h1 / h2 + q) * b
    third += (h1 / h2 + q * (1 + h2 / h3)) * b
    return first + b, second, third, -b * q * h1 / h2


@dataclass(frozen=True)
class _PseudoRungeKutta(OneStep):
    """y_s = y_t + (u_s - u_t) times a Runge-Kutta mean of eps, the midpoint taken in TIME: 4 stages, or Heun's 2."""

    stages: int = 4

    @property
    def order(self) -> int:
        return 2

    @property
    def facts(self) -> Facts:
        return Facts("Liu et al. 2022 (PNDM), eq. 13", ode=2, evals=self.stages)

    def calls(self, knots: Sequence[Knot]) -> int:
        return self.stages * (len(knots) - 1)

    def move(self, model: Model, x: Tensor, t: Knot, s: Knot) -> Tensor:
        def moved(e: Linear, to: Knot) -> Tensor:
            plan = transfer(t, to, (1.0,))
            return combine(Linear(((plan.keep, x),)) + plan.weights[0] * e)

        e1 = model(x, t).eps
        if self.stages == 2:
            return moved(0.5 * (e1 + model(moved(e1, s), s).eps), s)
        middle = t.toward(s, 0.5, "time")
        e2 = model(moved(e1, middle), middle).eps
        e3 = model(moved(e2, middle), middle).eps
        e4 = model(moved(e3, s), s).eps
        return moved((e1 + 2 * e2 + 2 * e3 + e4) / 6, s)


@dataclass(frozen=True)
class PNDM(Multistep):
    """PNDM: iPNDM's step after a warm-up: "prk" three 4-stage pseudo Runge-Kutta steps (F-PNDM), "plms" one 2-stage step (PLMS).

    Calls: steps + 9 for "prk" at order 4, steps + 1 for "plms". order=2 with "plms" is S-PNDM. Order 2 on unequal steps (1 for order=1).
    Liu et al. 2022 (PNDM), algorithm 2; PLMS of latent-diffusion.
    """

    order: int = 4  # type: ignore[assignment]
    warmup: str = "prk"

    def __post_init__(self) -> None:
        choose("order", self.order, range(1, 5))
        choose("warmup", self.warmup, ("prk", "plms"))

    @property
    def start(self) -> OneStep:  # type: ignore[override]
        return _PseudoRungeKutta(4 if self.warmup == "prk" else 2)

    @property
    def started(self) -> int:
        return self.history if self.warmup == "prk" else min(self.history, 2)

    @property
    def facts(self) -> Facts:
        return Facts("Liu et al. 2022 (PNDM), algorithm 2", ode=min(self.order, 2), inverse="approximate")

    def reading(self, p: Prediction) -> Linear:
        return p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        return transfer(t, s, EQUAL_STEPS[len(nodes) - 1])
