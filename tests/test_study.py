"""The study's engine: what a TOML file may say, pairing, records that survive anything, and what is read out of them."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import string
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdediff import (
    DDIM,
    DDPM,
    EDM,
    VE,
    DDPMSubsequence,
    DiscreteVP,
    FlowMatching,
    LogSNR,
    Mixture,
    Quadratic,
    SubVP,
    UserError,
    VPCosine,
    VPLinear,
    latents,
    solve,
)
from sdediff.data import InMemory
from sdediff.external import TorchSDE
from sdediff.features import Extractor, Reference
from sdediff.metrics import Estimate, Moments
from sdediff.noise import BrownianNoise
from sdediff.prediction import Model, Prediction
from sdediff.schedule import Knot, Schedule
from sdediff.solvers import SOLVERS, AnnealedLangevin
from sdediff.study import (
    Cell,
    Gathered,
    Group,
    Job,
    Problem,
    Product,
    Record,
    Sampling,
    Store,
    Study,
    changed,
    chosen,
    consistency,
    difference,
    findings_of,
    front_of,
    gathered,
    groups_of,
    merge,
    open_folder,
    plan,
    quick,
    read_study,
    run,
    shipped,
    study_of,
    ties,
    verdict,
    write_report,
)
from sdediff.study.analysis import best_of, floor_of
from sdediff.study.costs import Timed, forget_peak, peak_memory
from sdediff.study.store import StoreError
from sdediff.study.work import method, path_of

CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])


# --- a study that takes a second --------------------------------------------------------------------------------------


def oracle(schedule: Schedule | None = None) -> Mixture:
    return Mixture(CENTRES.tolist(), [0.3, 0.2, 0.25], schedule=schedule or VPLinear())


def looked_at(x: Tensor) -> tuple[Tensor, Tensor]:
    """The points as they are, and the nearest centre as their class."""
    return x.flatten(1), -torch.cdist(x, CENTRES)


def toy_problem(model: Model | None = None, **options: Any) -> Problem:
    """Points in the plane: no images, and an oracle as the model."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1)) * 0.25
    real = InMemory(x + CENTRES.repeat(100, 1), None, "points", None)
    eye = {"points": Extractor("points", "points-1", looked_at, 2)}
    return Problem(model or oracle(), real, torch.arange(300), eye, **options)


def toy_study(**options: Any) -> Study:
    asked: dict[str, Any] = {
        "name": "toy",
        "products": (Product(("DDIM()", "DDPM()"), calls=(2, 4)),),
        "samples": 70,
        "reference": {"solver": "Heun(Angle())", "calls": 8},
        "metrics": ("frechet", "precision"),
    }
    return Study(**{**asked, **options})


def toy_job(folder: Path, study: Study | None = None, model: Model | None = None, **options: Any) -> Job:
    return Job(study or toy_study(), toy_problem(model, **options), Store(folder))


def finished(folder: Path, study: Study | None = None, model: Model | None = None, again: bool = False, **options: Any) -> Job:
    job = toy_job(folder, study, model, **options)
    for _ in run(job, again):
        pass
    return job


def cells_of(job: Job) -> list[Sampling]:
    return [w for w in job.works if isinstance(w, Sampling) and not w.converges]


def table(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a finished toy study; nobody changes it."""
    folder = tmp_path_factory.mktemp("whole")
    finished(folder)
    return folder


@dataclass(frozen=True)
class Sick:
    """An oracle that has no answer at one time."""

    model: Mixture
    time: float = 0.5

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        return self.model(x * float("nan") if t.time == self.time else x, t)

    def rows(self, index: Tensor) -> Sick:
        return self


SICK = (Product(("DDIM()",), calls=(2, 4)), Product(("DDIM()",), ("Times((1.0, 0.5, 0.001))",), calls=(2,)))


# --- what a file may say ----------------------------------------------------------------------------------------------

CELLS = {"solvers": ["DDIM()"], "calls": [5]}


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"sample": 5}, "no section or key 'sample'. Did you mean 'samples'?"),
        ({"model": {"check_point": "digits"}}, "[model] has no key 'check_point'. Did you mean 'checkpoint'?"),
        ({"model": "digits"}, "write [model] and its keys below"),
        ({"model": {"checkpoint": 5}}, "[model] checkpoint is a text, in quotes, not 5"),
        ({"model": {"labels": 3}}, "[model] labels is a text, in quotes, not 3"),
        ({"cells": CELLS}, "write [[cells]], with two brackets"),
        ({"cells": ["DDIM()"]}, "write [[cells]], with two brackets"),
        ({"cells": []}, "at least one [[cells]] table"),
        ({"cells": [{**CELLS, "gird": ["LogSNR()"]}]}, "[cells] has no key 'gird'. Did you mean 'grids'?"),
        ({"cells": [{"calls": [5]}]}, "has no solvers"),
        ({"cells": [{"solvers": [], "calls": [5]}]}, "solvers = [] names none"),
        ({"cells": [{**CELLS, "calls": 5}]}, "calls is a list: write calls = [5]"),
        ({"cells": [{**CELLS, "solvers": "DDIM()"}]}, 'solvers is a list: write solvers = ["DDIM()"]'),
        ({"cells": [{**CELLS, "calls": ["5"]}]}, "calls holds numbers, not '5'"),
        ({"cells": [{**CELLS, "calls": [True]}]}, "calls holds numbers, not True"),
        ({"cells": [{**CELLS, "calls": [0]}]}, "calls must be a whole number of at least 1, not 0"),
        ({"cells": [{**CELLS, "solvers": [5]}]}, "solvers holds texts, not 5"),
        ({"cells": [{**CELLS, "solvers": ["DDMI()"]}]}, "Did you mean 'DDIM'?"),
        ({"cells": [{**CELLS, "grids": ["Karas()"]}]}, "Did you mean 'Karras'?"),
        ({"cells": [{**CELLS, "grids": []}]}, "has solvers, but no budget"),
        ({"cells": [{**CELLS, "guidance": ["ClasifierFree(2.0)"]}]}, "Did you mean 'ClassifierFree'?"),
        ({"cells": [{"solvers": ["DDIM()"]}]}, "takes no tolerance, it has no error estimate: give calls"),
        ({"cells": [{"solvers": ["DDIM()"], "tolerances": [0.1]}]}, "takes no tolerance"),
        ({"cells": [{"solvers": ["default"]}]}, "has solvers, but no budget"),
        ({"cells": [{"solvers": ["AdaptiveAdams()"], "tolerances": [0]}]}, "tolerances must be above 0, not 0"),
        ({"cells": [{"solvers": ["AdaptiveAdams()"], "tolerances": [math.inf]}]}, "tolerances must be above 0, not inf"),
        ({"cells": [{**CELLS, "calls": [5, 5]}]}, "(DDIM(), LogSNR(), 5 calls, seed 0) is twice in [[cells]] number 1"),
        ({"cells": [{**CELLS, "solvers": ["DDIM()", "DDIM(0.0)"]}]}, "is twice in [[cells]] number 1"),
        ({"cells": [CELLS, CELLS]}, "is in [[cells]] 1 and 2"),
        ({"metrics": []}, "must be at least one"),
        ({"metrics": ["kid", "kid"]}, "none twice"),
        ({"metrics": "kid"}, 'write metrics = ["kid"]'),
        ({"metrics": ["fretchet"]}, "Did you mean 'frechet'?"),
        ({"seeds": [0, 0]}, "none twice"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [-1]}, "seeds must be a whole number of at least 0"),
        ({"seeds": 3}, "seeds is a list"),
        ({"samples": 1}, "samples must be a whole number of at least 2"),
        ({"samples": 10.0}, "samples must be a whole number"),
        ({"shown": -1}, "shown must be a whole number of at least 0"),
        ({"name": "a/b"}, "names a folder"),
        ({"name": ".."}, "names a folder"),
        ({"name": 5}, "names a folder"),
        ({"question": 5}, "question is a text"),
        ({"extras": "no"}, "extras is true or false"),
        ({"reference": {"calls": "many"}}, "[reference] calls must be a whole number"),
        ({"reference": {"solver": "DDPM()"}}, "draws noise"),
        ({"reference": {"tolerance": 1e-3}}, "takes no tolerance"),
        ({"reference": {"none": "yes"}}, "none = true"),
        ({"reference": {"grid": "Karas()"}}, "Did you mean 'Karras'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_sentence(given_, said):
    with pytest.raises(UserError) as wrong:
        study_of({"cells": [CELLS], **given_}, "mine.toml")
    assert said in str(wrong.value)
    assert "mine" in str(wrong.value) or "Did you mean" in str(wrong.value) or "takes no tolerance" in str(wrong.value) or "name" in given_


def test_what_can_be_meant():
    made = study_of({"cells": [{**CELLS, "guidance": ["", "ClassifierFree(2.0)"]}], "seeds": [3, 1]}, "mine.toml")
    assert made.name == "mine"
    assert [(c.guidance is None, c.seed) for c in made.cells()] == [(True, 3), (True, 1), (False, 3), (False, 1)]
    assert [(c.guidance is None, c.seed) for c in made.references()] == [(True, 3), (True, 1), (False, 3), (False, 1)]
    assert study_of({"cells": [CELLS], "reference": {"none": True}}, "mine.toml").references() == []
    both = study_of({"cells": [{"solvers": ["AdaptiveAdams()", "DDIM()"], "calls": [5], "tolerances": [0.1, 1]}]}, "mine.toml")
    assert [(c.calls, c.tolerance) for c in both.cells()] == [(5, None), (None, 0.1), (None, 1), (5, None)]


def test_cfg_plus_plus_has_no_converged_flow():
    cells = [{**CELLS, "guidance": ["CFGPlusPlus(0.6)", "ClassifierFree(2.0)"]}]
    assert len(study_of({"cells": cells}, "mine.toml").references()) == 1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(string.ascii_letters + string.digits + "-_ .é", min_size=1, max_size=8).filter(lambda s: s.strip(". "))
studies = st.builds(
    lambda name, question, samples, seeds, metrics, extras, grids, calls, tolerances, leanings, model, reference: Study(
        name,
        (Product(("DDIM(0.5)", "default", "AdaptiveAdams()"), grids, calls, tolerances, leanings), Product(("DDPM()",), calls=(999,))),
        question, samples, seeds, metrics, 3, extras, model, {"name": "digits", "references": 99}, {"extractor": "digits"}, reference,
    ),
    names,
    texts,
    st.integers(2, 10**6),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True).map(tuple),
    st.lists(st.sampled_from(["frechet", "kid", "frechet@pixels", "recall"]), min_size=1, unique=True).map(tuple),
    st.booleans(),
    st.sampled_from([("LogSNR()",), ("Karras(rho=3)", "Quadratic()")]),
    st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True).map(tuple),
    st.lists(st.floats(1e-9, 1), max_size=2, unique=True).map(tuple),
    st.sampled_from([(), ("", "ClassifierFree(scale=2.0)")]),
    st.dictionaries(st.sampled_from(["checkpoint", "labels"]), texts),
    st.sampled_from([{}, {"none": True}, {"solver": "Heun(Angle())", "calls": 30}]),
)  # fmt: skip


@given(studies)
@settings(max_examples=60, deadline=None)
def test_a_study_is_its_text(study):
    import tomllib

    again = study_of(tomllib.loads(study.text()), "x.toml")
    assert again == study
    assert again.text() == study.text()


def test_the_studies_of_the_package(tmp_path):
    assert {"digits", "mnist", "mnist-foreign"} <= set(shipped())
    for name, question in shipped().items():
        study = read_study(name)
        assert study.name == name
        assert len(question) > 20
        (tmp_path / f"{name}.toml").write_text(study.text())
        assert read_study(tmp_path / f"{name}.toml") == study
        small = quick(study)
        assert small.samples <= 64
        assert len(small.cells()) < len(study.cells())
    with pytest.raises(UserError, match="Did you mean 'mnist'"):
        read_study("mnits")
    with pytest.raises(UserError, match="there is no config"):
        read_study(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(UserError, match="is not TOML"):
        read_study(tmp_path / "broken.toml")


def test_options_in_place_of_a_file():
    study = changed(
        read_study("digits"), solvers=["DDIM()"], calls=[3], name="x", samples=9, seeds=[4], metrics=["kid"], checkpoint="mnist"
    )
    assert [str(c) for c in study.cells()] == ["DDIM(), Quadratic(), 3 calls, seed 4"]
    assert (study.name, study.samples, study.metrics, study.model) == ("x", 9, ("kid",), {"checkpoint": "mnist"})
    only = changed(read_study("digits"), solvers=["DDIM(0.3)"])
    assert [c.calls for c in only.cells()] == [5, 10, 20, 50, 100, 200, 1000]
    assert changed(read_study("digits")) == read_study("digits")


def test_no_two_solvers_share_a_curve():
    pairs = [
        ("ExponentialAdams(3, tau=0.5)", "ExponentialAdams(3, data_std=0.5)"),
        ("IPNDM(4, variable=False)", "IPNDM(4, corrected=True)"),
        ("AnalyticDPM(0.5)", "AnalyticDPM(eta=0.5)"),
        ("DDIM(0.5)", "DDIM(0.25)"),
        ("SciPy('RK45', 0.1, 0.1, Time())", "SciPy('RK45', 0.1, 0.1, Angle())"),
    ]
    for pair in pairs:
        a, b = Product(pair, calls=(8,)).cells([0], 10)
        assert a.curve != b.curve
    short = Product(("DDIM(0.5)", "RungeKutta('rk4', Angle())", "DDPM('large')", "UniPC(3)"), calls=(8,)).cells([0], 10)
    assert [c.curve for c in short] == ["DDIM(0.5)", "RungeKutta(Angle())", "DDPM('large')", "UniPC(3)"]
    loose, tight = Product(("SciPy('RK45', 0.1, 0.1, Time())", "SciPy('RK45', 0.01, 0.01, Time())")).cells([0], 10)
    assert loose.curve == tight.curve
    assert (loose.budget, tight.budget) == ("0.1", "0.01")


# --- pairing ----------------------------------------------------------------------------------------------------------


def drawn(folder: Path, study: Study) -> dict[tuple[str, int], Tensor]:
    """The samples of each cell, by its curve and seed."""
    job = toy_job(folder, study)
    for _ in run(replace(job, study=study)):
        pass
    found = {}
    for work in cells_of(job):
        states = [work.solved(i)[0].x for i in range(work.chunks)]
        found[work.cell.curve, work.cell.seed] = torch.cat(states)[: work.cell.samples]
    return found


def test_a_sample_is_the_same_for_any_number_of_samples_and_order_of_seeds(tmp_path):
    solvers = Product(("DDIM()", "DDPM()", "SDEDPMSolverPP(2)"), calls=(4,))
    few = drawn(tmp_path / "few", toy_study(products=(solvers,), samples=70, seeds=(0, 5)))
    many = drawn(tmp_path / "many", toy_study(products=(solvers,), samples=192, seeds=(5, 0)))
    for key, x in few.items():
        assert torch.equal(x, many[key][:70])
    assert not torch.equal(few["DDIM()", 0], few["DDIM()", 5])
    a, b = (Store(tmp_path / k) for k in ("few", "many"))
    errors = [
        {r["curve"]: s.record(r["cell"]).tensors["error"][:70] for r in table(s.folder) if r["seed"] == "5" and r["kind"] == "cell"}
        for s in (a, b)
    ]
    assert all(torch.equal(errors[0][k], errors[1][k]) for k in errors[0])


def test_a_chunk_is_what_its_samples_are_by_themselves(tmp_path):
    """Latents, and the Brownian path, of the samples 64 to 127 and of nobody else."""
    work = cells_of(toy_job(tmp_path, toy_study(products=(Product(("DDPM()",), calls=(4,)),), seeds=(6,))))[0]
    x = latents(oracle(), 128, seed=6)[64:]
    noise = path_of(6, DDPM(), VPLinear()).on(x, index=range(64, 128))
    assert torch.equal(work.solved(1)[0].x, solve(DDPM(), oracle(), x, LogSNR().knots(VPLinear(), 4), noise=noise).x)


def test_labels_stay_with_their_samples():
    """Sample i has label i mod classes, whatever its chunk."""
    seen = []

    @dataclass(frozen=True)
    class Told:
        model: Model
        schedule: Schedule
        labels: Tensor | None = None
        shape: tuple[int, ...] = (2,)
        classes: int = 3

        def with_labels(self, labels: Tensor | None) -> Told:
            return replace(self, labels=labels)

        def __call__(self, x: Tensor, t: Knot) -> Prediction:
            seen.append(self.labels)
            return self.model(x, t)

        def rows(self, index: Tensor) -> Told:
            return replace(self, labels=None if self.labels is None else self.labels[index])

    model = Told(oracle(), VPLinear())
    job = toy_job(Path("nowhere"), toy_study(samples=130), model, labels=torch.arange(3))
    cells_of(job)[0].solved(1)
    assert torch.equal(seen[-1], torch.arange(64, 128) % 3)


SCHEDULES = (VPLinear(), VPCosine(), DiscreteVP.linear(200), SubVP(), VE(), EDM(), FlowMatching())
STOCHASTIC = [made() for made in (*SOLVERS, TorchSDE) if made().facts.stochastic and made is not AnnealedLangevin]
STOCHASTIC.append(AnnealedLangevin(steps=4))  # its default of 100 takes its time


@dataclass
class Watched:
    """Noise that remembers what was asked of it."""

    noise: Any
    asked: list[tuple[str, float, float]]

    def __call__(self, a: float, b: float, key: int = 0) -> Tensor:
        self.asked.append(("path" if key == 0 else "other", a, b))
        return self.noise(a, b, key)

    def area(self, a: float, b: float, key: int = 0) -> tuple[Tensor, Tensor]:
        self.asked.append(("path" if key == 0 else "other", a, b))
        return self.noise.area(a, b, key)

    def fresh(self, key: int) -> Tensor:
        self.asked.append(("fresh", 0, 0))
        return self.noise.fresh(key)

    def rows(self, index: Tensor) -> Watched:
        return Watched(self.noise.rows(index), self.asked)


# what these cannot do, they say in a sentence: on a grid that ends without noise their clock leaves the path, which ends at t_min; where
# t_max has no signal they have no first step; more calls are needed for one step
ENDS = {"EulerMaruyama", "GottaGoFast", "SRA1", "ShARK", "TorchSDE"}
STARTS = {"EulerMaruyama", "GottaGoFast", "SRA1", "ShARK", "TorchSDE", "SEEDS", "Restart", "AnnealedLangevin"}
SENTENCES = ("path is known on", "are too few", "start", "Start", "not defined", "not finite", "NaN")


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda s: type(s).__name__)
def test_every_stochastic_solver_follows_the_path_of_its_seed(solver):
    name = type(solver).__name__
    for schedule in SCHEDULES:
        grids = [Quadratic(), *([] if isinstance(schedule, FlowMatching) else [LogSNR()])]
        grids += [DDPMSubsequence()] if isinstance(schedule, DiscreteVP) else []
        for grid in grids:
            x, calls = latents(oracle(schedule), 4), 20
            path, asked = path_of(3, solver, schedule), []
            try:
                made, knots = method(Cell(solver, grid, calls, None, None, 3, 64), schedule)
                found = solve(made, oracle(schedule), x, knots, noise=Watched(path.on(x), asked))
            except UserError as wrong:
                refused = (isinstance(grid, DDPMSubsequence) and name in ENDS) or (isinstance(schedule, FlowMatching) and name in STARTS)
                if not (refused and any(s in str(wrong) for s in SENTENCES)):
                    raise
                continue
            assert torch.isfinite(found.x).all()
            kinds = {k for k, _, _ in asked}
            assert kinds <= {"path", "fresh"}
            assert kinds == {"path"} or name in {"PredictorCorrector", "Restart", "AnnealedLangevin"}
            low, high = path.range
            assert all(low <= min(a, b) <= max(a, b) <= high for k, a, b in asked if k == "path")


def test_the_path_is_one_for_every_step_count_and_solver_of_a_clock():
    clocks: dict[str, set] = {}
    for solver in STOCHASTIC:
        clocks.setdefault(solver.facts.clock, set()).add(path_of(3, solver, VPLinear()))
    assert all(len(paths) == 1 for paths in clocks.values())
    assert path_of(3, DDPM(), VPLinear()) != path_of(4, DDPM(), VPLinear())
    for steps in (5, 40):  # the whole is the sum of its parts: with it, no step count has noise of its own
        knots = LogSNR().knots(VPLinear(), steps)
        ends = [k.clock(DDPM().facts.clock) for k in knots]
        noise: BrownianNoise = path_of(3, DDPM(), VPLinear()).on(torch.zeros(3, 2, dtype=torch.float64))
        parts = sum(noise(a, b) for a, b in pairwise(ends))
        torch.testing.assert_close(parts, noise(ends[0], ends[-1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_steps_of_a_path_are_independent_and_of_the_right_size(schedule):
    """Also where the clock begins at 0 and spans six decades: steps that fell into one leaf of the tree would share their numbers."""
    noise = path_of(0, DDPM(), schedule).on(torch.zeros(300, 10))
    ends = [k.clock(DDPM().facts.clock) for k in Quadratic().knots(schedule, 50)]
    z = torch.stack([noise(a, b) / abs(b - a) ** 0.5 for a, b in pairwise(ends)])
    square, beside = z.square().mean((1, 2)), (z[1:] * z[:-1]).mean((1, 2))
    assert 0.88 < float(square.min()) < float(square.max()) < 1.12
    assert float(beside.abs().max()) < 0.08


def test_pairing_makes_differences_small(whole):
    """From the same latents and path, two step counts differ by far less than two samples do."""
    job = toy_job(whole, toy_study(products=(Product(("DDIM()", "DDPM()"), calls=(40, 80)),)))
    for few, many in zip(cells_of(job)[::2], cells_of(job)[1::2], strict=True):
        a, b = few.solved(0)[0].x, many.solved(0)[0].x
        assert float((a - b).square().mean()) < 0.1 * float((a - b.roll(1, 0)).square().mean())


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_folder_of_a_study(whole):
    assert {p.name for p in whole.iterdir()} == {"study.toml", "order.json", "results.csv", "costs.csv", "cells", "parts", "locks"}
    assert read_study(whole / "study.toml") == toy_study()
    rows, spent = table(whole), table(whole, "costs.csv")
    assert [r["kind"] for r in rows] == ["flow"] + ["cell"] * 4
    assert [r["curve"] for r in rows[1:]] == ["DDIM()", "DDIM()", "DDPM()", "DDPM()"]
    assert [r["cell"] for r in rows] == [r["cell"] for r in spent] == [e["id"] for e in json.loads((whole / "order.json").read_text())][1:]
    for r in rows:
        assert r["status"] == "done"
        assert float(r["frechet_low"]) < float(r["frechet"]) < float(r["frechet_high"])
        assert r["calls_made"] == f"{float(r['calls_asked'])!r}"
        assert (float(r["error"]) == 0) == (r["kind"] == "flow")
    for r in spent:
        assert float(r["seconds"]) > 0
        assert 0 < float(r["network"]) < 1
        assert float(r["memory"]) > 1e7
    assert not set(spent[0]) & (set(rows[0]) - {"cell"})


def test_the_schema_of_a_record(whole):
    store = Store(whole)
    for r in table(whole):
        record = store.record(r["cell"])
        assert record is not None
        about = dict(record.about)
        for key in ("weights", "data", "extractors", "versions", "seed", "samples", "solver", "made", "costs", "metrics_of", "scales"):
            assert key in about
        assert {"python", "sdediff", "torch", "numpy", "scipy"} <= set(about["versions"])
        t = record.tensors
        assert {k: tuple(v.shape) for k, v in t.items() if k in ("error", "calls", "features", "labels")} == {
            "error": (70,), "calls": (70,), "features": (70, 2), "labels": (70,),
        }  # fmt: skip
        for metric in ("frechet", "precision"):
            influence = t[f"{metric}.influence"]
            assert influence.dtype == torch.float64
            assert abs(float(influence.mean())) < 1e-9 * max(1.0, float(influence.abs().max()))
    json.dumps(about)


def test_results_are_read_as_a_frame(whole):
    from sdediff.study import frame

    found = frame(whole)
    assert len(found) == 5
    assert {"curve", "calls_asked", "frechet", "seconds", "memory"} <= set(found.columns)


def test_what_is_kept_has_the_interval_of_what_was_measured(whole):
    from sdediff.study import estimates

    job = toy_job(whole)
    work = cells_of(job)[0]
    chunks = [work.run(i) for i in range(work.chunks)]
    features = [c.tensors["points"][: 70 - 64 * c.number] for c in chunks]
    judge = work.judge()
    measured = judge.estimates(lambda what: features, 70)
    record = Store(whole).record(work.id)
    assert record is not None
    for name, e in measured.items():
        assert estimates(record)[name].interval() == pytest.approx(e.interval(), rel=1e-12)
        assert estimates(record)[name].se == pytest.approx(e.se, rel=1e-12)


def test_a_second_start_does_nothing(whole, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    monkeypatch.setattr(Sampling, "run", lambda *_: pytest.fail("it was run again"))
    finished(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_changed_setting_is_a_new_cell(tmp_path):
    """Whatever a result depends on is in the cell's name; the old record stays."""
    finished(tmp_path, toy_study())
    old = {p.name for p in (tmp_path / "cells").iterdir()}
    ids = {w.id for w in toy_job(tmp_path).works}
    other_eye = {"points": Extractor("points", "points-2", looked_at, 2)}
    cold = Mixture(CENTRES.tolist(), [0.3, 0.2, 0.2501], schedule=VPLinear())
    fewer = replace(toy_problem(), rows=torch.arange(299))
    others = [
        toy_job(tmp_path, toy_study(samples=71)),
        toy_job(tmp_path, toy_study(metrics=("frechet",))),
        toy_job(tmp_path, toy_study(seeds=(1,))),
        toy_job(tmp_path, toy_study(shown=3)),
        toy_job(tmp_path, model=cold),
        toy_job(tmp_path, model=oracle(VPLinear(0.2, 20.0))),
        Job(toy_study(), replace(toy_problem(), extractors=other_eye), Store(tmp_path)),
        Job(toy_study(), fewer, Store(tmp_path)),
    ]
    for job in others:
        assert not {w.id for w in cells_of(job)} & ids
    flow = toy_job(tmp_path, toy_study(reference={"solver": "Heun(Angle())", "calls": 10}))
    assert not {w.id for w in flow.works if isinstance(w, Sampling)} & ids  # errors are against another flow
    finished(tmp_path, toy_study(products=(Product(("DDIM()",), calls=(2, 3)),)))
    now = {p.name for p in (tmp_path / "cells").iterdir()}
    assert old < now
    assert len(now) == len(old) + 1
    assert [r["calls_asked"] for r in table(tmp_path)] == ["8", "2", "3"]


def test_the_folder_of_another_study_is_refused(whole, tmp_path):
    finished(tmp_path, toy_study(products=(Product(("DDIM()",), calls=(2,)),)))
    with pytest.raises(UserError, match=r"is the folder of the study 'toy', not of 'mine'"):
        finished(tmp_path, toy_study(name="mine"))
    assert read_study(tmp_path / "study.toml").name == "toy"


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    at = len(data) - 5
    damaged = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "garbage": b"garbage" * 50,
        "a bit": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
    }
    path.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["cut", "empty", "garbage", "a bit"])
def test_a_damaged_record_is_put_aside_and_made_again(whole, tmp_path, how, monkeypatch):
    import shutil

    shutil.copytree(whole, tmp_path / "s")
    folder = tmp_path / "s"
    victim, ran = table(whole)[2]["cell"], []
    damage(folder / "cells" / f"{victim}.safetensors", how)
    plain = Sampling.run
    monkeypatch.setattr(Sampling, "run", lambda self, number: ran.append((self.id, number)) or plain(self, number))
    with pytest.warns(UserWarning, match=r"put aside as .*\.damaged, and is made again"):
        finished(folder)
    assert ran == [(victim, 0), (victim, 1)]
    assert (folder / "cells" / f"{victim}.damaged").exists()
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def stopped(folder: Path, chunks: int, study: Study | None = None) -> None:
    """A job that ends in the middle of the second cell."""
    job, seen = toy_job(folder, study), 0
    second = cells_of(job)[1].id
    for p in run(job):
        seen += p.work.id == second and p.record is None
        if seen == chunks:
            return


def test_finished_chunks_are_not_run_again(whole, tmp_path, monkeypatch):
    stopped(tmp_path, 1)
    ran = []
    plain = Sampling.run
    monkeypatch.setattr(Sampling, "run", lambda self, number: ran.append((self.id, number)) or plain(self, number))
    job = finished(tmp_path)
    first, second, *rest = (w.id for w in cells_of(job))
    assert ran == [(second, 1), *[(i, n) for i in rest for n in (0, 1)]]
    assert first not in dict(ran)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


@pytest.mark.parametrize("how", ["cut", "garbage", "a bit"])
def test_a_damaged_chunk_is_run_again(whole, tmp_path, how):
    stopped(tmp_path, 1)
    part = tmp_path / "parts" / cells_of(toy_job(tmp_path))[1].id / "000000.safetensors"
    damage(part, how)
    with pytest.warns(UserWarning, match="put aside"):
        finished(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_chunks_of_a_job_that_was_killed_after_the_record_are_taken_away(whole, tmp_path):
    stopped(tmp_path, 1)
    job = toy_job(tmp_path)
    first, second = cells_of(job)[:2]
    chunk = job.store.chunk(second.id, 0)
    assert chunk is not None
    job.store.write_chunk(first.id, chunk)
    finished(tmp_path)
    assert [p.name[:5] for p in (tmp_path / "parts").iterdir()] == ["flow-"]


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_lost_chunk_of_the_converged_flow_is_made_again_when_it_is_needed(whole, tmp_path, how):
    """Its record is done: without care the error of later cells would be of other chunks than their samples, or missing."""
    stopped(tmp_path, 1)
    parts = sorted((tmp_path / "parts").glob("flow-*/*.safetensors"))
    damage(parts[1], "cut") if how == "cut" else parts[1].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finished(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


@pytest.mark.parametrize("content", ["name = ", "\x00\x01", "samples = 5"])
def test_a_damaged_study_file_is_written_anew(whole, tmp_path, content):
    stopped(tmp_path, 1)
    (tmp_path / "study.toml").write_text(content)
    with pytest.warns(UserWarning, match=r"study\.toml cannot be read .*records are kept"):
        finished(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_study_file_and_an_order_that_do_not_fit_the_records_are_told(whole, tmp_path):
    import shutil

    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    (folder / "order.json").write_text("[{")
    with pytest.raises(UserError, match=r"order\.json is damaged: run the study again"):
        gathered(open_folder(folder))
    (folder / "order.json").write_bytes((whole / "order.json").read_bytes())
    (folder / "study.toml").write_text(toy_study(products=(Product(("DDIM()", "DDPM()"), calls=(2, 5)),)).text())
    with pytest.raises(UserError, match=r"study\.toml was changed since the study ran"):
        gathered(open_folder(folder))  # as many cells, but others
    (folder / "study.toml").unlink()
    with pytest.raises(UserError, match="is not the folder of a study"):
        gathered(open_folder(folder))


@pytest.mark.parametrize("wrong", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system")])
def test_a_full_disk_is_a_sentence_and_the_study_goes_on_afterwards(whole, tmp_path, monkeypatch, wrong):
    plain, writes = os.fsync, []

    def full(file):
        writes.append(file)
        if len(writes) > 21:
            raise wrong
        plain(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"cannot be written \({wrong.strerror}\): choose another folder, or free some space"):
        finished(tmp_path)
    kept = sorted(p.name for p in tmp_path.rglob("*.safetensors"))
    assert len(kept) >= 6
    assert not any(r["status"] == "failed" for r in table(tmp_path))  # the disk is no cell's fault
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
    monkeypatch.setattr(os, "fsync", plain)
    finished(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_full_disk_is_no_cells_fault_wherever_it_shows(tmp_path, monkeypatch):
    """Here in the middle of a cell, which makes a lost chunk of the converged flow again."""
    stopped(tmp_path, 1)
    for part in (tmp_path / "parts").glob("flow-*/*1.safetensors"):
        part.unlink()
    plain = Store.write_chunk

    def full(self, cell, chunk):
        if cell.startswith("flow-"):
            raise StoreError("no room")
        plain(self, cell, chunk)

    monkeypatch.setattr(Store, "write_chunk", full)
    with pytest.raises(UserError, match="no room"):
        finished(tmp_path)
    assert {r["status"] for r in table(tmp_path)} == {"done"}


def test_a_folder_that_cannot_be_locked_is_a_sentence(tmp_path, monkeypatch):
    import filelock

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(Permission denied\)"):
        finished(tmp_path)


def test_a_job_with_other_settings_waits_for_the_one_that_runs(tmp_path):
    other = toy_study(samples=80)
    going = run(toy_job(tmp_path))
    next(going)
    with pytest.raises(UserError, match=r"another job is running in .* with other settings"):
        finished(tmp_path, other)
    assert read_study(tmp_path / "study.toml") == toy_study()
    left = tmp_path / ".results.csv.abc"
    left.write_text("half")
    second = run(toy_job(tmp_path))  # the same settings: they share the cells
    next(second)
    assert left.exists()  # the other job might just be writing it
    for job in (second, going):
        job.close()
    finished(tmp_path, other)
    assert not left.exists()
    assert len(list((tmp_path / "locks").glob("job-*"))) <= 1


# --- cells that fail --------------------------------------------------------------------------------------------------


def test_cells_that_fail_are_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    few = Product(("RungeKutta('rk4', Angle())",), calls=(3, 8))
    study = toy_study(products=(*SICK, few))
    finished(tmp_path, study, Sick(oracle()))
    rows = [r for r in table(tmp_path) if r["kind"] == "cell"]
    assert [r["status"] for r in rows] == ["done", "done", "failed", "failed", "done"]
    assert "the model returned NaN" in rows[2]["reason"]
    assert "takes 4 calls; 3 are too few" in rows[3]["reason"]
    assert {rows[2][k] for k in ("frechet", "frechet_low", "error", "calls_made")} == {""}
    found = gathered(open_folder(tmp_path))
    shown = findings_of(found, "command", str(tmp_path))
    assert [what for what, _ in shown.failed] == [
        "DDIM(), Times(times=(1.0, 0.5, 0.001)), 2 calls, seed 0", "RungeKutta(Angle()), LogSNR(), 3 calls, seed 0",
    ]  # fmt: skip
    assert len(shown.lines) == 3
    ran = []
    plain = Sampling.run
    monkeypatch.setattr(Sampling, "run", lambda self, number: ran.append(str(self.cell)) or plain(self, number))
    finished(tmp_path, study, Sick(oracle()))
    assert ran == []  # a failed cell is over
    finished(tmp_path, study, Sick(oracle()), again=True)
    assert set(ran) == {what for what, _ in shown.failed}


def test_a_failure_that_nobody_foresaw_keeps_its_traceback(tmp_path, monkeypatch):
    plain = Sampling.run

    def breaks(self, number):
        if number == 1 and self.cell.calls == 2:
            raise ZeroDivisionError("by\nnothing")
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "run", breaks)
        job = finished(tmp_path)
    record = job.store.record(cells_of(job)[0].id)
    assert record is not None
    assert record.failed == "ZeroDivisionError: by"
    assert "Traceback" in record.about["traceback"]
    finished(tmp_path, again=True)
    assert {r["status"] for r in table(tmp_path)} == {"done"}


def test_a_flow_that_failed_and_is_there_later_gives_its_errors(whole, tmp_path, monkeypatch):
    """Cells measured while it had failed are measured again once it is there."""
    plain = Sampling.run

    def breaks(self, number):
        if self.converges:
            raise ZeroDivisionError("once")
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "run", breaks)
        finished(tmp_path)
    assert [r["status"] for r in table(tmp_path)] == ["failed"] + ["done"] * 4
    assert {r["error"] for r in table(tmp_path)} == {""}
    shown = findings_of(gathered(open_folder(tmp_path)), "command", str(tmp_path))
    assert shown.reference is None
    assert "converged flow" in shown.failed[0][0]
    finished(tmp_path, again=True)
    assert (tmp_path / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_where_everything_fails_the_first_reason_is_told(tmp_path):
    broken = {"points": Extractor("points", "p", lambda x: (x[:, None], None), 2)}
    job = Job(toy_study(), replace(toy_problem(), extractors=broken), Store(tmp_path))
    for _ in run(job):
        pass
    assert {r["status"] for r in table(tmp_path)} == {"failed"}
    assert all("the real images could not be measured" in r["reason"] or "extractor points" in r["reason"] for r in table(tmp_path))
    with pytest.raises(UserError, match=r"all that ran failed, first \(the real images\): The extractor points"):
        findings_of(gathered(open_folder(tmp_path)), "command", str(tmp_path))


def test_cfg_plus_plus_refuses_solvers_that_take_other_steps(tmp_path):
    """As `sample` does: the clock around the model must not hide it."""
    from sdediff.guidance import CFGPlusPlus

    study = toy_study(products=(Product(("Heun(Angle())", "DDIM()"), calls=(4,)),))
    job = toy_job(tmp_path, study)

    class Leaning(Problem):
        def asked(self, guidance, n):
            from sdediff.guidance import guided

            return guided(LABELLED, CFGPlusPlus(0.6), torch.zeros(n, dtype=torch.int64))

    given_ = {f: getattr(job.problem, f) for f in ("model", "real", "rows", "extractors")}
    job = Job(study, Leaning(**given_), Store(tmp_path))
    heun, ddim = cells_of(job)
    with pytest.raises(UserError, match="is a way of taking DDIM steps"):
        heun.solved(0)
    ddim.solved(0)


@dataclass(frozen=True)
class Labelled:
    model: Mixture
    labels: Tensor | None = None
    classes: int = 1

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape

    def with_labels(self, labels: Tensor | None) -> Labelled:
        return replace(self, labels=labels)

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        return self.model(x, t)

    def rows(self, index: Tensor) -> Labelled:
        return self


LABELLED = Labelled(oracle())


# --- what is read out of them -----------------------------------------------------------------------------------------


def made_up(solver: str, calls: int, influence: np.ndarray, value: float, seed: int = 0, metric: str = "frechet", **about: Any):
    """A (cell, record) whose metric has this value and influence."""
    n = len(influence)
    cell = Product((solver,), calls=(calls,)).cells([seed], n)[0]
    told = {**cell.about(), "status": "done", "stochastic": cell.stochastic, "metrics_of": {metric: value}, "scales": {metric: None}}
    told |= {"made": {"mean": calls, "fewest": calls, "most": calls}, "costs": {"seconds": 1.0, "network": 0.5, "memory": 1.0}, **about}
    tensors = {f"{metric}.influence": torch.from_numpy(influence - influence.mean()), "error": torch.full((n,), 0.1)}
    return cell, Record(told, tensors)


def lines_of(*made: tuple[Cell, Record]) -> list[Group]:
    cells = [(cell, str(i)) for i, (cell, _) in enumerate(made)]
    return groups_of(cells, {str(i): r for i, (_, r) in enumerate(made)})


RNG = np.random.default_rng(0)
SHARED, OWN = 10 * RNG.standard_normal(400), RNG.standard_normal((6, 400))


def test_a_difference_is_taken_sample_by_sample():
    a, b = lines_of(made_up("DDIM()", 5, SHARED + OWN[0], 9.3), made_up("DDPM()", 5, SHARED + OWN[1], 9.0))
    found = difference(a, b, "frechet")
    own = (OWN[0] - OWN[0].mean()) - (OWN[1] - OWN[1].mean())
    assert found.value == pytest.approx(0.3)
    assert found.se == pytest.approx(own.std(ddof=1) / 20, rel=1e-6)
    assert found.se < 0.2 * Estimate(0, SHARED).se


def test_a_line_is_the_mean_of_its_seeds():
    parts = [made_up("DDIM()", 5, SHARED + OWN[i], 9.0 + i, seed=i) for i in range(3)]
    (line,) = lines_of(*parts)
    pooled = line.pooled("frechet")
    assert pooled is not None
    assert pooled.value == pytest.approx(10.0)
    assert pooled.se == pytest.approx(math.sqrt(sum(Estimate(0, SHARED + OWN[i]).se ** 2 for i in range(3))) / 3, rel=1e-3)
    assert line.name == "DDIM()@5"
    two = [made_up("DDPM()", 5, SHARED + OWN[3 + i], 8.0, seed=i) for i in (0, 2)]
    a, b = lines_of(*parts, *two)
    assert difference(a, b, "frechet").value == pytest.approx((1 + 3) / 2)  # on the seeds that both have


def test_lines_without_a_common_seed_are_not_compared():
    """One failed in one seed, one in the other: the report is drawn all the same."""
    made = [made_up("DDIM()", 5, SHARED + OWN[0], 9.0, seed=0), made_up("DDPM()", 5, SHARED + OWN[1], 1.0, seed=1)]
    a, b = lines_of(*made)
    with pytest.raises(UserError, match="no seed in common"):
        difference(a, b, "frechet")
    assert ties([a, b], "frechet") == (0, 0)
    cells = [(cell, str(i)) for i, (cell, _) in enumerate(made)]
    found = Gathered(toy_study(seeds=(0, 1), metrics=("frechet",)), cells, [], {str(i): r for i, (_, r) in enumerate(made)}, None)
    assert [line.against for line in findings_of(found, "", "").lines] == [None, None]


def test_the_front_and_the_best_where_low_is_better():
    worst, cheap, equal, best = lines_of(
        made_up("DDIM()", 5, SHARED + OWN[0], 20.0),
        made_up("DDPM()", 5, SHARED + OWN[1], 12.0),
        made_up("DDIM()", 10, SHARED + OWN[2], 11.99),
        made_up("DDIM()", 20, SHARED + OWN[3], 10.0),
    )
    lines = [worst, cheap, equal, best]
    assert best_of(lines, "frechet") == 3
    assert front_of(lines, "frechet") == [1, 3]
    assert ties(lines, "frechet") == (5, 6)


def test_the_front_and_the_best_where_high_is_better():
    made = [
        made_up("DDIM()", c, 0.3 * (SHARED / 10 + OWN[i] / 10), v, metric="precision") for i, (c, v) in enumerate([(5, 0.3), (10, 0.8)])
    ]
    lines = lines_of(*made)
    assert best_of(lines, "precision") == 1
    assert front_of(lines, "precision") == [0, 1]
    assert verdict(lines[0], lines[1], "precision", "precision").startswith("DDIM()@10 beats DDIM()@5 in precision by 0.5")
    lower = lines_of(*[made_up("DDIM()", c, 0.3 * SHARED, v, metric="precision") for c, v in [(5, 0.8), (10, 0.3)]])
    assert front_of(lower, "precision") == [0]


def test_verdicts():
    a, b, c = lines_of(
        made_up("DDIM()", 5, SHARED + OWN[0], 9.0),
        made_up("DDPM()", 5, SHARED + OWN[1], 12.0),
        made_up("DDIM()", 10, SHARED + OWN[2], 9.05),
    )
    for first, second in ((a, b), (b, a)):
        said = verdict(first, second, "frechet", "Frechet distance")
        assert said.startswith("DDIM()@5 beats DDPM()@5 in Frechet distance by 3 [2.")
        assert "p = " in said or "p < " in said
    assert verdict(a, c, "frechet", "Frechet distance").startswith("A tie in Frechet distance: DDIM()@5 and DDIM()@10 differ by -0.05 [")


def test_lines_are_chosen_by_name():
    lines = lines_of(
        made_up("DDIM()", 5, SHARED, 9.0), made_up("DDIM()", 10, SHARED, 9.0), made_up("DDPM('large')", 5, SHARED, 9.0),
        made_up("SciPy('RK45', 0.1, 0.1, Time())", 5, SHARED, 9.0), made_up("SciPy('RK45', 0.01, 0.01, Time())", 5, SHARED, 9.0),
    )  # fmt: skip
    assert chosen(lines, "DDIM()@10") is lines[1]
    assert chosen(lines, ' DDPM("large") @ 5') is lines[2]
    assert chosen(lines, "DDPM('large')") is lines[2]
    assert chosen(lines, "DDIM(eta=0.0)@5") is lines[0]
    assert len({line.name for line in lines}) == 5
    assert all(chosen(lines, line.name) is line for line in lines)
    with pytest.raises(UserError, match=r"no line is called 'DDMI\(\)@10'. Did you mean 'DDIM\(\)@10'\? There are: "):
        chosen(lines, "DDMI()@10")
    with pytest.raises(UserError, match="no line is called"):
        chosen(lines, "DDIM()")  # there are two


def test_grids_and_guidance_make_curves_of_their_own():
    products = (Product(("DDIM()",), ("LogSNR()", "Quadratic()"), (5,), guidance=("", "ClassifierFree(2.0)", "ClassifierFree(3.0)")),)
    cells = products[0].cells([0], 400)
    records = {}
    for i, cell in enumerate(cells):
        _, record = made_up("DDIM()", 5, SHARED, 9.0)
        records[str(i)] = Record({**record.about, **cell.about()}, record.tensors)
    lines = groups_of([(c, str(i)) for i, c in enumerate(cells)], records)
    assert len({g.curve for g in lines}) == 6


def test_the_floor_of_a_metric(whole):
    real = gathered(open_folder(whole)).real
    assert real is not None
    values = real.tensors["floor.frechet"]
    noise = floor_of(real)["frechet"]
    assert len(values) == 10
    assert noise.value == pytest.approx(float(values.mean()))
    assert noise.high - noise.value == pytest.approx(1.96 * float(values.std()))
    assert real.about["floor"] == 70
    assert 0 < noise.value < 0.3
    shown = findings_of(gathered(open_folder(whole)), "", "")
    assert "; 70 real ones score " in shown.answer[1]
    fewer = replace(gathered(open_folder(whole)), real=Record({**real.about, "floor": 35}, real.tensors))
    assert "; 35 real ones score " in findings_of(fewer, "", "").answer[1]  # where there are not twice as many
    assert floor_of(None) == {}


def test_few_calls_against_many():
    def with_labels(made, labels, features):
        return made[0], Record(made[1].about, {**made[1].tensors, "labels": torch.tensor(labels), "features": torch.tensor(features)})

    few = with_labels(made_up("DDIM()", 5, SHARED[:4], 9.0), [0, 1, 2, 2], [[0.0], [0.0], [0.0], [2.0]])
    many = with_labels(made_up("DDIM()", 10, SHARED[:4], 9.0), [0, 1, 1, 2], [[0.0], [0.0], [0.0], [0.0]])
    (row,) = consistency(lines_of(few, many))
    assert row == {"curve": "DDIM()", "calls": 5, "against": 10, "same_label": 0.75, "feature_distance": 1.0}


def test_findings_without_a_reference_and_without_images(tmp_path):
    finished(tmp_path, toy_study(reference={"none": True}))
    shown = findings_of(gathered(open_folder(tmp_path)), "command", str(tmp_path))
    assert shown.reference is None
    assert shown.sheets == []
    assert all("error" not in line.measures for line in shown.lines)
    assert len(shown.answer) in (2, 3)
    assert "Of 6 pairs of lines" in shown.answer[-1]
    assert [line.against is None for line in shown.lines].count(True) == 1  # the best
    for line in shown.lines:
        assert line.good == (line.against is None or line.against.p >= 0.05)


def test_statistics_of_a_file_in_place_of_the_data(tmp_path):
    """Moments measured elsewhere are what the Frechet distance is taken to."""
    known = Reference(Moments(torch.zeros(2).double() + 5, torch.eye(2).double(), 1000), "points", "points-1", "elsewhere", None)
    finished(tmp_path, toy_study(metrics=("frechet",)), statistics={"points": known})
    assert all(20 < float(r["frechet"]) < 100 for r in table(tmp_path))
    shown = findings_of(gathered(open_folder(tmp_path)), "command", str(tmp_path))
    assert shown.lines
    assert "elsewhere" in json.dumps(dict(shown.about)) or shown.about["statistics"]


# --- before and beside a run ------------------------------------------------------------------------------------------


def test_the_plan_counts_what_is_left(tmp_path):
    *_, before = plan(toy_job(tmp_path))
    assert not isinstance(before, str)
    assert not tmp_path.joinpath("study.toml").exists()
    assert [c.chunks for c in before.cells] == [2] * 5
    assert before.calls == 70 * (8 + 2 + 4 + 2 + 4)
    assert before.seconds > 0
    stopped(tmp_path, 1)
    *_, after = plan(toy_job(tmp_path))
    assert not isinstance(after, str)
    assert [(c.done, c.chunks) for c in after.cells] == [(True, 0), (True, 0), (False, 1), (False, 2), (False, 2)]
    assert after.real == 0
    assert after.calls == 70 * (4 + 2 + 4)


def test_the_plan_names_what_will_fail(tmp_path):
    study = toy_study(products=(Product(("RungeKutta('rk4', Angle())",), calls=(3, 8)), Product(("DDIM()",), calls=(2,))))
    *_, found = plan(toy_job(tmp_path, study))
    assert not isinstance(found, str)
    assert ["too few" in c.fails for c in found.cells] == [False, True, False, False]


def test_what_a_network_costs():
    timed = Timed(oracle())
    x = latents(oracle(), 8)
    import time

    begin = time.perf_counter()
    solve(DDIM(), timed.rows(torch.arange(8)), x, LogSNR().knots(VPLinear(), 20))
    assert 0 < timed.seconds < time.perf_counter() - begin
    forget_peak(torch.device("cpu"))
    low = peak_memory(torch.device("cpu"))
    held = torch.ones(40_000_000)
    assert peak_memory(torch.device("cpu")) - low > 1e8
    del held


def test_folders_of_several_machines_become_one(whole, tmp_path):
    halves = [toy_study(products=(Product((s,), calls=(2, 4)),)) for s in ("DDIM()", "DDPM()")]
    for i, half in enumerate(halves):
        finished(tmp_path / str(i), half)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert merge(tmp_path / "all", [tmp_path / "0", tmp_path / "1"]) == (6, 2)
    assert {p: p.read_bytes() for p in before} == before
    assert merge(tmp_path / "all", [tmp_path / "0"]) == (0, 4)
    finished(tmp_path / "all")
    assert (tmp_path / "all" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_merged_folder_goes_on(whole, tmp_path):
    """Chunks of the converged flow do not travel: they are made again where a cell is left to run."""
    finished(tmp_path / "a", toy_study(products=(Product(("DDIM()",), calls=(2, 4)),)))
    merge(tmp_path / "all", [tmp_path / "a"])
    finished(tmp_path / "all")
    assert (tmp_path / "all" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_what_cannot_be_merged(whole, tmp_path):
    finished(tmp_path / "mine", toy_study(name="mine", products=(Product(("DDIM()",), calls=(2,)),)))
    with pytest.raises(UserError, match=r"folders of different studies .*'mine'"):
        merge(tmp_path / "all", [whole, tmp_path / "mine"])
    with pytest.raises(UserError, match="is not the folder of a study"):
        merge(tmp_path / "all", [whole, tmp_path / "nothing"])
    finished(tmp_path / "other", toy_study(products=(Product(("DDIM()",), calls=(2,)),)))
    store, cell = Store(tmp_path / "other"), table(tmp_path / "other")[1]["cell"]
    record = store.record(cell)
    assert record is not None
    store.write_record(cell, Record({**record.about, "metrics_of": {"frechet": 1.0, "precision": 0.5}}, record.tensors))
    with pytest.raises(UserError, match=rf"has another result for cell {cell}"):
        merge(tmp_path / "all", [whole, tmp_path / "other"])


def test_a_report_while_the_study_runs(tmp_path):
    going = run(toy_job(tmp_path))
    next(going)
    with pytest.raises(UserError, match="no cell of the study is finished yet"):
        write_report(tmp_path)
    for p in going:
        if p.record is not None and isinstance(p.work, Sampling) and not p.work.converges:
            break
    assert len(write_report(tmp_path).lines) == 1
    assert (tmp_path / "report.html").stat().st_size > 10_000
    going.close()
