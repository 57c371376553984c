"""Exact moments of a solver on Gaussian data, without Monte-Carlo noise: every step is affine in the state and in its noise.

A step is run on a batch that holds the zero state, the unit vectors, and the zero state with unit noises; that gives x' = A x + b + C z,
hence m' = A m + b and S' = A S A^T + C C^T.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from sdediff import Fixed, Gaussian, Solver


class UnitNoise:
    """Noise that is zero but for unit vectors in the rows after the first d + 1, scaled to the increment asked for."""

    def __init__(self, d: int):
        self.z = torch.cat([torch.zeros(d + 1, d), torch.eye(d)]).double()

    def __call__(self, a, b, key=0):
        return self.z * abs(b - a) ** 0.5

    def fresh(self, key):
        return self.z

    def rows(self, index):
        raise NotImplementedError


def moments(solver: Solver, model: Gaussian, knots) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, covariance) of the solver's state at every knot, started from the exact marginal at the first one. No memory."""
    knots = Fixed(knots).knots
    d = len(model.mean)
    units = torch.cat([torch.zeros(1, d), torch.eye(d), torch.zeros(d, d)]).double()
    mean, cov = model.moments(knots[0])
    found = [(mean, cov)]
    for t, s in pairwise(knots):
        out = solver.step(model, units, t, s, None, UnitNoise(d)).x
        b = out[0]
        a, c = (out[1 : d + 1] - b).T, (out[d + 1 :] - b).T
        mean, cov = a @ mean + b, a @ cov @ a.T + c @ c.T
        found.append((mean, cov))
    return found
