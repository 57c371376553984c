"""Train a score network: `fit` is a generator of progress, so the caller owns the progress bar, the clock and the stop button.

Every random number of step k is a function of (seed, k): the batch, the times, the noise, the dropout. The checkpoint holds weights, EMA,
optimiser state and k. So a run that is killed at any moment and started again ends with the same weights, to the bit, as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint
from .names import UserError, choose, positive
from .prediction import ModelError
from .score import Objective, ScoreNet


@dataclass(frozen=True)
class Training:
    """How to train. lr rises linearly for `warmup` steps, then falls along a cosine to 0 (decay = "cosine") or stays ("constant").

    ema: decay of the exponential moving average of the weights, reached as min(ema, (1 + k)/(10 + k)); clip: largest gradient norm;
    precision: "float32" or "bf16" (the network runs under autocast; weights, loss and state stay float32).
    """

    steps: int = 5000
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    precision: str = "float32"
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        positive("batch", self.batch)
        choose("decay", self.decay, ("cosine", "constant"))
        choose("precision", self.precision, ("float32", "bf16"))
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.ema < 1):
            raise UserError(f"training needs lr > 0, clip > 0 and 0 <= ema < 1, not {self.lr}, {self.clip} and {self.ema}.")

    def lr_at(self, k: int) -> float:
        """The learning rate of step k (from 0)."""
        rise = min(1.0, (k + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * k / self.steps)) if self.decay == "cosine" else 1.0
        return self.lr * rise * fall


class Progress(NamedTuple):
    """After a step: how many steps are done, and the loss of the last one (a 0-d tensor: reading it is the caller's choice)."""

    step: int
    loss: Tensor


@dataclass
class _State:
    """Everything that training changes."""

    model: ScoreNet
    ema: dict[str, Tensor]
    optimiser: torch.optim.AdamW
    step: int

    def tensors(self) -> dict[str, Tensor]:
        net: Any = self.model.net
        flat = {f"net.{k}": v for k, v in net.state_dict().items()} | {f"ema.{k}": v for k, v in self.ema.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            flat |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return flat

    def restore(self, tensors: dict[str, Tensor], step: int, path: Path) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        checkpoint.load_weights(self.model, part("net."), path)
        ema = part("ema.")
        for k, v in self.ema.items():  # in the order of the network, whatever the order of the file
            v.copy_(ema[k])
        states: dict[int, dict[str, Tensor]] = {}
        for k, v in part("adam.").items():
            i, name = k.split(".", 1)
            states.setdefault(int(i), {})[name] = v
        self.optimiser.load_state_dict({"state": states, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step = step


def fit(
    model: ScoreNet, data: Tensor, training: Training, *, folder: str | Path | None = None, save_every: int = 1000
) -> Iterator[Progress]:
    """Train `model` in place on data (N, ...) by denoising score matching; yields `Progress` after every step.

    With `folder`, `state.safetensors` is written there every `save_every` steps and at the end, and a run found there is continued.
    When it ends, the network holds the EMA weights and is in evaluation mode; `folder/model.safetensors` is that model.
    Raises `UserError` for data smaller than a batch or a folder that holds another run, `ModelError` when the loss is not finite.
    """
    net = model.net
    if not isinstance(net, nn.Module):
        raise UserError("fit trains an nn.Module: ScoreNet(net, ...) with another callable cannot be trained.")
    if len(data) < training.batch:
        raise UserError(f"the batch of {training.batch} is larger than the data ({len(data)} samples); choose a batch of at most that.")
    positive("save_every", save_every)
    net.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay)
    state = _State(model, {k: v.detach().clone() for k, v in net.state_dict().items()}, optimiser, 0)
    path = Path(folder) / "state.safetensors" if folder is not None else None
    about: dict[str, Any] = {"training": asdict(training), "data": list(data.shape)}
    if path is not None:
        about |= checkpoint.describe_model(model)
        _resume(state, path, about)
        checkpoint.write(path, state.tensors(), {**about, "step": state.step})  # a folder that cannot be written is found out now
    order = _Order(len(data), training.seed)
    for k in range(state.step, training.steps):
        rows = order.rows(k, training.batch)
        loss = _step(state, model.rows(rows), data[rows], training, k)
        state.step = k + 1
        if path is not None and (state.step % save_every == 0 or state.step == training.steps):
            checkpoint.write(path, state.tensors(), {**about, "step": state.step})
        yield Progress(state.step, loss)
    net.load_state_dict(state.ema)
    net.eval().requires_grad_(False)
    if folder is not None:
        checkpoint.save_model(Path(folder) / "model.safetensors", model, {"training": asdict(training)})


def _resume(state: _State, path: Path, about: dict[str, Any]) -> None:
    """Continue the run in `path`, if there is one; `UserError` if it was made with other settings."""
    if not path.exists():
        return
    tensors, found = checkpoint.read(path)
    step = found.pop("step", 0)
    # JSON turns tuples into lists
    same = json.loads(json.dumps(about))
    differing = [k for k in same if found.get(k) != same[k]]
    if differing:
        raise UserError(f"{path} is the run of other settings (differing: {', '.join(differing)}): choose another folder, or remove it.")
    state.restore(tensors, step, path)


def _step(state: _State, model: ScoreNet, x0: Tensor, training: Training, k: int) -> Tensor:
    """One optimiser step on the batch x0."""
    generator = torch.Generator().manual_seed(_seed(training.seed, k))
    t = training.objective.draw_times(state.model.schedule, len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
    for group in state.optimiser.param_groups:
        group["lr"] = training.lr_at(k)
    net: Any = state.model.net
    with torch.random.fork_rng(), torch.autocast(x0.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
        torch.manual_seed(_seed(training.seed + (1 << 20), k))  # dropout: not the numbers of the times
        model = _Float(model) if training.precision == "bf16" else model
        loss = training.objective(model, x0, t, noise)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), training.clip)
    if not bool(torch.isfinite(norm)):
        raise ModelError(f"the gradient became NaN or infinite at step {k + 1}: lower lr (now {training.lr:g}), or check the data.")
    state.optimiser.step()
    decay = min(training.ema, (1 + k) / (10 + k))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.values()), list(net.state_dict().values()), 1 - decay)
    return loss.detach()


class _Float(ScoreNet):
    """The model with its answer in float32, whatever autocast makes of it."""

    def __init__(self, model: ScoreNet):
        net = model.net
        super().__init__(lambda *args: net(*args).float(), model.schedule, model.predicts, model.condition, model.labels, model.shape)


class _Order:
    """Which samples step k sees: one permutation of the data an epoch, a function of (seed, epoch)."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed
        self.known: dict[int, Tensor] = {}

    def rows(self, k: int, batch: int) -> Tensor:
        place = torch.arange(k * batch, (k + 1) * batch)
        epochs = place // self.n
        parts = [self._permutation(e)[place[epochs == e] % self.n] for e in range(int(epochs[0]), int(epochs[-1]) + 1)]
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self.known:
            generator = torch.Generator().manual_seed(_seed(self.seed, -1 - epoch))
            self.known = {e: p for e, p in self.known.items() if e == epoch - 1}
            self.known[epoch] = torch.randperm(self.n, generator=generator)
        return self.known[epoch]


def _seed(seed: int, k: int) -> int:
    """One seed for step k: distinct for all (seed, k) below 2^31."""
    return (seed * 0x9E3779B97F4A7C15 + k * 0xBF58476D1CE4E5B9) % (1 << 63)
