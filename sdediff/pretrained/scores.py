"""Score networks of our own: `load("mnist")`. Each was made by `sdediff train --config NAME --out RUN` and put here by
`python -m sdediff.pretrained.pack NAME RUN`; its training log lies beside it.

`digits`: 8x8, a perceptron of 0.57 M parameters; `digits-classes`: the same with classes; `mnist`: 28x28, a U-Net of 1.15 M parameters
with classes, for use with and without guidance, stored in float16; `latent`: latent diffusion of the digits. All predict v from lam, on
VPLinear, and are smooth in time.
"""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import load_model
from ..latent_diffusion import LatentDiffusion
from ..names import UserError, nearest
from ..score import ScoreNet

FOLDER = Path(__file__).parent


def model_names() -> tuple[str, ...]:
    """The networks in the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors") if not path.stem.startswith("classifier_")))


def model_path(name: str | Path) -> Path:
    """The file of a network in the package, or a path as it is. `UserError` for a name that does not exist."""
    if isinstance(name, Path) or name.endswith(".safetensors") or "/" in name:
        return Path(name)
    names = model_names()
    if name not in names:
        raise UserError(f"there is no network {name!r}.{nearest(name, names)} There are: {', '.join(names)}; or give the path of a file.")
    return FOLDER / f"{name}.safetensors"


def load(name: str | Path) -> ScoreNet | LatentDiffusion:
    """The network of this name in the package, or in a file that `sdediff train` wrote, in evaluation mode.

    Raises `UserError` for a name that does not exist, or a file that holds no model.
    """
    return load_model(model_path(name))


def digits_path() -> Path:
    """The committed digits network: a file for `load_model`."""
    return model_path("digits")
