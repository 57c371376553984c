"""What a study studies: a model, the real images, and the features in which they are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import load_model
from ..data import data_folder, digits, mnist
from ..interop.hot_vs_cold import load_hot_vs_cold
from ..latent_diffusion import data_shape, to_data
from ..metrics import Moments, frechet_distance, moments, noise_floor, sliced_wasserstein
from ..names import UserError
from ..prediction import Model
from ..pretrained import feature_extractor


@dataclass(frozen=True)
class Problem:
    """A model and what its samples are judged by.

    real: images in the model's units (N, c, h, w); scale: images in [-1, 1] are scale times the model's; features, labels: of images
    in [-1, 1], by a small classifier of ours. All is judged in images, also where the model is one of an autoencoder's latents.
    """

    name: str
    model: Model
    real: Tensor
    scale: float
    features: Callable[[Tensor], Tensor]
    labels: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of the model's states."""
        return tuple(self.model.shape or self.real.shape[1:])

    def images(self, x: Tensor) -> Tensor:
        """The images of states (n, ...), in the model's units: themselves, or what an autoencoder makes of them."""
        return to_data(self.model, x)

    def features_of(self, x: Tensor) -> Tensor:
        """Classifier features (n, d) of images (n, ...) in the model's units, a thousand at a time."""
        return torch.cat([self.features(part * self.scale) for part in x.split(1000)])

    def labels_of(self, x: Tensor) -> Tensor:
        """The classifier's label (n,) of each image in the model's units."""
        return torch.cat([self.labels(part * self.scale) for part in x.split(1000)])


@dataclass(frozen=True)
class Judge:
    """The real images' statistics, computed once, and the distances of samples to them."""

    problem: Problem
    real: Moments
    real_pixels: Moments
    floor: tuple[float, float]
    floor_pixels: tuple[float, float]

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, samples: int) -> Judge:
        """The judge of a problem. The floor is the distance between random halves of the real images, each of at most `samples`."""
        features, pixels = problem.features_of(problem.real), problem.real.flatten(1) * problem.scale
        half = slice(0, 2 * samples)
        return Judge(problem, moments(features), moments(pixels), noise_floor(features[half]), noise_floor(pixels[half]))

    @torch.no_grad()
    def distances(self, x: Tensor) -> dict[str, float]:
        """Frechet distances in classifier features and in pixels, and the sliced Wasserstein distance in pixels, of samples (n, ...)."""
        real = self.problem.real
        return {
            "frechet": frechet_distance(self.problem.features_of(x), self.real),
            "frechet_pixels": frechet_distance(x.flatten(1) * self.problem.scale, self.real_pixels),
            "sliced_wasserstein": sliced_wasserstein(x * self.problem.scale, real[: 4 * len(x)] * self.problem.scale),
        }


def digits_problem(checkpoint: str | Path) -> Problem:
    """scikit-learn's 8x8 digits and a network trained on them."""
    data, classifier = digits(), feature_extractor("digits")
    model = load_model(checkpoint)
    if data_shape(model) != tuple(data.x.shape[1:]):
        raise UserError(f"{checkpoint} makes samples of shape {data_shape(model)}, not digits of shape {tuple(data.x.shape[1:])}.")
    return Problem("digits", model, data.x, 1.0, classifier.features, lambda x: classifier(x).argmax(1))


def mnist_problem(checkpoint: str | Path | None = None, references: int = 10_000) -> Problem:
    """MNIST and, unless a checkpoint is given, the third-party network of the data folder (`SDEDIFF_DATA`)."""
    folder = data_folder()
    if folder is None:
        raise UserError("the MNIST study needs a folder with mnist/ and weights/: export SDEDIFF_DATA=/path/to/it.")
    if checkpoint is None:
        model, scale = load_hot_vs_cold(folder / "weights" / "yichizz_ddpm_mnist_starter.pth"), 2.0
    else:
        model, scale = load_model(checkpoint), 1.0
    data, classifier = mnist(folder / "mnist", "train"), feature_extractor("mnist")
    # the official split is not random: references are drawn from the training images
    chosen = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))[:references]
    return Problem("mnist", model, data.x[chosen] / scale, scale, classifier.features, lambda x: classifier(x).argmax(1))
