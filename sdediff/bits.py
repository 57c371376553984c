"""Numbers that are added and subtracted without rounding: 64-bit fixed point, and the bits of floats.

A state in unit variance is kept as an integer times 2^-44 (6e-14). Sums of integers are exact, and wrap around at 2^63 without losing
anything, so `y + round(d)` is undone by `- round(d)` to the last bit, if d is the same float both times. What the grid of 2^-44 cannot
hold of a float (its odd last bits, 1e-20, denormals, -0.0, numbers beyond 2^18) is the difference of the bits of two floats, an integer.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = 2.0**44
LIMIT = 2.0**18  # larger numbers are held at the limit
_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.uint8: torch.uint8,
}
DTYPES = tuple(_INTEGERS)


def to_fixed(x: Tensor) -> Tensor:
    """The nearest multiple of 2^-44 as int64; x of any float dtype, finite."""
    return (x.double().clamp(-LIMIT, LIMIT) * SCALE).round().to(torch.int64)


def to_float(fixed: Tensor) -> Tensor:
    """The float64 of a fixed-point number: exact below 512, else rounded."""
    return fixed.double() * (1 / SCALE)


def bits(x: Tensor) -> Tensor:
    """The bits of x as integers of its width."""
    return x.contiguous().view(_INTEGERS[x.dtype])


def missing(x: Tensor, near: Tensor) -> Tensor:
    """What `repaired` needs to make x of `near`: the difference of their bits, zero where they agree. Same shape and dtype."""
    return bits(x) - bits(near)


def repaired(near: Tensor, missing: Tensor) -> Tensor:
    """x of `missing(x, near)`, to the bit."""
    return (bits(near) + missing).view(near.dtype)
