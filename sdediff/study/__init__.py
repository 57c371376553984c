"""Step count against quality: a model, its solvers, the same latents for all, the tables and the pictures.

`study(problem, settings, folder)` is the whole of it; `sdediff study` is its face at the command line.
"""

from .outcome import Outcome
from .problem import Judge, Problem, digits_problem, mnist_problem
from .run import Progress, study
from .settings import CONFIGS, DIGITS, MNIST, Cell, Settings, quick
from .sweep import Results, Row
from .tables import adaptive, by_calls, consistency

__all__ = [
    "CONFIGS",
    "DIGITS",
    "MNIST",
    "Cell",
    "Judge",
    "Outcome",
    "Problem",
    "Progress",
    "Results",
    "Row",
    "Settings",
    "adaptive",
    "by_calls",
    "consistency",
    "digits_problem",
    "mnist_problem",
    "quick",
    "study",
]
