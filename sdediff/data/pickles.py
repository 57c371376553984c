"""The pickles of CIFAR read without running anything: numbers, texts, lists, dicts and NumPy arrays of integers, and nothing else.

A pickle is a program; what it may call is what `find_class` hands out. Here that is five names, and even these are not NumPy's functions
but stand-ins written below, so the worst that a file can do is to be refused.
"""

import pickle
from typing import Any, BinaryIO

import numpy as np

from sdediff.data.errors import DAMAGED, DataError, first_line

_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


def read_pickle(file: BinaryIO, name: str) -> Any:
    """What a pickle holds. Raises DataError when it asks for anything but plain values and arrays of integers, or is damaged."""
    try:
        return _Plain(file, encoding="bytes").load()
    except DataError as e:
        raise DataError(f"{name}: {e}") from e
    except (pickle.UnpicklingError, AttributeError, ImportError, RecursionError, *DAMAGED) as e:
        raise DataError(f"{name} cannot be read as a pickle ({first_line(e)}). Expected the published file: copy it again.") from e


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if found is None:
            raise DataError(
                f"the pickle asks for {module}.{name}: refused, nothing was run. Expected only numbers, texts, lists and arrays."
            )
        return found


class _Sealed:
    """A stand-in. A pickle can set no attribute of it, nor of its class."""

    def __setstate__(self, state: Any) -> None:
        raise DataError("the pickle builds something that is no array: refused.")


class _Ndarray(_Sealed):
    """The name numpy.ndarray, which is only handed on."""

    def __init__(self) -> None:
        raise DataError("the pickle builds something that is no array: refused.")


class _Encoded(_Sealed):
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes for Python 2."""

    def __new__(cls, text: Any, coding: Any) -> Any:
        if not isinstance(text, str) or coding not in ("latin1", b"latin1"):
            raise DataError("the pickle encodes a text in another way than latin1: refused.")
        return text.encode("latin1")


class _Dtype(_Sealed):
    """numpy.dtype of an integer."""

    def __init__(self, code: Any, *_: Any):
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if text not in _INTEGERS:
            raise DataError(f"the pickle holds an array of {code!r}. Expected integers.")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise DataError(f"the pickle holds an array in the byte order {order!r}. Expected < or >.")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(_Sealed):
    """numpy.core.multiarray._reconstruct: an array that is empty until its state comes."""

    def __init__(self, *_: Any):
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        flat = np.frombuffer(raw, dtype.dtype)
        self.array = flat.reshape([int(side) for side in shape], order="F" if fortran else "C")


class _Buffer(_Array):
    """numpy.core.numeric._frombuffer: an array of the newer protocol, made in one call."""

    def __init__(self, raw: Any, dtype: Any, shape: Any, order: Any):
        self.array = np.frombuffer(raw, dtype.dtype).reshape([int(side) for side in shape], order="F" if order == "F" else "C")


_ALLOWED = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Ndarray,
    "numpy.core.numeric._frombuffer": _Buffer,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _Encoded,
}


def array_of(value: Any) -> np.ndarray | None:
    """The array that stands in a pickle, or of a list of whole numbers; None where it is neither."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, list) and all(type(v) is int for v in value):
        try:
            return np.array(value, np.int64)
        except OverflowError:
            return None
    return None
