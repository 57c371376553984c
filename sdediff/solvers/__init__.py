"""Every solver, by name. One file a family; a new solver is a class there and a name here, and the laws measure it."""

from typing import Any

from ..coordinates import COORDINATES
from ..invertible import Inverse
from ..names import from_repr
from ..phi import ExponentialTableau
from ..weights import Tableau
from .adams import DEIS, LMS, Between, ExponentialAdams, SASolver
from .adaptive_adams import AdaptiveAdams
from .analytic_dpm import AnalyticDPM, ScorePower
from .ancestral import DPM2Ancestral, DPMSolverPP2SAncestral, DPMSolverPPSDE, EulerAncestral
from .asynchronous import AsynchronousLeapfrog
from .consistency import Consistency
from .couplings import BDIA, EDICT, OBELM
from .ddim import DDIM, Sigmas
from .ddpm import DDPM
from .deis_rk import DEISRungeKutta
from .dpm_multistep import DPMSolverMultistep, DPMSolverPPMultistep, SDEDPMSolverPP
from .dpm_solver import DPMSolver, DPMSolverPP, dpm_solver_orders
from .edm import DPM2, EDMHeun
from .ersde import ERSDE
from .euler_maruyama import EulerMaruyama
from .exponential_rk import EmbeddedExponential, ExponentialRungeKutta
from .fixed_point import FixedPoint
from .gotta_go_fast import GottaGoFast
from .leapfrog import Leapfrog, Milne
from .pndm import IPNDM, PNDM
from .restart import Restart
from .reversible import Reversible, Rex
from .reversible_heun import ReversibleHeun
from .runge_kutta import EmbeddedRungeKutta, Euler, Heun, RungeKutta
from .score_sde import AnnealedLangevin, Langevin, PredictorCorrector, Renoise, ReverseDiffusion
from .seeds import SEEDS
from .sra import SRA1, ShARK
from .unipc import UniPC

__all__ = [
    "BDIA",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "EDICT",
    "ERSDE",
    "IPNDM",
    "LMS",
    "OBELM",
    "PNDM",
    "SEEDS",
    "SRA1",
    "AdaptiveAdams",
    "AnalyticDPM",
    "AnnealedLangevin",
    "AsynchronousLeapfrog",
    "Between",
    "Consistency",
    "DEISRungeKutta",
    "DPM2Ancestral",
    "DPMSolver",
    "DPMSolverMultistep",
    "DPMSolverPP",
    "DPMSolverPP2SAncestral",
    "DPMSolverPPMultistep",
    "DPMSolverPPSDE",
    "EDMHeun",
    "EmbeddedExponential",
    "EmbeddedRungeKutta",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "ExponentialAdams",
    "ExponentialRungeKutta",
    "FixedPoint",
    "GottaGoFast",
    "Heun",
    "Langevin",
    "Leapfrog",
    "Milne",
    "PredictorCorrector",
    "Renoise",
    "Restart",
    "ReverseDiffusion",
    "Reversible",
    "ReversibleHeun",
    "Rex",
    "RungeKutta",
    "SASolver",
    "SDEDPMSolverPP",
    "ScorePower",
    "ShARK",
    "Sigmas",
    "UniPC",
    "dpm_solver_orders",
]

SOLVERS = (
    DEIS,
    LMS,
    ExponentialAdams,
    AdaptiveAdams,
    SASolver,
    DPMSolverMultistep,
    DPMSolverPPMultistep,
    SDEDPMSolverPP,
    IPNDM,
    PNDM,
    UniPC,
    DDPM,
    DDIM,
    EulerMaruyama,
    Euler,
    Heun,
    RungeKutta,
    AnalyticDPM,
    AnnealedLangevin,
    Consistency,
    PredictorCorrector,
    ReverseDiffusion,
    Restart,
    DPM2,
    DPM2Ancestral,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSDE,
    DPMSolverPP2SAncestral,
    DEISRungeKutta,
    EDMHeun,
    EmbeddedExponential,
    EmbeddedRungeKutta,
    EulerAncestral,
    ExponentialRungeKutta,
    FixedPoint,
    SEEDS,
    ERSDE,
    SRA1,
    ShARK,
    GottaGoFast,
    EDICT,
    BDIA,
    OBELM,
    ReversibleHeun,
    Reversible,
    Rex,
    AsynchronousLeapfrog,
    Leapfrog,
    Milne,
)

VALUES = (*COORDINATES, Between, Sigmas, Tableau, Langevin, Renoise, ScorePower, ExponentialTableau)
"""The classes whose values appear as options of solvers."""


def named(text: str, extra: tuple[type, ...] = ()) -> Any:
    """The solver whose `repr` is `text`, e.g. `named("DDIM(eta=0.5)")`; a bare name takes its defaults.

    `extra` adds classes (the delegates). Raises `UserError` naming what exists and the nearest name.
    """
    names = {c.__name__: c for c in (*SOLVERS, Inverse, *extra)}
    return from_repr(text, names, values={c.__name__: c for c in VALUES})
