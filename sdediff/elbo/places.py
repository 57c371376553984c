"""Where a bound looks, and what it finds there: the steps of a chain, or instants between two knots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..batch import total
from ..checks import check_answer
from ..combine import spread
from ..prediction import Model, Prediction
from ..schedule import Knot
from ..variational import kl, learned, width_kl
from .draws import STATE, STEP, Drawn
from .weights import Chain, Row

FORMS = ("kl", "noise", "sampled", "pairs")


class Places(Protocol):
    """Where a bound looks: `parts` equal parts, of each of which the draws are weighted terms."""

    @property
    def ends(self) -> tuple[Knot, Knot]: ...

    @property
    def parts(self) -> int: ...

    @property
    def normals(self) -> int:
        """How many standard normals like x a term needs: 1, or 2 where x_s is drawn, too."""
        ...

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: Drawn) -> Tensor:
        """The k-th estimate of the nats of part j, (B,)."""
        ...

    def edges(self) -> list[Knot]: ...


@dataclass(frozen=True)
class Discrete:
    """The steps of a chain, in one of the forms."""

    chain: Chain
    form: str
    parts: int

    @property
    def ends(self) -> tuple[Knot, Knot]:
        return self.chain.knots[0], self.chain.knots[-1]

    @property
    def normals(self) -> int:
        return 2 if self.form in ("sampled", "pairs") else 1

    def edges(self) -> list[Knot]:
        if self.parts == len(self.chain):
            return list(self.chain.knots)
        inner = self.chain.reached(np.arange(1, self.parts) / self.parts)
        return [self.chain.knots[i] for i in (0, *inner.tolist(), -1)]

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: Drawn) -> Tensor:
        i, weight = j, 1.0
        if self.parts < len(self.chain):
            i = self.chain.reached((j + noise.uniform(j, k)) / self.parts)
            weight = 1 / (self.parts * self.chain.share[i])
        row, z = self.chain.row(i), noise.normal(j, k, STATE)
        p = answer(model, model.schedule.forward(x, row.t, z), row.t)
        nats = total(self._nats(row, p, x.double(), z.double(), noise, j, k))
        return spread(weight, nats) * nats

    def _nats(self, row: Row, p: Prediction, x: Tensor, z: Tensor, noise: Drawn, j: int, k: int) -> Tensor:
        log_p, log_q = self._log_p(row, p, x), torch.as_tensor(spread(row.log_q, x), dtype=torch.float64)
        ratio, precision = log_q - log_p, torch.exp(-log_p)
        if self.form == "noise":
            return width_kl(ratio) + spread(row.gamma, x) * precision * (z - p.eps.tensor().double()).square()
        off = spread(row.pull, x) * (x - p.x0.tensor().double())
        if self.form == "kl":
            return kl(log_q, log_p, off)
        fresh = noise.normal(j, k, STEP).double()
        nats = 0.5 * (precision * (off + torch.exp(0.5 * log_q) * fresh).square() - fresh.square() - ratio)
        if self.form == "sampled":
            return nats
        cleaner = spread(np.sqrt(1 - row.added), x) * z + spread(np.sqrt(row.added), x) * fresh  # the noise in x_s
        return nats + 0.5 * (cleaner.square() - z.square())

    def _log_p(self, row: Row, p: Prediction, x: Tensor) -> Tensor:
        if self.chain.variance != "learned":
            return torch.as_tensor(spread(row.log_p, x), dtype=torch.float64)
        p = p if p.variance is None else replace(p, variance=p.variance.double())
        return learned(p, row.log_small, row.log_large)


@dataclass(frozen=True)
class Continuous:
    """Instants between two knots, weighted by |dlam/dclock|."""

    first: Knot
    last: Knot
    clock: str
    parts: int
    quadrature: bool

    normals = 1

    @property
    def ends(self) -> tuple[Knot, Knot]:
        return self.first, self.last

    @cached_property
    def _range(self) -> tuple[float, float]:
        return self.first.clock(self.clock), self.last.clock(self.clock)

    @cached_property
    def _gauss(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.legendre.leggauss(self.parts)
        return 0.5 * (1 + nodes), 0.5 * weights

    def edges(self) -> list[Knot]:
        return [self.first.toward(self.last, j / self.parts, self.clock) for j in range(self.parts + 1)]

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: Drawn) -> Tensor:
        if self.quadrature:
            r, weight = float(self._gauss[0][j]), float(self._gauss[1][j])
        else:
            r, weight = (j + noise.uniform(j, k)) / self.parts, 1 / self.parts
        low, high = self._range
        t = model.schedule.knot_at(self.clock, (1 - r) * low + r * high)
        slope = 1.0 if self.clock == "lam" else 0.5 * t.g2 / t.sigma**2
        z = noise.normal(j, k, STATE)
        p = answer(model, model.schedule.forward(x, t, z), t)
        off = total((z.double() - p.eps.tensor().double()).square())
        return spread(weight * abs(high - low) * slope, off) * off


def answer(model: Model, x: Tensor, t: Knot) -> Prediction:
    """The model's answer, with its own noise (not another one for adding noise again), and finite."""
    p = model(x, t)
    check_answer(p.value, t)
    return p if p.eps_used is None else replace(p, eps_used=None)
