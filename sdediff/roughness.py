"""How rough a network is in time, what no solver can undercut because of it, and the cure.

At a fixed state x the velocity v(x, theta) of the probability flow, in the frame of unit variance (coordinates `Angle`, theta its clock),
should be smooth in time. The k-th difference over the knots of a fine grid, divided by sqrt(C(2k, k)), is of size h^k for the smooth part
of v and of size r for a part that differs from knot to knot like noise, r its RMS; 2^-k of the difference over doubled steps is
subtracted, which removes the leading smooth term. A method of any order sums v dtheta over its knots, so that part enters as a sum of n
independent errors: over N calls it cannot fall below

    floor = INT r dtheta / sqrt(N)

(the minimum, over all ways to place N knots, of the root of sum_i (r_i dtheta_i)^2) until the steps resolve what looks like noise.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from .checks import check_answer
from .coordinates import Angle
from .grid import AsinhLogSNR
from .names import UserError, positive
from .networks.embedding import TimeEmbedding
from .prediction import Model
from .schedule import Knot, Schedule
from .schedules import DiscreteVP
from .score import ScoreNet

_ORDER = 6  # of the differences
_NEAR, _WIDE = range(-_ORDER // 2, _ORDER // 2 + 1), range(-_ORDER, _ORDER + 1, 2)
_OFFSETS = sorted({*_NEAR, *_WIDE})
_COEFFICIENTS = [(-1) ** j * math.comb(_ORDER, j) / math.sqrt(math.comb(2 * _ORDER, _ORDER)) for j in range(_ORDER + 1)]
_FAR = 7.0  # |lam| of the ends where it is infinite
_FRAME = Angle()
_ROUNDING = 1 / 3  # of an epsilon: RMS error of writing a state down as a sum of two or three terms, each off by half a unit at most
_SMOOTH = 1e-5  # relative to the size of the samples


@dataclass(frozen=True)
class Roughness:
    """What `time_roughness` found. `print` it for the verdict.

    times: the instants, from noise to data; sizes: at each the RMS, per component, of what is not smooth in the velocity (Angle
    coordinates); floor: the RMS error at the end, in units of the data, that no solver undercuts with `steps` calls, to a factor of 2 to 3;
    rounding: the part of it that is rounding of the state; scale: RMS of the samples; calls: network calls this measurement took.
    """

    times: tuple[float, ...]
    sizes: tuple[float, ...]
    floor: float
    rounding: float
    steps: int
    scale: float
    calls: int

    @property
    def rough(self) -> bool:
        """Whether the floor is above 1e-5 of the size of the samples."""
        return self.floor > _SMOOTH * self.scale

    def at(self, calls: int) -> float:
        """The floor with another number of calls: it falls like 1/sqrt(calls), and its rounding grows like sqrt(calls)."""
        more = positive("calls", calls) / self.steps
        return math.sqrt((self.floor**2 - self.rounding**2) / more + self.rounding**2 * more)

    def __str__(self) -> str:
        if not self.rough:
            return f"smooth in time: nothing above {self.floor:.1g} with {self.steps} calls"
        worst = self.times[int(np.argmax(self.sizes))]
        return (
            f"rough in time: solvers stick near {self.floor:.1g} with {self.steps} calls (roughest at time {worst:.3g}); average its time "
            f"embedding with smooth_time(model), or take a fixed grid: a tolerance below {self.floor:.1g} buys nothing"
        )


def time_roughness(model: Model, x: Tensor, *, calls: int = 200, instants: int = 32) -> Roughness:
    """Measure how rough `model` is in time along the flow that begins at the states x (B, ...) at t_max: `latents(model, 4)` will do.

    calls: of the solver whose floor is asked for: differences are taken over the knots of such a grid. instants: where. It takes about
    12 calls an instant; deterministic. Raises `UserError`, and `ModelError` if the model's answers are not finite.
    """
    if positive("calls", calls) < 2 * _ORDER or not 1 < positive("instants", instants) <= calls:
        raise UserError(f"time_roughness needs calls >= {2 * _ORDER} and 2 <= instants <= calls, not calls={calls}, instants={instants}.")
    if not isinstance(model, Model) or not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise UserError("time_roughness(model, x) takes a model and a few start states (B, ...) at t_max, e.g. x = latents(model, 4).")
    knots = _grid(model.schedule, calls)
    centers = np.unique(np.linspace(0, calls, instants + 1).round().astype(int))
    with torch.no_grad():
        x = x * float(_FRAME.scale(knots[0]) / _FRAME.scale(model.schedule.knot(model.schedule.t_max)))
        sizes, spans, spent = [], [], 0
        for i, j in pairwise(centers):
            middle = min(max(i, _ORDER), calls - _ORDER)
            seen = {k: _velocity(model, x, knots[k]) for k in {*(middle + o for o in _OFFSETS), i}}
            sizes.append(_size([seen[middle + o] for o in _NEAR], [seen[middle + o] for o in _WIDE]))
            spans.append(_FRAME.clock(knots[i]) - _FRAME.clock(knots[j]))
            x = _FRAME.scale(knots[j]) * (x / _FRAME.scale(knots[i]) - spans[-1] * seen[i])
            spent += len(seen)
    scale = _rms(x)
    rounding = _ROUNDING * torch.finfo(x.dtype).eps * scale * math.sqrt(calls)
    floor = math.hypot(float(np.dot(sizes, spans)) / math.sqrt(calls), rounding)
    return Roughness(tuple(knots[i].time for i in centers[:-1]), tuple(sizes), floor, rounding, calls, scale, spent)


def _grid(schedule: Schedule, steps: int) -> tuple[Knot, ...]:
    """Knots dense where the data appears, from t_max to t_min, or to |lam| = 7 where an end is infinite."""
    ends = (schedule.knot(schedule.t_max), schedule.knot(schedule.t_min))
    start, end = (t.time if math.isfinite(t.lam) else schedule.knot_at("lam", math.copysign(_FAR, t.lam)).time for t in ends)
    return AsinhLogSNR(-1.0, 2.0).knots(schedule, steps, start, end)


def _velocity(model: Model, x: Tensor, t: Knot) -> Tensor:
    v = _FRAME.velocity(model(x, t)).tensor()
    check_answer(v, t)
    return v


def _size(near: list[Tensor], wide: list[Tensor]) -> float:
    """RMS of the normalised difference, less its smooth part."""

    def difference(values: list[Tensor]) -> Tensor:
        return torch.stack([c * v for c, v in zip(_COEFFICIENTS, values, strict=True)]).sum(0)

    return _rms(difference(near) - 2.0**-_ORDER * difference(wide))


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# --- the cure -----------------------------------------------------------------------------------------------------


def smooth_time(
    model: Model,
    width: float = 0.2,
    most: float = 0.03,
    *,
    embedding: str | None = None,
    scale: float = 1.0,
    nodes: int = 32,
) -> ScoreNet:
    """The same model with its time embedding averaged over t +- min(width t, most): smooth in time, at no extra network call.

    The output of the embedding is averaged (its sines would be damped: another network), over `nodes` evenly spaced times; past t_max the
    window is folded back. `model` itself is not changed: its network is copied. embedding: the name of the submodule that reads the
    condition alone, (n,) or (n, 1), and gives (n, ...); networks of sdediff.networks say themselves which it is. scale: what that submodule
    is given, over the model's condition (1000 in a network that multiplies its time by 1000). Raises `UserError`.
    """
    if not (0 < width < 1 and 0 < most < math.inf and 0 < abs(scale) < math.inf):
        raise UserError(f"smooth_time needs 0 < width < 1, most > 0, scale != 0: not width={width!r}, most={most!r}, scale={scale!r}.")
    if not isinstance(model, ScoreNet) or not isinstance(model.net, nn.Module):
        raise UserError(
            "smooth_time averages the time embedding of a torch network in a ScoreNet(net, schedule): smooth that, and wrap the result; "
            "a closed-form model is smooth already."
        )
    name = _found(model.net) if embedding is None else embedding
    parts = dict(model.net.named_modules())
    if name not in parts or not name:
        raise UserError(f"the network has no submodule {name!r}; it has {_shown(parts)}.")
    window = _Window(model.schedule, model.condition, scale, width, most, positive("nodes", nodes))
    net = copy.deepcopy(model.net)
    home, _, last = name.rpartition(".")
    setattr(net.get_submodule(home), last, _Averaged(net.get_submodule(name), window, name))
    smooth = copy.copy(model)
    smooth.net = net
    return smooth


def _found(net: nn.Module) -> str:
    names = [name for name, part in net.named_modules() if isinstance(part, TimeEmbedding) and name]
    if len(names) != 1:
        raise UserError(
            f"smooth_time does not know where {type(net).__name__} embeds its time: name the submodule that reads the condition alone, "
            f"smooth_time(model, embedding=...). It has {_shown(dict(net.named_modules()))}."
        )
    return names[0]


def _shown(parts: dict[str, nn.Module]) -> str:
    names = [name for name in parts if name and name.count(".") < 2]
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "") or "none"


@dataclass(frozen=True)
class _Window:
    """The conditions over which one is averaged: those of the times t + min(width t, most) (-1 .. 1), folded back at t_max."""

    schedule: Schedule
    condition: str
    scale: float
    width: float
    most: float
    nodes: int

    def around(self, given: Tensor) -> Tensor:
        """Conditions (n, nodes) around those given (n,), of their dtype."""
        t = self._time(given.double() / self.scale)[:, None]
        place = (torch.arange(self.nodes, dtype=t.dtype, device=t.device) + 0.5) * (2 / self.nodes) - 1
        times = t + (self.width * t).clamp(max=self.most) * place
        times = torch.where(times > self.schedule.t_max, 2 * self.schedule.t_max - times, times).clamp(min=0.0)
        return (self.scale * self._condition(times)).to(given.dtype)

    def _time(self, c: Tensor) -> Tensor:
        if self.condition == "time":
            return c
        if self.condition == "index":
            return (c + 1) / self._n
        lam = (c if self.condition == "lam" else -4 * c).cpu().numpy()
        ends = self.schedule.knot(self.schedule.t_max).lam, self.schedule.knot(0.0).lam
        return torch.as_tensor(self.schedule.time_at(np.clip(lam, *ends)), device=c.device)

    def _condition(self, t: Tensor) -> Tensor:
        if self.condition == "time":
            return t
        if self.condition == "index":
            return t * self._n - 1
        lam = torch.as_tensor(self.schedule.knot(t.cpu().numpy()).lam, device=t.device)
        return lam if self.condition == "lam" else -0.25 * lam

    @property
    def _n(self) -> int:
        assert isinstance(self.schedule, DiscreteVP)
        return self.schedule.n


class _Averaged(nn.Module):
    """`inner` averaged over a window of its condition. One condition for all (stride 0) is embedded once."""

    def __init__(self, inner: nn.Module, window: _Window, name: str) -> None:
        super().__init__()
        self.inner, self.window, self.name = inner, window, name

    def forward(self, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        column = condition.ndim == 2 and condition.shape[1] == 1
        if not condition.is_floating_point() or not (column or condition.ndim == 1):
            self._refuse(f"is given a tensor of shape {tuple(condition.shape)} and dtype {condition.dtype}")
        n, given = len(condition), condition.flatten() if column else condition
        if given.stride(0) == 0:
            given = given[:1]
        around = self.window.around(given).flatten()
        if isinstance(self.inner, TimeEmbedding):
            return self.inner.labelled(self._mean(self.inner.alone(around), len(given)), labels)
        if labels is not None:
            self._refuse("is given labels too")
        embedding = self._mean(self.inner(around[:, None] if column else around), len(given))
        return embedding.expand(n, *embedding.shape[1:])

    def _mean(self, values: Tensor, n: int) -> Tensor:
        if len(values) != n * self.window.nodes:
            self._refuse(f"gives a tensor of shape {tuple(values.shape)} for {n * self.window.nodes} conditions")
        return values.unflatten(0, (n, self.window.nodes)).mean(1)

    def _refuse(self, what: str) -> None:
        raise UserError(
            f"the submodule {self.name!r} {what}: smooth_time needs one that reads the condition alone, floating point numbers (n,) or "
            f"(n, 1), and gives an embedding of each; name another: embedding=..."
        )
