"""sdediff: solve the SDEs and ODEs of diffusion models, and measure every claim about a sampler.

A solver is a frozen value, a model is a function, a time grid is a tuple of exact numbers, and one loop runs them all.
"""

from .checkpoint import load_model, save_model
from .combine import Linear, combine, linear
from .control import Controller, Fixed
from .coordinates import Angle, Coordinates, Sigma, Time
from .external import SciPy, TorchDiffEq, TorchSDE
from .grid import AngleUniform, DDPMSubsequence, Grid, Karras, LogSNR, Power, Quadratic, Times, Uniform
from .inversion import Latent, decode, encode, interpolate
from .names import UserError
from .noise import Brownian, White
from .oracle import Empirical, Gaussian, Mixture
from .prediction import Counted, Model, ModelError, Prediction
from .result import Frame, Solution, Step
from .sampling import knots_for, latents, sample
from .schedule import Knot, Schedule
from .schedules import EDM, VE, DiscreteVP, FlowMatching, Shifted, SubVP, VPCosine, VPLinear
from .score import Objective, ScoreNet
from .solve import march, solve
from .solver import Ancestral, Facts, OneStep, Solver
from .solvers import DDIM, DDPM, Euler, EulerMaruyama, Heun, RungeKutta, Sigmas
from .train import Training, fit
from .weights import Tableau

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "VE",
    "Ancestral",
    "Angle",
    "AngleUniform",
    "Brownian",
    "Controller",
    "Coordinates",
    "Counted",
    "DDPMSubsequence",
    "DiscreteVP",
    "Empirical",
    "Euler",
    "EulerMaruyama",
    "Facts",
    "Fixed",
    "FlowMatching",
    "Frame",
    "Gaussian",
    "Grid",
    "Heun",
    "Karras",
    "Knot",
    "Latent",
    "Linear",
    "LogSNR",
    "Mixture",
    "Model",
    "ModelError",
    "Objective",
    "OneStep",
    "Power",
    "Prediction",
    "Quadratic",
    "RungeKutta",
    "Schedule",
    "SciPy",
    "ScoreNet",
    "Shifted",
    "Sigma",
    "Sigmas",
    "Solution",
    "Solver",
    "Step",
    "SubVP",
    "Tableau",
    "Time",
    "Times",
    "TorchDiffEq",
    "TorchSDE",
    "Training",
    "Uniform",
    "UserError",
    "VPCosine",
    "VPLinear",
    "White",
    "combine",
    "decode",
    "encode",
    "fit",
    "interpolate",
    "knots_for",
    "latents",
    "linear",
    "load_model",
    "march",
    "sample",
    "save_model",
    "solve",
]
