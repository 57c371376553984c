"""The results of a study as tables: a line for each cell and seed, metrics with their 95 % intervals. The schema is in docs/study.md.

results.csv has nothing in it that depends on the clock, so it is the same file, to the byte, for any number of processes and interruptions;
seconds, memory and devices are in costs.csv.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import Estimate
from .cells import Study
from .judge import column
from .store import Record, Store

PLAIN = ("cell", "kind", "curve", "solver", "grid", "guidance", "calls_asked", "tolerance", "seed", "samples", "stochastic", "status")
MADE = ("calls_made", "calls_fewest", "calls_most")
ERRORS = ("error", "error_low", "error_high", "error_median", "error_q90")
COSTS = ("cell", "seconds", "network", "memory", "device", "threads")


def estimates(record: Record) -> dict[str, Estimate]:
    """Every metric of a finished cell with its influences, and "error", the root mean square distance to the converged flow."""
    found = {}
    for name, value in record.about["metrics_of"].items():
        halves = record.tensors.get(f"{name}.halves")
        influence, scale = record.tensors[f"{name}.influence"].numpy(), record.about["scales"][name]
        found[name] = Estimate(value, influence, None if halves is None else halves.numpy(), scale=scale)
    if "error" in record.tensors:
        found["error"] = root_mean_square(record.tensors["error"].numpy())
    return found


def root_mean_square(values: np.ndarray) -> Estimate:
    """The root mean square of samples (n,), with their influences."""
    square = np.square(values.astype(np.float64))
    root = float(np.sqrt(square.mean()))
    return Estimate(root, (square - square.mean()) / (2 * root) if root else np.zeros(len(square)))


def row(study: Study, cell: str, record: Record) -> dict[str, Any]:
    """The line of a cell in results.csv."""
    about = record.about
    told = {
        **{k: about.get(k) for k in PLAIN},
        "cell": cell,
        "calls_asked": about.get("calls"),
        "stochastic": bool(about.get("stochastic")),
    }
    made = about.get("made", {})
    told |= {"calls_made": made.get("mean"), "calls_fewest": made.get("fewest"), "calls_most": made.get("most")}
    found = {} if record.failed is not None else estimates(record)
    for name in (*map(column, study.metrics), "error"):
        e = found.get(name)
        low, high = (None, None) if e is None else e.interval()
        told |= {name: None if e is None else e.value, f"{name}_low": low, f"{name}_high": high}
    if "error" in found:
        each = record.tensors["error"].numpy()
        told |= {"error_median": float(np.median(each)), "error_q90": float(np.quantile(each, 0.9))}
    else:
        told |= {"error_median": None, "error_q90": None}
    return {**told, "note": about.get("note", ""), "reason": record.failed or ""}


def costs(cell: str, record: Record) -> dict[str, Any]:
    """The line of a cell in costs.csv."""
    return {"cell": cell, **{k: record.about.get("costs", {}).get(k) for k in COSTS[1:]}}


Lines = tuple[dict[str, Any], dict[str, Any]]  # of a cell, in the two files


def lines_of(study: Study, cell: str, record: Record) -> Lines:
    """The lines of a cell in results.csv and costs.csv."""
    return row(study, cell, record), costs(cell, record)


def write_results(store: Store, lines: Sequence[Lines]) -> None:
    """Write results.csv and costs.csv of cells that are over, in this order."""
    store.write_text("results.csv", _csv([one for one, _ in lines]))
    store.write_text("costs.csv", _csv([other for _, other in lines]))


def frame(folder: str | Path) -> Any:
    """results.csv and costs.csv of a study's folder as one pandas frame."""
    import pandas as pd

    folder = Path(folder)
    return pd.read_csv(folder / "results.csv").merge(pd.read_csv(folder / "costs.csv"), on="cell", how="left")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["cell"], lineterminator="\n")
    writer.writeheader()
    for one in rows:
        writer.writerow({k: repr(float(v)) if isinstance(v, float) else v for k, v in one.items()})
    return text.getvalue()


def warn_of_versions(found: Mapping[str, Record]) -> None:
    """Warn where records were made by different versions of what computes."""
    seen = {tuple(sorted(r.about.get("versions", {}).items())) for r in found.values()}
    if len(seen) > 1:
        warnings.warn(
            f"the records of this study were made by {len(seen)} different sets of versions: see `versions` in them.", stacklevel=2
        )
