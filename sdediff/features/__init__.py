"""Features of images, and statistics of real ones: what the metrics of samples look through.

An `Extractor` is a network by its name, or anything of the user's that answers with numbers; its `mark` is a hash of weights and options.
A `Reference` holds the mean and covariance of real features and the mark of who made them, so that no two extractors are ever compared.
Nothing is downloaded, and no file is unpickled but for plain tensors.
"""

from .extractors import NAMES, Extractor, extractor
from .files import PUBLISHED
from .reference import FeatureWarning, Reference, load_reference, reference_statistics

__all__ = ["NAMES", "PUBLISHED", "Extractor", "FeatureWarning", "Reference", "extractor", "load_reference", "reference_statistics"]
