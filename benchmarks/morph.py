"""Digits that become one another: real MNIST images encoded, and the latents between them, along a great circle, decoded.

    python benchmarks/morph.py        # writes docs/img/morph.png and docs/img/starts.png; needs the third-party network in SDEDIFF_DATA

morph: a row is one pair at 10, 20 and 50 steps, encoded exactly (noised start), decoded from the one tensor between; first and last are
the images themselves, decoded from the whole latent. starts: midpoints from clean and from noised latents, slerp and straight.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from inversion import SHARED, mnist_images, mnist_network

from sdediff import UserError, decode, encode, interpolate
from sdediff.data import idx_images

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "img"
PAIRS = ((5, 0), (3, 7), (9, 2))  # digits: the first image of each in the training set
STEPS = (10, 20, 50)
POINTS = 11


def ends(labels_of: tuple[int, ...]) -> torch.Tensor:
    """The first training image of each of these digits."""
    data = idx_images(SHARED / "mnist" / "train-images-idx3-ubyte.gz", SHARED / "mnist" / "train-labels-idx1-ubyte.gz")
    assert data.labels is not None
    first = [int((data.labels == d).nonzero()[0]) for d in labels_of]
    return data.x[first] / 2


def rows(model, steps: int) -> torch.Tensor:
    """(pairs, points, 1, 28, 28)."""
    a, b = (ends(tuple(p[i] for p in PAIRS)) for i in (0, 1))
    one, two = (encode(model, x, steps=steps, start="noised", seed=i) for i, x in enumerate((a, b)))
    between = decode(model, interpolate((one, two), POINTS), check=False).unflatten(0, (POINTS, len(PAIRS)))
    between[0], between[-1] = decode(model, one), decode(model, two)
    assert torch.equal(between[0], a)
    assert torch.equal(between[-1], b)
    return between.transpose(0, 1)


def sheet(lines: list[tuple[str, torch.Tensor]], path: Path, title: str) -> None:
    """Each line a label and images (n, 1, h, w) in [-0.5, 0.5]."""
    n = max(len(images) for _, images in lines)
    width, height = 0.72 * n + 1.2, 0.75 * len(lines) + 0.35
    figure, axes = plt.subplots(len(lines), n, figsize=(width, height), squeeze=False)
    for line, (label, images) in zip(axes, lines, strict=True):
        for ax in line:
            ax.axis("off")
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image[0], cmap="gray", vmin=-0.5, vmax=0.5, interpolation="nearest")
        line[0].text(-0.25, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10, y=1 - 0.05 / height, va="top")
    figure.subplots_adjust(left=1.2 / width, right=0.997, top=1 - 0.32 / height, bottom=0.01, wspace=0.05, hspace=0.08)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    try:
        model = mnist_network()
    except (FileNotFoundError, UserError) as missing:
        sys.exit(str(missing))
    found = {steps: rows(model, steps) for steps in STEPS}
    lines = [(f"{steps} steps", found[steps][pair]) for pair in range(len(PAIRS)) for steps in STEPS]
    sheet(lines, IMAGES / "morph.png", "slerp between encoded images; both ends come back to the bit")
    images, lines = mnist_images(22), []
    for start in ("clean", "noised"):
        latent = encode(model, images, steps=50, start=start)
        for kind in ("slerp", "linear"):
            middle = interpolate((latent.x[:11], latent.x[11:]), 3, kind)[1]
            lines.append((f"{start}, {kind}", decode(model, latent.of(middle), check=False)))
    sheet(lines, IMAGES / "starts.png", "midpoints of latents")


if __name__ == "__main__":
    main()
