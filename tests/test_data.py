"""The readers: what they return, exactly; what they refuse, and that they refuse it with a DataError."""

import contextlib
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdediff.data import TOYS, DataError, data_folder, digits, idx_images, mnist, read_idx, toy

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
ARRAYS = st.sampled_from(sorted(CODES)).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx file of an array, written from the format's description alone."""
    code = CODES[array.dtype.str[1:]]
    dims = b"".join(struct.pack(">I", side) for side in array.shape)
    return bytes([0, 0, code, array.ndim]) + dims + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "some-file"


@given(array=ARRAYS, zipped=st.booleans())
@settings(deadline=None, max_examples=100)
def test_idx_round_trip(file: Path, array: np.ndarray, zipped: bool) -> None:
    data = idx_bytes(array)
    file.write_bytes(gzip.compress(data) if zipped else data)
    read = read_idx(file)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape


def test_idx_read_from_known_bytes(file: Path) -> None:
    file.write_bytes(bytes.fromhex("00000b02 00000002 00000003 0001 0002 0100 ffff 7fff 8000"))
    np.testing.assert_array_equal(read_idx(file), np.array([[1, 2, 256], [-1, 32767, -32768]], np.int16))


@given(array=ARRAYS, zipped=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=150)
def test_truncation_at_any_byte_is_a_data_error(file: Path, array: np.ndarray, zipped: bool, data: st.DataObject) -> None:
    whole = gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"truncated|ends early|not an idx file"):
        read_idx(file)


@given(array=ARRAYS, zipped=st.booleans(), extra=st.binary(min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_trailing_bytes_are_a_data_error(file: Path, array: np.ndarray, zipped: bool, extra: bytes) -> None:
    data = idx_bytes(array) + extra
    file.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError, match=f"{len(extra)} bytes follow the data"):
        read_idx(file)


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_any_damage_is_a_data_error_or_a_valid_file(file: Path, data: st.DataObject) -> None:
    """One byte changed anywhere, or bytes of any kind: never another exception."""
    whole = bytearray(gzip.compress(idx_bytes(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), mtime=0))
    if data.draw(st.booleans()):
        whole = bytearray(gzip.decompress(whole))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    file.write_bytes(data.draw(st.sampled_from([bytes(whole), data.draw(st.binary(max_size=40))])))
    with contextlib.suppress(DataError):
        assert isinstance(read_idx(file), np.ndarray)


def test_truncation_tells_expected_and_found(file: Path) -> None:
    data = idx_bytes(np.zeros((5, 7), np.int32))
    file.write_bytes(data[:100])
    with pytest.raises(DataError, match=r"expected 152 bytes of idx .* found 100"):
        read_idx(file)
    zipped = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 255, 1000).astype(np.uint8)))
    file.write_bytes(zipped[:500])
    with pytest.raises(DataError, match="gzip stream ends early, after 500 bytes: expected 1008 bytes of idx"):
        read_idx(file)


def test_a_damaged_gzip_is_a_data_error(file: Path) -> None:
    zipped = bytearray(gzip.compress(idx_bytes(np.arange(100, dtype=np.uint8))))
    zipped[-6] ^= 1  # the checksum
    file.write_bytes(zipped)
    with pytest.raises(DataError, match="gzip stream is damaged"):
        read_idx(file)
    file.write_bytes(gzip.compress(idx_bytes(np.arange(100, dtype=np.uint8))) + b"rest")
    with pytest.raises(DataError, match="followed by other bytes"):
        read_idx(file)


def test_impossible_headers_are_data_errors(file: Path) -> None:
    file.write_bytes(b"\0\0\x08\x04" + struct.pack(">4I", 0, *[2**32 - 1] * 3))  # no values, yet no array of this shape
    with pytest.raises(DataError, match="cannot hold the shape"):
        read_idx(file)
    file.write_bytes(b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\1")
    with pytest.raises(DataError, match="cannot hold the shape"):
        read_idx(file)
    file.write_bytes(b"\0\0\x0a\x01\0\0\0\1\1")  # 0x0A is no type
    with pytest.raises(DataError, match="not an idx file: it starts with 00 00 0a 01"):
        read_idx(file)
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="not an idx file"):
        read_idx(file)


def test_missing_files_and_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz in"):
        mnist(tmp_path)
    with pytest.raises(DataError, match="no split 'valid'"):
        mnist(tmp_path, "valid")  # type: ignore[arg-type]


def test_idx_images_maps_bytes_to_the_unit_range(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.gz", tmp_path / "labels"
    pixels = np.array([[[0, 255], [51, 204]], [[1, 254], [127, 128]]], np.uint8)
    images.write_bytes(gzip.compress(idx_bytes(pixels)))
    labels.write_bytes(idx_bytes(np.array([7, 200], np.uint8)))
    data = idx_images(images, labels)
    assert data.x.shape == (2, 1, 2, 2)
    assert data.x.dtype == torch.float32
    torch.testing.assert_close(data.x[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))
    assert float(data.x.min()) == -1
    assert float(data.x.max()) == 1
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [7, 200]
    assert data.name == "images"
    assert idx_images(images).labels is None
    images.write_bytes(idx_bytes(np.zeros((5, 3, 2, 4), np.uint8)))
    assert idx_images(images).x.shape == (5, 3, 2, 4)


def test_idx_images_refuses_what_is_no_pair_of_images_and_labels(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_bytes(np.zeros((3, 2, 2), np.uint8)))
    labels.write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"3 images in .* but 4 labels"):
        idx_images(images, labels)
    with pytest.raises(DataError, match="swapped"):
        idx_images(labels, images)
    with pytest.raises(DataError, match="expected integer labels"):
        idx_images(images, images)
    images.write_bytes(idx_bytes(np.zeros((3, 2, 2), np.float32)))
    with pytest.raises(DataError, match="expected uint8 images"):
        idx_images(images)


def test_mnist_finds_plain_and_gzipped_files(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, 28, 28), np.uint8)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(3, dtype=np.uint8))))
    data = mnist(tmp_path, "test")
    assert data.name == "mnist-test"
    assert data.x.shape == (3, 1, 28, 28)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]


def test_mnist_is_bit_identical_to_the_published_images(mnist_folder: Path) -> None:
    raw = read_idx(mnist_folder / "train-images-idx3-ubyte.gz")
    header = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    assert hashlib.md5(header + raw.tobytes()).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    data = mnist(mnist_folder, "test")
    assert data.x.shape == (10000, 1, 28, 28)
    assert data.labels is not None
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_digits() -> None:
    data = digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.float32
    assert data.labels is not None
    assert data.labels[:10].tolist() == list(range(10))
    counts = (data.x + 1) * 8
    assert torch.equal(counts, counts.round())
    assert (int(counts.min()), int(counts.max())) == (0, 16)
    assert counts[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'sdediff\[study\]'"):
        digits()


@pytest.mark.parametrize("name", sorted(TOYS))
def test_toys_are_centred_with_about_unit_variance(name: str) -> None:
    """Within five standard errors of mean 0; mean variance 1 (ring8: 1/2 + 0.01) to 2 %, about four standard errors."""
    data = toy(name, 40000, seed=3)
    assert data.x.shape == (40000, 2)
    assert data.x.dtype == torch.float32
    assert data.x.mean(0).abs().max() < 5 / 200
    assert float(data.x.var(0).mean()) == pytest.approx(0.51 if name == "ring8" else 1.0, rel=0.02)
    assert torch.equal(data.x, toy(name, 40000, seed=3).x)
    assert not torch.equal(data.x, toy(name, 40000, seed=4).x)


def test_ring8_is_the_mixture_that_it_claims_to_be() -> None:
    data = toy("ring8", 40000)
    assert data.labels is not None
    for mode in range(8):
        points = data.x[data.labels == mode]
        angle = torch.tensor(mode * torch.pi / 4)
        assert len(points) == pytest.approx(5000, abs=350)
        torch.testing.assert_close(points.mean(0), torch.stack([angle.cos(), angle.sin()]), rtol=0, atol=0.008)
        torch.testing.assert_close(points.std(0), torch.full((2,), 0.1), rtol=0.06, atol=0)


def test_checkerboard_and_moons_lie_where_they_should() -> None:
    cells = (toy("checkerboard", 10000).x * (4 / 3) ** 0.5 + 2).floor()
    assert ((cells.sum(1) % 2) == 0).all()
    assert (cells.min(), cells.max()) == (0, 3)
    moons = toy("moons", 10000)
    assert moons.labels is not None
    upper, lower = (moons.x[moons.labels == k].mean(0) for k in (0, 1))
    assert upper[0] < lower[0]
    assert upper[1] > lower[1]


def test_unknown_toys_name_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"ring8, moons, swiss_roll, checkerboard\. Did you mean 'swiss_roll'"):
        toy("swissroll", 10)
    with pytest.raises(DataError, match="n >= 1"):
        toy("moons", 0)


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDEDIFF_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.setenv("SDEDIFF_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="SDEDIFF_DATA names"):
        data_folder()
    monkeypatch.delenv("SDEDIFF_DATA")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert data_folder() == tmp_path / "shared" / "data"
    monkeypatch.setattr("sdediff.data.folder.__file__", str(tmp_path / "a" / "b" / "c" / "d" / "folder.py"))
    monkeypatch.chdir(tmp_path)
    assert data_folder() is None
