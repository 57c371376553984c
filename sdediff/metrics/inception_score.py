"""The Inception Score exp(mean_i KL(p(y|x_i) || p(y))), p(y) the mean of p(y|x_i) over the samples. No real data enters.

Its logarithm is H(mean_i p_i) - mean_i H(p_i). A change of p(y) changes the mean of KL to second order only, so the influence of a sample
is IS (KL_i - mean KL), which holds the dependence through p(y). The score falls with fewer samples (by about (c - 1)/2n of its
logarithm for c equal classes, at most): compare scores of the same n only. Sources: Salimans et al. 2016; Barratt & Sharma 2018.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdediff.metrics.blocks import Rows, slices
from sdediff.metrics.errors import MetricError
from sdediff.metrics.estimate import Estimate


def inception_score(logits: Tensor, splits: int = 1) -> Estimate:
    """The mean score of `splits` consecutive parts of the logits (n, classes), n >= 2 splits; of all at once by default.

    Published scores take splits=10, which lowers the score a little: see `inception_scores`. Raises MetricError.
    """
    rows = _rows(logits, splits)
    n, (scores, influence) = len(rows), _scores(rows, splits)
    halves = _scores(rows, 2 * splits)[1] if n >= 4 * splits else None
    return Estimate(float(scores.mean()), influence, halves)


def inception_scores(logits: Tensor, splits: int = 10) -> np.ndarray:
    """Each part's score (splits,), whose mean and standard deviation tables quote. Shuffle samples that are ordered by class before."""
    return _scores(_rows(logits, splits), splits)[0]


def _rows(logits: Tensor, splits: int) -> Rows:
    if splits < 1:
        raise MetricError(f"splits = {splits}; expected 1 or more.")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise MetricError(f"Logits of shape {tuple(logits.shape)}; expected (n, classes) with 2 or more classes.")
    return Rows.of(logits, "Logits", 2 * splits)


def _scores(rows: Rows, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The score of each part (parts,), and the influence of every sample on their mean (n,)."""
    n = len(rows)
    scores, influence = np.empty(parts), np.empty(n)
    for s in range(parts):
        first, last = s * n // parts, (s + 1) * n // parts
        marginal = torch.zeros(rows.x.shape[1], dtype=torch.float64)
        for part in slices(last, first):
            marginal += rows.x[part].double().softmax(1).sum(0)
        log_marginal = (marginal / (last - first)).clamp(min=torch.finfo(torch.float64).tiny).log()  # p log p = 0 where p = 0
        kl = np.empty(last - first)
        for part in slices(last, first):
            log_p = rows.x[part].double().log_softmax(1)
            kl[part.start - first : part.stop - first] = (log_p.exp() * (log_p - log_marginal)).sum(1)
        scores[s] = np.exp(kl.mean())
        influence[first:last] = scores[s] * (kl - kl.mean()) * (n / (parts * (last - first)))
    return scores, influence
