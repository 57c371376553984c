"""The one error of `sdediff.data`: a file, a name or an argument that does not describe a data set. And its warning."""

import struct
import zipfile
import zlib

from PIL import Image, UnidentifiedImageError

DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)  # what PIL, NumPy and zipfile raise on files that are not whole


class DataError(ValueError):
    """Data could not be read or made. The message says what was found, what was expected and what to do."""


class DataWarning(UserWarning):
    """Something was left out, as was asked. The message says how much of it, and the first names."""


def first_line(wrong: BaseException) -> str:
    """What another library says is wrong, short enough for the end of our own sentence."""
    if isinstance(wrong, UnidentifiedImageError):
        return "it is none"
    return (str(wrong).splitlines() or [type(wrong).__name__])[0][:120]


def some(names: list[str], most: int = 3) -> str:
    """The first names of a list, and that there are more."""
    return ", ".join(names[:most]) + " ..." * (len(names) > most)
