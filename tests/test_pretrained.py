"""The networks in the package: they load by name, are small, smooth in time, and know their classes."""

from __future__ import annotations

import pytest
import torch

from sdediff import Angle, ClassifierFree, LogSNR, RungeKutta, Sigma, UserError, guided, latents, load, sample, solve
from sdediff.data import digits
from sdediff.latent_diffusion import LatentDiffusion
from sdediff.metrics import frechet_distance
from sdediff.pretrained import feature_extractor
from sdediff.pretrained.reference import reference
from sdediff.pretrained.scores import model_names, model_path

CLASSES = [name for name in model_names() if name in ("digits-classes", "mnist")]


def test_names():
    assert {"digits", "digits-classes", "latent"} <= set(model_names())
    assert all(model_path(name).stat().st_size < 4e6 for name in model_names())
    assert all(model_path(name).with_suffix(".log").exists() for name in model_names() if name != "digits")
    with pytest.raises(UserError, match=r"no network 'mnits'.*Did you mean"):
        load("mnits")


@pytest.mark.parametrize("name", model_names())
def test_every_network_is_smooth_in_time(name):
    model = load(name)
    inner = model.inner if isinstance(model, LatentDiffusion) else model
    x = latents(inner, 2)
    for coordinates in (Angle(),) if name == "mnist" else (Sigma(), Angle()):  # the rougher one of the slow network
        a, b = (solve(RungeKutta("rk4", coordinates), inner, x, LogSNR().knots(model.schedule, n)).x for n in (50, 100))
        assert float((a - b).square().mean().sqrt()) < 1e-4


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_known_with_and_without_guidance(name):
    model, n = load(name), 40
    labels, net = torch.arange(n) % 10, feature_extractor(name.split("-")[0])
    plain = sample(model.with_labels(labels), n, calls=20)
    leaning = sample(guided(model, ClassifierFree(2.0), labels), n, calls=20)
    right = [float((net(x).argmax(1) == labels).float().mean()) for x in (plain, leaning)]
    assert right[0] > 0.85
    assert right[1] >= right[0] - 0.02
    none = sample(model, n, calls=20)
    assert len(net(none).argmax(1).unique()) >= 6


@pytest.mark.parametrize("name", ["digits", "digits-classes", "latent"])
def test_digits_look_like_digits(name):
    net = feature_extractor("digits")
    assert frechet_distance(net.features(sample(load(name), 500, calls=20)), reference("digits")) < 3.5
    assert frechet_distance(net.features(digits().x), reference("digits")) < 1e-3
