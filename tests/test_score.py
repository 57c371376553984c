"""ScoreNet: what the network is told, what it answers, and that labels stay with their samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdediff import DDIM, DiscreteVP, ScoreNet, Uniform, VPLinear, sample

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
