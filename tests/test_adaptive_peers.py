"""The table of calls needed: its interpolation, and that ours is measured like the peers."""

from __future__ import annotations

import adaptive_peers
import numpy as np
import pytest
import torch
from adaptive_peers import Peer, Problem, calls_needed, needed, ratios, row, sweep

from sdediff import Angle, LogSNR, Mixture, SciPy, TorchDiffEq, VPLinear, solve

MODEL = Mixture([[1.5, 0.0], [-0.5, 1.0]], [0.1, 0.3], schedule=VPLinear())


def point(error: float, calls: float, tol: float = 1.0) -> dict:
    return {"rms": error, "median": error / 2, "mean": calls, "p95": 2 * calls, "max": 3 * calls, "tol": tol}


def test_calls_needed_are_exact_on_a_power_law():
    points = [point(e, 10 * e**-0.2) for e in (3e-1, 7e-3, 2e-4)]
    found = needed(points, 1e-3, "rms")
    assert found is not None
    assert found["mean"] == pytest.approx(10 * 1e-3**-0.2)
    assert found["max"] == pytest.approx(30 * 1e-3**-0.2)
    assert needed(points, 1e-3, "median")["mean"] == pytest.approx(10 * 2e-3**-0.2)  # type: ignore[index]


def test_the_first_crossing_counts_and_none_is_none():
    points = [point(1e-1, 10), point(1e-3, 20), point(5e-2, 30), point(1e-5, 40)]
    assert needed(points, 1e-2, "rms")["mean"] == pytest.approx(200**0.5)  # type: ignore[index]
    assert needed(points, 1e-6, "rms") is None
    assert needed(points, 0.5, "rms")["mean"] == 10  # type: ignore[index]
    stays = needed(points, 1e-2, "rms", stays=True)
    assert stays is not None
    assert 30 < stays["mean"] < 35
    assert needed(points[:3], 1e-2, "rms", stays=True) is None


def test_the_best_form_of_each_peer_and_the_ratio_of_ours():
    name = adaptive_peers.ours()[0].name
    about = [("ours", name, "PID", 8), ("each", "A", "Time()", 40), ("each", "A", "Angle()", 16), ("each", "B", "Time()", 20)]
    rows = [
        {"problem": "p", "samples": 4, "family": f, "peer": peer, "form": form} | point(e, calls * e**-0.1, tol=e)
        for f, peer, form, calls in about
        for e in (1e-1, 1e-6)
    ]
    calls = calls_needed(rows, "rms")
    assert calls[("p", 4, "each", "A", 1e-3)]["form"] == "Angle()"  # type: ignore[index]
    line = ratios(calls)[1]
    assert line["best per-sample"].startswith("A: 32")
    assert line["ratio to per-sample"] == pytest.approx(0.5)


def test_rows_count_calls_and_errors_of_each_sample():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = LogSNR().knots(MODEL.schedule, 1)
    problem = Problem(MODEL, x, solve(SciPy("DOP853", 1e-10, 1e-10, Angle()), MODEL, x, ends).x)
    alone = Peer("each", "one", "", lambda p, tol: solve(SciPy("RK45", tol, tol, Angle(), each=True), p.model, p.x, ends))
    together = Peer("coupled", "all", "", lambda p, tol: solve(TorchDiffEq("dopri5", tol, tol), p.model, p.x, ends))
    one, both = row("p", problem, alone, 1e-3), row("p", problem, together, 1e-3)
    run = alone.run(problem, 1e-3)
    assert (one["mean"], one["max"]) == (np.mean(run.each), np.max(run.each))
    assert one["rms"] == pytest.approx(float((run.x - problem.end).square().mean().sqrt()))
    assert both["mean"] == both["p95"] == both["max"] == together.run(problem, 1e-3).calls
    assert [r["tol"] for r in sweep("p", problem, alone, (1e-3, 1e-8, 1e-9))] == [1e-3, 1e-8]


@pytest.mark.parametrize("family", adaptive_peers.FAMILIES)
def test_every_entry_runs(family):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for peer in adaptive_peers.of_family(family):
        if peer.name.startswith("torchode"):
            pytest.importorskip("torchode")
        found = row("p", Problem(MODEL, x, x), peer, 1e-2)
        assert found["reached"] == 1
        assert (found["mean"] == found["max"]) or family != "coupled"
