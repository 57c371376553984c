"""Every solver, by name. One file a family; a new solver is a class there and a name here, and the laws measure it."""

from typing import Any

from ..coordinates import COORDINATES
from ..names import from_repr
from ..weights import Tableau
from .ddim import DDIM, Sigmas
from .ddpm import DDPM
from .euler_maruyama import EulerMaruyama
from .runge_kutta import Euler, Heun, RungeKutta

__all__ = ["DDIM", "DDPM", "Euler", "EulerMaruyama", "Heun", "RungeKutta", "Sigmas"]

SOLVERS = (DDPM, DDIM, EulerMaruyama, Euler, Heun, RungeKutta)

VALUES = (*COORDINATES, Sigmas, Tableau)
"""The classes whose values appear as options of solvers."""


def named(text: str, extra: tuple[type, ...] = ()) -> Any:
    """The solver whose `repr` is `text`, e.g. `named("DDIM(eta=0.5)")`; a bare name takes its defaults.

    `extra` adds classes (the delegates). Raises `UserError` naming what exists and the nearest name.
    """
    names = {c.__name__: c for c in (*SOLVERS, *extra)}
    return from_repr(text, names, values={c.__name__: c for c in VALUES})
