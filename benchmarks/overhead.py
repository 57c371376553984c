"""What a step costs beyond its arithmetic: 50 DDIM steps with a network that costs nothing, against the same arithmetic in place.

The bound is `torch.mul(x, A, out=buffer)` and one `buffer.add_(y, alpha=c)` for each further tensor, its weights made beforehand.
The network returns a ready tensor in the form that the solver uses,
another one at each call (the same would be merged into one term). Noise is timed apart. Prints a table; run on a quiet machine:

    python benchmarks/overhead.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch

from sdediff import (
    DDIM,
    DDPM,
    DEIS,
    DPMSolverPPMultistep,
    LogSNR,
    ScoreNet,
    SDEDPMSolverPP,
    UniPC,
    VPLinear,
    White,
    march,
    solve,
)  # fmt: skip
from sdediff.names import label

STEPS = 50


def best(*runs: Callable[[], object], repeats: int = 60) -> list[float]:
    """The shortest time of each run, in microseconds a step; they take turns, so that a busy moment of the machine meets all of them."""
    least = [math.inf] * len(runs)
    for _ in range(repeats + 2):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            least[i] = min(least[i], time.perf_counter() - start)
    return [t / STEPS * 1e6 for t in least]


def bound(x: torch.Tensor, answers: Iterator[torch.Tensor], further: int) -> Callable[[], None]:
    """The in-place arithmetic of STEPS steps, on the same answers as the solver gets: what is in the cache for one is for the other."""
    a, b = torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        here, there = a, b
        for _ in range(STEPS):
            torch.mul(here, 0.9, out=there)
            for _ in range(further):
                there.add_(next(answers), alpha=0.1)
            here, there = there, here

    return run


class Given:
    """Noise that is ready: the same tensor for every step (a copy, since a step may scale it in place)."""

    def __init__(self, z: torch.Tensor):
        self.z = z

    def __call__(self, a: float, b: float, key: int = 0) -> torch.Tensor:
        return self.z

    def fresh(self, key: int) -> torch.Tensor:
        return self.z

    def area(self, a: float, b: float, key: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        return self.z, self.z

    def rows(self, index: torch.Tensor) -> Given:
        return self


@torch.no_grad()
def measure(shape: tuple[int, ...]) -> None:
    """One line for each solver at this shape."""
    schedule = VPLinear()
    x, y = torch.randn(shape), torch.randn(shape)
    answers = cycle([torch.randn(shape) for _ in range(8)])
    models = {kind: ScoreNet(lambda x, t: next(answers), schedule, kind) for kind in ("eps", "x0")}
    knots = LogSNR().knots(schedule, STEPS)
    for solver, kind, further, noise in (
        (DDIM(), "eps", 1, None),
        (DDPM(), "eps", 2, Given(y)),
        (DPMSolverPPMultistep(2), "x0", 2, None),
        (DPMSolverPPMultistep(3), "x0", 3, None),
        (DEIS(4), "eps", 4, None),
        (UniPC(3), "x0", 8, None),  # predictor 1 + 3 tensors, corrector 1 + 4
        (SDEDPMSolverPP(2), "x0", 3, Given(y)),
    ):
        model = models[kind]
        least, looped, solved = best(
            bound(x, answers, further),
            lambda s=solver, n=noise, model=model: [None for _ in march(s, model, x, knots, noise=n)],
            lambda s=solver, n=noise, model=model: solve(s, model, x, knots, noise=n),
        )
        print(
            f"{shape!s:18} {label(solver):34.34} bound {least:7.1f} us/step   "
            f"march {looped:7.1f} ({looped / least:4.2f}x)   "
            f"solve {solved:7.1f} ({solved / least:4.2f}x)"
        )
    white = White(0).on(x)
    ours, plain = (STEPS * t for t in best(lambda: white(0.0, 1.0), lambda: torch.randn(shape)))
    print(f"{shape!s:18} noise apart: White {ours:7.1f} us a draw, torch.randn {plain:7.1f} us")


if __name__ == "__main__":
    for shape in ((1024, 2), (64, 3, 32, 32)):
        measure(shape)
