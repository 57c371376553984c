"""The exact Frechet distances agree with full matrices, with closed forms, and with sampling."""

from __future__ import annotations

import exact_frechet as ef
import numpy as np
import pytest
import torch
from linear_gaussian import NotLinear, moments

from sdediff import Gaussian, White, solve
from sdediff.data import digits
from sdediff.solvers import named


def run(text: str, calls: int = 10, grid: str = "LogSNR") -> ef.Run:
    return next(r for r in ef.runs(named(text)) if (r.grid, r.asked) == (grid, calls))


def distance(of: ef.Run, data: ef.Spectrum, exact_start: bool) -> float:
    parts = [ef.interpolated(part[: ef.NODES], data.variance) for part in (of.mean, of.start, of.noise)]
    return ef.frechet(data, *parts, exact_start=exact_start)


def full_distance(m: np.ndarray, a: np.ndarray, n: np.ndarray, b: np.ndarray) -> float:
    """W2^2 of N(m, a) and N(n, b), by matrix square roots."""
    w, v = np.linalg.eigh(b)
    root = v * np.sqrt(np.maximum(w, 0)) @ v.T
    cross = np.linalg.eigvalsh(root @ a @ root)
    return float(((m - n) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.sqrt(np.maximum(cross, 0)).sum())


@pytest.mark.parametrize("text", ["DDIM()", "DDIM(eta=1.0)", "UniPC(order=3)", "SDEDPMSolverPP(order=2)"])
@pytest.mark.parametrize("exact_start", [True, False])
def test_the_eigenbasis_gives_what_full_matrices_give(text, exact_start):
    x = digits().x.flatten(1).double()[:, 20:28]  # eight pixels: the rows of a full covariance are d for each draw
    model = Gaussian(x.mean(0), torch.cov(x.T), schedule=ef.SCHEDULE)
    knots = ef.within(named(text), ef.GRIDS["LogSNR"], 10)
    start = None if exact_start else (torch.zeros(8).double(), torch.eye(8).double())
    (mean, cov), (true_mean, true_cov) = moments(named(text), model, knots, start)[-1], model.moments(ef.LAST)
    expected = full_distance(*(v.numpy() for v in (mean, cov, true_mean, true_cov)))
    assert distance(run(text), ef.spectrum("eight", x.numpy()), exact_start) == pytest.approx(expected, rel=1e-8)


def test_interpolation_is_exact_to_rounding():
    v = np.concatenate([ef.nodes()[1:-1] * 1.01, [0.0, 1e-9, ef.LARGEST]])
    for response in (lambda v: np.sqrt((v + 1e-4) / (v + 0.3)), lambda v: 1 / (v + ef.LAST.u**2), lambda v: v / (v + 2.0)):
        assert ef.interpolated(response(ef.nodes()), v) == pytest.approx(response(v), rel=1e-9)
    found = [("", [run(text)], "") for text in ("DDIM(eta=1.0)", "UniPC(order=4)")]
    assert ef.interpolation_error(found) < 1e-9


def test_a_converged_solver_leaves_the_mismatch_of_the_prior_only():
    data = ef.digits_spectrum()
    of = run("RungeKutta(tableau='rk4')", 200)
    assert distance(of, data, True) < 1e-4 * ef.floor(data)
    assert distance(of, data, False) == pytest.approx(ef.floor(data), rel=1e-3)
    assert ef.floor(data) < 1e-3


def test_the_distance_is_that_of_samples():
    data = ef.digits_spectrum()
    v, m = (torch.from_numpy(a[-3:].copy()) for a in (data.variance, data.mean))
    knots, n = ef.within(named("DDIM()"), ef.GRIDS["LogSNR"], 10), 200_000
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = solve(named("DDIM()"), Gaussian(m, v, schedule=ef.SCHEDULE), z, knots, noise=White(0)).x
    true = ef.LAST.alpha**2 * v + ef.LAST.sigma**2
    sampled = ((x.mean(0) - ef.LAST.alpha * m) ** 2 + (x.std(0) - true.sqrt()) ** 2).sum()
    part = ef.Spectrum("three", m.numpy(), v.numpy())
    assert float(sampled) == pytest.approx(distance(run("DDIM()"), part, False), rel=0.02)


@pytest.mark.parametrize("text", ["DDIM()", "Heun()", "PNDM()", "UniPC(order=3)", "AnnealedLangevin()"])
def test_grids_spend_at_most_the_calls_asked_for(text):
    for asked in ef.CALLS:
        knots = ef.within(named(text), ef.GRIDS["Quadratic"], asked)
        if knots is None:
            assert named(text).calls(ef.GRIDS["Quadratic"].knots(ef.SCHEDULE, 1)) > asked
            continue
        finer = ef.GRIDS["Quadratic"].knots(ef.SCHEDULE, len(knots))
        assert named(text).calls(knots) <= asked < named(text).calls(finer)


def test_what_is_not_linear_says_so():
    with pytest.raises(NotLinear):
        list(ef.runs(named("PredictorCorrector()")))
    text, found, why = ef._work("PredictorCorrector()")
    assert (text, found) == ("PredictorCorrector()", [])
    assert "superposition" in why


def test_missing_data_is_said(monkeypatch, capsys):
    monkeypatch.setattr(ef, "data_folder", lambda: None)
    assert [s.name for s in ef.spectra()] == ["digits"]
    assert capsys.readouterr().out.count("skipped") == 2


def test_csv_and_picture(tmp_path):
    found = [(text, list(ef.runs(named(text))), "") for text in ("DDIM()", "Heun()", "UniPC(order=3)")]
    table = ef.rows(ef.digits_spectrum(), found)
    ef.write_csv(table, tmp_path / "a.csv")
    ef.picture(ef.digits_spectrum(), table, tmp_path / "a.png")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].endswith("grid,start,5,10,20,50,100,200")
    assert len(lines) == 1 + 3 * 3 * 2
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert set(ef.best(table, "prior")) == {"first order", "Runge-Kutta", "exponential, multistep"}
