"""Train a network: `fit` is a generator of progress, so the caller owns the progress bar, the clock and the stop button.

What is learned is a `Task`: `Denoising` (a score network by denoising score matching), or those of `tasks`. How is a `Training`.
Every random number of step k is a function of (seed, k) and the place in the batch: the samples, the times, the noise, the dropout. The
checkpoint holds weights, EMA, optimiser state and k. So a run that is killed at any moment and started again ends with the same weights,
to the bit, as one that was not; and the loss is that of the whole batch, however many processes or accumulated parts share it.
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint
from .chance import Chance, seed_of
from .data import InMemory, Source, batches, flip
from .data.source import count
from .names import UserError, choose, positive
from .objective import Loss, Objective
from .prediction import ModelError
from .processes import Alone, Processes
from .score import ScoreNet


@dataclass(frozen=True)
class Training:
    """How to train, by AdamW with betas (0.9, beta2). lr rises linearly over `warmup` steps, times a cosine that falls to 0 over all of
    them (decay = "cosine") or 1 ("constant").

    batch: samples a step, over all processes, taken in `accumulate` parts. ema: decay of the exponential moving average of the weights,
    reached as min(ema, (1 + k)/(10 + k)); ema_width: instead a power function of this relative width (Karras et al. 2024b, eq. 3: 0.05
    to 0.2). flip: mirror each image with probability 1/2. clip: largest gradient norm, inf for none. precision: "float32" or "bf16" (the
    network runs under autocast; weights, loss and state stay float32).
    """

    steps: int = 5000
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.0
    ema: float = 0.999
    ema_width: float | None = None
    clip: float = 1.0
    beta2: float = 0.99
    seed: int = 0
    precision: str = "float32"
    accumulate: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            positive(name, getattr(self, name))
        choose("decay", self.decay, ("cosine", "constant"))
        choose("precision", self.precision, ("float32", "bf16"))
        for kind, names in ((float, ("lr", "clip", "ema", "beta2", "weight_decay")), (int, ("warmup", "seed")), (bool, ("flip",))):
            for name in names:
                _typed(name, getattr(self, name), kind)
        if not (0 < self.lr < math.inf and self.clip > 0 and 0 <= self.ema < 1 and 0 <= self.beta2 < 1):
            found = f"{self.lr}, {self.clip}, {self.ema} and {self.beta2}"
            raise UserError(f"training needs lr > 0, clip > 0 and ema and beta2 in [0, 1), not {found}.")
        if self.ema_width is not None and not 0.01 <= self.ema_width <= 0.28:
            raise UserError(f"ema_width is the width of the average over the time trained, in [0.01, 0.28], not {self.ema_width}.")

    def lr_at(self, k: int) -> float:
        """The learning rate of step k (from 0)."""
        rise = min(1.0, (k + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * k / self.steps)) if self.decay == "cosine" else 1.0
        return self.lr * rise * fall

    def decay_at(self, k: int) -> float:
        """How much of the average of the weights stays at step k (from 0)."""
        if self.ema_width is None:
            return min(self.ema, (1 + k) / (10 + k))
        return (1 - 1 / (k + 1)) ** (power_of(self.ema_width) + 1)


def _typed(name: str, value: Any, kind: type) -> None:
    known = (int, float) if kind is float else (kind,)
    if not isinstance(value, known) or (isinstance(value, bool) and kind is not bool) or (kind is not bool and value < 0):
        expected = {float: "a number of at least 0", int: "a whole number of at least 0", bool: "true or false"}[kind]
        raise UserError(f"{name} is {expected}, not {value!r}.")


def power_of(width: float) -> float:
    """gamma of the average with weights t^gamma, whose standard deviation is `width` of the time trained (Karras et al. 2024b, eq. 126).

    width^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)).
    """
    from scipy.optimize import brentq

    return brentq(lambda g: (g + 1) / ((g + 2) ** 2 * (g + 3)) - width**2, 0.0, 1e4)  # type: ignore[return-value]


class Task(ABC):
    """What is learned: a network, and a loss that is the mean of one number a sample.

    `net` is called through `Processes`, so `loss` gets it as an argument; everything that learns must be called by its `forward`.
    """

    net: nn.Module

    @abstractmethod
    def loss(self, net: Callable[..., Any], x0: Tensor, labels: Tensor | None, chance: Chance, memory: Tensor | None) -> Tensor:
        """The loss of each sample (B,) of data x0 (B, ...) with labels (B,), its randomness taken from `chance` alone."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The task and its network as JSON."""

    @abstractmethod
    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write what was learned, with `about` beside its description."""

    def check(self, source: Source) -> None:
        """Raise `UserError` for data that this task cannot learn from."""
        return None

    def memory(self) -> Tensor | None:
        """What is carried from step to step beside the weights, at the start."""
        return None

    def remember(self, memory: Tensor, losses: Tensor, chance: Chance) -> Tensor:
        """The memory after a step with these losses, those of the whole batch."""
        return memory


class Denoising(Task):
    """A score network by denoising score matching.

    model: what is trained; its own `labels`, if any, are those of the data. label_dropout: how often a label is left out, for
    classifier-free guidance (Ho & Salimans 2022: 0.1).
    """

    def __init__(self, model: ScoreNet, objective: Loss | None = None, label_dropout: float = 0.0):
        if not isinstance(model.net, nn.Module):
            raise UserError("fit trains an nn.Module: ScoreNet(net, ...) with another callable cannot be trained.")
        self.model, self.net, self.objective, self.label_dropout = model, model.net, objective or Objective(), label_dropout
        self.classes = model.classes
        if not 0 <= label_dropout <= 1 or (label_dropout and self.classes is None):
            raise UserError(f"label_dropout = {label_dropout} needs a number in [0, 1] and a network with classes=...")

    def check(self, source: Source) -> None:
        if self.classes is not None and source.classes is not None and source.classes > self.classes:
            raise UserError(
                f"{source.name} has the labels 0 to {source.classes - 1}, but the network has {self.classes} classes: build it with "
                f"classes={source.classes}."
            )
        if self.model.shape is not None and tuple(self.model.shape) != tuple(source.shape):
            raise UserError(f"{source.name} has samples of shape {tuple(source.shape)}, the model is of {tuple(self.model.shape)}.")

    def loss(self, net: Callable[..., Any], x0: Tensor, labels: Tensor | None, chance: Chance, memory: Tensor | None) -> Tensor:
        draw = self.objective.draw(self.model.schedule, chance.total, chance.generator(), memory)
        model = copy.copy(self.model)
        model.net, model.labels = net, self._told(labels, chance)
        losses = self.objective.per_sample(model, x0, draw.t[chance.rows], chance.noise(x0))
        return losses if draw.weight is None else losses * torch.as_tensor(draw.weight[chance.rows]).to(losses)

    def _told(self, labels: Tensor | None, chance: Chance) -> Tensor | None:
        """The labels that the network is told."""
        if labels is None or (self.classes is None and self.model.labels is None):
            return None
        if self.label_dropout and self.classes is not None:
            left_out = torch.from_numpy(chance.uniform(key=1) < self.label_dropout).to(labels.device)
            labels = torch.where(left_out, self.classes, labels)
        return labels

    def memory(self) -> Tensor | None:
        return self.objective.memory(self.model.schedule)

    def remember(self, memory: Tensor, losses: Tensor, chance: Chance) -> Tensor:
        draw = self.objective.draw(self.model.schedule, chance.total, chance.generator(), memory)
        weight = 1.0 if draw.weight is None else torch.as_tensor(draw.weight).to(losses)
        return self.objective.remember(memory, draw.t, losses / weight)

    @property
    def learned(self) -> dict[str, Any]:
        return {"objective": repr(self.objective), "label_dropout": self.label_dropout}

    def about(self) -> dict[str, Any]:
        return {**checkpoint.describe_model(self.model), "learned": self.learned}

    def save(self, path: Path, about: dict[str, Any]) -> None:
        checkpoint.save_model(path, self.model, {**about, "learned": self.learned})


class Progress(NamedTuple):
    """After a step: how many steps are done, and what the last one did. Reading a tensor is the caller's choice.

    loss: of the whole batch (0-d); norm: of its gradient before clipping (0-d); lr: the learning rate; averaged: a context in which the
    network holds the average of its weights, in evaluation mode: `with progress.averaged(): sample(model, ...)` (all processes enter it).
    """

    step: int
    loss: Tensor
    norm: Tensor
    lr: float
    averaged: Callable[[], Any]


@dataclass
class _State:
    """Everything that training changes. net: as `fit` was given it; called: as it is called; tensors are this process's own."""

    net: nn.Module
    called: nn.Module
    ema: dict[str, Tensor]
    optimiser: torch.optim.AdamW
    memory: Tensor | None
    among: Processes
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Whole tensors, to be saved by rank 0."""
        flat = {f"net.{k}": v for k, v in self.among.own(self.called).items()}
        flat |= {f"ema.{k}": v for k, v in self.ema.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            flat |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return self.among.whole(flat if self.memory is None else {**flat, "memory": self.memory})

    def restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        own, net, ema = self.among.own(self.called), part("net."), part("ema.")
        checkpoint.check_weights(own, net, path)
        for k, v in own.items():
            self.among.put(v, net[k])
            self.among.put(self.ema[k], ema[k])
        self._restore_optimiser(part("adam."))
        if self.memory is not None:
            self.memory.copy_(tensors["memory"])

    def _restore_optimiser(self, tensors: dict[str, Tensor]) -> None:
        states: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for k, v in tensors.items():
            i, name = k.split(".", 1)
            own = torch.zeros_like(parameters[int(i)]) if v.ndim else torch.zeros_like(v)
            self.among.put(own, v)
            states.setdefault(int(i), {})[name] = own
        self.optimiser.load_state_dict({"state": states, "param_groups": self.optimiser.state_dict()["param_groups"]})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        kept = {k: v.clone() for k, v in self.among.own(self.called).items()}
        training = self.net.training
        self.among.show(self.net, self.ema)
        self.net.eval()
        try:
            yield
        finally:
            self.among.show(self.net, kept)
            self.net.train(training)


def fit(
    task: Task | ScoreNet,
    data: Tensor | Source,
    training: Training,
    *,
    folder: str | Path | None = None,
    save_every: int = 1000,
    workers: int = 0,
    compiled: bool = False,
    among: Processes | None = None,
) -> Iterator[Progress]:
    """Train in place on data, a tensor (N, ...) or a `Source`; yields `Progress` after every step. A ScoreNet alone learns L_simple.

    With `folder`, `state.safetensors` is written there every `save_every` steps and at the end, and a run found there is continued. Asked
    for more steps than that run it goes on at the learning rates of the longer one; the files then say at which step, in "lengthened".
    When it ends, the network holds the EMA weights and is in evaluation mode; `folder/model.safetensors` is what was learned.
    workers: processes that read the data; compiled: run the network through torch.compile; among: the processes that share a batch.
    Raises `UserError` for data smaller than a batch, a batch that cannot be shared evenly, or a folder that holds another run;
    `ModelError` when the gradient is not finite (the last saved state stays) or memory ends.
    """
    task = Denoising(task) if isinstance(task, ScoreNet) else task
    among = among or Alone()
    labels = task.model.labels if isinstance(task, Denoising) else None
    source = InMemory(data, labels, "tensor", count(labels)) if isinstance(data, Tensor) else data
    if len(source) < training.batch:
        raise UserError(f"the batch of {training.batch} is larger than the data ({len(source)} samples); choose a batch of at most that.")
    task.check(source)
    parts = among.count * training.accumulate
    if training.batch % parts:
        raise UserError(f"a batch of {training.batch} does not split evenly into {parts} parts (processes times accumulate).")
    positive("save_every", save_every)
    if training.flip and len(source.shape) != 3:
        raise UserError(f"flip mirrors images (channels, height, width), not samples of shape {tuple(source.shape)}.")
    task.net.train().requires_grad_(True)
    state = _begin(task, training, among, compiled)
    path = Path(folder) / "state.safetensors" if folder is not None else None
    about: dict[str, Any] = {}
    if path is not None:
        about = {"training": asdict(training), "data": _mark(source), **task.about()}
        _resume(state, path, about)
        _agree(state, path)
        _save(state, path, about)  # a folder that cannot be written is found out now
        among.meet()
        if not path.exists():
            raise UserError(f"{path} was written, but process {among.rank} does not see it: give a folder that all machines share.")
    order = _Order(len(source), training.seed)
    share = training.batch // among.count
    seen = (order.rows(k, training.batch)[among.rank * share :][:share] for k in range(state.step, training.steps))
    for k, (x0, told) in enumerate(batches(source, seen, workers=workers), state.step):
        try:
            loss, norm = _step(state, task, x0, told, training, k)
            if not bool(torch.isfinite(norm)):
                kept = f"; the state of step {_saved(path)} is kept in {path}" if path is not None else ""
                raise ModelError(
                    f"the gradient became NaN or infinite at step {k + 1}: lower lr (now {training.lr:g}), or check the data{kept}."
                )
            _update(state, training, k)
            if path is not None and (state.step % save_every == 0 or state.step == training.steps):
                _save(state, path, about)
        except UserError:
            raise
        except ValueError as wrong:  # a network's objection
            raise UserError(f"{str(wrong).rstrip('.')}.") from None
        except RuntimeError as wrong:
            if among.lost(wrong):
                raise ModelError(_told_of_loss(among, k, path)) from None
            raise _told_if_memory(wrong, share // training.accumulate, training) from None
        yield Progress(state.step, loss, norm, training.lr_at(k), state.averaged)
    among.show(task.net, state.ema)
    task.net.eval().requires_grad_(False)
    if folder is not None and among.rank == 0:
        task.save(Path(folder) / "model.safetensors", {k: about[k] for k in ("training", "lengthened") if k in about})
    among.meet()  # whoever reads the model finds it


def _begin(task: Task, training: Training, among: Processes, compiled: bool) -> _State:
    called = among.prepare(task.net)
    optimiser = torch.optim.AdamW(called.parameters(), lr=training.lr, betas=(0.9, training.beta2), weight_decay=training.weight_decay)
    ema = {k: v.detach().clone() for k, v in among.own(called).items()}
    if compiled:
        called.compile()
    return _State(task.net, called, ema, optimiser, task.memory(), among)


def _resume(state: _State, path: Path, about: dict[str, Any]) -> None:
    """Continue the run in `path`, if there is one; `UserError` if its settings differ. Adds to `about` where it was lengthened."""
    if not path.exists():
        return
    tensors, found = checkpoint.read(path)
    step, lengthened = found.pop("step", 0), found.pop("lengthened", [])
    # JSON turns tuples into lists
    same, longer = json.loads(json.dumps(about)), False
    if "training" in found:
        asked, was = same["training"], {**asdict(Training()), **found["training"]}  # an option newer than the file has its default
        longer = was["steps"] < asked["steps"]
        # in how many parts a batch is taken changes its sum's rounding only, like the number of processes
        found["training"] = {**was, "accumulate": asked["accumulate"], "steps": asked["steps"] if longer else was["steps"]}
    differing = [n for k in {**same, **found} if found.get(k) != same.get(k) for n in _differing(k, same.get(k), found.get(k))]
    if differing:
        raise UserError(f"{path} is the run of other settings (differing: {', '.join(differing)}): choose another folder, or remove it.")
    state.restore(tensors, path)
    state.step = step
    if longer and step:
        lengthened = [*lengthened, step]
    if lengthened:
        about["lengthened"] = lengthened


def _agree(state: _State, path: Path) -> None:
    """`UserError` unless all processes are at the same step. None writes before all have read."""
    steps = state.among.gather(torch.tensor([state.step], device=next(state.called.parameters()).device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(f"the processes found different runs in {path} (at steps {steps}): choose a folder that all machines share.")


def _differing(name: str, one: Any, two: Any) -> list[str]:
    """What differs, of what is asked and what is there: "training.lr (0.001 asked, 0.002 there)"."""
    if isinstance(one, dict) and isinstance(two, dict):
        return [said for k in {**one, **two} if one.get(k) != two.get(k) for said in _differing(f"{name}.{k}", one.get(k), two.get(k))]
    short = all(isinstance(v, int | float) for v in (one, two))
    return [f"{name} ({one} asked, {two} there)" if short else name]


def _save(state: _State, path: Path, about: dict[str, Any]) -> None:
    tensors = state.tensors()
    if state.among.rank == 0:
        checkpoint.write(path, tensors, {**about, "step": state.step})


def _saved(path: Path) -> int:
    return checkpoint.read(path)[1].get("step", 0)


def _step(state: _State, task: Task, x0: Tensor, labels: Tensor | None, training: Training, k: int) -> tuple[Tensor, Tensor]:
    """The gradient of one batch: (its loss, the gradient's norm before clipping). x0, labels: the share of this process."""
    among, share = state.among, len(x0)
    weight = next(state.called.parameters())
    size = share // training.accumulate
    chance = Chance(training.seed, k, 0, 0, training.batch)
    state.optimiser.zero_grad(set_to_none=True)
    losses = []
    for i, (x, y) in enumerate(zip(x0.split(size), (None,) * training.accumulate if labels is None else labels.split(size), strict=True)):
        chance = Chance(training.seed, k, among.rank * share + i * size, size, training.batch)
        x = x.to(weight.device, weight.dtype, non_blocking=True)
        x = flip(x, torch.from_numpy(chance.uniform(key=2) < 0.5).to(x.device)) if training.flip else x
        last = i == training.accumulate - 1
        with nullcontext() if last else among.apart(state.called):
            loss = _loss(state, task, x, None if y is None else y.to(weight.device), chance, training)
            (loss.mean() / training.accumulate).backward()
        losses.append(loss.detach())
    norm = among.clip(state.called, training.clip)
    whole = among.gather(torch.cat(losses))
    if state.memory is not None:
        state.memory = task.remember(state.memory, whole, chance)
    return whole.mean(), norm


def _loss(state: _State, task: Task, x: Tensor, labels: Tensor | None, chance: Chance, training: Training) -> Tensor:
    low = training.precision == "bf16"
    net: Callable[..., Any] = (lambda *given: _float(state.called(*given))) if low else state.called
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        torch.manual_seed(seed_of(training.seed + (1 << 20) + chance.first, chance.step))  # dropout: not the numbers of the times
        return task.loss(net, x, labels, chance, state.memory)


def _float(answer: Any) -> Any:
    """An answer in float32, whatever autocast makes of it."""
    return answer.float() if isinstance(answer, Tensor) else type(answer)(*(a.float() for a in answer))


def _update(state: _State, training: Training, k: int) -> None:
    """One step of the optimiser along the gradient, and of the average."""
    for group in state.optimiser.param_groups:
        group["lr"] = training.lr_at(k)
    state.optimiser.step()
    with torch.no_grad():
        own, local = state.among.own(state.called), state.among.local
        pairs = [(local(state.ema[k]), local(v)) for k, v in own.items()]
        smooth = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in smooth], [b for _, b in smooth], 1 - training.decay_at(k))
        for a, b in pairs:
            if not a.is_floating_point():  # a count, such as batch norm's
                a.copy_(b)
    state.step = k + 1


def _told_of_loss(among: Processes, k: int, path: Path | None) -> str:
    kept = f"; started again, the job goes on from step {_saved(path)}, kept in {path}" if path is not None else ""
    return f"one of the {among.count} processes ended in step {k + 1}: its own message, or that of what started it, says why{kept}."


def _mark(source: Source) -> list[Any]:
    """What a data set is recognised by: its shape, and a few of its numbers."""
    x, _ = source.batch(torch.arange(0, len(source), -(-len(source) // 8)))
    return [len(source), *source.shape, round(float(x.double().sum()), 3), round(float(x.double().square().sum()), 3)]


def _told_if_memory(wrong: Exception, size: int, training: Training) -> Exception:
    """The error as it is, or, where memory ended, what to try."""
    ended = "out of memory" in str(wrong) or "can't allocate memory" in str(wrong)
    if not ended:
        return wrong
    parts = 2 * training.accumulate
    return ModelError(
        f"memory ended with {size} samples at a time: try accumulate={parts} (the same batch of {training.batch}, {max(1, size // 2)} at a "
        "time), a smaller batch, precision='bf16', or gradient checkpointing."
    )


@dataclass
class _Order:
    """Which samples step k sees: one permutation of the data an epoch, a function of (seed, epoch)."""

    n: int
    seed: int
    known: dict[int, Tensor] = field(default_factory=dict)

    def rows(self, k: int, batch: int) -> Tensor:
        place = torch.arange(k * batch, (k + 1) * batch)
        epochs = place // self.n
        parts = [self._permutation(e)[place[epochs == e] % self.n] for e in range(int(epochs[0]), int(epochs[-1]) + 1)]
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self.known:
            generator = torch.Generator().manual_seed(seed_of(self.seed, -1 - epoch))
            self.known = {e: p for e, p in self.known.items() if e == epoch - 1}
            self.known[epoch] = torch.randperm(self.n, generator=generator)
        return self.known[epoch]
