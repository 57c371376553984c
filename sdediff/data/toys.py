"""Two-dimensional distributions that one can see: what a sampler gets wrong is visible in a scatter plot.

Every toy is `(raw - centre) / scale` with fixed numbers, never the sample's own mean and deviation, so the distribution
does not depend on n. The scale is isotropic and makes the mean of the two variances one; only ring8 keeps its textbook
size (radius 1), whose standard deviation is 0.71 a coordinate.
"""

import difflib
import math
from collections.abc import Callable

import numpy as np
import torch

from sdediff.data.dataset import Dataset
from sdediff.data.errors import DataError

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray | None]]


def toy(name: str, n: int, seed: int = 0) -> Dataset:
    """n samples of the 2-D toy called name, x (n, 2) float32, the same for the same seed.

    ring8: 8 equal Gaussians of std 0.1 on the circle of radius 1; labels 0..7, counter-clockwise from (1, 0).
    moons: two half circles with noise; labels 0, 1.
    swiss_roll: a spiral with noise; no labels.
    checkerboard: uniform on the 8 dark cells of a 4x4 board; no labels.
    Raises DataError for an unknown name or n < 1.
    """
    if name not in TOYS:
        near = difflib.get_close_matches(name, TOYS, n=1, cutoff=0)
        raise DataError(f"There is no toy {name!r}. Expected one of: {', '.join(TOYS)}. Did you mean {near[0]!r}?")
    if n < 1:
        raise DataError(f"A toy of n = {n} samples; expected n >= 1.")
    points, labels = TOYS[name](np.random.default_rng(seed), n)
    x = torch.from_numpy(points.astype(np.float32))
    return Dataset(x, None if labels is None else torch.from_numpy(labels.astype(np.int64)), name)


def _ring8(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    mode = rng.integers(8, size=n)
    angle = mode * (math.pi / 4)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((n, 2)), mode


def _moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Upper (cos a, sin a) and lower (1 - cos a, 1/2 - sin a), a uniform on (0, pi), noise of std 0.05."""
    moon = rng.integers(2, size=n)
    angle = rng.uniform(0, math.pi, n)
    sign = 1 - 2 * moon
    points = np.stack([moon + sign * np.cos(angle), 0.5 * moon + sign * np.sin(angle)], 1)
    points += 0.05 * rng.standard_normal((n, 2))
    variance_x = 1 / 2 + 1 / 4
    variance_y = 1 / 2 - 4 / math.pi**2 + (2 / math.pi - 1 / 4) ** 2
    return (points - [0.5, 0.25]) / math.sqrt((variance_x + variance_y) / 2 + 0.05**2), moon


def _swiss_roll(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(a cos a, a sin a), a uniform on (3 pi/2, 9 pi/2), noise of std 0.3. Antiderivatives give mean and variance."""
    low, high = 1.5 * math.pi, 4.5 * math.pi
    angle = rng.uniform(low, high, n)
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) + 0.3 * rng.standard_normal((n, 2))
    mean_x = (high * math.sin(high) - low * math.sin(low)) / (high - low)  # a cos a -> a sin a + cos a, cos = 0 at ends
    mean_y = (math.sin(high) - math.sin(low)) / (high - low)  # a sin a -> sin a - a cos a
    square = (high**3 - low**3) / (3 * (high - low))
    return (points - [mean_x, mean_y]) / math.sqrt((square - mean_x**2 - mean_y**2) / 2 + 0.3**2), None


def _checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Uniform on the cells of [-2, 2]^2 whose column and row add to an even number; each coordinate is uniform."""
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    points = np.stack([column, row], 1) + rng.uniform(size=(n, 2)) - 2
    return points / math.sqrt(4 / 3), None


TOYS: dict[str, Draw] = {
    "ring8": _ring8,
    "moons": _moons,
    "swiss_roll": _swiss_roll,
    "checkerboard": _checkerboard,
}
