"""report.html: one self-contained page from `Findings`, which works without a network and lets no name in it run.

Everything a reader needs is HTML written here, so that it is there without scripts, on paper and for a screen reader; page.js adds the
curves (plotly, embedded once), the slider and the sorting. The page's policy (Content-Security-Policy) names these two scripts by their
hash and allows no request: a name that looks like a script is text, twice over. All images of the first latents are in the page once, a
strip for each line; the slider only chooses which are shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoint import write_bytes
from ..names import UserError
from . import figures, report
from .findings import Findings, Interval, Line, Sheet
from .report import Field

HERE = Path(__file__).parent
CROWD = 10  # curves shown at first where there are more
TILE = 96  # pixels of an image's longer side at most


def write_page(findings: Findings, path: Path) -> None:
    """Write the page atomically. `UserError` if plotly is missing or the folder cannot be written."""
    if find_spec("plotly") is None:
        raise UserError("the page needs plotly, which is not installed: pip install 'sdediff[study]'.")
    write_bytes(path, html(findings).encode())


def html(findings: Findings) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    body = "".join(_body(findings))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(findings.name)}: steps against quality</title>'
        f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head>\n<body>{body}"
        f'<script type="application/json" id="data">{_json(_data(findings))}</script>'
        f"{''.join(f'<script>{s}</script>' for s in scripts)}</body></html>\n"
    )


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no character of it means anything to HTML."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _body(findings: Findings) -> Iterator[str]:
    sections = [
        ("curves", "Curves", _curves(findings)),
        ("images", "Images", _images(findings)),
        ("lines", "All cells", _lines(findings)),
        ("failed", "Failed cells", _failed(findings)),
        ("more", "More", _more(findings)),
        ("again", "How to reproduce", _again(findings)),
        ("about", "Versions and hashes", _about(findings)),
    ]
    there = [(key, title, content) for key, title, content in sections if content]
    yield "<header>"
    yield f'<p class="kicker">A study of sampling: steps against quality</p><h1>{escape(findings.name)}</h1>'
    yield f'<p class="question">{escape(findings.question)}</p></header><main>'
    yield f'<div class="answer" id="answer">{"".join(f"<p>{escape(s)}</p>" for s in findings.answer)}</div>'
    yield _keys(findings)
    if findings.failed:
        count = len(findings.failed)
        yield f'<p class="alarm"><b>{count} cell{"s" if count > 1 else ""} failed</b> and {"are" if count > 1 else "is"} in no number here: <a href="#failed">why</a>.</p>'
    yield '<nav aria-label="on this page"><ul>'
    yield "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in there)
    yield "</ul></nav>"
    for key, title, content in there:
        yield f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(title)}</h2>{content}</section>'
    yield '</main><footer><p>Made by sdediff. This page is whole: it needs no network and no other file.</p></footer><p id="said" class="unseen" role="status" aria-live="polite"></p>'


# --- the answer in numbers ------------------------------------------------------------------------------------------


def _best(findings: Findings) -> int | None:
    """The number of the best line in the headline metric."""
    found = [(line.measures[findings.metric].value, i) for i, line in enumerate(findings.lines) if _has(line, findings.metric)]
    if not found:
        return None
    return (max if findings.better.get(findings.metric) == "high" else min)(found, key=lambda pair: pair[0])[1]


def _has(line: Line | None, metric: str) -> bool:
    return line is not None and metric in line.measures and math.isfinite(line.measures[metric].value)


def _title(findings: Findings, metric: str) -> str:
    return findings.titles.get(metric, metric)


def _calls(line: Line) -> str:
    """How many calls, as a person says it."""
    made = report.show(float(line.made))
    if line.calls is None:
        return f"{made} calls on average"
    return f"{line.calls} calls" if line.made == line.calls else f"{made} calls ({line.calls} asked)"


def _keys(findings: Findings) -> str:
    """The figures that the answer rests on."""
    metric, best = findings.metric, _best(findings)
    keys: list[tuple[str, str, str]] = []
    if best is not None:
        line = findings.lines[best]
        keys.append(("Best", report.interval(line.measures[metric])[0], f"{line.curve}, {_calls(line)}"))
        good = [one for one in findings.lines if one.good]
        if good:
            least = min(good, key=lambda one: one.made)
            keys.append(("Fewest calls that are as good", report.show(float(least.made)), least.curve))
    if findings.reference is not None and _has(findings.reference, metric):
        value, ends = report.interval(findings.reference.measures[metric])
        keys.append(("Converged flow", value, ends and f"95 %: {ends}"))
    if metric in findings.noise:
        value, ends = report.interval(findings.noise[metric])
        keys.append(("Noise floor, real against real", value, ends and f"95 %: {ends}"))
    if not keys:
        return ""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>" for k, v, s in keys)
    return f'<dl class="keys" aria-label="{escape(_title(findings, metric))}">{items}</dl>'


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(findings: Findings) -> str:
    if _best(findings) is None:
        return ""
    drawn = dict(figures.drawings(findings))
    steps = next(name for name in drawn if name.startswith("steps_vs_"))
    title = _title(findings, findings.metric)
    parts = [
        '<p>Bands are 95 % intervals. Two curves whose bands overlap may still differ: all cells share their latents, and the table has the interval of the difference.</p>'
        '<div class="curves"><div>'
        '<div class="bar control"><label for="metric">Metric <select id="metric"></select></label>'
        '<label><input type="checkbox" id="logarithmic"> logarithmic</label></div>',
        _plot("curves", "Quality against network calls, with bands of 95 %; dotted: as many real samples against the real ones (nothing can "
              "be told apart below it); dash-dotted: the converged flow from the same latents.", figures.rendered(drawn[steps](), "svg"), title),
    ]  # fmt: skip
    if "pareto" in drawn:
        front = "".join(f"<li>{_on_front(findings, i)}</li>" for i in findings.front)
        parts.append("<h3>What is worth its calls: the Pareto front</h3>")
        parts.append(
            _plot("front", "Every cell is a point; the stairs join the ones that nothing cheaper equals, and rings mark all that cannot be told "
                  "from the best.", figures.rendered(drawn["pareto"](), "svg"), f"{title}: the Pareto front")
            + f'<ol class="front">{front}</ol>'
        )  # fmt: skip
    if "error_vs_calls" in drawn:
        parts.append("<h3>How far a solver is from the converged flow</h3>")
        parts.append(
            _plot("error", "The solver's own error, without the model's: root mean square distance to where the converged flow takes the same "
                  "latents. Deterministic solvers only; the slope is the order.", figures.rendered(drawn["error_vs_calls"](), "svg"),
                  _title(findings, "error"))
        )  # fmt: skip
    parts.append('</div><div class="picker control" id="legend"></div></div>')
    return "".join(parts)


def _plot(key: str, sentence: str, svg: bytes, title: str) -> str:
    """A figure: the place of the interactive plot, and its picture for paper and for a reader without scripts."""
    return (
        f'<figure><div class="plot control" id="plot-{key}" role="img" aria-label="{escape(title)} against network calls"></div>'
        f'<div class="fallback"><img alt="{escape(title)} against network calls" src="{_url(svg, "svg+xml")}"></div>'
        f"<figcaption>{escape(sentence)}</figcaption></figure>"
    )


def _on_front(findings: Findings, i: int) -> str:
    line = findings.lines[i]
    value = report.show(line.measures.get(findings.metric))
    mark = ", as good as the best" if line.good and i != _best(findings) else ", the best" if i == _best(findings) else ""
    return f"<b>{escape(line.curve)}</b>, {escape(_calls(line))}: {escape(value)}{mark}"


def _data(findings: Findings) -> dict[str, Any]:
    """What page.js draws from."""
    curves, best = figures.names(findings), _best(findings)
    number = {curve: i for i, curve in enumerate(curves)}
    titles = {
        m: _title(findings, m) for m in dict.fromkeys([findings.metric, *findings.titles, *(m for x in findings.lines for m in x.measures)])
    }
    shown = {m for m in titles if m != "error"} | {findings.metric}  # the error has a plot of its own
    return {
        "metric": findings.metric,
        "titles": titles,
        "metrics": [
            _about_metric(findings, m, title) for m, title in titles.items() if m in shown and any(_has(x, m) for x in findings.lines)
        ],
        "curves": [
            {"name": c, "stochastic": any(x.stochastic for x in findings.lines if x.curve == c), "look": figures.look(i)._asdict()}
            for c, i in number.items()
        ],
        "lines": [
            {
                "curve": number[x.curve],
                "made": float(x.made),
                "measures": {m: _numbers(v) for m, v in x.measures.items()},
                "texts": {m: report.show(v) for m, v in x.measures.items()},
                "text": [_made(x), *(["the best"] if i == best else ["as good as the best"] if x.good else [])],
                "good": x.good,
            }
            for i, x in enumerate(findings.lines)
        ],
        "front": [i for i in findings.front if _has(findings.lines[i], findings.metric)],
        "shown": [number[c] for c in _prominent(findings, CROWD)],
        "pictured": [number[c] for c in _pictured(findings) if c in number],
        "stops": _stops(findings),
    }


def _about_metric(findings: Findings, metric: str, title: str) -> dict[str, Any]:
    noise = findings.noise.get(metric)
    limit = findings.reference.measures.get(metric) if findings.reference else None
    return {
        "name": metric, "title": title, "better": findings.better.get(metric, "low"),
        "noise": noise and _numbers(noise), "noiseText": noise and report.interval(noise)[0],
        "reference": limit and _numbers(limit), "referenceText": limit and report.interval(limit)[0],
    }  # fmt: skip


def _numbers(given: Interval) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in given]


def _made(line: Line) -> str:
    """Calls as a hover says them."""
    if line.calls is None or line.fewest != line.most:
        return f"{report.show(float(line.made))} calls a sample ({line.fewest} to {line.most})"
    return f"{line.calls} calls" if line.made == line.calls else f"{line.calls} calls asked, {report.show(float(line.made))} made"


def _prominent(findings: Findings, count: int) -> list[str]:
    """The curves that are shown at first: all if they are few, else the ones that come closest to the best."""
    curves, high = figures.names(findings), findings.better.get(findings.metric) == "high"
    if len(curves) <= count:
        return curves
    reached: dict[str, float] = {}
    for line in findings.lines:
        if _has(line, findings.metric):
            value = line.measures[findings.metric].value * (-1 if high else 1)
            reached[line.curve] = min(value, reached.get(line.curve, math.inf))
    first = [findings.lines[i].curve for i in findings.front]
    ranked = list(dict.fromkeys([*first, *sorted(reached, key=lambda c: reached[c])]))[:count]
    return [c for c in curves if c in ranked]


# --- images ---------------------------------------------------------------------------------------------------------


def _of_solvers(findings: Findings) -> list[Sheet]:
    """The sheets of the study's own lines: all but the converged flow's."""
    own = set(figures.names(findings))
    return [s for s in findings.sheets if s.curve in own and len(s.images)]


def _stops(findings: Findings) -> list[int]:
    """Where the slider stops: the step counts that were asked; those that adaptive solvers made only where nothing else is."""
    fixed = {line.curve for line in findings.lines if line.calls is not None}
    sheets = _of_solvers(findings)
    return sorted({s.calls for s in sheets if s.curve in fixed} or {s.calls for s in sheets})


def _pictured(findings: Findings) -> list[str]:
    """Three curves whose images are shown at first: of the best line, and the first deterministic and stochastic ones beside it."""
    there = list(dict.fromkeys(s.curve for s in _of_solvers(findings)))
    best = _best(findings)
    noisy = {line.curve for line in findings.lines if line.stochastic}
    first = [findings.lines[best].curve] if best is not None else []
    wanted = [
        *first,
        *[c for c in there if c not in noisy and c not in first][:1],
        *[c for c in there if c in noisy and c not in first][:1],
        *there,
    ]
    return [c for c in dict.fromkeys(wanted) if c in there][:3]


def _images(findings: Findings) -> str:
    sheets = _of_solvers(findings)
    own = set(figures.names(findings))
    limits = [s for s in findings.sheets if s.curve not in own and len(s.images)]
    if not sheets:
        return ""
    stops, number = _stops(findings), {c: i for i, c in enumerate(figures.names(findings))}
    paper = set(stops if len(stops) <= 4 else [stops[round(i * (len(stops) - 1) / 3)] for i in range(4)])
    first = set(_pictured(findings))
    middle = stops[(len(stops) - 1) // 2]
    shown = {c: min((s.calls for s in sheets if s.curve == c), key=lambda n: abs(math.log(n / middle))) for c in first}
    rows = []
    for sheet in sheets:
        line = next((x for x in findings.lines if x.curve == sheet.curve and sheet.calls in (x.calls, round(x.made))), None)
        value = report.show(line.measures.get(findings.metric)) if line is not None else ""
        printed = sheet.curve in first and (sheet.calls in paper or sheet.calls not in stops)
        about = f' data-curve="{number[sheet.curve]}" data-calls="{sheet.calls}"'
        about += "" if shown.get(sheet.curve) == sheet.calls else " hidden"
        rows.append(_strip(sheet.images, sheet.curve, f"{sheet.calls} calls", value, about, "paper" if printed else ""))
    rows += [_strip(s.images, s.curve, "the same latents", "", "", "paper fixed") for s in limits]
    if findings.real is not None and len(findings.real):
        rows.append(
            _strip(
                findings.real[: max(len(s.images) for s in sheets)],
                "Real images",
                "of the data, not from these latents",
                "",
                "",
                "paper fixed",
            )
        )
    title = _title(findings, findings.metric)
    columns = max(len(s.images) for s in sheets)
    return (
        "<p>Each column starts from the same latent, in every row and at every step count. Move the slider, or use the arrow keys, to see what more "
        f"calls change. Beside each row: {escape(title)}.</p>"
        '<div class="picker control" id="image-curves"></div>'
        '<div class="steps control"><label for="steps">Network calls</label><input type="range" id="steps" min="0" max="0" step="1" value="0">'
        '<output id="calls" for="steps"></output><div class="stops" id="stops" aria-hidden="true"></div></div>'
        f'<div class="strips" role="region" tabindex="0" aria-label="images of the same latents" style="--tiles: {columns}">{"".join(rows)}</div>'
    )


def _strip(images: np.ndarray, name: str, calls: str, value: str, about: str, look: str) -> str:
    url, width, height, small = _picture(images)
    second = f"{escape(calls)}<span class='other'></span>{f' <small>{escape(value)}</small>' if value else ''}"
    return (
        f'<figure class="strip {look}"{about}><figcaption><b>{escape(name)}</b> <span>{second}</span></figcaption><div>'
        f'<img class="{"small" if small else ""}" width="{width}" height="{height}" decoding="sync" alt="{len(images)} images: {escape(name)}, {escape(calls)}" src="{url}">'
        "</div></figure>"
    )


def _picture(images: np.ndarray) -> tuple[str, int, int, bool]:
    """A row of images with clear gaps between them: (URL, width, height, whether its pixels should stay sharp)."""
    images = np.asarray(images, dtype=np.uint8)
    n, h, w, c = images.shape
    if max(h, w) > TILE:
        new = (max(1, round(w * TILE / max(h, w))), max(1, round(h * TILE / max(h, w))))
        images = np.stack(
            [
                np.asarray(Image.fromarray(i[..., 0] if c == 1 else i).resize(new, Image.Resampling.LANCZOS)).reshape(new[1], new[0], c)
                for i in images
            ]
        )
        h, w = images.shape[1:3]
    zoom = max(1, 24 // max(h, w))  # so that the gap may be thinner than a pixel of the image
    images = images.repeat(zoom, 1).repeat(zoom, 2)
    h, w = h * zoom, w * zoom
    gap = max(2, w // 14)
    row = np.zeros((h, n * (w + gap) - gap, c + 1), dtype=np.uint8)
    for j, image in enumerate(images):
        row[:, j * (w + gap) : j * (w + gap) + w] = np.concatenate([image, np.full((h, w, 1), 255, np.uint8)], axis=-1)
    buffer = io.BytesIO()
    picture = Image.fromarray(row, "LA" if c == 1 else "RGBA")
    kind = "png" if w <= 64 or c == 1 else "webp"
    picture.save(buffer, format=kind, quality=88)  # PNG has no quality, and loses nothing
    return _url(buffer.getvalue(), kind), row.shape[1], h, w <= 64


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# --- tables ---------------------------------------------------------------------------------------------------------


def _lines(findings: Findings) -> str:
    lines, metric = findings.lines, findings.metric
    if not lines:
        return ""
    best, high = _best(findings), findings.better.get(metric) == "high"
    others = [
        m
        for m in dict.fromkeys([*findings.titles, *(m for x in lines for m in x.measures)])
        if m != metric and any(_has(x, m) for x in lines)
    ]
    guided = any(x.guidance is not None for x in lines)
    title = _title(findings, metric)
    heads = ["curve", "calls asked", "calls made", title, "difference to the best", "p", "as good as the best"]
    heads += [*(_title(findings, m) for m in others), "time", "network share", "peak memory", "samples", "seeds", "grid"]
    heads += [*(["guidance"] if guided else []), "solver"]
    order = sorted(range(len(lines)), key=lambda i: _rank(lines[i], metric, high))
    rows = []
    for i in order:
        x = lines[i]
        rest = [Field(x.guidance or report.NOTHING, "", x.guidance, "code")] if guided else []
        rows.append([
            Field(x.curve, "", x.curve),
            Field("adaptive", "", None, "number") if x.calls is None else report.number(x.calls, str(x.calls)),
            report.number(x.made, report.show(float(x.made)), f"{x.fewest} to {x.most}" if x.fewest != x.most else ""),
            report.measured(x.measures.get(metric)),
            report.measured(x.against.difference if x.against else None),
            report.number(x.against.p, report.probability(x.against.p)) if x.against else report.measured(None),
            Field("best", "", "1 best", "mark") if i == best else Field("as good", "", "2 as good", "mark") if x.good else Field("", "", None, "mark"),
            *(report.measured(x.measures.get(m)) for m in others),
            report.number(x.seconds, report.duration(x.seconds)),
            report.number(x.network, f"{100 * x.network:.0f} %" if math.isfinite(x.network) else report.NOTHING),
            report.number(x.memory, report.size(x.memory)),
            report.number(x.samples, f"{x.samples:,}"),
            report.number(x.seeds, str(x.seeds)),
            Field(x.grid, "", x.grid, "code"),
            *rest,
            Field(x.solver, "", x.solver, "code"),
        ])  # fmt: skip
    return (
        "<p>Below each number is its 95 % interval. The difference to the best is taken on the same latents, so its interval is much narrower than "
        "those of the two numbers; what cannot be told from the best is marked. Press a column's name to sort by it.</p>"
        '<div class="bar control"><label for="find">Find <input type="search" id="find" placeholder="solver, calls, …"></label>'
        '<label><input type="checkbox" id="only-good"> as good as the best</label><output id="found" class="hint" for="find only-good"></output></div>'
        f'<div class="lines">{report.table(heads, rows, name="All cells", sorted_by=3, down=high)}</div>'
    )


def _rank(line: Line, metric: str, high: bool) -> tuple[bool, float]:
    value = line.measures[metric].value if _has(line, metric) else 0.0
    return not _has(line, metric), -value if high else value


def _failed(findings: Findings) -> str:
    if not findings.failed:
        return ""
    rows = [[Field(cell, "", cell, "code"), Field(reason, "", reason, "text")] for cell, reason in findings.failed]
    return f"<p>These cells ended with an error; everything else is as it would be without them.</p>{report.table(['cell', 'reason'], rows, name='Failed cells')}"


def _more(findings: Findings) -> str:
    parts = []
    for title, sentence, table in findings.tables:
        heads, rows = report.rows_of(table)
        shown = report.table(heads, rows, name=title) if rows else "<p>(nothing)</p>"
        parts.append(f"<h3>{escape(title)}</h3><p>{escape(sentence)}</p>{shown}")
    for title, sentence, png in findings.pictures:
        parts.append(
            f'<h3>{escape(title)}</h3><p>{escape(sentence)}</p><figure class="picture"><img alt="{escape(title)}" src="{_url(png, "png")}"></figure>'
        )
    return "".join(parts)


def _again(findings: Findings) -> str:
    return (
        f"<p>This command runs the same study again, and goes on where it was stopped:</p>{_copied('command', findings.command, 'command')}"
        f"<h3>Settings</h3><p>The whole study as TOML, every default written out.</p>{_copied('settings', findings.settings, '')}"
    )


def _copied(key: str, text: str, look: str) -> str:
    return (
        f'<pre class="{look}" tabindex="0" aria-label="{key}"><code id="{key}">{escape(text)}</code></pre>'
        f'<button type="button" class="control" data-copies="{key}" aria-label="copy the {key}">Copy</button>'
    )


def _about(findings: Findings) -> str:
    pairs: Sequence[tuple[str, str]] = list(findings.about.items())
    if not pairs:
        return ""
    return f'<dl class="about">{"".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs)}</dl>'
