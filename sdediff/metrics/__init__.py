"""Distances between samples: tensors in, numbers out. Nothing here knows of data sets, networks or solvers.

Everything is computed in float64 on the CPU. A distance means little without its noise floor: the distance between two
random halves of the real data, which a perfect sampler would also score.
"""

from sdediff.metrics.errors import MetricError
from sdediff.metrics.frechet import Moments, frechet_distance, moments, noise_floor
from sdediff.metrics.gaussianity import Gaussianity, gaussianity
from sdediff.metrics.transport import sliced_wasserstein

__all__ = ["Gaussianity", "MetricError", "Moments", "frechet_distance", "gaussianity", "moments", "noise_floor", "sliced_wasserstein"]
