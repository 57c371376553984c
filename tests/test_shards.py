"""Samples by the ten thousand: shards that are whole or not there, gone on with, and the same for any size and number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sdediff import DDPM, Mixture, UserError, VPLinear, latents, sample
from sdediff.processes import Alone
from sdediff.shards import GROUP, Shard, shards

MODEL = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.4], schedule=VPLinear())
ABOUT = {"solver": "DDIM()", "seed": 0}


def numbers(first: int, n: int) -> Tensor:
    """Samples that say who they are."""
    return torch.arange(first, first + n).float()[:, None].expand(n, 3).clone()


def pictures(first: int, n: int) -> Tensor:
    """Grey images of one pixel whose byte is the sample's number."""
    return ((torch.arange(first, first + n) % 256).float() / 127.5 - 1)[:, None, None, None].expand(n, 3, 2, 4).clone()


def written(folder: Path, n: int, draw=numbers, about: dict[str, Any] = ABOUT, kind: str = "safetensors", **options: Any) -> list[Shard]:
    return list(shards(draw, n, folder, about, kind=kind, **options))


def whole(folder: Path) -> Tensor:
    return torch.cat([load_file(p)["x"] for p in sorted(folder.glob("*.safetensors"))])


class Rank(Alone):
    """One of several processes, by itself."""

    def __init__(self, rank: int, count: int) -> None:
        super().__init__()
        self.rank, self.count = rank, count


def test_every_sample_is_there_once(tmp_path):
    found = written(tmp_path, 300, size=100)  # made 128
    assert [(s.path.name, s.first, s.n, s.there) for s in found] == [
        ("000000.safetensors", 0, 128, False), ("000001.safetensors", 128, 128, False), ("000002.safetensors", 256, 44, False),
    ]  # fmt: skip
    assert torch.equal(whole(tmp_path), numbers(0, 300))
    assert json.loads((tmp_path / "sampling.json").read_text()) == {**ABOUT, "n": 300, "size": 128, "kind": "safetensors"}


def test_what_is_drawn_together_is_always_the_same_64(tmp_path):
    asked = []
    written(tmp_path, 200, lambda first, n: asked.append((first, n)) or numbers(first, n), size=64)
    assert asked == [(0, 64), (64, 64), (128, 64), (192, 64)]
    assert all(n % GROUP == 0 for _, n in asked)


def test_bits_do_not_depend_on_shards_or_processes(tmp_path):
    def draw(first: int, n: int) -> Tensor:
        return sample(MODEL, n, first=first, batch=GROUP, calls=3, solver=DDPM(), seed=7)

    written(tmp_path / "one", 200, draw, size=64)
    written(tmp_path / "large", 200, draw, size=1024)
    for rank in (0, 2, 1):
        written(tmp_path / "three", 200, draw, size=64, among=Rank(rank, 3))
    one = whole(tmp_path / "one")
    assert torch.equal(one, whole(tmp_path / "large"))
    assert torch.equal(one, whole(tmp_path / "three"))
    assert torch.equal(one, sample(MODEL, 256, batch=GROUP, calls=3, solver=DDPM(), seed=7)[:200])


def test_processes_share_the_shards(tmp_path):
    first, second = (written(tmp_path, 300, size=64, among=Rank(r, 2)) for r in (0, 1))
    assert [s.path.stem for s in first] == ["000000", "000002", "000004"]
    assert [s.path.stem for s in second] == ["000001", "000003"]
    assert torch.equal(whole(tmp_path), numbers(0, 300))


def test_a_stopped_job_goes_on(tmp_path):
    going = shards(numbers, 300, tmp_path, ABOUT, kind="safetensors", size=64)
    for _ in range(3):
        next(going)
    going.close()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    found = written(tmp_path, 300, size=64)
    assert [s.there for s in found] == [True, True, True, False, False]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert torch.equal(whole(tmp_path), numbers(0, 300))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("how", ["cut", "empty", "garbage"])
def test_a_damaged_shard_is_put_aside_and_drawn_again(tmp_path, kind, how):
    draw = pictures if kind == "npz" else numbers
    written(tmp_path, 130, draw, kind=kind, size=64)
    victim = tmp_path / f"000001.{kind}"
    data = victim.read_bytes()
    victim.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "garbage": b"garbage" * 99}[how])
    assert [s.there for s in written(tmp_path, 130, draw, kind=kind, size=64)] == [True, False, True]
    assert victim.read_bytes() == data
    assert (tmp_path / "000001.damaged").exists()


def test_npz_as_other_tools_read_it(tmp_path):
    written(tmp_path, 70, pictures, kind="npz", size=64)
    with np.load(tmp_path / "000001.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].shape == (6, 2, 4, 3)
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_0"][:, 0, 0, 0].tolist() == list(range(64, 70))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"about": {**ABOUT, "seed": 1}}, r"holds samples of other settings: seed \(0 there, 1 asked\)"),
        ({"about": {"solver": "DDIM()"}}, r"seed \(0 there, None asked\)"),
        ({"n": 131}, r"n \(130 there, 131 asked\)"),
        ({"size": 128}, r"size \(64 there, 128 asked\)"),
        ({"kind": "npz", "draw": pictures}, r"kind \('safetensors' there, 'npz' asked\)"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, said):
    written(tmp_path, 130, size=64)
    with pytest.raises(UserError, match=said):
        written(tmp_path, **{"n": 130, "size": 64, **change})


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_description_is_told(tmp_path, content):
    written(tmp_path, 64)
    (tmp_path / "sampling.json").write_text(content)
    with pytest.raises(UserError, match=r"sampling\.json is damaged"):
        written(tmp_path, 64)


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'npz'"):
        written(tmp_path, 5, kind="npy")
    with pytest.raises(UserError, match="size must be a whole number"):
        written(tmp_path, 5, size=0)
    with pytest.raises(UserError, match="n must be a whole number"):
        written(tmp_path, 0)
    with pytest.raises(UserError, match=r"samples of shape \(3,\) are no images: take kind 'safetensors'"):
        written(tmp_path / "npz", 5, kind="npz")


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    import errno
    import os

    plain, writes = os.fsync, []

    def full(file):
        writes.append(file)
        if len(writes) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        written(tmp_path, 300, size=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.safetensors", "000001.safetensors", "sampling.json"]
    monkeypatch.setattr(os, "fsync", plain)
    assert sum(s.there for s in written(tmp_path, 300, size=64)) == 2


def test_the_first_sample_may_be_any():
    """`sample(first=)`: sample i is a function of the seed and i."""
    every = sample(MODEL, 192, calls=4, solver=DDPM(), seed=3, batch=GROUP)
    assert torch.equal(every[64:128], sample(MODEL, 64, calls=4, solver=DDPM(), seed=3, first=64, batch=GROUP))
    assert torch.equal(latents(MODEL, 192, seed=3)[64:128], latents(MODEL, 64, seed=3, first=64))
    torch.testing.assert_close(every[70:75], sample(MODEL, 5, calls=4, solver=DDPM(), seed=3, first=70))
