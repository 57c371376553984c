"""The noises that make an SDE sampler return this very image.

States x_0 (at t_max), ..., x_N (the image, at t_min) are drawn given the image, and each step of the sampler is solved for the noise that
leads from one to the next: `z = (x_{i+1} - mean(x_i)) / std`. Replayed, the sampler takes that path again.
"posterior": x_{i+1} ~ q(. | x_i, image) with as much noise n as the sampler adds in that step,
`x_s = alpha_s x + sqrt(sigma_s^2 - n^2) eps_t + n z`, alpha and sigma counted from t_min (CycleDiffusion, Wu & De la Torre 2023). For an
exact model and small steps its noises are what the sampler would draw. Measured on a mixture, DDPM() at 20, 50, 200, 1000 steps of
LogSNR(): standard deviation 1.31, 1.11, 1.03, 1.01, correlation of neighbours at most 0.014; DDIM(0.5) at 200: 1.05, 0.04. The surplus is
in the last steps.
"independent": each state by itself from q(x_t | image) (Huberman-Spiegelglas et al. 2024, edit-friendly DDPM inversion). Neighbours then
differ by more than the sampler would move, and z holds more of the image: 1.8, 2.4, 4.5, 10.0, and neighbours correlated by -0.5.
Any solver will do whose step is affine in one increment of noise: it is probed with and without, and the network is asked once.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import describe_schedule, opened, rebuild_schedule, write
from .checks import check_shape
from .combine import combine, linear
from .fingerprint import check_fingerprint, fingerprint
from .grid import Grid, LogSNR
from .latent_diffusion import to_data, to_states
from .names import UserError, choose
from .noise import Noise, White
from .prediction import Model, Prediction
from .result import Step
from .sampling import knots_for
from .schedule import Knot
from .solve import solve
from .solver import Solver
from .solvers import DDPM, named

KINDS = ("posterior", "independent")
_PROBE = 1024.0  # the size of the noise that a step is probed with: large against rounding


@dataclass(frozen=True)
class Replay:
    """Noise bound to a state that gives the increments it was told: sqrt(|b - a|) noises[i] for (a, b) = ends[i]."""

    ends: tuple[tuple[float, float], ...]
    noises: Tensor

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        if key or (a, b) not in self._places:
            raise UserError(f"these noises were encoded for other knots or another solver: they hold none from {a} to {b} (key {key}).")
        return self.noises[self._places[a, b]] * math.sqrt(abs(b - a))

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        raise UserError("encoded noises hold increments, not their integrals: decode with the solver that encoded them.")

    def fresh(self, key: int) -> Tensor:
        raise UserError("encoded noises hold increments, no draws off the path: decode with the solver that encoded them.")

    def rows(self, index: Tensor) -> Replay:
        return Replay(self.ends, self.noises[:, index])

    @cached_property
    def _places(self) -> dict[tuple[float, float], int]:
        return {ends: i for i, ends in enumerate(self.ends)}


@dataclass(frozen=True)
class NoiseLatent:
    """What stochastic encoding gives: `solve(solver, model, x, knots, noise=latent.noise)` returns the images.

    x (B, ...): the states at the noisy end; noises (N, B, ...): standard normal draws if the image were one of the sampler's, one for each
    step; knots, noisiest first; solver; kind: how the path was drawn; mark: the model's fingerprint.
    """

    x: Tensor
    noises: Tensor
    knots: tuple[Knot, ...]
    solver: Solver
    kind: str = "posterior"
    mark: tuple[float, ...] = ()

    @property
    def noise(self) -> Replay:
        """The noise to hand to `solve`."""
        return Replay(tuple(_ends(self.solver, t, s) for t, s in pairwise(self.knots)), self.noises)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        about = {
            "kind": "noise latent",
            "solver": repr(self.solver),
            "schedule": describe_schedule(self.knots[0].schedule),
            "times": [k.time for k in self.knots],
            "path": self.kind,
            "mark": list(self.mark),
        }
        write(path, {"x": self.x, "noises": self.noises}, about)


def encode_noise(
    model: Model,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    calls: int | None = None,
    grid: Grid | None = None,
    kind: str = "posterior",
    seed: int = 0,
    first: int = 0,
) -> NoiseLatent:
    """The start and the noises with which `solver` (default `DDPM()`) returns the images x (B, ...), taken as states at t_min.

    steps or calls, grid (default `LogSNR()`): as of `sample`. kind: "posterior" or "independent", see the module. seed: of the path, for
    samples first, first + 1, .... The network is asked as often as sampling asks it.
    To edit, decode with a model of another label; what the noises hold of the image stays:
    `seven, nine = (ScoreNet(net, schedule, labels=torch.full((n,), d)) for d in (7, 9))`,
    `decode_noise(nine, encode_noise(seven, x, steps=100, kind="independent"), check=False)`.
    Raises `UserError` for a solver that draws no noise, or one whose step is not affine in one draw.
    """
    solver = DDPM() if solver is None else solver
    choose("kind", kind, KINDS)
    x = to_states(model, x)
    _check(solver, model, x)
    knots = knots_for(model.schedule, solver, LogSNR() if grid is None else grid, steps=steps, calls=calls)
    path = _Path(x, knots[-1], White(seed).on(x, index=range(first, first + len(x))), kind)
    with torch.no_grad():
        start = at = path.start(knots[0])
        memory, noises = solver.init(model, at, knots[0]), []
        for t, s in pairwise(knots):
            z, step = _solved(solver, _Answers(model, solver), at, t, s, memory, path)
            if z is None and s is knots[-1]:
                raise UserError(
                    f"the last step of {solver!r}, to time {s.time:g}, adds no noise, so that its end cannot be chosen: end the grid short "
                    "of sigma = 0, at a knot to which the solver adds some."
                )
            noises.append(torch.zeros_like(x) if z is None else z)
            at, memory = step.x, step.memory
    return NoiseLatent(start, torch.stack(noises), knots, solver, kind, fingerprint(model, x))


def decode_noise(model: Model, latent: NoiseLatent, *, check: bool = True) -> Tensor:
    """The images of a noise latent by the model that encoded them or, to edit them, by another one with check=False."""
    if check:
        check_fingerprint(model, latent.x, latent.mark)
    return to_data(model, solve(latent.solver, model, latent.x, latent.knots, noise=latent.noise).x)


def load_noise(path: str | Path) -> NoiseLatent:
    """The latent in a file that `NoiseLatent.save` wrote. `UserError` for any other file, or one in which something is missing."""
    with opened(path, "noise latent") as (tensors, about):
        knots = rebuild_schedule(about["schedule"]).knots(about["times"])
        return NoiseLatent(tensors["x"], tensors["noises"], knots, named(about["solver"]), about["path"], tuple(about["mark"]))


def _check(solver: Any, model: Model, x: Tensor) -> None:
    if not isinstance(solver, Solver) or not solver.facts.stochastic:
        raise UserError(f"{solver!r} draws no noise that could be encoded: take DDPM(), DDIM(1.0), ..., or encode(model, x, solver=...).")
    if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
        raise UserError("the images must be finite floating point numbers, scaled as the network was trained.")
    check_shape(model, x, "the images have shape")


@dataclass(frozen=True)
class _Path:
    """Where the states go, from the noisy end to the image x at the knot `clean`."""

    x: Tensor
    clean: Knot
    noise: Noise
    kind: str

    def start(self, t: Knot) -> Tensor:
        """x_t ~ q(x_t | x)."""
        scale, std = t.schedule.transition(self.clean, t)
        return combine(scale * linear(self.x) + std * linear(self._fresh(t)))

    def onward(self, at: Tensor, t: Knot, s: Knot, gain: Tensor) -> Tensor:
        """The state at s after `at` at t, where the solver adds noise of standard deviation `gain`."""
        (a, v), (b, w) = (k.schedule.transition(self.clean, k) for k in (t, s))
        if self.kind == "independent" or w == 0.0:
            return self.start(s)
        n = gain.abs().clamp(max=w)
        eps = combine((linear(at) - a * linear(self.x)) / v)
        return b * self.x + (w**2 - n**2).clamp(min=0.0).sqrt() * eps + n * self._fresh(s)

    def _fresh(self, t: Knot) -> Tensor:
        return self.noise.fresh(struct.unpack("<Q", struct.pack("<d", t.time))[0] >> 1)


def _ends(solver: Solver, t: Knot, s: Knot) -> tuple[float, float]:
    return t.clock(solver.facts.clock), s.clock(solver.facts.clock)


def _solved(solver: Solver, model: _Answers, x: Tensor, t: Knot, s: Knot, memory: Any, path: _Path) -> tuple[Tensor | None, Step]:
    """(z, the step with it) such that the step from x leads where the path goes; z is None where the step draws nothing."""
    ends = _ends(solver, t, s)

    def take(z: Tensor) -> Step:
        model.turn = 0
        return solver.step(model, x, t, s, memory, _Probe(solver, ends, z))

    mean = take(torch.zeros_like(x))
    gain = (take(torch.full_like(x, _PROBE)).x - mean.x) / _PROBE
    if not bool(gain.any()):
        return None, mean
    wanted = path.onward(x, t, s, gain)
    z, step = torch.zeros_like(x), mean
    for _ in range(2):  # the second time for what rounding left
        z = z + torch.where(gain == 0, 0.0, (wanted - step.x) / torch.where(gain == 0, 1.0, gain))
        step = take(z)
    if float((step.x - wanted).abs().max()) > 1e3 * torch.finfo(x.dtype).eps * max(1.0, float(wanted.abs().max())):
        raise _refused(solver, "its step is not affine in the noise")
    return z, step


def _refused(solver: Solver, why: str) -> UserError:
    return UserError(
        f"{solver!r} cannot be solved for its noise: {why}. Take a solver that adds one draw at the end of a step, such as DDPM(), "
        "DDIM(1.0), EulerMaruyama(), SDEDPMSolverPP(2) or DPM2Ancestral()."
    )


@dataclass
class _Probe:
    """Noise for one step: `z`, in the one draw that may be asked for."""

    solver: Solver
    ends: tuple[float, float]
    z: Tensor
    asked: bool = False

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        if (a, b) != self.ends or key or self.asked:
            raise _refused(self.solver, "it draws more than once a step")
        self.asked = True
        return self.z * math.sqrt(abs(b - a))

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        raise _refused(self.solver, "it draws more than once a step (an increment and its integral)")

    def fresh(self, key: int) -> Tensor:
        raise _refused(self.solver, "it draws noise off the path")

    def rows(self, index: Tensor) -> _Probe:
        return _Probe(self.solver, self.ends, self.z[index])


class _Answers:
    """A model that is asked once in each place of a step, and repeats its answers as the step is taken again (from turn 0)."""

    def __init__(self, model: Model, solver: Solver):
        self.model, self.solver, self.schedule, self.shape = model, solver, model.schedule, model.shape
        self.turn = 0
        self.given: list[tuple[Tensor, Knot, Prediction]] = []

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        self.turn += 1
        if self.turn > len(self.given):
            self.given.append((x, t, self.model(x, t)))
        before, at, p = self.given[self.turn - 1]
        if at != t or not torch.equal(before, x):
            raise _refused(self.solver, "it asks the network at states that hold the noise of the step")
        return replace(p, x=x) if p.x is before else p

    def rows(self, index: Tensor) -> Model:
        return _Answers(self.model.rows(index), self.solver)
