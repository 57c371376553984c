"""The exact Frechet distances agree with full matrices, with closed forms, and with sampling."""

from __future__ import annotations

import exact_frechet as ef
import numpy as np
import pytest
import torch
from linear_gaussian import moments

from sdediff import Gaussian, White, solve
from sdediff.data import digits
from sdediff.solvers import named


def run(text: str, calls: int = 10, grid: str = "LogSNR") -> ef.Run:
    (found,) = ef.runs(named(text), {grid: ef.GRIDS[grid]}, [calls])
    assert isinstance(found, ef.Run)
    return found


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
    found = [ef.Found(text, [run(text)], []) for text in ("DDIM(eta=1.0)", "UniPC(order=4)")]
    assert ef.interpolation_error(found) < 1e-9


def test_a_converged_solver_leaves_the_mismatch_of_the_prior_only():
    data = ef.digits_spectrum()
    of = run("RungeKutta(tableau='rk4')", 200)
    assert distance(of, data, True) < 1e-4 * ef.floor(data)
    assert distance(of, data, False) == pytest.approx(ef.floor(data), rel=1e-3)
    assert ef.floor(data) < 1e-3


def test_noise_forgets_the_mismatch_of_the_prior():
    data = ef.digits_spectrum()
    of = run("SASolver(predictor=2, corrector=2, tau=1.0)", 200)
    assert ef.floor(data, noise=True) < 1e-4 * ef.floor(data)
    flat = ef.Spectrum("flat", np.array([3.0]), np.array([100.0]))  # far from N(0, I) at t_max: little is forgotten
    assert distance(of, flat, True) < 0.01 * ef.floor(flat, noise=True)
    assert distance(of, flat, False) == pytest.approx(ef.floor(flat, noise=True), rel=0.03)


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
    missing = list(ef.runs(named("PredictorCorrector()"), calls=[5]))
    assert [type(m) for m in missing] == [ef.Missing] * 3
    assert "not applicable: a random start misses the superposition" in ef.Found("PredictorCorrector()", [], missing).said()


def test_a_run_that_rounding_spoils_is_left_out_and_said():
    few, more = ef.runs(named("PNDM()"), {"LogSNR": ef.GRIDS["LogSNR"]}, [5, 10])
    assert isinstance(few, ef.Missing)  # one step of four calls through u = 150: its stages cancel
    assert isinstance(more, ef.Run)
    assert ef.Found("PNDM()", [more], [few]).said().startswith("PNDM(): without LogSNR at 5 calls: a random start misses")


def test_missing_data_is_said(monkeypatch, capsys):
    monkeypatch.setattr(ef, "data_folder", lambda: None)
    assert [s.name for s in ef.spectra()] == ["digits"]
    assert capsys.readouterr().out.count("skipped") == 2


@pytest.fixture(scope="module")
def table() -> list[ef.Row]:
    grids = {name: ef.GRIDS[name] for name in ("LogSNR", "Quadratic")}
    texts = "DDIM()", "DDPM()", "Heun()", "UniPC(order=3)"
    found = [ef.Found(text, list(ef.runs(named(text), grids, ef.CALLS[:-1])), []) for text in texts]
    return ef.rows(ef.digits_spectrum(), found)


def test_csv_and_picture(tmp_path, table):
    ef.write_csv(table, tmp_path / "a.csv")
    ef.picture(ef.digits_spectrum(), table, tmp_path / "a.png")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "setting,family,kind,grid,start,5,10,20,50,100,200"
    assert len(lines) == 1 + 4 * 2 * 2
    assert lines[1].startswith("DDIM(),first order,flow,LogSNR,prior,")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_best_of_each_family(table):
    kinds = {("first order", "flow"), ("first order", "noise"), ("Runge-Kutta", "flow"), ("exponential, multistep", "flow")}
    assert set(ef.best(table, 1e-4)) == kinds
    text = ef.markdown(table)
    assert len(text.splitlines()) == 2 + len(kinds)
    least = min(r.frechet for r in table if r.setting == "Heun()" and (r.start, r.calls_asked) == ("marginal", 10))
    assert f"{least:.1e} `Heun()`" in text


def test_the_best_flow_is_no_accident_and_the_best_noise_forgets():
    def rows(setting: str, kind: str, prior: float, marginal: float) -> list[ef.Row]:
        both = (("prior", prior), ("marginal", marginal))
        return [ef.Row(setting, "a", kind, "LogSNR", start, c, c, c, w) for c in ef.CALLS for start, w in both]

    of = [*rows("lucky", "flow", 0.01, 1.0), *rows("good", "flow", 1.0, 0.1)]
    of += [*rows("forgets", "noise", 0.01, 0.01), *rows("keeps", "noise", 1.0, 0.001)]
    assert ef.best(of, 1.0) == {("a", "flow"): ("good", "LogSNR"), ("a", "noise"): ("forgets", "LogSNR")}


def test_csv_reads_back(tmp_path, table):
    ef.write_csv(table, tmp_path / "a.csv")
    assert sorted(ef.read_csv(tmp_path / "a.csv")) == sorted(r._replace(steps=0, calls=r.calls_asked) for r in table)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_page_shows_what_the_csv_holds(name):
    docs = ef.ROOT / "docs"
    assert ef.markdown(ef.read_csv(docs / "results" / f"exact_frechet_{name}.csv")) in (docs / "exact_frechet.md").read_text()
