"""Why noise is added while sampling: the variance that ancestral sampling keeps with and without it, exactly, on Gaussian data.

For data N(0, v) every step is affine, so its variance follows from one step of the state 1 (and one of unit noise). Prints a table:

    python benchmarks/variance_loss.py
"""

from __future__ import annotations

from itertools import pairwise

import torch

from sdediff import DDIM, DDPM, Gaussian, Quadratic, VPLinear


class Unit:
    """Unit noise in the second row only."""

    def __call__(self, a: float, b: float, key: int = 0) -> torch.Tensor:
        return torch.tensor([[0.0], [1.0]], dtype=torch.float64) * abs(b - a) ** 0.5

    def fresh(self, key: int) -> torch.Tensor:
        raise NotImplementedError

    def area(self, a: float, b: float, key: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def rows(self, index: torch.Tensor) -> Unit:
        raise NotImplementedError


def kept(solver: DDPM | DDIM, steps: int, variance: float) -> float:
    """The variance at t_min over the true one, after `steps` steps from the exact marginal at t = 1."""
    schedule = VPLinear()
    model, knots = Gaussian([0.0], variance, schedule=schedule), Quadratic().knots(schedule, steps)
    now = float(model.moments(knots[0])[1])
    state = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    for t, s in pairwise(knots):
        of_state, of_noise = solver.step(model, state, t, s, None, Unit()).x.flatten().tolist()
        now = of_state**2 * now + of_noise**2
    return now / float(model.moments(knots[-1])[1])


if __name__ == "__main__":
    counts = (10, 20, 50, 100, 1000)
    print("| data variance | solver | " + " | ".join(f"{n} steps" for n in counts) + " |")
    print("|---|---|" + "---|" * len(counts))
    for variance in (1.0, 0.25, 0.01):
        for solver in (DDPM("none"), DDPM("small"), DDPM("large"), DDIM()):
            cells = " | ".join(f"{kept(solver, n, variance):.3g}" for n in counts)
            print(f"| {variance:g} | `{solver!r}` | {cells} |")
