"""What per-sample control costs: the share of a run's time that is not the network's, on the third-party MNIST network.

`solve(AdaptiveAdams(), model, x, PID(atol=tol))` on 256 images; the network is timed from inside, call by call, so that the rest (weights,
errors, choice of steps, rejections, samples leaving, and the solver's own arithmetic) is the difference. One torch thread.
Run: `python benchmarks/adaptive_overhead.py [--batch 256] [--repeats 3]` (a minute).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import torch
from default import SHARED
from tables import markdown
from torch import Tensor

from sdediff import PID, AdaptiveAdams, Knot, Model, Prediction, latents, solve
from sdediff.interop.hot_vs_cold import load_hot_vs_cold


@dataclass
class Timed:
    """A model that adds up the seconds it takes."""

    model: Model
    seconds: list[float] = field(default_factory=lambda: [0.0])

    @property
    def schedule(self):
        return self.model.schedule

    @property
    def shape(self):
        return self.model.shape

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        begun = time.perf_counter()
        answer = self.model(x, t)
        self.seconds[0] += time.perf_counter() - begun
        return answer

    def rows(self, index: Tensor) -> Timed:
        return Timed(self.model.rows(index), self.seconds)


def measure(batch: int, tolerance: float) -> dict[str, object]:
    """One run: seconds in all, of the network, and the share of the rest."""
    model = Timed(load_hot_vs_cold(SHARED / "weights" / "yichizz_ddpm_mnist_starter.pth"))
    x = latents(model, batch, seed=3)
    begun = time.perf_counter()
    run = solve(AdaptiveAdams(), model, x, PID(atol=tolerance))
    total = time.perf_counter() - begun
    return {
        "tolerance": f"{tolerance:.2g}",
        "calls a sample": f"{run.each.mean():.1f}" if run.each is not None else "",
        "seconds": f"{total:.2f}",
        "network": f"{model.seconds[0]:.2f}",
        "rest / network": f"{100 * (total / model.seconds[0] - 1):.1f} %",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(8, 0.1)  # warm
    rows = [measure(args.batch, tol) for tol in (2 / 255, 1e-2) for _ in range(args.repeats)]
    markdown(f"Batch {args.batch}, one thread", rows)


if __name__ == "__main__":
    main()
