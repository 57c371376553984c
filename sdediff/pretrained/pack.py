"""`python -m sdediff.pretrained.pack NAME RUN`: what a run of `sdediff train` made becomes a network of the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..checkpoint import read, write
from .scores import FOLDER


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
    parser = argparse.ArgumentParser(prog="python -m sdediff.pretrained.pack", description=pack.__doc__)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    path = pack(given.name, given.run)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
