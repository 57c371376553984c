"""Optimal transport between two sets of samples.

The sliced Wasserstein distance projects both sets on random directions, where optimal transport is sorting:
SW2 = (mean over directions of W2^2 of the projections)^(1/2). It needs no features and no Gaussian assumption; a shift
by the vector c gives |c| / sqrt(d) as the directions grow. Source: Bonneel et al. 2015.

The cost of optimal transport changes with the weight of x_i by its dual potential u_i, so u_i - mean u is the sample's influence
(del Barrio & Loubes 2019). On a line u(b) - u(a) = int_a^b 2 (x - T(x)) dx, T the monotone map.
"""

import numpy as np
from torch import Tensor

from sdediff.metrics.blocks import Rows, squared_distances
from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate

_MOST = 5000  # samples in a set: 200 MB of costs and about half a minute
_NUMBERS = 2**20  # of a block of projections


def wasserstein(x: Tensor, y: Tensor, p: float = 2.0) -> Estimate:
    """The exact p-Wasserstein distance, p >= 1, of samples x (n, ...) and y (m, ...), in units of x; by POT's network simplex.

    The error is that of the n samples, y being given: the value is far above zero for two sets of one distribution, by about
    n^(-1/d) of their size. Time grows as n^3 (5000 against 5000: half a minute), memory as 8 n m bytes, so n, m are 5000 at most.
    Raises MetricError for more, without POT, for different sample shapes, fewer than 2 of x, none of y, not finite, or p < 1.
    """
    _pot()
    _shapes(x, y)
    if not 1 <= p < np.inf:
        raise MetricError(f"p = {p}; expected a finite number of 1 or more.")
    if max(len(x), len(y)) > _MOST:
        raise MetricError(
            f"{len(x)} samples against {len(y)}; exact transport takes {_MOST} at most. Use sliced_wasserstein_estimate, or fewer samples."
        )
    real = Rows.of(y, "Samples y")
    rows = Rows.of(x, "Samples x", 2, real)
    costs = squared_distances(rows[:], real[:]).numpy() ** (p / 2)
    value, influence = _transport(costs, p)
    n = len(rows)
    parts = (slice(0, n // 2), slice(n // 2, n))
    halves = [_transport(costs[part], p)[1] * (n / (2 * (part.stop - part.start))) for part in parts]
    return Estimate(value, influence, np.concatenate(halves))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance between samples x (n, ...) and y (m, ...), in units of x; computed by POT.

    Samples are flattened to d numbers and compared in float64 along `projections` directions, uniform on the sphere and
    a function of the seed and d alone. Raises MetricError without POT, for different sample shapes, empty sets, values
    that are not finite, or projections < 1.
    """
    ot = _pot()
    a, b = _pair(x, y, projections)
    return np.asarray(ot.sliced_wasserstein_distance(a, b, projections=_directions(a.shape[1], projections, seed))).item()


def sliced_wasserstein_estimate(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> Estimate:
    """`sliced_wasserstein` with its error: that of the n >= 2 samples x, y and the directions being given.

    Costs (n + m)(d + log(n + m)) operations a direction; memory is that of the samples in float64 and a block of projections.
    """
    a, b = _pair(x, y, projections)
    if len(a) < 2:
        raise MetricError(f"{len(a)} sample; an error needs at least 2. Give more samples, or use sliced_wasserstein.")
    directions = _directions(a.shape[1], projections, seed)
    n, half = len(a), len(a) // 2
    parts = [slice(0, n), slice(0, half), slice(half, n)]
    costs, potentials = np.zeros(3), [np.zeros(part.stop - part.start) for part in parts]
    block = max(1, _NUMBERS // max(n, len(b)))
    for first in range(0, projections, block):
        some = directions[:, first : first + block]
        u, v = a @ some, np.sort(b @ some, 0)
        for k, part in enumerate(parts):
            cost, potential = _line(u[part], v)
            costs[k] += cost.sum() / projections
            potentials[k] += potential.sum(1) / projections
    same = (1e-14 * float(np.abs(a).max())) ** 2  # a cost that is the rounding of the projections
    full, *halves = (_rooted(cost if cost > same else 0.0, each, 2.0) for cost, each in zip(costs, potentials, strict=True))
    scaled = [each * (n / (2 * len(each))) for each in halves]
    return Estimate(costs[0] ** 0.5, full, np.concatenate(scaled))


def _line(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every column of u (n, P) against the sorted v (m, P): W2^2 (P,), and the potentials (n, P) of u in its own order."""
    n, m = len(u), len(v)
    order = np.argsort(u, 0)
    x = np.take_along_axis(u, order, 0)
    cuts = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # of the mass, in units of 1/(nm)
    mass = np.diff(cuts, prepend=0) / (n * m)
    cost = mass @ np.square(x[(cuts - 1) // m] - v[(cuts - 1) // n])
    at = np.arange(1, n) * m  # between one x and the next the map jumps over the quantile of v, or is anywhere between two of them
    between = (v[(at - 1) // n] + v[at // n]) / 2
    potential = np.zeros_like(x)
    np.cumsum((x[1:] - x[:-1]) * (x[1:] + x[:-1] - 2 * between), 0, out=potential[1:])
    found = np.empty_like(potential)
    np.put_along_axis(found, order, potential, 0)
    return cost, found


def _transport(costs: np.ndarray, p: float) -> tuple[float, np.ndarray]:
    """W_p of a matrix of distances to the power of p, and the influence of every row."""
    ot = _pot()
    n, m = costs.shape
    cost, log = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), np.ascontiguousarray(costs), numItermax=100_000_000, log=True)
    if log["warning"] is not None:
        raise MetricError(f"Optimal transport of {n} against {m} samples was not found: {log['warning']} Use sliced_wasserstein_estimate.")
    return max(float(cost), 0.0) ** (1 / p), _rooted(float(cost), log["u"], p)


def _rooted(cost: float, potential: np.ndarray, p: float) -> np.ndarray:
    """The influence on cost^(1/p); nothing at zero, where the two sets are one."""
    if cost <= 0:
        return np.zeros_like(potential)
    return (potential - potential.mean()) * cost ** (1 / p - 1) / p


def _directions(d: int, projections: int, seed: int) -> np.ndarray:
    directions = np.random.default_rng(seed).standard_normal((d, projections))
    return directions / np.linalg.norm(directions, axis=0)


def _pot():
    try:
        import ot
    except ImportError as e:
        raise MetricError(
            "The Wasserstein distances are computed by POT, which is not installed. Install it: pip install 'sdediff[study]'"
        ) from e
    return ot


def _shapes(x: Tensor, y: Tensor) -> None:
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or y.ndim < 2:
        raise MetricError(
            f"Samples of shape {tuple(x.shape)} and {tuple(y.shape)}; expected (n, ...) and (m, ...) with the same "
            "shape after the first number."
        )


def _pair(x: Tensor, y: Tensor, projections: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as finite float64 arrays (n, d) and (m, d)."""
    _shapes(x, y)
    if x.numel() == 0 or y.numel() == 0 or projections < 1:
        raise MetricError(
            f"{tuple(x.shape)} against {tuple(y.shape)} along {projections} directions; expected at least one sample "
            "in each set and at least one direction."
        )
    return _flat(x), _flat(y)


def _flat(x: Tensor) -> np.ndarray:
    """Samples as a float64 array (n, d), finite."""
    flat = x.detach().cpu().double().flatten(1).numpy()
    wrong = int((~np.isfinite(flat)).any(1).sum())
    if wrong:
        raise MetricError(
            f"{wrong} of {len(flat)} samples are not finite; expected finite numbers. "
            "Look for a diverged sampler, or drop these samples and report their number."
        )
    return flat
