"""The score network as a Model: what a network is fed, and how its answer is read.

A network learns from `x_t = alpha x0 + sigma eps` to predict eps, x0, v or the score; the score itself is E[-eps/sigma | x_t] (Vincent
2011), so one squared error trains them all (`objective`), and one trained network serves every solver.
This is the one place where a network sees a tensor time: as the schedule's time, DDPM's index, lam = log(alpha/sigma), or EDM's
c_noise = log(u)/4; and the one place of preconditioning. EDM's denoiser of y = x/alpha at sigma = u (Karras et al. 2022, eq. 7, table 1),
`D = c_skip y + c_out F(c_in y; c_noise)` with `c_skip = d^2/(u^2 + d^2), c_out = u d/sqrt(u^2 + d^2), c_in = 1/sqrt(u^2 + d^2)`, says that
`F(x/sqrt(alpha^2 d^2 + sigma^2); c_noise) = sin x0/d - cos eps`, minus the v of data of standard deviation d, tan(angle) = sigma/(alpha d).
Read so, nothing is divided by alpha or by sigma, and no digits are lost at either end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .batch import check_count, labels_of
from .combine import combine, linear
from .names import UserError, choose
from .prediction import KINDS, ModelError, Prediction, check_labels, marginal_std
from .schedule import Knot, Number, Schedule
from .schedules import DiscreteVP

CONDITIONS = ("time", "index", "lam", "c_noise")
PRECONDITIONINGS = (None, "input", "edm")
DATA_STD = 0.5  # of a preconditioning, unless told
FARTHEST = 20.0  # what a network is told of |lam|


class ScoreNet:
    """A plain network `net(x, condition)` (or `net(x, condition, labels)`) and a schedule, as a Model.

    predicts: what the network answers: "eps" (the default), "x0", "v", "score", "flow", or "mean" (DDPM's posterior mean of the index
    before; DiscreteVP only). condition: what it is fed, a tensor (B,) of x's dtype: "time" (the default), "index" (time N - 1), "lam",
    or "c_noise" = -lam/4, both of lam clamped to [-20, 20], since it is infinite at alpha = 0 and at sigma = 0. labels: class labels (B,)
    that travel with the samples, or None. shape: of one sample, if known (checked by `solve`). variance: the network answers twice the
    channels, the second half being `Prediction.variance`.
    preconditioning: None, the network sees x; "input", it sees x at unit variance, x/sqrt(alpha^2 d^2 + sigma^2); "edm", that, and it
    answers EDM's F (nothing is left to say with `predicts`; the condition is c_noise unless told). data_std: d, used by these two.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str | None = None,
        condition: str | None = None,
        labels: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
        *,
        variance: bool = False,
        preconditioning: str | None = None,
        data_std: float = DATA_STD,
    ):
        choose("preconditioning", preconditioning, PRECONDITIONINGS)
        edm = preconditioning == "edm"
        predicts = predicts or ("v" if edm else "eps")
        condition = condition or ("c_noise" if edm else "time")
        choose("predicts", predicts, (*KINDS, "mean"))
        choose("condition", condition, CONDITIONS)
        if (predicts == "mean" or condition == "index") and not isinstance(schedule, DiscreteVP):
            raise UserError(f"{predicts if predicts == 'mean' else condition!r} counts DDPM's indices: it needs a DiscreteVP schedule.")
        if edm and predicts != "v":
            raise UserError(f"under preconditioning='edm' a network answers F, minus v: leave predicts={predicts!r} out, or take 'input'.")
        if not (isinstance(data_std, int | float) and 0 < data_std < math.inf):
            raise UserError(f"data_std is the standard deviation of the data, a positive number, not {data_std!r}.")
        if preconditioning is None and data_std != DATA_STD:
            raise UserError(f"data_std={data_std!r} is of a preconditioning, and there is none: add preconditioning='input' or 'edm'.")
        self.net, self.schedule, self.predicts, self.condition = net, schedule, predicts, condition
        self.labels, self.shape, self.variance = labels, shape, variance
        self.preconditioning, self.data_std = preconditioning, float(data_std)
        if labels is not None and self._ours:
            self.labels = self._checked(labels)

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        """The network's answer at states x (B, ...) and instant t. Raises `ModelError` for an answer of another shape or dtype."""
        answer, variance = self._answer(x, t), None
        if self.variance:
            answer, variance = self._halves(x, answer)
        if self.predicts == "mean":
            return Prediction(x, t, self._from_mean(x, t, answer), "x0", variance)
        if self.preconditioning == "edm":
            return Prediction(x, t, -answer, "v", variance, data_std=self.data_std)
        return Prediction(x, t, answer, self.predicts, variance)

    def _answer(self, x: Tensor, t: Knot) -> Tensor:
        if self.labels is not None:
            check_count(self.labels, len(x))
        condition = self._condition(x, t)
        seen = x if self.preconditioning is None else combine(linear(x, 1 / marginal_std(t, self.data_std)))
        try:
            return self.net(seen, condition) if self.labels is None else self.net(seen, condition, self.labels)
        except RuntimeError:
            self._check_dtype(x)
            raise

    def _halves(self, x: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction and what says where the variance is."""
        wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        if answer.shape != wanted:
            raise ModelError(
                f"with learned variances a network answers twice the channels, {tuple(wanted)} for a state of shape {tuple(x.shape)}, not "
                f"{tuple(answer.shape)}: build it with variance=True, or leave variance=True out of ScoreNet."
            )
        value, variance = answer.chunk(2, dim=1)
        return value, variance

    def _check_dtype(self, x: Tensor) -> None:
        """`ModelError` if the network's weights are of another float type than the state."""
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else ()
        own = next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)
        if own != x.dtype:
            raise ModelError(f"the network's weights are {own}, the state is {x.dtype}: convert one of them, e.g. x.to({own}).") from None

    def rows(self, index: Tensor) -> ScoreNet:
        """The model for a subset of the samples: their labels only."""
        if self.labels is None:
            return self
        model = copy.copy(self)
        model.labels = labels_of(self.labels, index)
        return model

    @property
    def classes(self) -> int | None:
        """How many classes the network knows; None if it has none, or is not one of ours and does not say."""
        config = getattr(self.net, "config", None)
        return config.get("classes") if isinstance(config, Mapping) else None

    def with_labels(self, labels: Tensor | None) -> ScoreNet:
        """The model of samples of these classes, whole numbers (B,) (`classes`: no label), or with None of all the data."""
        model = copy.copy(self)
        model.labels = None if labels is None else self._checked(labels)
        return model

    @property
    def _ours(self) -> bool:
        """Whether the network says what it was built with."""
        return isinstance(getattr(self.net, "config", None), Mapping)

    def _checked(self, labels: Tensor) -> Tensor:
        if self.classes is None and self._ours:
            raise UserError("this network has no classes: build and train it with classes=..., or guide it by a classifier.")
        return check_labels(labels, self.classes)

    def _condition(self, x: Tensor, t: Knot) -> Tensor:
        value: Number
        if self.condition == "time":
            value = t.time
        elif self.condition == "lam":
            value = _near(t.lam)
        elif self.condition == "c_noise":
            value = -0.25 * _near(t.lam)
        else:
            assert isinstance(self.schedule, DiscreteVP)
            value = t.time * self.schedule.n - 1
        if isinstance(value, float):
            one = _one_for_all(value, len(x), x.dtype, x.device)
            return one if len(x) > 1 else one.clone()
        return torch.as_tensor(value, dtype=x.dtype, device=x.device)

    def _from_mean(self, x: Tensor, t: Knot, mean: Tensor) -> Tensor:
        """x0 = (mean - a x)/b, where a x + b x0 is the posterior mean at the index before t."""
        assert isinstance(self.schedule, DiscreteVP)
        s = self.schedule.knot(np.maximum(t.time - 1 / self.schedule.n, 0.0) if isinstance(t.time, np.ndarray) else self._before(t))
        part = -np.expm1(2 * (t.lam - s.lam))
        a, b = np.exp(t.log_alpha - s.log_alpha + 2 * (s.log_sigma - t.log_sigma)), s.alpha * part
        number = float if isinstance(t.time, float) else np.asarray
        return combine(linear(mean, number(1 / b)) - linear(x, number(a / b)))

    def _before(self, t: Knot) -> float:
        assert isinstance(self.schedule, DiscreteVP)
        return max(round(t.time * self.schedule.n - 1, 9) / self.schedule.n, 0.0)


def _near(lam: Number) -> Number:
    """lam where waves of it can be told: cos(inf) is NaN."""
    return min(max(lam, -FARTHEST), FARTHEST) if isinstance(lam, float) else np.clip(lam, -FARTHEST, FARTHEST)


@lru_cache(maxsize=4096)
def _one_for_all(value: float, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`value` as a tensor (n,), made once for each knot. For n > 1 it is expanded, and torch refuses to write to it.

    Our networks see from its stride of 0 that it is one number, and embed it once.
    """
    with torch.inference_mode(False):
        return torch.full((1,), value, dtype=dtype, device=device).expand(n)
