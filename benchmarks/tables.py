"""The tables of a finished study as Markdown, for the docs:

python benchmarks/tables.py docs/results/digits.csv [METRIC ...]
"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

ALWAYS = ("frechet", "frechet_pixels", "error")


def markdown(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a title and a Markdown table."""
    if not rows:
        return
    print(f"\n{title}\n")
    print("| " + " | ".join(str(k).replace("_", " ") for k in rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        first, *rest = row.values()
        print(f"| `{first}` | " + " | ".join(str(v) for v in rest) + " |")


def by_calls(frame: Any, metric: str, bare: bool = False) -> list[dict[str, Any]]:
    """A line for each curve and grid, a column for each number of calls asked: the value and its 95 % interval, seed by seed."""
    fixed = frame[frame["calls_asked"].notna() & (frame["kind"] == "cell")]
    budgets = sorted(fixed["calls_asked"].unique())
    several = fixed["grid"].nunique() > 1
    table = []
    for (curve, grid), part in fixed.groupby(["curve", "grid"], sort=False, dropna=False):
        found = {c: part[part["calls_asked"] == c] for c in budgets}
        name = f"{curve}, {grid}" if several and isinstance(grid, str) else curve
        table.append(
            {"solver": name} | {f"{c:g}": "; ".join(shown(r, metric, bare) for _, r in rows.iterrows()) for c, rows in found.items()}
        )
    return table


def shown(row: Any, metric: str, bare: bool = False) -> str:
    """A value and its interval."""
    value = f"{row[metric]:.3g}"
    return value if bare else f"{value} [{row[f'{metric}_low']:.3g}, {row[f'{metric}_high']:.3g}]"


def main() -> None:
    """Read results.csv and print its tables."""
    frame: Any = pd.read_csv(sys.argv[1])
    for metric in [m for m in (*ALWAYS, *sys.argv[2:]) if m in frame]:
        plain = frame[~frame["stochastic"]] if metric == "error" else frame
        markdown(f"{metric} [95 %]", by_calls(plain, metric, bare=metric == "error"))
        flow = frame[frame["kind"] == "flow"]
        if metric != "error":
            print("\nconverged flow: " + "; ".join(shown(r, metric) for _, r in flow.iterrows()))
    free = frame[frame["calls_asked"].isna() & (frame["kind"] == "cell")]
    columns = ["calls_made", "calls_fewest", "calls_most", *[m for m in ALWAYS if m in frame]]
    markdown(
        "solvers that choose their own steps", [{"solver": r["solver"]} | {c: f"{r[c]:.4g}" for c in columns} for _, r in free.iterrows()]
    )


if __name__ == "__main__":
    main()
