"""The variational bound of a discrete diffusion model, and its limit in continuous time.

Knots t_0 (noisiest) .. t_N (sigma > 0). The joint p(x_0, x_{t_N}, .., x_{t_0}) is N(0, prior_std^2) at t_0, a Gaussian for each step and
a decoder p(x0 | x_{t_N}); q is the forward process, or DDIM's q_sigma (Song, Meng & Ermon 2021, eq. 7), whose posterior from t to s is
`N(alpha_s x0 + sqrt(sigma_s^2 - n^2) eps, n^2)`. p(x_s | x_t) has the model's x0 in the place of x0 and the variance V. Then

    ln p(x0) >= E ln p(x0 | x_{t_N}) - KL(q(x_{t_0} | x0) || p(x_{t_0})) - sum over steps E KL(q(x_s | x_t, x0) || p(x_s | x_t)),

reconstruction, prior, consistency (Ho, Jain & Abbeel 2020, eq. 5); the gap is KL(q || p) of x_{t_0} .. x_{t_N} given x0. A step's KL is
`d/2 (n^2/V - 1 - ln n^2/V) + k^2 |x0 - x0_hat|^2 / (2 V)`, with k^2/(2 V) = (SNR_s - SNR_t)/2 for DDPM's small variance: for ever more
steps the sum becomes `1/2 INT |x0 - x0_hat|^2 dSNR = INT |eps - eps_hat|^2 dlam` (Kingma et al. 2021, eq. 17).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .combine import spread
from .grid import Uniform
from .names import UserError, choose, positive
from .noise import White
from .prediction import Counted, Model, ModelError, Prediction
from .schedule import Knot, Number
from .solvers import Sigmas

FORMS = ("kl", "noise", "sampled", "pairs")
VARIANCES = ("small", "large", "learned")


# --- what comes back ----------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The three parts (B,), nats: KL to the prior, the sum of the KLs of the steps, and E ln p(x0 | x_{t_N})."""

    prior: Tensor
    consistency: Tensor
    reconstruction: Tensor


class Term(NamedTuple):
    """One row of the table: from `time` to `to` (cleaner), the signal-to-noise ratios there, and the nats it costs.

    nats: the mean over the samples; standard_error: of that mean, from the noise drawn. With `times=n` a row is one of n equal parts.
    """

    time: float
    to: float
    snr: float
    snr_to: float
    nats: float
    standard_error: float


@dataclass(frozen=True)
class Bound:
    """A lower bound on ln p(x0), nats, of each sample: `value` = reconstruction - prior - consistency, float64 (B,).

    standard_error (B,): of `value`, from the noise and the steps drawn (NaN where a single draw tells nothing of it); steps: the
    consistency, row by row; calls: network calls, each for a batch; discrete: the value is the log of a probability (of grey levels), not
    of a density.
    """

    value: Tensor
    standard_error: Tensor
    parts: Parts
    steps: tuple[Term, ...]
    calls: int
    dimension: int
    discrete: bool

    def bits_per_dim(self) -> Tensor:
        """-value / (d ln 2), (B,): an upper bound. With a Gaussian decoder it is of a density in the units of x and may be negative."""
        return -self.value / (self.dimension * math.log(2.0))

    def mean(self) -> tuple[float, float]:
        """The mean bound over the samples and its standard error, which has the spread of the samples and the noise drawn in it."""
        n = len(self.value)
        error = self.value.std() / math.sqrt(n) if n > 1 else self.standard_error[0]
        return float(self.value.mean()), float(error)

    def __str__(self) -> str:
        (value, error), scale = self.mean(), 1 / (self.dimension * math.log(2.0))
        of = "ln P of grey levels" if self.discrete else "ln p"
        prior, consistency, reconstruction = (float(part.mean()) for part in self.parts)
        lines = [
            f"{of} >= {value:.6g} +- {error:.2g} nats, mean of {len(self.value)} samples "
            f"({-value * scale:.5g} +- {error * scale:.1g} bits/dim; {self.calls} calls)",
            f"  reconstruction {reconstruction:.6g} - prior {prior:.6g} - consistency {consistency:.6g}",
            f"  {'time':>9} {'to':>9} {'SNR':>10} {'to':>10} {'nats':>10} {'+-':>8}",
        ]
        shown = np.unique(np.linspace(0, len(self.steps) - 1, min(12, len(self.steps))).round().astype(int))
        for i in shown:
            row = self.steps[i]
            lines.append(f"  {row[0]:9.4g} {row[1]:9.4g} {row[2]:10.4g} {row[3]:10.4g} {row[4]:10.4g} {row[5]:8.1g}")
        if len(shown) < len(self.steps):
            lines.append(f"  ({len(shown)} of {len(self.steps)} rows)")
        return "\n".join(lines)


# --- decoders -----------------------------------------------------------------------------------------------------


class Decoder(Protocol):
    """p(x0 | x_{t_N}), given the model's x0 as its mean."""

    @property
    def discrete(self) -> bool: ...

    def check(self, x: Tensor) -> None:
        """`UserError` for data that this decoder cannot have made."""
        ...

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        """ln p(x | x_t), (B,), where the model's x0 is `mean`; all float64."""
        ...


@dataclass(frozen=True)
class GaussianDecoder:
    """N(x0; x0_hat, variance): a density. variance None: (sigma/alpha)^2 of the last knot, how far x_{t_N} itself blurs the data."""

    variance: float | None = None

    def __post_init__(self) -> None:
        _check_variance(self)

    @property
    def discrete(self) -> bool:
        return False

    def check(self, x: Tensor) -> None:
        """Any data will do."""

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        v = _variance(self, t)
        return _sum(-0.5 * (x - mean).square() / v - 0.5 * math.log(2 * math.pi * v))


@dataclass(frozen=True)
class DiscretizedDecoder:
    """N(x0_hat, variance) integrated over the bin of each grey level, the end bins open (DDPM, eq. 13): a probability.

    levels: how many there are, evenly spaced from `low` to `high`, both included: 256 for 8-bit images in [-1, 1], 17 for our digits.
    variance None: (sigma/alpha)^2 of the last knot.
    """

    levels: int = 256
    low: float = -1.0
    high: float = 1.0
    variance: float | None = None

    def __post_init__(self) -> None:
        _check_variance(self)
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2 or not self.low < self.high:
            raise UserError(f"DiscretizedDecoder needs at least 2 levels and low < high, not {self.levels}, {self.low} and {self.high}.")

    @property
    def discrete(self) -> bool:
        return True

    @property
    def width(self) -> float:
        """The distance of two levels."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, x: Tensor) -> None:
        place = (x.double() - self.low) / self.width
        off = float((place - place.round()).abs().max())
        if off > 1e-2 or float(place.min()) < -0.5 or float(place.max()) > self.levels - 0.5:
            raise UserError(
                f"the data are not {self.levels} grey levels from {self.low:g} to {self.high:g} (they lie in [{float(x.min()):g}, "
                f"{float(x.max()):g}], up to {off:.2g} of a level off): give levels, low and high of the data, or take GaussianDecoder()."
            )

    def log_density(self, x: Tensor, mean: Tensor, t: Knot) -> Tensor:
        std, half = math.sqrt(_variance(self, t)), 0.5 * self.width
        low = torch.where(x < self.low + half, -math.inf, (x - half - mean) / std)
        high = torch.where(x > self.high - half, math.inf, (x + half - mean) / std)
        upper = low + high > 0  # the upper tail mirrored: the difference of two numbers near 1 is one of two small ones
        low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
        top = torch.special.log_ndtr(high)
        return _sum(top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top)))


def _check_variance(decoder: GaussianDecoder | DiscretizedDecoder) -> None:
    if decoder.variance is not None and not 0 < decoder.variance < math.inf:
        raise UserError(f"the variance of a decoder is a positive number or None, not {decoder.variance!r}.")


def _variance(decoder: GaussianDecoder | DiscretizedDecoder, t: Knot) -> float:
    return t.u2 if decoder.variance is None else decoder.variance


# --- the steps ----------------------------------------------------------------------------------------------------


class NoiseWeights(NamedTuple):
    """DDIM's theorem 1, J_sigma = L_gamma + C: `-bound = sum gamma |eps - eps_hat|^2 + d sum constant + prior`, float64 (N + 1,).

    One entry for each step and a last one for the decoder, whose noise is that of the last knot.
    """

    gamma: np.ndarray
    constant: np.ndarray


def noise_weights(
    knots: Sequence[Knot],
    *,
    variance: str = "small",
    sigma: float | Sigmas = 1.0,
    decoder: GaussianDecoder | None = None,
) -> NoiseWeights:
    """What each step weighs in the bound, as weights of the noise error and constants for each component; arguments as of `elbo`.

    A step: gamma = (alpha_s u_t - sqrt(sigma_s^2 - n^2))^2 / (2 V), constant = (n^2/V - 1 - ln n^2/V)/2; with DDPM's q and small variance
    gamma = (SNR_s/SNR_t - 1)/2, DDPM's eq. 12. The decoder: u^2/(2 V) and ln(2 pi V)/2.
    """
    chain, v = _Chain.of(knots, variance, sigma), _variance(decoder or GaussianDecoder(), knots[-1])
    if variance == "learned":
        raise UserError('a learned variance differs from state to state, so its weights are no table: take variance="small" or "large".')
    return NoiseWeights(
        np.append(chain.gamma * np.exp(-chain.log_p), 0.5 * knots[-1].u2 / v),
        np.append(chain.constant(chain.log_p), 0.5 * math.log(2 * math.pi * v)),
    )


@dataclass(frozen=True)
class _Chain:
    """All steps of a bound at once, float64 (N,): what stands in q(x_s | x_t, x0) and p(x_s | x_t).

    added: (n/sigma_s)^2; pull: k in mean(q) - mean(p) = k (x0 - x0_hat); log_q: ln n^2; log_small, log_large: of DDPM's two variances;
    gamma: V times the weight of |eps - eps_hat|^2; share: of each step in lam from t_0 to t_N, how often it is drawn.
    """

    knots: tuple[Knot, ...]
    variance: str
    added: np.ndarray
    pull: np.ndarray
    gamma: np.ndarray
    log_q: np.ndarray
    log_small: np.ndarray
    log_large: np.ndarray
    share: np.ndarray

    @staticmethod
    def of(knots: Sequence[Knot], variance: str, sigma: float | Sigmas) -> _Chain:
        choose("variance", variance, VARIANCES)
        knots = _checked(knots)
        h = np.array([s.lam - t.lam for t, s in pairwise(knots)])
        alpha, log_sigma = (np.array([getattr(s, name) for s in knots[1:]]) for name in ("alpha", "log_sigma"))
        part = -np.expm1(-2 * h)  # v / sigma_t^2
        added = _added(knots, sigma, part)
        kept = np.sqrt(1 - added)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            pull = -alpha * np.expm1(0.5 * np.log1p(-added) - h)
            offset = np.exp(log_sigma) * (np.expm1(h) + added / (1 + kept))  # alpha_s u_t - sqrt(sigma_s^2 - n^2)
        return _Chain(
            knots,
            variance,
            added,
            pull,
            0.5 * offset**2,
            np.log(added) + 2 * log_sigma,
            np.log(part) + 2 * log_sigma,
            np.log(part) + 2 * np.array([t.log_sigma for t in knots[:-1]]),
            _share(h),
        )

    def __len__(self) -> int:
        return len(self.pull)

    @property
    def log_p(self) -> np.ndarray:
        """ln V where it is fixed: "small" is q's own variance."""
        return self.log_large if self.variance == "large" else self.log_q

    def constant(self, log_p: np.ndarray) -> np.ndarray:
        """(n^2/V - 1 - ln n^2/V)/2, without cancellation near V = n^2."""
        return 0.5 * (np.expm1(self.log_q - log_p) - (self.log_q - log_p))

    @cached_property
    def times(self) -> np.ndarray:
        return np.array([t.time for t in self.knots])

    @cached_property
    def cuts(self) -> np.ndarray:
        """Where each step begins in [0, 1], cut by the shares; N + 1 entries."""
        return np.append(0.0, np.cumsum(self.share))

    def reached(self, r: Any) -> Any:
        """The step that r in [0, 1] falls into."""
        return np.clip(np.searchsorted(self.cuts, r, side="right") - 1, 0, len(self) - 1)

    def row(self, i: Any) -> _Row:
        """The numbers of step i: a number, or an int64 array with one step a sample."""
        t = self.knots[i] if isinstance(i, int) else self.knots[0].schedule.knot(self.times[i])
        return _Row(t, *(a[i] for a in (self.added, self.pull, self.gamma, self.log_q, self.log_p, self.log_small, self.log_large)))


class _Row(NamedTuple):
    """One step (or one a sample) of a `_Chain`."""

    t: Knot
    added: Number
    pull: Number
    gamma: Number
    log_q: Number
    log_p: Number
    log_small: Number
    log_large: Number


def _added(knots: Sequence[Knot], sigma: float | Sigmas, part: np.ndarray) -> np.ndarray:
    """(n/sigma_s)^2 of each step."""
    if isinstance(sigma, Sigmas):
        n = np.array([sigma.between(t, s) for t, s in pairwise(knots)])
        added = np.minimum((n / [s.sigma for s in knots[1:]]) ** 2, 1.0)
    elif isinstance(sigma, int | float) and 0 <= sigma < math.inf:
        added = np.minimum(sigma**2 * part, 1.0)
    else:
        raise UserError(f"sigma is a number eta of at least 0 (1: DDPM) or Sigmas(times, values), not {sigma!r}.")
    if not (added > 0).all():
        raise UserError("a step of q that adds no noise is infinitely far from every p: the bound needs sigma above 0 in every step.")
    return added


def _share(h: np.ndarray) -> np.ndarray:
    """h/sum(h). A step from alpha = 0 is infinitely long: it gets as much as the longest other one."""
    finite = np.isfinite(h)
    h = np.where(finite, h, h[finite].max(initial=0.0) or 1.0)
    return h / h.sum()


def _checked(knots: Sequence[Knot]) -> tuple[Knot, ...]:
    knots = tuple(knots)
    if len(knots) < 2 or not all(isinstance(k, Knot) and isinstance(k.time, float) for k in knots):
        raise UserError("a bound needs at least two knots, each one time for all samples: Uniform().knots(model.schedule, 1000).")
    if knots[-1].sigma == 0:
        raise UserError(
            "the last knot has sigma = 0: the decoder makes the last step, from noise. End the knots at a positive sigma, such as t_min."
        )
    for t, s in pairwise(knots):
        if not s.lam > t.lam:
            raise UserError(f"knots go from noise to data, but {s.time:g} follows {t.time:g}: reverse them, and drop repetitions.")
    return knots


# --- the bounds ---------------------------------------------------------------------------------------------------


def elbo(
    model: Model,
    x: Tensor,
    knots: Sequence[Knot] | None = None,
    *,
    steps: int = 1000,
    variance: str = "small",
    sigma: float | Sigmas = 1.0,
    decoder: Decoder | None = None,
    form: str = "kl",
    times: str | int = "all",
    draws: int | str = 2,
    decoder_draws: int = 16,
    seed: int = 0,
    index: Tensor | range | None = None,
    batch: int | None = None,
) -> Bound:
    """The discrete variational bound on ln p(x0) for data x (B, ...): prior, consistency and reconstruction, and the table of the steps.

    knots: noisiest first, ending at sigma > 0; None: `steps` even steps in time down to t_min. variance of p: "small" (q's own), "large",
    or "learned" (`Prediction.variance`). sigma: eta or `Sigmas`, DDIM's q_sigma; 1 is DDPM. decoder: `GaussianDecoder()` by default.
    form: "kl" in closed form; "noise", the same as weighted noise errors; "sampled", the log-ratio ln q(x_s|x_t,x0)/p(x_s|x_t) at one drawn
    x_s; "pairs", ln q(x_t|x_s)/p(x_s|x_t) as in DDPM's eq. 3, less what its mean is known to have more. All four have the same mean.
    times: "all" steps, or n: one of each n-th part of the way in lam, drawn for each sample by itself and weighted; unbiased. draws:
    independent ones of each; at least two for a standard error, which is unbiased too. "cubature" instead: 2 d points that integrate any
    quadratic, so that the bound of an affine model (a Gaussian oracle) has no Monte Carlo error. decoder_draws: of the reconstruction.
    seed, index: the noise of a sample is a function of (seed, index, step, draw) alone. batch: samples at a time.
    Raises `UserError`, and `ModelError` for answers that are not finite.
    """
    _check(model, x)
    knots = Uniform().knots(model.schedule, positive("steps", steps)) if knots is None else knots
    choose("form", form, FORMS)
    chain = _Chain.of(knots, variance, sigma)
    if form == "noise" and not math.isfinite(chain.knots[0].lam):
        raise UserError('at alpha = 0 the noise is x itself and its error weighs nothing: start short of it, or take form="kl".')
    n = len(chain) if times == "all" else positive("times", times)
    if n > len(chain):
        raise UserError(f"times = {n} of {len(chain)} steps: ask for at most as many as there are, or for more draws of each.")
    if draws == "cubature" and n < len(chain):
        raise UserError('draws="cubature" has no Monte Carlo error, which steps drawn by chance would bring back: take times="all".')
    return _run(model, x, _Discrete(chain, form, n), decoder or GaussianDecoder(), draws, decoder_draws, seed, index, batch)


def continuous_bound(
    model: Model,
    x: Tensor,
    *,
    start: float | None = None,
    end: float | None = None,
    clock: str = "lam",
    decoder: Decoder | None = None,
    times: int = 50,
    draws: int | str = 2,
    decoder_draws: int = 16,
    seed: int = 0,
    index: Tensor | range | None = None,
    batch: int | None = None,
) -> Bound:
    """The bound in continuous time, the limit of `elbo` for ever more steps: consistency = INT |eps - eps_hat|^2 dlam from start to end.

    start, end: times, t_max and t_min of the schedule by default. The instants are stratified: `draws` of each sample in each of `times`
    equal parts of `clock` ("lam" or "time"), weighted by |dlam/dclock|. "cubature": Gauss-Legendre instants, for affine models.
    Other arguments, and the errors raised, as of `elbo`.
    """
    _check(model, x)
    choose("clock", clock, ("lam", "time"))
    first = model.schedule.knot(model.schedule.t_max if start is None else start)
    last = model.schedule.knot(model.schedule.t_min if end is None else end)
    _checked((first, last))
    if not math.isfinite(first.lam):
        raise UserError(f"lam is infinite at time {first.time:g} (alpha = 0): start short of it, e.g. start={0.999 * first.time:g}.")
    place = _Continuous(first, last, clock, positive("times", times), draws == "cubature")
    return _run(model, x, place, decoder or GaussianDecoder(), draws, decoder_draws, seed, index, batch)


class _Places(Protocol):
    """Where a bound looks: `parts` equal parts, of each of which the draws are weighted terms."""

    @property
    def ends(self) -> tuple[Knot, Knot]: ...

    @property
    def parts(self) -> int: ...

    @property
    def normals(self) -> int:
        """How many standard normals like x a term needs: 1, or 2 where x_s is drawn, too."""
        ...

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: _Drawn) -> Tensor:
        """The k-th estimate of the nats of part j, (B,)."""
        ...

    def edges(self) -> list[Knot]: ...


@dataclass(frozen=True)
class _Discrete:
    """The steps of a chain, in one of the forms."""

    chain: _Chain
    form: str
    parts: int

    @property
    def ends(self) -> tuple[Knot, Knot]:
        return self.chain.knots[0], self.chain.knots[-1]

    @property
    def normals(self) -> int:
        return 2 if self.form in ("sampled", "pairs") else 1

    def edges(self) -> list[Knot]:
        if self.parts == len(self.chain):
            return list(self.chain.knots)
        inner = self.chain.reached(np.arange(1, self.parts) / self.parts)
        return [self.chain.knots[i] for i in (0, *inner.tolist(), -1)]

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: _Drawn) -> Tensor:
        i, weight = j, 1.0
        if self.parts < len(self.chain):
            i = self.chain.reached((j + noise.uniform(j, k)) / self.parts)
            weight = 1 / (self.parts * self.chain.share[i])
        row, z = self.chain.row(i), noise.normal(j, k, STATE)
        p = _answer(model, model.schedule.forward(x, row.t, z), row.t)
        nats = _sum(self._nats(row, p, x.double(), z.double(), noise, j, k))
        return spread(weight, nats) * nats

    def _nats(self, row: _Row, p: Prediction, x: Tensor, z: Tensor, noise: _Drawn, j: int, k: int) -> Tensor:
        log_p, log_q = self._log_p(row, p, x), torch.as_tensor(spread(row.log_q, x), dtype=torch.float64)
        ratio, precision = log_q - log_p, torch.exp(-log_p)
        constant = 0.5 * (torch.expm1(ratio) - ratio)
        if self.form == "noise":
            return constant + spread(row.gamma, x) * precision * (z - p.eps.tensor().double()).square()
        off = spread(row.pull, x) * (x - p.x0.tensor().double())
        if self.form == "kl":
            return constant + 0.5 * precision * off.square()
        fresh = noise.normal(j, k, STEP).double()
        nats = 0.5 * (precision * (off + torch.exp(0.5 * log_q) * fresh).square() - fresh.square() - ratio)
        if self.form == "sampled":
            return nats
        cleaner = spread(np.sqrt(1 - row.added), x) * z + spread(np.sqrt(row.added), x) * fresh  # the noise in x_s
        return nats + 0.5 * (cleaner.square() - z.square())

    def _log_p(self, row: _Row, p: Prediction, x: Tensor) -> Tensor:
        if self.chain.variance != "learned":
            return torch.as_tensor(spread(row.log_p, x), dtype=torch.float64)
        if p.variance is None:
            raise UserError('variance="learned" needs a model that answers with Prediction.variance (in [-1, 1]); use "small" or "large".')
        w = (p.variance.double() + 1) / 2
        return w * spread(row.log_large, x) + (1 - w) * spread(row.log_small, x)


@dataclass(frozen=True)
class _Continuous:
    """Instants between two knots, weighted by |dlam/dclock|."""

    first: Knot
    last: Knot
    clock: str
    parts: int
    quadrature: bool

    normals = 1

    @property
    def ends(self) -> tuple[Knot, Knot]:
        return self.first, self.last

    @cached_property
    def _range(self) -> tuple[float, float]:
        return self.first.clock(self.clock), self.last.clock(self.clock)

    @cached_property
    def _gauss(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, weights = np.polynomial.legendre.leggauss(self.parts)
        return 0.5 * (1 + nodes), 0.5 * weights

    def edges(self) -> list[Knot]:
        return [self.first.toward(self.last, j / self.parts, self.clock) for j in range(self.parts + 1)]

    def term(self, model: Model, x: Tensor, j: int, k: int, noise: _Drawn) -> Tensor:
        if self.quadrature:
            r, weight = float(self._gauss[0][j]), float(self._gauss[1][j])
        else:
            r, weight = (j + noise.uniform(j, k)) / self.parts, 1 / self.parts
        low, high = self._range
        t = model.schedule.knot_at(self.clock, (1 - r) * low + r * high)
        slope = 1.0 if self.clock == "lam" else 0.5 * t.g2 / t.sigma**2
        z = noise.normal(j, k, STATE)
        p = _answer(model, model.schedule.forward(x, t, z), t)
        off = _sum((z.double() - p.eps.tensor().double()).square())
        return spread(weight * abs(high - low) * slope, off) * off


def _run(model, x, places: _Places, decoder: Decoder, draws, decoder_draws, seed, index, batch) -> Bound:
    decoder.check(x)
    if draws == "cubature" and decoder.discrete:
        raise UserError('draws="cubature" integrates quadratics, which the log of a discretised decoder is not: take GaussianDecoder().')
    cubature = draws == "cubature"
    draws = None if cubature else positive("draws", draws)
    last = None if cubature else positive("decoder_draws", decoder_draws)
    rows = torch.arange(len(x)) if index is None else torch.as_tensor(list(index) if isinstance(index, range) else index)
    if rows.shape != x.shape[:1]:
        raise UserError(f"{len(x)} samples need {len(x)} indices, not {tuple(rows.shape)}.")
    counted, found = Counted(model), []
    with torch.no_grad():
        for part in torch.arange(len(x)).split(len(x) if batch is None else positive("batch", batch)):
            here, each = x[part.to(x.device)], counted.rows(part)
            noise = _Points(here, places.normals) if cubature else _Random(seed, here, rows[part])
            final = _Points(here, 1) if cubature else noise
            count, finals = draws or noise.count, last or final.count
            nats = torch.stack([torch.stack([places.term(each, here, j, k, noise) for k in range(count)]) for j in range(places.parts)])
            seen = torch.stack([_decoded(each, here, places.ends[1], decoder, final.normal(0, k, DECODER)) for k in range(finals)])
            found.append((nats, seen, _prior(here, places.ends[0])))
    nats, seen, prior = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    of_steps, of_decoder = (_variance_of_mean(y, cubature) for y in (nats, seen))
    consistency, reconstruction = nats.mean(1).sum(0), seen.mean(0)
    return Bound(
        reconstruction - prior - consistency,
        (of_steps.sum(0) + of_decoder).sqrt(),
        Parts(prior, consistency, reconstruction),
        _table(places.edges(), nats.mean(1), of_steps),
        counted.calls,
        x[0].numel(),
        decoder.discrete,
    )


def _variance_of_mean(y: Tensor, cubature: bool) -> Tensor:
    """Of the mean over the draws, the last axis but one; NaN where draws tell nothing of it."""
    return torch.full_like(y[..., 0, :], math.nan) if cubature or y.shape[-2] == 1 else y.var(-2) / y.shape[-2]


def _table(edges: list[Knot], nats: Tensor, variance: Tensor) -> tuple[Term, ...]:
    errors = (variance.sum(1).sqrt() / variance.shape[1]).tolist()
    means = nats.mean(1).tolist()
    return tuple(Term(t.time, s.time, t.snr, s.snr, m, e) for t, s, m, e in zip(edges, edges[1:], means, errors, strict=False))


def _prior(x: Tensor, t: Knot) -> Tensor:
    """KL(N(alpha x0, sigma^2) || N(0, prior_std^2)), (B,)."""
    log_ratio = 2 * (t.log_sigma - math.log(t.schedule.prior_std))
    constant = 0.5 * (math.expm1(log_ratio) - log_ratio)
    return _sum(0.5 * (t.alpha / t.schedule.prior_std) ** 2 * x.double().square() + constant)


def _decoded(model: Model, x: Tensor, t: Knot, decoder: Decoder, z: Tensor) -> Tensor:
    p = _answer(model, model.schedule.forward(x, t, z), t)
    return decoder.log_density(x.double(), p.x0.tensor().double(), t)


def _answer(model: Model, x: Tensor, t: Knot) -> Prediction:
    """The model's answer, with its own noise (not another one for adding noise again), and finite."""
    p = model(x, t)
    if not bool(torch.isfinite(p.value).all()):
        when = f"at time {t.time:g}" if isinstance(t.time, float) else f"at times in [{t.time.min():g}, {t.time.max():g}]"
        raise ModelError(f"the model returned NaN or infinity {when}: check the network there, or start or end short of it.")
    return p if p.eps_used is None else replace(p, eps_used=None)


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _check(model: Model, x: Tensor) -> None:
    if not isinstance(model, Model):
        raise UserError(f"a bound needs a model, which {type(model).__name__} is not: wrap a network as ScoreNet(net, schedule, ...).")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        raise UserError(f"the data must be a floating point tensor (batch, ...), not {tuple(getattr(x, 'shape', ())) or type(x).__name__}.")
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise UserError(f"the data have shape {tuple(x.shape)}, but the model works on (batch, {', '.join(map(str, model.shape))}).")
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"the data are NaN or infinite in samples {bad[:5]}{' ...' if len(bad) > 5 else ''}: take them out.")


# --- noise --------------------------------------------------------------------------------------------------------


STATE, STEP, DECODER, PLACE = range(4)  # what a draw is for: the noise in x_t, of the step, before the decoder; where the step is


class _Drawn(Protocol):
    """The noise of a bound, of draw k in part j. count: how many draws there are, 0 for any number."""

    @property
    def count(self) -> int: ...

    def normal(self, j: int, k: int, which: int) -> Tensor: ...

    def uniform(self, j: int, k: int) -> np.ndarray: ...


class _Random:
    """Counted noise: a pure function of (seed, sample index, part, draw)."""

    count = 0

    def __init__(self, seed: int, x: Tensor, index: Tensor):
        self._noise = White(seed).on(x, index)
        self._single = White(seed).on(torch.empty(len(x), 1, dtype=torch.float64), index)

    def normal(self, j: int, k: int, which: int) -> Tensor:
        return self._noise.fresh(_key(j, k, which))

    def uniform(self, j: int, k: int) -> np.ndarray:
        return torch.special.ndtr(self._single.fresh(_key(j, k, PLACE))[:, 0]).numpy()


class _Points:
    """The 2 D points +- sqrt(D) e_i, D = normals times d: their mean of any quadratic is that under N(0, I)."""

    def __init__(self, x: Tensor, normals: int):
        self._x, self._d = x, x[0].numel()
        self._radius = math.sqrt(normals * self._d)
        self.count = 2 * normals * self._d

    def normal(self, j: int, k: int, which: int) -> Tensor:
        part, coordinate = divmod(k // 2, self._d)
        z = torch.zeros_like(self._x)
        if part == (which == STEP):
            z.reshape(len(z), -1)[:, coordinate] = self._radius * (-1) ** k
        return z

    def uniform(self, j: int, k: int) -> np.ndarray:
        raise NotImplementedError


def _key(j: int, k: int, which: int) -> int:
    return (k << 34) | (j << 2) | which
