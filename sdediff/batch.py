"""What belongs to each sample of a batch: choose it row by row, take some rows of it.

A tree is a state and all that travels with it: tuples and NamedTuples of tensors (B, ...), arrays (B, ...), and knots that hold arrays.
Whatever belongs to the whole batch (None, numbers, strings, knots of one time) passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .combine import Linear
from .names import UserError
from .schedule import Knot


def select(accept: Any, new: Any, old: Any) -> Any:
    """`new` where accept is true, `old` elsewhere. accept: a bool for the whole batch, or a bool array (B,), one a sample."""
    if isinstance(accept, bool | np.bool_) or accept.all():
        return new if np.all(accept) else old
    return _select(accept, new, old) if accept.any() else old


def _select(accept: np.ndarray, new: Any, old: Any) -> Any:
    if new is old:
        return new
    if isinstance(new, Tensor):
        mask = torch.as_tensor(accept, device=new.device).reshape(-1, *[1] * (new.ndim - 1))
        return torch.where(mask, new, old)
    if isinstance(new, np.ndarray):
        return np.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    if isinstance(new, Knot):
        return _knot(new, lambda name: np.where(accept, getattr(new, name), getattr(old, name)))
    if isinstance(new, tuple):
        return _tuple(new, [_select(accept, a, b) for a, b in zip(new, old, strict=True)])
    return new


def rows(index: np.ndarray, tree: Any) -> Any:
    """The rows `index` (an int64 array) of everything in the tree."""
    if isinstance(tree, Tensor):
        return tree[torch.as_tensor(index, device=tree.device)]
    if isinstance(tree, np.ndarray):
        return tree[index]
    if isinstance(tree, Knot):
        return _knot(tree, lambda name: getattr(tree, name)[index]) if isinstance(tree.time, np.ndarray) else tree
    if isinstance(tree, tuple):
        return _tuple(tree, [rows(index, part) for part in tree])
    return tree


def check_count(labels: Tensor, n: int) -> None:
    """`UserError` unless there is one label for each of n samples."""
    if len(labels) != n:
        raise UserError(f"there are {len(labels)} labels for {n} samples: give as many labels as samples, one each.")


def labels_of(labels: Tensor, index: Tensor) -> Tensor:
    """The labels of the samples `index`. `UserError` where one of them has none."""
    last = int(index.max()) if index.numel() else -1
    if last >= len(labels):
        raise UserError(f"there are {len(labels)} labels for {last + 1} samples or more: give as many labels as samples, one each.")
    return labels[index.to(labels.device)]


def placed(index: np.ndarray, n: int, tree: Any) -> Any:
    """A tree of n rows in which the given ones stand at these places (int64), and the first of them everywhere else."""
    place = np.zeros(n, np.int64)
    place[index] = np.arange(len(index))
    return rows(place, tree)


def merge(parts: Sequence[tuple[np.ndarray, Any]]) -> Any:
    """One tree of rows that left a batch in parts, each with the places (int64) of its rows: `rows` undone."""
    index, trees = np.concatenate([i for i, _ in parts]), [tree for _, tree in parts]
    order = np.argsort(index)
    return _merged(trees, order)


def _merged(trees: list[Any], order: np.ndarray) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)[torch.as_tensor(order, device=first.device)]
    if isinstance(first, np.ndarray):
        return np.concatenate(trees)[order]
    if isinstance(first, Knot):
        return _knot(first, lambda name: np.concatenate([getattr(t, name) for t in trees])[order]) if np.ndim(first.time) else first
    if isinstance(first, tuple):
        return _tuple(first, [_merged(list(part), order) for part in zip(*trees, strict=True)])
    return first


def rms(x: Tensor | Linear) -> np.ndarray:
    """The root mean square over the components of each sample, float64 (B,), to the same bits in any batch (torch sums a batch of one
    in another order than a larger one, and rows that lie across memory in yet another: so each is summed as one of two, along memory).
    """
    x = x.tensor() if isinstance(x, Linear) else x
    square = x.detach()[..., None].flatten(1).double().square().contiguous()
    if len(square) == 1:
        square = square.expand(2, -1).contiguous()
    return np.sqrt(square.mean(1)[: len(x)].cpu().numpy())


def total(x: Tensor) -> Tensor:
    """The sum over the components of each sample, (B,)."""
    return x.flatten(1).sum(1)


def mean_with_error(value: Tensor, error: Tensor) -> tuple[float, float]:
    """The mean of value (B,) and its standard error: by the scatter of the samples, of a single one its own, `error` (B,)."""
    n = len(value)
    return float(value.mean()), float(value.std() / n**0.5 if n > 1 else error[0])


def _tuple(like: tuple, parts: list) -> tuple:
    return tuple(parts) if type(like) is tuple else type(like)(*parts)  # a NamedTuple takes its fields one by one


def _knot(like: Knot, part: Callable[[str], Any]) -> Knot:
    return Knot(*(part(name) for name in ("time", "log_alpha", "log_sigma", "f", "g2", "dalpha", "dsigma")), schedule=like.schedule)
