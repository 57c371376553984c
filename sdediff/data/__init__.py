"""Data sets: what can be trained on, by name or path, and the readers of single formats.

Images are float32 (n, c, h, w) in [-1, 1], the range every network here is trained on; the 2-D toys are float32 (n, 2)
with about unit standard deviation. Nothing is downloaded: the digits come with scikit-learn, everything else is read from
files of yours, the toys are drawn from a seed. `open_source` answers with a `Source`, whose batches `batches` reads.
"""

from sdediff.data.batches import batches
from sdediff.data.cifar import cifar
from sdediff.data.dataset import Dataset
from sdediff.data.digits import digits
from sdediff.data.errors import DataError, DataWarning
from sdediff.data.folder import data_folder
from sdediff.data.idx import idx_images, mnist, read_idx
from sdediff.data.images import Images, read_images
from sdediff.data.opening import NAMES, describe, open_source
from sdediff.data.pictures import Pictures, pictures
from sdediff.data.source import InMemory, Source, flip, held_out, held_out_rows, part
from sdediff.data.toys import TOYS, toy

__all__ = [
    "NAMES",
    "TOYS",
    "DataError",
    "DataWarning",
    "Dataset",
    "Images",
    "InMemory",
    "Pictures",
    "Source",
    "batches",
    "cifar",
    "data_folder",
    "describe",
    "digits",
    "flip",
    "held_out",
    "held_out_rows",
    "idx_images",
    "mnist",
    "open_source",
    "part",
    "pictures",
    "read_idx",
    "read_images",
    "toy",
]
