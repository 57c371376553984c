"""The same flow and SDE handed to independent libraries: torchdiffeq, torchode, SciPy, torchsde. They go wherever a solver goes.

The flow is given as dy/dclock = velocity in chosen coordinates, the clock shifted so that it starts at 0 and increases; it is never
evaluated past either end. Adaptive methods use only the ends of the knots; they have one error norm for the whole batch, but torchode and
`SciPy(each=True)` judge every sample by itself. Fixed-step ones (torchdiffeq's "euler", "midpoint", "rk4", all of torchsde) step on the
knots. Calls are counted as made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .combine import combine, linear
from .coordinates import Coordinates, Time
from .names import UserError, choose
from .noise import Noise
from .prediction import Counted, Model, ModelError
from .result import Solution
from .schedule import Knot
from .solver import Facts

_ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
_FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
_TORCHODE = {"dopri5": "Dopri5", "tsit5": "Tsit5", "heun": "Heun"}
_SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
_SDE = {
    "euler": "ito",
    "milstein": "ito",
    "heun": "stratonovich",
    "midpoint": "stratonovich",
    "euler_heun": "stratonovich",
}


@dataclass(frozen=True)
class _Flow:
    """dy/dtau of the probability flow, tau = |clock - clock(first knot)|, on [0, length]."""

    model: Model
    coordinates: Coordinates
    first: Knot
    last: Knot

    @property
    def length(self) -> float:
        return abs(self.coordinates.clock(self.last) - self.coordinates.clock(self.first))

    @property
    def sign(self) -> float:
        return 1.0 if self.coordinates.clock(self.last) >= self.coordinates.clock(self.first) else -1.0

    def tau(self, knots: Sequence[Knot]) -> list[float]:
        """The knots on the shifted clock."""
        return [abs(self.coordinates.clock(k) - self.coordinates.clock(self.first)) for k in knots]

    def __call__(self, tau: float, y: Tensor) -> Tensor:
        return self.velocity(y, self.instant(tau))

    def instant(self, tau: float) -> Knot:
        if tau <= 0:
            return self.first
        if tau >= self.length:
            return self.last
        return self.coordinates.knot(self.first, self.coordinates.clock(self.first) + self.sign * tau)

    def instants(self, tau: np.ndarray) -> Knot:
        """One instant a sample, tau (B,), none past either end."""
        inside = (tau > 0) & (tau < self.length)
        clock = self.coordinates.clock(self.first) + self.sign * np.where(inside, tau, self.length / 2)
        low, high = sorted((self.first.time, self.last.time))
        time = np.clip(self.coordinates.knot(self.first, clock).time, low, high)
        return self.first.schedule.knot(np.where(inside, time, np.where(tau <= 0, self.first.time, self.last.time)))

    def velocity(self, y: Tensor, t: Knot) -> Tensor:
        """dy/dtau at t; `ModelError` where it is not finite."""
        p = self.model(combine(linear(y, self.coordinates.scale(t))), t)
        velocity = combine(self.coordinates.velocity(p) * self.sign)
        if not bool(torch.isfinite(velocity).all()):  # these libraries would look for a step size for ever, or fail far from the cause
            time = np.max(np.where(torch.isfinite(velocity).flatten(1).all(1).cpu().numpy(), -np.inf, t.time))
            raise ModelError(f"at time {time:g} the model returned NaN or infinity: check the network there, or end the grid short of it.")
        return velocity

    def start(self, x: Tensor) -> Tensor:
        return combine(linear(x, 1 / self.coordinates.scale(self.first)))

    def end(self, y: Tensor) -> Tensor:
        return combine(linear(y, self.coordinates.scale(self.last)))


def _tolerances(rtol: float, atol: float) -> None:
    if not (rtol > 0 and atol >= 0):
        raise UserError(f"tolerances must be positive, not rtol={rtol} and atol={atol}.")


@dataclass(frozen=True)
class TorchDiffEq:
    """torchdiffeq's `odeint` on the probability flow. method: dopri5, dopri8, bosh3, ... (adaptive), or rk4, midpoint, ... on the knots."""

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    coordinates: Coordinates = Time()

    def __post_init__(self) -> None:
        choose("torchdiffeq method", self.method, (*_ADAPTIVE, *_FIXED))
        _tolerances(self.rtol, self.atol)

    @property
    def facts(self) -> Facts:
        return Facts(f"torchdiffeq {self.method}; Chen 2018", inverse="approximate")

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps."""
        return self.method in _ADAPTIVE

    @property
    def inverse(self) -> TorchDiffEq:
        return self

    def run(self, model: Model, x: Tensor, knots: Sequence[Knot], noise: Noise | None = None) -> Solution:
        """From x at the first knot to the last. Raises `ModelError` if torchdiffeq gives up."""
        from torchdiffeq import odeint

        flow = _Flow(model, self.coordinates, knots[0], knots[-1])
        visited = (knots[0], knots[-1]) if self.adaptive else tuple(knots)
        tau = torch.tensor(flow.tau(visited), dtype=torch.float64)
        options = {"step_t": tau[-1:]} if self.adaptive else {}
        try:
            y: Any = odeint(
                lambda t, y: flow(float(t), y),
                flow.start(x),
                tau,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=options,
            )
        except AssertionError as wrong:
            raise _gave_up(self, wrong) from None
        return Solution(flow.end(y[-1]), visited, 0)


def _gave_up(delegate: object, why: object) -> ModelError:
    return ModelError(f"{delegate!r} gave up ({why}): the model is NaN or too rough for this tolerance; loosen it or use fixed steps.")


class _Watch:
    """torchode's step size control, and a record of it: where each sample is (tau, y), whether it is still going, what it rejected.

    torchode steps the samples that have ended along with the others, by 0, and counts those calls as theirs: this tells them apart.
    """

    def __init__(self, control: Any, length: float, y: Tensor):
        self.control, self.length, self.y = control, length, y
        self.init, self.merge_states = control.init, control.merge_states
        self.tau, self.going = np.zeros(len(y)), np.ones(len(y), dtype=bool)
        self.each, self.rejected = np.zeros((2, len(y)), dtype=np.int64)

    def adapt_step_size(self, t0: Any, dt: Any, y0: Any, step_result: Any, state: Any, stats: Any) -> Any:
        accept, *answer = self.control.adapt_step_size(t0, dt, y0, step_result, state, stats)
        self.y = torch.where(accept[:, None], step_result.y, y0)
        self.tau = torch.where(accept, t0 + dt, t0).detach().cpu().numpy()
        self.rejected += self.going & ~accept.cpu().numpy()
        self.going = self.tau < self.length
        return (accept, *answer)


@dataclass(frozen=True)
class TorchODE:
    """torchode's solver on the probability flow (Lienen & Gunnemann 2022): every sample has its own steps. method: dopri5, tsit5, heun.

    coefficients: (P, I, D) of its step size control, by default torchode's own; (0, 1, 0) is the plain integral control. `Solution.calls`
    counts the answers for the whole batch, `each` those up to a sample's own end. A sample that needs more than `most_steps` steps stops
    the run: `reached` is false. Needs `pip install torchode`.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    coordinates: Coordinates = Time()
    coefficients: tuple[float, float, float] = (0.2, 0.5, 0.0)
    most_steps: int = 100_000

    def __post_init__(self) -> None:
        choose("torchode method", self.method, _TORCHODE)
        _tolerances(self.rtol, self.atol)
        if len(self.coefficients) != 3 or self.most_steps < 1:
            raise UserError(f"TorchODE needs three coefficients (P, I, D) and at least one step, not {self!r}.")

    @property
    def facts(self) -> Facts:
        return Facts(f"torchode {self.method}; Lienen & Gunnemann 2022", inverse="approximate")

    @property
    def adaptive(self) -> bool:
        return True

    @property
    def inverse(self) -> TorchODE:
        return self

    def run(self, model: Model, x: Tensor, knots: Sequence[Knot], noise: Noise | None = None) -> Solution:
        """From x at the first knot to the last. `UserError` if torchode is not there."""
        torchode = _torchode()
        counted = Counted(model)
        flow = _Flow(counted, self.coordinates, knots[0], knots[-1])
        if flow.length == 0:
            return Solution(x, (knots[0], knots[-1]), 0, each=np.zeros(len(x), dtype=np.int64))
        y = flow.start(x).flatten(1)
        tau = torch.zeros(len(x), dtype=torch.float64, device=x.device)

        def rate(tau: Tensor, y: Tensor) -> Tensor:
            before = counted.calls
            found = flow.velocity(y.reshape(x.shape), flow.instants(tau.detach().cpu().numpy())).flatten(1)
            watch.each[watch.going] += counted.calls - before
            return found

        term = torchode.ODETerm(rate)
        watch = _Watch(torchode.PIDController(self.atol, self.rtol, *self.coefficients, term=term).to(x.device), flow.length, y)
        method = getattr(torchode, _TORCHODE[self.method])(term=term)
        steps = torchode.AutoDiffAdjoint(method, watch, max_steps=self.most_steps, backprop_through_step_size_control=False)
        found = steps.solve(torchode.InitialValueProblem(y, tau, tau + flow.length), term)
        end = flow.instants(watch.tau) if watch.going.any() else knots[-1]
        state = combine(linear(watch.y.reshape(x.shape), self.coordinates.scale(end)))
        reason = ""
        if watch.going.any():
            why = torchode.Status(int(found.status.max())).name.lower().replace("_", " ")
            reason = f"torchode: {why} ({int(watch.going.sum())} of {len(x)} samples short of the end)"
        return Solution(state, (knots[0], end), 0, reached=not reason, reason=reason, each=watch.each, rejected=watch.rejected)


def _torchode() -> Any:
    try:
        import torchode
    except ImportError as missing:
        raise UserError(f"TorchODE hands the flow to torchode, which cannot be imported ({missing}): pip install torchode") from None
    return torchode


@dataclass(frozen=True)
class SciPy:
    """`scipy.integrate.solve_ivp` on the probability flow of the flattened batch, in float64; the network sees the state's dtype.

    method "RK45" in Time coordinates with rtol = atol = 1e-5 is score-SDE's black-box sampler (Song et al. 2021, appendix D.4).
    each: one run for each sample, with steps of its own; `Solution.each` has the calls of each, `calls` their sum.
    """

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5
    coordinates: Coordinates = Time()
    each: bool = False

    def __post_init__(self) -> None:
        choose("SciPy method", self.method, _SCIPY)
        _tolerances(self.rtol, self.atol)

    @property
    def facts(self) -> Facts:
        return Facts(f"scipy.integrate.solve_ivp {self.method}; Song et al. 2021, D.4", inverse="approximate")

    @property
    def adaptive(self) -> bool:
        return True

    @property
    def inverse(self) -> SciPy:
        return self

    def run(self, model: Model, x: Tensor, knots: Sequence[Knot], noise: Noise | None = None) -> Solution:
        """From x at the first knot to the last. `reached` is false, with the reason, if SciPy gives up."""
        if not self.each:
            return self._together(model, x, knots)
        runs, calls = [], []
        for i in range(len(x)):
            counted = Counted(model.rows(torch.tensor([i])))
            runs.append(self._together(counted, x[i : i + 1], knots))
            calls.append(counted.calls)
        short = [f"sample {i}: {run.reason}" for i, run in enumerate(runs) if not run.reached]
        return Solution(
            torch.cat([run.x for run in runs]) if runs else x,
            (knots[0], knots[-1]),
            0,
            reached=not short,
            reason="; ".join(short[:3]) + (" ..." if len(short) > 3 else ""),
            each=np.array(calls, dtype=np.int64),
        )

    def _together(self, model: Model, x: Tensor, knots: Sequence[Knot]) -> Solution:
        from scipy.integrate import solve_ivp

        flow = _Flow(model, self.coordinates, knots[0], knots[-1])

        def rate(tau: float, y: np.ndarray) -> np.ndarray:
            state = torch.as_tensor(y.reshape(x.shape)).to(device=x.device, dtype=x.dtype)
            return flow(tau, state).double().cpu().numpy().ravel()

        y0 = flow.start(x).double().cpu().numpy().ravel()
        found = solve_ivp(rate, (0.0, flow.length), y0, method=self.method, rtol=self.rtol, atol=self.atol)
        y = torch.as_tensor(found.y[:, -1].reshape(x.shape)).to(device=x.device, dtype=x.dtype)
        end = knots[-1] if found.success else flow.instant(float(found.t[-1]))
        return Solution(
            combine(linear(y, self.coordinates.scale(end))),
            (knots[0], end),
            0,
            reached=bool(found.success),
            reason="" if found.success else found.message,
        )


class _Path:
    """Our noise as the Brownian motion that torchsde asks for: increments between two values of tau."""

    levy_area_approximation = "none"

    def __init__(self, noise: Noise, clock: Callable[[float], float], like: Tensor):
        self.noise, self.clock, self.like = noise, clock, like
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        w = self.noise(self.clock(float(ta)), self.clock(float(tb))).reshape(self.shape)
        return (w, torch.zeros_like(w)) if return_U or return_A else w


class _ReverseSDE(torch.nn.Module):
    """dx = [f x - (1 + eta^2)/2 g2 score] dt + eta g dW in tau = first.time - time, as torchsde wants it: f, g, flat states."""

    noise_type = "diagonal"

    def __init__(self, model: Model, eta: float, first: Knot, shape: torch.Size, sde_type: str):
        super().__init__()
        self.model, self.eta, self.first, self.shape, self.sde_type = model, eta, first, shape, sde_type
        self.known: dict[float, Knot] = {}
        self.last: tuple[float, Tensor, Tensor] | None = None

    def knot(self, tau: Any) -> Knot:
        return self.known.get(float(tau)) or self.first.schedule.knot(max(self.first.time - float(tau), 0.0))

    def f(self, tau: Any, y: Tensor) -> Tensor:
        if self.last is not None and self.last[0] == float(tau) and self.last[1] is y:
            return self.last[2]  # torchsde evaluates the first point once more, to check shapes
        self.last = (float(tau), y, self._drift(self.knot(tau), y))
        return self.last[2]

    def _drift(self, t: Knot, y: Tensor) -> Tensor:
        p = self.model(y.reshape(self.shape), t)
        drift = p.mixed(t.dalpha, t.dsigma) + 0.5 * self.eta**2 * t.g2 / t.sigma * p.eps
        return combine(-drift).reshape(y.shape)

    def g(self, tau: Any, y: Tensor) -> Tensor:
        return torch.full_like(y, self.eta * self.knot(tau).g2 ** 0.5)


@dataclass(frozen=True)
class TorchSDE:
    """torchsde's `sdeint` on the reverse SDE of noise level eta, in raw time, one of its steps for each pair of knots, on our noise.

    method: "euler", "milstein" (Ito), "heun", "midpoint", "euler_heun" (Stratonovich; the same SDE, since the noise is additive).
    """

    method: str = "euler"
    eta: float = 1.0

    def __post_init__(self) -> None:
        choose("torchsde method", self.method, _SDE)
        if not self.eta > 0:
            raise UserError(f"TorchSDE needs a noise level eta > 0, not {self.eta}; for eta = 0 use TorchDiffEq.")

    @property
    def facts(self) -> Facts:
        return Facts(f"torchsde {self.method}; Li et al. 2020", stochastic=True)

    @property
    def adaptive(self) -> bool:
        return False

    def run(self, model: Model, x: Tensor, knots: Sequence[Knot], noise: Noise | None = None) -> Solution:
        """From x at the first knot down to the last. Raises `UserError` without noise or when asked to go up in time."""
        from torchsde import sdeint

        if noise is None:
            raise UserError(f"{self!r} draws noise: give it some, e.g. noise=White(seed=0).")
        if not all(t.time > s.time for t, s in pairwise(knots)):
            raise UserError("TorchSDE solves the reverse SDE: its knots must go down in time.")
        first = knots[0]
        sde = _ReverseSDE(model, self.eta, first, x.shape, _SDE[self.method])
        y = x.flatten(1)
        path = _Path(noise, lambda tau: sde.knot(tau).time, y)
        for t, s in pairwise(knots):
            ts = torch.tensor([first.time - t.time, first.time - s.time], dtype=torch.float64)
            sde.known = {float(ts[0]): t, float(ts[1]): s}
            found: Any = sdeint(sde, y, ts, bm=path, method=self.method, dt=2 * float(ts[1] - ts[0]))  # type: ignore[arg-type]
            y = found[-1]
        return Solution(y.reshape(x.shape), tuple(knots), 0)


DELEGATES = (TorchDiffEq, TorchODE, SciPy, TorchSDE)
