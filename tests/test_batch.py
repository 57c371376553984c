"""Rows of trees: select and rows are choices row by row, and the root mean square has the same bits in any company."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff import VPLinear
from sdediff.batch import rms, rows, select
from sdediff.combine import linear
from sdediff.schedule import Knot

SCHEDULE = VPLinear()
FIELDS = ("time", "log_alpha", "log_sigma", "f", "g2", "dalpha", "dsigma", "alpha", "lam")


class Pair(NamedTuple):
    left: Any
    right: Any


# --- trees: a shape is drawn, and trees of that shape filled with numbers ----------------------------------------------


LEAVES = (
    "tensor",
    "image",
    "float32",
    "int tensor",
    "array",
    "table",
    "int array",
    "objects",
    "knot",
    "one knot",
    "none",
    "number",
    "text",
)
shapes = st.recursive(
    st.sampled_from(LEAVES), lambda inner: st.lists(inner, max_size=3).map(tuple) | st.builds(Pair, inner, inner), max_leaves=8
)


def fill(shape, n: int, rng: np.random.Generator) -> Any:
    if isinstance(shape, tuple):
        parts = [fill(s, n, rng) for s in shape]
        return Pair(*parts) if isinstance(shape, Pair) else tuple(parts)
    return {
        "tensor": lambda: torch.as_tensor(rng.normal(size=(n, 3))),
        "image": lambda: torch.as_tensor(rng.normal(size=(n, 2, 3, 2))),
        "float32": lambda: torch.as_tensor(rng.normal(size=(n,)), dtype=torch.float32),
        "int tensor": lambda: torch.as_tensor(rng.integers(0, 9, n)),
        "array": lambda: rng.normal(size=n),
        "table": lambda: rng.normal(size=(n, 2)),
        "int array": lambda: rng.integers(0, 9, n),
        "objects": lambda: np.array([f"why {i}" for i in rng.integers(0, 9, n)], object),
        "knot": lambda: SCHEDULE.knot(rng.uniform(0.01, 1.0, n)),
        "one knot": lambda: SCHEDULE.knot(0.3),
        "none": lambda: None,
        "number": lambda: 7,
        "text": lambda: "same",
    }[shape]()


def leaves(tree: Any) -> list[np.ndarray | Any]:
    """Everything in the tree, arrays with one row a sample as numpy arrays."""
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    if isinstance(tree, Knot) and isinstance(tree.time, np.ndarray):
        return [np.array(getattr(tree, name)) for name in FIELDS]
    return [tree.numpy().copy() if isinstance(tree, torch.Tensor) else tree.copy() if isinstance(tree, np.ndarray) else tree]


def same(a: Any, b: Any) -> bool:
    return all(
        (x.dtype == y.dtype and np.array_equal(x, y)) if isinstance(x, np.ndarray) else x == y
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def structure(tree: Any) -> Any:
    return (type(tree), *map(structure, tree)) if isinstance(tree, tuple) else type(tree)


cases = st.tuples(shapes, st.integers(1, 6), st.integers(0, 2**32 - 1))


@settings(max_examples=80, deadline=None)
@given(cases, st.data())
def test_select_chooses_row_by_row(case, data):
    shape, n, seed = case
    rng = np.random.default_rng(seed)
    new, old = fill(shape, n, rng), fill(shape, n, rng)
    before = leaves(new), leaves(old)
    accept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    chosen = select(accept, new, old)
    assert structure(chosen) == structure(new)
    for got, a, b in zip(leaves(chosen), *before, strict=True):
        if isinstance(got, np.ndarray):
            assert got.dtype == a.dtype
            assert all(np.array_equal(got[i], (a if accept[i] else b)[i]) for i in range(n))
        else:
            assert got == a
    for kept, was in zip((new, old), before, strict=True):
        assert same(tuple(leaves(kept)), tuple(was))
    assert select(True, new, old) is new
    assert select(False, new, old) is old
    assert select(np.ones(n, bool), new, old) is new
    assert select(np.zeros(n, bool), new, old) is old


@settings(max_examples=80, deadline=None)
@given(cases, st.data())
def test_rows_of_rows_are_rows(case, data):
    shape, n, seed = case
    tree = fill(shape, n, np.random.default_rng(seed))
    before = leaves(tree)
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=8)), dtype=np.int64)
    part = rows(index, tree)
    assert structure(part) == structure(tree)
    for got, was in zip(leaves(part), before, strict=True):
        assert np.array_equal(got, was[index]) if isinstance(got, np.ndarray) else got == was
    if len(index):
        again = np.array(data.draw(st.lists(st.integers(0, len(index) - 1), max_size=8)), dtype=np.int64)
        assert same(rows(again, part), rows(index[again], tree))
    assert same(rows(np.arange(n), tree), tree)
    assert same(tuple(leaves(tree)), tuple(before))


@settings(max_examples=40, deadline=None)
@given(cases, st.data())
def test_choosing_and_taking_rows_commute(case, data):
    shape, n, seed = case
    rng = np.random.default_rng(seed)
    new, old = fill(shape, n, rng), fill(shape, n, rng)
    accept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8)), dtype=np.int64)
    assert same(rows(index, select(accept, new, old)), select(accept[index], rows(index, new), rows(index, old)))


def test_what_does_not_change_is_not_copied():
    x, y = torch.ones(4, 2), torch.zeros(4, 2)
    a, b = select(np.array([True, False, True, False]), (x, y), (x, x))
    assert a is x
    assert torch.equal(b[:, 0], torch.tensor([0.0, 1.0, 0.0, 1.0]))


def test_a_rejected_nan_leaves_no_trace():
    """`where` and not arithmetic: NaN times zero would be NaN."""
    bad, good = torch.full((3, 2), torch.nan), torch.ones(3, 2)
    kept = select(np.array([False, True, False]), (bad, np.full(3, np.nan)), (good, np.ones(3)))
    assert torch.isfinite(kept[0][[0, 2]]).all()
    assert np.isfinite(kept[1][[0, 2]]).all()


# --- the root mean square ---------------------------------------------------------------------------------------------


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers in another order in memory."""
    if layout == "across":
        return x.T.contiguous().T
    return torch.stack([x, x], -1)[..., 0] if layout == "apart" else x


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 7, 33, 64, 100, 1023, 4099]),
    st.sampled_from(["plain", "across", "apart"]),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 2**31),
    st.data(),
)
def test_rms_has_the_same_bits_in_any_company(n, d, layout, dtype, seed, data):
    plain = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x = laid_out(plain, layout)
    before, together = x.clone(), rms(x)
    assert together.dtype == np.float64
    assert np.array_equal(together, rms(plain))
    order = np.array(data.draw(st.permutations(range(n))))
    cut = data.draw(st.integers(0, n))
    for part in (order[:cut], order[cut:], order[:1], order[-2:]):
        if len(part):
            assert np.array_equal(rms(x[torch.as_tensor(part)]), together[part])
    assert torch.equal(x, before)
    for i in (0, n - 1):
        exact = math.sqrt(math.fsum(float(v) ** 2 for v in plain[i].tolist()) / d)
        assert together[i] == pytest.approx(exact, rel=1e-14)


def test_rms_of_images_scalars_and_sums():
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert np.array_equal(rms(x), rms(x.flatten(1)))
    assert np.array_equal(rms(x.to(memory_format=torch.channels_last)), rms(x))
    assert np.array_equal(rms(linear(x, 2.0) - x), rms(x))
    assert np.allclose(rms(linear(x, np.arange(5.0))), np.arange(5) * rms(x), rtol=1e-15)
    assert np.array_equal(rms(x[:, 0, 0, 0]), x[:, 0, 0, 0].abs().numpy())
    large = torch.randn(3, 1_000_003)
    together = rms(large)
    assert [rms(large[i : i + 1])[0] for i in range(3)] == together.tolist()
    assert rms(x.requires_grad_()).dtype == np.float64  # detached


def test_rms_says_nan_of_the_sample_only():
    x = torch.ones(3, 4)
    x[1, 2] = torch.nan
    x[2, 0] = torch.inf
    assert np.array_equal(rms(x), [1.0, np.nan, np.inf], equal_nan=True)
