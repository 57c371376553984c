"""What the records of a study say: lines with intervals, which of them are the best, which cannot be told apart, and the three errors.

A line is the cells that differ only in their seed. Two lines are compared sample by sample on the same latents, so what they share
cancels. "As good as the best" means: not significantly worse at 5 %; the interval of the difference says how much worse it might be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from ..metrics import Estimate, MetricError, mean_of
from ..names import UserError, label, nearest
from .cells import Cell, Study
from .findings import Against, Findings, Interval, Line, Sheet
from .judge import better, column, title
from .results import estimates
from .store import Record

LEVEL = 0.05
FLOW = "converged flow"


@dataclass(frozen=True, eq=False)
class Group:
    """A line's cells, one a seed: their records and estimates."""

    cell: Cell
    curve: str
    ids: tuple[str, ...]
    records: tuple[Record, ...]

    @cached_property
    def each(self) -> list[dict[str, Estimate]]:
        return [estimates(r) for r in self.records]

    def pooled(self, name: str) -> Estimate | None:
        """A measure's mean over the seeds; None where a seed lacks it."""
        found = [e[name] for e in self.each if name in e]
        return mean_of(found) if found and len(found) == len(self.each) else None

    @property
    def name(self) -> str:
        """What a person calls it: DDIM()@10."""
        return f"{self.curve}@{self.cell.budget}"

    @property
    def made(self) -> float:
        return float(np.mean([r.about["made"]["mean"] for r in self.records]))


def interval(e: Estimate) -> Interval:
    """Its value and 95 % interval."""
    return Interval(e.value, *e.interval())


def groups_of(cells: Sequence[tuple[Cell, str]], records: Mapping[str, Record]) -> list[Group]:
    """The finished lines among these (cell, id), in order."""
    found: dict[Cell, list[tuple[str, Record]]] = {}
    for cell, name in cells:
        record = records.get(name)
        if record is not None and record.failed is None:
            found.setdefault(replace(cell, seed=0), []).append((name, record))
    grids = {(c.grid if c.calls is not None else None) for c, _ in cells}
    leanings = {c.guidance for c, _ in cells}
    lines = []
    for cell, parts in found.items():
        more = [label(cell.grid)] if len(grids - {None}) > 1 and cell.grid is not None and cell.calls is not None else []
        more += [label(cell.guidance) if cell.guidance is not None else "no guidance"] if len(leanings) > 1 else []
        lines.append(Group(cell, ", ".join([cell.curve, *more]), tuple(n for n, _ in parts), tuple(r for _, r in parts)))
    return lines


def difference(a: Group, b: Group, name: str) -> Estimate:
    """a - b in a measure, sample by sample on the seeds that both have. `UserError` where they have none in common."""
    seeds = {r.about["seed"]: e for r, e in zip(b.records, b.each, strict=True)}
    pairs = [(e, seeds[r.about["seed"]]) for r, e in zip(a.records, a.each, strict=True) if r.about["seed"] in seeds]
    if not pairs or any(name not in e for pair in pairs for e in pair):
        raise UserError(f"{a.name} and {b.name} have no seed in common in which {name!r} was measured: nothing to compare.")
    try:
        return mean_of([x[name] - y[name] for x, y in pairs])
    except MetricError as wrong:
        raise UserError(f"{a.name} and {b.name}: {wrong}") from None


def comparable(a: Group, b: Group, name: str) -> bool:
    """Whether they have a seed in common in which it was measured."""
    return bool({r.about["seed"] for r in a.records} & {r.about["seed"] for r in b.records}) and all(
        name in e for g in (a, b) for e in g.each
    )


def against(a: Group, b: Group, name: str) -> Against:
    """`difference` with its interval and p."""
    found = difference(a, b, name)
    return Against(interval(found), found.p_value)


def worse(a: Group, b: Group, name: str) -> bool:
    """Whether a is significantly worse than b, as far as they can be compared."""
    if not comparable(a, b, name):
        return False
    found = difference(a, b, name)
    return _sign(name) * found.value > 0 and found.p_value < LEVEL


def best_of(lines: Sequence[Group], name: str) -> int:
    """The number of the line with the best value."""
    values = [_sign(name) * _value(g, name) for g in lines]
    return int(np.nanargmin(values))


def front_of(lines: Sequence[Group], name: str) -> list[int]:
    """From cheap to good: each significantly better than the one before, and the best of its cost."""
    order = sorted(range(len(lines)), key=lambda i: (lines[i].made, _sign(name) * _value(lines[i], name)))
    front: list[int] = []
    for i in order:
        if not front or worse(lines[front[-1]], lines[i], name):
            front.append(i)
    return front


def _sign(name: str) -> int:
    """Of a measure such that less is better."""
    return 1 if better(name) == "low" else -1


def _value(group: Group, name: str) -> float:
    found = group.pooled(name)
    return float("nan") if found is None else found.value


def ties(lines: Sequence[Group], name: str) -> tuple[int, int]:
    """(how many pairs of lines differ significantly, how many pairs there are)."""
    pairs = [(a, b) for a, b in combinations(lines, 2) if comparable(a, b, name)]
    return sum(difference(a, b, name).p_value < LEVEL for a, b in pairs), len(pairs)


# --- for the page -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """A study's records: (cell, id) of cells and of converged flows, all records by id, that of the real images, that of the extras."""

    study: Study
    cells: Sequence[tuple[Cell, str]]
    flows: Sequence[tuple[Cell, str]]
    records: Mapping[str, Record]
    real: Record | None
    extras: Record | None = None


def findings_of(found: Gathered, command: str, folder: str) -> Findings:
    """All that the page shows. `UserError` while no cell is finished."""
    study, name = found.study, column(found.study.metrics[0])
    lines = groups_of(found.cells, found.records)
    failed = _failed(found)
    if not lines and failed:
        raise UserError(f"{folder}: all that ran failed, first ({failed[0][0]}): {failed[0][1]}")
    if not lines:
        raise UserError(f"{folder}: no cell of the study is finished yet: `sdediff study run` runs them.")
    flows = groups_of(found.flows, found.records)
    plain = [g for g in flows if g.cell.guidance is None] or flows
    noise = floor_of(found.real)
    top, front = best_of(lines, name), front_of(lines, name)
    shown = [_line(study, g, lines[top] if i != top else None, name) for i, g in enumerate(lines)]
    reference = _line(study, plain[0], None, name) if plain else None
    metrics = [column(m) for m in study.metrics]
    titles = {column(m): title(m) for m in study.metrics} | {"error": "RMS distance to the converged flow, pixels in [-1, 1]"}
    return Findings(
        name=study.name,
        question=study.question,
        answer=answer(study, lines, plain[0] if plain else None, noise, top, name, found.real),
        metric=name,
        titles=titles,
        better={m: better(m) for m in (*metrics, "error")},
        lines=shown,
        reference=reference,
        noise=noise,
        front=front,
        sheets=[s for s in (*map(_sheet, lines), *(_sheet(g, FLOW) for g in plain[:1])) if s is not None],
        real=_pictures(found.real),
        failed=failed,
        settings=study.text(),
        command=command,
        about=_about(found),
        tables=_tables(lines, name),
    )


def _failed(found: Gathered) -> list[tuple[str, str]]:
    """(what, why) of all that failed."""
    asked = [(f"converged flow: {c}", found.records.get(i)) for c, i in found.flows]
    asked += [(str(c), found.records.get(i)) for c, i in found.cells]
    asked = [("the real images", found.real), *asked, ("round trips and interpolation", found.extras)]
    return [(what, r.failed) for what, r in asked if r is not None and r.failed is not None]


def _line(study: Study, group: Group, best: Group | None, name: str) -> Line:
    cell, about = group.cell, [r.about for r in group.records]
    measures = {m: e for m in (*map(column, study.metrics), "error") if (e := group.pooled(m)) is not None}
    seconds = [a["costs"]["seconds"] for a in about]
    return Line(
        curve=group.curve,
        solver=about[0]["solver"],
        grid=about[0]["grid"] or "",
        guidance=about[0]["guidance"],
        calls=cell.calls,
        made=group.made,
        fewest=min(a["made"]["fewest"] for a in about),
        most=max(a["made"]["most"] for a in about),
        seeds=len(about),
        samples=cell.samples,
        stochastic=cell.stochastic,
        measures={k: interval(e) for k, e in measures.items()},
        seconds=float(np.mean(seconds)),
        network=float(np.average([a["costs"]["network"] for a in about], weights=seconds)),
        memory=max(a["costs"]["memory"] for a in about),
        against=None if best is None or not comparable(group, best, name) else against(group, best, name),
        good=best is None or not worse(group, best, name),
    )


def floor_of(real: Record | None) -> dict[str, Interval]:
    """Where as many real images are, by metric: the mean over the splits, and 1.96 of their standard deviations each way."""
    if real is None:
        return {}
    found = {}
    for key, values in real.tensors.items():
        if key.startswith("floor."):
            mean, spread = float(values.mean()), 1.96 * float(values.std())
            found[key.removeprefix("floor.")] = Interval(mean, mean - spread, mean + spread)
    return found


def answer(
    study: Study, lines: Sequence[Group], flow: Group | None, noise: Mapping[str, Interval], top: int, name: str, real: Record | None
) -> list[str]:
    """The answer in three sentences: the cheapest line as good as the best; the three errors apart; how many pairs differ."""
    best = lines[top]
    good = [g for g in lines if g is best or not worse(g, best, name)]
    cheap = min(good, key=lambda g: (g.made, _value(g, name)))
    told = [_cheapest(cheap, best, name, study)]
    parts = []
    if flow is not None and (e := flow.pooled(name)) is not None:
        parts.append(f"the converged flow scores {_shown(e)}: that is the model's own error")
    if name in noise:
        parts.append(
            f"{real.about['floor'] if real else 0} real ones score {noise[name].value:.3g} "
            f"[{noise[name].low:.3g}, {noise[name].high:.3g}]: the metric's noise"
        )
    if flow is not None and not cheap.cell.stochastic and (e := cheap.pooled("error")) is not None:
        parts.append(f"{cheap.name} is {e.value:.2g} a pixel from that flow: the solver's error")
    if parts:
        told.append("Three errors apart: " + "; ".join(parts) + ".")
    apart, pairs = ties(lines, name)
    told.append(
        f"Of {pairs} pairs of lines {apart} differ significantly (5 %, pair by pair); with {study.samples * len(study.seeds)} samples "
        f"{len(good)} of {len(lines)} lines cannot be told from the best."
    )
    return told


def _cheapest(cheap: Group, best: Group, name: str, study: Study) -> str:
    e, b = cheap.pooled(name), best.pooled(name)
    assert e is not None
    assert b is not None
    what = title(study.metrics[0])
    if cheap is best:
        return f"The best is {best.name} with {_calls(best)} network calls: {what} {_shown(b)}, and nothing cheaper is as good."
    found = against(cheap, best, name)
    return (
        f"The fewest calls that are as good as the best: {cheap.name}, {_calls(cheap)} network calls, {what} {_shown(e)}; the best is "
        f"{best.name} with {_calls(best)} calls, {_shown(b)} (difference {found.difference.value:.2g} "
        f"[{found.difference.low:.2g}, {found.difference.high:.2g}], p = {found.p:.2g})."
    )


def _calls(group: Group) -> str:
    return f"{group.made:.3g}" if group.made < 100 else f"{group.made:.0f}"


def _shown(e: Estimate) -> str:
    return _span(interval(e))


def _span(found: Interval) -> str:
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _sheet(group: Group, name: str | None = None) -> Sheet | None:
    pictures = _pictures(group.records[0])
    return None if pictures is None else Sheet(name or group.curve, group.cell.calls or round(group.made), pictures)


def _pictures(record: Record | None) -> np.ndarray | None:
    return None if record is None or "images" not in record.tensors else record.tensors["images"].numpy()


def _tables(lines: Sequence[Group], name: str) -> list[tuple[str, str, list[dict[str, Any]]]]:
    found = consistency(lines)
    if not found:
        return []
    sentence = (
        "Runs of few calls against the longest of the same curve from the same latents: the share of samples with the same classifier "
        "label, and the RMS distance of features. A deterministic solver keeps the content of a latent."
    )
    return [("Consistency", sentence, found)]


def consistency(lines: Sequence[Group]) -> list[dict[str, Any]]:
    """Of each curve, few calls against the longest run: the share of equal labels, and the RMS distance of features."""
    table = []
    for curve in dict.fromkeys(g.curve for g in lines):
        runs = {g.cell.calls: g for g in lines if g.curve == curve and g.cell.calls is not None}
        longest = max(runs, default=0)
        for calls in sorted(c for c in runs if c < longest):
            one, other = runs[calls].records[0].tensors, runs[longest].records[0].tensors
            if "labels" not in one:
                continue
            off = (one["features"] - other["features"]).double().square().sum(1).mean().sqrt()
            same = float((one["labels"] == other["labels"]).double().mean())
            table.append({"curve": curve, "calls": calls, "against": longest, "same_label": same, "feature_distance": float(off)})
    return table


def _about(found: Gathered) -> dict[str, str]:
    some = next(iter(found.records.values())).about
    told = {k: str(v) for k, v in some.get("versions", {}).items()}
    for key in ("weights", "data", "references", "extractors", "statistics", "labels"):
        if some.get(key) not in (None, {}):
            told[key] = some[key] if isinstance(some[key], str) else json.dumps(some[key])
    unsure = [r.about["unsure"] for _, i in found.flows if (r := found.records.get(i)) and r.about.get("unsure") is not None]
    if unsure:
        told["converged flow moves, with half its calls, by"] = f"{max(unsure):.2g} a pixel"
    return told


# --- A against B ------------------------------------------------------------------------------------------------------


def chosen(lines: Sequence[Group], text: str) -> Group:
    """The line that a text names: as `DDIM()@10`, its curve where there is one line of it, or the begin of a cell's id."""
    wanted = text.replace(" ", "").replace('"', "'")
    for g in lines:
        solver = g.records[0].about["solver"].replace(" ", "")
        if wanted in (g.name.replace(" ", ""), f"{solver}@{g.cell.budget}") or any(len(text) > 3 and i.startswith(text) for i in g.ids):
            return g
    same = [g for g in lines if wanted == g.curve.replace(" ", "")]
    if len(same) == 1:
        return same[0]
    names = [g.name for g in lines]
    raise UserError(f"no line is called {text!r}.{nearest(text, names)} There are: {', '.join(names)}.")


def verdict(a: Group, b: Group, name: str, what: str) -> str:
    """ "A beats B by d [low, high], p = ..." or "a tie"."""
    found = against(a, b, name)
    d, sign = found.difference, -_sign(name)
    values = f"{_shown_or(a, name)} against {_shown_or(b, name)}"
    if found.p >= LEVEL:
        return f"A tie in {what}: {a.name} and {b.name} differ by {_span(d)}, p = {found.p:.2g} ({values})."
    first, second = (a, b) if sign * d.value > 0 else (b, a)
    low, high = sorted((abs(d.low), abs(d.high)))
    p = f"p = {found.p:.2g}" if found.p > 1e-300 else "p < 1e-300"
    return f"{first.name} beats {second.name} in {what} by {abs(d.value):.3g} [{low:.3g}, {high:.3g}], {p} ({values})."


def _shown_or(group: Group, name: str) -> str:
    e = group.pooled(name)
    return "nothing" if e is None else _shown(e)
