"""Latent diffusion: the verbs speak images, what they promise holds for the latents, and one file holds all parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from sdediff import (
    DDIM,
    Angle,
    AsynchronousLeapfrog,
    Fixed,
    LogSNR,
    RungeKutta,
    ScoreNet,
    Training,
    UserError,
    VPLinear,
    clipped,
    continuous_bound,
    decode,
    decode_noise,
    elbo,
    encode,
    encode_noise,
    fit,
    interpolate,
    latents,
    load_latent,
    load_model,
    log_likelihood,
    round_trip,
    sample,
    save_model,
    solve,
)
from sdediff.checkpoint import load_autoencoder, read, save_autoencoder
from sdediff.cli import app
from sdediff.data import InMemory, digits
from sdediff.latent_diffusion import LatentDiffusion, data_shape, encode_source, from_prior, latent_scale, to_data, to_states
from sdediff.metrics import frechet_distance, moments
from sdediff.networks import MLP, Autoencoder
from sdediff.pretrained import feature_extractor
from sdediff.study import Job, Store, frame, problem_of, run, study_of

DIGITS = digits()
assert DIGITS.labels is not None
LABELS = DIGITS.labels
IMAGES, SOURCE = DIGITS.x[:6], InMemory(DIGITS.x[:100], LABELS[:100], "digits", 10)
NAMES = ("kl", "vq", "none")


def autoencoder(regulariser="kl", channels=1) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(channels, 8, (1, 2), latent=2, regulariser=regulariser, codes=16).eval().requires_grad_(False)


def network(shape=(2, 4, 4), labels=None) -> ScoreNet:
    torch.manual_seed(1)
    net = MLP(shape, width=32, depth=1, classes=10).eval().requires_grad_(False)
    torch.nn.init.normal_(net.leave.weight, std=0.05)
    return ScoreNet(net, VPLinear(), predicts="v", condition="lam", shape=shape, labels=labels)


def model(regulariser="kl") -> LatentDiffusion:
    return LatentDiffusion(network(), autoencoder(regulariser), *latent_scale(autoencoder(regulariser), SOURCE))


# --- between images and latents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_the_latents_of_data_have_unit_standard_deviation(kind):
    scale, shift = latent_scale(autoencoder(kind), SOURCE, batch=7)
    z = LatentDiffusion(network(), autoencoder(kind), scale, shift).states(DIGITS.x[:100])
    assert float(z.double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert float(z.double().mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", NAMES)
def test_images_come_back_as_the_autoencoder_gives_them(kind):
    m = model(kind)
    assert (m.shape, m.image_shape) == ((2, 4, 4), (1, 8, 8)) == (data_shape(m.inner), data_shape(m))
    torch.testing.assert_close(m.images(m.states(IMAGES)), m.autoencoder.decode(m.autoencoder.encode(IMAGES)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_data(m, to_states(m, IMAGES)), m.autoencoder(IMAGES).x, atol=1e-5, rtol=1e-5)
    assert to_data(m.inner, IMAGES) is to_states(m.inner, IMAGES) is IMAGES


def test_many_images_go_through_in_parts():
    x = torch.cat([DIGITS.x[:300]] * 2)
    torch.testing.assert_close(to_states(model(), x), model().states(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_data(model(), to_states(model(), x)), model().images(model().states(x)), atol=1e-5, rtol=1e-5)


def test_it_is_a_model_of_latents():
    m, z = model(), latents(model(), 3)
    assert z.shape == (3, 2, 4, 4)
    t = m.schedule.knot(0.5)
    assert torch.equal(m(z, t).value, m.inner(z, t).value)
    knots = LogSNR().knots(m.schedule, 5)
    assert torch.equal(solve(DDIM(), m, z, knots).x, solve(DDIM(), m.inner, z, knots).x)
    one = replace(m, inner=network(labels=torch.tensor([1, 2, 3]))).rows(torch.tensor([2, 0])).inner
    assert isinstance(one, ScoreNet)
    assert one.labels is not None
    assert one.labels.tolist() == [3, 1]


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_samples_are_images():
    m = model()
    x = sample(m, 5, steps=6, seed=3)
    assert torch.equal(x, to_data(m, sample(m.inner, 5, steps=6, seed=3)))
    assert x.shape == (5, 1, 8, 8)
    torch.testing.assert_close(sample(m, 5, steps=6, seed=3, batch=2), x, atol=1e-5, rtol=1e-5)
    z, t = latents(m, 2), m.schedule.knot(0.7)
    assert torch.equal(sample(m, 2, steps=6, start=(z, t)), to_data(m, sample(m.inner, 2, steps=6, start=(z, t))))
    assert sample(m, 2, tolerance=0.1).shape == (2, 1, 8, 8)
    assert sample(replace(m, inner=clipped(m.inner, -3, 3)), 2, steps=6).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 8},
        {"steps": 8, "start": "noised", "seed": 2},
        {"tolerance": 0.1},
        {"steps": 8, "compact": True},
        {"steps": 4, "solver": AsynchronousLeapfrog(4)},
    ],
    ids=str,
)
def test_latents_come_back_to_the_bit(dtype, options, tmp_path):
    m = model()
    x = ((IMAGES + 1) * 127.5).round().to(torch.uint8) if dtype == torch.uint8 else IMAGES.to(dtype)
    latent = encode(m, x, **options)
    z = to_states(m, (x.float() * (2 / 255) - 1) if dtype == torch.uint8 else x)
    assert latent.x.shape == z.shape == (6, 2, 4, 4)
    assert (latent.origin.start, latent.origin.seed) == (options.get("start", "clean"), options.get("seed", 0))
    raw = decode(m.inner, replace(latent, outer=None, mark=()))  # the same latent of the inner model
    assert torch.equal(raw, z)
    back = decode(m, latent)
    assert back.dtype == dtype
    expected = to_data(m, z)
    expected = ((expected + 1) * 127.5).round().clamp(0, 255) if dtype == torch.uint8 else expected
    assert torch.equal(back, expected.to(dtype))
    latent.save(tmp_path / "latent.safetensors")
    assert torch.equal(decode(m, load_latent(tmp_path / "latent.safetensors")), back)


def test_limits_are_those_of_the_images():
    m = model()
    byte = ((IMAGES + 1) * 127.5).round().to(torch.uint8)
    latent = encode(m, byte, steps=4, limits=(0.0, 1.0))
    states = to_states(m, byte / 255)
    torch.testing.assert_close(decode(m.inner, replace(latent, outer=None, mark=())), states, atol=1e-5, rtol=1e-5)
    assert decode(m, latent).dtype == torch.uint8


def test_large_latents_bring_no_warning(recwarn):
    m = replace(model(), scale=20.0)
    decode(m, encode(m, IMAGES, steps=4))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="scale them as in training"):
        encode(m, 10 * IMAGES, steps=4)


def test_interpolation():
    m = model()
    a, b = (encode(m, x, steps=20) for x in IMAGES.split(3))
    between = decode(m, interpolate((a, b), 4)).unflatten(0, (4, 3))
    assert between.shape == (4, 3, 1, 8, 8)
    near = torch.stack([to_data(m, to_states(m, x)) for x in IMAGES.split(3)])
    assert float((between[[0, 3]] - near).abs().max()) < 0.1


@pytest.mark.parametrize("bytes_", [False, True])
def test_a_round_trip_tells_the_autoencoder_s_error_from_the_diffusion_s(bytes_):
    m = model()
    x = ((IMAGES + 1) * 127.5).round().to(torch.uint8) if bytes_ else IMAGES
    found = round_trip(m, x, steps=10)
    unit = 2 / 255 if bytes_ else 1.0
    lost = (decode(m, encode(m, x, steps=10)).double() - x.double()) * unit
    assert found.error == pytest.approx(float(lost.square().mean().sqrt()))
    assert found.error > 0.1
    assert found.coded is not None
    assert (found.coded.error, found.coded.worst, found.coded.differing) == (0, 0, 0)
    assert found.coded.autoencoder == found.error
    assert found.latent is not None
    assert "the autoencoder's own; its codes come back off by 0" in str(found)
    rough = round_trip(m, x, steps=3, solver=DDIM())
    assert rough.coded is not None
    assert rough.coded.autoencoder == found.coded.autoencoder
    assert rough.coded.differing > 0
    inner = round_trip(m.inner, to_states(m, IMAGES), steps=10)
    assert inner.coded is None
    assert bytes_ or (inner.latent == found.latent and inner.gaussian == found.gaussian)


def test_an_image_through_the_sde():
    m = model()
    back = decode_noise(m, encode_noise(m, IMAGES, steps=5))
    torch.testing.assert_close(back, to_data(m, to_states(m, IMAGES)), atol=1e-3, rtol=0)


def test_a_study_of_a_latent_model_judges_images(tmp_path):
    save_model(tmp_path / "m.safetensors", model())
    asked = {
        "name": "tiny",
        "samples": 30,
        "metrics": ["frechet", "frechet@pixels"],
        "model": {"checkpoint": str(tmp_path / "m.safetensors")},
    }
    asked |= {"data": {"name": "digits", "references": 100}, "features": {"extractor": "digits"}, "reference": {"calls": 40}}
    study = study_of({**asked, "cells": [{"solvers": ["DDIM()"], "calls": [5]}]})
    job = Job(study, problem_of(study), Store(tmp_path / "tiny"))
    for _ in run(job):
        pass
    m = load_model(tmp_path / "m.safetensors")
    knots = LogSNR().knots(m.schedule, 5)
    made = to_data(m, solve(DDIM(), m, latents(m, 64), knots).x)[:30]
    exact = to_data(m, solve(RungeKutta("rk4", Angle()), m, latents(m, 64), LogSNR().knots(m.schedule, 10)).x)[:30]
    row = frame(tmp_path / "tiny").set_index("kind").loc["cell"]
    assert made.shape == (30, 1, 8, 8)
    assert row["error"] == pytest.approx(float((made - exact).square().mean().sqrt()), rel=1e-5)
    real = moments(feature_extractor("digits").features(job.problem.real_images(0, 100)))
    assert row["frechet"] == pytest.approx(frechet_distance(feature_extractor("digits").features(made), real), rel=1e-3)


def test_the_command_line(tmp_path):
    save_model(tmp_path / "m.safetensors", model())
    files = {name: str(tmp_path / name) for name in ("m.safetensors", "z.safetensors", "x.npz", "back.npz", "s.safetensors", "s.png")}
    np.savez(files["x.npz"], images=((IMAGES + 1) * 127.5).round().to(torch.uint8).numpy())

    def said(*words):
        result = CliRunner().invoke(app, [*words, "--checkpoint", files["m.safetensors"]])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    text = said("encode", files["x.npz"], "--out", files["z.safetensors"], "--steps", "5", "--report")
    assert "the autoencoder's codes: decodes to the same bits" in text
    assert "its codes come back off by 0" in text
    assert "images are what the autoencoder makes of them" in said("decode", files["z.safetensors"], "--out", files["back.npz"])
    back = np.load(files["back.npz"])["images"]
    byte = torch.from_numpy(np.load(files["x.npz"])["images"])
    assert np.array_equal(back, decode(model(), encode(model(), byte, steps=5)).numpy())
    said("interpolate", files["z.safetensors"], "-n", "3", "--out", files["s.png"])
    said("sample", "-n", "4", "--steps", "5", "--out", files["s.safetensors"])
    assert read(files["s.safetensors"])[0]["x"].shape == (4, 1, 8, 8)
    refused = CliRunner().invoke(app, ["likelihood", files["x.npz"], "--checkpoint", files["m.safetensors"]])
    assert refused.exit_code != 0


# --- data, and the prior ----------------------------------------------------------------------------------------------


def test_a_source_of_latents():
    net = autoencoder()
    found = encode_source(net, SOURCE, batch=32)
    m = LatentDiffusion(network(), net, found.scale, found.shift)
    source = found.source
    assert (len(source), source.shape, source.classes, source.name) == (100, (2, 4, 4), 10, "latents of digits")
    rows = torch.tensor([5, 3])
    x, labels = source.batch(rows)
    torch.testing.assert_close(x, m.states(SOURCE.batch(rows)[0]), atol=1e-5, rtol=1e-5)
    assert labels is not None
    assert torch.equal(labels, LABELS[rows])
    both = encode_source(net, SOURCE, mirrored=True)
    assert len(both.source) == 200
    z, _ = both.source.batch(torch.tensor([7, 107]))
    two = replace(m, scale=both.scale, shift=both.shift).states(torch.stack([DIGITS.x[7], DIGITS.x[7].flip(-1)]))
    torch.testing.assert_close(z, two, atol=1e-5, rtol=1e-5)
    assert both.source.labels is not None
    assert torch.equal(both.source.labels, LABELS[:100].repeat(2))


def test_the_inner_model_learns_from_latents(tmp_path):
    net = autoencoder("none")
    found = encode_source(net, SOURCE)
    inner = network()
    losses = [float(p.loss) for p in fit(inner, found.source, Training(steps=60, batch=32, lr=5e-3, warmup=5), folder=tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    m = LatentDiffusion(load_model(tmp_path / "model.safetensors"), net, found.scale, found.shift)
    assert sample(m, 3, steps=5).shape == (3, 1, 8, 8)


def test_one_giant_step_from_the_prior():
    net = autoencoder()
    x = from_prior(net, 5, (8, 12), seed=1)
    assert x.shape == (5, 1, 8, 12)
    torch.testing.assert_close(from_prior(net, 2, (8, 12), seed=1, first=3), x[3:], atol=1e-5, rtol=1e-5)
    assert not torch.equal(from_prior(net, 5, (8, 12), seed=2), x)
    with pytest.raises(UserError, match="has a prior"):
        from_prior(autoencoder("vq"), 5, (8, 8))
    with pytest.raises(UserError, match="divisible by 2"):
        from_prior(net, 5, (8, 9))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_one_file_holds_it_all(kind, tmp_path):
    m = model(kind)
    save_model(tmp_path / "m.safetensors", m, {"note": "x"})
    again = load_model(tmp_path / "m.safetensors")
    assert isinstance(again, LatentDiffusion)
    assert (again.scale, again.shift, again.shape) == (m.scale, m.shift, m.shape)
    assert torch.equal(sample(again, 3, steps=5), sample(m, 3, steps=5))
    assert torch.equal(decode(again, encode(m, IMAGES, steps=5)), decode(m, encode(m, IMAGES, steps=5)))
    assert not any(p.requires_grad for p in again.autoencoder.parameters())
    assert torch.equal(load_autoencoder(tmp_path / "m.safetensors").encode(IMAGES), m.autoencoder.encode(IMAGES))


def _changed(about, tensors, change):
    about, tensors = json.loads(json.dumps(about)), dict(tensors)
    change(about, tensors)
    return about, tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, t: a.pop("scale"), "scale is missing"),
        (lambda a, t: a.pop("inner"), "inner is missing"),
        (lambda a, t: a.update(inner=3), "inner is missing"),
        (lambda a, t: a.update(scale=0.0), "parts do not belong together.*positive"),
        (lambda a, t: a.update(scale="1"), "parts do not belong together"),
        (lambda a, t: a["inner"].update(shape=[3, 4, 4]), "codes have shape|do not fit|not fitting|can build"),
        (lambda a, t: a["inner"].update(network="u-net"), "u-net"),
        (lambda a, t: a["autoencoder"].update(width=16), "another architecture"),
        (lambda a, t: a["autoencoder"].update(regulariser="x"), "does not describe an autoencoder"),
        (lambda a, t: a.update(autoencoder=None), "does not describe an autoencoder"),
        (lambda a, t: t.pop("inner.leave.weight"), "another architecture"),
        (lambda a, t: t.update(other=torch.zeros(1)), "no part of a latent model"),
    ],
)
def test_damaged_or_mismatched_parts_are_refused(tmp_path, change, said):
    save_model(tmp_path / "m", model())
    tensors, about = read(tmp_path / "m")
    about, tensors = _changed(about, tensors, change)
    save_file(tensors, tmp_path / "m", metadata={"sdediff": json.dumps(about)})
    with pytest.raises(UserError, match=said):
        load_model(tmp_path / "m")


def test_other_files_are_refused(tmp_path):
    save_model(tmp_path / "plain", network())
    with pytest.raises(UserError, match="no autoencoder"):
        load_autoencoder(tmp_path / "plain")
    with pytest.raises(UserError, match="save what it wraps"):
        save_model(tmp_path / "m", replace(model(), inner=clipped(network())))
    save_autoencoder(tmp_path / "a", autoencoder())
    assert torch.equal(load_autoencoder(tmp_path / "a").encode(IMAGES), autoencoder().encode(IMAGES))
    save_model(tmp_path / "m", model())
    (tmp_path / "cut").write_bytes((tmp_path / "m").read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "cut")


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_cannot_be(scale):
    with pytest.raises(UserError, match="positive number"):
        replace(model(), scale=scale)
    with pytest.raises(UserError, match="positive number"):
        replace(model(), shift=math.nan)


def test_parts_that_do_not_fit():
    with pytest.raises(UserError, match=r"codes have shape \(2, h, w\), but the inner model works on \(3, 4, 4\)"):
        LatentDiffusion(network((3, 4, 4)), autoencoder())
    with pytest.raises(UserError, match="model of the latents"):
        LatentDiffusion(model(), autoencoder())
    with pytest.raises(UserError, match="model of the latents"):
        LatentDiffusion(network().net, autoencoder())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Autoencoder"):
        LatentDiffusion(network(), network().net)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="divisible by 2"):
        encode_source(autoencoder(channels=3), SOURCE)
    dead = autoencoder()
    for p in dead.parameters():
        p.zero_()
    with pytest.raises(UserError, match="standard deviation 0"):
        latent_scale(dead, SOURCE)


def test_images_that_do_not_fit():
    for shape in ((2, 3, 8, 8), (2, 1, 16, 16), (2, 2, 4, 4)):
        with pytest.raises(UserError, match=r"takes \(batch, 1, 8, 8\)"):
            encode(model(), torch.zeros(shape), steps=3)
    with pytest.raises(UserError, match=r"latents of an autoencoder: model\.states\(images\)"):
        solve(DDIM(), model(), IMAGES, LogSNR().knots(VPLinear(), 3))


def test_a_density_of_images_is_refused():
    for verb in (log_likelihood, elbo, continuous_bound):
        with pytest.raises(UserError, match="no density of images"):
            verb(model(), IMAGES)


def test_a_latent_belongs_to_its_autoencoder():
    m = model()
    latent = encode(m, IMAGES, steps=4)
    other = replace(m, autoencoder=autoencoder("none"))
    raw = encode(m.inner, to_states(m, IMAGES), steps=4)
    for foreign, given in ((other, latent), (m.inner, latent), (m, raw)):
        with pytest.raises(UserError, match="another model"):
            decode(foreign, given)
    assert torch.equal(decode(m, raw, check=False), decode(m, latent))


def test_a_fixed_grid_of_ones_own():
    m = model()
    latent = encode(m, IMAGES, steps=4, solver=DDIM())
    assert decode(m, latent.single(), knots=Fixed(LogSNR().knots(m.schedule, 6))).shape == IMAGES.shape
