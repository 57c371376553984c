"""Models and training states on disk: one safetensors file, its description as JSON in the header, written atomically.

Nothing is ever unpickled or executed. A file is written beside its final name and renamed when complete, so a reader sees the old file
or the new one, never half of one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import schedules
from .guidance import ClassifierNet
from .latent_diffusion import LatentDiffusion
from .names import UserError
from .networks import NETWORKS, Autoencoder, NoisyClassifier, build
from .schedule import Schedule
from .score import ScoreNet

FORMAT = 1
LATENT, AUTOENCODER, CLASSIFIER = "latent diffusion", "autoencoder", "noisy classifier"


def write(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description atomically. `UserError` if the folder cannot be written; an old file stays whole."""
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"sdediff": json.dumps(dict(about))})
    write_bytes(path, data)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically: beside its name, flushed, then renamed. `UserError` if that cannot be done."""
    path = Path(path)
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            name = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as wrong:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({wrong.strerror or wrong}): choose another folder, or free some space.") from None


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, description) of a file that `write` made. `UserError` if it is missing, damaged, a pickle, or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("sdediff")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (a reader, not a dict)
    except (SafetensorError, OSError, ValueError) as wrong:
        raise UserError(
            f"{path} is not a whole safetensors file ({_short(wrong)}): it is damaged, or a pickle (.pt, .pth), which is never loaded here "
            "because loading it runs code. Copy it again, or save it with sdediff."
        ) from None
    try:
        description = json.loads(about or "")
    except json.JSONDecodeError:
        raise UserError(f"{path} is a safetensors file, but not one that sdediff wrote: it has no description of its model.") from None
    if not isinstance(description, dict):
        raise UserError(f"{path} is a safetensors file, but its description is not one that sdediff writes.")
    return tensors, description


@contextmanager
def opened(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """`read` of a file that describes itself as this kind. `UserError` for any other, or (inside) one in which something is missing."""
    tensors, about = read(path)
    if about.get("kind") != kind:
        raise UserError(f"{path} holds no {kind} (it describes {', '.join(map(repr, about)) or 'nothing'}): encode and save one first.")
    try:
        yield tensors, about
    except KeyError as lacking:
        raise UserError(f"{path} is a {kind} in which {lacking} is missing: it was cut, or written by another version.") from None


def _short(wrong: Exception) -> str:
    return str(wrong).splitlines()[0][:120]


# --- what a model is, as JSON -------------------------------------------------------------------------------------


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON: its class name and fields."""
    fields = {f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule) if f.init}  # type: ignore[arg-type]
    shown = {k: describe_schedule(v) if isinstance(v, Schedule) else list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    return {"name": type(schedule).__name__, **shown}


def rebuild_schedule(about: Mapping[str, Any]) -> Schedule:
    """The schedule that `describe_schedule` described. `UserError` for an unknown one."""
    options = {k: rebuild_schedule(v) if isinstance(v, Mapping) else v for k, v in about.items() if k != "name"}
    made = getattr(schedules, str(about.get("name")), None)
    if not (isinstance(made, type) and issubclass(made, Schedule)):
        raise UserError(f"no schedule is called {about.get('name')!r}: this checkpoint is from another version of sdediff.")
    return made(**options)


def describe_model(model: ScoreNet) -> dict[str, Any]:
    """A score network as JSON: its network's name and config, schedule, prediction and condition. `UserError` for a foreign network."""
    names: dict[Any, str] = {made: name for name, made in NETWORKS.items()}
    if type(model.net) not in names:
        raise UserError(
            f"only networks of sdediff.networks ({', '.join(NETWORKS)}) can be saved as a model, not {type(model.net).__name__}: "
            "save its state_dict yourself and wrap it in ScoreNet again."
        )
    about = {
        "format": FORMAT,
        "network": names[type(model.net)],
        "config": model.net.config,  # type: ignore[attr-defined]
        "schedule": describe_schedule(model.schedule),
        "predicts": model.predicts,
        "condition": model.condition,
        "shape": list(model.shape) if model.shape else None,
    }
    return about | {k: v for k, v in _options(model).items() if v != _PLAIN[k]}  # as files of before these options say it


_PLAIN = {"variance": False, "preconditioning": None, "data_std": None}


def _options(model: ScoreNet) -> dict[str, Any]:
    data_std = None if model.preconditioning is None else model.data_std
    return {"variance": model.variance, "preconditioning": model.preconditioning, "data_std": data_std}


def rebuild_model(about: Mapping[str, Any]) -> ScoreNet:
    """A freshly initialised model as described."""
    try:
        net = build(about["network"], about["config"])
        shape = tuple(about["shape"]) if about["shape"] else None
        options = {k: about[k] for k in _PLAIN if k in about}
        return ScoreNet(net, rebuild_schedule(about["schedule"]), about["predicts"], about["condition"], shape=shape, **options)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as wrong:
        raise UserError(f"this checkpoint does not describe a model that this version can build ({wrong}).") from None


def save_model(path: str | Path, model: ScoreNet | LatentDiffusion, about: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights and description (and anything JSON in `about`) to one safetensors file; a latent model with all its parts."""
    if isinstance(model, LatentDiffusion):
        return _save_latent_diffusion(path, model, about or {})
    return write(path, model.net.state_dict(), {**describe_model(model), **(about or {})})  # type: ignore[attr-defined]


def load_model(path: str | Path) -> ScoreNet | LatentDiffusion:
    """The model in a file that `save_model` (or `fit`) wrote, in evaluation mode. `UserError` for any other file."""
    tensors, about = read(path)
    if about.get("kind") == LATENT:
        return _load_latent_diffusion(path, tensors, about)
    if about.get("kind") == AUTOENCODER:
        raise UserError(f"{path} holds an autoencoder alone: load_autoencoder(path), and train a model of its latents.")
    if "network" not in about:
        raise UserError(f"{path} holds no score network (it describes {', '.join(map(repr, about)) or 'nothing'}).")
    model = rebuild_model(about)
    load_weights(model, tensors, path)
    model.net.eval().requires_grad_(False)  # type: ignore[attr-defined]
    return model


def load_weights(model: ScoreNet, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy weights into the model's network. `UserError` naming the first tensors that do not fit."""
    own: dict[str, Tensor] = model.net.state_dict()  # type: ignore[attr-defined]
    check_weights(own, tensors, path)
    with torch.no_grad():
        for k, v in own.items():
            v.copy_(tensors[k])


def check_weights(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """`UserError` unless the file's tensors have the names and shapes of a network's own."""
    wrong = [k for k in own if k not in tensors] + [k for k in tensors if k not in own]
    wrong += [f"{k} {tuple(tensors[k].shape)} for {tuple(v.shape)}" for k, v in own.items() if k in tensors and tensors[k].shape != v.shape]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(f"{path} holds the weights of another architecture (not fitting: {shown}): check the network and its config.")


# --- autoencoders, and models of their latents --------------------------------------------------------------------


def save_autoencoder(path: str | Path, net: Autoencoder, about: Mapping[str, Any] | None = None) -> None:
    """Write an autoencoder (and anything JSON in `about`) to one safetensors file."""
    write(path, net.state_dict(), {"format": FORMAT, "kind": AUTOENCODER, "config": net.config, **(about or {})})


def load_autoencoder(path: str | Path) -> Autoencoder:
    """The autoencoder in a file that `save_autoencoder` (or `fit` of an `AutoencoderTask`) wrote, or that of a latent model."""
    tensors, about = read(path)
    kind = about.get("kind")
    if kind == LATENT:
        return _load_latent_diffusion(path, tensors, about).autoencoder
    if kind != AUTOENCODER:
        raise UserError(f"{path} holds no autoencoder (it describes {', '.join(map(repr, about)) or 'nothing'}).")
    net = _autoencoder(path, about.get("config"))
    _fill(net, tensors, path)
    return net


def _save_latent_diffusion(path: str | Path, model: LatentDiffusion, about: Mapping[str, Any]) -> None:
    if not isinstance(model.inner, ScoreNet):
        raise UserError(f"only a latent model of a ScoreNet can be saved, not one of {type(model.inner).__name__}: save what it wraps.")
    tensors = {f"inner.{k}": v for k, v in model.inner.net.state_dict().items()}  # type: ignore[attr-defined]
    tensors |= {f"autoencoder.{k}": v for k, v in model.autoencoder.state_dict().items()}
    parts = {"inner": describe_model(model.inner), "autoencoder": model.autoencoder.config, "scale": model.scale, "shift": model.shift}
    write(path, tensors, {"format": FORMAT, "kind": LATENT, **parts, **about})


def _load_latent_diffusion(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> LatentDiffusion:
    lacking = [k for k in ("inner", "autoencoder", "scale", "shift") if k not in about]
    if lacking or not isinstance(about["inner"], Mapping):
        raise UserError(f"{path} is a latent model in which {', '.join(lacking) or 'inner'} is missing: it was cut, or changed by hand.")
    inner, net = rebuild_model(about["inner"]), _autoencoder(path, about["autoencoder"])
    strange = [k for k in tensors if not k.startswith(("inner.", "autoencoder."))]
    if strange:
        raise UserError(f"{path} holds tensors that belong to no part of a latent model ({', '.join(strange[:3])}).")
    _fill(inner.net, {k.removeprefix("inner."): v for k, v in tensors.items() if k.startswith("inner.")}, path)  # type: ignore[arg-type]
    _fill(net, {k.removeprefix("autoencoder."): v for k, v in tensors.items() if k.startswith("autoencoder.")}, path)
    try:
        return LatentDiffusion(inner, net, about["scale"], about["shift"])
    except (UserError, TypeError) as wrong:
        raise UserError(f"{path}: its parts do not belong together: {wrong}") from None


def _autoencoder(path: str | Path, config: Any) -> Autoencoder:
    try:
        return Autoencoder(**config)
    except (TypeError, ValueError, RuntimeError, MemoryError) as wrong:
        raise UserError(f"{path} does not describe an autoencoder that this version can build ({wrong}).") from None


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Give the network its weights, in evaluation mode."""
    own = net.state_dict()
    check_weights(own, tensors, path)
    with torch.no_grad():
        for k, v in own.items():
            v.copy_(tensors[k])
    net.eval().requires_grad_(False)


# --- classifiers of noisy data ------------------------------------------------------------------------------------


def describe_classifier(classifier: ClassifierNet) -> dict[str, Any]:
    """A classifier as JSON: its network's config, schedule and condition. `UserError` for a foreign network."""
    net = classifier.net
    if not isinstance(net, NoisyClassifier):
        raise UserError(f"only a sdediff.networks.NoisyClassifier can be saved as a classifier of noisy data, not {type(net).__name__}.")
    schedule = describe_schedule(classifier.schedule)
    return {"format": FORMAT, "kind": CLASSIFIER, "config": net.config, "schedule": schedule, "condition": classifier.condition}


def save_classifier(path: str | Path, classifier: ClassifierNet, about: Mapping[str, Any] | None = None) -> None:
    """Write a classifier of noisy data (and anything JSON in `about`) to one safetensors file."""
    description = describe_classifier(classifier)
    write(path, classifier.net.state_dict(), {**description, **(about or {})})  # type: ignore[attr-defined]


def load_classifier(path: str | Path) -> ClassifierNet:
    """The classifier in a file that `save_classifier` (or `fit` of a `ClassifierTask`) wrote, in evaluation mode."""
    tensors, about = read(path)
    if about.get("kind") != CLASSIFIER:
        raise UserError(f"{path} holds no classifier of noisy data (it describes {', '.join(map(repr, about)) or 'nothing'}).")
    try:
        net = NoisyClassifier(**about["config"])
        classifier = ClassifierNet(net, rebuild_schedule(about["schedule"]), about["condition"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as wrong:
        raise UserError(f"{path} does not describe a classifier that this version can build ({wrong}).") from None
    _fill(net, tensors, path)
    return classifier
