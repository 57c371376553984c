"""Small networks of our own, each a safetensors file in this folder with the recipe that made it beside it.

The file's metadata says everything: `config` (JSON, the constructor's arguments), `accuracy`, `split` and `recipe` (the
command that writes the file again). Only safetensors is read: loading a file never runs code.
"""

import difflib
import json
from pathlib import Path

from safetensors import safe_open

from sdediff.networks.classifier import Classifier

CLASSIFIERS = ("digits", "mnist")

__all__ = ["CLASSIFIERS", "classifier_path", "feature_extractor"]


def feature_extractor(name: str) -> Classifier:
    """The classifier of "digits" (8x8, 32 features) or "mnist" (28x28, 64 features), for images in [-1, 1].

    It is float32 on the CPU, in eval mode, and its weights take no gradient (its input still may). Use `.features(x)`.
    Raises ValueError for another name, FileNotFoundError when the weights are not there.
    """
    if name not in CLASSIFIERS:
        near = difflib.get_close_matches(name, CLASSIFIERS, n=1, cutoff=0)
        raise ValueError(f"There is no feature extractor {name!r}. Expected one of: {', '.join(CLASSIFIERS)}. Did you mean {near[0]!r}?")
    return load_classifier(classifier_path(name))


def classifier_path(name: str) -> Path:
    """Where the weights of that name lie."""
    return Path(__file__).parent / f"classifier_{name}.safetensors"


def load_classifier(path: Path) -> Classifier:
    """A classifier written by `python -m sdediff.pretrained.classifiers`, in eval mode, without gradients."""
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights at {path}. Make them: python -m sdediff.pretrained.classifiers digits (or mnist)")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "config" not in metadata:
            raise ValueError(f"{path} has no `config` in its metadata; expected a file written by this package's recipe.")
        net = Classifier(**json.loads(metadata["config"]))
        net.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return net.eval().requires_grad_(False)
