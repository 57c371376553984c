"""The page of a study in a real browser: it works without a network, sorts, slides, prints, and lets no name run."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import missing

from sdediff.study import figures, report
from sdediff.study.findings import Against, Findings, Interval, Line, Sheet
from sdediff.study.page import html, write_page

TITLES = {
    "frechet": "Fréchet distance, classifier features",
    "kid": "KID × 1000",
    "precision": "Precision",
    "error": "RMS distance to the converged flow",
}
SOLVERS = [  # name, repr, how fast its error falls, stochastic
    ("DDIM", "DDIM(eta=0.0)", 1.0, False),
    ("DDPM", "DDPM(variance='small')", 0.9, True),
    ("Heun", "RungeKutta(method='heun', clock=Lam())", 1.7, False),
    ("DPM-Solver++ 2M", "DPMSolverMultistep(order=2, prediction='x0', lower_order_final=True)", 2.0, False),
    ("UniPC 3", "UniPC(order=3, variant='bh2', corrector=True)", 2.6, False),
    ("SDE-DPM-Solver++ 2M", "DPMSolverSDE(order=2)", 1.5, True),
]
TOML = 'name = "digits"\nsamples = 2000\nseeds = [0, 1, 2]\n\n[[cells]]\nsolvers = ["DDIM()"]\ncalls = [5, 10, 20, 50]\n'


def around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def example(hostile: str = "", copies: int = 1, images: bool = True) -> Findings:
    """Six solvers at four step counts and one adaptive: plausible numbers, digits that get sharper. hostile: put into every text."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    digits = load_digits().images[:28].astype(np.float64) / 16
    lines: list[Line] = []
    sheets: list[Sheet] = []
    floor = 2.1

    def line(name: str, solver: str, calls: int | None, made: float, error: float, noisy: bool) -> None:
        frechet = floor + 60 * error + (1.5 * noisy / made**0.5) + 0.02 * rng.standard_normal()
        measures = {
            "frechet": around(frechet, 0.05 + 0.03 * frechet),
            "kid": around((frechet - 2.4) / 6, 0.04),
            "precision": around(0.97 - 0.5 * error, 0.008),
            "error": around(error + 0.4 * noisy, 0.01 * error),
        }
        spread = 0 if calls is not None else round(made / 8)
        lines.append(Line(
            curve=name + hostile, solver=solver + hostile, grid="LogSNR()" + hostile, guidance=None, calls=calls, made=made,
            fewest=round(made) - spread, most=round(made) + 2 * spread, seeds=3, samples=2000, stochastic=noisy, measures=measures,
            seconds=0.9 * made + 3, network=0.93 - 0.3 / made, memory=3.2e8 + 1e6 * made,
        ))  # fmt: skip
        if images:
            blurred = (
                digits[:14] + min(1.0, 2.5 * error) * np.random.default_rng(len(lines) if noisy else 7).standard_normal((14, 8, 8)) * 0.5
            )
            sheets.append(Sheet(name + hostile, calls or round(made), (255 * blurred.clip(0, 1)).astype(np.uint8)[..., None]))

    for copy in range(copies):
        for name, solver, order, noisy in SOLVERS:
            tag = f" {copy}" if copy else ""
            for calls in (5, 10, 20, 50):
                made = calls if name != "Heun" else 2 * (calls // 2)
                line(name + tag, solver, calls, made, 0.9 * (3.5 / calls) ** order * (1 + 0.1 * copy), noisy)
        for tolerance, made in ((1e-1, 21.4), (1e-2, 47.3), (1e-3, 88.9)):
            line(
                f"RK45 adaptive{f' {copy}' if copy else ''}",
                f"RungeKutta('dopri5', rtol={tolerance})",
                None,
                made,
                0.2 * tolerance**0.8,
                False,
            )

    values = [x.measures["frechet"].value for x in lines]
    best = int(np.argmin(values))
    for i, x in enumerate(lines):
        gap = values[i] - values[best]
        against = None if i == best else Against(around(gap, 0.06 + 0.01 * gap), math.exp(-((gap / 0.06) ** 1.5)))
        lines[i] = Line(**{**x.__dict__, "against": against, "good": gap < 0.12})
    order = sorted(range(len(lines)), key=lambda i: (lines[i].made, values[i]))
    front = [i for n, i in enumerate(order) if all(values[i] < values[j] for j in order[:n])]
    limit = Line("converged flow" + hostile, "RungeKutta('rk4', Angle())", "LogSNR()", None, 200, 200, 200, 200, 3, 2000, False,
                 {"frechet": around(2.13, 0.08), "kid": around(-0.04, 0.04), "precision": around(0.97, 0.01)}, 200, 0.95, 3e8)  # fmt: skip
    if images:
        sheets.append(Sheet("converged flow" + hostile, 200, (255 * digits[:14]).astype(np.uint8)[..., None]))
    few = lines[min((i for i in range(len(lines)) if lines[i].good), key=lambda i: lines[i].made)]
    return Findings(
        name="digits" + hostile,
        question="Which solver, at how many network calls?" + hostile,
        answer=[
            f"{few.curve} with {few.made:g} calls is as good as anything tried." + hostile,
            f"The best, {lines[best].curve}, scores {values[best]:.2f}, and the converged flow 2.13: the rest is the model's error.",
            "With five calls nothing comes close; the stochastic solvers need five times the calls of the deterministic ones.",
        ],
        metric="frechet",
        titles={k: v + hostile for k, v in TITLES.items()},
        better={"frechet": "low", "kid": "low", "precision": "high", "error": "low"},
        lines=lines,
        reference=limit,
        noise={"frechet": around(0.62, 0.05), "precision": around(0.985, 0.004)},
        front=front,
        sheets=sheets,
        real=(255 * digits[14:]).astype(np.uint8)[..., None] if images else None,
        failed=[("UniPC(order=9) 5 calls, seed 0" + hostile, "UniPC: order 9 is not among 1, 2, 3." + hostile)],
        settings=TOML + hostile,
        command="sdediff study run digits.toml --folder runs/digits" + hostile,
        about={"sdediff": "0.1.0", "torch": "2.13.0", "weights (SHA-256)": "9f2c" * 16, "data": "digits, 1797 images" + hostile},
        tables=[("Round trips" + hostile, "There and back.", [{"steps": 10, "error": around(0.03, 0.001)}, {"steps": 5, "error": 0.2}])],
        pictures=[("Interpolation" + hostile, "Between two latents.", figures.rendered(figures.Figure(figsize=(4, 1)), "png"))],
    )  # fmt: skip


HOSTILE = (
    "<b>&lt;<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\"'</style></script><!--"
    '<a href="javascript:1">$x_1$ %{x} \u2028'
)


# --- without a browser ----------------------------------------------------------------------------------------------


def test_numbers_have_two_digits_of_their_interval():
    assert report.interval(Interval(12.3456, 12.1, 12.6)) == ("12.35", "12.10 to 12.60")
    assert report.interval(Interval(1234.5, 1200.0, 1269.0)) == ("1234", "1200 to 1269")
    assert report.interval(Interval(0.5, 0.5, 0.5)) == ("0.5", "")
    assert report.interval(Interval(math.nan, 0.0, 1.0)) == (report.NOTHING, "")
    assert report.interval(Interval(1.234e-5, 1.1e-5, 1.3e-5)) == ("1.23e-5", "1.10e-5 to 1.30e-5")
    assert report.interval(Interval(2.13, 2.05, 2.21)) == ("2.13", "2.05 to 2.21")
    assert report.interval(Interval(1.23e7, 1.1e7, 1.3e7))[0] == "1.23e7"
    assert report.interval(Interval(-0.0001, -0.02, 0.02))[0] == "0.000"
    assert [report.probability(p) for p in (0.0, 0.0312, 0.5, math.nan)] == ["< 0.001", "0.031", "0.50", report.NOTHING]
    assert [report.duration(s) for s in (0.5, 120, 7200)] == ["0.5 s", "2 min", "2 h"]
    assert [report.size(s) for s in (12, 3.2e8, 4e12)] == ["12 B", "320 MB", "4 TB"]
    assert [report.show(v) for v in (None, math.inf, True, 1.23456, Interval(1.0, 0.9, 1.1), "a")] == [
        report.NOTHING, report.NOTHING, "yes", "1.235", "1.00 (0.90 to 1.10)", "a",
    ]  # fmt: skip


def test_no_two_curves_look_the_same():
    assert len({figures.look(i) for i in range(192)}) == 192


def test_static_figures_are_the_same_bytes_every_time(tmp_path: Path):
    found = example(hostile="_$x<", images=False)
    files = figures.static(found, tmp_path / "a")
    assert {f.name for f in files} == {
        f"{name}.{kind}"
        for name in ("steps_vs_frechet", "steps_vs_kid", "steps_vs_precision", "error_vs_calls", "pareto")
        for kind in ("png", "pdf")
    }  # fmt: skip
    for kind in ("png", "pdf"):
        assert figures.rendered(figures.pareto(found), kind) == (tmp_path / "a" / f"pareto.{kind}").read_bytes()
    nothing = Findings(**{**found.__dict__, "lines": [], "front": [], "sheets": []})
    assert figures.static(nothing, tmp_path / "c") == []


def test_a_page_of_nothing_is_a_page():
    found = example(images=False)
    page = html(Findings(**{**found.__dict__, "lines": [], "front": [], "reference": None, "noise": {}, "real": None, "failed": []}))
    assert 'id="curves"' not in page
    assert 'id="images"' not in page
    assert found.answer[0] in page


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    where = os.environ.get("SDEDIFF_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if where is None:
        missing("needs a Chromium in the path (on Debian: apt-get install chromium), or its path in SDEDIFF_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=where, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield opened
        opened.close()


class Visit:
    """A page in a tab of its own, and everything it complained about or asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.tab = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.tab.on("request", lambda r: self.requests.append(r.url) if not r.url.startswith(("data:", "blob:")) else None)
        self.tab.goto(file.as_uri())

    def column(self, name: str) -> list[str]:
        """The sort keys of a column of the table of all cells, from top to bottom; "" where there is none."""
        script = """name => { const t = document.querySelector('#lines table');
            const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === name);
            return [...t.tBodies[0].rows].map(r => r.cells[i].dataset.key ?? ''); }"""
        return self.tab.evaluate(script, name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(example(), path)
    return path


@pytest.fixture(scope="module")
def only_visit(browser: Any, file: Path) -> Iterator[Visit]:
    opened = Visit(browser, file)
    yield opened
    opened.context.close()


@pytest.fixture
def visit(only_visit: Visit) -> Iterator[Visit]:
    """One visit for all tests that only read and click; whatever they change, they put back."""
    yield only_visit
    only_visit.tab.emulate_media(media="screen", color_scheme="light")


def until(true: Callable[[], bool]) -> None:
    """Wait for what the page does in its own time. (Playwright's waiting evaluates texts in the page, whose policy forbids that.)"""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def overflow(tab: Any) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_nothing_is_complained_about_and_nothing_is_fetched(visit: Visit, file: Path):
    assert visit.wrong == []
    assert visit.requests == [file.as_uri()]
    assert visit.tab.locator(".js-plotly-plot, .plot .main-svg").count() > 0
    assert 4e6 < file.stat().st_size < 8e6  # most of it is plotly
    refused = visit.tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')")
    assert refused == "refused"
    visit.tab.evaluate("const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s)")
    assert visit.tab.evaluate("window.injected") is None  # the policy runs the page's two scripts and no other
    visit.wrong.clear()


def test_the_slider_moves_and_the_images_change(visit: Visit):
    tab = visit.tab
    assert tab.evaluate("JSON.parse(document.getElementById('data').textContent).stops") == [5, 10, 20, 50]
    seen = {}
    tab.focus("#steps")
    tab.keyboard.press("Home")
    for calls in (5, 10, 20, 50):
        assert tab.inner_text("#calls") == f"{calls} calls"
        assert tab.get_attribute("#steps", "aria-valuetext") == f"{calls} calls"
        ddim = tab.locator('.strip[data-curve="0"]:visible')
        assert ddim.count() == 1
        assert f"{calls} calls" in ddim.inner_text()
        seen[calls] = ddim.locator("img").get_attribute("src")
        assert tab.locator(".strip.fixed:visible").count() == 2
        tab.keyboard.press("ArrowRight")
    assert len(set(seen.values())) == 4
    before = tab.locator(".strip:visible").count()
    box = tab.locator("#image-curves li", has_text="Heun").locator("input")
    box.check()
    assert tab.locator(".strip:visible").count() == before + 1
    assert "47 calls (none at 50)" in tab.locator(".strip:visible", has_text="RK45").inner_text()
    box.uncheck()
    widths = tab.evaluate(
        "[...document.querySelectorAll('.strip:not([hidden]) img')].map(i => [i.naturalWidth, i.getBoundingClientRect().left])"
    )
    assert len({tuple(w) for w in widths}) == 1  # the same latents are in the same columns


def test_the_table_sorts_numbers_as_numbers_in_both_directions(visit: Visit):
    values = [float(v) for v in visit.column(TITLES["frechet"])]
    assert values == sorted(values)  # as it comes: best first
    head = visit.tab.locator("#lines th", has_text="calls made")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        made = [float(v) for v in visit.column("calls made")]
        assert made == sorted(made, key=lambda v: sign * v)
        assert made != sorted(made, key=str)
        assert visit.tab.inner_text("#said") == f"sorted by calls made, {direction}"
    assert visit.tab.locator("#lines th[aria-sort=ascending], #lines th[aria-sort=descending]").count() == 1
    missing_last = visit.tab.locator("#lines th", has_text="calls asked").get_by_role("button")
    for _ in range(2):
        missing_last.press("Enter")  # the keyboard does what the mouse does
        asked = visit.column("calls asked")
        assert asked[-3:] == ["", "", ""]
        assert "" not in asked[:-3]


def test_rows_can_be_found(visit: Visit):
    tab = visit.tab
    tab.fill("#find", "unipc 50")
    assert tab.inner_text("#found") == "1 of 27 cells"
    tab.fill("#find", "")
    tab.check("#only-good")
    assert tab.locator("#lines tbody tr:visible").count() == tab.locator("#lines .mark[data-key]").count() > 1
    tab.uncheck("#only-good")
    assert tab.inner_text("#found") == "27 cells"


def test_the_metric_can_be_chosen(visit: Visit):
    tab = visit.tab
    plot = "document.getElementById('plot-curves')"
    assert "Fréchet" in tab.text_content("#plot-curves .infolayer")
    assert tab.evaluate(f"{plot}._fullLayout.yaxis.type") == "log"
    assert tab.evaluate(f"{plot}.data.filter(t => t.meta?.band !== undefined).length") == 7
    assert "noise floor 0.62" in tab.text_content("#plot-curves .infolayer")
    assert [o.inner_text() for o in tab.locator("#metric option").all()] == [TITLES[m] for m in ("frechet", "kid", "precision")]
    tab.select_option("#metric", "kid")  # some are negative: no logarithm
    assert tab.evaluate(f"{plot}._fullLayout.yaxis.type") == "linear"
    assert tab.is_disabled("#logarithmic")
    assert "KID" in tab.text_content("#plot-curves .infolayer")
    tab.select_option("#metric", "precision")
    assert "higher is better" in tab.text_content("#plot-curves .infolayer")
    tab.check("#logarithmic")
    assert tab.evaluate(f"{plot}._fullLayout.yaxis.type") == "log"
    tab.select_option("#metric", "frechet")
    box = tab.locator("#legend li", has_text="DDPM").first.locator("input")
    box.uncheck()
    assert tab.evaluate(f"{plot}.data.filter(t => t.meta?.band !== undefined).length") == 6
    box.check()
    stochastic = tab.evaluate("document.getElementById('plot-error').data.map(t => t.name)")
    assert "DDIM" in stochastic
    assert "DDPM" not in stochastic


def test_dark_and_light_follow_the_system_while_the_page_is_open(visit: Visit):
    def colours() -> list[str]:
        paper = visit.tab.evaluate("getComputedStyle(document.querySelector('#plot-curves .main-svg')).backgroundColor")
        line = visit.tab.evaluate("getComputedStyle(document.querySelector('#plot-curves .points path')).fill")
        swatch = visit.tab.evaluate("document.querySelector('#legend svg path').getAttribute('stroke')")
        body = visit.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return [paper, line, swatch, body]

    visit.tab.emulate_media(color_scheme="light")
    light = colours()
    visit.tab.emulate_media(color_scheme="dark")
    until(lambda: all(a != b for a, b in zip(light, colours(), strict=True)))
    visit.tab.emulate_media(color_scheme="light")
    until(lambda: colours() == light)


def test_paper_has_pictures_and_no_controls(visit: Visit):
    tab = visit.tab
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.locator(".control:visible, button:not(thead button):visible, input:visible, select:visible").count() == 0
    assert tab.locator(".fallback img:visible").count() == 3
    printed = tab.locator(".strip[data-curve]:visible")
    assert printed.count() == 4 + 4 + 3  # three curves at four step counts, the adaptive one at its own
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(tab.pdf(format="A4")) > 50_000
    tab.emulate_media(media="screen", color_scheme="light")
    assert visit.wrong == []


def test_the_command_can_be_copied(visit: Visit):
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = visit.tab.locator("[data-copies=command]")
    button.click()
    until(lambda: visit.tab.text_content("#said") == "Copied")
    assert visit.tab.evaluate("navigator.clipboard.readText()") == example(images=False).command


def test_every_control_has_a_name_and_every_place_to_scroll_can_be_reached(visit: Visit):
    nameless = """[...document.querySelectorAll('button, select, input, img, [role=img], [role=region]')].filter(e => !(e.ariaLabel
        || e.getAttribute('alt') || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML.slice(0, 90))"""
    assert [e for e in visit.tab.evaluate(nameless) if "plotly" not in e] == []
    unreachable = """[...document.querySelectorAll('.scroll, .strips, pre')].filter(e => e.tabIndex !== 0).length"""
    assert visit.tab.evaluate(unreachable) == 0
    ids = visit.tab.evaluate("[...document.querySelectorAll('section [id], section[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)


def test_a_phone_scrolls_only_downwards_with_sixty_curves(browser: Any, tmp_path: Path):
    write_page(example(copies=9), tmp_path / "many.html")
    opened = Visit(browser, tmp_path / "many.html", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    tab = opened.tab
    assert overflow(tab) <= 0
    assert tab.evaluate("document.querySelectorAll('#legend li').length") == 63
    assert tab.evaluate("document.getElementById('plot-curves').data.filter(t => t.meta?.band !== undefined).length") == 10
    tab.locator("#legend summary").click()
    tab.fill("#legend input[type=search]", "unipc 8")
    assert tab.locator("#legend li:visible").count() == 1
    tab.locator("#legend button", has_text="none").click()
    tab.fill("#legend input[type=search]", "")
    tab.locator("#legend button", has_text="all").click()
    assert tab.evaluate("document.getElementById('plot-curves').data.filter(t => t.meta?.band !== undefined).length") == 63
    assert overflow(tab) <= 0
    assert opened.wrong == []
    opened.context.close()


def test_hostile_names_are_text(browser: Any, tmp_path: Path):
    write_page(example(hostile=HOSTILE), tmp_path / "hostile.html")
    opened = Visit(browser, tmp_path / "hostile.html")
    tab = opened.tab
    tab.locator("#steps").press("ArrowRight")
    tab.select_option("#metric", "kid")
    tab.locator("#lines th").first.get_by_role("button").click()
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.hacked") is None
    assert opened.wrong == []
    assert len(opened.requests) == 1
    assert tab.text_content("h1") == "digits" + HOSTILE
    assert "<b>&lt;<script>window.hacked=1</script>" in tab.text_content("#plot-curves .infolayer")
    assert tab.locator("a[href^='javascript']").count() == 0
    assert tab.evaluate("document.querySelectorAll('.infolayer a, img[src=x]').length") == 0
    opened.context.close()


def test_without_scripts_everything_is_there_to_read(browser: Any, file: Path):
    opened = Visit(browser, file, java_script_enabled=False)
    assert opened.tab.locator(".fallback img:visible").count() == 3
    assert opened.tab.locator(".control:visible").count() == 0
    assert opened.tab.locator("#lines tbody tr:visible").count() == 27
    assert opened.tab.locator(".strip[data-curve]:visible").count() == 3
    opened.context.close()


def test_the_page_asks_for_nothing_by_its_text(file: Path):
    ours = re.sub(r"<script>.*?</script>", "", file.read_text(encoding="utf-8"), flags=re.S)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", ours)
