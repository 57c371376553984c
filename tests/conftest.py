"""What tests share: the shared folder (data, golden files), and where it must be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sdediff.data import data_folder

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)  # the tensors here are small: on a busy machine threads only wait for one another


def missing(reason: str) -> None:
    """Skip with a reason, or fail where SDEDIFF_REQUIRE_DATA=1."""
    if os.environ.get("SDEDIFF_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def golden(name: str) -> Path:
    """`../shared/golden/<name>.npz`."""
    path = ROOT.parent / "shared" / "golden" / f"{name}.npz"
    if not path.exists():
        missing(f"needs {path}, which is not here")
    return path


@pytest.fixture
def real_data() -> Path:
    """The folder with mnist/, cifar10/ and weights/."""
    folder = data_folder()
    if folder is None:
        missing("no real data: ../shared/data is missing and SDEDIFF_DATA is not set")
    assert folder is not None
    return folder


@pytest.fixture
def mnist_folder(real_data: Path) -> Path:
    return real_data / "mnist"


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
