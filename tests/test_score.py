"""ScoreNet: what the network is told, what it answers, and that labels stay with their samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdediff import (
    DDIM,
    DDPM,
    EDM,
    VE,
    DiscreteVP,
    FlowMatching,
    Gaussian,
    LabelledMixture,
    ModelError,
    ScoreNet,
    Shifted,
    SubVP,
    Uniform,
    UserError,
    VPCosine,
    VPLinear,
    load_model,
    sample,
    save_model,
    smooth_time,
)
from sdediff.checkpoint import describe_model, rebuild_model
from sdediff.networks import MLP
from sdediff.prediction import InPlace

SCHEDULE = DiscreteVP.linear(100)
X, X0 = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("index", [0, 1, 50, 99])
def test_a_network_that_predicts_ddpm_s_mean(index):
    t, s = SCHEDULE.knot(SCHEDULE.time_of(index)), SCHEDULE.knot(SCHEDULE.time_of(index - 1))
    mean = SCHEDULE.posterior(X0, X, t, s).mean
    read = ScoreNet(lambda x, c: mean, SCHEDULE, "mean")(X, t).x0.tensor()
    assert torch.allclose(read, X0, rtol=0, atol=1e-9 if index else 1e-12)


def test_a_mean_at_one_time_a_sample():
    times = np.array([0.01, 0.1, 0.5, 0.77, 1.0])
    mean = torch.cat([SCHEDULE.posterior(X0[i : i + 1], X[i : i + 1], t, round(t - 0.01, 9)).mean for i, t in enumerate(times)])
    read = ScoreNet(lambda x, c: mean, SCHEDULE, "mean")(X, SCHEDULE.knot(times)).x0.tensor()
    assert torch.allclose(read, X0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("condition", "expected"), [("time", 0.5), ("index", 49.0), ("lam", None), ("c_noise", None)])
def test_what_the_network_is_fed(condition, expected):
    seen = []

    def net(x, c):
        seen.append(c)
        return x

    t = SCHEDULE.knot(0.5)
    expected = {"lam": t.lam, "c_noise": np.log(t.u) / 4}.get(condition, expected)
    model = ScoreNet(net, SCHEDULE, "eps", condition)
    model(X, t)
    model(X, SCHEDULE.knot(np.full(5, 0.5)))
    model(X.float(), t)
    for c in seen:
        assert c.shape == (5,)
        assert torch.allclose(c.double(), torch.full((5,), float(expected), dtype=torch.float64), atol=1e-6)
    assert [c.dtype for c in seen] == [torch.float64, torch.float64, torch.float32]


def test_labels_stay_with_their_samples_in_any_batch():
    labels = torch.arange(7)
    model = ScoreNet(lambda x, c, y: y[:, None].to(x.dtype).expand_as(x), VPLinear(), "x0", labels=labels, shape=(2,))
    whole, parts = (sample(model, 7, steps=4, solver=DDIM(), grid=Uniform(), batch=b) for b in (7, 3))
    assert torch.equal(whole, parts)
    assert torch.allclose(whole[:, 0], labels.float(), atol=0.1)


# --- learned variances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow", "mean"])
def test_the_second_half_of_the_channels_says_where_the_variance_is(predicts):
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    both = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    whole = ScoreNet(lambda x, c: both, SCHEDULE, predicts, variance=True)
    plain = ScoreNet(lambda x, c: both[:, :4], SCHEDULE, predicts)
    t = SCHEDULE.knot(0.5)
    assert torch.equal(whole(x, t).variance, both[:, 4:])
    assert torch.equal(whole(x, t).x0.tensor(), plain(x, t).x0.tensor())
    assert plain(x, t).variance is None
    assert torch.isfinite(sample(whole, 3, steps=4, solver=DDPM("learned"), grid=Uniform(), shape=(4, 2, 2), dtype=torch.float64)).all()


def test_a_network_without_the_second_half_is_refused():
    with pytest.raises(ModelError, match="twice the channels"):
        ScoreNet(lambda x, c: x, SCHEDULE, variance=True)(X, SCHEDULE.knot(0.5))
    with pytest.raises(ModelError, match="variance=True"):
        ScoreNet(lambda x, c: torch.cat([x, x], 1), SCHEDULE)(X, SCHEDULE.knot(0.5))


# --- preconditioning ----------------------------------------------------------------------------------------------

ALL = (VPLinear(), VPCosine(), SubVP(), VE(), EDM(), FlowMatching(), Shifted(FlowMatching(), 3.0), SCHEDULE)


def karras(x, t, d, f):
    """D(y; sigma) of y = x/alpha at sigma = u, as table 1 of Karras et al. 2022 writes it."""
    y, sigma = x / t.alpha, t.u
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / np.sqrt(sigma**2 + d**2)
    c_in, c_noise = 1 / np.sqrt(sigma**2 + d**2), np.log(sigma) / 4
    return c_skip * y + c_out * f(c_in * y, torch.full((len(x),), c_noise, dtype=x.dtype))


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.parametrize("d", [0.5, 1.0, 3.0])
def test_edm_preconditioning_is_its_table(schedule, d):
    def f(x, c):
        return torch.sin(3 * x + c[:, None])

    model = ScoreNet(f, schedule, preconditioning="edm", data_std=d)
    for share in (0.01, 0.3, 0.99):
        t = schedule.knot(share * schedule.t_max)
        p, d_of_x = model(X, t), karras(X, t, d, f)
        torch.testing.assert_close(p.x0.tensor(), d_of_x, rtol=1e-11, atol=1e-11)
        eps = (X - t.alpha * d_of_x) / t.sigma
        torch.testing.assert_close(p.eps.tensor(), eps, rtol=1e-9, atol=1e-9 * (1 + t.alpha / t.sigma))
        c, s = np.cos(t.angle), np.sin(t.angle)
        torch.testing.assert_close(p.v.tensor(), c * eps - s * d_of_x, rtol=1e-9, atol=1e-9 * (1 + t.alpha / t.sigma))
        torch.testing.assert_close(p.flow.tensor(), eps - d_of_x, rtol=1e-9, atol=1e-9 * (1 + t.alpha / t.sigma))
        torch.testing.assert_close(p.mixed(0.3, -2.0).tensor(), 0.3 * d_of_x - 2 * eps, rtol=1e-9, atol=2e-9 * (1 + t.alpha / t.sigma))


@pytest.mark.parametrize("d", [0.5, 1.0])
def test_an_edm_network_of_a_gaussian_is_right_to_float32_at_both_ends(d):
    """The exact F of data N(0, 1.7^2): every reading is as good as float32 can be, at sigma = 1e-6 and at 1e4, and at alpha = 0."""
    for schedule, times in ((EDM(1e-6, 1e4), (1e-6, 1e-3, 1.0, 1e4)), (FlowMatching(), (1e-6, 0.5, 1 - 1e-6, 1.0))):
        exact = Gaussian([0.0], 1.7**2, schedule=schedule)
        x0, noise = torch.randn(2, 200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for time in times:
            t = schedule.knot(time)
            x = t.alpha * 1.7 * x0 + t.sigma * noise
            r = np.hypot(t.alpha * d, t.sigma)
            f = (t.sigma * exact(x, t).x0.tensor() / d - t.alpha * d * exact(x, t).eps.tensor()) / r
            model = ScoreNet(lambda x, c, f=f: f.float(), schedule, preconditioning="edm", condition="time", data_std=d)
            p, truth = model(x.float(), t), exact(x.float().double(), t)
            for reading in ("x0", "v", "eps"):
                off = getattr(p, reading).tensor().double() - getattr(truth, reading).tensor()
                assert float(off.abs().max()) < 5e-6, (schedule, time, reading)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_scaled_input_has_unit_variance_and_nothing_else_changes(schedule):
    seen = []

    def net(x, c):
        seen.append(x)
        return x

    model = ScoreNet(net, schedule, "eps", preconditioning="input", data_std=2.0)
    times = np.array([1e-3, 0.1, 0.4, 0.8, 1.0]) * schedule.t_max
    t = schedule.knot(times)
    data, noise = 2 * torch.randn(20_000, 5, 1, dtype=torch.float64), torch.randn(20_000, 5, 1, dtype=torch.float64)
    x = torch.as_tensor(t.alpha)[:, None] * data + torch.as_tensor(t.sigma)[:, None] * noise
    for part in x[:5000]:
        assert torch.equal(model(part, t).eps.tensor(), seen[-1])
    assert torch.allclose(torch.stack(seen).std(0), torch.ones(5, 1, dtype=torch.float64), atol=0.05)
    one = schedule.knot(float(times[2]))
    assert torch.allclose(model(X, one).value, X / np.hypot(2 * one.alpha, one.sigma))


def test_a_model_with_options_keeps_them():
    labels = torch.arange(5)
    model = ScoreNet(lambda x, c, y: x, EDM(), labels=labels, preconditioning="edm", data_std=0.7)
    part = model.rows(torch.tensor([3, 1]))
    assert (part.preconditioning, part.data_std, part.condition, part.predicts) == ("edm", 0.7, "c_noise", "v")
    assert part.labels.tolist() == [3, 1]
    assert model.labels is labels
    t = EDM().knot(2.0)
    p = model(X, t)
    kept = InPlace(ScoreNet(lambda x, c: x, EDM(), preconditioning="edm", data_std=0.7), 5).rows(torch.tensor([1, 4]))(X[[1, 4]], t)
    torch.testing.assert_close(kept.x0.tensor(), p.x0.tensor()[[1, 4]])
    smooth = smooth_time(ScoreNet(MLP((3,), width=8, depth=1), EDM(), preconditioning="edm", data_std=0.7))
    assert (smooth.preconditioning, smooth.data_std) == ("edm", 0.7)


def test_samples_of_an_edm_network_that_knows_its_data():
    """F = 0 is the exact network of data N(0, d^2) with that data_std: samples have that standard deviation, on any schedule."""
    for schedule in (EDM(), VPLinear(), FlowMatching()):
        model = ScoreNet(lambda x, c: torch.zeros_like(x), schedule, preconditioning="edm", condition="time", shape=(2,))
        x = sample(model, 4000, steps=30, dtype=torch.float64)
        assert abs(float(x.std()) - 0.5) < 0.02


def test_descriptions_with_and_without_the_options(tmp_path):
    net = MLP((2,), width=8, depth=1)
    plain = ScoreNet(net, VPLinear(), "v", "lam", shape=(2,))
    assert set(describe_model(plain)) == {"format", "network", "config", "schedule", "predicts", "condition", "shape"}  # as old files
    assert (rebuild_model(describe_model(plain)).variance, rebuild_model(describe_model(plain)).preconditioning) == (False, None)
    options = {"preconditioning": "edm", "data_std": 0.3}
    save_model(tmp_path / "x", ScoreNet(net, VPLinear(), shape=(2,), **options))
    model = load_model(tmp_path / "x")
    assert (model.preconditioning, model.data_std, model.predicts, model.condition) == ("edm", 0.3, "v", "c_noise")
    about = describe_model(ScoreNet(net, VPLinear(), "v", variance=True))
    assert about["variance"] is True
    assert rebuild_model(about).variance
    with pytest.raises(UserError, match="does not describe a model"):
        rebuild_model({**about, "preconditioning": "emd"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preconditioning": "emd"}, "Did you mean 'edm'"),
        ({"preconditioning": "edm", "predicts": "eps"}, "F, minus v"),
        ({"data_std": 0.0}, "positive number"),
        ({"data_std": float("nan")}, "positive number"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ScoreNet(lambda x, c: x, EDM(), **options)


@pytest.mark.parametrize("schedule", [FlowMatching(), Shifted(FlowMatching(), 3.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"condition": "lam"}, {"condition": "c_noise"}, {"preconditioning": "edm"}], ids=str)
def test_a_network_is_told_a_finite_lam_at_both_ends(schedule, dtype, options):
    torch.manual_seed(0)
    net = MLP((3,), 16, 1).to(dtype)
    torch.nn.init.normal_(net.leave.weight, std=0.1)
    model = ScoreNet(net, schedule, **{"predicts": "v", **options})
    x = X.to(dtype)
    times = np.array([0.0, 0.3, 0.5, 0.9, 1.0])
    each = model(x, schedule.knot(times)).value
    assert each.isfinite().all()
    for i, time in enumerate(times):
        torch.testing.assert_close(model(x[i : i + 1], schedule.knot(float(time))).value, each[i : i + 1], rtol=1e-5, atol=1e-6)
    inner = schedule.knot(np.array([1e-3, 0.3, 0.5, 0.9, 0.999]))
    lam = inner.lam if options.get("condition") == "lam" else -0.25 * inner.lam
    assert torch.equal(model._condition(x, inner), torch.as_tensor(lam, dtype=dtype))
    assert sample(model, 5, steps=4, solver=DDIM(), grid=Uniform(), shape=(3,), dtype=dtype).isfinite().all()


def test_labels_that_do_not_match_the_samples_end_in_a_sentence():
    net = MLP((3,), 16, 1, classes=10).double()
    oracle = LabelledMixture(torch.eye(3), [0.1, 0.1, 0.1], of=(0, 1, 1), schedule=SCHEDULE)
    t = SCHEDULE.knot(0.5)
    for model in (ScoreNet(net, SCHEDULE), oracle):
        with pytest.raises(UserError, match="5 labels for 9 samples"):
            model.with_labels(torch.arange(5) % 2).rows(torch.arange(9))
        with pytest.raises(UserError, match="5 labels for 6 samples"):
            model.with_labels(torch.arange(5) % 2).rows(torch.tensor([5]))
        with pytest.raises(UserError, match="8 labels for 3 samples"):
            model.with_labels(torch.arange(8) % 2)(X[:3], t)
        assert model.with_labels(torch.arange(5) % 2).rows(torch.tensor([4, 2])).labels.tolist() == [0, 0]
    with pytest.raises(UserError, match="label 99 of sample 0 does not exist; there are 10 classes"):
        ScoreNet(net, SCHEDULE, labels=torch.tensor([99]))
    with pytest.raises(UserError, match="no classes"):
        ScoreNet(MLP((3,), 16, 1), SCHEDULE, labels=torch.tensor([0]))


def test_data_std_without_preconditioning_is_refused():
    with pytest.raises(UserError, match="add preconditioning"):
        ScoreNet(lambda x, c: x, SCHEDULE, data_std=0.9)
    assert ScoreNet(lambda x, c: x, SCHEDULE, data_std=0.5).data_std == 0.5
