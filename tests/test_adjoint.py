"""Gradients through a run: the three ways agree, and the memory of each grows as it says."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from test_laws import SCHEDULE, down, mixture, start
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sdediff import (
    BDIA,
    DDIM,
    DDPM,
    EDICT,
    PID,
    AsynchronousLeapfrog,
    Fixed,
    FixedPoint,
    Heun,
    Inverse,
    Invertible,
    Kept,
    Leapfrog,
    Mixture,
    Reversible,
    ReversibleHeun,
    SciPy,
    ScoreNet,
    Time,
    UniPC,
    UserError,
    White,
    differentiable,
    solve,
)  # fmt: skip
from sdediff.solvers import SOLVERS

REVERSIBLE = [s for made in SOLVERS if isinstance(s := made(), Invertible) and s.facts.inverse in ("exact", "bits")]
REVERSIBLE = [s for s in REVERSIBLE if s.smooth(Kept())[0].facts.inverse == "exact"]  # integers only where they have a form in floats
REVERSIBLE += [
    AsynchronousLeapfrog(bits=False),
    ReversibleHeun(Time(), eta=1.0),
    Leapfrog(bits=False),
    Reversible("rk4"),
    BDIA(0.9),
    EDICT(leapfrog=False),
]
REVERSIBLE += [Inverse(s) for s in REVERSIBLE if s.inverse != s]
WEIGHTS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7], [0.2, 0.1]], dtype=torch.float64)


class Small(nn.Module):
    """A smooth network of two layers, float64."""

    def __init__(self, width: int = 16):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.outer = nn.Linear(3, width, dtype=torch.float64), nn.Linear(width, 2, dtype=torch.float64)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], 1))))


def network() -> ScoreNet:
    return ScoreNet(Small(), SCHEDULE, "v")


def parameters(model: ScoreNet) -> tuple[Tensor, ...]:
    return tuple(model.net.parameters())  # type: ignore[attr-defined]


def gradients(solver, knots, method: str, model=None, x=None) -> list[Tensor]:
    """Of a function of the end, its memory included where that is floats, by x and the parameters; and the end itself."""
    model = network() if model is None else model
    x = (start(4) if x is None else x).requires_grad_()
    noise = White(3) if solver.facts.stochastic else None
    run = differentiable(solver, model, x, knots, method=method, noise=noise, parameters=parameters(model))
    loss = (WEIGHTS * run.x).sum() + (run.x**3).sum()
    if isinstance(run.memory, Kept) and solver.facts.inverse != "bits":
        loss = loss + 0.1 * sum((v**2).sum() for v in run.memory.tensors)
    return [run.x.detach(), *torch.autograd.grad(loss, [x, *parameters(model)])]


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest relative difference of two lists of tensors."""
    return max(float(((u - v).abs().max() / v.abs().max()).detach()) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("solver", REVERSIBLE, ids=repr)
def test_the_way_home_gives_the_gradients_of_the_graph(solver):
    for knots in (down(1, 0.8, 0.1), down(3, 0.8, 0.1), down(13, 0.8, 0.1), down(13, 0.8, 0.1)[::-1]):
        if len(knots) < 10 and "FixedPoint" in repr(solver):
            continue  # steps too large to be inverted
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reverse, graph, segments = (gradients(solver, knots, m) for m in ("reversible", "graph", "checkpoint"))
        assert apart(segments, graph) < 1e-12
        assert apart(reverse, graph) < (1e-6 if solver == Inverse(FixedPoint()) else 1e-10)  # an iteration that was cut off


@pytest.mark.parametrize("solver", [DDIM(), Heun(), UniPC(3), DDPM(), DDIM(0.5)], ids=repr)
def test_checkpoints_serve_any_solver(solver):
    knots = Fixed(down(11), lower_final=solver == UniPC(3))
    a, b = (gradients(solver, knots, m) for m in ("checkpoint", "graph"))
    assert apart(a, b) < 1e-13
    plain = solve(solver, network(), start(4), knots, noise=White(3))
    assert torch.equal(a[0], plain.x)
    assert differentiable(solver, network(), start(4), knots, noise=White(3), method="checkpoint").calls == plain.calls


def test_the_way_out_is_the_run_itself():
    for solver in (ReversibleHeun(), AsynchronousLeapfrog(), EDICT()):
        run = differentiable(solver, network(), start(4).requires_grad_(), down(9), parameters=())
        plain = solve(solver, network(), start(4), down(9))
        assert torch.equal(run.x, plain.x)
        assert run.calls == plain.calls
        assert all(torch.equal(a, b) for a, b in zip(run.memory.tensors, plain.memory.tensors, strict=True))
        assert run.memory[1:] == plain.memory[1:]


@pytest.mark.parametrize("solver", [ReversibleHeun(), BDIA(), Leapfrog(bits=False)], ids=repr)
def test_a_run_in_two_parts_with_the_memory_handed_on(solver):
    knots, model = down(14, 0.8, 0.1), network()

    def by(method: str) -> list[Tensor]:
        x = start(4).requires_grad_()
        first = differentiable(solver, model, x, knots[:6], method=method, parameters=parameters(model))
        last = differentiable(solver, model, first.x, knots[5:], memory=first.memory, method=method, parameters=parameters(model))
        return [last.x, *torch.autograd.grad((WEIGHTS * last.x).sum(), [x, *parameters(model)])]

    whole = gradients(solver, knots, "graph")
    assert apart(by("reversible"), by("graph")) < 1e-12
    assert apart(by("reversible")[:1], whole[:1]) < 1e-12


def test_there_and_back_again_has_the_identity_as_its_jacobian():
    """decode(encode(x)) = x with the memory handed on, in which the gradient goes through both walks."""
    x, model, knots = start(4).requires_grad_(), mixture(), down(20, 0.8, 0.1)
    up = differentiable(ReversibleHeun(), model, x, knots[::-1])
    back = differentiable(ReversibleHeun(), model, up.x, knots, memory=up.memory)
    (g,) = torch.autograd.grad((WEIGHTS * back.x).sum(), x)
    assert torch.allclose(g, WEIGHTS, rtol=0, atol=1e-12)


def test_gradcheck_sample_by_sample_on_an_oracle():
    model = Mixture([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=SCHEDULE)
    for solver in (ReversibleHeun(), AsynchronousLeapfrog(bits=False), BDIA()):
        assert torch.autograd.gradcheck(lambda x, s=solver: differentiable(s, model, x, down(6, 0.8, 0.1)).x, start(2).requires_grad_())
    x = start(3).requires_grad_()
    run = differentiable(ReversibleHeun(), model, x, down(6, 0.8, 0.1))
    (g,) = torch.autograd.grad(run.x[1].sum(), x)
    assert g[1].abs().min() > 0
    assert torch.equal(g[[0, 2]], torch.zeros(2, 2, dtype=torch.float64))


def test_float32():
    model, knots = network(), down(20, 0.8, 0.1)
    exact = gradients(ReversibleHeun(), knots, "graph", model)
    model.net.float()  # type: ignore[attr-defined]
    x = start(4).float().requires_grad_()
    run = differentiable(ReversibleHeun(), model, x, knots, parameters=parameters(model))
    (g,) = torch.autograd.grad((WEIGHTS.float() * run.x).sum() + (run.x**3).sum() + 0.1 * sum((v**2).sum() for v in run.memory.tensors), x)
    assert g.dtype == torch.float32
    assert torch.allclose(g.double(), exact[1], atol=2e-4 * float(exact[1].abs().max()))


class Bytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self):
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for v in out if isinstance(out, tuple | list) else (out,):
            if isinstance(v, Tensor):
                storage = v.untyped_storage()
                self.found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, self.held())
        return out

    def held(self) -> int:
        self.found = {k: v for k, v in self.found.items() if not v[0].expired()}
        return sum(n for _, n in self.found.values())


def memory_of(solver, method: str, steps: int) -> tuple[int, int]:
    """(bytes held between the way out and the way home, most bytes alive on the way home), less those of one step."""
    model = ScoreNet(Small(256), SCHEDULE, "v")
    x = start(64).requires_grad_()
    knots = down(steps, 0.8, 0.1)
    with Bytes() as count:
        before = count.held()
        run = differentiable(solver, model, x, knots, method=method, parameters=parameters(model))
        held, count.most = count.held() - before, 0
        run.x.sum().backward()
    return held, count.most - before


@pytest.mark.parametrize("solver", [ReversibleHeun(), AsynchronousLeapfrog(bits=False), BDIA()], ids=repr)
def test_memory_does_not_grow_with_the_steps(solver):
    """Of 4 and 64 steps: the same, 4 times, 16 times."""
    growth = {m: [b / a for a, b in zip(memory_of(solver, m, 4), memory_of(solver, m, 64), strict=True)] for m in
              ("reversible", "checkpoint", "graph")}  # fmt: skip
    assert max(growth["reversible"]) < 1.1, growth
    assert 1.5 < min(growth["checkpoint"]) <= max(growth["checkpoint"]) < 5, growth
    assert min(growth["graph"]) > 8, growth  # the peak holds one step's work, too


def test_what_is_missed_is_said():
    model, knots = network(), down(10, 0.8, 0.1)
    x = start(4).requires_grad_()
    run = differentiable(ReversibleHeun(), model, x, knots)
    with pytest.warns(UserWarning, match=r"4 tensors .* net.requires_grad_\(False\)"):
        run.x.sum().backward()
    assert all(p.grad is None for p in parameters(model))
    model.net.requires_grad_(False)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        differentiable(ReversibleHeun(), model, x, knots).x.sum().backward()
    # BDIA of small gamma multiplies the rounding of the way out by 1/gamma a step
    lost = differentiable(BDIA(0.3), mixture(), start(4).float().requires_grad_(), down(40))
    with pytest.warns(UserWarning, match="missed the way it came by"):
        lost.x.sum().backward()


def test_bad_input():
    x, knots, model = start(4), down(5), mixture()
    with pytest.raises(UserError, match="method='checkpoint'"):
        differentiable(DDIM(), model, x, knots)
    with pytest.raises(UserError, match="White"):
        differentiable(DDPM(), model, x, knots, method="checkpoint")
    with pytest.raises(UserError, match="fixed knots"):
        differentiable(AsynchronousLeapfrog(), model, x, PID(1e-3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="turn round"):
        differentiable(BDIA(), model, x, SCHEDULE.knots([0.9, 0.5, 0.7]))
    with pytest.raises(UserError, match="solver of sdediff"):
        differentiable(SciPy(), model, x, knots)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reversible"):
        differentiable(ReversibleHeun(), model, x, knots, method="revers")
    kept = solve(AsynchronousLeapfrog(), model, x, knots[:3]).memory
    with pytest.raises(UserError, match="smooth"):
        differentiable(AsynchronousLeapfrog(), model, x, knots[2:], memory=kept)
    assert math.isfinite(float(differentiable(DDIM(), model, x, knots, method="graph").x.sum()))
