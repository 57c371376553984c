"""Training by `fit` against a bare PyTorch loop over the same network: speed and peak memory; and how smooth a trained network is in time.

The bare loop draws a batch, noises it by float32 formulas, takes one AdamW step and updates an EMA: what a short script would do.

Speed: both train in turn, a step each (a few where one is short), so that whatever else the machine does falls on both; the median of the
ratios is shown. Memory: the peak of the resident memory of a process of its own, once after no step and once after some; the
growth is compared. (tracemalloc does not see torch's memory. The C library is told to give freed memory back at once, so that the peak is
what was in use and not what fell apart. Linux.)

    python benchmarks/training.py [speed] [memory] [smoothness]
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sdediff import Angle, LogSNR, RungeKutta, ScoreNet, Sigma, Training, VPLinear, fit, latents, load_model, solve
from sdediff.data import InMemory, digits
from sdediff.networks import MLP, UNet
from sdediff.pretrained.scores import digits_path
from sdediff.recipe import read_recipe

STEPS = 10**9  # more than are taken


@dataclass(frozen=True)
class Case:
    """What trains: a network on data; `together` steps are timed as one."""

    model: Callable[[], ScoreNet]
    data: Callable[[], Tensor]
    training: Training
    together: int = 1
    rounds: int = 12


def digits_model() -> ScoreNet:
    """The perceptron of the recipe "digits"."""
    return ScoreNet(MLP((1, 8, 8), width=256, depth=3), VPLinear(), predicts="v", condition="lam", shape=(1, 8, 8))


def cifar_model(checkpointing: bool = False) -> ScoreNet:
    """A narrow U-Net for 32x32 in colour."""
    net = UNet(channels=3, width=32, multipliers=(1, 2, 2), blocks=1, attention=(1,), heads=4)
    net.checkpointing = checkpointing
    return ScoreNet(net, VPLinear(), predicts="v", condition="lam", shape=(3, 32, 32))


def cifar_data() -> Tensor:
    """Noise of CIFAR's shape: time and memory do not depend on what is learned."""
    return torch.randint(256, (4096, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


CIFAR = Training(steps=STEPS, batch=16, lr=2e-4)
CASES = {
    "digits, perceptron": Case(digits_model, lambda: digits().x, replace(read_recipe("digits").how(), steps=STEPS), together=20),
    "CIFAR's size, U-Net": Case(cifar_model, cifar_data, CIFAR),
    "CIFAR's size, U-Net, checkpointing": Case(lambda: cifar_model(True), cifar_data, CIFAR),
}


def bare(case: Case) -> Iterator[None]:
    """The bare loop, a step at a time."""
    net, data, training = case.model().net, case.data(), case.training
    assert isinstance(net, nn.Module)
    net.train().requires_grad_(True)
    ema = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.lr, betas=(0.9, 0.99), weight_decay=0.0)
    n = training.batch
    while True:
        x0 = data[torch.randint(len(data), (n,))]
        x0 = x0 if x0.dtype == torch.float32 else x0 / 127.5 - 1
        t = torch.rand(n)
        log_alpha = -t * t * 19.9 / 4 - 0.05 * t
        alpha, sigma = log_alpha.exp()[:, None, None, None], (-torch.expm1(2 * log_alpha)).sqrt()[:, None, None, None]
        eps = torch.randn_like(x0)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
            answer = net(alpha * x0 + sigma * eps, (alpha / sigma).log().flatten())
        loss = (answer.float() - (alpha * eps - sigma * x0)).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(net.parameters()), 0.001)
        yield


def ours(case: Case) -> Iterator[None]:
    """`fit`, a step at a time."""
    for _ in fit(case.model(), InMemory(case.data(), None, "data", None), case.training):
        yield


LOOPS = {"bare loop": bare, "fit": ours}


def seconds(steps: Iterator[None], n: int) -> float:
    begin = time.perf_counter()
    for _ in range(n):
        next(steps)
    return time.perf_counter() - begin


def speed() -> None:
    """Print the ratio of speeds in both precisions."""
    for name, case in list(CASES.items())[:2]:
        for precision in ("float32", "bf16"):
            now = replace(case, training=replace(case.training, precision=precision))
            loops = [loop(now) for loop in LOOPS.values()]
            for steps in loops:
                seconds(steps, 2)
            times = [tuple(seconds(steps, case.together) for steps in loops) for _ in range(case.rounds)]
            theirs, own = (statistics.median(t[i] for t in times) / case.together * 1e3 for i in (0, 1))
            ratio = statistics.median(a / b for a, b in times)
            print(f"{name}, {precision:8} bare loop {theirs:7.2f} ms a step   fit {own:7.2f} ms a step   speed {ratio:.0%}", flush=True)


def peak(loop: str, name: str, steps: int) -> float:
    """The largest resident memory, in MB, of a process that takes so many steps."""
    command = [sys.executable, __file__, "child", json.dumps([loop, name, steps])]
    freed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    return float(subprocess.run(command, env=os.environ | freed, capture_output=True, text=True, check=True).stdout)


def child(loop: str, name: str, steps: int) -> None:
    running = LOOPS[loop](CASES[name])
    for _ in range(steps):
        next(running)
    if not steps:  # what both have before the first step: the data, the network
        case = CASES[name]
        held = (case.model(), case.data())
        del held
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024)  # getrusage would count the parent's


def memory() -> None:
    """Print what training adds to the memory of the process."""
    for name in list(CASES)[1:]:
        grown = {loop: peak(loop, name, 4) - peak(loop, name, 0) for loop in LOOPS}
        shown = "   ".join(f"{loop} {mb:6.0f} MB" for loop, mb in grown.items())
        print(f"{name}: {shown}   ratio {grown['fit'] / grown['bare loop']:.2f}", flush=True)


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
    if sys.argv[1:2] == ["child"]:
        child(*json.loads(sys.argv[2]))
    else:
        parts = {"speed": speed, "memory": memory, "smoothness": smoothness}
        for part in sys.argv[1:] or parts:
            parts[part]()
