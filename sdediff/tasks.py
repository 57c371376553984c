"""What `fit` learns beside a score network: autoencoders, and classifiers of noised images. One `Task` each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import checkpoint
from .chance import Chance
from .guidance import ClassifierNet
from .names import UserError, choose
from .networks import Autoencoder, NoisyClassifier, Reconstruction
from .schedule import Schedule
from .times import times_named
from .train import Task

NORMS = ("l1", "l2", "gaussian")


class AutoencoderTask(Task):
    """An autoencoder: how far images come back off, a mean over their D values, and the terms of its regulariser.

        loss = off + kl_weight KL/D + codebook_weight C

    norm: off is the mean of |difference| ("l1"), its square ("l2"), or minus the log-density of the decoder taken as the Gaussian
    N(decode(z), sigma^2) ("gaussian", nats a value). KL is that of the code's distribution from N(0, I), summed over the code. So with
    "l1" and kl_weight = 1e-6 this is latent diffusion's loss (Rombach et al. 2022, without its perceptual and adversarial terms) over D;
    with "gaussian" and kl_weight = 1 it is minus the evidence lower bound in nats a value, and `from_prior` of that VAE gives images.
    C ("vq"): the means over the code of squared distances, see `Autoencoder`. A code of "kl" is drawn with noise from `chance`.
    """

    def __init__(self, net: Autoencoder, norm: str = "l1", kl_weight: float = 1e-6, codebook_weight: float = 1.0):
        choose("norm", norm, NORMS)
        if not isinstance(net, Autoencoder):
            raise UserError(f"an AutoencoderTask trains a sdediff.networks.Autoencoder, not {type(net).__name__}.")
        if not (0 <= kl_weight < math.inf and 0 <= codebook_weight < math.inf):
            raise UserError(f"kl_weight and codebook_weight are numbers of at least 0, not {kl_weight!r} and {codebook_weight!r}.")
        if norm != "gaussian" and net.config["learned_sigma"]:
            raise UserError(f"sigma is learned with norm='gaussian' only, not {norm!r}: build the autoencoder without learned_sigma.")
        self.net, self.autoencoder, self.norm, self.kl_weight, self.codebook_weight = net, net, norm, kl_weight, codebook_weight

    def loss(self, net: Callable[..., Any], x0: Tensor, labels: Tensor | None, chance: Chance, memory: Tensor | None) -> Tensor:
        shape = _asked(lambda: self.autoencoder.latent_shape(x0.shape[1:]))
        noise = chance.noise(x0.new_empty(len(x0), *shape)) if self.autoencoder.regulariser == "kl" else None
        back: Reconstruction = net(x0, noise)
        d = x0[0].numel()
        return self._off(back.x - x0, back.log_sigma) + self.kl_weight / d * back.kl + self.codebook_weight * back.codebook

    def _off(self, off: Tensor, log_sigma: Tensor) -> Tensor:
        if self.norm == "l1":
            return off.abs().flatten(1).mean(1)
        square = off.square().flatten(1).mean(1)
        if self.norm == "l2":
            return square
        return 0.5 * (square * (-2 * log_sigma).exp() + math.log(2 * math.pi)) + log_sigma

    def about(self) -> dict[str, Any]:
        learned = {"norm": self.norm, "kl_weight": self.kl_weight, "codebook_weight": self.codebook_weight}
        return {"kind": checkpoint.AUTOENCODER, "config": self.autoencoder.config, "learned": learned}

    def save(self, path: Path, about: dict[str, Any]) -> None:
        checkpoint.save_autoencoder(path, self.autoencoder, {**about, "learned": self.about()["learned"]})


class ClassifierTask(Task):
    """A classifier of noisy data for `ClassifierGuidance`: the cross-entropy -log p(y | x_t) of `net(x_t, condition)`.

    At its minimum the classifier is Bayes' own at every noise level, and its gradient what guidance needs. condition: what the network is
    fed, as in `ScoreNet`; times: how t is drawn, as in `Objective`. Dhariwal & Nichol 2021, section 4.
    """

    def __init__(self, net: NoisyClassifier, schedule: Schedule, condition: str = "lam", times: str = "low_discrepancy"):
        if not isinstance(net, NoisyClassifier):
            raise UserError(f"a ClassifierTask trains a sdediff.networks.NoisyClassifier, not {type(net).__name__}.")
        self.net, self.classifier, self.classes = net, ClassifierNet(net, schedule, condition), int(net.config["classes"])  # type: ignore[call-overload]
        self.times, self.drawn = times, times_named(times)
        if self.drawn.memory(schedule) is not None:
            raise UserError(f"a classifier is trained without a memory of its losses: choose other times than {times!r}.")

    def loss(self, net: Callable[..., Any], x0: Tensor, labels: Tensor | None, chance: Chance, memory: Tensor | None) -> Tensor:
        if labels is None:
            raise UserError("a classifier learns from labels, and these data have none.")
        if int(labels.max()) >= self.classes:
            raise UserError(f"label {int(labels.max())} does not exist for a classifier of {self.classes} classes: build it with more.")
        schedule = self.classifier.schedule
        t = schedule.knot(self.drawn.draw(schedule, chance.total, chance.generator()).t[chance.rows])
        logits = replace(self.classifier, net=net)(schedule.forward(x0, t, chance.noise(x0)), t)
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    def about(self) -> dict[str, Any]:
        return {**checkpoint.describe_classifier(self.classifier), "learned": {"times": self.times}}

    def save(self, path: Path, about: dict[str, Any]) -> None:
        checkpoint.save_classifier(path, self.classifier, {**about, "learned": {"times": self.times}})


def _asked(question: Callable[[], Any]) -> Any:
    """The answer of a network's question, whose objection is the user's."""
    try:
        return question()
    except ValueError as wrong:
        raise UserError(f"{wrong}.") from None
