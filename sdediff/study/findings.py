"""What a study found, as its page and its tables show it: plain numbers, texts and pictures, nothing that computes.

A `Line` is one cell of the study, its seeds taken together. Every measured number is an `Interval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Against(NamedTuple):
    """A line against the best in the headline metric, on the same latents: difference (line - best), and the p value of no difference."""

    difference: Interval
    p: float


@dataclass(frozen=True)
class Line:
    """One cell. calls: asked, None of an adaptive solver; made: network calls for a sample, the mean; fewest, most: over the samples.

    measures: by the name of the metric; also "error", the root mean square distance to the converged flow from the same latents, which
    for a stochastic solver is no error. seconds, network (share of them spent in the network), memory (bytes at the peak): costs.
    against: None of the best line itself, and where nothing can be compared. good: whether it is as good as the best as far as can be told.
    """

    curve: str
    solver: str
    grid: str
    guidance: str | None
    calls: int | None
    made: float
    fewest: int
    most: int
    seeds: int
    samples: int
    stochastic: bool
    measures: Mapping[str, Interval]
    seconds: float
    network: float
    memory: float
    against: Against | None = None
    good: bool = False


class Sheet(NamedTuple):
    """The first images of a line, uint8 (k, h, w, c), c = 1 or 3: image j of every sheet starts from the same latent."""

    curve: str
    calls: int
    images: np.ndarray


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    metric: the headline metric's name; titles: what each metric is called, with its unit; better: "low" or "high" by metric; reference:
    the converged flow; noise: each metric of as many real samples against the real ones; front: lines that nothing cheaper equals, by
    their number in `lines`, from cheap to good; answer: three sentences; sheets: in order of curve, then calls, and those of no line,
    such as the converged flow, by their name; real: images of the data;
    failed: (cell, reason); tables: further tables by title, each with a sentence; settings: the TOML text; command: how to make it again;
    about: versions, data, weights, by name.
    """

    name: str
    question: str
    answer: Sequence[str]
    metric: str
    titles: Mapping[str, str]
    better: Mapping[str, str]
    lines: Sequence[Line]
    reference: Line | None
    noise: Mapping[str, Interval]
    front: Sequence[int]
    sheets: Sequence[Sheet]
    real: np.ndarray | None
    failed: Sequence[tuple[str, str]]
    settings: str
    command: str
    about: Mapping[str, str]
    tables: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]] = field(default_factory=tuple)
    pictures: Sequence[tuple[str, str, bytes]] = field(default_factory=tuple)  # title, sentence, PNG
