"""One answer of the network, and all its readings.

A network says one thing about `x = alpha x0 + sigma eps`: eps, x0, v, the score or the flow velocity. All are `p x0 + q eps` for known
p and q, so every other reading is a linear combination of the answer and x:
`x0 = (sigma value - q x)/(p sigma - q alpha)`, `eps = (p x - alpha value)/(p sigma - q alpha)`.
A `Prediction` keeps the answer as it came; `.x0`, `.eps`, `.v`, `.score`, `.flow` are `Linear` sums that `combine` merges into one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .batch import placed, rows
from .combine import Linear
from .names import UserError, choose
from .schedule import Knot, Number, Schedule

KINDS = ("eps", "x0", "v", "score", "flow")


class ModelError(UserError):
    """The model answered with something that cannot be used: another shape, another dtype, or NaN."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer `value` of kind `kind` ("eps", "x0", "v", "score", "flow") at state `x` and instant `at`.

    v = cos(angle) eps - sin(angle) x0 (alpha eps - sigma x0 when variance preserving); flow = eps - x0. variance: where a network
    that learns the reverse variance puts it between the small (-1) and the large (1) one; eps_used: the eps with which to add noise
    again, where it differs (CFG++), in every reading but x0; cost: network calls this answer took, an array (B,) where the samples took
    different numbers; ran: the calls that ran for the batch, where that may be more than any one sample needed.
    data_std: d of a value "v" of data of another than unit variance, cos eps - sin x0/d at the angle atan(sigma/(alpha d)): minus EDM's
    F. The reading `.v` is that of unit variance.
    Raises `ModelError` if value's shape or dtype is not x's.
    """

    x: Tensor
    at: Knot
    value: Tensor
    kind: str
    variance: Tensor | None = None
    eps_used: Tensor | None = None
    cost: int | np.ndarray = 1
    data_std: float = 1.0
    ran: int | None = None

    def __post_init__(self) -> None:
        if self.value.shape != self.x.shape or self.value.dtype != self.x.dtype:
            self._refuse()

    def _refuse(self) -> None:
        choose("prediction kind", self.kind, KINDS)
        when = f"at time {self.at.time:g}" if isinstance(self.at.time, float) else "in a per-sample solve"
        if self.value.shape != self.x.shape:
            what = f"a tensor of shape {tuple(self.value.shape)} for a state of shape {tuple(self.x.shape)}"
            cure = "return one answer of the state's shape (learned variances, twice the channels: split them by ScoreNet(variance=True))"
        else:
            what = f"dtype {self.value.dtype} for a state of dtype {self.x.dtype}"
            cure = "convert the network or the state, or return `answer.to(x.dtype)`"
        raise ModelError(f"{when} the model returned {what}; {cure}.")

    @property
    def calls(self) -> int:
        """Network calls that ran for the batch."""
        if self.ran is not None:
            return self.ran
        return self.cost if isinstance(self.cost, int) else int(self.cost.max(initial=0))

    @property
    def x0(self) -> Linear:
        """The data estimate E[x0 | x]."""
        return self._reading("x0", 1.0, 0.0)

    @property
    def eps(self) -> Linear:
        """The noise estimate E[eps | x]."""
        return Linear(((1.0, self.eps_used),)) if self.eps_used is not None else self._reading("eps", 0.0, 1.0)

    @property
    def v(self) -> Linear:
        """cos(angle) eps - sin(angle) x0, the velocity in Angle coordinates for data of unit variance."""
        c, s = cos_sin(self.at)
        return self._reading("v" if self.data_std == 1.0 else "", -s, c) if self.eps_used is None else self.mixed(-s, c)

    @property
    def score(self) -> Linear:
        """The score of the marginal density, -eps/sigma."""
        if self.kind == "score" and self.eps_used is None:
            return Linear(((1.0, self.value),))
        if np.any(self.at.sigma == 0):
            raise self._undefined("score")
        return self.eps * (-1.0 / self.at.sigma)

    @property
    def flow(self) -> Linear:
        """eps - x0, the velocity of flow matching."""
        return self._reading("flow", -1.0, 1.0) if self.eps_used is None else self.mixed(-1.0, 1.0)

    def mixed(self, a: Number, b: Number) -> Linear:
        """`a x0 + b eps` in one go, defined wherever the answer defines it (also where x0 or eps alone is not)."""
        if self.eps_used is not None:
            return a * self.x0 + b * self.eps
        return self._reading("", a, b)

    def _reading(self, wanted: str, a: Number, b: Number) -> Linear:
        """`a x0 + b eps` from value = p x0 + q eps and x = alpha x0 + sigma eps."""
        if self.kind == wanted:
            return Linear(((1.0, self.value),))
        t = self.at
        p, q = parts(self.kind, t, self.data_std)
        alpha, sigma = t.alpha, t.sigma
        det = p * sigma - q * alpha
        if det == 0 if isinstance(det, float) else np.any(det == 0):
            raise self._undefined(wanted or "this combination")
        of_value, of_x = (a * sigma - b * alpha) / det, (b * p - a * q) / det
        if self.kind == "score":  # eps = -sigma score
            of_value = -sigma * of_value
        return Linear(((of_x, self.x), (of_value, self.value)))

    def _undefined(self, wanted: str) -> UserError:
        t = self.at
        bad = np.argmin(np.minimum(t.alpha, t.sigma))
        time, alpha, sigma = (np.ravel(v)[bad] for v in (t.time, t.alpha, t.sigma))
        return UserError(
            f"a prediction of {self.kind} does not define {wanted} at time {time:g}, where alpha = {alpha:g} "
            f"and sigma = {sigma:g}: start or end the grid short of it, or use a network that predicts v or flow."
        )


def cos_sin(t: Knot, data_std: float = 1.0) -> tuple[Number, Number]:
    """cos and sin of the angle: alpha d and sigma over sqrt(alpha^2 d^2 + sigma^2)."""
    r = marginal_std(t, data_std)
    return data_std * t.alpha / r, t.sigma / r


def marginal_std(t: Knot, data_std: float = 1.0) -> Number:
    """sqrt(alpha^2 d^2 + sigma^2): of x, for data of standard deviation d."""
    return ((data_std * t.alpha) ** 2 + t.sigma**2) ** 0.5


def parts(kind: str, t: Knot, data_std: float = 1.0) -> tuple[Number, Number]:
    """(p, q) of value = p x0 + q eps."""
    if kind in ("eps", "score"):  # a score is read as eps = -sigma score
        return 0.0, 1.0
    if kind == "x0":
        return 1.0, 0.0
    if kind == "v":
        c, s = cos_sin(t, data_std)
        return -s / data_std, c
    if kind == "flow":
        return -1.0, 1.0
    choose("prediction kind", kind, KINDS)
    raise AssertionError(kind)


@runtime_checkable
class Model(Protocol):
    """What solvers call: a function of the state (B, ...) and a knot, that knows its schedule. Any callable with these parts will do."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one sample, or None if any will do."""
        ...

    def __call__(self, x: Tensor, t: Knot) -> Prediction: ...

    def rows(self, index: Tensor) -> Model:
        """The model for a subset of the samples (labels leave with them)."""
        ...


@runtime_checkable
class Labelled(Model, Protocol):
    """A model that can be asked for some classes of the data, and for all of it."""

    @property
    def classes(self) -> int | None:
        """How many classes there are, 0 .. classes - 1; None if it has none, or does not know."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """The class of each sample (B,); None: the model of all the data."""
        ...

    def with_labels(self, labels: Tensor | None) -> Labelled:
        """The model for samples of these classes."""
        ...


def check_labels(labels: Any, classes: int | None) -> Tensor:
    """labels as int64 (B,), each one of the classes, or `classes` for no label. `UserError` that names the first that is not."""
    given = torch.as_tensor(labels)
    if given.ndim != 1 or not len(given) or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UserError(f"labels must be whole numbers, one a sample (batch,), not {given.dtype} of shape {tuple(given.shape)}.")
    wrong = given < 0 if classes is None else (given < 0) | (given > classes)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        known = "" if classes is None else f"; there are {classes} classes, 0 to {classes - 1}, and {classes} means no label"
        raise UserError(f"label {int(given[i])} of sample {i} does not exist{known}: choose another.")
    return given.long()


class Around:
    """The base of models around a model, abstract: schedule and shape are those of the one inside."""

    model: Model

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape


@dataclass
class Counted(Around):
    """A model that counts: `calls` network calls so far (2 for an answer that ran two networks), and `each`, those of each sample.

    Where samples needed different numbers, `calls` grows by what ran for the batch (`Prediction.calls`), `each` by what each needed.
    `rows` makes a model of some samples that counts into the same account; index says which samples its rows are (None: all).
    """

    model: Model
    account: list[int] = field(default_factory=lambda: [0])
    each: np.ndarray | None = None
    index: np.ndarray | None = None

    @property
    def calls(self) -> int:
        return self.account[0]

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        p = self.model(x, t)
        self.account[0] += p.calls
        if self.each is not None:
            self.each[slice(None) if self.index is None else self.index] += p.cost
        return p

    def rows(self, index: Tensor) -> Counted:
        chosen = index.cpu().numpy()
        return Counted(self.model.rows(index), self.account, self.each, chosen if self.index is None else self.index[chosen])


@dataclass(frozen=True)
class InPlace(Around):
    """A model that is always asked about n samples, each at its own place, also when only some of them are there.

    A network's last bits depend on the size of the batch, so samples that leave one by one would change the answers of those that stay.
    Costs the full batch at every call. index: the places of the rows (None: all n).
    """

    model: Model
    n: int
    index: np.ndarray | None = None

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        if self.index is None:
            return self.model(x, t)
        p = self.model(*placed(self.index, self.n, (x, t)))
        value, variance, eps_used, cost = rows(self.index, (p.value, p.variance, p.eps_used, p.cost))
        return Prediction(x, t, value, p.kind, variance, eps_used, cost, p.data_std, p.ran)

    def rows(self, index: Tensor) -> InPlace:
        chosen = index.cpu().numpy()
        return InPlace(self.model, self.n, chosen if self.index is None else self.index[chosen])
