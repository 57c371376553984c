"""Who turns images into features: our small classifiers, Inception-v3, the pixels themselves, or anything of the user's.

An extractor sees each image alone and in evaluation mode, so that a feature does not depend on the batch but for the last bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import isroutine
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..metrics import MetricError
from ..names import UserError, nearest
from ..networks import Classifier, Inception, ResNet20
from ..networks.inception import FEATURES, LIKE, inception_weights
from ..pretrained import CLASSIFIERS, feature_extractor
from .files import PUBLISHED, fill, mark_of, read_weights

RANDOM = "random"  # for weights of Inception: a dry run
Answer = tuple[Tensor, Tensor | None]
_INCEPTIONS = {"inception": LIKE[0], "inception-pytorch": LIKE[1]}
NAMES = (*CLASSIFIERS, *_INCEPTIONS, "resnet20", "pixels")


@dataclass(frozen=True, eq=False)
class Extractor:
    """Features (n, d) of images (n, c, h, w) in [-1, 1], or bytes.

    name: for people; mark: a hash of weights and options, for `Reference.check`; d: how many features, None where only the images tell.
    answer: images to (features (n, d), logits (n, k) or None), in one pass.
    """

    name: str
    mark: str
    answer: Callable[[Tensor], Answer] = field(repr=False)
    d: int | None = None

    def features(self, images: Tensor) -> Tensor:
        """(n, d), without gradients. MetricError for images that the extractor cannot take, or an answer that is not (n, d)."""
        return self.both(images)[0]

    def logits(self, images: Tensor) -> Tensor | None:
        """(n, k), for the Inception Score; None where there are none. Inception's are without the bias, as that score was defined."""
        return self.both(images)[1]

    def both(self, images: Tensor) -> Answer:
        """Features and logits in one pass."""
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
        try:
            with torch.no_grad():
                features, logits = self.answer(x)
        except Exception as wrong:  # of a network of the user's, anything
            reason = (str(wrong).splitlines() or [type(wrong).__name__])[0][:200]
            raise MetricError(f"The extractor {self.name} cannot take images {tuple(images.shape)}: {reason}") from wrong
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images) or not features.is_floating_point():
            shown = f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise MetricError(f"The extractor {self.name} answered {shown} for {len(images)} images; expected floats ({len(images)}, d).")
        if self.d is not None and features.shape[1] != self.d:
            raise MetricError(f"The extractor {self.name} answered {features.shape[1]} features an image; expected {self.d}.")
        return features, logits


def extractor(
    spec: Any, weights: str | Path | None = None, size: int | None = None, *, name: str | None = None, device: str | None = None
) -> Extractor:
    """The extractor that `spec` names.

    "digits", "mnist": our classifiers (32 and 64 features).
    "inception": Inception-v3, with weights= the path of the usual file; "inception-pytorch" resizes as pytorch-fid does.
    "resnet20": third-party ResNet-20 of CIFAR-10 (64 features), with weights= its path.
    "pixels": the images, flattened.
    "package.module:attribute": a module, or any callable of images in [-1, 1], imported by name. THIS RUNS THE CODE of that package.
    An nn.Module, or any callable, itself.

    Args:
        weights: a state dict, .pth or .safetensors; of "inception" also "random", for a dry run: such numbers mean nothing.
        size: how many features. Of Inception one of 64, 192, 768, 2048 (default; only these have logits); of others it is checked.
        name: for people, and part of the mark of a callable that has no weights, of which nothing else is known.
        device: where to compute; default: the CPU, or wherever the given module is.

    Raises:
        UserError: no such extractor, its weights are missing, damaged, of another network, or code; options that it does not have.
    """
    if isinstance(spec, str):
        made = _named(spec, weights, size, name, device)
    else:
        made = _given(spec, weights, size, name, device)
    if size is not None and made.d not in (None, size):
        raise UserError(f"the extractor {made.name} has {made.d} features, not {size}.")
    return made


# --- by name ------------------------------------------------------------------------------------------------------


def _named(spec: str, weights: str | Path | None, size: int | None, name: str | None, device: str | None) -> Extractor:
    if spec in _INCEPTIONS:
        net, head = _inception_net(weights, _INCEPTIONS[spec])
        return _inception(name or spec, net, 2048 if size is None else size, device, head)
    if spec == "resnet20":
        return _classifier(name or spec, _resnet20(weights), 64, device)
    if ":" in spec:
        return _given(_imported(spec), weights, size, name or spec, device)
    if spec not in NAMES:
        raise UserError(
            f"there is no extractor {spec!r}.{nearest(spec, NAMES)} Expected one of {', '.join(NAMES)}, or package.module:attribute."
        )
    if weights is not None:
        raise UserError(f"the extractor {spec!r} comes with what it needs: leave weights out, or name the network that they belong to.")
    if spec == "pixels":
        return Extractor(name or spec, mark_of(spec), lambda x: (x.flatten(1), None), size)
    net = feature_extractor(spec)
    return _classifier(name or spec, net, net.config["features"], device)


def _inception_net(weights: str | Path | None, like: str) -> tuple[Inception, bool]:
    """The network, and whether the file has its head."""
    if weights is None:
        raise UserError(
            f"Inception features take the published weights, which are never downloaded here: get {PUBLISHED}, and give its path."
        )
    if str(weights) == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Inception(like), True
    state = inception_weights(read_weights(weights))
    head = "fc.weight" in state
    with torch.device("meta"):  # nothing is drawn that is written over
        net = Inception(like)
    net.to_empty(device="cpu")
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    fill(net, state, weights, without=() if head else ("fc.",))
    return net, head


def _resnet20(weights: str | Path | None) -> ResNet20:
    if weights is None:
        where = "resnet20-12fca82f.th (github.com/akamaster/pytorch_resnet_cifar10)"
        raise UserError(f"resnet20 takes third-party weights, which are never downloaded here: get {where}, and give its path.")
    state = {k.removeprefix("module."): v for k, v in read_weights(weights).items() if not k.endswith("num_batches_tracked")}
    net = ResNet20()
    fill(net, state, weights)
    return net


def _imported(spec: str) -> Any:
    """The attribute of a module of the user's: importing runs that module."""
    module, _, attribute = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as wrong:
        said = f"{type(wrong).__name__}: {(str(wrong).splitlines() or [''])[0]}"
        raise UserError(f"the extractor {spec!r} cannot be imported ({said}). Expected package.module:attribute, on PYTHONPATH.") from wrong
    return found() if isinstance(found, type) else found


# --- networks -----------------------------------------------------------------------------------------------------


def _given(spec: Any, weights: str | Path | None, size: int | None, name: str | None, device: str | None) -> Extractor:
    if not callable(spec):
        raise UserError(f"an extractor is a name, an nn.Module, or a callable of images, not {spec!r}.")
    if isinstance(spec, nn.Module) and weights is not None:
        fill(spec, read_weights(weights), weights)
    if isinstance(spec, Inception):
        return _inception(name or "inception", spec, 2048 if size is None else size, device)
    if isinstance(spec, Classifier | ResNet20):
        d = spec.config["features"] if isinstance(spec, Classifier) else 64
        return _classifier(name or type(spec).__name__, spec, d, device)
    call: Callable[[Tensor], Any] = spec
    if isinstance(spec, nn.Module):
        return _module(name or _called(type(spec)), spec, _called(type(spec)), lambda x: (call(x), None), size, device)
    if weights is not None:
        raise UserError(f"weights are given to a network, but {_called(spec)} is no nn.Module: leave weights out.")
    if name is None and "<" in _called(spec):
        raise UserError(f"{_called(spec)} has no name by which its statistics could be recognised: give one, name='...'.")
    label = name or _called(spec)
    return Extractor(label, mark_of("callable", label), lambda x: (call(x), None), size)


def _inception(name: str, net: Inception, size: int, device: str | None, head: bool = True) -> Extractor:
    if size not in FEATURES:
        raise UserError(f"Inception has no {size} features: expected size to be one of {', '.join(map(str, FEATURES))}.")

    def answer(x: Tensor) -> Answer:
        return net.features_and_logits(x) if head and size == 2048 else (net.features(x, size), None)

    weights = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}  # the features do not depend on the head
    mark = mark_of("inception", str(sorted(net.config.items())), str(size), weights)
    return _module(name, net, "", answer, size, device, mark)


def _classifier(name: str, net: Classifier | ResNet20, d: int, device: str | None) -> Extractor:
    head = net.head if isinstance(net, Classifier) else net.linear

    def answer(x: Tensor) -> Answer:
        features = net.features(x)
        return features, head(features)

    return _module(name, net, type(net).__name__, answer, d, device)


def _module(
    name: str, net: nn.Module, kind: str, answer: Callable[[Tensor], Answer], d: int | None, device: str | None, mark: str | None = None
) -> Extractor:
    """An extractor that runs a network where it is, in its precision, in evaluation mode; training mode comes back afterwards."""
    if device is not None:
        try:
            net.to(device)
        except (RuntimeError, AssertionError) as wrong:
            raise UserError(f"{name} cannot be computed on {device!r} ({str(wrong).splitlines()[0]}): give another device.") from None
    like = next((t for t in [*net.parameters(), *net.buffers()] if t.is_floating_point()), torch.empty(0))

    def evaluated(x: Tensor) -> Answer:
        modes = {module: module.training for module in net.modules()}
        net.eval()
        try:
            return answer(x.to(like.device, like.dtype))
        finally:
            for module, training in modes.items():
                module.training = training

    return Extractor(name, mark or mark_of(kind, net.state_dict()), evaluated, d)


def _called(spec: Any) -> str:
    """The qualified name of a class or function, or of the class of anything else."""
    named = spec if isinstance(spec, type) or isroutine(spec) else type(spec)
    return f"{named.__module__}.{named.__qualname__}"
