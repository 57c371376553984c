"""NumPy's .npy and .npz, never pickles: what both readers of arrays ask of such a file."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from sdediff.data.errors import DAMAGED, DataError, first_line


@contextmanager
def numpy_file(path: Path, mapped: bool = False) -> Iterator[Any]:
    """The array of an .npy file, left on disk where mapped, or the open .npz file. Raises DataError for pickles and damaged files."""
    try:
        found = np.load(path, mmap_mode="r" if mapped and path.suffix.lower() == ".npy" else None, allow_pickle=False)
        with found if isinstance(found, NpzFile) else nullcontext():
            yield found
    except DataError:
        raise
    except DAMAGED as e:
        if "pickle" in str(e) or "Python objects" in str(e):
            raise DataError(f"{path} holds pickled objects or no array: pickles are never loaded, since loading runs code.") from e
        raise DataError(f"{path} cannot be read as NumPy's {path.suffix} ({first_line(e)}). Save it again with np.save or np.savez.") from e


def the_one(path: Path, found: list[str], wanted: Iterable[str]) -> str:
    """The name of the array of images in an .npz: the only one there is, or the first of those wanted."""
    wanted = tuple(wanted)
    chosen = found if len(found) == 1 else [name for name in wanted if name in found]
    if not chosen:
        raise DataError(f"{path} holds the arrays {', '.join(found) or '(none)'}. Expected one array, or one named {' or '.join(wanted)}.")
    return chosen[0]
