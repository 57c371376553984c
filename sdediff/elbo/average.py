"""The mean of a bound over its places and draws, batch by batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..decoders import Decoder
from ..likelihood import prior_kl
from ..names import UserError, positive
from ..prediction import Counted, Model
from ..schedule import Knot
from .bound import Bound, Parts, Term
from .draws import DECODER, Points, Random
from .places import Places, answer


def averaged(
    model: Model,
    x: Tensor,
    places: Places,
    decoder: Decoder,
    draws: int | str,
    decoder_draws: int,
    seed: int,
    index: Tensor | range | None,
    batch: int | None,
) -> Bound:
    """The bound of data x, looked at in these places; the other arguments are those of `elbo`."""
    decoder.check(x)
    if draws == "cubature" and decoder.discrete:
        raise UserError('draws="cubature" integrates quadratics, which the log of a discretised decoder is not: take GaussianDecoder().')
    cubature = draws == "cubature"
    first = None if cubature else positive("draws", draws)
    last = None if cubature else positive("decoder_draws", decoder_draws)
    rows = torch.arange(len(x)) if index is None else torch.as_tensor(list(index) if isinstance(index, range) else index)
    if rows.shape != x.shape[:1]:
        raise UserError(f"{len(x)} samples need {len(x)} indices, not {tuple(rows.shape)}.")
    counted, found = Counted(model), []
    with torch.no_grad():
        for part in torch.arange(len(x)).split(len(x) if batch is None else positive("batch", batch)):
            here, each = x[part.to(x.device)], counted.rows(part)
            noise = Points(here, places.normals) if cubature else Random(seed, here, rows[part])
            final = Points(here, 1) if cubature else noise
            count, finals = first or noise.count, last or final.count
            nats = torch.stack([torch.stack([places.term(each, here, j, k, noise) for k in range(count)]) for j in range(places.parts)])
            seen = torch.stack([_decoded(each, here, places.ends[1], decoder, final.normal(0, k, DECODER)) for k in range(finals)])
            found.append((nats, seen, prior_kl(here, places.ends[0])))
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


def _decoded(model: Model, x: Tensor, t: Knot, decoder: Decoder, z: Tensor) -> Tensor:
    p = answer(model, model.schedule.forward(x, t, z), t)
    return decoder.log_density(x.double(), p.x0.tensor().double(), t)
