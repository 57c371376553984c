"""UniPC: a multistep predictor and a corrector that reuses the next step's evaluation (Zhao et al. 2023).

With m0 at t, m_k at the nodes lam_t + r_k h, D_k = (m_k - m0)/r_k:  `x_s = A x_t + front h (mu_0 m0 + sum_k w_k D_k)`, where
`sum_k w_k r_k^(i-1) = mu_i` for i = 1, 2, ... (mu_i = INT_0^1 r^i e^(-h(1-r)) dr), predictor through the past values, corrector with the
new one at r = 1 as well. That is the exponential Adams method in lam; the paper's B(h) cancels, except that with one difference the code
fixes w_1 = B(h)/(2h): B = h for "bh1", 1 - e^-h for "bh2".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..combine import Linear
from ..exponential import Multistep, check_start, finite
from ..names import choose
from ..prediction import Prediction
from ..schedule import Knot
from ..solver import Facts, OneStep
from ..weights import Update, exponential_adams, exponential_moments


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p: predict through `order` values, correct through order + 1, all in lam; predicts "x0" or "eps".

    b: "bh1", "bh2", or "vary" (the code's vary_coeff: of order 1 as published for order >= 2, since its corrector drops a row of the
    inverse; corrected=True restores it and is ExponentialAdams with corrector). One call a step, the last state uncorrected. Order p + 1:
    2, 3, 4 (the first step, of first order and corrected once, caps it at 3 when a run starts amid the data's scales; `start` lifts
    that). Zhao et al. 2023 (UniPC), algorithms 5 to 8.
    """

    order: int = 3  # type: ignore[assignment]
    b: str = "bh2"
    predicts: str = "x0"
    corrected: bool = False
    start: OneStep | None = None

    def __post_init__(self) -> None:
        choose("order", self.order, range(1, 5))
        choose("b", self.b, ("bh1", "bh2", "vary"))
        choose("predicts", self.predicts, ("x0", "eps"))
        check_start(self.start)

    @property
    def facts(self) -> Facts:
        reference = "Zhao et al. 2023 (UniPC), algorithms 5 to 8"
        lost = self.b == "vary" and self.order > 1 and not self.corrected
        return Facts(reference, ode=1 if lost else self.order + 1, inverse="approximate")

    @property
    def corrected_by(self) -> int:
        return self.order + 1

    def reading(self, p: Prediction) -> Linear:
        return p.x0 if self.predicts == "x0" else p.eps

    def update(self, t: Knot, s: Knot, nodes: Sequence[Knot], corrector: bool) -> Update:
        exact = exponential_adams(self.predicts, "lam", t, s, nodes)
        nodes, h = finite(t, s, nodes), s.lam - t.lam
        if len(nodes) == 1 or h == 0:
            return exact
        front, z = (s.alpha, h) if self.predicts == "x0" else (-s.sigma, -h)
        if self.b == "vary":
            if self.corrected or not corrector or len(nodes) == 2:
                return exact
            here = 1
            of = _vary(h, z, [(k.lam - t.lam) / h for k in (*nodes[2:], nodes[0])])
            order = [*range(2, len(nodes)), 0]
        else:
            if len(nodes) > 2:
                return exact
            here = 1 if corrector else 0
            mu0 = float(exponential_moments(z, 1)[0])
            of, order = [(1.0 if self.b == "bh1" else mu0) / 2], [0 if corrector else 1]
        weights = [0.0] * len(nodes)
        weights[here] = front * h * float(exponential_moments(z, 1)[0])
        for j, w in zip(order, of, strict=True):
            r = (nodes[j].lam - t.lam) / h
            weights[j] += front * h * w / r
            weights[here] -= front * h * w / r
        return Update(exact.keep, tuple(weights), exact.std)


def _vary(h: float, z: float, r: list[float]) -> list[float]:
    """The weights of the differences in the published vary_coeff corrector: the last row of the inverse enters with the new value only,

    and there with the entry of the row before it.
    """
    n = len(r)
    mu = exponential_moments(z, n + 1) / [math.factorial(i) for i in range(n + 1)]
    inverse = np.linalg.inv(np.array([[v**k / math.factorial(k + 1) for k in range(n)] for v in r]))
    past = mu[1:n] @ inverse[: n - 1, : n - 1]
    return [*past.tolist(), float(mu[n] * inverse[n - 2, n - 1])]
