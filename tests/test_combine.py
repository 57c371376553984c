"""The fused sum and the readings of a prediction: they are plain arithmetic, done once for each tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdediff import EDM, FlowMatching, Knot, Linear, ModelError, Prediction, UserError, VPLinear, combine, linear
from sdediff.prediction import KINDS, Counted

calm = settings(max_examples=60, deadline=None)
numbers = st.floats(-10, 10, allow_subnormal=False)
B = 3


def tensors(n, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(n, *(shape or (B, 2)), generator=generator, dtype=dtype))


# --- Linear is the plain arithmetic -----------------------------------------------------------------------------------

coefficients = st.one_of(numbers, st.lists(numbers, min_size=B, max_size=B).map(np.array))
WAYS = {
    "L * c": lambda L, c, x, cx: L * c,
    "c * L": lambda L, c, x, cx: c * L,
    "L / c": lambda L, c, x, cx: L / (1 + abs(c)),
    "-L": lambda L, c, x, cx: -L,
    "L + L": lambda L, c, x, cx: L + cx,
    "L - L": lambda L, c, x, cx: L - cx,
    "x + L": lambda L, c, x, cx: x + L,
    "L + x": lambda L, c, x, cx: L + x,
    "x - L": lambda L, c, x, cx: x - L,
    "L - x": lambda L, c, x, cx: L - x,
}


def column(c):
    return torch.as_tensor(c).reshape(-1, 1) if isinstance(c, np.ndarray) else c


@calm
@given(st.lists(st.tuples(st.sampled_from(sorted(WAYS)), coefficients, st.integers(0, 2)), max_size=8))
def test_linear_is_plain_arithmetic(steps):
    pool = tensors(3)
    lazy, plain = linear(pool[0], 2.0), 2.0 * pool[0]
    for way, c, i in steps:
        x, k = pool[i], column(c)
        lazy, plain = WAYS[way](lazy, c, x, linear(x, c)), WAYS[way](plain, k, x, k * x)
        assert isinstance(lazy, Linear)
    size = 1 + sum(abs(column(c)).max() if isinstance(c, np.ndarray) else abs(c) for c, _ in lazy.terms)
    torch.testing.assert_close(lazy.tensor(), plain, rtol=1e-12, atol=1e-13 * float(size))


@calm
@given(st.lists(st.tuples(coefficients, st.integers(0, 2)), min_size=1, max_size=6))
def test_combine_is_the_sum(terms):
    pool = tensors(3)
    expected = sum(column(c) * pool[i] for c, i in terms) + torch.zeros(B, 2, dtype=torch.float64)
    before = [x.clone() for x in pool]
    torch.testing.assert_close(combine((c, pool[i]) for c, i in terms), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(x, y) for x, y in zip(pool, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_are_the_tensors(dtype):
    x, y = tensors(2, B, 1, 4, 4, dtype=dtype)
    learned = torch.tensor(0.5, dtype=torch.float64)
    for c in (2.0, 2, np.float64(2), np.array(2.0), np.array([1.0, 2.0, 3.0]), learned):
        out = combine([(c, x), (1.0, y)])
        assert (out.dtype, out.shape) == (dtype, x.shape)
    by_row = combine([(np.array([1.0, 2.0, 3.0]), x)])
    assert all(torch.equal(by_row[i], x[i] * (i + 1)) for i in range(B))


def test_coefficients_of_one_tensor_are_merged_in_float64():
    (x,) = tensors(1, dtype=torch.float32)
    tiny = 1e-12
    assert torch.equal(combine([(1.0, x), (tiny, x), (-1.0, x)]), x * ((1.0 + tiny) - 1.0))
    (y,) = tensors(1)
    huge = torch.full_like(y, 1e300)
    assert torch.equal(combine([(1e10, huge), (1.0, y), (-1e10, huge)]), y)


def test_one_pass_for_each_distinct_tensor(monkeypatch):
    x, y = tensors(2)
    passes = []
    mul, add = torch.mul, torch.Tensor.add_
    monkeypatch.setattr(torch, "mul", lambda *a, **k: passes.append("mul") or mul(*a, **k))
    monkeypatch.setattr(torch.Tensor, "add_", lambda *a, **k: passes.append("add") or add(*a, **k))
    combine(2.0 * linear(x) + 3.0 * linear(y) - linear(x) + 0.5 * linear(y) + 0.0 * linear(x))
    assert passes == ["mul", "add"]


def test_a_zero_coefficient_leaves_the_term_out():
    (y,) = tensors(1)
    for bad in (math.inf, math.nan):
        x = torch.full_like(y, bad)
        assert torch.equal(combine([(0.0, x), (1.0, y)]), y)
        assert torch.equal(combine([(1.0, y), (1.0, x), (-1.0, x)]), y)
        assert torch.equal(combine([(0.0, x)]), torch.zeros_like(y))


def test_a_learned_coefficient_has_its_gradient():
    x, y = tensors(2)
    c = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (3.0 * c * linear(x) + linear(y) + linear(x) * c).tensor().sum().backward()
    assert c.grad is not None
    assert float(c.grad) == pytest.approx(4 * float(x.sum()), rel=1e-12)
    for order in (lambda a, b: [a, b], lambda a, b: [b, a]):
        z = x.clone().requires_grad_()
        combine(order((2.0, z), (3.0, y))).sum().backward()
        assert torch.equal(z.grad, torch.full_like(z, 2.0))


def test_torch_functions_compute_a_linear():
    x, y = tensors(2)
    for f in (torch.exp, torch.sum, torch.isfinite):
        assert torch.equal(f(2.0 * linear(x)), f(2 * x))
    assert torch.equal(torch.mul(y, linear(x, 2.0)), y * 2 * x)
    assert torch.equal(torch.where(y > 0, linear(x), y), torch.where(y > 0, x, y))


# --- Prediction -------------------------------------------------------------------------------------------------------


@st.composite
def instants(draw):
    """alpha and sigma of any size, with the log-SNR of a sampler."""
    angle, size = draw(st.floats(0.01, math.pi / 2 - 0.01)), draw(st.sampled_from([1.0, 0.3, 20.0]))
    log_alpha, log_sigma = math.log(size * math.cos(angle)), math.log(size * math.sin(angle))
    return Knot(0.5, log_alpha, log_sigma, -1.0, 1.0, -1.0, 1.0, schedule=VPLinear())


def truths(t, x0, eps):
    r = np.sqrt(t.alpha**2 + t.sigma**2)
    c, s, sigma = (column(v) for v in (t.alpha / r, t.sigma / r, t.sigma))
    return {"x0": x0, "eps": eps, "v": c * eps - s * x0, "score": -eps / sigma, "flow": eps - x0}


@pytest.mark.parametrize("kind", KINDS)
@calm
@given(t=instants())
def test_every_reading_of_every_kind(kind, t):
    x0, eps = tensors(2)
    x, truth = t.alpha * x0 + t.sigma * eps, truths(t, x0, eps)
    p = Prediction(x, t, truth[kind], kind)
    for name, value in truth.items():
        close = 1e-9 * float(value.abs().max())
        torch.testing.assert_close(getattr(p, name).tensor(), value, rtol=1e-9, atol=close)
    # the flow's det is -(alpha + sigma), never zero; any mixture is one pass over x and the answer
    mixed = p.mixed(0.7, -1.3)
    torch.testing.assert_close(mixed.tensor(), 0.7 * x0 - 1.3 * eps, rtol=1e-9, atol=1e-6)
    assert len(mixed.terms) == 2
    assert len(getattr(p, kind).terms) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_readings_at_one_time_a_sample(kind):
    x0, eps = tensors(2)
    t = VPLinear().knot(np.array([0.1, 0.5, 0.9]))
    x = column(t.alpha) * x0 + column(t.sigma) * eps
    truth = truths(t, x0, eps)
    p = Prediction(x, t, truth[kind], kind)
    for name, value in truth.items():
        torch.testing.assert_close(getattr(p, name).tensor(), value, rtol=1e-10, atol=1e-10)


def test_v_and_flow_are_defined_at_both_ends():
    x0, eps = tensors(2)
    for t in FlowMatching().knots((0.0, 1.0)):
        x = t.alpha * x0 + t.sigma * eps
        for kind, value in (("v", t.alpha * eps - t.sigma * x0), ("flow", eps - x0)):
            p = Prediction(x, t, value, kind)
            torch.testing.assert_close(p.x0.tensor(), x0, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(p.eps.tensor(), eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "wanted", "time"),
    [
        *[("eps", "x0", 1.0), ("eps", "v", 1.0), ("eps", "flow", 1.0), ("score", "x0", 1.0)],
        *[("x0", "eps", 0.0), ("x0", "v", 0.0), ("x0", "flow", 0.0), ("x0", "score", 0.0)],
    ],
)
def test_an_undefined_reading_is_refused(kind, wanted, time):
    x, value = tensors(2)
    p = Prediction(x, FlowMatching().knot(time), value, kind)
    with pytest.raises(UserError, match=rf"prediction of {kind} does not define .* at time {time:g}.*predicts v or flow"):
        getattr(p, wanted)


def test_what_the_noise_is_added_with_may_differ():
    x, value, other = tensors(3)
    t = VPLinear().knot(0.4)
    plain, p = Prediction(x, t, value, "eps"), Prediction(x, t, value, "eps", eps_used=other)
    assert p.eps.tensor() is not other
    assert torch.equal(p.eps.tensor(), other)
    assert torch.equal(p.x0.tensor(), plain.x0.tensor())
    torch.testing.assert_close(p.mixed(0.5, 2.0).tensor(), 0.5 * plain.x0.tensor() + 2 * other)
    torch.testing.assert_close(p.score.tensor(), -other / t.sigma)


@pytest.mark.parametrize("t", [EDM().knot(0.5), EDM().knot(np.array([0.5, 1.0, 2.0]))], ids=["number", "array"])
def test_a_wrong_answer_is_refused(t):
    (x,) = tensors(1)
    for value, match in (
        (x[:, :1], r"shape \(3, 1\) for a state of shape \(3, 2\)"),
        (torch.cat([x, x], 1), "split them"),
        (x.float(), "float32 for a state of dtype torch.float64"),
    ):
        with pytest.raises(ModelError, match=match):
            Prediction(x, t, value, "eps")
    with pytest.raises(UserError, match="Did you mean 'eps'"):
        _ = Prediction(x, t, x, "epsilon").x0


def test_counting():
    (x,) = tensors(1)

    class Two:
        schedule, shape = EDM(), (2,)

        def __call__(self, x, t):
            return Prediction(x, t, x, "eps", cost=2)

        def rows(self, index):
            return self

    counted = Counted(Two())
    for _ in range(3):
        counted(x, EDM().knot(1.0))
    assert counted.calls == 6
    assert counted.rows(torch.tensor([0])).calls == 6
    assert (counted.schedule, counted.shape) == (EDM(), (2,))


# --- once broken --------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, np.zeros(B)], ids=["int", "array"])
def test_any_zero_leaves_the_term_out(zero):
    (y,) = tensors(1)
    assert torch.equal(combine([(zero, torch.full_like(y, math.inf)), (1.0, y)]), y)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_the_score_at_the_data_is_refused(kind):
    x, value = tensors(2)
    with pytest.raises(UserError, match="does not define"):
        _ = Prediction(x, FlowMatching().knot(0.0), value, kind).score


def test_a_score_network_at_the_data_still_says_x0():
    x, value = tensors(2)
    assert torch.equal(Prediction(x, EDM().knot(0.0), value, "score").x0.tensor(), x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_undefined_reading_is_refused_for_one_time_a_sample():
    x, value = tensors(2)
    with pytest.raises(UserError, match="does not define"):
        Prediction(x, FlowMatching().knot(np.array([0.5, 0.7, 1.0])), value, "eps").x0.tensor()


@pytest.mark.parametrize("call", [lambda x: torch.stack([linear(x)]), lambda x: torch.mul(x, other=linear(x))])
def test_torch_functions_compute_a_linear_wherever_it_is(call):
    (x,) = tensors(1)
    assert call(x).numel() == x.numel()
