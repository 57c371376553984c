"""The noises of a given image: the sampler returns it, for every solver whose step can be solved; what they look like; what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from test_laws import SCHEDULE, mixture

from sdediff import (
    DDIM,
    DDPM,
    ERSDE,
    SEEDS,
    Between,
    EulerAncestral,
    EulerMaruyama,
    Gaussian,
    LogSNR,
    Mixture,
    NoiseLatent,
    Prediction,
    ReversibleHeun,
    SASolver,
    SDEDPMSolverPP,
    Time,
    Uniform,
    UserError,
    White,
    decode_noise,
    encode_noise,
    load_noise,
    solve,
)  # fmt: skip
from sdediff.checkpoint import read, write
from sdediff.noise_inversion import KINDS
from sdediff.prediction import Counted
from sdediff.solvers import SOLVERS

REFUSED = {
    "AnnealedLangevin": "off the path",
    "PredictorCorrector": "off the path",
    "Restart": "off the path",
    "DPMSolverPPSDE": "more than once",
    "SEEDS": "more than once",
    "SRA1": "more than once",
    "ShARK": "more than once",
    "GottaGoFast": "states that hold the noise",
    "SASolver": "adds no noise",  # its default has none below t = 0.05
}
STOCHASTIC = [s for made in SOLVERS if (s := made()).facts.stochastic]
SOLVED = [s for s in STOCHASTIC if type(s).__name__ not in REFUSED]
SOLVED += [DDPM("large"), DDIM(0.5), DDIM(1.0), EulerMaruyama(0.5), SDEDPMSolverPP(1), SDEDPMSolverPP(3), SASolver(3, 4, tau=1.0)]
SOLVED += [SEEDS(1), SEEDS(1, "x0"), ERSDE(3, corrected=True), EulerAncestral(0.5), SASolver(2, 2, tau=Between(0.0, 0.5, 1.0))]


def images(n: int = 64) -> torch.Tensor:
    return mixture().sample(n, SCHEDULE.knot(SCHEDULE.t_min), seed=1)


@pytest.mark.parametrize("solver", SOLVED, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_returns_the_image(solver, kind):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x, counted = images().to(dtype), Counted(mixture())
        latent = encode_noise(counted, x, solver=solver, steps=20, kind=kind)
        assert counted.calls == solver.calls(latent.knots)
        assert latent.noises.shape == (20, *x.shape)
        assert latent.noises.dtype == dtype
        assert float((decode_noise(mixture(), latent) - x).abs().max()) < tolerance
    run = solve(latent.solver, mixture(), latent.x, latent.knots, noise=latent.noise)
    assert torch.equal(run.x, decode_noise(mixture(), latent))


@pytest.mark.parametrize("solver", [s for s in STOCHASTIC if type(s).__name__ in REFUSED] + [ReversibleHeun(Time(), eta=1.0)], ids=repr)
def test_what_cannot_be_solved_is_refused(solver):
    with pytest.raises(UserError, match=REFUSED.get(type(solver).__name__, "states that hold the noise")):
        encode_noise(mixture(), images(), solver=solver, steps=5)


def test_replayed_noises_are_those_of_the_solver():
    """A sampled path's own draws, written down and replayed, sample it again."""
    model, knots = mixture(), LogSNR().knots(SCHEDULE, 12)
    for solver in (DDPM(), EulerMaruyama()):
        run = solve(solver, model, images(), knots, noise=White(4))
        ends = NoiseLatent(run.x, torch.empty(0), knots, solver).noise.ends
        z = torch.stack([White(4).on(run.x)(a, b) / abs(b - a) ** 0.5 for a, b in ends])
        assert torch.allclose(decode_noise(model, NoiseLatent(images(), z, knots, solver)), run.x, rtol=0, atol=1e-12)


def statistics(solver, kind: str, steps: int) -> tuple[float, float, float]:
    """(mean, std, correlation of neighbours) of the noises, the last step left out."""
    z = encode_noise(mixture(), images(1000), solver=solver, steps=steps, kind=kind).noises[:-1]
    return float(z.mean()), float(z.std()), float((z[1:] * z[:-1]).mean() / z.square().mean())


def test_posterior_noises_are_standard_normal_in_the_limit():
    stds = []
    for steps in (20, 80, 320):
        mean, std, correlation = statistics(DDPM(), "posterior", steps)
        assert abs(mean) < 0.02
        assert abs(correlation) < 0.03
        stds.append(std - 1)
    assert 0 < stds[2] < 0.03
    assert stds[1] < 0.4 * stds[0]
    assert stds[2] < 0.4 * stds[1]
    for solver in (DDIM(0.5), EulerMaruyama(), SDEDPMSolverPP(2), DDPM("large")):  # each with the noise that it adds itself
        mean, std, correlation = statistics(solver, "posterior", 200)
        assert abs(mean) < 0.02
        assert abs(std - 1) < 0.06
        assert abs(correlation) < 0.06


def test_independent_noises_are_larger_and_undo_one_another():
    for steps, expected in ((50, 2.4), (200, 4.5)):
        mean, std, correlation = statistics(DDPM(), "independent", steps)
        assert abs(mean) < 0.02
        assert std == pytest.approx(expected, rel=0.05)
        assert correlation == pytest.approx(-0.5, abs=0.03)


def test_an_edit_keeps_where_the_image_was():
    """Another model in the place of the first: the data moves to its modes, in the order in which it was."""
    model = Gaussian([-1.0], 0.04, schedule=SCHEDULE)
    other = Gaussian([1.0], 0.04, schedule=SCHEDULE)
    x = model.sample(500, SCHEDULE.knot(SCHEDULE.t_min), seed=2)
    latent = encode_noise(model, x, steps=50, kind="independent")
    with pytest.raises(UserError, match="another model"):
        decode_noise(other, latent)
    edited = decode_noise(other, latent, check=False)
    assert float(edited.mean()) == pytest.approx(1.0, abs=0.1)
    both = torch.stack([x[:, 0], edited[:, 0]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


def test_sample_by_sample():
    x = images(6)
    together = encode_noise(mixture(), x, steps=8, seed=3)
    part = encode_noise(mixture(), x[2:4], steps=8, seed=3, first=2)
    assert torch.allclose(part.noises, together.noises[:, 2:4], rtol=0, atol=1e-10)
    assert torch.equal(part.x, together.x[2:4])
    rows = together.noise.rows(torch.tensor([2, 3]))
    assert torch.allclose(solve(DDPM(), mixture(), together.x[2:4], together.knots, noise=rows).x, x[2:4], rtol=0, atol=1e-12)
    assert not torch.equal(encode_noise(mixture(), x, steps=8, seed=4).x, together.x)


class Learned(Mixture):
    """A mixture that answers with a variance, another one for each component."""

    def __call__(self, x, t):
        p = super().__call__(x, t)
        return Prediction(p.x, p.at, p.value, p.kind, variance=torch.tanh(x))


def test_a_learned_variance():
    model = Learned([[0.5, 0.0], [-0.5, 0.3]], [0.4, 0.3], schedule=SCHEDULE)
    x = model.sample(16, SCHEDULE.knot(SCHEDULE.t_min))
    for kind in KINDS:
        latent = encode_noise(model, x, solver=DDPM("learned"), steps=20, kind=kind)
        assert torch.allclose(decode_noise(model, latent), x, rtol=0, atol=1e-12)


def test_one_file(tmp_path):
    x = images(4).float()
    latent = encode_noise(mixture(), x, solver=SDEDPMSolverPP(2), steps=7, kind="independent")
    latent.save(tmp_path / "z.safetensors")
    loaded = load_noise(tmp_path / "z.safetensors")
    assert (loaded.solver, loaded.knots, loaded.kind, loaded.mark) == (latent.solver, latent.knots, "independent", latent.mark)
    assert latent.mark
    assert torch.equal(decode_noise(mixture(), loaded), decode_noise(mixture(), latent))
    tensors, about = read(tmp_path / "z.safetensors")
    write(tmp_path / "cut.safetensors", {"x": tensors["x"]}, about)
    with pytest.raises(UserError, match="noises"):
        load_noise(tmp_path / "cut.safetensors")
    write(tmp_path / "other.safetensors", tensors, json.loads('{"kind": "model"}'))
    with pytest.raises(UserError, match="no noise latent"):
        load_noise(tmp_path / "other.safetensors")


def test_bad_input():
    x, model = images(4), mixture()
    for solver in (DDIM(), DDPM("none"), "DDPM"):
        with pytest.raises(UserError, match="draws no noise"):
            encode_noise(model, x, solver=solver, steps=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="adds no noise"):
        encode_noise(model, x, steps=5, grid=_ToData())
    with pytest.raises(UserError, match="posterior"):
        encode_noise(model, x, steps=5, kind="posterio")
    with pytest.raises(UserError, match="finite"):
        encode_noise(model, x * float("nan"), steps=5)
    with pytest.raises(UserError, match="shape"):
        encode_noise(model, x[:, :1], steps=5)
    latent = encode_noise(model, x, steps=5)
    with pytest.raises(UserError, match="other knots"):
        solve(DDPM(), model, latent.x, LogSNR().knots(SCHEDULE, 6), noise=latent.noise)
    with pytest.raises(UserError, match="solver that encoded"):
        latent.noise.fresh(0)
    with pytest.raises(UserError, match="solver that encoded"):
        latent.noise.area(0.0, 1.0)


class _ToData(Uniform):
    """A grid that ends at the data."""

    def knots(self, schedule, steps, start=None, end=None):
        return super().knots(schedule, steps, start=start, end=0.0)


def test_steps_without_noise_are_passed():
    """Noise only in the second half of the way: the first steps are the flow's, and the path is taken up where they led."""
    solver = SASolver(2, 2, tau=Between(0.0, 0.5, 1.0))
    latent = encode_noise(mixture(), images(), solver=solver, steps=20)
    still = latent.noises.abs().amax((1, 2)) == 0
    assert still.any()
    assert not still[-1]
