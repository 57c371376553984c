"""A study's numbers against the same numbers made by hand: samples, references, every metric, errors, the floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdediff import DDIM, Angle, Brownian, LogSNR, RungeKutta, latents, load, solve
from sdediff.data import digits
from sdediff.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation,
    moments,
    noise_floor,
    prdc,
    sliced_wasserstein,
    wasserstein,
)
from sdediff.pretrained import feature_extractor
from sdediff.study import Job, Store, frame, gathered, problem_of, run, study_of
from sdediff.study.analysis import floor_of
from sdediff.study.judge import better

N = 70
METRICS = ["frechet", "kid", "inception_score", "precision", "recall", "density", "coverage", "wasserstein", "memorised"]
ASKED = {
    "name": "by-hand",
    "samples": N,
    "seeds": [3],
    "metrics": [*METRICS, "sliced_wasserstein@pixels"],
    "model": {"checkpoint": "digits"},
    "data": {"name": "digits", "references": 300},
    "features": {"extractor": "digits"},
    "reference": {"calls": 40},
    "cells": [{"solvers": ["DDIM()", "DDIM(0.5)"], "calls": [4]}],
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    study = study_of(ASKED)
    job = Job(study, problem_of(study), Store(tmp_path_factory.mktemp("study") / "by-hand"))
    for _ in run(job):
        pass
    return job


@pytest.fixture(scope="module")
def real():
    """The references: 300 of the digits, drawn."""
    rows = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[:300]
    return digits().x[rows]


@pytest.fixture(scope="module")
def flow():
    """Of all the latents at once: other last bits than those of the chunks."""
    model = load("digits")
    return solve(RungeKutta("rk4", Angle()), model, latents(model, N, seed=3), LogSNR().knots(model.schedule, 10)).x


def samples(eta: float) -> torch.Tensor:
    model = load("digits")
    knots = LogSNR().knots(model.schedule, 4)
    ends = sorted(model.schedule.knot(t).clock("snr") for t in (model.schedule.t_min, model.schedule.t_max))
    return solve(DDIM(eta), model, latents(model, N, seed=3), knots, noise=Brownian(3, (ends[0], ends[1]), 16)).x


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_every_metric_is_that_of_the_samples(job, real, flow, eta):
    x, net = samples(eta), feature_extractor("digits")
    features, references = net.features(x), net.features(real)
    found = prdc(features, references)
    expected = {
        "frechet": frechet_distance(features, moments(references)),
        "kid": kernel_distance(features, references).value,
        "inception_score": inception_score(net(x)).value,
        "wasserstein": wasserstein(features, references).value,
        "memorised": memorisation(features, references).share.value,
        "sliced_wasserstein_pixels": sliced_wasserstein(x, real),
        "error": float((x - flow).double().square().mean().sqrt()),
        **{k: e.value for k, e in found._asdict().items()},
    }
    line = frame(job.store.folder).query("kind == 'cell'").set_index("stochastic").loc[eta > 0]
    for name, value in expected.items():
        assert line[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
        low, high = line[f"{name}_low"], line[f"{name}_high"]
        assert low <= line[name] <= high, name


def test_the_floor_is_that_of_as_many_references(job, real):
    features = feature_extractor("digits").features(real)
    mean, spread = noise_floor(features, 10, 0, N)
    found = floor_of(gathered(job.store).real)
    assert found["frechet"].value == pytest.approx(mean, rel=1e-4)
    assert found["frechet"].high - mean == pytest.approx(1.96 * spread, rel=1e-3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first = kernel_distance(features[order[:N]], features[order[N:]]).value
    record = gathered(job.store).real
    assert record is not None
    assert float(record.tensors["floor.kid"][0]) == pytest.approx(first, rel=1e-3, abs=1e-5)


def test_the_references_are_drawn(job):
    rows = job.problem.rows.numpy()
    assert len(np.unique(rows)) == 300
    assert rows.max() > 1500  # of 1797
    assert (np.diff(rows) < 0).any()


@pytest.mark.parametrize("metric", ["precision", "precision@pixels", "precision_pixels", "density@pixels", "inception_score"])
def test_more_is_better_in_any_extractor(metric):
    assert better(metric) == "high"


@pytest.mark.parametrize("metric", ["frechet", "frechet_infinity", "frechet@pixels", "kid", "memorised", "error"])
def test_less_is_better(metric):
    assert better(metric) == "low"
