"""The tables of a study, as lists of dictionaries with the same keys: for the terminal, the page, and scripts."""

from __future__ import annotations

from typing import Any

import torch

from .problem import Problem
from .sweep import Results


def by_calls(results: Results, column: str = "frechet", spread: bool = True) -> list[dict[str, Any]]:
    """A line for each fixed-step solver, a column for each number of calls asked: the mean, and with `spread` ± std, over seeds."""
    frame = results.frame()
    fixed = frame[frame["calls_asked"].notna()]
    budgets = sorted(int(c) for c in fixed["calls_asked"].unique())
    table = []
    for curve, part in fixed.groupby("curve", sort=False):
        values = {calls: part[part["calls_asked"] == calls][column] for calls in budgets}
        table.append({"solver": curve} | {str(calls): _shown(v, spread) if len(v) else "" for calls, v in values.items()})
    return table


def adaptive(results: Results) -> list[dict[str, Any]]:
    """A line for each adaptive solver and tolerance: calls made, distances and error, means over seeds."""
    frame = results.frame()
    chosen = frame[frame["calls_asked"].isna()]
    columns = ["calls_made", "frechet", "frechet_pixels", "error"]
    return [{"solver": s} | {c: float(part[c].mean()) for c in columns} for s, part in chosen.groupby("solver", sort=False)]


@torch.no_grad()
def consistency(problem: Problem, results: Results, curves: tuple[str, ...]) -> list[dict[str, Any]]:
    """S steps against the longest run from the same latents: the share of equal classifier labels, and the RMS feature distance.

    Empty for curves that were run at fewer than two numbers of calls.
    """
    table = []
    for curve in curves:
        runs = {calls: x for (name, calls), x in results.samples.items() if name == curve and calls}
        longest = max(runs, default=0)
        if len(runs) < 2:
            continue
        features, labels = problem.features_of(runs[longest]), problem.labels_of(runs[longest])
        for calls in sorted(c for c in runs if c < longest):
            off = (problem.features_of(runs[calls]) - features).square().sum(1).mean().sqrt()
            same = (problem.labels_of(runs[calls]) == labels).float().mean()
            table.append({"solver": curve, "calls": calls, "against": longest, "same_label": float(same), "feature_distance": float(off)})
    return table


def _shown(values: Any, spread: bool) -> str:
    mean = f"{values.mean():.3g}"
    return f"{mean} ± {values.std():.2g}" if spread and len(values) > 1 else mean
