"""What a cell costs: seconds, those spent in the network, memory at the peak."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..prediction import Around, Model, Prediction
from ..schedule import Knot


@dataclass(frozen=True)
class Timed(Around):
    """A model that adds up the seconds spent in it, on a GPU those until the answer is there."""

    model: Model
    account: list[float] = field(default_factory=lambda: [0.0])

    @property
    def seconds(self) -> float:
        return self.account[0]

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        _wait(x.device)
        begin = time.perf_counter()
        p = self.model(x, t)
        _wait(x.device)
        self.account[0] += time.perf_counter() - begin
        return p

    def rows(self, index: Tensor) -> Timed:
        return Timed(self.model.rows(index), self.account)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory anew, where the system can do so (Linux, and GPUs)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory(device: torch.device) -> float:
    """Bytes at the peak since `forget_peak`: of the GPU's tensors, or of the whole process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
