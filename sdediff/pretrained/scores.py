"""Score networks of our own: `load("mnist")`. Each was made by `sdediff train --config NAME --out RUN` and put here by
`python -m sdediff.pretrained.scores NAME RUN`; its training log lies beside it.

`digits`: 8x8, a perceptron of 0.57 M parameters; `digits-classes`: the same with classes; `mnist`: 28x28, a U-Net of 1.15 M parameters
with classes, for use with and without guidance, stored in float16; `latent`: latent diffusion of the digits. All predict v from lam, on
VPLinear, and are smooth in time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..checkpoint import load_model, read, write
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


def pack(name: str, run: Path, most: float = 4e6) -> Path:
    """Put what a run of `sdediff train` made into the package, in float16 if it is larger than `most` bytes, and its log beside it."""
    found = next(path for path in (run / "latent.safetensors", run / "model.safetensors") if path.exists())
    tensors, about = read(found)
    if sum(t.numel() * t.element_size() for t in tensors.values()) > most:
        tensors = {k: t.half() if t.dtype == torch.float32 else t for k, t in tensors.items()}
    target = FOLDER / f"{name}.safetensors"
    write(target, tensors, about)
    log = (run / "log.csv").read_text()
    target.with_suffix(".log").write_text(f"# sdediff train --config {name}\n{log}")
    return target


def main() -> None:
    """The command line of `pack`."""
    parser = argparse.ArgumentParser(prog="python -m sdediff.pretrained.scores", description=pack.__doc__)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    path = pack(given.name, given.run)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
