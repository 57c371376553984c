"""What tests share: the shared folder (data, golden files), and where it must be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def shared(name: str) -> Path:
    """`../shared/<name>`; without it the test skips with a reason, or fails where SDEDIFF_REQUIRE_DATA=1."""
    path = ROOT.parent / "shared" / name
    if not path.exists():
        reason = f"needs {path}, which is not here"
        if os.environ.get("SDEDIFF_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(autouse=True)
def _no_grad_and_one_seed():
    torch.manual_seed(0)
