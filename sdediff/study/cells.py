"""What a study asks: its cells, the model, the data, the metrics. A value, read from a TOML file and written back as one.

    name = "mnist"
    question = "Which solver, at how many network calls?"
    samples = 2000                       # of each cell and seed
    seeds = [0]
    metrics = ["frechet", "precision"]   # "metric" in the extractor's features, or "metric@pixels"; the first is the headline
    [model]      checkpoint = "mnist"    # a name of the package, a path, "hot_vs_cold"; or train = (a recipe: trained in the folder)
                                         # labels = "0-9", classifier = (a path, for ClassifierGuidance)
    [data]       name = "mnist"          # or path = ...; further options of `open_source`; references = 10000: how many are drawn
    [features]   extractor = "mnist"     # weights = ..., statistics = ... (a file, in place of measuring the data)
    [reference]  solver = "RungeKutta('rk4', Angle())", grid = "LogSNR()", calls = 200; or none = true
    [[cells]]    solvers = ["DDIM()", "DDPM()"], grids = ["Quadratic()"], calls = [5, 10], tolerances = [1e-2]
                                         # guidance = ["", "ClassifierFree(2.0)"]

Each [[cells]] is a product: solvers x grids x calls x guidance x seeds. Tolerances are for solvers that choose their own steps. "default"
as a solver is what `sample` takes when none is named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..external import DELEGATES
from ..grid import GRIDS, Grid, LogSNR
from ..guidance import CFGPlusPlus, Guidance, guidance_named
from ..names import UserError, choose, from_repr, label
from ..solver import Delegate, Solver
from ..solvers import named
from ..toml import change_key, known_keys, read_toml, toml_value

CHUNK = 64  # samples that are solved together, always: the last bits of a network's answer depend on the batch
DEFAULT = "default"
METRICS = (
    "frechet", "frechet_infinity", "kid", "inception_score", "precision", "recall", "density", "coverage", "wasserstein",
    "sliced_wasserstein", "memorised",
)  # fmt: skip
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Cell:
    """One measurement: a solver on a grid with a budget of calls, or with a tolerance, under a guidance, from the latents of a seed.

    solver: None stands for what `sample` takes; grid: None where the solver brings or chooses its own.
    """

    solver: Solver | Delegate | None
    grid: Grid | None
    calls: int | None
    tolerance: float | None
    guidance: Guidance | None
    seed: int
    samples: int

    @property
    def curve(self) -> str:
        """What it shares with its like at other budgets, e.g. DDIM(0.5): no two solvers have the same."""
        if self.solver is None:
            return DEFAULT
        if isinstance(self.solver, Delegate) and self.solver.adaptive:
            return _short(self.solver, always=("method",), never=("rtol", "atol"))
        return _short(self.solver)

    @property
    def budget(self) -> str:
        """What differs along a curve: calls, or a tolerance."""
        if self.calls is not None or self.tolerance is not None:
            return str(self.calls) if self.calls is not None else f"{self.tolerance:g}"
        own = (getattr(self.solver, "atol", None), getattr(self.solver, "rtol", None))
        return "/".join(f"{t:g}" for t in dict.fromkeys(own) if t is not None) or "adaptive"

    @property
    def stochastic(self) -> bool:
        return self.solver is not None and self.solver.facts.stochastic

    def about(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "solver": DEFAULT if self.solver is None else repr(self.solver),
            "grid": None if self.grid is None else repr(self.grid),
            "calls": self.calls,
            "tolerance": self.tolerance,
            "guidance": None if self.guidance is None else repr(self.guidance),
            "seed": self.seed,
            "samples": self.samples,
        }

    def __str__(self) -> str:
        budget = f"{self.calls} calls" if self.calls is not None else f"tolerance {self.budget}"
        return ", ".join([self.curve, *([] if self.grid is None else [label(self.grid)]), budget, *self._leaning(), f"seed {self.seed}"])

    def _leaning(self) -> list[str]:
        return [] if self.guidance is None else [label(self.guidance)]


def _short(solver: Any, always: Sequence[str] = (), never: Sequence[str] = ()) -> str:
    """`label` without the names of options that say what they are: the first ones, and values that are objects themselves."""
    shown, first = [], True
    for f in fields(solver):
        value = getattr(solver, f.name)
        if f.name in never or (value == f.default and f.name != "order" and f.name not in always):
            first = False
            continue
        shown.append(label(value) if first or is_dataclass(value) else f"{f.name}={label(value)}")
    return f"{type(solver).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Product:
    """One [[cells]] table, as it was written."""

    solvers: tuple[str, ...]
    grids: tuple[str, ...] = ("LogSNR()",)
    calls: tuple[int, ...] = ()
    tolerances: tuple[float, ...] = ()
    guidance: tuple[str, ...] = ()

    def cells(self, seeds: Sequence[int], samples: int) -> list[Cell]:
        """Every cell, seeds innermost: so that the first results are whole lines."""
        leanings = [guidance_named(g) if g else None for g in self.guidance] or [None]
        found = []
        for text, leaning in product(self.solvers, leanings):
            solver = None if text == DEFAULT else named(text, DELEGATES)
            for grid, calls, tolerance in self._budgets(solver):
                found += [Cell(solver, grid, calls, tolerance, leaning, seed, samples) for seed in seeds]
        return found

    def _budgets(self, solver: Solver | Delegate | None) -> list[tuple[Grid | None, int | None, float | None]]:
        if isinstance(solver, Delegate) and solver.adaptive:
            return [(LogSNR(), None, None)]
        if solver is None:
            return [(None, c, None) for c in self.calls]
        grids = [from_repr(g, {made.__name__: made for made in GRIDS}, "grid") for g in self.grids]
        budgets: list[tuple[Grid | None, int | None, float | None]] = []
        if isinstance(solver, Solver) and solver.embedded:
            budgets += [(None, None, t) for t in self.tolerances]
        elif not self.calls:
            raise UserError(f"{solver!r} takes no tolerance, it has no error estimate: give calls = [...] in its [[cells]].")
        return [*((g, c, None) for g, c in product(grids, self.calls)), *budgets]


@dataclass(frozen=True)
class Study:
    """A study as asked; see the module. Raises `UserError` for whatever cannot be meant, naming it."""

    name: str
    products: tuple[Product, ...]
    question: str = "Which solver, at how many network calls?"
    samples: int = 1000
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("frechet",)
    shown: int = 14  # images of each line that the page shows
    extras: bool = False  # round trips and interpolation beside the sweep
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.+ -]+", self.name) or not self.name.strip(". "):
            raise UserError(f"a study's name is letters, numbers, '-', '_', '.', not {self.name!r}: it names a folder.")
        if not self.products:
            raise UserError(f"{self.name}: a study needs at least one [[cells]] table, with solvers = [...] and calls = [...].")
        _whole(self.name, "samples", self.samples, 2)
        _whole(self.name, "shown", self.shown, 0)
        for seed in self.seeds:
            _whole(self.name, "seeds", seed, 0)
        for calls in (c for p in self.products for c in p.calls):
            _whole(self.name, "calls", calls, 1)
        for tolerance in (t for p in self.products for t in p.tolerances):
            _above(self.name, "tolerances", tolerance)
        if not isinstance(self.question, str) or not isinstance(self.extras, bool):
            raise UserError(f"{self.name}: question is a text and extras is true or false, not {self.question!r} and {self.extras!r}.")
        for metric in self.metrics:
            choose("metric", metric.partition("@")[0], METRICS)
        for what, given in (("seeds", self.seeds), ("metrics", self.metrics)):
            if not given or len(set(given)) < len(given):
                raise UserError(f"{self.name}: {what} = {list(given)} must be at least one, and none twice.")
        self.cells()
        self._check_reference()

    def cells(self) -> list[Cell]:
        """Every cell, in the order in which they run. `UserError` for one that is there twice."""
        found: dict[Cell, int] = {}
        for number, part in enumerate(self.products, 1):
            made = part.cells(self.seeds, self.samples)
            if not made:
                raise UserError(f"{self.name}: [[cells]] number {number} has solvers, but no budget for them: give calls = [...].")
            for cell in made:
                if cell in found:
                    where = f"twice in [[cells]] number {number}" if found[cell] == number else f"in [[cells]] {found[cell]} and {number}"
                    raise UserError(f"{self.name}: the cell ({cell}) is {where}: take it out of one.")
                found[cell] = number
        return list(found)

    def references(self) -> list[Cell]:
        """The converged flow of each guidance that has one, and seed; none if the study wants none."""
        if self.reference.get("none", False):
            return []
        solver = named(self.reference.get("solver", "RungeKutta('rk4', Angle())"), DELEGATES)
        grid = from_repr(self.reference.get("grid", "LogSNR()"), {made.__name__: made for made in GRIDS}, "grid")
        tolerance = self.reference.get("tolerance")
        adaptive = tolerance is not None or (isinstance(solver, Delegate) and solver.adaptive)
        calls = None if adaptive else self.reference.get("calls", 200)
        leanings = dict.fromkeys(c.guidance for c in self.cells() if not isinstance(c.guidance, CFGPlusPlus))  # which has no flow
        return [Cell(solver, grid, calls, tolerance, g, seed, self.samples) for g in leanings for seed in self.seeds]

    def _check_reference(self) -> None:
        tolerance, none = self.reference.get("tolerance"), self.reference.get("none", False)
        if not isinstance(none, bool):
            raise UserError(f"{self.name}: [reference] none = true, or leave it out, not {none!r}.")
        _whole(self.name, "[reference] calls", self.reference.get("calls", 200), 1)
        if tolerance is not None:
            _above(self.name, "[reference] tolerance", tolerance)
        for cell in self.references():
            if cell.stochastic:
                raise UserError(f"{self.name}: [reference] {cell.solver!r} draws noise: the converged flow takes a solver that does not.")
            if tolerance is not None and not (isinstance(cell.solver, Solver) and cell.solver.embedded):
                raise UserError(f"{self.name}: [reference] {cell.solver!r} takes no tolerance: give calls = 200, or another solver.")

    def text(self) -> str:
        """The study as TOML."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("products", *SECTIONS)}
        lines = [f"{k} = {toml_value(v)}" for k, v in plain.items()]
        for section in SECTIONS:
            given = getattr(self, section)
            lines += ["", f"[{section}]", *(f"{k} = {toml_value(v)}" for k, v in given.items())] if given else []
        for part in self.products:
            lines += ["", "[[cells]]"]
            lines += [f"{f.name} = {toml_value(getattr(part, f.name))}" for f in fields(part) if getattr(part, f.name)]
        return "\n".join(lines) + "\n"


SECTIONS = ("model", "data", "features", "reference")
KEYS = {
    "model": ("checkpoint", "train", "labels", "classifier"),
    "data": ("name", "path", "split", "size", "channels", "labels", "on_error", "verify", "references"),
    "features": ("extractor", "weights", "size", "statistics"),
    "reference": ("solver", "grid", "calls", "tolerance", "none"),
}
TEXTS = ("checkpoint", "train", "classifier", "name", "path", "extractor", "weights", "statistics", "solver", "grid")


def shipped() -> dict[str, str]:
    """The studies in the package: names, and what each asks."""
    return {path.stem: read_toml(path, ()).get("question", "") for path in sorted(CONFIGS.glob("*.toml"))}


def read_study(config: str | Path, changes: Sequence[str] = ()) -> Study:
    """The study of a shipped config's name or of a TOML file; changes: texts "section.key=value".

    `UserError` for keys that do not exist and values that cannot be meant.
    """
    path = Path(config)
    if path.suffix != ".toml":
        choose("config", str(config), shipped())
        path = CONFIGS / f"{config}.toml"
    given = read_toml(path, list(shipped()))
    for change in changes:
        change_key(given, change, SECTIONS, "features.weights=PATH")
    return study_of(given, path.name)


def study_of(given: Mapping[str, Any], where: str = "the study") -> Study:
    """The study that a TOML file's contents describe."""
    plain = [f.name for f in fields(Study) if f.name not in ("products", *SECTIONS)]
    known_keys(where, "", given, [*plain, *SECTIONS, "cells"])
    options: dict[str, Any] = {"name": Path(where).stem, **{k: given[k] for k in plain if k in given}}
    for section in SECTIONS:
        if section in given:
            if not isinstance(given[section], Mapping):
                raise UserError(f"{where}: {section} is a section: write [{section}] and its keys below.")
            known_keys(where, section, given[section], KEYS[section])
            for key, value in given[section].items():
                if not isinstance(value, str) and (key in TEXTS or (section, key) == ("model", "labels")):
                    raise UserError(f"{where}: [{section}] {key} is a text, in quotes, not {value!r}.")
            options[section] = dict(given[section])
    for name in ("seeds", "metrics"):
        if name in options:
            options[name] = _list(where, name, options[name])
    tables = given.get("cells", [])
    if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
        raise UserError(f"{where}: cells are tables of their own: write [[cells]], with two brackets, and their keys below.")
    return Study(products=tuple(_product(where, table) for table in tables), **options)


def _product(where: str, table: Mapping[str, Any]) -> Product:
    known = [f.name for f in fields(Product)]
    known_keys(where, "cells", table, known)
    if "solvers" not in table:
        raise UserError(f'{where}: a [[cells]] table has no solvers = [...]: name at least one, e.g. "DDIM()".')
    made = Product(**{k: _list(where, k, v) for k, v in table.items()})
    if not made.solvers:
        raise UserError(f'{where}: solvers = [] names none: name at least one, e.g. "DDIM()".')
    return made


def changed(
    study: Study,
    *,
    name: str | None = None,
    solvers: Sequence[str] | None = None,
    calls: Sequence[int] | None = None,
    tolerances: Sequence[float] | None = None,
    grids: Sequence[str] | None = None,
    guidance: Sequence[str] | None = None,
    samples: int | None = None,
    seeds: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    checkpoint: str | None = None,
) -> Study:
    """The study with other settings; None leaves one as it is. Solvers and budgets that are named replace all [[cells]] by one."""
    products = study.products
    given = {"solvers": solvers, "calls": calls, "tolerances": tolerances, "grids": grids, "guidance": guidance}
    asked = {k: tuple(v) for k, v in given.items() if v is not None}
    if asked:
        stepped = [p for p in study.products if p.calls] or study.products  # whose grids mean something
        everything = {
            k: tuple(dict.fromkeys(x for p in (stepped if k == "grids" else study.products) for x in getattr(p, k))) for k in given
        }
        products = (Product(**{**everything, **asked}),)
        if solvers is not None and calls is not None and tolerances is None:
            products = (replace(products[0], tolerances=()),)
    model = study.model if checkpoint is None else {**{k: v for k, v in study.model.items() if k != "train"}, "checkpoint": checkpoint}
    plain = {"name": name, "samples": samples, "seeds": None if seeds is None else tuple(seeds)}
    plain |= {"metrics": None if metrics is None else tuple(metrics)}
    return replace(study, products=products, model=model, **{k: v for k, v in plain.items() if v is not None})


def quick(study: Study) -> Study:
    """The same in seconds: few samples, few calls, one seed. For trying things out; its numbers mean little."""
    least = tuple(sorted({c for p in study.products for c in p.calls})[:2])
    products = tuple(replace(p, calls=tuple(c for c in p.calls if c in least), tolerances=p.tolerances[:1]) for p in study.products)
    products = tuple(p for p in products if p.calls or p.tolerances)
    reference = study.reference if study.reference.get("none") else {**study.reference, "calls": 40}
    return replace(study, products=products, samples=min(study.samples, 64), seeds=study.seeds[:1], reference=reference, extras=False)


def _list(where: str, name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {name} is a list: write {name} = [{toml_value(value)}].")
    kinds: Any = {"calls": int, "seeds": int, "tolerances": (int, float)}.get(name, str)
    for one in value:
        if not isinstance(one, kinds) or isinstance(one, bool):
            raise UserError(f"{where}: {name} holds {'texts' if kinds is str else 'numbers'}, not {one!r}.")
    return tuple(value)


def _above(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{where}: {name} must be above 0, not {value!r}.")


def _whole(where: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{where}: {name} must be a whole number of at least {least}, not {value!r}.")
