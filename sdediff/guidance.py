"""Guidance: models that lean towards a class, or away from a weaker model. Model -> Model.

The density p(x) p(y | x)^w has the score grad log p(x) + w grad log p(y | x). Its second part is the gradient of a classifier (Dhariwal &
Nichol 2021) or, by Bayes, the difference of two scores (Ho & Salimans 2022); as eps = -sigma score,

    eps = eps_u - w sigma grad log p(y | x)        eps = eps_u + w (eps_c - eps_u).

w = 0 is the model without labels, w = 1 the conditional model as it is, w > 1 guidance. For given x and t every reading is an affine
function of eps, so the same sum in x0, v or flow says the same, and the sum is taken in what the network answers: nothing is divided by
alpha or sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .batch import rows
from .checks import check_model
from .combine import Linear, combine, linear
from .latent_diffusion import LatentDiffusion
from .names import UserError, choose, from_repr
from .prediction import KINDS, Around, Labelled, Model, ModelError, Prediction, check_labels, parts
from .schedule import CLOCKS, Knot, Number, Schedule
from .score import ScoreNet

Classifier = Callable[[Tensor, Knot], Tensor]  # (x (B, ...), t) -> logits (B, classes)
Scale = float | tuple[float, ...]


# --- what is asked for --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Where guidance is on: low <= clock <= high. clock: "u" = sigma/alpha (EDM's sigma, as published), "time", "lam", ...

    Kynkaanniemi et al. 2024: in the middle of the noise levels it helps, above it costs diversity, below it does nothing.
    """

    low: float
    high: float
    clock: str = "u"

    def __post_init__(self) -> None:
        choose("clock", self.clock, CLOCKS)
        if not self.low < self.high:
            raise UserError(f"Interval(low, high, {self.clock!r}) needs low below high, not {self.low!r} and {self.high!r}.")

    def holds(self, t: Knot) -> bool | np.ndarray:
        """Whether guidance is on at t: one answer, or one a sample."""
        reading = t.clock(self.clock)
        if isinstance(reading, float):
            return self.low <= reading <= self.high
        return (self.low <= reading) & (reading <= self.high)


@dataclass(frozen=True)
class ClassifierFree:
    """eps_u + scale (eps_c - eps_u). scale: at least 0, 1 is no guidance; a tuple has one number for each class. Two calls a step.

    Ho & Salimans 2022, whose w is scale - 1; with a weaker model in place of eps_u it is autoguidance (Karras et al. 2024).
    interval: outside it only the conditional model runs (one call). rescale: phi in [0, 1], how far the standard deviation of each guided
    sample goes back to that of the conditional one (Lin et al. 2023, eq. 15 and 16: 0.7), taken of what the network answers, or of the
    reading `rescaled` ("eps", "x0", "v", ...).
    """

    scale: Scale = 2.0
    interval: Interval | None = None
    rescale: float = 0.0
    rescaled: str | None = None

    def __post_init__(self) -> None:
        _check_scale(self)
        choose("rescaled", self.rescaled, (None, *KINDS))
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale is a part of the way from the guided spread (0) to the conditional one (1), not {self.rescale!r}.")


@dataclass(frozen=True)
class CFGPlusPlus:
    """x0 from eps_u + scale (eps_c - eps_u), scale in [0, 1], and noise put back with eps_u (`Prediction.eps_used`). Two calls a step.

    For solvers that step as DDIM does, s.alpha x0 + s.sigma eps: there x_s is what plain guidance of scale w_t gives, w_t = scale/(1 -
    u_s/u_t), which grows without bound as steps get shorter. Chung et al. 2024, algorithm 1. interval: as in `ClassifierFree`.
    """

    scale: Scale = 0.6
    interval: Interval | None = None

    def __post_init__(self) -> None:
        _check_scale(self, 1.0)


@dataclass(frozen=True)
class ClassifierGuidance:
    """eps - scale sigma grad log p(y | x_t) of a classifier of noisy data. Each step costs the model's call and one for the gradient.

    scale: 0 is no guidance; a tuple has one number for each class. On a model of all the data it is the scale of `ClassifierFree`; on one
    that has the label already, that scale minus 1. interval: outside it only the model runs. Dhariwal & Nichol 2021, algorithm 2.
    """

    scale: Scale = 1.0
    interval: Interval | None = None

    def __post_init__(self) -> None:
        _check_scale(self)


Guidance = ClassifierFree | CFGPlusPlus | ClassifierGuidance
GUIDANCES = (ClassifierFree, CFGPlusPlus, ClassifierGuidance)
VALUES = (Interval,)


def guidance_named(text: str) -> Guidance:
    """The guidance whose `repr` is `text`: "ClassifierFree(2.0)". `UserError` for another text."""
    return from_repr(text, {g.__name__: g for g in GUIDANCES}, "guidance", {v.__name__: v for v in VALUES})


def _check_scale(guidance: Guidance, most: float = math.inf) -> None:
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in scales)
    if not (scales and numbers and all(0 <= w <= most and math.isfinite(w) for w in scales)):
        bounds = "of at least 0" if most == math.inf else f"in [0, {most:g}]"
        name = type(guidance).__name__
        raise UserError(f"{name}(scale) needs a number {bounds}, or a tuple with one for each class, not {guidance.scale!r}.")


# --- models -------------------------------------------------------------------------------------------------------


def guided(
    model: Model,
    guidance: Guidance,
    labels: Tensor | None = None,
    *,
    weaker: Model | None = None,
    classifier: Classifier | None = None,
    scales: Tensor | None = None,
    none: int | None = None,
) -> Model:
    """The model under this guidance, for samples of these classes, (B,) whole numbers: `guided(net, ClassifierFree(2.0), labels)`.

    labels: of the model, and of `weaker` where that takes labels and has none (leave them out for models that have theirs, `with_labels`);
    for `ClassifierGuidance` they are what the classifier is asked, and the model is taken as it stands. weaker: in place of the same
    network without labels: an unconditional model, or a worse one (autoguidance). classifier: (x, knot) -> logits, for
    `ClassifierGuidance` only. scales: one a sample (B,), in place of guidance.scale. none: the label that means no label to a network
    that is not ours. A `LatentDiffusion` is guided in its latents. Raises `UserError`.
    """
    check_model(model)
    if isinstance(model, LatentDiffusion):
        weaker = _inner(model, weaker) if isinstance(weaker, LatentDiffusion) else weaker
        inner = guided(model.inner, guidance, labels, weaker=weaker, classifier=classifier, scales=scales, none=none)
        return replace(model, inner=inner)
    if not isinstance(guidance, GUIDANCES):
        raise UserError(f"guidance is one of {', '.join(g.__name__ for g in GUIDANCES)}, such as ClassifierFree(2.0), not {guidance!r}.")
    if isinstance(guidance, ClassifierGuidance):
        if weaker is not None:
            raise UserError("ClassifierGuidance has no weaker model, only classifier=: leave out weaker=, or take ClassifierFree(scale).")
        return _by_classifier(model, guidance, labels, classifier, scales)
    if classifier is not None:
        raise UserError(f"{guidance!r} asks no classifier: leave out classifier=, or take ClassifierGuidance(scale).")
    strong, alike = model if labels is None else _labelled(model, labels), weaker is None
    if weaker is None:
        strong, weaker, pair = _halves(strong, none)
    else:
        pair = None
        _check_weaker(model, weaker)
        if labels is not None and isinstance(weaker, Labelled) and weaker.labels is None and weaker.classes is not None:
            weaker = weaker.with_labels(labels)
    own, classes = (strong.labels, strong.classes) if isinstance(strong, Labelled) else (None, None)
    w = _scales(guidance, own, scales, classes)
    n = len(w) if isinstance(w, np.ndarray) else None if own is None else len(own)
    return Guided(strong, weaker, guidance, w, pair, n, alike)


def _by_classifier(
    model: Model, guidance: ClassifierGuidance, labels: Tensor | None, classifier, scales: Tensor | None
) -> ClassifierGuided:
    if classifier is None:
        raise UserError("ClassifierGuidance needs classifier=, a function (x, knot) -> logits, such as ClassifierNet(net, schedule).")
    if labels is None:
        raise UserError("guidance leans towards a class: give labels, guided(model, guidance, labels), one whole number a sample.")
    if isinstance(classifier, ClassifierNet) and classifier.schedule != model.schedule:
        raise UserError(
            f"the classifier is of {classifier.schedule!r}, the model of {model.schedule!r}: both must be about the same noisy samples."
        )
    labels = check_labels(labels, None)
    return ClassifierGuided(model, classifier, labels, guidance, _scales(guidance, labels, scales))


def _labelled(model: Model, labels: Tensor) -> Model:
    if not isinstance(model, Labelled):
        raise UserError(f"{type(model).__name__} takes no labels: give it its labels before it is wrapped, and leave labels= out here.")
    return model.with_labels(labels)


def _inner(model: LatentDiffusion, weaker: LatentDiffusion) -> Model:
    """The weaker model of the same latents."""
    scaled = (model.scale, model.shift) == (weaker.scale, weaker.shift)
    a, b = (m.autoencoder.state_dict() for m in (model, weaker))
    same = model.autoencoder is weaker.autoencoder or (
        model.autoencoder.config == weaker.autoencoder.config and all(torch.equal(v, b[k].to(v.device)) for k, v in a.items())
    )
    if not (same and scaled):
        raise UserError(
            f"the weaker model is of {'other scaled codes' if same else 'the codes of another autoencoder'}: both must have the same "
            "autoencoder, scale and shift, so that they are about the same latents."
        )
    return weaker.inner


def _check_weaker(model: Model, weaker: Model) -> None:
    check_model(weaker)
    if weaker.schedule != model.schedule or (model.shape and weaker.shape and tuple(model.shape) != tuple(weaker.shape)):
        raise UserError(
            f"the weaker model is of {weaker.schedule!r} and samples {weaker.shape}, the model of {model.schedule!r} and {model.shape}: "
            "both must be about the same noisy samples."
        )


def _halves(model: Model, none: int | None) -> tuple[Model, Model, ScoreNet | None]:
    """The model with and without its labels and, for a network, both as one batch."""
    if not isinstance(model, Labelled):
        raise UserError(
            f"{type(model).__name__} cannot be asked without its label: give the model without labels (or a worse one) as weaker=."
        )
    if model.labels is None:
        raise UserError("guidance leans towards a class: give labels, guided(model, guidance, labels), one whole number a sample.")
    if not isinstance(model, ScoreNet):
        return model, model.with_labels(None), None
    none = model.classes if none is None else none
    if none is None:
        raise UserError("this network does not say which label means no label: give it as none=, or the model without labels as weaker=.")
    blank = torch.full_like(model.labels, none)
    return model, model.with_labels(blank), model.with_labels(torch.cat([model.labels, blank]))


def _scales(guidance: Guidance, labels: Tensor | None, scales: Tensor | None, classes: int | None = None) -> Number:
    """One scale for all, or one a sample, float64 (B,)."""
    if scales is not None:
        given = torch.as_tensor(scales).detach().cpu().double().numpy()
        if given.ndim != 1 or (labels is not None and len(given) != len(labels)):
            wanted = "(batch,)" if labels is None else f"({len(labels)},)"
            raise UserError(f"scales= has one number a sample, shape {wanted}, not {tuple(given.shape)}.")
        for w in given:
            replace(guidance, scale=float(w))  # the same bounds
        return given
    if not isinstance(guidance.scale, tuple):
        return float(guidance.scale)
    if labels is None:
        raise UserError(f"{guidance!r} has a scale for each class: give the labels.")
    of, own = labels.cpu().numpy(), len(guidance.scale)
    if own != classes if classes is not None else of.max() >= own:
        wanted = f"there are {classes} classes" if classes is not None else f"there is a label {of.max()}"
        raise UserError(f"{guidance!r} has {own} scales, but {wanted}: give one for each class.")
    table = np.array([*guidance.scale, 1.0])  # the last one is for no label
    return table[of]


@dataclass(frozen=True)
class Guided(Around):
    """A model and a weaker one, combined. w: the scale, or one a sample. pair: both as one network, asked for 2n samples at once.
    n: how many samples it has labels for, if it has any. alike: both are one model, with its labels and without, so that they answer alike.
    """

    model: Model
    weaker: Model
    guidance: ClassifierFree | CFGPlusPlus
    w: Number
    pair: ScoreNet | None = None
    n: int | None = None
    alike: bool = False

    def rows(self, index: Tensor) -> Guided:
        """The model for a subset of the samples: labels and scales leave with them."""
        index = _index(index, self.n)
        pair = None if self.pair is None or self.n is None else self.pair.rows(torch.cat([index, index + self.n]))
        n = None if self.n is None else len(index)
        return Guided(self.model.rows(index), self.weaker.rows(index), self.guidance, _rows(self.w, index), pair, n, self.alike)

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        _check_batch(self.n, x)
        inside = _inside(self.guidance, t)
        w = _where(inside, self.w, 1.0)
        apart = isinstance(self.guidance, CFGPlusPlus)
        both = inside if apart else w != 1  # where noise goes back with the weaker eps it is needed at w = 1 too
        if not np.any(both):
            return self._alone(self.model(x, t), w)
        if np.all(w == 0) and (self.alike or isinstance(w, float)):  # another weaker model must say it in the terms of the first
            return self._alone(self.weaker(x, t), w)
        c, u = self._answers(x, t)
        value, eps_used = combine(linear(c.value, w) + _as(c, u) * (1 - w)), None
        if apart:
            kept = _where(inside, 0.0, 1.0)
            eps_used = combine(c.eps * kept + u.eps * (1 - kept))
        elif c.eps_used is not None or u.eps_used is not None:
            eps_used = combine(c.eps * w + u.eps * (1 - w))
        variance = _chosen(w == 0, u.variance, c.variance)
        cost = c.cost * _number(w != 0) + u.cost * _number(both)
        p = replace(c, value=value, variance=variance, eps_used=eps_used, cost=cost, ran=c.calls + u.calls)
        return self._rescaled(c, p, w)

    def _alone(self, p: Prediction, w: Number) -> Prediction:
        """The answer of one model where nothing is mixed; with an eps as it would have if other samples were guided, to the bit."""
        if isinstance(self.guidance, ClassifierFree) or isinstance(w, float):
            return p
        return replace(p, eps_used=combine(p.eps * np.ones(len(p.x))))

    def _answers(self, x: Tensor, t: Knot) -> tuple[Prediction, Prediction]:
        """Both answers; of one network as one batch, except where each sample passes the ends of an interval by itself: there each half
        is a batch of its own, so that an answer does not depend by a bit on who else is inside.
        """
        together = isinstance(t.time, float)
        if self.pair is None or not (together or self.guidance.interval is None):
            return self.model(x, t), self.weaker(x, t)
        n = len(x)
        p = self.pair(torch.cat([x, x]), t if together else rows(np.tile(np.arange(n), 2), t))
        value, variance = p.value.split(n), (None, None) if p.variance is None else p.variance.split(n)
        c, u = (replace(p, x=x, at=t, value=value[i], variance=variance[i]) for i in (0, 1))
        return c, u

    def _rescaled(self, c: Prediction, p: Prediction, w: Number) -> Prediction:
        """The guided answer p, each sample's standard deviation brought back towards that of the conditional answer c."""
        if not isinstance(self.guidance, ClassifierFree) or not self.guidance.rescale:
            return p
        kind = self.guidance.rescaled or c.kind
        of_c, of_p = _read(c, kind), _read(p, kind)
        had, has = _deviation(of_c), _deviation(of_p)
        ratio = torch.where(has > 0, had / has, 1.0)
        scaled = of_p * (1 + self.guidance.rescale * (ratio - 1)).to(of_p)
        q = replace(p, value=scaled) if kind == c.kind else replace(p, value=scaled, kind=kind, data_std=1.0)
        if isinstance(w, float):
            return q
        return replace(p, value=_chosen((w == 0) | (w == 1), p.value, _as(c, q).tensor()))  # who is not guided keeps every bit


@dataclass(frozen=True)
class ClassifierGuided(Around):
    """A model moved along the gradient of a classifier. w: the scale, or one a sample."""

    model: Model
    classifier: Classifier
    labels: Tensor
    guidance: ClassifierGuidance
    w: Number

    def rows(self, index: Tensor) -> ClassifierGuided:
        """The model for a subset of the samples: labels and scales leave with them."""
        index = _index(index, len(self.labels))
        labels = self.labels[index.to(self.labels.device)]
        return ClassifierGuided(self.model.rows(index), self.classifier, labels, self.guidance, _rows(self.w, index))

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        _check_batch(len(self.labels), x)
        w = _where(_inside(self.guidance, t), self.w, 0.0)
        p = self.model(x, t)
        if not np.any(w):
            return p
        slope = log_probability_gradient(self.classifier, x, t, self.labels)
        value = combine(linear(p.value) + linear(slope, w * _per_score(p)))
        eps_used = None if p.eps_used is None else combine(linear(p.eps_used) + linear(slope, -w * t.sigma))
        return replace(p, value=value, eps_used=eps_used, cost=p.cost + _number(w != 0), ran=p.calls + 1)


def log_probability_gradient(classifier: Classifier, x: Tensor, t: Knot, labels: Tensor) -> Tensor:
    """grad_x log p(y | x) of a classifier's logits, like x; whatever the gradient mode, and on the graph where x is on one."""
    kept = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        z = x if kept else x.detach().clone().requires_grad_()
        logits = classifier(z, t)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ModelError(
                f"the classifier answered {tuple(logits.shape)} for {len(x)} samples: it must give logits ({len(x)}, classes)."
            )
        if not logits.requires_grad:
            raise ModelError("the classifier's answer has no gradient to the state: no detach() or no_grad() inside it.")
        labels = check_labels(labels.clone().to(logits.device), logits.shape[1])
        if bool((labels == logits.shape[1]).any()):
            raise UserError(
                f"label {logits.shape[1]} is not one of the classifier's {logits.shape[1]} classes: choose 0 to {logits.shape[1] - 1}."
            )
        chosen = torch.log_softmax(logits, dim=1).gather(1, labels[:, None]).sum()
        return torch.autograd.grad(chosen, z, create_graph=kept)[0]


@dataclass(frozen=True)
class ClassifierNet:
    """A network net(x, condition) -> logits, such as those of `networks`, as a classifier (x, knot) -> logits.

    condition: what it is fed, as in `ScoreNet`.
    """

    net: Callable[..., Tensor]
    schedule: Schedule
    condition: str = "lam"

    def __call__(self, x: Tensor, t: Knot) -> Tensor:
        """Logits (B, classes) of noisy states x (B, ...) at t."""
        return self.net(x, ScoreNet(self.net, self.schedule, condition=self.condition)._condition(x, t))


def noise_apart(model: Model) -> bool:
    """Whether CFG++ is in this model, however it is wrapped: noise goes back with another eps than x0 has."""
    if isinstance(model, Guided) and isinstance(model.guidance, CFGPlusPlus):
        return True
    parts = [getattr(model, f.name) for f in fields(model)] if is_dataclass(model) else []
    return any(noise_apart(part) for part in parts if isinstance(part, Model))


def check_flow(model: Model, verb: str) -> None:
    """`UserError` for CFG++, which has no flow and no density: a step of no length is not the identity."""
    if noise_apart(model):
        raise UserError(
            f"{verb} needs one prediction of the noise, and CFG++ has two (it is a way of taking DDIM steps): take ClassifierFree(scale)."
        )


# --- the algebra --------------------------------------------------------------------------------------------------


def _as(c: Prediction, u: Prediction) -> Linear:
    """What u says, in the terms in which c answered."""
    if (u.kind, u.data_std) == (c.kind, c.data_std):
        return linear(u.value)
    u = replace(u, eps_used=None)
    return u.score if c.kind == "score" else u.mixed(*parts(c.kind, c.at, c.data_std))


def _read(p: Prediction, kind: str) -> Tensor:
    return p.value if p.kind == kind else getattr(replace(p, eps_used=None), kind).tensor()


def _per_score(p: Prediction) -> Number:
    """By how much p's answer grows with the score, at given x and t: eps = -sigma score, x0 = (x - sigma eps)/alpha."""
    t = p.at
    if p.kind == "score":
        return 1.0
    of_x0, of_eps = parts(p.kind, t, p.data_std)
    if p.kind == "eps":
        return -t.sigma
    if np.any(t.alpha == 0):
        raise UserError(
            f"a classifier cannot guide a prediction of {p.kind} where there is no signal (alpha = 0): start short of it, or leave it out, "
            "ClassifierGuidance(interval=Interval(0.0, 1e3))."
        )
    return (of_x0 * t.u - of_eps) * t.sigma


def _chosen(mask: bool | np.ndarray, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a for all samples or for some, else b; b where one is missing."""
    if a is None or b is None or not np.any(mask):
        return b
    return torch.where(torch.as_tensor(mask, device=b.device).reshape(-1, *[1] * (b.ndim - 1)), a, b)


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation of each sample, (B, 1, ..), float64, to the same bits in any batch (see `batch.rms`)."""
    flat = x.flatten(1).double().contiguous()
    flat = flat.expand(2, -1).contiguous() if len(flat) == 1 else flat
    off = flat - flat.mean(1, keepdim=True)
    return off.square().mean(1)[: len(x)].sqrt().reshape(-1, *[1] * (x.ndim - 1))


def _inside(guidance: Guidance, t: Knot) -> bool | np.ndarray:
    return True if guidance.interval is None else guidance.interval.holds(t)


def _where(inside: bool | np.ndarray, a: Number, b: Number) -> Number:
    return (a if inside else b) if isinstance(inside, bool) else np.where(inside, a, b)


def _number(mask: bool | np.ndarray) -> int | np.ndarray:
    """0 or 1, for all or for each sample."""
    return mask.astype(np.int64) if isinstance(mask, np.ndarray) else int(mask)


def _rows(w: Number, index: Tensor) -> Number:
    return w[index.cpu().numpy()] if isinstance(w, np.ndarray) else w


def _index(index: Tensor, n: int | None) -> Tensor:
    if n is not None and len(index) and int(index.max()) >= n:
        raise UserError(f"sample {int(index.max())} has no label: there are {n} labels; give one for each sample.")
    return index


def _check_batch(n: int | None, x: Tensor) -> None:
    if n is not None and n != len(x):
        raise UserError(f"there are {n} labels for {len(x)} samples: give one for each sample.")
