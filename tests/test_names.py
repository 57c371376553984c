"""Solvers from text: what repr shows is read back, what is misspelt is named, and text is never run."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdediff import (
    DDIM,
    DDPM,
    Angle,
    Euler,
    EulerMaruyama,
    Heun,
    RungeKutta,
    SciPy,
    Sigma,
    Sigmas,
    Tableau,
    Time,
    TorchDiffEq,
    TorchSDE,
    UserError,
    VPLinear,
)  # fmt: skip
from sdediff.external import DELEGATES
from sdediff.names import choose, from_repr, nearest, positive
from sdediff.solvers import SOLVERS, named
from sdediff.weights import TABLEAUX

calm = settings(max_examples=60, deadline=None)
finite = st.floats(0, 1e6)
coordinates = st.one_of(st.just(Time()), st.just(Sigma()), st.builds(Angle, st.floats(1e-3, 1e3)))
sigmas = st.lists(finite, min_size=1, max_size=4).map(lambda v: Sigmas(tuple(1.0 - i / 9 for i in range(len(v) + 1)), tuple(v)))
OPTIONS = {
    DDPM: {"variance": st.sampled_from(["small", "large", "none"])},
    DDIM: {"eta": st.one_of(finite, sigmas)},
    EulerMaruyama: {"eta": finite},
    Euler: {"coordinates": coordinates},
    Heun: {"coordinates": coordinates},
    RungeKutta: {"tableau": st.sampled_from([*TABLEAUX, *TABLEAUX.values()]), "coordinates": coordinates},
}
every_solver = pytest.mark.parametrize("made", SOLVERS, ids=lambda c: c.__name__)


@every_solver
@calm
@given(data=st.data())
def test_repr_is_read_back(made, data):
    solver = data.draw(st.builds(made, **OPTIONS.get(made, {})))
    assert named(repr(solver)) == solver
    assert type(named(repr(solver))) is made
    assert repr(named(repr(solver))) == repr(solver)


@every_solver
def test_a_bare_name_takes_its_defaults(made):
    name = made.__name__
    assert named(name) == named(f"{name}()") == named(f"  {name}( )\n") == made()


def test_all_literals_are_read():
    assert named("DDIM(0.5)") == named("DDIM(eta=5e-1)") == DDIM(0.5)
    assert named('DDPM("large")') == named("DDPM(variance='large')") == DDPM("large")
    assert named("DDIM(Sigmas((1, .5), [0.25]))") == DDIM(Sigmas((1.0, 0.5), (0.25,)))
    table = "Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2)"
    assert named(f"RungeKutta({table}, Angle(2))") == RungeKutta(Tableau(((), (0.5,)), (0.0, 1.0), 2), Angle(2))
    assert from_repr("dict(a=-1, b=inf, c=None, d=True)", {"dict": Anything}) == Anything(-1, math.inf, None, True)
    for delegate in (SciPy("LSODA"), TorchDiffEq("rk4", coordinates=Angle(0.5)), TorchSDE("heun", 0.5)):
        assert named(repr(delegate), DELEGATES) == delegate


class Anything:
    def __init__(self, a, b, c, d):
        self.all = (a, b, c, d)

    def __eq__(self, other):
        return self.all == other.all

    __hash__ = None


@every_solver
def test_a_misspelt_solver_is_named(made):
    name = made.__name__
    wrong = name.lower() + "x"
    with pytest.raises(UserError, match=f"unknown solver '{wrong}'.*Did you mean '{name}'.*There are: .*RungeKutta"):
        named(wrong)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("DDIM(etta=0.5)", "no option 'etta'; it has eta.*Did you mean 'eta'"),
        ("RungeKutta(cordinates=Time())", "it has tableau, coordinates.*Did you mean 'coordinates'"),
        ("Heun(0.5, 1)", "too many positional arguments.*coordinates"),
        ("Heun(Angel())", "'Angel'.*Did you mean 'Angle'"),
        ("RungeKutta('rk5')", "'rk5' does not exist.*'rk4_38'.*Did you mean 'rk"),
        ("DDPM('lage')", "Did you mean 'large'"),
        ("DDIM(-0.5)", "at least 0"),
        ("DDIM(inf)", "at least 0"),
        ("DDIM(Sigmas(1, 2))", "Sigmas cannot be made"),
        ("DDIM(Sigmas((1, 0.5)))", "missing a required argument: 'values'"),
        ("DDIM(eta=1, eta=2)", "is not a solver"),
    ],
)
def test_wrong_options_are_named(text, match):
    with pytest.raises(UserError, match=match):
        named(text)


@pytest.mark.parametrize("text", ["1", "'DDIM'", "None", "()", "[DDIM()]", "Time()", "Sigmas", "Tableau(((),), (1.0,), 1)"])
def test_what_is_not_a_solver_is_refused(text):
    with pytest.raises(UserError, match="solver"):
        named(text)


@pytest.fixture(autouse=True)
def _no_shell(monkeypatch):
    def ran(*args):
        raise AssertionError("text was run")

    for name in ("system", "popen", "execv", "remove"):
        monkeypatch.setattr(os, name, ran)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "__import__('os')",
        "eval('1')",
        "open('/etc/passwd')",
        "os.system('x')",
        "DDIM.__init__.__globals__",
        "DDIM().__class__",
        "DDIM(eta=().__class__.__base__.__subclasses__())",
        "DDIM(eta=__import__('os').system('x'))",
        "DDIM(eta=__import__('os'))",
        "DDIM()()",
        "(lambda: DDIM())()",
        "DDIM(eta=(lambda: 0.5)())",
        "[DDIM(eta=e) for e in (0.5,)]",
        "{DDIM()}",
        "{'a': DDIM()}",
        "DDIM() if True else Heun()",
        "DDIM(eta=0.25 + 0.25)",
        "DDIM(eta=2 ** 2 ** 30)",
        "DDIM(*[0.5])",
        "DDIM(**{'eta': 0.5})",
        "DDIM(eta:=0.5)",
        "(DDIM := 3)",
        "f'{DDIM()}'",
        "DDIM()[0]",
        "DDIM(); Heun()",
        "import os",
        "DDIM(\x00)",
        "not DDIM()",
        "-DDIM()",
        "await DDIM()",
        "yield",
        "(" * 5000 + "DDIM()" + ")" * 5000,
        "DDIM(" * 150 + ")" * 150,
        "",
        "  ",
        "?",
        "DDIM(",
        "9" * 5000,
    ],
    ids=lambda text: text[:40].replace("\x00", "NUL"),
)
def test_code_is_refused(text):
    with pytest.raises(UserError):
        named(text)


scraps = ["DDIM", "Heun", "RungeKutta", "Sigmas", "(", ")", "=", ",", "eta", "1", "-", "'a'", ".", "[", "]", "()", " ", "*"]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(scraps), max_size=9).map("".join), st.text(max_size=20)))
@example("DDIM(Sigmas((1, 0), (0.5,)))")
def test_any_text_is_read_or_refused(text):
    names = {c.__name__: c for c in SOLVERS}
    try:
        made = from_repr(text, names)
    except UserError:
        return
    assert isinstance(made, (*SOLVERS, str, int, float, complex, bytes, tuple, list, type(None), type(...)))


@calm
@given(st.text(max_size=8))
def test_nearest_and_choose(word):
    options = ("leading", "trailing", "linspace")
    assert nearest(word, options) in ("", *(f" Did you mean {o!r}?" for o in options))
    with pytest.raises(UserError, match="choose one of 'leading', 'trailing', 'linspace'"):
        choose("spacing", word + "!", options)


def test_positive():
    assert positive("n", 3) == 3
    for bad in (0, -1, 2.0, True, "3", None, math.nan):
        with pytest.raises(UserError, match="n must be a whole number"):
            positive("n", bad)


# --- once broken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["-" * 100_000 + "1", "DDIM(eta=" + "-" * 2_000 + "1)", "DDIM(\ud800)", "DDIM(Sigmas(('a', 'b'), (1,)))"], ids=range(4)
)
def test_every_refusal_is_a_user_error(text):
    with pytest.raises(UserError):
        named(text)


def test_a_bare_name_inside_is_called_too():
    assert named("Heun(Angle)") == Heun(Angle())


@pytest.mark.parametrize("made", [Euler, Heun, RungeKutta])
@pytest.mark.parametrize("wrong", [3, "sigma", VPLinear()])
def test_what_is_not_coordinates_is_refused(made, wrong):
    with pytest.raises(UserError):
        made(coordinates=wrong)
