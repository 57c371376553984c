"""Everything a study found, as its tables and its page need it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .problem import Judge
from .sweep import Results


class Outcome(NamedTuple):
    """Everything a study found."""

    results: Results
    judge: Judge
    round_trip: list[dict[str, Any]]
    consistency: list[dict[str, Any]]
    midpoints: list[dict[str, Any]]
