"""The verbs: encode, decode, round_trip, interpolate; the typed latent in memory and on disk; what is refused and why."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sdediff import (
    DDIM,
    DDPM,
    AdaptiveAdams,
    Angle,
    AsynchronousLeapfrog,
    ExponentialAdams,
    Gaussian,
    Heun,
    Latent,
    Leapfrog,
    LogSNR,
    Milne,
    Mixture,
    Origin,
    Prediction,
    SciPy,
    UserError,
    VPCosine,
    VPLinear,
    decode,
    determinism,
    encode,
    interpolate,
    load_latent,
    load_model,
    recommend,
    round_trip,
)
from sdediff.bits import bits
from sdediff.data import digits, idx_images
from sdediff.metrics import MetricError, gaussianity
from sdediff.pretrained.scores import digits_path

SCHEDULE = VPLinear()


def mixture(schedule=SCHEDULE) -> Mixture:
    return Mixture([[0.7, 0.0], [-0.5, 0.6], [0.0, -0.7]], [0.15, 0.2, 0.3], [1, 2, 3], schedule=schedule)


@pytest.fixture(scope="module")
def network():
    return load_model(digits_path())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


# --- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["clean", "noised"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_an_image_of_any_type_comes_back_to_the_bit(dtype, start):
    x = mixture().sample(32, seed=0)
    x = (x * 60 + 128).clamp(0, 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)
    for solver in (None, AsynchronousLeapfrog(4), Leapfrog(), Milne()):
        latent = encode(mixture(), x, steps=8, solver=solver, start=start, seed=4)
        assert latent.x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert same(decode(mixture(), latent), x)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_digits_network_gives_its_images_back(network, kind, steps):
    x = digits().x[:8]
    x = ((x + 1) * 127.5).round().to(torch.uint8) if kind == "uint8" else x + 1e-3 * torch.randn(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(decode(network, encode(network, x, steps=steps)), x)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_third_party_network_gives_its_images_back(real_data, kind):
    from sdediff.interop.hot_vs_cold import load_hot_vs_cold

    model = load_hot_vs_cold(real_data / "weights" / "yichizz_ddpm_mnist_starter.pth")
    x = idx_images(real_data / "mnist" / "train-images-idx3-ubyte.gz").x[:2] / 2
    x = ((x + 0.5) * 255).round().to(torch.uint8) if kind == "uint8" else x
    for steps in (10, 20, 50):
        assert same(decode(model, encode(model, x, steps=steps, limits=(-0.5, 0.5), start="noised")), x)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_a_network_gives_them_back_on_steps_of_each_image_s_own(network, tolerance):
    """Samples leave one by one, and a network's last bits depend on how many there are: it is asked about all of them all along."""
    x = digits().x[:16]
    for start in ("clean", "noised"):
        latent = encode(network, x, tolerance=tolerance, start=start)
        assert len({*(latent.knots.times != latent.knots.times[-1]).sum(0)}) > 1  # type: ignore[union-attr]
        assert same(decode(network, latent), x)
    compact = encode(network, x, tolerance=tolerance, compact=True)
    assert same(decode(network, compact), x)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.uint32, (20, 2), elements=st.integers(0, 2**32 - 1)), st.sampled_from(["clean", "noised"]))
@pytest.mark.filterwarnings("ignore:the images hold values")
def test_extreme_images_come_back_too(raw, start):
    x = torch.from_numpy(raw.view(np.float32).copy())
    x = torch.where(torch.isfinite(x), x, -0.0)
    assert same(decode(mixture(), encode(mixture(), x, steps=4, start=start)), x)


def test_with_a_tolerance_each_sample_takes_its_own_steps_and_comes_back():
    x = mixture().sample(32, seed=0).float()
    latent = encode(mixture(), x, tolerance=1e-3)
    assert same(decode(mixture(), latent), x)
    approximate = encode(mixture(), x, tolerance=1e-4, solver=AdaptiveAdams())
    assert float((decode(mixture(), approximate) - x).abs().max()) < 0.05
    assert float((approximate.x - encode(mixture(), x, calls=200).x).square().mean().sqrt()) < 1e-3


def test_the_recommended_decoder_has_order_four_from_sixty_calls_on():
    x = mixture().sample(4, seed=0)
    assert encode(mixture(), x, calls=59).solver == AsynchronousLeapfrog(2)
    latent = encode(mixture(), x, calls=61)
    assert latent.solver == AsynchronousLeapfrog(4)
    assert latent.calls == 61


# --- one tensor ---------------------------------------------------------------------------------------------------


def test_one_tensor_gives_it_back_approximately():
    x = mixture().sample(64, seed=0).float()
    latent = encode(mixture(), x, steps=50)
    one = latent.single()
    assert one.memory is None
    assert one.bytes == x.numel() * 4 < latent.bytes
    off = float((decode(mixture(), one) - x).square().mean().sqrt())
    assert 0 < off < 1e-4
    accurate = encode(mixture(), x, calls=100, solver=ExponentialAdams(4, "v", "angle"), grid=LogSNR()).single()
    assert decode(mixture(), accurate, solver=AdaptiveAdams(), knots=accurate.knots).shape == x.shape


def test_one_tensor_and_a_small_rest_give_it_back_to_the_bit(network):
    x = ((digits().x[:32] + 1) * 127.5).round().to(torch.uint8)
    latent = encode(network, x, steps=50, compact=True)
    assert latent.memory is None
    assert same(decode(network, latent), x)
    assert len(latent.origin.rest or b"") * 8 / x.numel() < 0.6  # bits a pixel
    approximate = encode(network, x, steps=20, solver=Heun(), compact=True)
    assert approximate.origin.rest is not None
    assert same(decode(network, approximate), x)
    assert not same(decode(network, approximate.single()), x)


# --- what is encoded ----------------------------------------------------------------------------------------------


def test_the_latents_of_sharp_images_are_gaussian_only_from_a_noised_start():
    """Data on a line, as flat as the edges of MNIST: the clean start does not fill the flat direction."""
    model = Mixture([[0.5, 0.0], [-0.5, 0.0]], [[0.3, 1e-6], [0.3, 1e-6]], schedule=SCHEDULE)
    x = model.sample(400, seed=0)
    clean, noised = (encode(model, x, calls=100, start=s).x for s in ("clean", "noised"))
    assert float(clean[:, 1].std()) < 0.01
    assert float(noised[:, 1].std()) == pytest.approx(1, abs=0.15)
    assert gaussianity(noised).ks < 0.06 < gaussianity(clean).ks


def test_the_noise_of_a_noised_start_is_taken_off_again():
    """By a decoder that is not exact, so that nothing else makes up for it."""
    schedule = VPLinear()
    model = Gaussian([0.0, 0.0], [1.0, 1.0], schedule=schedule)
    x = model.sample(50, seed=0)
    latent = replace(encode(model, x, steps=50, solver=Heun(Angle()), start="noised"), origin=Origin(torch.float64, start="noised"))
    assert float((latent.origin.state(x, latent.end) - x).abs().mean()) > 0.005
    assert torch.allclose(decode(model, latent), x, rtol=0, atol=1e-12)


def test_noise_of_a_sample_is_a_function_of_its_number():
    x = mixture().sample(6, seed=0)
    whole = encode(mixture(), x, steps=5, start="noised", seed=1)
    part = encode(mixture(), x[4:], steps=5, start="noised", seed=1, first=4)
    assert torch.allclose(whole.x[4:], part.x, rtol=0, atol=1e-12)
    assert not torch.allclose(encode(mixture(), x, steps=5, start="noised", seed=2).x, whole.x)


# --- round_trip, determinism --------------------------------------------------------------------------------------


def test_a_report_of_a_round_trip():
    x = mixture().sample(128, seed=0)
    exact, naive = (round_trip(mixture(), x, steps=20, start="noised", solver=s) for s in (None, DDIM()))
    assert (exact.error, exact.worst, exact.differing) == (0, 0, 0)
    assert naive.error > 0.01
    assert naive.differing == 256
    assert exact.latent is not None
    assert naive.latent is not None
    assert exact.latent[0] < 0.1 * naive.latent[0]
    assert (exact.calls, exact.back, naive.calls) == (21, 20, 20)
    assert exact.single < 0.1 * naive.single
    assert "0 values differ" in str(exact)
    assert round_trip(mixture(), x, steps=5, converged=False).latent is None
    own = encode(mixture(), x, steps=20, start="noised").x
    given = round_trip(mixture(), x, steps=20, start="noised", converged=own)
    assert given.latent == (0, 0)
    some = round_trip(mixture(), x, steps=20, start="noised", converged=torch.cat([own[:1] + 1, own[1:]])).latent
    assert some is not None
    assert some[0] == pytest.approx(128**-0.5)  # one sample of 128 is off by 1: not the median
    assert some[1] == 0


def test_gaussianity_finds_what_is_not():
    z = torch.randn(2000, 5)
    good = gaussianity(z)
    assert good.ks < 0.02
    assert good.std == pytest.approx(1, abs=0.03)
    assert gaussianity(z + 2.0).mean == pytest.approx(2.0, abs=0.05)
    assert gaussianity(z + torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])).mean == pytest.approx(1.0, abs=0.05)
    assert gaussianity(0.8 * z).ks > 0.04
    assert gaussianity(z + torch.tensor([1.0, 0, 0, 0, 0])).rejected == pytest.approx(0.2, abs=0.21)
    assert gaussianity(torch.rand(2000, 5)).rejected == 1
    with pytest.raises(MetricError):
        gaussianity(torch.full((3, 2), math.nan))


class Mixing:
    """A network that subtracts the mean over its batch, as batch norm in training mode does."""

    def __init__(self, model):
        self.model, self.schedule, self.shape = model, model.schedule, model.shape

    def __call__(self, x, t):
        p = self.model(x, t)
        return Prediction(x, t, p.value - 0.1 * p.value.mean(0), p.kind)

    def rows(self, index):
        return self


class Random(Mixing):
    """Dropout that was left on."""

    def __call__(self, x, t):
        p = self.model(x, t)
        return Prediction(x, t, p.value * (1 + 1e-3 * torch.randn_like(x)), p.kind)


def test_a_network_that_mixes_its_batch_is_found():
    x = mixture().sample(8, seed=0)
    good, mixing, random = (determinism(m, x) for m in (mixture(), Mixing(mixture()), Random(mixture())))
    assert good.repeats
    assert good.off < 1e-12
    assert mixing.repeats
    assert not mixing.alone
    assert mixing.off > 1e-3
    assert not random.repeats
    latent = encode(Mixing(mixture()), x, steps=10)  # in the same batch it comes back all the same
    assert same(decode(Mixing(mixture()), latent, check=False), x)


# --- between latents ----------------------------------------------------------------------------------------------


def test_slerp_keeps_the_norm_of_each_sample_and_both_ends():
    a, b = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    way = interpolate((a, b), 7)
    assert way.shape == (7, 5, 3, 4)
    assert torch.allclose(way[0], a, atol=1e-6)
    assert torch.allclose(way[-1], b, atol=1e-6)
    alone = interpolate((a[:1], b[:1]), 7)  # each sample has its own angle
    assert torch.allclose(way[:, :1], alone, atol=1e-6)
    norms = way.flatten(2).norm(dim=2)
    assert bool((norms >= torch.minimum(norms[0], norms[-1]) * 0.98).all())
    assert bool((interpolate((a, b), 3, "linear")[1].flatten(1).norm(dim=1) < 0.9 * norms[0]).any())


def test_latents_interpolate_to_latents_that_decode(network, tmp_path):
    images = digits().x[:4]
    a, b = (encode(network, part, steps=10) for part in images.split(2))
    way = interpolate((a, b), 5)
    assert isinstance(way, Latent)
    assert way.solver == recommend(network.schedule, 10)[0]
    way.save(tmp_path / "way.safetensors")  # its last steps have lower order, also when it is read again
    assert same(decode(network, load_latent(tmp_path / "way.safetensors")), decode(network, way))
    shown = decode(network, way).unflatten(0, (5, 2))
    assert float((shown[0] - images[:2]).square().mean().sqrt()) < 0.1
    own = interpolate(tuple(encode(network, part, tolerance=1e-2) for part in images.split(2)), 5)  # type: ignore[arg-type]
    assert float((decode(network, own)[:2] - images[:2]).square().mean().sqrt()) < 0.1
    with pytest.raises(UserError, match="different decoders"):
        interpolate((a, encode(network, images[2:], steps=11)), 5)
    with pytest.raises(UserError, match="both"):
        interpolate((a, b.x), 5)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="two batches"):
        interpolate((a.x, b.x[:1]), 5)


# --- on disk ------------------------------------------------------------------------------------------------------


FILES = [{"steps": 6}, {"tolerance": 1e-2}, {"steps": 6, "solver": Milne()}, {"steps": 6, "compact": True},
         {"steps": 4, "solver": Heun(), "start": "noised"}, {"steps": 1, "solver": SciPy()}]  # fmt: skip


@pytest.mark.parametrize("options", FILES, ids=str)
def test_a_file_decodes_to_the_same_bits(tmp_path, options):
    x = mixture().sample(8, seed=0).float()
    latent = encode(mixture(), x, **options)
    latent.save(tmp_path / "latent.safetensors")
    loaded = load_latent(tmp_path / "latent.safetensors")
    assert loaded.solver == latent.solver
    assert same(decode(mixture(), loaded), decode(mixture(), latent))
    assert loaded.bytes == latent.bytes
    assert loaded.calls == latent.calls


def test_files_that_are_no_latents(tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match="no latent"):
        load_latent(digits_path())
    path = tmp_path / "latent.safetensors"
    encode(mixture(), mixture().sample(4, seed=0), steps=3).save(path)
    from sdediff.checkpoint import read, write

    tensors, about = read(path)
    for lost in ("memory.0", "times", "x", "memory.time.0"):
        write(path, {k: v for k, v in tensors.items() if k != lost}, about)
        with pytest.raises(UserError, match=f"{lost}.* is missing"):
            load_latent(path)
    save_file(load_file(path), tmp_path / "bare.safetensors")
    with pytest.raises(UserError):
        load_latent(tmp_path / "bare.safetensors")


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_latent_is_decoded_only_by_what_made_it():
    x = mixture().sample(8, seed=0)
    latent = encode(mixture(), x, steps=5)
    other = Mixture([[0.7, 0.1], [-0.5, 0.6], [0.0, -0.7]], [0.15, 0.2, 0.3], [1, 2, 3], schedule=SCHEDULE)
    with pytest.raises(UserError, match="another model"):
        decode(other, latent)
    assert decode(other, latent, check=False).shape == x.shape
    with pytest.raises(UserError, match="VPCosine"):
        decode(mixture(VPCosine()), latent)
    wide = Mixture([[0.0, 0.0, 0.0]], [1.0], schedule=SCHEDULE)
    with pytest.raises(UserError, match="shape"):
        decode(wide, latent)
    with pytest.raises(UserError, match="single"):
        decode(mixture(), latent, knots=LogSNR().knots(SCHEDULE, 5))
    with pytest.raises(UserError, match="single"):
        decode(mixture(), latent, solver=DDIM())
    compact = encode(mixture(), x, steps=5, compact=True)  # what it lacks, it lacks of this very decoding
    with pytest.raises(UserError, match="single"):
        decode(mixture(), compact, knots=LogSNR().knots(SCHEDULE, 7))
    assert decode(mixture(), latent.single(), knots=LogSNR().knots(SCHEDULE, 50), solver=Heun()).shape == x.shape
    with pytest.raises(UserError, match="whole batch"):
        decode(mixture(), replace(encode(mixture(), 1e-20 * x.float(), steps=3), x=x[:3].float(), memory=None))


def test_what_cannot_be_encoded():
    x = mixture().sample(8, seed=0)
    for wrong, message in ((x.long(), "uint8"), (x[0], "batch"), (x.masked_fill(x > 0.5, math.nan), "NaN"), (x[:0], "at least one")):
        with pytest.raises(UserError, match=message):
            encode(mixture(), wrong, steps=3)
    with pytest.raises(UserError, match="low below high"):
        encode(mixture(), x, steps=3, limits=(1.0, -1.0))
    with pytest.raises(UserError, match="such as DDIM"):
        encode(mixture(), x, steps=3, solver="DDIM")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="load_latent"):
        decode(mixture(), "latent.safetensors")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="two batches"):
        interpolate(encode(mixture(), x, steps=3), 3)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="encode_noise"):
        encode(mixture(), x, steps=3, solver=DDPM())
    with pytest.raises(UserError, match="start"):
        encode(mixture(), x, steps=3, start="dirty")
    with pytest.raises(UserError, match="steps"):
        encode(mixture(), x)
    with pytest.raises(UserError, match="tolerance"):
        encode(mixture(), x, tolerance=1e-2, steps=3)
    with pytest.raises(UserError, match="error estimate"):
        encode(mixture(), x, tolerance=1e-2, solver=DDIM())
    with pytest.warns(UserWarning, match="scale them"):
        encode(mixture(), 100 * x, steps=3)
    with pytest.warns(UserWarning, match="outside"):
        encode(mixture(), x, steps=3, limits=(0.0, 1.0))
