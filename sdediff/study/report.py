"""Numbers, texts and tables as a page or a terminal shows them. Every text is escaped here, and nowhere is one taken as HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from .findings import Interval

NOTHING = "–"


def show(value: Any) -> str:
    """A cell's text: four digits of a number, an interval with its ends, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, Interval):
        value, ends = interval(value)
        return f"{value} ({ends})" if ends else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(given: Interval) -> tuple[str, str]:
    """(value, "low to high") with one or two digits of half the interval's width; the second is empty where there is no interval."""
    half = (given.high - given.low) / 2
    if not math.isfinite(given.value):
        return NOTHING, ""
    if not math.isfinite(half) or half <= 0:
        return show(float(given.value)), ""
    first = math.floor(math.log10(half))
    places = (1 if half < 3.5 * 10.0**first else 0) - first
    biggest = max(abs(given.value), half)
    if biggest < 1e-3 or biggest >= 1e6:
        digits = max(1, min(6, math.floor(math.log10(biggest)) + places))
        value, low, high = (re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{x:.{digits}e}").replace("e+", "e") for x in given)
    else:
        value, low, high = (_fixed(x, places) for x in given)
    return value, f"{low} to {high}"


def _fixed(x: float, places: int) -> str:
    shown = f"{round(x, places):.{max(places, 0)}f}"
    return shown[1:] if shown.startswith("-") and not float(shown) else shown


def probability(p: float) -> str:
    """A p value: never more digits than it deserves, never 0."""
    if not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def size(count: float) -> str:
    """Bytes in a unit that a person reads."""
    if not math.isfinite(count):
        return NOTHING
    units = ["B", "KB", "MB", "GB", "TB"]
    while abs(count) >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 99.5 else f"{minutes / 60:.3g} h"


class Field(NamedTuple):
    """A cell of a table: text, a second smaller one, what it is sorted by (None: nothing there, always last), and how it looks."""

    text: str
    small: str = ""
    key: float | str | None = None
    look: str = ""


def plain(value: Any) -> Field:
    """A value of unknown kind as a cell."""
    if isinstance(value, Interval):
        text, ends = interval(value)
        return Field(text, ends, _number(value.value), "number")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Field(show(value), "", _number(value), "number")
    text = show(value)
    return Field(text, "", None if value is None else text)


def measured(given: Interval | None) -> Field:
    """An interval as a cell, also where there is none."""
    return Field(NOTHING, "", None, "number") if given is None else plain(given)


def number(value: float, text: str, small: str = "") -> Field:
    """A number as a cell, in a text of its own."""
    return Field(text, small, _number(value), "number")


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def rows_of(table: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Field]]]:
    """Heads and cells of a list of mappings; a key that a row lacks is empty there."""
    heads = list(dict.fromkeys(key for row in table for key in row))
    return heads, [[plain(row.get(head)) for head in heads] for row in table]


def table(heads: Sequence[str], rows: Iterable[Sequence[Field]], *, name: str, sorted_by: int | None = None, down: bool = False) -> str:
    """An HTML table whose columns page.js sorts; it scrolls inside its own frame. name: what a screen reader calls it."""
    rows = list(rows)
    looks = [next((row[i].look for row in rows if row[i].look), "") for i in range(len(heads))]
    order = "descending" if down else "ascending"
    tops = "".join(
        f'<th scope="col" class="{looks[i]}" aria-sort="{order if i == sorted_by else "none"}">'
        f'<button type="button">{escape(head)}</button></th>'
        for i, head in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(_cell(f, 'th' if i == 0 else 'td') for i, f in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}"><table class="sortable"><caption class="unseen">'
        f"{escape(name)}; each column can be sorted</caption><thead><tr>{tops}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(given: Field, tag: str) -> str:
    key = "" if given.key is None else f' data-key="{escape(str(given.key))}"'
    small = f"<small>{escape(given.small)}</small>" if given.small else ""
    scope = ' scope="row"' if tag == "th" else ""
    return f'<{tag}{scope} class="{given.look}"{key}><span>{escape(given.text)}</span>{small}</{tag}>'
