"""The floors of the house: imports go down only, never in a circle, and the forbidden ones stay forbidden."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

FLOORS = [
    {"names", "combine", "bits", "clock", "chance", "processes", "networks", "data", "metrics"},
    {"schedule", "noise", "phi", "levels", "accelerated", "toml"},
    {"schedules", "weights", "batch"},
    {"grid", "prediction", "dense", "decoders", "times"},
    {"latent_diffusion"},
    {"coordinates", "oracle", "score", "result", "threshold", "checks", "variational"},
    {"solver", "runge_kutta", "roughness", "guidance", "objective"},
    {"exponential", "invertible", "classes"},
    {"additive"},
    {"solvers", "control", "checkpoint"},
    {"recorded", "adaptive", "coupled", "published", "shards"},
    {"train", "solve", "external"},
    {"tasks"},
    {"recipe"},
    {"pretrained"},
    {"sampling", "picard", "fingerprint", "features"},
    {"latent", "adjoint", "likelihood", "noise_inversion"},
    {"inversion", "elbo"},
    {"round_trip"},
    {"interop"},
    {"study"},
    {"cli", "__init__"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
NEVER = [
    ("solvers", {"score", "networks", "train", "study"}),
    ("networks", set(FLOOR) - {"networks"}),
    ("metrics", set(FLOOR) - {"metrics"}),
]


def imports() -> set[tuple[str, str, str]]:
    """(file, its room, the room it imports) for every import of ours."""
    found = set()
    package = ROOT / "sdediff"
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                base = list(parts[: len(parts) - node.level]) if node.level else []
                path = base + (node.module or "").split(".") if node.module else base
                ours = node.level or path[0] == "sdediff"
                path = path[1:] if path and path[0] == "sdediff" else path
                names = ([path] if path else [[a.name] for a in node.names]) if ours else []
                assert node.module is None or node.module.split(".")[0] not in ("benchmarks", "tests"), file
            found |= {("/".join(parts), parts[0], name[0]) for name in names if name and name[0]}
    return found


def test_imports_go_down_the_floors():
    assert len(imports()) > 50
    for file, room, other in imports():
        assert room in FLOOR, f"{file}: give the room {room!r} a floor"
        assert other in FLOOR, f"{file} imports {other!r}, which has no floor"
        assert room == other or FLOOR[other] < FLOOR[room], f"{file} imports {other}, which is not on a floor below"


def test_what_must_never_be_imported_is_not():
    for file, room, other in imports():
        for who, what in NEVER:
            assert not (room == who and other in what), f"{file} must not import {other}"


def test_solver_files_do_not_import_one_another():
    families = {f.stem for f in (ROOT / "sdediff" / "solvers").glob("*.py")} - {"__init__"}
    for file in (ROOT / "sdediff" / "solvers").glob("*.py"):
        if file.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert (node.module or "") not in families, file


def test_files_of_one_folder_import_one_another_in_no_circle():
    for folder in {f.parent for f in (ROOT / "sdediff").glob("*/__init__.py")}:
        own = f"sdediff.{folder.name}."
        needs: dict[str, set[str]] = {}
        for file in folder.glob("*.py"):
            nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
            near = [n for n in nodes if n.level == 1 or (n.module or "").startswith(own)]
            paths = [path for n in near for path in ([n.module.removeprefix(own)] if n.module else [a.name for a in n.names])]
            needs[file.stem] = {path.split(".")[0] for path in paths}
        TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle
