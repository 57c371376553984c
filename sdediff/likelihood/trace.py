"""How the trace of a flow's Jacobian J is found from vector-Jacobian products.

Exact, D products; Hutchinson's E[e' J e], E[e e'] = 1 (FFJORD, Grathwohl et al. 2019, eq. 8); Hutch++ (Meyer et al.
2021), exact on a subspace Q, tr J = tr(Q' J Q) + E[g' J g], g in the complement of Q. Probes are drawn once for each sample and stay
fixed along the trajectory (else the integrand would be as rough as noise), so what is estimated is the trace of INT J dtheta.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..names import UserError, choose, positive
from ..noise import WhiteNoise

Products = Callable[[Tensor], Tensor]  # (m, B, D) -> (m, B, D): each row w' J
Sketch = Callable[[Tensor], Tensor]  # (B, k, D) -> (B, k, D): times the Jacobian of the whole flow, roughly

_FIRST_KEY = 16  # of the probes' draws; smaller keys are the likelihood's own
AT_ONCE = 16  # vector-Jacobian products in one sweep; fewer than half of that go one by one, which any network can do


class Trace(ABC):
    """How tr J is found. Values: `ExactTrace()`, `Hutchinson(probes, kind)`, `HutchPP(probes)`."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Independent estimates a sample, each integrated by itself; their mean is the answer, their scatter its standard error."""

    @abstractmethod
    def draw(self, noise: WhiteNoise, sketch: Sketch) -> Tensor:
        """The probes (B, m, D) of a run; m may be 0."""

    @abstractmethod
    def of(self, products: Products, probes: Tensor) -> Tensor:
        """(B, columns): estimates of tr J."""

    @abstractmethod
    def check(self, d: int) -> None:
        """`UserError` if this makes no sense in d dimensions."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """The sum of the D diagonal elements: D products an evaluation, no noise. For small D."""

    @property
    def columns(self) -> int:
        return 1

    def check(self, d: int) -> None:
        return

    def draw(self, noise: WhiteNoise, sketch: Sketch) -> Tensor:
        return noise.like.new_empty(len(noise.index), 0, math.prod(noise.like.shape[1:]))

    def of(self, products: Products, probes: Tensor) -> Tensor:
        b, _, d = probes.shape
        axes = torch.eye(d, dtype=probes.dtype, device=probes.device)
        parts = [(products(e[:, None].expand(-1, b, -1)) * e[:, None]).sum((0, 2)) for e in axes.split(AT_ONCE)]
        return sum(parts[1:], parts[0])[:, None]


@dataclass(frozen=True)
class Hutchinson(Trace):
    """`probes` independent e' J e: kind "rademacher" (signs), "gaussian", or "sphere" (Gaussians scaled to the length sqrt(D)).

    Variance of one, S the symmetric part of INT J dtheta: 2 sum_{i != j} S_ij^2 for signs, 2 sum_ij S_ij^2 for Gaussians, and that of
    S - (tr S/D) 1, times D/(D + 2), for the sphere: plain Gaussians pay for the multiple of 1 in S, and are tens of nats off.
    One probe has no error bar.
    """

    probes: int = 8
    kind: str = "rademacher"

    def __post_init__(self) -> None:
        positive("probes", self.probes)
        choose("kind", self.kind, ("rademacher", "gaussian", "sphere"))

    @property
    def columns(self) -> int:
        return self.probes

    def check(self, d: int) -> None:
        _fewer(self.probes, d)

    def draw(self, noise: WhiteNoise, sketch: Sketch) -> Tensor:
        z = _normals(noise, self.probes)
        if self.kind == "rademacher":
            return torch.where(z < 0, -1.0, 1.0).to(z)
        return z if self.kind == "gaussian" else z * (math.sqrt(z.shape[2]) / z.norm(dim=2, keepdim=True))

    def of(self, products: Products, probes: Tensor) -> Tensor:
        return (multiplied(products, probes) * probes).sum(2)


@dataclass(frozen=True)
class HutchPP(Trace):
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021) with one subspace for the whole trajectory: a third of the `probes` spans Q, the rest
    are probes in its complement, Gaussians scaled to its mean square length (so the multiple of 1 in J costs no variance).

    Q is the range of INT (J - c 1) S dtheta, S signs, by a few evaluations on the data noised: any Q is unbiased, and a Q of each instant,
    as the paper has it for one matrix, turns too fast for a solver. For Jacobians of low rank, as near data on a manifold.
    """

    probes: int = 24

    def __post_init__(self) -> None:
        if positive("probes", self.probes) < 3:
            raise UserError(f"Hutch++ divides its probes by three: give at least 3 (6 for an error bar), not {self.probes}.")

    @property
    def columns(self) -> int:
        return self.probes - self.probes // 3

    def check(self, d: int) -> None:
        _fewer(self.probes, d)

    def draw(self, noise: WhiteNoise, sketch: Sketch) -> Tensor:
        rank = self.probes // 3
        z = _normals(noise, self.probes)
        q = torch.linalg.qr(sketch(torch.where(z[:, :rank] < 0, -1.0, 1.0).to(z)).mT)[0].mT  # (B, rank, D)
        g = z[:, rank:] - (z[:, rank:] @ q.mT) @ q
        return torch.cat([q, g * (math.sqrt(z.shape[2] - rank) / g.norm(dim=2, keepdim=True))], 1)

    def of(self, products: Products, probes: Tensor) -> Tensor:
        found = (multiplied(products, probes) * probes).sum(2)
        rank = self.probes // 3
        return found[:, rank:] + found[:, :rank].sum(1, keepdim=True)


TRACES = {"exact": ExactTrace(), "hutchinson": Hutchinson(), "hutch++": HutchPP()}


def multiplied(products: Products, w: Tensor) -> Tensor:
    """w (B, m, D) times J, row by row."""
    return torch.cat([products(part) for part in w.transpose(0, 1).split(AT_ONCE)]).transpose(0, 1)


def _normals(noise: WhiteNoise, n: int) -> Tensor:
    return torch.stack([noise.fresh(_FIRST_KEY + i) for i in range(n)], 1).flatten(2)


def _fewer(probes: int, d: int) -> None:
    if probes > d:
        raise UserError(f"{probes} probes in {d} dimensions cost more than the exact trace: take trace='exact', or fewer probes.")
