"""A model that carries the log-density as further components of its state.

In Angle coordinates y = x/r, r = sqrt(alpha^2 + sigma^2), theta = atan(sigma/alpha): dy/dtheta = v and so (Chen et al. 2018, eq. 8)
d log p(y)/dtheta = -div_y v(y) = -tr J, J = dv/dy. `Carried` appends L = INT tr J dtheta to the state: any ODE solver integrates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..combine import spread
from ..coordinates import Angle
from ..prediction import Model, ModelError, Prediction
from ..schedule import Knot, Schedule
from .trace import AT_ONCE, Products, Sketch, Trace, multiplied

FRAME = Angle()
_INSTANTS, _FAINT = 8, -2.0  # of the sketch of Hutch++: evaluations, and the lam at which nothing is seen of the data


@dataclass(frozen=True)
class Carried:
    """A model whose state (B, D + columns) is the sample, flattened, and r w L for each estimate, w = sqrt((D + c)/c)/D for c columns.

    So weighted, the mean square over the state's components of an error is D/(D + c) of that of the sample plus the mean square of that of
    the log-density per dimension: one tolerance for both. The network sees the sample in `dtype`; the state is float64.
    """

    model: Model
    trace: Trace
    probes: Tensor
    sample: tuple[int, ...]
    dtype: torch.dtype

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def dimension(self) -> int:
        return math.prod(self.sample)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dimension + self.trace.columns,)

    @property
    def weight(self) -> float:
        c = self.trace.columns
        return math.sqrt((self.dimension + c) / c) / self.dimension

    def rows(self, index: Tensor) -> Carried:
        return Carried(self.model.rows(index), self.trace, self.probes[index], self.sample, self.dtype)

    def start(self, x: Tensor) -> Tensor:
        """The state of samples x (B, ...), L = 0."""
        x = x.flatten(1).double()
        return torch.cat([x, x.new_zeros(len(x), self.trace.columns)], 1)

    def end(self, state: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        """(x, L) of a state at t: samples (B, ...) and (B, columns)."""
        d = self.dimension
        return state[:, :d].reshape(-1, *self.sample), state[:, d:] / (FRAME.scale(t) * self.weight)

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        """dy/dtheta = v and dL/dtheta = tr J, as one answer of kind "v"."""
        v, products, cost = self.jacobian(x[:, : self.dimension], t)
        trace = self.trace.of(products, self.probes)
        return Prediction(x, t, torch.cat([v, self.weight * trace], 1), "v", cost=cost)

    def jacobian(self, x: Tensor, t: Knot) -> tuple[Tensor, Products, int | np.ndarray]:
        """(v (B, D), w -> w dv/dy, network calls) at states x (B, D)."""
        with torch.enable_grad():
            inner = x.reshape(-1, *self.sample).to(self.dtype).detach().clone().requires_grad_()
            p = self.model(inner, t)
            v = p.v.tensor()
        if not p.value.requires_grad:
            raise ModelError(
                "the answer has no gradient to the state, which the likelihood needs: no detach() or no_grad() in the network."
            )
        r = spread(FRAME.scale(t), x)

        def products(w: Tensor) -> Tensor:
            w = w.to(v).reshape(-1, *v.shape)
            if len(w) < AT_ONCE // 2:
                found = torch.stack([torch.autograd.grad(v, inner, one, retain_graph=True)[0] for one in w])
            else:
                found = torch.autograd.grad(v, inner, w, retain_graph=True, is_grads_batched=True)[0]
            return r * found.flatten(2).double()

        return v.detach().flatten(1).double(), products, p.cost

    def sketch(self, data: Tensor, noise: Tensor, low: Knot) -> Sketch:
        """S (B, k, D) to INT (J - c 1) S dtheta from `low` up, c the mean of s' J s/D: by midpoints in lam, at `data` noised."""
        top = max(self.schedule.knot(self.schedule.t_max).lam, _FAINT)
        edges = np.linspace(low.lam, min(top, low.lam - 1.0), _INSTANTS + 1)

        def along(s: Tensor) -> Tensor:
            total = torch.zeros_like(s)
            for high, less in pairwise(edges):
                t = self.schedule.knot_at("lam", float(0.5 * (high + less)))
                _, products, _ = self.jacobian((t.alpha * data + t.sigma * noise).flatten(1), t)
                found = multiplied(products, s)
                diagonal = (found * s).sum(2).mean(1) / s.shape[2]
                total += math.sin(t.angle) * math.cos(t.angle) * (found - diagonal[:, None, None] * s)  # dtheta = -sin cos dlam
            return total

        return along
