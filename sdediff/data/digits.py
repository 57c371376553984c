"""scikit-learn's handwritten digits: real images small enough for a study on one CPU core."""

import torch

from sdediff.data.dataset import Dataset
from sdediff.data.errors import DataError


def digits() -> Dataset:
    """The 1797 images of 8x8 pixels that come with scikit-learn, x (1797, 1, 8, 8), labels 0..9.

    Pixels are counts 0..16, mapped to [-1, 1] by x/8 - 1 (exact in float32).
    Raises DataError when scikit-learn is not installed.
    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), test part.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise DataError("The digits come with scikit-learn, which is not installed. Install it: pip install 'sdediff[study]'") from e
    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return Dataset(x, torch.as_tensor(labels, dtype=torch.int64), "digits")
