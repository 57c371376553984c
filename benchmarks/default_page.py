"""What `default.py` measured, as tables and pictures: the recommended rule beside every fixed pair, and the ring beside published code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sdediff.names import label
from sdediff.solvers import named

FEW = (5, 8, 12, 20, 40)  # calls at which all pairs were measured on every problem
NETWORKS = ("digits network", "mnist network")
MEASURES = ("rms", "median", "p90")


def read(files: Sequence[str]) -> Any:
    """The rows of all files, once each, with the ratio of each measure to the best of all published pairs at that number of calls."""
    rows: Any = pd.concat([pd.read_csv(f) for f in files]).drop_duplicates(
        ["problem", "role", "solver", "grid", "lower", "nfe"], keep="last"
    )
    best = rows[rows.role == "published"].groupby(["problem", "nfe"])[list(MEASURES)].min()
    rows = rows.merge(best.add_suffix("_best"), left_on=["problem", "nfe"], right_index=True)
    for m in MEASURES:
        rows[f"{m}_ratio"] = rows[m] / rows[f"{m}_best"]
    return rows


def geometric(x: Any) -> float:
    return float(np.exp(np.log(x).mean()))


def recommended(rows: Any) -> pd.DataFrame:
    """A line a problem: the geometric means of the recommended rule's ratios over all numbers of calls, and of the best fixed pair's."""
    lines = []
    for problem, of in rows.groupby("problem", sort=False):
        ours, pairs = of[of.role == "recommended"], of[of.role == "published"]
        each = pairs.groupby(["solver", "grid", "lower"])["median_ratio"]
        fixed = each.agg(geometric)[each.size() == each.size().max()].min()
        lines.append({"problem": problem, "calls": len(ours), **{m: geometric(ours[f"{m}_ratio"]) for m in MEASURES}, "fixed pair": fixed})
    return pd.DataFrame(lines)


def over_all(rows: Any) -> Any:
    """A line a fixed pair: the geometric mean of its median errors' ratios on the oracles, on each network, and the oracles' worst."""
    rows = rows[rows.nfe.isin(FEW)].copy()
    rows.loc[rows.role == "recommended", ["solver", "grid", "lower"]] = ["recommended", "", 0]  # they change with the calls: one line
    each = rows.groupby(["role", "solver", "grid", "lower", "problem"])["median_ratio"]
    per = each.agg(geometric)[each.size() == len(FEW)].unstack()
    oracles = per[[p for p in per.columns if p not in NETWORKS and not p.startswith("held-out")]].dropna()  # pairs measured on all of them
    found: Any = pd.DataFrame({"oracles": np.exp(np.log(oracles).mean(axis=1)), "worst oracle": oracles.max(axis=1)})
    for n in NETWORKS:
        found[n] = per.get(n)
    return found.reset_index()


def front(pairs: Any, network: str) -> Any:
    """The pairs that no other beats on the oracles and on the network at once."""
    kept, least = [], np.inf
    for row in pairs.dropna(subset=[network]).sort_values(["oracles", network]).to_dict("records"):
        if row[network] < least:
            kept, least = [*kept, row], row[network]
    return pd.DataFrame(kept)


def named_pair(row: Any) -> str:
    if row["role"] == "recommended":
        return "**recommended**"
    return f"`{label(named(row['solver']))}` on `{row['grid']}`{', lower order at the end' if row['lower'] else ''}"


def markdown(lines: Sequence[Any]) -> str:
    """A Markdown table, numbers to two decimals."""
    shown = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in line.values()] for line in lines]
    head = ["| " + " | ".join(lines[0]) + " |", "|" + "---|" * len(lines[0])]
    return "\n".join([*head, *("| " + " | ".join(cells) + " |" for cells in shown)])


def picture(pairs: Any, path: Path) -> None:
    """Every fixed pair and the recommended rule: oracles against each network."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    colours = {"published": "0.7", "rule": "tab:blue", "recommended": "tab:red"}
    names = {"published": "published pairs", "rule": "exponential Adams, fixed", "recommended": "recommended"}
    for axes, network in zip(figure.subplots(1, 2, sharex=True), NETWORKS, strict=True):
        for role, of in pairs.dropna(subset=[network]).groupby("role"):
            star = role == "recommended"
            axes.scatter(of.oracles, of[network], s=160 if star else 12, marker="*" if star else "o", color=colours[role],
                         label=names[role], zorder=3 if star else 2, alpha=1 if star else 0.6, lw=0)  # fmt: skip
        edge = front(pairs[pairs.role != "recommended"], network)
        axes.plot(edge.oracles, edge[network], color="black", lw=0.8, zorder=1, label="what no fixed pair beats")
        axes.axhline(1.9, color="0.5", ls=":", lw=1)
        axes.axvline(1.9, color="0.5", ls=":", lw=1)
        axes.set(xscale="log", yscale="log", xlim=(0.9, 40), ylim=(0.6, 100), xlabel="12 oracles: error / best published pair at the calls",
                 title=network)  # fmt: skip
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("network: the same ratio")
    figure.axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def report(files: Sequence[str], results: Path, images: Path) -> str:
    """Write docs/results/default*.csv and the picture; return the tables of docs/default.md."""
    rows, pairs = read(files), over_all(read(files))
    ours = rows[rows.role == "recommended"].sort_values(["problem", "nfe"])
    columns = ["problem", "nfe", "solver", "grid", "lower", "flips", *(c for m in MEASURES for c in (m, f"{m}_best", f"{m}_ratio"))]
    ours[columns].to_csv(results / "default.csv", index=False, float_format="%.6g", lineterminator="\n")
    pairs.to_csv(results / "default_pairs.csv", index=False, float_format="%.3g", lineterminator="\n")
    picture(pairs, images / "default.png")
    parts = [markdown(recommended(rows).to_dict("records"))]
    for network in NETWORKS:
        edge = front(pairs, network)
        lines = [{"pair": named_pair(r), "oracles": float(r["oracles"]), network: float(r[network])} for _, r in edge.iterrows()]
        parts.append(f"What no other pair beats, oracles and {network}:\n\n{markdown(lines)}")
    return "\n\n".join(parts)
