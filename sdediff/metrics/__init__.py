"""Distances between samples: tensors in, numbers out. Nothing here knows of data sets, networks or solvers.

Everything is computed in float64 on the CPU. A distance means little without its noise floor: the distance between two
random halves of the real data, which a perfect sampler would also score.
"""

from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate, grouped, mean_of
from sdediff.metrics.frechet import Features, Frechet, FrechetTo, Moments, frechet_distance, frechet_estimates, moments, noise_floor
from sdediff.metrics.gaussianity import Gaussianity, gaussianity
from sdediff.metrics.inception_score import inception_score, inception_scores
from sdediff.metrics.kernel import KernelReference, Subsets, kernel_distance, kernel_distance_subsets
from sdediff.metrics.manifolds import PRDC, DensityCoverage, Manifold, PrecisionRecall, density_coverage, prdc, precision_recall
from sdediff.metrics.memorisation import Memorisation, memorisation
from sdediff.metrics.statistics import Statistics
from sdediff.metrics.transport import sliced_wasserstein, sliced_wasserstein_estimate, wasserstein

__all__ = [
    "PRDC",
    "DensityCoverage",
    "Estimate",
    "Features",
    "Frechet",
    "FrechetTo",
    "Gaussianity",
    "KernelReference",
    "Manifold",
    "Memorisation",
    "MetricError",
    "Moments",
    "PrecisionRecall",
    "Statistics",
    "Subsets",
    "density_coverage",
    "frechet_distance",
    "frechet_estimates",
    "gaussianity",
    "grouped",
    "inception_score",
    "inception_scores",
    "kernel_distance",
    "kernel_distance_subsets",
    "mean_of",
    "memorisation",
    "moments",
    "noise_floor",
    "prdc",
    "precision_recall",
    "sliced_wasserstein",
    "sliced_wasserstein_estimate",
    "wasserstein",
]
