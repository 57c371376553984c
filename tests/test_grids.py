"""Grids: ends hit exactly, spaced as they claim, DDPM's index lists against formulas written out here, and every refusal."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff import (
    EDM,
    VE,
    AngleUniform,
    DDPMSubsequence,
    DiscreteVP,
    FlowMatching,
    Karras,
    LogSNR,
    Power,
    Quadratic,
    Shifted,
    SubVP,
    Times,
    Uniform,
    UserError,
    VPCosine,
    VPLinear,
)  # fmt: skip

# what is evenly spaced, written without the grids' own `read`
SPACING = {
    Uniform(): lambda k: k.time,
    Quadratic(): lambda k: math.sqrt(k.time),
    Power(3.0): lambda k: k.time ** (1 / 3),
    Power(0.5): lambda k: k.time**2,
    LogSNR(): lambda k: math.log(k.alpha / k.sigma),
    Karras(): lambda k: (k.sigma / k.alpha) ** (1 / 7),
    Karras(3.0): lambda k: (k.sigma / k.alpha) ** (1 / 3),
    AngleUniform(): lambda k: math.atan2(k.sigma, k.alpha),
}
EVEN = tuple(SPACING)
SCHEDULES = (
    VPLinear(),
    VPCosine(),
    DiscreteVP.linear(100),
    DiscreteVP.linear(200, interpolation="spline"),
    SubVP(),
    VE(),
    EDM(),
    FlowMatching(),
    Shifted(VPLinear(), 3.0),
    Shifted(FlowMatching(), 0.4),
)


@pytest.mark.parametrize("grid", EVEN, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@settings(max_examples=12, deadline=None)
@given(steps=st.integers(1, 40), ends=st.tuples(st.floats(1e-3, 0.99), st.floats(1e-3, 0.99)))
def test_even_grids(grid, schedule, steps, ends):
    low, high = (r * schedule.t_max for r in sorted(ends))
    if high - low < 1e-3 * schedule.t_max:
        high = low + 1e-3 * schedule.t_max
    knots = grid.knots(schedule, steps, start=high, end=low)
    assert len(knots) == steps + 1
    assert (knots[0].time, knots[-1].time) == (high, low)
    assert all(t.time > s.time for t, s in pairwise(knots))
    readings = [SPACING[grid](k) for k in knots]
    np.testing.assert_allclose(readings, np.linspace(readings[0], readings[-1], steps + 1), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("grid", EVEN, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_default_ends(grid, schedule):
    if isinstance(grid, LogSNR | Karras) and schedule.knot(schedule.t_max).alpha == 0:
        with pytest.raises(UserError, match="infinite"):
            grid.knots(schedule, 5)
        return
    knots = grid.knots(schedule, 7)
    assert (knots[0].time, knots[-1].time) == (schedule.t_max, schedule.t_min)
    assert len(knots) == 8


@pytest.mark.parametrize("grid", [g for g in EVEN if g != LogSNR()], ids=repr)
def test_grids_other_than_log_snr_reach_the_data(grid):
    for schedule in (VPLinear(), EDM(), SubVP()):
        assert grid.knots(schedule, 5, end=0.0)[-1].sigma == 0.0


def test_log_snr_cannot_reach_the_data():
    with pytest.raises(UserError, match=r"LogSNR.*cannot reach time 0.*AngleUniform"):
        LogSNR().knots(VPLinear(), 5, end=0.0)


def test_karras_grid_is_edms():
    rho, low, high, n = 7, 0.002, 80, 18
    i = np.arange(n)
    sigmas = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    np.testing.assert_allclose([k.sigma for k in Karras().knots(EDM(), n - 1)], sigmas, rtol=1e-12)


@pytest.mark.parametrize("grid", EVEN, ids=repr)
def test_refusals(grid):
    schedule = VPLinear()
    for steps in (0, -1, 2.0, 3.5, True, "3", None):
        with pytest.raises(UserError, match="steps must be a whole number"):
            grid.knots(schedule, steps)
    for start, end in ((0.2, 0.5), (0.5, 0.5), (1e-4, None)):
        with pytest.raises(UserError, match="must be above end"):
            grid.knots(schedule, 4, start=start, end=end)
    for start, end in ((1.1, None), (None, -0.1), (math.nan, None), (None, math.nan), (math.inf, 0.1)):
        with pytest.raises(UserError, match="outside the schedule"):
            grid.knots(schedule, 4, start=start, end=end)
    with pytest.raises(UserError, match="strictly decrease"):  # no room for ten numbers
        grid.knots(schedule, 10, start=0.5, end=math.nextafter(0.5, 0))


@pytest.mark.parametrize("make", [lambda: Power(0.0), lambda: Power(-1.0), lambda: Power(math.nan), lambda: Karras(0)])
def test_bad_exponents_are_refused(make):
    with pytest.raises(UserError, match="> 0"):
        make()


# --- Times ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12, unique=True))
def test_times_are_these_very_times(times):
    times = sorted(times, reverse=True)
    for grid in (Times(*times), Times(times), Times(np.array(times)), Times(torch.tensor(times, dtype=torch.float64))):
        assert [k.time for k in grid.knots(VPLinear())] == times
    assert eval(repr(grid)) == grid
    assert grid.knots(VPLinear(), len(times) - 1, times[0], times[-1]) == grid.knots(VPLinear())


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: Times(0.1, 0.9).knots(VPLinear()), "strictly decrease"),
        (lambda: Times(0.9, 0.5, 0.5, 0.1).knots(VPLinear()), "strictly decrease.*repeated"),
        (lambda: Times(0.9, 0.1).knots(VPLinear(), 2), "has 1 steps"),
        (lambda: Times(0.9, 0.1).knots(VPLinear(), start=0.8, end=0.1), "leave start and end out"),
        (lambda: Times(1.5, 0.1).knots(VPLinear()), "outside the schedule"),
        (lambda: Times(0.9, math.nan).knots(VPLinear()), "outside the schedule"),
        (lambda: Times(0.9), "at least two"),
        (lambda: Times(), "at least two"),
        (lambda: Times("high", "low"), "numbers"),
        (lambda: Times("high"), "numbers"),
    ],
)
def test_times_refusals(run, match):
    with pytest.raises(UserError, match=match):
        run()


# --- DDPMSubsequence --------------------------------------------------------------------------------------------------


def half_to_even(numerator, denominator):
    return round(Fraction(numerator, denominator))


def written_out(spacing, n, steps):
    """The index lists, noisiest first, in whole numbers (no rounding of floats)."""
    if spacing == "leading":
        return [i * (n // steps) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [half_to_even(n * (steps - i), steps) - 1 for i in range(steps)]
    if spacing == "linspace":
        return [half_to_even((n - 1) * i, max(steps - 1, 1)) for i in reversed(range(steps))]
    # floor(0.8 n i^2 / (S - 1)^2)
    return [4 * n * i * i // (5 * max(steps - 1, 1) ** 2) for i in reversed(range(steps))]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
@pytest.mark.parametrize("n", [10, 37, 1000])
def test_subsequences_are_their_formulas(spacing, n):
    for steps in sorted({1, 2, 3, 5, 7, 10, 20, 25, 37, 50, 61, 100, 103, 250, 999, n}):
        grid = DDPMSubsequence(spacing)
        if steps > n:
            with pytest.raises(UserError, match=f"at most {n}"):
                grid.indices(n, steps)
            continue
        expected = written_out(spacing, n, steps)
        if len(set(expected)) < steps:
            distinct = grid.indices(n, steps)  # each index once
            assert (np.diff(distinct) < 0).all()
            assert set(distinct) <= {i + j for i in expected for j in (-1, 0, 1)}
            continue
        found = grid.indices(n, steps)
        # a float half away from a whole number may round either way; quadratic's sqrt may lose a whole one
        assert np.abs(found - expected).max() <= 1
        assert np.mean(found != expected) <= 0.1
        assert (np.diff(found) < 0).all()


def test_subsequences_of_the_papers():
    assert DDPMSubsequence("leading", offset=1).indices(1000, 50).tolist() == list(range(981, 0, -20))
    assert DDPMSubsequence("trailing").indices(1000, 4).tolist() == [999, 749, 499, 249]
    assert DDPMSubsequence("linspace").indices(1000, 5).tolist() == [999, 749, 500, 250, 0]
    assert DDPMSubsequence("quadratic").indices(1000, 5).tolist() == [800, 450, 200, 50, 0]
    for spacing in ("leading", "trailing", "linspace"):
        assert DDPMSubsequence(spacing).indices(1000, 1000).tolist() == list(range(999, -1, -1))


def test_subsequence_knots_are_trained_indices_and_the_data():
    schedule = DiscreteVP.linear(1000)
    knots = DDPMSubsequence("leading", offset=1).knots(schedule, 50)
    assert len(knots) == 51
    assert [k.time for k in knots] == [*((i + 1) / 1000 for i in range(981, 0, -20)), 0.0]
    bar = np.cumprod(1 - np.asarray(schedule.betas))
    np.testing.assert_allclose([k.alpha**2 for k in knots[:-1]], bar[981:0:-20], rtol=1e-12)


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: DDPMSubsequence("leadng"), "Did you mean 'leading'"),
        (lambda: DDPMSubsequence().knots(VPLinear(), 5), "VPLinear has none"),
        (lambda: DDPMSubsequence().knots(DiscreteVP.linear(10), 5, start=0.5), "leave start and end out"),
        (lambda: DDPMSubsequence().indices(10, 0), "at least 1"),
        (lambda: DDPMSubsequence().indices(10, 2.0), "whole number"),
        (lambda: DDPMSubsequence().indices(10, True), "whole number"),
        (lambda: DDPMSubsequence(offset=1).indices(10, 10), "leaves the 10 indices"),
        (lambda: DDPMSubsequence(offset=-1).indices(10, 2), "leaves the 10 indices"),
    ],
)
def test_subsequence_refusals(run, match):
    with pytest.raises(UserError, match=match):
        run()


def test_a_fractional_offset_is_refused():
    with pytest.raises(UserError, match="whole number"):
        DDPMSubsequence(offset=1.5)


@pytest.mark.parametrize("steps", [50, 100])
def test_the_papers_quadratic_runs_exist(steps):
    assert DDPMSubsequence("quadratic").indices(1000, steps)[0] == 800
