"""Data sets as values: a tensor of samples, maybe labels, and a name.

Images are float32 (n, c, h, w) in [-1, 1], the range every network here is trained on; the 2-D toys are float32 (n, 2)
with about unit standard deviation. Nothing is downloaded: the digits come with scikit-learn, idx files (MNIST,
Fashion-MNIST, ...) are read from a folder of yours, the toys are drawn from a seed.
"""

from sdediff.data.dataset import Dataset
from sdediff.data.digits import digits
from sdediff.data.errors import DataError
from sdediff.data.folder import data_folder
from sdediff.data.idx import idx_images, mnist, read_idx
from sdediff.data.images import Images, read_images
from sdediff.data.toys import TOYS, toy

__all__ = ["TOYS", "DataError", "Dataset", "Images", "data_folder", "digits", "idx_images", "mnist", "read_idx", "read_images", "toy"]
