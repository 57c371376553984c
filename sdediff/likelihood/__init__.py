"""The log-likelihood of data under the probability flow, with a budget of its errors.

`flow` asks and answers (`log_likelihood`), `trace` and `carried` find and integrate the divergence, `ends` says where the flow begins and
ends, `dequantise` is for images of grey levels, `budget` is the answer.
"""

from .budget import PARTS, Budget, LogLikelihood
from .carried import Carried
from .dequantise import KINDS, Dequantised, Levels, dequantised
from .ends import STARTS, Density, prior_kl
from .flow import log_likelihood
from .trace import TRACES, ExactTrace, Hutchinson, HutchPP, Trace

__all__ = [
    "KINDS",
    "PARTS",
    "STARTS",
    "TRACES",
    "Budget",
    "Carried",
    "Density",
    "Dequantised",
    "ExactTrace",
    "HutchPP",
    "Hutchinson",
    "Levels",
    "LogLikelihood",
    "Trace",
    "dequantised",
    "log_likelihood",
    "prior_kl",
]
