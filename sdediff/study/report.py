"""One self-contained page: the pictures, a sentence for each, the tables, and how to make them again."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..checkpoint import write_bytes

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); }
code, pre { background: var(--soft); border-radius: 4px; padding: .1em .35em; } pre { padding: .8em; overflow-x: auto; }
"""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """An HTML table of dictionaries with the same keys."""
    if not rows:
        return "<p>(nothing)</p>"
    head = "".join(f"<th>{escape(str(k).replace('_', ' '))}</th>" for k in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(show(v))}</td>" for v in r.values()) + "</tr>" for r in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def show(value: Any) -> str:
    """A cell's text: four digits of a number, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(path: Path, title: str, intro: Sequence[str], sections: Sequence[tuple[str, str, Path | str]]) -> None:
    """Write the page: `intro` paragraphs, then sections (heading, sentence, a PNG to embed or HTML)."""
    parts = [f"<p>{p}</p>" for p in intro]
    for heading, sentence, content in sections:
        if isinstance(content, Path):
            data = base64.b64encode(content.read_bytes()).decode()
            content = f'<img alt="{escape(heading)}" src="data:image/png;base64,{data}">'
        parts.append(f"<h2>{escape(heading)}</h2><p>{sentence}</p>{content}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    write_bytes(path, page.encode())
