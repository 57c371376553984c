"""The variance of the gradient of a loss over N = 1000 steps, for the ways to choose the steps of a batch, on the digits network.

The full sum asks the network at all N steps of each image; one random step, evenly spread ones (low discrepancy), and importance-sampled
ones ask it once an image. The variance is the trace of the gradient's covariance, over images, steps and noise, from independent pairs
of gradients: E |g - g'|^2/2. It is shown for one image of the batch (times the batch), and for one network call (times the calls of an
image), as ratios to one random step, with intervals of 95 % by the bootstrap.

    python benchmarks/gradient_variance.py           # a minute of one core
    python benchmarks/gradient_variance.py --quick   # seconds, for a look and for the tests
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdediff import VLB, DiscretizedDecoder, Importance, Indices, Objective, ScoreNet, load_model
from sdediff.data import digits
from sdediff.objective import Loss
from sdediff.pretrained.scores import digits_path
from sdediff.times import TimeDistribution, chain_times

BATCH = 128


@dataclass(frozen=True)
class Size:
    """How much is measured. full: images of one full sum."""

    steps: int
    pairs: int
    full_pairs: int
    full: int


WHOLE, QUICK = Size(1000, 120, 24, 2), Size(50, 6, 3, 1)


def losses(steps: int) -> dict[str, Objective | VLB]:
    """L_simple of eps, and the variational bound with q's own variance."""
    return {"L_simple": Objective("eps", times=Indices(steps)), "L_vlb": VLB("small", steps, DiscretizedDecoder(17), Indices(steps))}


def ways(steps: int) -> dict[str, TimeDistribution]:
    """How the steps of a batch are chosen, one for each image."""
    return {
        "one random step": Indices(steps),
        "low discrepancy": Indices(steps, low_discrepancy=True),
        "importance": Importance(Indices(steps)),
        "importance, low discrepancy": Importance(Indices(steps), low_discrepancy=True),
    }


class Sampled:
    """Gradients of one loss at random images, steps and noise."""

    def __init__(self, model: ScoreNet, data: Tensor, seed: int):
        self.model, self.data, self.generator = model, data, torch.Generator().manual_seed(seed)
        assert isinstance(model.net, torch.nn.Module)
        self.weights = list(model.net.parameters())

    def images(self, n: int) -> Tensor:
        return self.data[torch.randint(len(self.data), (n,), generator=self.generator)]

    def per_sample(self, loss: Loss, x0: Tensor, t: np.ndarray) -> Tensor:
        return loss.per_sample(self.model, x0, t, torch.randn(x0.shape, generator=self.generator))

    def one_each(self, loss: Loss, memory: Tensor | None) -> Tensor:
        """The gradient of a batch with one step an image."""
        draw = loss.draw(self.model.schedule, BATCH, self.generator, memory)
        found = self.per_sample(loss, self.images(BATCH), draw.t)
        return self._gradient(found if draw.weight is None else found * torch.as_tensor(draw.weight).to(found))

    def all_steps(self, loss: Loss, chain: np.ndarray, images: int) -> Tensor:
        """The gradient of some images with all steps of each."""
        x0 = self.images(images).repeat_interleave(len(chain), 0)
        return self._gradient(self.per_sample(loss, x0, np.tile(chain, images)))

    def warm(self, loss: Loss, steps: int) -> Tensor | None:
        """The memory of importance sampling after ten losses of every step."""
        memory = loss.memory(self.model.schedule)
        even = Indices(steps, low_discrepancy=True)
        with torch.no_grad():
            for _ in range(0 if memory is None else 10):
                t = even.draw(self.model.schedule, steps, self.generator).t
                assert memory is not None
                memory = loss.remember(memory, t, self.per_sample(loss, self.images(steps), t))
        return memory

    def _gradient(self, found: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(found.mean(), self.weights)])


def measured(size: Size) -> Iterator[dict[str, Any]]:
    """One row for each loss and way: half the squared differences of pairs of gradients, for one image."""
    model = load_model(digits_path())
    assert isinstance(model, ScoreNet)
    assert isinstance(model.net, torch.nn.Module)
    model.net.requires_grad_(True)
    chain = chain_times(model.schedule, size.steps)
    sampled = Sampled(model, digits().x, seed=0)
    for name, loss in losses(size.steps).items():
        for way, times in ways(size.steps).items():
            here = replace(loss, times=times)
            memory = sampled.warm(here, size.steps)
            halves = pairs(lambda here=here, memory=memory: sampled.one_each(here, memory), size.pairs)
            yield {"loss": name, "way": way, "calls": 1, "halves": BATCH * halves}
        halves = pairs(lambda loss=loss: sampled.all_steps(loss, chain, size.full), size.full_pairs)
        yield {"loss": name, "way": "full sum", "calls": size.steps, "halves": size.full * halves}


def pairs(gradient, n: int) -> np.ndarray:
    """|g - g'|^2/2 of n independent pairs."""
    return np.array([float((gradient() - gradient()).double().square().sum()) / 2 for _ in range(n)])


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: variances, and their ratios to one random step."""
    found, rng = [], np.random.default_rng(0)
    base = {r["loss"]: r["halves"] for r in rows if r["way"] == "one random step"}
    for r in rows:
        means, of_base = (_bootstrap(rng, a) for a in (r["halves"], base[r["loss"]]))
        own = r["way"] == "one random step"
        ratio, spread = r["halves"].mean() / base[r["loss"]].mean(), np.quantile(means / of_base, [0.025, 0.975])
        found.append(
            {
                "loss": r["loss"],
                "steps chosen by": r["way"],
                "calls an image": r["calls"],
                "variance of one image": f"{r['halves'].mean():.3g}",
                "ratio": "1" if own else _interval(ratio, spread),
                "ratio at equal calls": "1" if own else _interval(r["calls"] * ratio, r["calls"] * spread),
            }
        )
    return found


def _bootstrap(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return values[rng.integers(len(values), size=(2000, len(values)))].mean(1)


def _interval(value: float, ends: np.ndarray) -> str:
    return f"{value:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table as Markdown, and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and pairs")
    size = QUICK if parser.parse_args(given).quick else WHOLE
    table = ratios(list(measured(size)))
    print("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))
    for row in table:
        print("| " + " | ".join(map(str, row.values())) + " |")
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
