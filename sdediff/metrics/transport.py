"""Optimal transport between two sets of samples.

The sliced Wasserstein distance projects both sets on random directions, where optimal transport is sorting:
SW2 = (mean over directions of W2^2 of the projections)^(1/2). It needs no features and no Gaussian assumption; a shift
by the vector c gives |c| / sqrt(d) as the directions grow. Source: Bonneel et al. 2015.
"""

import numpy as np
from torch import Tensor

from sdediff.metrics.errors import MetricError


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance between samples x (n, ...) and y (m, ...), in units of x; computed by POT.

    Samples are flattened to d numbers and compared in float64 along `projections` directions, uniform on the sphere and
    a function of the seed and d alone. Raises MetricError without POT, for different sample shapes, empty sets, values
    that are not finite, or projections < 1.
    """
    try:
        import ot
    except ImportError as e:
        raise MetricError(
            "The sliced Wasserstein distance is computed by POT, which is not installed. Install it: pip install 'sdediff[study]'"
        ) from e
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or y.ndim < 2:
        raise MetricError(
            f"Samples of shape {tuple(x.shape)} and {tuple(y.shape)}; expected (n, ...) and (m, ...) with the same "
            "shape after the first number."
        )
    if x.numel() == 0 or y.numel() == 0 or projections < 1:
        raise MetricError(
            f"{tuple(x.shape)} against {tuple(y.shape)} along {projections} directions; expected at least one sample "
            "in each set and at least one direction."
        )
    a, b = _flat(x), _flat(y)
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    return np.asarray(ot.sliced_wasserstein_distance(a, b, projections=directions)).item()


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
