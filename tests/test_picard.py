"""Picard iteration: the sequential run to the tolerance (and to the bit at 0), in fewer rounds, sample by sample."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sdediff import (
    DDIM,
    DDPM,
    Gaussian,
    Heun,
    LogSNR,
    Mixture,
    ModelError,
    PredictorCorrector,
    Renoise,
    Restart,
    ScoreNet,
    UserError,
    VPLinear,
    White,
    analytic_first_step,
    picard,
    solve,
)  # fmt: skip
from sdediff.solvers import SOLVERS

SCHEDULE = VPLinear()
KNOTS = LogSNR().knots(SCHEDULE, 40, 0.95, 0.02)
ANGLES = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
MODEL = Mixture(0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), [0.15, 0.2, 0.3, 0.2, 0.25], [1, 2, 3, 2, 1], schedule=SCHEDULE)
TRIED = [DDIM(), Heun(), DDIM(1.0), DDPM(), DDPM("large")]
each = pytest.mark.parametrize("solver", TRIED, ids=repr)


def start(n: int = 16) -> torch.Tensor:
    return MODEL.sample(n, KNOTS[0], seed=1)


@each
@pytest.mark.parametrize("window", [None, 12])
def test_the_answer_is_the_sequential_one_to_the_tolerance(solver, window):
    one_by_one = solve(solver, MODEL, start(), KNOTS, noise=White(3))
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        run = picard(solver, MODEL, start(), KNOTS, window=window, tolerance=tolerance, noise=White(3))
        errors.append(float((run.x - one_by_one.x).square().mean().sqrt()))
        assert run.knots == one_by_one.knots
        assert errors[-1] < 20 * tolerance, errors
        assert run.sweeps < len(KNOTS) - 1
        assert run.rounds < one_by_one.calls  # fewer evaluations one after the other
        assert run.calls >= one_by_one.calls  # for more evaluations in all
    assert errors[-1] < errors[0]


@each
@pytest.mark.parametrize("window", [1, 7, None])
def test_without_tolerance_it_is_the_sequential_run_to_the_bit(solver, window):
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE)  # elementwise
    run = picard(solver, model, start(), KNOTS[:11], window=window, tolerance=0.0, noise=White(3), path=True)
    one_by_one = solve(solver, model, start(), KNOTS[:11], noise=White(3), path=True)
    assert all(torch.equal(a, b) for a, b in zip(run.path, one_by_one.path, strict=True))
    assert run.sweeps <= 10


@each
@pytest.mark.parametrize("window", [4, 40])
def test_one_sweep_is_the_sum_of_the_increments_at_the_window_s_start(solver, window):
    """With no demand on the tolerance each window is swept once, from guesses that are all its first state (the paper's, section 3)."""
    run = picard(solver, MODEL, start(), KNOTS, window=window, tolerance=math.inf, noise=White(3))
    x, noise = start(), White(3).on(start())
    for first in range(0, 40, window):
        pairs = list(pairwise(KNOTS[first : first + window + 1]))
        x = x + sum(solver.step(MODEL, x, t, s, None, noise).x - x for t, s in pairs)
    assert torch.allclose(run.x, x, rtol=0, atol=1e-10)
    assert run.sweeps == 40 // window


def test_a_window_of_one_is_the_sequential_run_and_costs_the_same():
    for solver in (DDIM(), Heun()):
        run = picard(solver, MODEL, start(), KNOTS, window=1)
        assert run.calls == run.rounds == solver.calls(KNOTS)
        assert run.sweeps == len(KNOTS) - 1


@each
def test_a_sample_does_not_depend_on_its_batch(solver):
    model = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE)
    x = start(6)
    together = picard(solver, model, x, KNOTS, window=9, tolerance=1e-3, noise=White(5).on(x)).x
    for i in range(6):
        part = x[i : i + 1]
        alone = picard(solver, model, part, KNOTS, window=9, tolerance=1e-3, noise=White(5).on(part, range(i, i + 1))).x
        assert torch.equal(alone, together[i : i + 1])


@each
def test_knot_by_knot_the_answer_and_the_counts_are_the_same(solver):
    a, b = (picard(solver, MODEL, start(), KNOTS, window=9, noise=White(5), together=t) for t in (True, False))
    assert torch.allclose(a.x, b.x, rtol=0, atol=1e-12)
    assert (a.calls, a.rounds, a.sweeps) == (b.calls, b.rounds, b.sweeps)


def test_calls_and_rounds_are_those_made():
    seen = []

    class Watched:
        schedule, shape = SCHEDULE, (2,)

        def __call__(self, x, t):
            seen.append(len(x))
            return MODEL(x, t)

        def rows(self, index):
            return self

    run = picard(Heun(), Watched(), start(1), KNOTS, window=10)
    assert run.rounds == len(seen) == 2 * run.sweeps
    assert run.calls == sum(seen)


def test_labels_go_with_their_samples_through_a_network():
    torch.manual_seed(0)
    table = nn.Embedding(3, 4)

    def net(x, t, labels):
        return torch.tanh(x + table(labels) * t[:, None])

    x = torch.randn(5, 4)
    model = ScoreNet(net, SCHEDULE, "eps", labels=torch.tensor([0, 2, 1, 2, 0]))
    with torch.no_grad():
        expected = solve(DDIM(), model, x, KNOTS).x
    assert torch.allclose(picard(DDIM(), model, x, KNOTS, window=8, tolerance=0.0).x, expected, atol=1e-5)


def test_upward_with_jumps_and_with_an_analytic_first_step():
    data = MODEL.sample(8)
    up = KNOTS[::-1]
    assert torch.allclose(picard(DDIM(), MODEL, data, up, tolerance=1e-9).x, solve(DDIM(), MODEL, data, up).x, rtol=0, atol=1e-7)
    runs = [
        f(Restart(((3, 1, 0.1, 0.4),)), MODEL, start(), KNOTS, noise=White(0))
        for f in (solve, lambda *a, **k: picard(*a, tolerance=1e-9, **k))
    ]
    assert torch.allclose(runs[0].x, runs[1].x, rtol=0, atol=1e-6)
    model = analytic_first_step(MODEL, KNOTS[0])
    assert torch.allclose(
        picard(DDIM(), model, start(), KNOTS, tolerance=1e-9).x, solve(DDIM(), model, start(), KNOTS).x, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("solver", [made() for made in SOLVERS], ids=repr)
def test_every_public_solver_runs_in_parallel_or_says_that_it_has_a_memory(solver):
    """The same holds for predictors: what a wrapper needs is that nothing is remembered from step to step."""
    model, knots = Gaussian([0.3, -0.2], [0.5, 0.1], schedule=SCHEDULE), KNOTS[::8]
    corrected = PredictorCorrector(solver, Renoise(0.1)) if not isinstance(solver, PredictorCorrector) else DDIM()
    if solver.init(model, start(), knots[0]) is not None:
        with pytest.raises(UserError, match="has a memory"):
            picard(solver, model, start(), knots, noise=White(3))
        with pytest.raises(UserError, match="remembers"):
            solve(corrected, model, start(), knots, noise=White(3))
        return
    expected = solve(solver, model, start(), knots, noise=White(3)).x
    assert torch.allclose(picard(solver, model, start(), knots, tolerance=0.0, noise=White(3)).x, expected, rtol=0, atol=1e-12)
    assert solve(corrected, model, start(), knots, noise=White(3)).calls == corrected.calls(knots)


def test_what_cannot_be_run_in_parallel_says_so():
    class Remembers(DDIM):
        def init(self, model, x, t):
            return t

    with pytest.raises(UserError, match="has a memory"):
        picard(Remembers(), MODEL, start(), KNOTS)
    with pytest.raises(UserError, match="draws noise"):
        picard(DDPM(), MODEL, start(), KNOTS)
    with pytest.raises(UserError, match="window"):
        picard(DDIM(), MODEL, start(), KNOTS, window=0)
    with pytest.raises(UserError, match="tolerance"):
        picard(DDIM(), MODEL, start(), KNOTS, tolerance=-1.0)
    with pytest.raises(ModelError, match="NaN"):
        picard(DDIM(), ScoreNet(lambda x, t: x * torch.nan, SCHEDULE), start().float(), KNOTS)
