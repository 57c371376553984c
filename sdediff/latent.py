"""What encoding gives: `Latent`, typed, saved in one file, and decoded only by what encoded it.

A latent is the state at the noisy end AND all that its decoder needs: the solver, its memory, the knots, how the image became a state,
and a fingerprint of the model. `latent.single()` keeps only the one tensor that users usually store.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .bits import DTYPES, missing, repaired
from .checkpoint import describe_schedule, opened, rebuild_schedule, write
from .combine import combine
from .control import Fixed
from .external import DELEGATES
from .fingerprint import check_fingerprint
from .invertible import Invertible, Kept
from .names import UserError
from .noise import White
from .prediction import Model
from .recorded import Recorded
from .sampling import recommend
from .schedule import Knot, Schedule
from .solver import Delegate, Solver
from .solvers import named

STARTS = ("clean", "noised")
_NAMES = {str(d).removeprefix("torch."): d for d in DTYPES}
_KEY = 11  # of the noise that a noised start adds


@dataclass(frozen=True)
class Origin:
    """How images (B, ...) became states at t_min, and how to undo it.

    dtype: of the images; limits: the values of 0 and 255 of uint8 images. start: "clean" takes the image as the state, "noised" takes
    alpha x + sigma z with the noise z of `seed` and the sample's number `first` + i, and takes it off again. rest: what the state
    that comes back lacks of the image, bit by bit, packed (b"": nothing, it is exact), or None: that is not known.
    """

    dtype: torch.dtype = torch.float32
    limits: tuple[float, float] = (-1.0, 1.0)
    start: str = "clean"
    seed: int = 0
    first: int = 0
    rest: bytes | None = None

    @property
    def state_dtype(self) -> torch.dtype:
        return self.dtype if self.dtype in (torch.float32, torch.float64) else torch.float32

    def state(self, image: Tensor, t: Knot) -> Tensor:
        """The state at t of images."""
        low, high = self.limits
        x = image.to(self.state_dtype)
        x = x * ((high - low) / 255) + low if self.dtype == torch.uint8 else x
        return x if self.start == "clean" else combine(((t.alpha, x), (t.sigma, self._noise(x))))

    def image(self, x: Tensor, t: Knot) -> Tensor:
        """The images of states x at t."""
        near = self._near(x, t)
        return repaired(near, _unpacked(self.rest, near)) if self.rest else near

    def completed(self, image: Tensor, x: Tensor, t: Knot) -> Origin:
        """The same with all that the states x lack of these images."""
        lacking = missing(image, self._near(x, t))
        return replace(self, rest=lzma.compress(lacking.cpu().numpy().tobytes()) if bool(lacking.any()) else b"")

    def _near(self, x: Tensor, t: Knot) -> Tensor:
        low, high = self.limits
        if self.start == "noised":
            x = combine(((1 / t.alpha, x), (-t.sigma / t.alpha, self._noise(x))))
        if self.dtype == torch.uint8:
            return ((x - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)
        return x.to(self.dtype)

    def _noise(self, x: Tensor) -> Tensor:
        return White(self.seed).on(x, index=range(self.first, self.first + len(x))).fresh(_KEY)


def _unpacked(packed: bytes, like: Tensor) -> Tensor:
    flat = np.frombuffer(lzma.decompress(packed), dtype=f"{'u' if like.dtype == torch.uint8 else 'i'}{like.element_size()}")
    if flat.size != like.numel():
        raise UserError(f"this latent holds the last bits of {flat.size} numbers, but decodes to {like.numel()}: decode the whole batch.")
    return torch.as_tensor(flat.copy(), device=like.device).reshape(like.shape)


@dataclass(frozen=True)
class Latent:
    """An encoded batch.

    x: the states (B, ...) at the noisy end; knots: on which it is decoded, noisiest first, or `Recorded` steps of each sample's own;
    solver: what decodes it; memory: what that keeps beside x (None: it starts from x alone); origin: how the images became states;
    mark: of the model, what it answers to a fixed question; calls: network calls that encoding took; outer: of a latent diffusion
    model, how the images became those that its autoencoder takes (origin is then of its latents).
    """

    x: Tensor
    knots: tuple[Knot, ...] | Fixed | Recorded
    solver: Solver | Delegate
    memory: Kept | None = None
    origin: Origin = Origin()
    mark: tuple[float, ...] = ()
    calls: int = 0
    outer: Origin | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def schedule(self) -> Schedule:
        return self.knots.schedule if isinstance(self.knots, Recorded) else self.knots[0].schedule

    @property
    def images(self) -> Origin:
        """How images became the model's data."""
        return self.origin if self.outer is None else self.outer

    @property
    def end(self) -> Knot:
        """The knot of the data."""
        return self.schedule.knot(float(self.knots.times[-1][0])) if isinstance(self.knots, Recorded) else self.knots[-1]

    def single(self) -> Latent:
        """Only the one tensor: no memory, and nothing of the image's last bits. Decoding starts from x alone, and is approximate."""
        return replace(self, memory=None, origin=replace(self.origin, rest=None))

    def of(self, x: Tensor) -> Latent:
        """Other states (B', ...) at the same noisy end, each a single tensor, decoded to images of the same kind.

        Decoded by the same solver on the same knots; where that is an exactly invertible one or each sample had steps of its own, by what
        `sample` takes for as many steps: without its memory such a method has nothing over the others.
        """
        if x.shape[1:] != self.x.shape[1:]:
            raise UserError(f"the states have shape {tuple(x.shape)}, but this latent's samples {tuple(self.x.shape[1:])}.")
        one = replace(self.single(), x=x, origin=replace(self.origin, start="clean", rest=None))
        if not isinstance(self.solver, Invertible) and not isinstance(self.knots, Recorded):
            return one
        count = len(self.knots.times) if isinstance(self.knots, Recorded) else len(self.knots)
        solver, knots = recommend(self.schedule, count - 1)
        return replace(one, solver=solver, knots=knots)

    @property
    def bytes(self) -> int:
        """How much it holds: x, memory, and the packed rest."""
        held = [self.x, *(self.memory.tensors if self.memory else ())]
        return sum(t.numel() * t.element_size() for t in held) + len(self.origin.rest or b"")

    def check(self, model: Model) -> None:
        """Raise `UserError` unless this model made it: schedule, shape, and answer to the fixed question."""
        if model.schedule != self.schedule:
            raise UserError(f"this latent was encoded on {self.schedule!r}, but the model has {model.schedule!r}: take that model.")
        if model.shape is not None and tuple(self.x.shape[1:]) != tuple(model.shape):
            raise UserError(f"this latent holds samples of shape {tuple(self.x.shape[1:])}, but the model's are {tuple(model.shape)}.")
        check_fingerprint(model, self.x, self.mark)

    # --- files ----------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file."""
        tensors = {"x": self.x}
        recorded = self.knots if isinstance(self.knots, Recorded) else None
        tensors["times"] = torch.as_tensor(recorded.times if recorded else np.array([k.time for k in self.knots]))  # type: ignore[union-attr]
        for i, part in enumerate(self.memory.tensors if self.memory else ()):
            tensors[f"memory.{i}"] = part
        for i, knot in enumerate(self.memory.knots if self.memory else ()):
            tensors[f"memory.time.{i}"] = torch.as_tensor(np.array(knot.time))
        if self.origin.rest:
            tensors["rest"] = torch.frombuffer(bytearray(self.origin.rest), dtype=torch.uint8)
        about = {
            "kind": "latent",
            "solver": repr(self.solver),
            "schedule": describe_schedule(self.schedule),
            "memory": None if self.memory is None else [len(self.memory.tensors), len(self.memory.knots), self.memory.turn],
            "origin": {
                "dtype": str(self.origin.dtype).removeprefix("torch."),
                "limits": list(self.origin.limits),
                "start": self.origin.start,
                "seed": self.origin.seed,
                "first": self.origin.first,
                "complete": self.origin.rest is not None,
            },
            "mark": list(self.mark),
            "calls": int(self.calls),
            "outer": None if self.outer is None else [str(self.outer.dtype).removeprefix("torch."), list(self.outer.limits)],
            "lower_final": isinstance(self.knots, Fixed) and self.knots.lower_final,
        }
        write(path, tensors, about)


def load_latent(path: str | Path) -> Latent:
    """The latent in a file that `Latent.save` wrote. `UserError` for any other file, or one in which something is missing."""
    with opened(path, "latent") as (tensors, about):
        schedule, given, times = rebuild_schedule(about["schedule"]), about["origin"], tensors["times"].numpy()
        rest = bytes(tensors["rest"].numpy()) if "rest" in tensors else b"" if given["complete"] else None
        origin = Origin(_NAMES[given["dtype"]], tuple(given["limits"]), given["start"], given["seed"], given["first"], rest)  # type: ignore[arg-type]
        seen = about.get("outer")
        outer = None if seen is None else Origin(_NAMES[seen[0]], tuple(seen[1]))  # type: ignore[arg-type]
        knots = Recorded(times, None, schedule) if times.ndim == 2 else schedule.knots(times)
        knots = Fixed(knots, lower_final=True) if about["lower_final"] else knots  # type: ignore[arg-type]
        solver = named(about["solver"], DELEGATES)
        memory = _memory(about["memory"], tensors, schedule)
        return Latent(tensors["x"], knots, solver, memory, origin, tuple(about["mark"]), about["calls"], outer)


def _memory(shape: Sequence[int] | None, tensors: Mapping[str, Tensor], schedule: Schedule) -> Kept | None:
    if shape is None:
        return None
    parts, instants, turn = shape
    times = [tensors[f"memory.time.{i}"].numpy() for i in range(instants)]
    knots = tuple(schedule.knot(t if t.ndim else float(t)) for t in times)
    return Kept(tuple(tensors[f"memory.{i}"] for i in range(parts)), knots, turn)
