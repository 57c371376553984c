"""A study's folder read again: its records in order, the page and pictures; and folders of several machines made one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..names import UserError
from .analysis import Gathered, findings_of
from .cells import read_study
from .extras import PAIRS, POINTS
from .figures import round_trip, sheet, static
from .findings import Findings
from .job import ORDER
from .page import write_page
from .results import lines_of, warn_of_versions, write_results
from .store import Record, Store


def open_folder(path: str | Path) -> Store:
    """The folder of a study that was begun. `UserError` if it is not one."""
    store = Store(Path(path))
    if store.text("study.toml") is None or store.text(ORDER) is None:
        raise UserError(f"{path} is not the folder of a study, there is no study.toml in it: `sdediff study run` makes one.")
    return store


def gathered(store: Store) -> Gathered:
    """The records of the study that was last asked in this folder. Those of other settings are left where they are."""
    study = read_study(store.folder / "study.toml")
    try:
        order = [(entry["kind"], entry["id"]) for entry in json.loads(store.text(ORDER) or "")]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{store.folder / ORDER} is damaged: run the study again, its records are kept.") from None
    ids = {kind: [i for k, i in order if k == kind] for kind in ("real", "flow", "cell", "extras")}
    records = {i: r for _, i in order if (r := store.record(i)) is not None}
    warn_of_versions(records)
    cells, flows = study.cells(), study.references()
    asked = [*zip(flows, ids["flow"], strict=False), *zip(cells, ids["cell"], strict=False)]
    other = any(records[i].about.get(k) != v for cell, i in asked if i in records for k, v in cell.about().items())
    if other or (len(cells), len(flows)) != (len(ids["cell"]), len(ids["flow"])):
        raise UserError(f"{store.folder}: study.toml was changed since the study ran: run it again, finished cells are kept.")
    real = records.get(ids["real"][0]) if ids["real"] else None
    extras = records.get(ids["extras"][0]) if ids["extras"] else None
    pairs = [list(zip(what, ids[kind], strict=True)) for what, kind in ((cells, "cell"), (flows, "flow"))]
    return Gathered(study, pairs[0], pairs[1], records, real, extras)


def write_report(folder: str | Path) -> Findings:
    """Write report.html and the pictures of all that is finished; what they show. `UserError` while nothing is."""
    store = open_folder(folder)
    found = gathered(store)
    command = f"sdediff study run {shlex.quote(str(store.folder))}"
    shown = findings_of(found, command, str(folder))
    if found.extras is not None and found.extras.failed is None:
        shown = replace(shown, tables=[*shown.tables, *_tables(found.extras)], pictures=_pictures(found.extras, store.folder))
    static(shown, store.folder)
    write_page(shown, store.folder / "report.html")
    return shown


def _tables(extras: Record) -> list[tuple[str, str, list[dict[str, Any]]]]:
    middle = (
        "Midpoints of pairs of latents, decoded by the converged flow: a straight line's midpoint is too short by the root of 2 and "
        "decodes worse; on the great circle (slerp) the norm is kept."
    )
    trips = "Real images encoded to latents and decoded again through the flow: the error of a pixel that is left."
    return [("Midpoints", middle, extras.about["midpoints"]), ("Round trips", trips, extras.about["round_trips"])]


def _pictures(extras: Record, folder: Path) -> list[tuple[str, str, bytes]]:
    """Drawn into the folder too."""
    trips = "Real images encoded and decoded again: the error that is left at each number of steps."
    round_trip(extras.about["round_trips"], folder / "round_trip.png")
    found = [("Round trips", trips, (folder / "round_trip.png").read_bytes())]
    if "paths" in extras.tensors:
        along = extras.tensors["paths"].permute(0, 3, 1, 2).float().div(127.5).sub(1).unflatten(0, (POINTS, PAIRS))
        rows = [("", along[:, i]) for i in range(PAIRS)]
        text = "Between two latents along the great circle, decoded by the converged flow: every point on the way is an image."
        sheet(rows, folder / "interpolation.png", columns=POINTS, title="Along the great circle between two latents")
        found.append(("Interpolation", text, (folder / "interpolation.png").read_bytes()))
    return found


def merge(folder: str | Path, parts: Sequence[str | Path]) -> tuple[int, int]:
    """Copy the records of the same study from other folders into one; (how many came in, how many were there).

    Nothing is taken away from any folder. `UserError` for folders of other studies, and where two have other results for one cell.
    """
    stores = [open_folder(p) for p in parts]
    target = Store(Path(folder))
    names = {str(s.folder): read_study(s.folder / "study.toml").name for s in stores}
    if target.text("study.toml") is not None:
        names[str(folder)] = read_study(target.folder / "study.toml").name
    if len(set(names.values())) > 1:
        told = ", ".join(f"{where} of {name!r}" for where, name in names.items())
        raise UserError(f"these are folders of different studies ({told}): merge those of one study.")
    came = had = 0
    for store in stores:
        for path in sorted((store.folder / "cells").glob("*.safetensors")):
            record, there = store.record(path.stem), target.record(path.stem)
            if record is None:
                continue
            if there is None or (there.failed is not None and record.failed is None):
                target.write_record(path.stem, record)
                came += 1
            else:
                _same(path.stem, there, record, store)
                had += 1
    if target.text("study.toml") is None:
        for name in ("study.toml", ORDER):
            target.write_text(name, stores[0].text(name) or "")
    found = gathered(target)
    over = [i for _, i in [*found.flows, *found.cells] if i in found.records]
    write_results(target, [lines_of(found.study, i, found.records[i]) for i in over])
    return came, had


def _same(cell: str, a: Record, b: Record, store: Store) -> None:
    """`UserError` if two records of one cell have other values; those of another machine may differ in the last digits."""
    if a.failed is not None or b.failed is not None:
        return
    for name, value in a.about.get("metrics_of", {}).items():
        other = b.about.get("metrics_of", {}).get(name)
        if other is None or not torch.isclose(torch.tensor(value), torch.tensor(other), rtol=1e-3, atol=1e-9):
            raise UserError(
                f"{store.folder} has another result for cell {cell} ({name}: {other} against {value}): these studies did not run the same "
                "code on the same weights. Keep them apart."
            )
