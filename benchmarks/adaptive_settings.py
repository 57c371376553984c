"""Why `PID` and `AdaptiveAdams` have the defaults they have: calls for an error, one setting changed at a time.

For each oracle, tolerances 10^-0.5 .. 10^-6 in half decades; the calls of a sample (mean) at which the median error over the samples is
1e-2, 1e-3, 1e-4, 1e-5, interpolated in logarithms; geometric means over the oracles, and the share of rejected steps.
Run: `python benchmarks/adaptive_settings.py [--samples 24]` (about 4 minutes on one core).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from default import ORACLES
from tables import markdown

from sdediff import PID, AdaptiveAdams, solve

NAMES = ("ring8", "ring8 std .03", "2d 6 modes", "2d std .01", "gaussian 8d", "16d", "64d", "2d cosine", "8d EDM")
TOLERANCES = [10 ** (-k / 2) for k in range(1, 13)]
ERRORS = (1e-2, 1e-3, 1e-4, 1e-5)
SETTINGS: dict[str, tuple[AdaptiveAdams, dict]] = {
    "defaults": (AdaptiveAdams(), {}),
    "clock='lam'": (AdaptiveAdams(), {"clock": "lam"}),
    "clock='angle'": (AdaptiveAdams(), {"clock": "angle"}),
    "safety=0.8": (AdaptiveAdams(), {"safety": 0.8}),
    "safety=0.6": (AdaptiveAdams(), {"safety": 0.6}),
    "PI, (0.4, 0.3, 0)": (AdaptiveAdams(), {"coefficients": (0.4, 0.3, 0.0)}),
    "PID, (0.3, 0.3, 0.05)": (AdaptiveAdams(), {"coefficients": (0.3, 0.3, 0.05)}),
    "data_std=0.5 in both": (AdaptiveAdams(data_std=0.5), {"data_std": 0.5}),
    "order 3": (AdaptiveAdams(3), {}),
    "order 4": (AdaptiveAdams(4), {}),
    "order 5": (AdaptiveAdams(5), {}),
    "order 8": (AdaptiveAdams(8), {}),
    "x0 in the angle": (AdaptiveAdams(predicts="x0"), {}),
    "x0 in lam": (AdaptiveAdams(predicts="x0", axis="lam"), {}),
    "flow in the angle": (AdaptiveAdams(predicts="flow"), {}),
    "v in lam": (AdaptiveAdams(axis="lam"), {}),
    "flow in lam": (AdaptiveAdams(predicts="flow", axis="lam"), {}),
    "flow in the fraction": (AdaptiveAdams(predicts="flow", axis="fraction"), {}),
    "two calls a step": (AdaptiveAdams(evaluations=2), {}),
}


def curve(problem, solver: AdaptiveAdams, options: dict, n: int) -> np.ndarray:
    """Rows of (calls, median error, share of rejected steps), one a tolerance."""
    found = []
    for tol in TOLERANCES:
        run = solve(solver, problem.model, problem.x[:n], PID(atol=tol, **options))
        error = (run.x - problem.end[:n]).square().flatten(1).mean(1).sqrt()
        assert run.each is not None
        found.append((run.each.mean(), float(error.median()), run.rejected.sum() / run.each.sum()))
    return np.array(found)


def calls_for(rows: np.ndarray) -> np.ndarray:
    """Calls at each of `ERRORS`."""
    order = np.argsort(-rows[:, 1])
    return np.exp(np.interp(-np.log(ERRORS), -np.log(rows[order, 1]), np.log(rows[order, 0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = [ORACLES[name]() for name in NAMES]
    lines = []
    for name, (solver, options) in SETTINGS.items():
        rows = [curve(p, solver, options, args.samples) for p in problems]
        means = np.exp(np.mean(np.log([calls_for(r) for r in rows]), axis=0))
        rejected = np.mean([r[:, 2].mean() for r in rows])
        lines.append(
            {"setting": name, **{f"{e:.0e}": f"{c:.1f}" for e, c in zip(ERRORS, means, strict=True)}, "rejected": f"{rejected:.0%}"}
        )
    markdown("Calls of a sample for a median error, geometric means over oracles", lines)


if __name__ == "__main__":
    main()
