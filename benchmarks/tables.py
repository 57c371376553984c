"""The tables of a finished study as Markdown, for the docs:

python benchmarks/tables.py docs/results/digits.csv
"""

from __future__ import annotations

import sys

import pandas as pd

from sdediff.study import Results, Row, adaptive, by_calls
from sdediff.study.report import show


def markdown(title: str, rows: list[dict]) -> None:
    """Print a title and a Markdown table."""
    print(f"\n{title}\n")
    print("| " + " | ".join(str(k).replace("_", " ") for k in rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        first, *rest = (show(v) for v in row.values())
        print(f"| `{first}` | " + " | ".join(rest) + " |")


def main() -> None:
    """Read results.csv and print its tables."""
    frame = pd.read_csv(sys.argv[1])
    frame = frame.astype({"calls_asked": object}).where(frame.notna(), None)
    results = Results([Row(**{str(k): v for k, v in r.items()}) for r in frame.to_dict("records")])
    markdown("Frechet distance in features", by_calls(results))
    markdown("Frechet distance in pixels", by_calls(results, "frechet_pixels"))
    markdown("RMS error against the converged flow", by_calls(results, "error", spread=False))
    markdown("Adaptive solvers", adaptive(results))


if __name__ == "__main__":
    main()
