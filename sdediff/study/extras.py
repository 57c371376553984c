"""What else the probability flow gives: round trips of real images, midpoints of latents, and paths between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..coordinates import Angle
from ..external import TorchDiffEq
from ..grid import LogSNR
from ..inversion import decode, encode, interpolate
from ..metrics import moments
from ..names import UserError, label
from ..sampling import latents
from ..solve import solve
from ..solvers import DDIM, Heun
from .cells import Study
from .judge import Judge
from .problem import Problem, networks
from .store import Chunk, Record, mark
from .work import bytes_of, method, versions

STEPS = (10, 20, 50, 100, 200)  # of round trips
IMAGES = 500  # that make them
PAIRS, POINTS = 6, 9  # of paths
METHODS = [(s, n) for s in (DDIM(), Heun(Angle())) for n in STEPS] + [(TorchDiffEq("dopri5", tol, tol, Angle()), 1) for tol in (1e-3, 1e-5)]
KINDS = ("none", "slerp", "linear")


@dataclass(frozen=True, eq=False)
class Extras:
    """The piece of work: a chunk for each method of round trips, one for each kind of midpoint, and one for the paths."""

    study: Study
    problem: Problem
    judge: Callable[[], Judge]
    calls: float = 100.0
    kept: bool = False
    id: str = field(init=False)

    def __post_init__(self) -> None:
        asked = (self.problem.about, self.study.samples, self.study.seeds, dict(self.study.reference), list(map(repr, METHODS)))
        object.__setattr__(self, "id", "extras-" + mark(*asked))

    @property
    def chunks(self) -> int:
        return len(METHODS) + len(KINDS) + 1

    def about(self) -> dict[str, Any]:
        return {"kind": "extras", **self.problem.about, "versions": versions()}

    @torch.no_grad()
    def run(self, number: int) -> Chunk:
        if number < len(METHODS):
            return Chunk(number, {}, self._round_trip(*METHODS[number]))
        number -= len(METHODS)
        if number < len(KINDS):
            return Chunk(number + len(METHODS), {}, self._midpoint(KINDS[number]))
        return Chunk(self.chunks - 1, {"paths": bytes_of(self._paths())}, {})

    def finish(self, chunks: Callable[[], Iterator[Chunk]]) -> Record:
        found = list(chunks())
        trips = [
            {"solver": label(s), "steps": n if isinstance(s, DDIM | Heun) else None, **c.costs}
            for (s, n), c in zip(METHODS, found, strict=False)
        ]
        middle = [{"midpoint": k, **c.costs} for k, c in zip(KINDS, found[len(METHODS) :], strict=False)]
        return Record({**self.about(), "status": "done", "round_trips": trips, "midpoints": middle}, dict(found[-1].tensors))

    def _round_trip(self, solver: Any, steps: int) -> dict[str, float]:
        """Real images encoded and decoded again: the RMS error in [-1, 1] units, and the latents' standard deviation."""
        problem = self.problem
        images = problem.real_images(0, IMAGES).to(device_of(problem)) / problem.scale
        latent = encode(problem.asked(None, len(images)), images, steps=steps, solver=solver, grid=LogSNR())
        back = decode(problem.asked(None, len(images)), latent)
        return {"error": float((back - images).square().mean().sqrt()) * problem.scale, "latent_std": float(latent.x.std())}

    def _midpoint(self, kind: str) -> dict[str, float]:
        """Midpoints of pairs of latents: their norm, and the Frechet distance of what they decode to."""
        x = latents(self.problem.model, self.study.samples, seed=self.study.seeds[0], shape=self.problem.shape)
        z = x if kind == "none" else interpolate((x, x.roll(1, dims=0)), 3, kind)[1]
        judge, name = self.judge(), self.problem.extractor
        features = torch.cat([self.problem.extractors[name].features(self._flow(part)).float().cpu() for part in z.split(1000)])
        return {"latent_norm": float(z.flatten(1).norm(dim=1).mean()), "frechet": judge.real[name].frechet.distance(moments(features))}

    def _paths(self) -> Tensor:
        """(points * pairs, ...): images along the great circle between the latents of the first pairs."""
        x = latents(self.problem.model, 2 * PAIRS, seed=self.study.seeds[0], shape=self.problem.shape)
        return self._flow(interpolate((x[:PAIRS], x[PAIRS:]), POINTS).flatten(0, 1))

    def _flow(self, x: Tensor) -> Tensor:
        """The images of the converged flow, in [-1, 1], from latents x."""
        references = [c for c in self.study.references() if c.guidance is None]
        if not references:
            raise UserError("round trips and interpolation need the converged flow: take none = true out of [reference].")
        model = self.problem.asked(None, len(x))
        solver, knots = method(references[0], model.schedule)
        return self.problem.images(solve(solver, model, x.to(device_of(self.problem)), knots).x)


def device_of(problem: Problem) -> torch.device:
    """Where the model's network lies."""
    return next((p.device for net in networks(problem.model) for p in net.parameters()), torch.device("cpu"))
