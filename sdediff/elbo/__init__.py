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

from torch import Tensor

from ..checks import check_data
from ..decoders import Decoder, DiscretizedDecoder, GaussianDecoder
from ..grid import Uniform
from ..guidance import check_flow
from ..names import UserError, choose, positive
from ..prediction import Model
from ..schedule import Knot
from ..solvers import Sigmas
from ..variational import VARIANCES
from .average import averaged
from .bound import Bound, Parts, Term
from .places import FORMS, Continuous, Discrete
from .weights import Chain, NoiseWeights, checked, noise_weights

__all__ = [
    "FORMS",
    "VARIANCES",
    "Bound",
    "Decoder",
    "DiscretizedDecoder",
    "GaussianDecoder",
    "NoiseWeights",
    "Parts",
    "Term",
    "continuous_bound",
    "elbo",
    "noise_weights",
]


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
    check_data(model, x)
    check_flow(model, "elbo")
    knots = Uniform().knots(model.schedule, positive("steps", steps)) if knots is None else knots
    choose("form", form, FORMS)
    chain = Chain.of(knots, variance, sigma)
    if form == "noise" and not math.isfinite(chain.knots[0].lam):
        raise UserError('at alpha = 0 the noise is x itself and its error weighs nothing: start short of it, or take form="kl".')
    n = len(chain) if times == "all" else positive("times", times)
    if n > len(chain):
        raise UserError(f"times = {n} of {len(chain)} steps: ask for at most as many as there are, or for more draws of each.")
    if draws == "cubature" and n < len(chain):
        raise UserError('draws="cubature" has no Monte Carlo error, which steps drawn by chance would bring back: take times="all".')
    return averaged(model, x, Discrete(chain, form, n), decoder or GaussianDecoder(), draws, decoder_draws, seed, index, batch)


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
    check_data(model, x)
    check_flow(model, "continuous_bound")
    choose("clock", clock, ("lam", "time"))
    first = model.schedule.knot(model.schedule.t_max if start is None else start)
    last = model.schedule.knot(model.schedule.t_min if end is None else end)
    checked((first, last))
    if not math.isfinite(first.lam):
        raise UserError(f"lam is infinite at time {first.time:g} (alpha = 0): start short of it, e.g. start={0.999 * first.time:g}.")
    place = Continuous(first, last, clock, positive("times", times), draws == "cubature")
    return averaged(model, x, place, decoder or GaussianDecoder(), draws, decoder_draws, seed, index, batch)
