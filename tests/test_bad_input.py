"""Bad input to the functions of the package: one clear error with time, step and cure."""

from __future__ import annotations

import re

import pytest
import torch

from sdediff import (
    DDIM,
    DDPM,
    Angle,
    DiscreteVP,
    FlowMatching,
    Gaussian,
    Heun,
    LogSNR,
    ModelError,
    RungeKutta,
    SciPy,
    ScoreNet,
    Sigmas,
    Tableau,
    TorchDiffEq,
    TorchSDE,
    Uniform,
    UserError,
    VPLinear,
    White,
    encode,
    load_model,
    sample,
    solve,
)  # fmt: skip
from sdediff.pretrained.scores import digits_path
from sdediff.solvers import SOLVERS

SCHEDULE = VPLinear()
KNOTS = Uniform().knots(SCHEDULE, 10)


def network(answer):
    return ScoreNet(answer, SCHEDULE, "eps", shape=(3,))


def x(n: int = 4) -> torch.Tensor:
    return torch.ones(n, 3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x, t: x[:, :2], "returned a tensor of shape"),
        (lambda x, t: torch.cat([x, x], 1), "twice the channels"),
        (lambda x, t: x.double(), "dtype torch.float64 for a state of dtype torch.float32"),
        (lambda x, t: x if t[0] > 0.55 else x[:2], "step 6: at time 0.5"),
    ],
)
def test_an_answer_of_another_shape_or_dtype_says_when(answer, said):
    with pytest.raises(ModelError, match=said):
        solve(DDIM(), network(answer), x(), KNOTS)


@pytest.mark.parametrize("solver", [DDIM(), DDPM(), Heun(), RungeKutta("rk4", Angle())], ids=repr)
def test_nan_says_at_which_time_and_step(solver):
    def answer(x, t):
        return torch.where(t[:, None] < 0.55, torch.nan, x)

    with pytest.raises(ModelError, match=r"step [56]: the model returned NaN or infinity at time 0\.5.*given was finite"):
        solve(solver, network(answer), x(), KNOTS, noise=White(0))


@pytest.mark.parametrize("delegate", [TorchDiffEq(), SciPy(), TorchDiffEq("rk4"), TorchSDE()], ids=repr)
def test_a_delegate_that_meets_nan_says_so(delegate):
    with pytest.raises(ModelError, match="NaN"):
        solve(delegate, network(lambda x, t: torch.where(t[:, None] < 0.55, torch.nan, x)), x(), KNOTS, noise=White(0))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (torch.ones(4, 5), "check the latents"),
        (torch.ones(3), "check the latents"),
        (torch.ones(4, 3, dtype=torch.int64), "floating point"),
        ([1.0, 2.0], "floating point"),
    ],
)
def test_latents_of_the_wrong_shape(state, said):
    with pytest.raises(UserError, match=said):
        solve(DDIM(), network(lambda x, t: x), state, KNOTS)


def test_a_plain_function_is_no_model():
    with pytest.raises(UserError, match="wrap a network as ScoreNet"):
        solve(DDIM(), lambda x, t: x, x(), KNOTS)  # type: ignore[arg-type]


def test_a_stochastic_solver_without_noise():
    with pytest.raises(UserError, match=r"noise=White"):
        solve(DDPM(), network(lambda x, t: x), x(), KNOTS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DDIM(-0.1), "at least 0"),
        (lambda: DDIM("half"), "at least 0"),
        (lambda: DDPM("tiny"), "choose one of"),
        (lambda: RungeKutta("rk5"), "Did you mean"),
        (lambda: Tableau(a=((), (0.5, 0.5)), b=(0.0, 1.0), order=2), "explicit"),
        (lambda: Tableau(a=((),), b=(0.9,), order=1), "sum to 1"),
        (lambda: Angle(0.0), "positive"),
        (lambda: TorchDiffEq("dopri6"), "Did you mean 'dopri"),
        (lambda: SciPy(rtol=0.0), "positive"),
        (lambda: TorchSDE(eta=0.0), "TorchDiffEq"),
        (lambda: DiscreteVP([0.1]), "at least two"),
        (lambda: DiscreteVP([0.1, 1.2]), "between 0 and 1"),
        (lambda: VPLinear(5.0, 1.0), "beta_min"),
        (lambda: ScoreNet(lambda x, t: x, SCHEDULE, "noise"), "choose one of"),
        (lambda: ScoreNet(lambda x, t: x, SCHEDULE, "mean"), "DiscreteVP"),
        (lambda: Sigmas((1.0, 0.5), (0.1, 0.1)), "one value"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [0.0, 1.0]], schedule=SCHEDULE), "symmetric"),
    ],
)
def test_options_that_cannot_be(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_sigmas_off_the_grid_or_too_large():
    model = Gaussian([0.0], 1.0, schedule=SCHEDULE)
    one = torch.ones(1, 1)
    with pytest.raises(UserError, match="no value for the step"):
        solve(DDIM(Sigmas((0.9, 0.4), (0.1,))), model, one, SCHEDULE.knots([0.9, 0.5]), noise=White(0))
    with pytest.raises(UserError, match="exceeds sigma"):
        solve(DDIM(Sigmas((0.9, 0.01), (0.9,))), model, one, SCHEDULE.knots([0.9, 0.01]), noise=White(0))


def test_eps_at_zero_terminal_snr():
    model = ScoreNet(lambda x, t: x, FlowMatching(), "eps", shape=(3,))
    with pytest.raises(UserError, match="alpha = 0"):
        solve(DDIM(), model, x(), Uniform().knots(FlowMatching(), 5))
    oracle = Gaussian([0.5, 0.5, 0.5], 0.3, schedule=FlowMatching())
    assert torch.isfinite(solve(DDIM(), oracle, x(), Uniform().knots(FlowMatching(), 5)).x).all()


@pytest.mark.parametrize("solver", [made() for made in SOLVERS], ids=repr)
def test_grids_that_touch_both_ends(solver):
    """From alpha = 0 to sigma = 0: a finite result, or one sentence that says what to do."""
    schedule = FlowMatching()
    knots = Uniform().knots(schedule, 6, end=0.0)
    oracle = Gaussian([0.5, 0.5, 0.5], 0.3, schedule=schedule)
    cure = None
    try:
        run = solve(solver, oracle, x(), knots, noise=White(0) if solver.facts.stochastic else None)
    except UserError as said:
        cure = re.search("[Ss]tart (or end )?(the grid )?short of it", str(said))
    else:
        cure = torch.isfinite(run.x).all()
    assert cure


def test_a_division_by_zero_of_the_model_s_own_is_not_explained_away():
    with pytest.raises(ZeroDivisionError):
        solve(DDIM(), network(lambda x, t: x / (1 // 0)), x(), KNOTS)


def test_sampling_arguments():
    model = network(lambda x, t: x)
    for arguments, said in (
        ({}, "one of the two"),
        ({"steps": 3, "calls": 3}, "one of the two"),
        ({"steps": 0}, "at least 1"),
        ({"steps": True}, "at least 1"),
        ({"calls": 1, "solver": Heun()}, "too few"),
        ({"calls": 10, "solver": TorchDiffEq()}, "counts its own calls"),
        ({"steps": 3, "batch": 0}, "at least 1"),
        ({"steps": 3, "start": (torch.ones(2, 3), KNOTS[0])}, "start has 2 states"),
    ):
        with pytest.raises(UserError, match=said):
            sample(model, 4, **arguments)
    with pytest.raises(UserError, match="shape="):
        sample(ScoreNet(lambda x, t: x, SCHEDULE), 4, steps=3)


def test_a_stochastic_solver_cannot_encode():
    with pytest.raises(UserError, match="no inverse"):
        encode(network(lambda x, t: x), x(), steps=5, solver=DDPM())


def test_grids_that_cannot_be():
    with pytest.raises(UserError, match="infinite"):
        LogSNR().knots(SCHEDULE, 10, end=0.0)
    with pytest.raises(UserError, match="needs at least two knots"):
        solve(DDIM(), network(lambda x, t: x), x(), KNOTS[:1])


def test_a_state_of_another_float_type_than_the_weights():
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ModelError, match="weights are"):
            solve(DDIM(), load_model(digits_path()), torch.randn(2, 1, 8, 8).to(dtype), LogSNR().knots(VPLinear(), 3))
