"""encode, decode, interpolate and likelihood on files, as a user meets them: the same bits come back, and a mistake is one sentence."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import sdediff, tiny

from sdediff import Hutchinson, Levels, VPLinear, load_model, log_likelihood
from sdediff.data import DataError, digits, read_images
from sdediff.data.images import pixels, png, sheet
from sdediff.inversion import decode, encode, interpolate
from sdediff.latent import load_latent
from sdediff.networks import MLP
from sdediff.pretrained.scores import digits_path
from sdediff.score import ScoreNet

__all__ = ["sdediff"]

REAL = digits().x[:4]  # (4, 1, 8, 8), multiples of 1/8
BYTES = pixels(REAL, (-1.0, 1.0)).numpy()[:, 0]  # (4, 8, 8)
RNG = np.random.default_rng(0)


def pictures(folder: Path, images: np.ndarray = BYTES) -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"digit{i + 8}.png")  # digit10 after digit9
    return folder


def good(run) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- round trips --------------------------------------------------------------------------------------------------

WAYS = {
    "default": ["--steps", "10"],
    "compact": ["--steps", "10", "--compact"],
    "noised": ["--steps", "10", "--start", "noised", "--seed", "3"],
    "adaptive": ["--tolerance", "0.05"],
    "calls": ["--calls", "30"],
    "leapfrog": ["--steps", "20", "--solver", "Milne()", "--grid", "Uniform()"],
}


@pytest.mark.parametrize("way", WAYS)
def test_pictures_come_back_pixel_by_pixel(way, sdediff, tmp_path):
    pictures(tmp_path / "in")
    said = good(sdediff("encode", "in", "--out", "z.safetensors", *WAYS[way]))
    assert "4 images 1 x 8 x 8 of uint8" in said
    assert "same bits" in said
    assert "same bits" in good(sdediff("decode", "z.safetensors", "--out", "back"))
    files = sorted((tmp_path / "back").iterdir())
    assert [f.name for f in files] == ["0.png", "1.png", "2.png", "3.png"]
    for file, image in zip(files, BYTES, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_arrays_come_back_bit_by_bit(dtype, sdediff, tmp_path):
    x = BYTES[:, None] if dtype == "uint8" else (REAL.numpy() + 1e-3 * RNG.standard_normal(REAL.shape)).astype(dtype)
    if dtype != "uint8":
        x[0, 0, 0, :4] = -0.0, 1e-20, 0.1, -1e-7
    np.savez(tmp_path / "in.npz", pictures=x)
    good(sdediff("encode", "in.npz", "--steps", "10", "--out", "z.safetensors"))
    good(sdediff("decode", "z.safetensors", "--out", "back.npz"))
    assert same_bits(np.load(tmp_path / "back.npz")["images"], x)


def test_bfloat16_and_samples_go_through_safetensors(sdediff, tmp_path):
    x = REAL.bfloat16()
    save_file({"x": x}, tmp_path / "in.safetensors")
    good(sdediff("encode", "in.safetensors", "--steps", "5", "--out", "z.safetensors"))
    assert "bfloat16" in sdediff("decode", "z.safetensors", "--out", "back.npz").stderr
    good(sdediff("decode", "z.safetensors", "--out", "back.safetensors"))
    assert torch.equal(load_file(tmp_path / "back.safetensors")["x"].view(torch.int16), x.view(torch.int16))
    good(sdediff("sample", "-n", "3", "--out", "drawn.safetensors"))
    good(sdediff("encode", "drawn.safetensors", "--steps", "5", "--out", "z.safetensors"))
    good(sdediff("decode", "z.safetensors", "--out", "again.safetensors"))
    drawn, again = (load_file(tmp_path / f"{name}.safetensors")["x"] for name in ("drawn", "again"))
    assert torch.equal(drawn, again)


def test_a_single_tensor_says_that_it_is_approximate(sdediff, tmp_path):
    pictures(tmp_path / "in")
    for options in (["--single"], ["--solver", "DDIM()"]):
        assert "approximately" in good(sdediff("encode", "in", "--steps", "20", "--out", "z.safetensors", *options))
        assert "approximately" in good(sdediff("decode", "z.safetensors", "--out", "x.npz"))
    assert "up to rounding" in good(sdediff("encode", "in", "--steps", "5", "--solver", "EDICT(p=0.93)", "--out", "z.safetensors"))


def test_the_report_and_the_first_ones(sdediff, tmp_path):
    pictures(tmp_path / "in")
    said = good(sdediff("encode", "in", "-n", "2", "--steps", "10", "--out", "z.safetensors", "--report"))
    for part in ("2 images", "0 values differ", "one tensor", "latent error", "network        the same bits"):
        assert part in said


def test_as_processes_the_same_bits(tmp_path):
    pictures(tmp_path / "in")
    for command in (["encode", "in", "--steps", "10", "--out", "z.safetensors"], ["decode", "z.safetensors", "--out", "x.npz"]):
        run = subprocess.run(
            [sys.executable, "-m", "sdediff", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
    assert same_bits(np.load(tmp_path / "x.npz")["images"], BYTES[:, None])


def test_colour_with_limits_of_its_own(sdediff, tmp_path):
    tiny(tmp_path / "net.safetensors", (3, 8, 6))
    colour = RNG.integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    pictures(tmp_path / "in", colour)
    good(sdediff("encode", "in", "--steps", "4", "--checkpoint", "net.safetensors", "--limits", "-0.5", "0.5", "--out", "z.safetensors"))
    for out in ("back", "back.png", "back.npz"):
        good(sdediff("decode", "z.safetensors", "--checkpoint", "net.safetensors", "--out", out))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / "1.png")), colour[1])
    assert same_bits(np.load(tmp_path / "back.npz")["images"], np.ascontiguousarray(colour.transpose(0, 3, 1, 2)))
    assert load_latent(tmp_path / "z.safetensors").origin.limits == (-0.5, 0.5)


def test_floats_become_pictures_by_their_limits(sdediff, tmp_path):
    np.savez(tmp_path / "in.npz", 0.5 * REAL.numpy())
    good(sdediff("encode", "in.npz", "--steps", "5", "--limits", "-0.5", "0.5", "--out", "z.safetensors"))
    assert "rounded to 8 bits" in good(sdediff("decode", "z.safetensors", "--out", "back"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / "2.png")), BYTES[2])


# --- between latents ----------------------------------------------------------------------------------------------


def test_interpolation_on_files_is_that_of_the_library(sdediff, tmp_path):
    np.save(tmp_path / "in.npy", BYTES)
    good(sdediff("encode", "in.npy", "--steps", "10", "--out", "z.safetensors"))
    good(sdediff("interpolate", "z.safetensors", "-n", "5", "--kind", "linear", "--out", "halves.npz"))
    model, latent = load_model(digits_path()), load_latent(tmp_path / "z.safetensors")
    ends = latent.of(latent.x[:2]), latent.of(latent.x[2:])
    expected = decode(model, interpolate(ends, 5, "linear")).unflatten(0, (5, 2)).transpose(0, 1)
    assert np.array_equal(np.load(tmp_path / "halves.npz")["images"], expected.numpy())
    good(sdediff("interpolate", "z.safetensors", "--pairs", "-n", "3", "--out", "steps.safetensors"))
    chain = load_file(tmp_path / "steps.safetensors")["x"]
    assert chain.shape == (3, 3, 1, 8, 8)
    assert (chain[0, 2].int() - chain[1, 0].int()).abs().max() <= 1  # where one row ends the next begins
    assert (chain[:, 0, 0].int() - torch.from_numpy(BYTES[:3]).int()).abs().max() < 16  # from one tensor: near the images
    good(sdediff("interpolate", "z.safetensors", "z.safetensors", "-n", "2", "--out", "frames"))
    assert len(list((tmp_path / "frames").glob("?-?.png"))) == 8
    good(sdediff("interpolate", "z.safetensors", "--out", "sheet.png"))
    assert Image.open(tmp_path / "sheet.png").size == (4 + 9 * 52, 4 + 2 * 52)


def test_interpolation_of_adaptive_latents(sdediff, tmp_path):
    np.save(tmp_path / "in.npy", BYTES)
    for name, part in (("a", ["-n", "2"]), ("b", ["-n", "2", "--start", "noised"])):
        good(sdediff("encode", "in.npy", "--tolerance", "0.1", "--out", f"{name}.safetensors", *part))
    good(sdediff("interpolate", "a.safetensors", "b.safetensors", "--out", "x.npz"))


# --- likelihood ---------------------------------------------------------------------------------------------------


def test_the_likelihood_of_files_is_that_of_the_library(sdediff, tmp_path):
    pictures(tmp_path / "in")
    options = ["--levels", "17", "--steps", "12", "--trace", "hutchinson", "--probes", "4"]
    said = good(sdediff("likelihood", "in", "-n", "3", *options, "--out", "t.csv"))
    table = pd.read_csv(tmp_path / "t.csv")
    expected = log_likelihood(load_model(digits_path()), REAL[:3], levels=Levels(-1, 1, 17), steps=12, trace=Hutchinson(4))
    assert list(table["image"]) == ["digit8.png", "digit9.png", "digit10.png"]
    assert np.allclose(table["bits_per_dim"], expected.bits_per_dim, atol=1e-9)
    assert np.allclose(table["nats_error"], expected.standard_error, atol=1e-9)
    assert np.allclose(table["truncation"], expected.budget.truncation, atol=1e-9)
    assert f"{float(expected.mean_bits[0]):.4f}" in said
    assert "dequantisation" in said


def test_the_likelihood_of_bytes_and_of_floats(sdediff, tmp_path):
    np.save(tmp_path / "bytes.npy", BYTES)
    np.savez(tmp_path / "floats.npz", REAL.numpy())
    assert "bits per dim" in good(sdediff("likelihood", "bytes.npy", "-n", "1", "--steps", "4"))
    said = good(sdediff("likelihood", "floats.npz", "-n", "1", "--steps", "4"))  # a density has no bits
    assert "bits per dim" not in said
    assert "floats.npz[0]" in said


# --- mistakes -----------------------------------------------------------------------------------------------------


def idx(x: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape) + x.tobytes()


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def zipped(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


GREY, FLOATS = BYTES[0], REAL.numpy()
TRANSPARENT = np.stack([GREY, GREY, GREY, GREY], -1)
BAD_FILES = {
    "big.png": (saved(Image.fromarray(np.zeros((28, 28), np.uint8))), "28 x 28 pixels, but the model's images are 8 x 8"),
    "long.png": (saved(Image.fromarray(np.zeros((4, 16), np.uint8))), "16 x 4 pixels"),
    "colour.png": (saved(Image.fromarray(np.stack([GREY, GREY.T, GREY], -1))), "in colour"),
    "glass.png": (saved(Image.fromarray(TRANSPARENT)), "transparent"),
    "deep.png": (saved(Image.fromarray(GREY.astype(np.uint16) * 256)), "16 bits"),
    "ink.jpg": (saved(Image.fromarray(TRANSPARENT, "CMYK"), "JPEG"), "CMYK"),
    "text.png": (b"hello", "cannot be read as a PNG"),
    "cut.png": (saved(Image.fromarray(GREY))[:60], "truncated"),
    "notes.txt": (b"hello", "is no file of images"),
    "empty.npz": (b"", "cannot be read as NumPy's"),
    "cut.npz": (zipped(x=FLOATS)[:300], "cannot be read as NumPy's"),
    "pickle.npz": (zipped(x=np.array([{1: 2}], object)), "never loaded"),
    "two.npz": (zipped(a=FLOATS, b=FLOATS), "holds the arrays a, b"),
    "int.npz": (zipped(x=FLOATS.astype(np.int64)), "astype(np.uint8)"),
    "other.npz": (zipped(x=np.zeros((3, 9, 9), np.float32)), "Nothing is resized"),
    "none.npz": (zipped(x=np.zeros((0, 8, 8), np.float32)), "holds no images"),
    "nan.npz": (zipped(x=np.where(FLOATS > 0, np.nan, FLOATS)), "NaN"),
    "big.idx.gz": (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))), "Nothing is resized"),
    "cut.idx": (idx(BYTES)[:40], "truncated"),
    "no.safetensors": (b"nothing", "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_does_not_fit_is_refused_with_the_cure(name, sdediff, tmp_path):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    for command in (["encode", name, "--steps", "2", "--out", "z.safetensors"], ["likelihood", name, "--steps", "2"]):
        run = sdediff(*command)
        assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
        assert expected in run.stderr
    assert not (tmp_path / "z.safetensors").exists()


MISTAKES = {
    "no such file": (["encode", "nowhere.png"], "no file or folder nowhere.png"),
    "empty folder": (["encode", "empty"], "holds no images"),
    "no images": (["encode"], "images"),
    "two types": (["encode", "in", "floats.npy"], "one by one"),
    "another ending": (["encode", "in", "--out", "z.npz"], ".safetensors"),
    "unwritable": (["encode", "in", "--out", "file/z.safetensors"], "cannot be written"),
    "on top of the images": (["encode", "x.safetensors", "--out", "x.safetensors"], "overwrite"),
    "latents as images": (["encode", "z.safetensors", "--out", "y.safetensors"], "sdediff decode"),
    "steps and calls": (["encode", "in", "--steps", "3", "--calls", "3"], "one of the two"),
    "compact and single": (["encode", "in", "--compact", "--single"], "one of the two"),
    "no steps": (["encode", "in", "--steps", "0"], "at least 1"),
    "unknown start": (["encode", "in", "--start", "noisy"], "Did you mean 'noised'?"),
    "unknown solver": (["encode", "in", "--solver", "DDMI()"], "Did you mean 'DDIM'?"),
    "no inverse": (["encode", "in", "--solver", "DDPM()"], "has no inverse"),
    "limits the wrong way": (["encode", "in", "--limits", "1", "-1"], "the smaller first"),
    "no images at all": (["encode", "in", "-n", "0"], "at least 1"),
    "no such latents": (["decode", "nowhere.safetensors"], "no file nowhere.safetensors"),
    "images as latents": (["decode", "in/digit8.png"], "not a whole safetensors file"),
    "a network as latents": (["decode", str(digits_path())], "holds no latent"),
    "another network": (["decode", "z.safetensors", "--checkpoint", "small.safetensors"], "--no-check"),
    "another shape": (["decode", "z.safetensors", "--checkpoint", "wide.safetensors"], "(1, 9, 9)"),
    "another shape, unchecked": (["decode", "z.safetensors", "--checkpoint", "wide.safetensors", "--no-check"], "(batch, 1, 9, 9)"),
    "lossy pictures": (["decode", "z.safetensors", "--out", "x.jpg"], ".npz"),
    "other images there": (["decode", "z.safetensors", "--out", "in"], "other images"),
    "points as pictures": (["decode", "points.latent.safetensors", "--out", "x.png"], "no pictures"),
    "three of them": (["interpolate", *["z.safetensors"] * 3], "or two"),
    "one end": (["interpolate", "z.safetensors", "-n", "1"], "at least 2"),
    "unknown kind": (["interpolate", "z.safetensors", "--kind", "spline"], "choose one of 'slerp'"),
    "odd halves": (["interpolate", "odd.safetensors"], "--pairs"),
    "as many of both": (["interpolate", "z.safetensors", "odd.safetensors"], "as many of both"),
    "other steps": (["interpolate", "z.safetensors", "other.safetensors"], "same solver and steps"),
    "no such levels": (["likelihood", "in", "--levels", "5"], "none of 5 grey levels"),
    "unknown trace": (["likelihood", "in", "--trace", "hutchpp"], "Did you mean 'hutch++'?"),
    "exact probes": (["likelihood", "in", "--trace", "exact", "--probes", "3"], "takes no probes"),
    "stochastic flow": (["likelihood", "in", "--solver", "DDPM()"], "DDPM"),
    "no table": (["likelihood", "in", "--out", "t.xls"], ".csv"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with images, latents, networks, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    model, x = load_model(digits_path()), torch.from_numpy(BYTES[:, None])
    pictures(folder / "in")
    (folder / "empty").mkdir()
    (folder / "file").write_text("in the way")
    np.save(folder / "floats.npy", REAL.numpy())
    save_file({"x": REAL}, folder / "x.safetensors")
    encode(model, x, steps=4).save(folder / "z.safetensors")
    encode(model, x, steps=5).save(folder / "other.safetensors")
    encode(model, x[:3], steps=4).save(folder / "odd.safetensors")
    tiny(folder / "small.safetensors", (1, 8, 8))
    tiny(folder / "wide.safetensors", (1, 9, 9))
    points = ScoreNet(MLP((2,), width=8, depth=1), VPLinear(), "v", "lam", shape=(2,))
    encode(points, torch.zeros(3, 2), steps=2).save(folder / "points.latent.safetensors")
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_sentence(case, sdediff, prepared, tmp_path):
    arguments, expected = MISTAKES[case]
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    run = sdediff(*arguments)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
    assert expected in run.stderr
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_range_outside_the_training_is_a_warning(sdediff, tmp_path):
    np.savez(tmp_path / "in.npz", 100 * REAL.numpy())
    run = sdediff("encode", "in.npz", "--steps", "2", "--out", "z.safetensors")
    assert good(run)
    assert "warning the images hold values from -100 to 100" in run.stderr
    assert ".py" not in run.stderr


def test_editing_on_purpose(sdediff, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    good(sdediff("decode", "z.safetensors", "--checkpoint", "small.safetensors", "--no-check", "--out", "x.npz"))


# --- the reader ---------------------------------------------------------------------------------------------------


def test_every_arrangement_is_read_alike(tmp_path):
    colour = RNG.integers(0, 256, (5, 3, 8, 6), dtype=np.uint8)
    cases = {
        "first": (colour, (3, 8, 6), colour),
        "last": (colour.transpose(0, 2, 3, 1), (3, 8, 6), colour),
        "one": (colour[0], (3, 8, 6), colour[:1]),
        "one, last": (colour[0].transpose(1, 2, 0), (3, 8, 6), colour[:1]),
        "grey for colour": (colour[:, 0], (3, 8, 6), colour[:, [0, 0, 0]]),
        "equal channels for grey": (colour[:, [0, 0, 0]], (1, 8, 6), colour[:, :1]),
        "bare grey": (colour[:, 0], (1, 8, 6), colour[:, :1]),
        "one bare grey": (colour[0, 0], (1, 8, 6), colour[:1, :1]),
        "unknown, last": (colour.transpose(0, 2, 3, 1), None, colour),
        "unknown, bare": (colour[:, 0], None, colour[:, :1]),
        "fortran": (np.asfortranarray(colour), (3, 8, 6), colour),
        "points": (np.zeros((4, 2), np.float32), (2,), np.zeros((4, 2), np.float32)),
        "big endian": (colour.astype(">f4"), (3, 8, 6), colour.astype("f4")),
    }
    for name, (array, shape, expected) in cases.items():
        np.save(tmp_path / "x.npy", array)
        assert same_bits(read_images([tmp_path / "x.npy"], shape).x.numpy(), np.ascontiguousarray(expected)), name


def test_files_of_all_kinds_and_their_names(tmp_path):
    pictures(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("not read")
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(BYTES)))
    Image.fromarray(BYTES[0]).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(BYTES[0]).convert("RGBA").save(tmp_path / "opaque.png")
    found = read_images([tmp_path / "in", tmp_path / "x.gz", tmp_path / "palette.png", tmp_path / "opaque.png"], (1, 8, 8), 9)
    numbered = tuple(f"x.gz[{i}]" for i in range(4))
    assert found.names == ("digit8.png", "digit9.png", "digit10.png", "digit11.png", *numbered, "palette.png")
    expected = np.concatenate([BYTES, BYTES, BYTES[:1]])[:, None]
    assert same_bits(found.x.numpy(), expected)
    assert np.array_equal(read_images([tmp_path / "opaque.png"], (1, 8, 8)).x.numpy(), expected[:1])
    with pytest.raises(DataError, match="No images"):
        read_images([], (1, 8, 8))


def test_a_sheet_shows_the_pixels(tmp_path):
    x = torch.from_numpy(BYTES[:, None])
    page = np.asarray(Image.open(io.BytesIO(sheet([x[:3], x[3:]]))))
    assert page.shape == (4 + 2 * 52, 4 + 3 * 52, 3)
    assert np.array_equal(page[4 + 52 : 52 + 52 : 6, 4:52:6, 0], BYTES[3])  # each pixel six times as large
    assert (page[4 + 52 :, 4 + 52 :] == 255).all()  # no image, white paper
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(x[2])))), BYTES[2])


def test_the_mnist_network_brings_mnist_back(sdediff, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SDEDIFF_DATA", str(real_data))
    images = str(real_data / "mnist" / "t10k-images-idx3-ubyte.gz")
    refused = sdediff("encode", images, "--out", "z.safetensors")
    assert refused.returncode == 2
    assert "(10000, 28, 28)" in refused.stderr
    good(sdediff("encode", images, "-n", "2", "--steps", "4", "--checkpoint", "hot_vs_cold", "--out", "z.safetensors"))
    good(sdediff("decode", "z.safetensors", "--checkpoint", "hot_vs_cold", "--out", "x.npz"))
    assert same_bits(np.load(tmp_path / "x.npz")["images"], read_images([images], (1, 28, 28), 2).x.numpy())
