"""What every reader returns."""

from typing import NamedTuple

from torch import Tensor


class Dataset(NamedTuple):
    """Samples in memory.

    x: float32, (n, c, h, w) in [-1, 1] for images, (n, 2) for 2-D toys.
    labels: int64 (n,), the class of each sample, or None where there are none.
    name: a short name for tables and file names.
    """

    x: Tensor
    labels: Tensor | None
    name: str
