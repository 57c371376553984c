"""The pieces of work of a study, each in chunks that any process may run: the real images, the converged flow, the cells.

A chunk is always of 64 consecutive samples (the last of a cell runs whole and is cut after), so what it gives does not depend on how many
samples, processes or machines there are. A piece of work ends with one record, made of its chunks in their order.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..adaptive import PID
from ..control import Fixed
from ..features.reference import few_samples
from ..grid import LogSNR
from ..guidance import noise_apart
from ..latent_diffusion import around
from ..metrics import Estimate, Moments, Statistics
from ..names import UserError
from ..noise import Brownian
from ..result import Solution
from ..sampling import as_ddim, knots_for, latents, recommend
from ..schedule import Knot, Schedule
from ..solve import solve
from ..solver import Delegate, Solver
from .cells import CHUNK, Cell, Study
from .costs import Timed, forget_peak, peak_memory
from .judge import Judge
from .problem import Problem
from .store import Chunk, Record, Store, mark

DEPTH, DEEPER = 16, 20  # of the tree of a Brownian path, for steps by the thousand; clocks other than snr are cut less evenly by a grid
KEPT = 1 << 22  # bytes of features that a record keeps


class Work(Protocol):
    """One piece of work. id: of its record; chunks: how many; calls: network calls of each chunk, about; kept: whether its chunks stay."""

    @property
    def id(self) -> str: ...

    @property
    def chunks(self) -> int: ...

    @property
    def calls(self) -> float: ...

    @property
    def kept(self) -> bool: ...

    def about(self) -> dict[str, Any]:
        """What it is, as JSON: for its record, also if it fails."""
        ...

    def run(self, number: int) -> Chunk: ...

    def finish(self, chunks: Callable[[], Iterator[Chunk]]) -> Record:
        """The record of all chunks, which `chunks()` gives in order, anew each time."""
        ...


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("sdediff", "torch", "numpy", "scipy")}


@dataclass(frozen=True, eq=False)
class Real:
    """The references' features, and where as many real images as there are samples would be by every metric."""

    study: Study
    problem: Problem
    kept: bool = False
    calls: float = 1.0
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", "real-" + mark(self.asked, self.study.samples, list(self.study.metrics)))

    @cached_property
    def asked(self) -> dict[str, Any]:
        about = self.problem.about
        return {k: about[k] for k in ("data", "references", "extractors", "statistics")}

    @property
    def chunks(self) -> int:
        return -(-len(self.problem.rows) // CHUNK)

    def about(self) -> dict[str, Any]:
        return {"kind": "real", **self.asked, "versions": versions()}

    def run(self, number: int) -> Chunk:
        images = self.problem.real_images(CHUNK * number, CHUNK * (number + 1))
        tensors = features_of(self.problem, images, wants_logits(self.study))
        if CHUNK * number < self.study.shown and images.ndim == 4:
            tensors["images"] = bytes_of(images)
        return Chunk(number, tensors, {})

    def finish(self, chunks: Callable[[], Iterator[Chunk]]) -> Record:
        tensors: dict[str, Tensor] = {}
        for name in self.problem.extractors:
            statistics = Statistics()
            for chunk in chunks():
                statistics.update(chunk.tensors[name])
            known = self.problem.statistics.get(name)
            found = statistics.moments() if known is None else known.moments
            tensors |= {f"{name}.mean": found.mean, f"{name}.cov": found.cov, f"{name}.n": torch.tensor(found.n)}
            tensors[f"{name}.features"] = torch.cat([c.tensors[name] for c in chunks()])
            if f"{name} logits" in next(chunks()).tensors:
                tensors[f"{name} logits"] = torch.cat([c.tensors[f"{name} logits"] for c in chunks()])
        tensors |= _images(chunks(), self.study.shown)
        judge = judge_of(self.study, self.problem.extractor, tensors)
        size, floor = judge.floor(tensors.get(f"{self.problem.extractor} logits"), self.study.samples)
        tensors |= {f"floor.{k}": torch.from_numpy(v) for k, v in floor.items()}
        return Record({**self.about(), "status": "done", "floor": size}, tensors)


def judge_of(study: Study, extractor: str, tensors: Mapping[str, Tensor]) -> Judge:
    """The judge that a record of the real images makes."""
    names = [k.removesuffix(".mean") for k in tensors if k.endswith(".mean")]
    found = {name: Moments(tensors[f"{name}.mean"], tensors[f"{name}.cov"], int(tensors[f"{name}.n"])) for name in names}
    return Judge.of(study.metrics, extractor, {name: tensors[f"{name}.features"] for name in names}, found)


@dataclass(frozen=True, eq=False)
class Sampling:
    """A cell: its samples, their features, their distances from the converged flow. reference: the work of that flow; None if it is it."""

    study: Study
    problem: Problem
    cell: Cell
    store: Store
    judge: Callable[[], Judge]
    reference: Sampling | None = None
    converges: bool = False  # whether this is the converged flow
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", ("flow-" if self.converges else "") + mark(self.asked))

    @cached_property
    def asked(self) -> dict[str, Any]:
        settings = {"metrics": list(self.study.metrics), "shown": self.study.shown, "chunk": CHUNK}
        return {**self.cell.about(), **self.problem.about, **settings, "reference": None if self.reference is None else self.reference.id}

    @property
    def kept(self) -> bool:
        return self.converges

    @property
    def chunks(self) -> int:
        return -(-self.cell.samples // CHUNK)

    @property
    def calls(self) -> float:
        guided = 2 if self.cell.guidance is not None else 1
        return guided * (self.cell.calls or 60)

    def about(self) -> dict[str, Any]:
        kind = "flow" if self.converges else "cell"
        return {"kind": kind, **self.asked, "curve": self.cell.curve, "stochastic": self.cell.stochastic, "versions": versions()}

    def run(self, number: int) -> Chunk:
        forget_peak(self.device)
        solution, seconds, network = self.solved(number)
        images = self.problem.images(solution.x).cpu()
        shown = CHUNK * number < self.study.shown and images.ndim == 4
        tensors = features_of(self.problem, images, wants_logits(self.study)) | ({"images": bytes_of(images)} if shown else {})
        tensors["calls"] = torch.full((CHUNK,), solution.calls) if solution.each is None else torch.from_numpy(solution.each.copy())
        costs = {"seconds": seconds, "network": network, "memory": peak_memory(self.device), "short": 0.0 if solution.reached else 1.0}
        exact = self._exact(number, images)
        if exact is not None:
            tensors["error"] = (images - exact).double().flatten(1).square().mean(1).sqrt()
        if self.converges:
            tensors["state"] = images
            if number == 0:
                costs["unsure"] = self._unsure(images)
        return Chunk(number, {k: v.cpu() for k, v in tensors.items()}, costs)

    @torch.no_grad()
    def solved(self, number: int, calls: int | None = None) -> tuple[Solution, float, float]:
        """The states of a chunk, the seconds that it took, and those in the network. calls: in place of the cell's."""
        problem, cell, first = self.problem, self.cell, CHUNK * number
        total = first + CHUNK
        timed: list[Timed] = []

        def clock(inner: Any) -> Timed:
            timed.append(Timed(inner))
            return timed[0]

        plain = problem.asked(cell.guidance, max(total, CHUNK * self.chunks))
        if noise_apart(plain):
            cell = replace(cell, solver=as_ddim(cell.solver, cell.tolerance), grid=cell.grid or LogSNR())
        asked = around(plain, clock)
        x = latents(problem.model, CHUNK, seed=cell.seed, shape=problem.shape, first=first).to(self.device)
        solver, knots = method(cell if calls is None else replace(cell, calls=calls), asked.schedule)
        noise = None
        if solver.facts.stochastic:
            noise = path_of(cell.seed, solver, asked.schedule).on(x, index=range(first, total))
        begin = time.perf_counter()
        solution = solve(solver, asked.rows(torch.arange(first, total)), x, knots, noise=noise)
        return solution, time.perf_counter() - begin, timed[0].seconds

    def _exact(self, number: int, images: Tensor) -> Tensor | None:
        """The images of the converged flow from the same latents; None without one."""
        if self.reference is None:
            return images if self.converges else None
        return self.reference.state(number)

    def state(self, number: int) -> Tensor | None:
        """The images of a chunk of the converged flow, made again if they were lost; None while there is no converged flow."""
        chunk = self.store.chunk(self.id, number)
        if chunk is None:
            record = self.store.record(self.id)
            if record is None or record.failed is not None:
                return None
            chunk = self.run(number)
            self.store.write_chunk(self.id, chunk)
        return chunk.tensors["state"]

    def _unsure(self, images: Tensor) -> float:
        """How far the converged flow moves with half as many calls; NaN where it chooses its steps itself."""
        if self.cell.calls is None or self.cell.calls < 2:
            return float("nan")
        coarse = self.problem.images(self.solved(0, self.cell.calls // 2)[0].x).cpu()
        return float((images - coarse).double().square().mean().sqrt())

    def finish(self, chunks: Callable[[], Iterator[Chunk]]) -> Record:
        n = self.cell.samples

        def stream(name: str) -> Iterator[Tensor]:
            for c in chunks():
                yield c.tensors[name][: n - CHUNK * c.number]

        costs = [dict(c.costs) for c in chunks()]
        values = self.judge().estimates(stream, n)
        tensors = {f"{name}.influence": torch.from_numpy(e.influence) for name, e in values.items()}
        tensors |= {f"{name}.halves": torch.from_numpy(e.halves) for name, e in values.items() if e.halves is not None}
        first = next(chunks()).tensors
        with_error = all("error" in c.tensors for c in chunks())  # a chunk of before the flow could be computed has none
        tensors |= {name: torch.cat(list(stream(name))) for name in (*(["error"] if with_error else []), "calls")}
        logits = f"{self.problem.extractor} logits"
        if logits in first:
            tensors["labels"] = torch.cat([x.argmax(1) for x in stream(logits)]).short()
        d = first[self.problem.extractor].shape[1]
        tensors["features"] = torch.cat(list(stream(self.problem.extractor)))[: max(1, KEPT // (4 * d))].clone()
        tensors |= _images(chunks(), min(self.study.shown, n))
        return Record({**self.about(), "status": "done", **self._summary(values, tensors, costs)}, tensors)

    def _summary(self, values: Mapping[str, Estimate], tensors: Mapping[str, Tensor], costs: list[dict[str, float]]) -> dict[str, Any]:
        short = sum(c["short"] for c in costs)
        spent = {
            "seconds": sum(c["seconds"] for c in costs),
            "network": sum(c["network"] for c in costs) / max(sum(c["seconds"] for c in costs), 1e-12),
            "memory": max(c["memory"] for c in costs),
            "device": str(self.device),
            "threads": self.threads,
        }
        few = [few_samples(self.cell.samples, t.shape[1]) for k, t in tensors.items() if k == "features"]
        note = "; ".join(
            [*([f"in {short:.0f} of {len(costs)} chunks a sample did not reach the end"] if short else []), *filter(None, few)]
        )
        calls = tensors["calls"].double()
        made = {"mean": float(calls.mean()), "fewest": int(calls.min()), "most": int(calls.max())}
        measured = {name: e.value for name, e in values.items()}
        scales = {name: e.scale for name, e in values.items()}
        return {"metrics_of": measured, "scales": scales, "made": made, "costs": spent, "note": note, "unsure": costs[0].get("unsure")}


def method(cell: Cell, schedule: Schedule) -> tuple[Solver | Delegate, Any]:
    """What a cell solves with: the solver, and its knots or controller."""
    if cell.solver is None:
        assert cell.calls is not None
        return recommend(schedule, cell.calls)
    if cell.tolerance is not None:
        return cell.solver, PID(atol=cell.tolerance)
    assert cell.grid is not None
    if cell.calls is None:
        return cell.solver, Fixed(cell.grid.knots(schedule, 1))
    return cell.solver, Fixed(knots_within(cell, schedule, cell.calls))


def knots_within(cell: Cell, schedule: Schedule, calls: int) -> tuple[Knot, ...]:
    """As many steps as fit into the calls; a delegate with fixed steps takes one call a step."""
    assert cell.grid is not None
    assert cell.solver is not None
    if isinstance(cell.solver, Solver):
        return knots_for(schedule, cell.solver, cell.grid, calls=calls)
    steps = int(calls // cell.solver.facts.evals)
    if steps < 1:
        raise UserError(f"one step of {cell.solver!r} takes {cell.solver.facts.evals:g} calls; {calls} are too few.")
    return cell.grid.knots(schedule, steps)


def path_of(seed: int, solver: Solver | Delegate, schedule: Schedule) -> Brownian:
    """The one Brownian path of a seed on the solver's clock: the same for every number of steps, and every solver of this clock."""
    clock = solver.facts.clock
    ends = [schedule.knot(t).clock(clock) for t in (schedule.t_max, schedule.t_min)]
    low, high = min(ends), max(ends)
    if not np.isfinite(high):  # no noise is left at t_min: the path ends where the last noise is drawn, at any time above it
        high = max(v for t in np.geomspace(1e-12, 1, 200) if np.isfinite(v := schedule.knot(schedule.t_max * float(t)).clock(clock)))
    # where no signal is left at t_max the clock begins at 0, halves are not geometric, and its small steps lie deep
    depth = DEPTH if clock == "snr" else DEEPER
    return Brownian(seed, (low, high), depth if low > 0 else 3 * DEPTH)


def wants_logits(study: Study) -> bool:
    """Whether a metric needs the extractor's logits."""
    return any(m.startswith("inception_score") for m in study.metrics)


@torch.no_grad()
def features_of(problem: Problem, images: Tensor, logits: bool) -> dict[str, Tensor]:
    """Features (n, d) of images in [-1, 1] by extractor, and the first one's logits as "NAME logits" where it has any."""
    found = {}
    for name, extractor in problem.extractors.items():
        features, answers = extractor.both(images)
        found[name] = features.float().cpu()
        if answers is not None and (logits or name == problem.extractor):
            found[f"{name} logits"] = answers.float().cpu()
    return found


def bytes_of(images: Tensor) -> Tensor:
    """uint8 (n, h, w, c) of images (n, c, h, w) in [-1, 1]."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _images(chunks: Iterable[Chunk], most: int) -> dict[str, Tensor]:
    found = [c.tensors["images"] for c in chunks if "images" in c.tensors]
    return {"images": torch.cat(found)[:most].clone()} if found and most else {}
