"""What `sample` does when no solver is named: the recommended one, on every schedule, and what it promises against published code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, missing
from test_grids import SCHEDULES

from sdediff import DDIM, AsinhLogSNR, Fixed, Gaussian, LogSNR, Mixture, UserError, VPLinear, latents, recommend, sample, solve

SCHEDULE = VPLinear()
MODEL = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=SCHEDULE)
NFE = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_recommended_rule_on_every_schedule(schedule):
    """As many calls as asked, from t_max to t_min, and errors that fall; against DDIM on the same knots."""
    model = Gaussian([0.5, -0.3], [0.6, 0.2], schedule=schedule)
    errors = []
    for calls in (1, 6, 12, 24, 48):
        solver, knots = recommend(schedule, calls)
        x = latents(model, 64, dtype=torch.float64)
        exact = model.flow(x, knots[0], knots[-1])
        run = solve(solver, model, x, knots)
        assert run.calls == solver.calls(knots) == len(knots) - 1 == calls
        plain = solve(DDIM(), model, x, knots).x
        errors.append(float((run.x - exact).square().mean().sqrt() / (plain - exact).square().mean().sqrt()))
    assert errors[0] < 1.01
    assert max(errors[1:3]) < 0.6
    assert max(errors[3:]) < 0.02


def test_the_order_rises_with_the_calls():
    found = [recommend(SCHEDULE, n) for n in (1, 6, 7, 17, 18, 35, 36, 1000)]
    assert [solver.order for solver, _ in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [knots.lower_final for _, knots in found] == [True] * 4 + [False] * 4
    for wrong in (0, -3, 2.5, True, "10"):
        with pytest.raises(UserError, match="at least 1"):
            recommend(SCHEDULE, wrong)  # type: ignore[arg-type]


def test_sample_takes_what_is_recommended():
    solver, knots = recommend(SCHEDULE, 9)
    x = latents(MODEL, 16, seed=3)
    assert torch.equal(sample(MODEL, 16, calls=9, seed=3), solve(solver, MODEL, x, knots).x)
    assert torch.equal(sample(MODEL, 16, calls=9, seed=3), sample(MODEL, 16, steps=9, seed=3, batch=5))
    own = Fixed(LogSNR().knots(SCHEDULE, 9), lower_final=True)
    assert torch.equal(sample(MODEL, 16, calls=9, seed=3, grid=LogSNR()), solve(solver, MODEL, x, own).x)
    assert torch.equal(sample(MODEL, 16, calls=9, seed=3, solver=DDIM()), solve(DDIM(), MODEL, x, own.knots).x)
    t = SCHEDULE.knot(0.3)
    y = MODEL.sample(16, t, seed=1)
    below = Fixed((t, *(k for k in knots if k.time < 0.3)), lower_final=True)
    assert torch.equal(sample(MODEL, 16, calls=9, start=(y, t)), solve(solver, MODEL, y, below).x)


def test_fixed_is_a_sequence_of_its_knots():
    grid = AsinhLogSNR().knots(SCHEDULE, 5)
    knots = Fixed(grid, lower_final=True)
    assert len(knots) == 6
    assert tuple(knots) == knots[:] == grid
    assert knots[0] in knots
    assert Fixed(knots).knots == grid


def test_beside_what_published_code_reaches_on_the_ring():
    """Geometric means over the numbers of calls: error over the best of 53 published implementations on four grids at that number."""
    folder = ROOT.parent / "shared" / "peers"
    if not folder.is_dir():
        missing("needs ../shared/peers, which is not here")
    file = np.load(folder / "ring8.npz")
    schedule = VPLinear(float(file["beta_min"]), float(file["beta_max"]))
    ring = Mixture(file["means"], file["stds"][:, 0], file["weights"], schedule=schedule)
    peers = pd.read_csv(folder / "ring8_errors.csv").groupby("nfe")[["rms_error", "median_error"]].min()
    ratios = []
    for n in NFE:
        solver, knots = recommend(schedule, n)
        off = solve(solver, ring, torch.as_tensor(file["x_T"]), knots).x.numpy() - file["x_end"]
        each = np.sqrt((off**2).mean(1))
        ratios.append([np.sqrt((each**2).mean()), np.median(each)] / peers.loc[n].to_numpy())
    rms, median = np.exp(np.log(ratios).mean(0))
    assert rms < 1.0
    assert median < 1.5
