"""What can be trained on: every format gives the pixels that were put in, in any order by any number of workers; the rest is refused."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import idx_bytes

from sdediff.data import (
    DataError,
    DataWarning,
    InMemory,
    Pictures,
    Source,
    batches,
    cifar,
    describe,
    digits,
    flip,
    held_out,
    idx_images,
    open_source,
    part,
    pictures,
)
from sdediff.data.decoding import cropped
from sdediff.data.pickles import read_pickle
from sdediff.pretrained.classifiers import held_out as held_out_before

# --- writers, from the formats' descriptions alone ----------------------------------------------------------------


def png(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """A file of one image (c, h, w)."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, kind, **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def python2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The pickle of {"data": uint8 (n, 3072), "labels": [...]} as Python 2 wrote it: every text is bytes."""
    raw = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01"
    array += b"(" + b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape) + b"t"
    array += b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + listed + b"u."


def edm_json(names: list[str], labels: list[int]) -> bytes:
    return json.dumps({"labels": [[name, label] for name, label in zip(names, labels, strict=True)]}).encode()


def some_images(n: int, shape: tuple[int, ...] = (3, 8, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def cifar_files(n: int = 3) -> tuple[dict[str, tuple[np.ndarray, list[int]]], np.ndarray, list[int]]:
    """(each file's pixels (n, 3072) and labels, all training pixels, all training labels)."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {name: (some_images(n, (3072,), seed), [(seed + i) % 10 for i in range(n)]) for seed, name in enumerate(names)}
    train = names[:-1]
    return files, np.concatenate([files[f][0] for f in train]), [label for f in train for label in files[f][1]]


def expected(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).to(torch.float32) / 127.5 - 1


def check(source: Source, pixels: np.ndarray, labels: list[int] | None) -> None:
    """The source holds these images: all, and some of its rows in another order."""
    assert isinstance(source, Source)
    assert (len(source), source.shape) == (len(pixels), pixels.shape[1:])
    shuffled = torch.randperm(len(source))[: len(source) // 2 + 1]
    for rows in (torch.arange(len(source)), shuffled, shuffled[:0]):
        x, found = source.batch(rows)
        assert x.dtype == torch.float32
        assert torch.equal(x, expected(pixels[rows.numpy()]))
        if labels is None:
            assert found is None
        else:
            assert found is not None
            assert found.dtype == torch.int64
            assert found.tolist() == [labels[i] for i in rows.tolist()]
    assert (source.classes is None) == (labels is None)


def sentence(wrong: pytest.ExceptionInfo[DataError]) -> str:
    text = str(wrong.value)
    assert "\n" not in text
    assert text.endswith((".", "'"))
    return text


# --- round trips --------------------------------------------------------------------------------------------------

SETS = st.builds(
    lambda n, c, h, w, seed: some_images(n, (c, h, w), seed),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.integers(4, 9),
    st.integers(4, 9),
    st.integers(0, 1000),
)


@given(pixels=SETS, data=st.data())
@settings(deadline=None, max_examples=25)
def test_what_goes_into_a_file_comes_out_of_it(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("formats")
    pixels.flat[0] = 0  # floats that are never negative are refused
    labels = [data.draw(st.integers(0, 4)) for _ in pixels]
    last = pixels.transpose(0, 2, 3, 1)
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    np.savez_compressed(folder / "b.npz", last, np.array(labels, np.uint8))  # arr_0, arr_1
    np.savez(folder / "c.npz", x=expected(pixels).double().numpy(), y=np.array(labels, np.int16))
    np.save(folder / "d.npy", last if data.draw(st.booleans()) else pixels)
    if pixels.shape[1] == 1:
        np.savez(folder / "a.npz", images=pixels[:, 0], y=labels)
    check(open_source(folder / "a.npz"), pixels, labels)
    check(open_source(folder / "b.npz"), pixels, labels)
    check(open_source(folder / "b.npz", labels=False), pixels, None)
    check(open_source(folder / "c.npz"), pixels, labels)
    check(open_source(folder / "d.npy"), pixels, None)
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
    (folder / "labels-idx1-ubyte").write_bytes(idx_bytes(np.array(labels, np.uint8)))
    check(open_source(folder / "images-idx3-ubyte.gz"), pixels, labels)

    names = [f"{i // 5:05d}/img{i:08d}.png" for i in range(len(pixels))]
    files = {name: png(image) for name, image in zip(names, pixels, strict=True)}
    listed = {**files, "dataset.json": edm_json(names[::-1], labels[::-1])}
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    check(open_source(write_zip(folder / "edm.zip", listed, method)), pixels, labels)
    check(open_source(write(folder / "edm", listed)), pixels, labels)
    check(open_source(write_zip(folder / "null.zip", {**files, "dataset.json": b'{"labels": null}'})), pixels, None)
    check(open_source(write_zip(folder / "around.zip", {f"mine/{k}": v for k, v in listed.items()})), pixels, labels)
    check(open_source(folder / "edm", verify="nothing"), pixels, labels)
    check(open_source(folder / "edm.zip", verify="pixels", labels=False), pixels, None)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    pixels = some_images(6)
    names = ["cat/img1.png", "cat/img2.png", "cat/img10.png", "dog/old/a.PNG", "dog/z.png", "newt/a.png"]
    files = {**{n: png(p) for n, p in zip(names, pixels, strict=True)}, "cat/.hidden.png": b"", "notes.txt": b"x", "dog/Thumbs.db": b""}
    write(tmp_path / "set", files)
    # files of a folder come before those of folders inside it
    order = [0, 1, 2, 4, 3, 5]
    for verify in ("headers", "nothing"):
        source = open_source(tmp_path / "set", verify=verify)
        check(source, pixels[order], [0, 0, 0, 1, 1, 2])
        assert source.classes == 3
    check(open_source(write_zip(tmp_path / "set.zip", {**files, "__MACOSX/cat/._img1.png": b""})), pixels[order], [0, 0, 0, 1, 1, 2])
    check(open_source(tmp_path / "set", labels=False), pixels[order], None)
    check(open_source(tmp_path / "set" / "cat"), pixels[:3], None)
    assert describe(open_source(tmp_path / "set")) == "set: 6 samples of shape 3x8x6, 3 classes"


def test_a_flat_folder_has_no_labels_and_a_split_is_a_folder(tmp_path: Path) -> None:
    pixels = some_images(4, (1, 5, 5))
    write(tmp_path, {f"train/{i}.png": png(pixels[i]) for i in range(3)})
    write(tmp_path, {"val/0.png": png(pixels[3])})
    check(open_source(tmp_path), pixels[:3], None)
    check(open_source(tmp_path, split="val"), pixels[3:], None)
    with pytest.raises(DataError, match=r"has no folder test/\. There are train, val\."):
        open_source(tmp_path, split="test")


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    write(tmp_path, {f"set/{name}.png": png(some_images(1)[0]) for name in ("0", "a/0", "b/1")})
    (tmp_path / "set" / "a" / "back").symlink_to(tmp_path / "set")
    assert len(open_source(tmp_path / "set", labels=False)) == 3


@pytest.mark.parametrize("form", ["python2", "python3", "protocol5", "bin", "tar", "inside"])
def test_cifar_in_its_forms(tmp_path: Path, form: str) -> None:
    files, pixels, labels = cifar_files()
    if form == "bin":
        raws = {f"{f}.bin": np.concatenate([np.array(n, np.uint8)[:, None], p], 1).tobytes() for f, (p, n) in files.items()}
    elif form in ("python3", "protocol5"):
        protocol = 2 if form == "python3" else 5
        raws = {f: pickle.dumps({b"data": p, b"labels": n, b"batch_label": b"x"}, protocol) for f, (p, n) in files.items()}
    else:
        raws = {f: python2(p, n) for f, (p, n) in files.items()}
    if form == "tar":
        write_tar(tmp_path / "cifar-10-python.tar.gz", {f"cifar-10-batches-py/{f}": raw for f, raw in raws.items()})
        check(open_source(tmp_path / "cifar-10-python.tar.gz"), pixels.reshape(-1, 3, 32, 32), labels)
    else:
        write(tmp_path / "cifar-10-batches-py" if form == "inside" else tmp_path, raws)
    source = open_source(tmp_path)
    check(source, pixels.reshape(-1, 3, 32, 32), labels)
    assert (source.name, source.classes) == ("cifar10-train", 10)
    assert isinstance(source, InMemory)
    assert source.pixels.dtype == torch.uint8  # a quarter of float32
    check(open_source(tmp_path, split="test"), files["test_batch"][0].reshape(-1, 3, 32, 32), files["test_batch"][1])
    check(open_source(tmp_path, labels=False), pixels.reshape(-1, 3, 32, 32), None)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    pixels, labels = some_images(4, (3072,)), [3, 99, 0, 40]
    written = {b"data": pixels, b"fine_labels": labels, b"coarse_labels": [0, 0, 0, 0]}
    write(tmp_path, {"python/train": pickle.dumps(written, 2), "python/meta": b"", "binary/fine_label_names.txt": b""})
    write(tmp_path, {"binary/train.bin": np.concatenate([np.array([[7, n] for n in labels], np.uint8), pixels], 1).tobytes()})
    for form in ("python", "binary"):
        source = open_source(tmp_path / form)
        check(source, pixels.reshape(-1, 3, 32, 32), labels)
        assert (source.name, source.classes) == ("cifar100-train", 100)


def test_cifar_by_name_is_the_published_images(real_data: Path) -> None:
    source = open_source("cifar10")
    sheet = np.array(Image.open(real_data / "cifar10" / "cifar10_batch_2.png"))
    x, labels = source.batch(torch.tensor([2003]))
    assert torch.equal(x[0], expected(sheet[3].reshape(32, 32, 3).transpose(2, 0, 1)))
    assert labels is not None
    assert labels.tolist() == [int(np.load(real_data / "cifar10" / "cifar_first4000_labels.npy")[2003])]
    assert (len(source), source.name, source.classes) == (4000, "cifar10-first4000", 10)


def test_names_give_the_readers_bits(mnist_folder: Path) -> None:
    source = open_source("mnist", split="test")
    data = idx_images(mnist_folder / "t10k-images-idx3-ubyte.gz", mnist_folder / "t10k-labels-idx1-ubyte.gz")
    x, labels = source.batch(torch.arange(len(source)))
    assert torch.equal(x, data.x)
    assert labels is not None
    assert data.labels is not None
    assert torch.equal(labels, data.labels)
    assert torch.equal(open_source("digits").batch(torch.arange(1797))[0], digits().x)
    toys = open_source("ring8")
    assert (toys.shape, toys.classes, len(toys)) == ((2,), 8, 50000)


def test_fashion_mnist_has_the_same_files_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDEDIFF_DATA", str(tmp_path))
    pixels = some_images(3, (28, 28))
    raws = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(pixels)),
        "train-labels-idx1-ubyte": idx_bytes(np.arange(3, dtype=np.uint8)),
    }
    write(tmp_path / "FashionMNIST" / "raw", raws)
    source = open_source("fashion-mnist")
    check(source, pixels[:, None], [0, 1, 2])
    assert (source.name, source.classes) == ("fashion-mnist-train", 10)
    check(open_source(tmp_path / "FashionMNIST"), pixels[:, None], [0, 1, 2])


def test_points_are_taken_as_they_are(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(7, 2)) * 3
    np.savez(tmp_path / "points.npz", points)
    np.save(tmp_path / "points.npy", points)
    for file in ("points.npz", "points.npy"):
        x, _ = open_source(tmp_path / file).batch(torch.tensor([3, 1]))
        assert torch.equal(x, torch.from_numpy(points[[3, 1]]).float())


# --- sizes and colours --------------------------------------------------------------------------------------------


def test_the_crop_of_adm() -> None:
    """Halving is the mean of four pixels; what is cut out is the middle; a picture of that size stays as it is."""
    levels = some_images(1, (8, 8))[0]
    blocks = levels.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(np.asarray(cropped(Image.fromarray(blocks), 8)), levels)
    fours = np.array([[0, 4], [8, 12]], np.uint8).repeat(1, 0)
    assert np.asarray(cropped(Image.fromarray(np.tile(fours, (8, 8))), 8)).tolist() == [[6] * 8] * 8  # mean of each 2 x 2
    ramp = np.tile(np.arange(20, dtype=np.uint8), (8, 1))
    assert np.array_equal(np.asarray(cropped(Image.fromarray(ramp), 8)), ramp[:, 6:14])
    assert np.array_equal(np.asarray(cropped(Image.fromarray(ramp.T.copy()), 8)), ramp.T[6:14])
    assert cropped(Image.new("RGB", (5, 37)), 8).size == (8, 8)  # a smaller one is enlarged
    near = np.asarray(cropped(Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))), 16))
    assert np.abs(near[:, 2:-2].astype(int) - (10 * (1.5 * np.arange(16) + 0.25)).round()[2:-2]).max() <= 1  # a ramp scaled by 2/3


def test_mixed_sizes_and_colours_are_refused_skipped_or_made_alike(tmp_path: Path) -> None:
    usual = some_images(5)
    files = {f"{i}.png": png(usual[i]) for i in range(5)}
    strange = {"wide.png": png(some_images(1, (3, 8, 9))[0]), "grey.png": png(some_images(1, (1, 8, 6))[0])}
    root = write(tmp_path / "mixed", {**files, **strange})
    with pytest.raises(
        DataError, match=r"2 of 7 images are not 6 x 8 in colour .*grey\.png 6 x 8 grey, wide\.png 9 x 8 in colour"
    ) as wrong:
        open_source(root)
    assert "size=..." in sentence(wrong)
    assert "channels=" in sentence(wrong)
    with pytest.warns(DataWarning, match="2 of 7 images are not"):
        source = open_source(root, on_error="skip")
    check(source, usual, None)
    assert isinstance(source, Pictures)
    assert source.skipped == 2
    alike = open_source(root, size=4, channels=3)
    assert alike.shape == (3, 4, 4)
    x, _ = alike.batch(torch.arange(7))
    assert torch.equal(x[5], x[5][:1].expand(3, -1, -1))  # grey.png, after the numbers
    assert open_source(root, size=8, channels=1).shape == (1, 8, 8)
    lazily = open_source(root, verify="nothing")
    with pytest.raises(DataError, match=r"wide\.png is 9 x 8 in colour, but the first image is 6 x 8 in colour") as wrong:
        lazily.batch(torch.arange(7).flip(0))
    sentence(wrong)


def test_labels_stay_with_their_images_when_others_are_left_out(tmp_path: Path) -> None:
    pixels = some_images(6)
    files = {f"{'ab'[i % 2]}/{i}.png": png(pixels[i]) for i in range(6)} | {"a/2.png": b"", "b/1.png": b"\x89PNG", "b/x.webp": b"RIFF"}
    root = write(tmp_path / "set", files)
    with pytest.raises(
        DataError, match=r"2 of 6 images cannot be taken \(a/2\.png, b/1\.png\)\. The first: .*2\.png cannot be read"
    ) as wrong:
        open_source(root)
    assert "1 images are of another kind (b/x.webp)" in sentence(wrong)
    with pytest.warns(DataWarning, match="2 of 6"):
        source = open_source(root, on_error="skip")
    check(source, pixels[[0, 4, 3, 5]], [0, 0, 1, 1])
    assert isinstance(source, Pictures)
    assert source.skipped == 3


def test_an_upright_photograph_has_its_shown_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    pixels = np.zeros((3, 8, 6), np.uint8)
    write(
        tmp_path,
        {"a.jpg": png(pixels, "JPEG", exif=exif), "b.jpg": png(pixels.transpose(0, 2, 1), "JPEG"), "c.png": png(pixels, exif=exif)},
    )
    source = open_source(tmp_path)
    assert source.shape == (3, 6, 8)
    assert source.batch(torch.arange(3))[0].shape == (3, 3, 6, 8)


# --- bad input ----------------------------------------------------------------------------------------------------


def deep(c: int) -> bytes:
    """A PNG of 16 bits a channel; of colour ones PIL says only RGB."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 6), 1000, np.uint16)).save(file, "PNG")
    if c == 1:
        return file.getvalue()
    body = struct.pack(">IIBBBBB", 6, 8, 16, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(bytes(8 * (1 + 36)))) + chunk(b"IEND", b"")


def animated() -> bytes:
    file, frames = io.BytesIO(), [Image.fromarray(p[0]) for p in some_images(3, (1, 8, 6))]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


def clear() -> bytes:
    file = io.BytesIO()
    Image.fromarray(some_images(1, (8, 6, 4))[0], "RGBA").save(file, "PNG")
    return file.getvalue()


GOOD = png(some_images(1)[0])
UNFIT = {
    "nothing": (b"", "cannot be read as a PNG or JPEG", "headers"),
    "text": (b"hello, world, this is no image", "cannot be read as a PNG or JPEG", "headers"),
    "16 bits grey": (deep(1), "has 16 bits a channel", "headers"),
    "16 bits colour": (deep(3), "has 16 bits a channel", "headers"),
    "animated": (animated(), r"animated \(3 frames\)", "headers"),
    "truncated": (GOOD[:90], "cannot be read as a PNG or JPEG", "pixels"),
    "transparent": (clear(), "transparent in places", "pixels"),
    "webp": (png(some_images(1)[0], "WEBP"), "cannot be read as a PNG or JPEG", "headers"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", UNFIT)
def test_an_image_that_cannot_be_taken_is_named(tmp_path: Path, kind: str, zipped: bool) -> None:
    raw, said, verify = UNFIT[kind]
    files = {"a.png": GOOD, "b.png": raw, "c.png": GOOD}
    path = write_zip(tmp_path / "set.zip", files) if zipped else write(tmp_path / "set", files)
    with pytest.raises(DataError, match=rf"1 of 3 images cannot be taken \(b\.png\)\. .*{said}") as wrong:
        pictures(path, verify=verify)  # type: ignore[arg-type]
    sentence(wrong)
    with pytest.warns(DataWarning, match="1 of 3"):
        assert len(pictures(path, verify=verify, on_error="skip")) == 2  # type: ignore[arg-type]
    lazily = pictures(path, verify="nothing")
    with pytest.raises(DataError, match=rf"b\.png.*{said}") as wrong:
        lazily.batch(torch.tensor([0, 1]))
    sentence(wrong)
    assert len(lazily.batch(torch.tensor([0, 2]))[0]) == 2


def test_a_folder_of_nothing_else_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"none/notes.txt": b"x", "bad/a.png": b"x", "bad/b.png": b"x"})
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"no images in .*none\. It holds 1 files of other kinds \(notes\.txt\)\. Expected \.png"):
        open_source(tmp_path / "none")
    with pytest.raises(DataError, match="It holds no files"):
        open_source(tmp_path / "void")
    for on_error in ("refuse", "skip"):
        with pytest.raises(DataError, match="None of the 2 images"):
            open_source(tmp_path / "bad", on_error=on_error)


def test_classes_that_are_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"loose/a.png": GOOD, "loose/cat/b.png": GOOD, "hole/cat/a.png": GOOD, "hole/dog/b.png": GOOD})
    (tmp_path / "hole" / "eel").mkdir()
    with pytest.raises(DataError, match=r"1 images \(a\.png\) lie beside the folders cat.*labels = false"):
        open_source(tmp_path / "loose")
    assert len(open_source(tmp_path / "loose", labels=False)) == 2
    with pytest.raises(DataError, match=r"1 folders hold no images \(eel\)"):
        open_source(tmp_path / "hole")


LISTS = {
    "no json": (b"{", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "no labels": (b'{"label": null}', 'has no "labels"'),
    "a list": (b"[]", 'has no "labels"'),
    "no pairs": (b'{"labels": [1, 2]}', "no list of pairs"),
    "a text": (b'{"labels": "abc"}', "no list of pairs"),
    "floats": (edm_json(["a.png", "b.png"], [0.5, 1]), r"1 labels that are no class numbers \(a\.png: 0\.5\)"),  # type: ignore[list-item]
    "true": (edm_json(["a.png", "b.png"], [True, 1]), "1 labels that are no class numbers"),
    "negative": (edm_json(["a.png", "b.png"], [-1, 1]), r"a\.png: -1"),
    "vectors": (b'{"labels": [["a.png", [0, 1]], ["b.png", [1, 0]]]}', "2 labels that are no class numbers"),
    "one lacks": (edm_json(["a.png"], [0]), r"1 images without a label \(b\.png\)"),
    "one too many": (edm_json(["a.png", "b.png", "c.png"], [0, 1, 2]), r"1 labels of images that are not there \(c\.png\)"),
    "twice": (edm_json(["a.png", "a.png", "b.png"], [0, 1, 2]), r"names 1 images twice \(a\.png\)"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_labels_that_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    raw, said = LISTS[kind]
    for path in (
        write(tmp_path / "set", {"a.png": GOOD, "b.png": GOOD, "dataset.json": raw}),
        write_zip(tmp_path / "set.zip", {"a.png": GOOD, "b.png": GOOD, "dataset.json": raw}),
    ):
        with pytest.raises(DataError, match=said) as wrong:
            open_source(path)
        sentence(wrong)
        assert open_source(path, labels=False).classes is None


def test_damaged_zips_are_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "a.zip", {f"{i}.png": GOOD for i in range(3)}).read_bytes()
    for raw in (b"", b"PK", whole[: len(whole) // 2], whole[:-10]):
        (tmp_path / "b.zip").write_bytes(raw)
        with pytest.raises(DataError, match="is not a whole zip file") as wrong:
            open_source(tmp_path / "b.zip")
        sentence(wrong)
    damaged = bytearray(whole)
    damaged[whole.index(GOOD) + 60] ^= 255
    (tmp_path / "b.zip").write_bytes(damaged)
    with pytest.raises(DataError, match=r"1 of 3 images cannot be taken \(0\.png\).*its checksum differs"):
        open_source(tmp_path / "b.zip")
    write_zip(tmp_path / "c.zip", {"a.png": GOOD}, zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match=r"a\.png is packed by method 12"):
        open_source(tmp_path / "c.zip")


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_any_damage_to_a_zip_is_a_data_error_or_a_valid_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("zip")
    listed = {"a/0.png": GOOD, "a/1.png": GOOD, "dataset.json": edm_json(["0.png", "1.png"], [0, 1])}
    whole = bytearray(write_zip(folder / "a.zip", listed, zipfile.ZIP_DEFLATED).read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.zip").write_bytes(whole)
    with contextlib.suppress(DataError):
        source = open_source(folder / "a.zip")
        source.batch(torch.arange(len(source)))


ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "pickled": ({"images": np.array([{}, {}])}, "pickles are never loaded"),
    "pickled labels": ({"images": some_images(2), "labels": np.array([{}, {}])}, "pickles are never loaded"),
    "other names": ({"a": some_images(2), "b": some_images(2)}, "Expected one array, or one named images or x or arr_0"),
    "counts": ({"x": some_images(2), "y": np.arange(3)}, "holds 2 images, but 3 labels"),
    "float labels": ({"x": some_images(2), "y": np.zeros(2)}, "holds labels of float64"),
    "one-hot": ({"x": some_images(2), "y": np.eye(2, dtype=np.int64)}, r"\.argmax\(1\)"),
    "negative": ({"x": some_images(2), "y": np.array([-1, 0])}, "holds the label -1"),
    "integers": ({"x": some_images(2).astype(np.int64)}, "holds int64. Expected uint8"),
    "levels as floats": ({"x": some_images(2).astype(np.float32)}, r"with \.astype\(np\.uint8\)"),
    "from zero": ({"x": some_images(2) / 255}, r"as if 0 were black.*2 \* x - 1"),
    "too wide": ({"x": 3 * np.linspace(-1, 1, 96).reshape(1, 3, 8, 4)}, r"floats from -3 to 3. Expected \[-1, 1\]"),
    "nan": ({"x": np.full((1, 3, 8, 8), np.nan)}, "NaN or infinity"),
    "none": ({"x": some_images(0)}, "holds no images"),
    "one number": ({"x": np.uint8(3)}, "Expected images"),
    "uint8 rows": ({"x": some_images(4, (12,))}, r"shape \(4, 12\)"),
    "transparent": ({"x": some_images(4, (8, 8, 4))}, "of 1 or 3 channels"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path: Path, kind: str) -> None:
    arrays, said = ARRAYS[kind]
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said) as wrong:
        open_source(tmp_path / "a.npz")
    sentence(wrong)
    if len(arrays) == 1:
        np.save(tmp_path / "a.npy", next(iter(arrays.values())))
        with pytest.raises(DataError, match=said):
            open_source(tmp_path / "a.npy")


class Run:
    """What a malicious pickle is made of."""

    def __init__(self, what: Any, *args: Any):
        self.what, self.args = what, args

    def __reduce__(self) -> Any:
        return self.what, self.args


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    attacks = [
        Run(os.system, f"touch {marker}"),
        Run(eval, f"open({str(marker)!r}, 'w')"),
        Run(np.save, str(marker), np.zeros(1)),
        Run(__import__, "this"),
        Run(pickle.loads, pickle.dumps(Run(os.system, f"touch {marker}"))),
    ]
    files, _, _ = cifar_files()
    for attack in attacks:
        for protocol in (0, 2, 5):
            write(tmp_path / "set", {f: pickle.dumps({b"data": attack, b"labels": [0]}, protocol) for f in files})
            with pytest.raises(DataError, match=r"data_batch_1: the pickle asks for .*: refused, nothing was run") as wrong:
                open_source(tmp_path / "set")
            sentence(wrong)
    assert not list(tmp_path.glob("ran*"))


def test_a_pickle_cannot_change_the_stand_ins() -> None:
    for name in ("numpy.core.multiarray\n_reconstruct", "numpy\nndarray", "numpy\ndtype", "_codecs\nencode"):
        built = b"\x80\x02c" + name.encode() + b"\n}U\x0c__setstate__K\x01sb."
        with pytest.raises(DataError):
            read_pickle(io.BytesIO(built), "it")
        slots = b"\x80\x02c" + name.encode() + b"\nN}X\x04\x00\x00\x00wordK\x01s\x86b."
        with pytest.raises(DataError):
            read_pickle(io.BytesIO(slots), "it")
    with pytest.raises(DataError, match=r"holds an array of 'f8'\. Expected integers"):
        read_pickle(io.BytesIO(pickle.dumps(np.zeros(2), 2)), "it")
    whole = python2(some_images(2, (3072,)), [1, 2])
    assert set(read_pickle(io.BytesIO(whole), "it")) == {b"data", b"labels"}


@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_damage_to_a_pickle_is_a_data_error_or_a_valid_file(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    files, _, _ = cifar_files(1)
    raws = {f: bytearray(python2(p, n)) for f, (p, n) in files.items()}
    first = raws["data_batch_1"]
    outside = [*range(230), *range(len(first) - 30, len(first))]  # not among the pixels, where any byte is right
    at = outside[at % len(outside)]
    first[at:] = first[at + 1 :] if cut else bytes([value]) + first[at + 1 :]
    write(folder, {f: bytes(raw) for f, raw in raws.items()})
    with contextlib.suppress(DataError):
        assert len(cifar(folder)) >= 1


def test_cifar_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    files, _, _ = cifar_files()
    raws = {f: python2(p, n) for f, (p, n) in files.items()}
    write(tmp_path / "lacks", {f: raw for f, raw in raws.items() if f != "data_batch_3"})
    write(tmp_path / "train", {f: raw for f, raw in raws.items() if f != "test_batch"})
    write(tmp_path / "counts", {**raws, "data_batch_2": python2(files["data_batch_2"][0], [1])})
    write(tmp_path / "labels", {**raws, "data_batch_2": python2(files["data_batch_2"][0], [1, 2, 10])})
    write(tmp_path / "other", {**raws, "data_batch_2": pickle.dumps([1, 2], 2)})
    write(tmp_path / "cut", {**raws, "data_batch_2": raws["data_batch_2"][:500]})
    write(tmp_path / "bin", {f"{f}.bin": b"123" for f in files})
    whole = write_tar(tmp_path / "cifar-10-python.tar.gz", raws).read_bytes()
    write(tmp_path / "tar", {"cifar-10-python.tar.gz": whole[: len(whole) // 2]})
    write(tmp_path / "sheet", {"cifar10_batch_0.png": png(some_images(1)[0])})
    said = {
        "lacks": r"lacks data_batch_3\. Expected all of data_batch_1",
        "counts": "data_batch_2 holds 3 images, but 1 labels",
        "labels": "holds the label 10. Expected 0 to 9",
        "other": "data_batch_2 holds list. Expected data, uint8",
        "cut": "data_batch_2 cannot be read as a pickle",
        "bin": "has 3 bytes. Expected a multiple of 3073",
        "tar": "is not a whole tar archive",
        "sheet": r"Expected \(3, n, 1024\)",
    }
    for name, text in said.items():
        with pytest.raises(DataError, match=text) as wrong:
            open_source(tmp_path / name)
        sentence(wrong)
    with pytest.raises(DataError, match=r"no files of CIFAR-10, split 'test'"):
        open_source(tmp_path / "train", split="test")
    with pytest.raises(DataError, match="no split 'valid'"):
        open_source(tmp_path / "train", split="valid")


def test_wrong_names_paths_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    write(tmp_path / "set", {"a.png": GOOD})
    monkeypatch.setenv("SDEDIFF_DATA", str(tmp_path))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("cifar", {}, r"no data set 'cifar'.* Did you mean 'cifar10'\?"),
        ("minst", {}, r"Did you mean 'mnist'\?"),
        ("fashionmnist", {}, r"Did you mean 'fashion-mnist'\?"),
        ("/no/such/folder", {}, r"no file or folder /no/such/folder\. Expected a folder or \.zip of images"),
        ("mnist", {}, "mnist is not in .*four files"),
        ("cifar100", {}, "cifar-100-python.tar.gz"),
        ("digits", {"size": 16}, "cannot be opened with size=16"),
        ("moons", {"split": "test"}, "cannot be opened with split='test'"),
        ("digits", {"split": "val"}, "no split 'val'"),
        (tmp_path / "notes.txt", {}, "is no data to train on"),
        (tmp_path / "set", {"size": 0}, "Expected a whole number of pixels"),
        (tmp_path / "set", {"size": "32"}, "Expected a whole number of pixels"),
        (tmp_path / "set", {"split": 1}, "Expected a split's name"),
        (tmp_path / "set", {"labels": "no"}, "labels true or false"),
        (tmp_path / "set", {"channels": 2}, "Expected 1"),
        (tmp_path / "set", {"on_error": "ignore"}, "Expected 'refuse' or 'skip'"),
        (tmp_path / "set", {"verify": "all"}, "Expected 'nothing', 'headers' or 'pixels'"),
        (tmp_path / "set", {"verify": "nothing", "on_error": "skip"}, "verify='headers'"),
        (tmp_path / "set", {"split": "test"}, "It has no splits"),
    ]
    for spec, options, said in cases:
        with pytest.raises(DataError, match=said) as wrong:
            open_source(spec, **options)
        sentence(wrong)


# --- parts, flips, batches ----------------------------------------------------------------------------------------


def test_parts_are_views_and_the_held_out_one_is_as_before() -> None:
    source = open_source("digits")
    train, test = held_out(source)
    before = held_out_before(digits())
    for now, then in zip((train, test), before, strict=True):
        x, labels = now.batch(torch.arange(len(now)))
        assert torch.equal(x, then.x)
        assert labels is not None
        assert then.labels is not None
        assert torch.equal(labels, then.labels)
        assert (now.name, now.classes, now.shape) == (then.name, 10, (1, 8, 8))
    assert torch.equal(open_source("digits", split="test").batch(torch.arange(9))[0], before[1].x[:9])
    inner = part(test, torch.tensor([5, 2]), "two")
    assert torch.equal(inner.batch(torch.tensor([1]))[0], before[1].x[2:3])
    with pytest.raises(DataError, match="has the rows 0 to 1796, but a part of 0 to 1797"):
        part(source, torch.arange(1798))
    with pytest.raises(DataError, match="row numbers"):
        part(source, torch.ones(3))
    with pytest.raises(DataError, match="leaves one of the two parts empty"):
        held_out(inner, 0.1)


@given(n=st.integers(1, 6), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_a_flip_mirrors_the_chosen_only_and_is_undone_by_itself(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 3, 4, generator=generator)
    chosen = torch.rand(n, generator=generator) < 0.5
    flipped = flip(x, chosen)
    for image, was, turned in zip(flipped, x, chosen.tolist(), strict=True):
        assert torch.equal(image, was[..., [3, 2, 1, 0]] if turned else was)
    assert torch.equal(flip(flipped, chosen), x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled images in a folder and in a zip, the last of the folder damaged."""
    root = tmp_path_factory.mktemp("batches")
    pixels = some_images(40)
    files = {f"{i}.png": png(pixels[i]) for i in range(40)}
    files["dataset.json"] = edm_json(list(files), [i % 7 for i in range(40)])
    write_zip(root / "set.zip", files, zipfile.ZIP_DEFLATED)
    write(root / "set", files | {"39.png": GOOD[:80]})
    np.save(root / "set.npy", pixels)
    return root


@pytest.mark.parametrize("file", ["set", "set.zip", "set.npy"])
def test_any_number_of_workers_gives_the_same_batches(folder: Path, file: str) -> None:
    source = open_source(folder / file)
    orders = [torch.randint(39, (int(n),), generator=torch.Generator().manual_seed(int(n))) for n in torch.randint(1, 9, (12,))]
    for workers, ahead in ((0, 2), (1, 1), (2, 3)):
        state = torch.get_rng_state()
        found = list(batches(source, iter(orders), workers, ahead))
        assert torch.equal(torch.get_rng_state(), state)
        assert len(found) == len(orders)
        for rows, (x, labels) in zip(orders, found, strict=True):
            assert torch.equal(x, expected(some_images(40)[rows.numpy()]))
            assert (labels is None) == (file == "set.npy")
            assert labels is None or labels.tolist() == [i % 7 for i in rows.tolist()]


def test_an_endless_order_is_read_no_further_than_ahead_and_the_workers_end(folder: Path) -> None:
    asked = []

    def endless() -> Any:
        while True:
            asked.append(len(asked))
            yield torch.tensor([len(asked) % 30])

    iterator = batches(open_source(folder / "set.zip"), endless(), workers=2, ahead=2)
    assert len(list(islice(iterator, 5))) == 5
    assert len(asked) <= 5 + 2 * 2 + 1
    assert len(active_children()) == 2
    iterator.close()  # type: ignore[attr-defined]
    del iterator
    gc.collect()
    deadline = time.monotonic() + 10
    while active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not active_children()
    memory = batches(open_source("digits"), endless(), workers=2)
    next(memory)
    assert not active_children()  # what lies in memory needs no workers


def test_an_error_in_a_worker_is_one_sentence(folder: Path) -> None:
    source = open_source(folder / "set")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"39\.png cannot be read as a PNG") as wrong:
            list(batches(source, iter([torch.tensor([0, 39])]), workers))
        sentence(wrong)
    with pytest.raises(DataError, match="Expected workers >= 0"):
        batches(source, iter([]), -1)


def test_a_killed_worker_is_one_sentence(folder: Path) -> None:
    iterator = batches(open_source(folder / "set.zip"), (torch.tensor([0]) for _ in range(100)), workers=1, ahead=1)
    next(iterator)
    (worker,) = active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed, most often for lack of memory") as wrong:
        list(iterator)
    sentence(wrong)


PARENT = """
import itertools, sys, time, torch
from multiprocessing import active_children
from sdediff.data import batches, open_source
iterator = batches(open_source(sys.argv[1]), (torch.tensor([0]) for _ in itertools.count()), workers=2)
next(iterator)
print(*[child.pid for child in active_children()], flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(folder: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder / "set.zip")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(alive, workers))


def test_a_source_travels_to_another_process(folder: Path) -> None:
    """Where processes are spawned, not forked, the source is pickled."""
    for file in ("set", "set.zip", "set.npy"):
        source = open_source(folder / file)
        again = pickle.loads(pickle.dumps(source))
        assert torch.equal(again.batch(torch.arange(5))[0], source.batch(torch.arange(5))[0])


def test_nothing_is_warned_of_on_the_way(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in ("set", "set.zip", "set.npy"):
            list(batches(open_source(folder / file), iter([torch.tensor([3, 1])]), 1))
