"""The one fused linear combination `sum_i c_i x_i`.

Every stage, history entry and noise of every solver enters the state through `combine`. A `Linear` is such a sum that has not been
computed yet: formulas are written as the paper writes them, `s.alpha * p.x0 + s.sigma * p.eps`, coefficients of the same tensor are
added in float64, and memory is touched once per distinct tensor.
A coefficient is a Python float, a float64 array (one number a sample, for per-sample solves), or a 0-d float64 tensor (learned solvers).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Coefficient = Any  # float | float64 array (B,) | 0-d float64 tensor


class Linear:
    """A sum `sum_i c_i x_i` of tensors of one shape, not computed yet. `.tensor()` computes it; torch functions do so by themselves."""

    __slots__ = ("terms",)
    terms: tuple[tuple[Coefficient, Tensor], ...]

    def __init__(self, terms: tuple[tuple[Coefficient, Tensor], ...]):
        self.terms = terms

    def tensor(self) -> Tensor:
        """The sum, as a new tensor of the dtype, device and shape of its terms."""
        return combine(self)

    def __add__(self, other: Linear | Tensor) -> Linear:
        return Linear(self.terms + (other.terms if isinstance(other, Linear) else ((1.0, other),)))

    __radd__ = __add__

    def __sub__(self, other: Linear | Tensor) -> Linear:
        return self + (other if isinstance(other, Linear) else Linear(((1.0, other),))) * -1.0

    def __rsub__(self, other: Tensor) -> Linear:
        return self * -1.0 + other

    def __mul__(self, c: Coefficient) -> Linear:
        return Linear(tuple([(c * k, x) for k, x in self.terms]))

    __rmul__ = __mul__

    def __truediv__(self, c: Coefficient) -> Linear:
        return Linear(tuple([(k / c, x) for k, x in self.terms]))

    def __neg__(self) -> Linear:
        return self * -1.0

    __array_ufunc__ = None  # a float64 array of coefficients times a Linear is a Linear, not an array of objects

    def __repr__(self) -> str:
        shown = " + ".join(f"{c} * tensor{tuple(x.shape)}" for c, x in self.terms)
        return f"Linear({shown})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if any(isinstance(a, Linear) for a in args) and function in _ARITHMETIC:
            return NotImplemented  # tensor + Linear: let Python call the reflected method above
        return function(*tree_map(_computed, args), **tree_map(_computed, kwargs or {}))


def _computed(a: Any) -> Any:
    return a.tensor() if isinstance(a, Linear) else a


_ARITHMETIC = {torch.Tensor.__add__, torch.Tensor.add, torch.Tensor.__radd__, torch.Tensor.__sub__, torch.Tensor.sub}


def linear(x: Tensor, c: Coefficient = 1.0) -> Linear:
    """`c x` as the beginning of a sum."""
    return Linear(((c, x),))


def combine(terms: Linear | Iterable[tuple[Coefficient, Tensor]]) -> Tensor:
    """`sum_i c_i x_i` as a new tensor: one pass for each distinct tensor, coefficients merged in float64 first.

    Terms whose coefficient is exactly 0.0 are left out (so `0 * inf` never arises). Shape, dtype and device are those of the tensors.
    """
    pairs = terms.terms if isinstance(terms, Linear) else tuple(terms)
    merged: dict[int, tuple[Coefficient, Tensor]] = {}
    for c, x in pairs:
        key = id(x)
        merged[key] = (merged[key][0] + c, x) if key in merged else (c, x)
    out: Tensor | None = None
    for c, x in merged.values():
        if isinstance(c, float | int):  # the path of every fixed grid: a Python number
            if c == 0.0:
                continue
            out = torch.mul(x, c) if out is None else out.add_(x, alpha=c)
        else:
            if isinstance(c, np.ndarray) and not c.any():
                continue
            part = spread(c, x) * x
            if isinstance(c, np.ndarray) and not c.all():
                part = torch.where(spread(c, x) == 0, 0.0, part)
            out = part if out is None else out + part
    return torch.zeros_like(pairs[0][1]) if out is None else out


def spread(c: Coefficient, x: Tensor) -> Any:
    """The coefficient in a form that multiplies `x` (B, ...): a number, a 0-d tensor, or a tensor (B, 1, ..., 1) of x's dtype."""
    if isinstance(c, np.ndarray) and c.ndim:
        return torch.as_tensor(c, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
    return c if isinstance(c, Tensor) else float(c)
