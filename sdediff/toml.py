"""What a TOML file says, read and refused in sentences: keys that do not exist, options that do not fit; and values written as TOML."""

from __future__ import annotations

import inspect
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data import DataError
from .names import UserError, nearest


def read_toml(path: Path, shipped: Sequence[str]) -> dict[str, Any]:
    """The file's contents. `UserError` where there is none, naming those that are shipped, or where it is no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as wrong:
        raise UserError(f"there is no config {path} ({wrong.strerror}); shipped ones: {', '.join(shipped)}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise UserError(f"{path} is not TOML: {wrong}.") from None


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan are TOML's words too
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML knows no surrogate pairs


def known_keys(config: str, section: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """`UserError` for the first key that is not known, with the nearest that is."""
    for key in given:
        if key not in known:
            where = f"[{section}] has no key" if section else "there is no section or key"
            raise UserError(f"{config}: {where} {key!r}.{nearest(key, known)} There are: {', '.join(known)}.")


def change_key(given: dict[str, Any], change: str, sections: Sequence[str], example: str) -> None:
    """Set one key as a text says, "section.key=value". `UserError` for another text, or a section that does not exist."""
    key, equals, value = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UserError(f"{change!r} changes nothing: write section.key=value, e.g. {example}.")
    if section not in sections:
        raise UserError(f"there is no section [{section}].{nearest(section, sections)} There are: {', '.join(sections)}.")
    value = value.strip()
    try:
        read = tomllib.loads(f"x = {value.lower() if value in ('True', 'False') else value}")["x"]
    except tomllib.TOMLDecodeError:
        read = value  # a text without quotes
    if not isinstance(given.setdefault(section, {}), dict):
        raise UserError(f"{section} is a section: write [{section}] and its keys below.")
    given[section][name] = read


def options_of(made: Any, *without: str) -> list[str]:
    """The names of the options of a class or function."""
    return [p for p in inspect.signature(made).parameters if p not in ("self", *without)]


def built(config: str, section: str, made: Any, given: Mapping[str, Any], further: Sequence[str] = (), *first: Any) -> Any:
    """made(*first, **given), where whatever does not fit is told of this section."""
    known = options_of(made)[len(first) :]
    known_keys(config, section, given, [*known, *further])
    try:
        return made(*first, **given)
    except (UserError, DataError) as wrong:
        raise UserError(f"{config}: [{section}]: {wrong}") from None
    except (TypeError, ValueError) as wrong:
        raise UserError(f"{config}: [{section}] does not fit: {str(wrong).rstrip('.')}.") from None
