"""Training speed of `fit` against a bare PyTorch loop over the same network, and how smooth the trained network is in time.

The bare loop draws a batch, noises it by float32 formulas, takes one AdamW step and updates an EMA: what a short script would do. Both
run in turn, several rounds, in float32 and in bf16; the ratio of the medians is printed.

    python benchmarks/training.py
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from sdediff import Angle, LogSNR, RungeKutta, Sigma, fit, latents, load_model, solve
from sdediff.data import digits
from sdediff.pretrained.scores import DIGITS, digits_model, digits_path

STEPS, ROUNDS = 150, 5


def bare(precision: str) -> None:
    """A bare loop of STEPS steps on the digits network."""
    model, data = digits_model(), digits().x
    net = model.net
    assert isinstance(net, torch.nn.Module)
    ema = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(STEPS):
        x0 = data[torch.randint(len(data), (DIGITS.batch,))]
        t = torch.rand(DIGITS.batch)
        log_alpha = -t * t * 19.9 / 4 - 0.05 * t
        alpha, sigma = log_alpha.exp()[:, None, None, None], (-torch.expm1(2 * log_alpha)).sqrt()[:, None, None, None]
        eps = torch.randn_like(x0)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            answer = net(alpha * x0 + sigma * eps, (alpha / sigma).log().flatten())
        loss = (answer.float() - (alpha * eps - sigma * x0)).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(net.parameters()), 0.001)


def ours(precision: str) -> None:
    """The same number of steps by `fit`."""
    for _ in fit(digits_model(), digits().x, replace(DIGITS, steps=STEPS, precision=precision)):
        pass


def seconds(run, precision: str) -> float:
    begin = time.perf_counter()
    run(precision)
    return time.perf_counter() - begin


def speed() -> None:
    """Print the ratio of speeds for both precisions."""
    for precision in ("float32", "bf16"):
        times = [(seconds(bare, precision), seconds(ours, precision)) for _ in range(ROUNDS)]
        theirs, own = (statistics.median(t[i] for t in times[1:]) for i in (0, 1))
        print(
            f"{precision:8} bare loop {theirs / STEPS * 1e3:6.2f} ms/step   fit {own / STEPS * 1e3:6.2f} ms/step   speed {theirs / own:.0%}"
        )


def smoothness() -> None:
    """Print how far RK4 with 50 and with 100 steps are apart on the committed digits network."""
    model = load_model(digits_path())
    x = latents(model, 256)
    for coordinates in (Sigma(), Angle()):
        a, b = (solve(RungeKutta("rk4", coordinates), model, x, LogSNR().knots(model.schedule, n)).x for n in (50, 100))
        off = a - b
        print(
            f"RK4 50 against 100 steps, {coordinates!r}: RMS {float(off.square().mean().sqrt()):.1e}, largest {float(off.abs().max()):.1e}"
        )


if __name__ == "__main__":
    speed()
    smoothness()
