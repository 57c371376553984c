"""The scripts of the README and the docs run as written."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

NAMES = (
    "encode_decode",
    "default",
    "adaptive",
    "adaptive_sde",
    "rough_time",
    "likelihood",
    "elbo",
    "latent_diffusion",
    "guidance",
    "data",
    "training",
)
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES))
SCRIPTS = [script for page in PAGES for script in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


def test_the_first_script_calls_one_step_in_ten_lines():
    assert len([line for line in SCRIPTS[0].splitlines() if line.strip()]) <= 10
    assert "solver.step(" in SCRIPTS[0]


def test_the_first_script_runs_as_pasted(tmp_path):
    run = subprocess.run([sys.executable, "-c", SCRIPTS[0]], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("number", range(1, len(SCRIPTS)))
def test_a_script_runs_as_written(number, tmp_path, monkeypatch):
    """In this process, which has the libraries already: imports are most of a short script's time."""
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPTS[number], f"script {number}", "exec"), {"__name__": "__main__"})
