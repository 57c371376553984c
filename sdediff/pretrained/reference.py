"""The recipe of the reference statistics: `python -m sdediff.pretrained.reference`.

Mean and covariance (float64) of the real images' features in our classifiers: of all 1797 digits, and of the 60000 training images of
MNIST (the official test images are another distribution: their distance from the training images is twice that of as many held-out ones).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..data import DataError, open_source
from ..metrics.frechet import Moments, moments
from . import CLASSIFIERS, feature_extractor


def reference_path(name: str) -> Path:
    """Where the statistics of that name lie."""
    return Path(__file__).parent / "references" / f"{name}.safetensors"


def reference(name: str) -> Moments:
    """The statistics of the real "digits" or "mnist" in the features of `feature_extractor(name)`, for `frechet_distance`.

    Raises ValueError for another name.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"There are no reference statistics of {name!r}. Expected one of: {', '.join(CLASSIFIERS)}.")
    found = load_file(reference_path(name))
    return Moments(found["mean"], found["cov"], int(found["n"]))


@torch.no_grad()
def measured(name: str) -> Moments:
    """The statistics, measured. Raises DataError when the data are missing."""
    source, net = open_source(name), feature_extractor(name)
    parts = [net.features(source.batch(rows)[0]) for rows in torch.arange(len(source)).split(1000)]
    return moments(torch.cat(parts))


def main() -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m sdediff.pretrained.reference", description=__doc__)
    parser.add_argument("names", nargs="*", help="digits, mnist; default: both")
    for name in parser.parse_args().names or CLASSIFIERS:
        try:
            found = measured(name)
        except DataError as e:
            parser.exit(1, f"{e}\n")
        path = reference_path(name)
        path.parent.mkdir(exist_ok=True)
        save_file({"mean": found.mean, "cov": found.cov, "n": torch.tensor(found.n)}, path)
        print(f"wrote {path}: {found.n} images, {len(found.mean)} features")


if __name__ == "__main__":
    main()
