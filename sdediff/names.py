"""Names that a person types: the nearest right one to a wrong one, and values rebuilt from their `repr`.

`from_repr("DDIM(eta=0.5)", names)` reads a literal call over the given public names. The text is parsed, never evaluated: only calls of
these names, numbers, strings, booleans, None, tuples and lists of them are understood.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Something the caller asked for cannot be done. The message says what was wrong, what was expected and what to do."""


def nearest(word: str, words: Iterable[str]) -> str:
    """`" Did you mean 'DDIM'?"` or an empty string."""

    def likeness(w: str) -> float:
        swapped = sorted(w.lower()) == sorted(word.lower())  # letters in another order
        return difflib.SequenceMatcher(None, word.lower(), w.lower()).ratio() + swapped

    best = max(words, key=likeness, default=None)
    return f" Did you mean {best!r}?" if best is not None and likeness(best) >= 0.5 else ""


def choose(what: str, value: Any, options: Iterable[Any]) -> None:
    """Raise `UserError` unless `value` is one of `options`."""
    options = list(options)
    if value not in options:
        shown = ", ".join(repr(o) for o in options)
        raise UserError(f"{what} {value!r} does not exist; choose one of {shown}.{nearest(str(value), map(str, options))}")


def positive(what: str, value: Any) -> int:
    """`value` as a whole number of at least 1, or `UserError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what} must be a whole number of at least 1, not {value!r}.")
    return value


def label(value: Any) -> str:
    """`repr(value)` without the options that have their default value: short, and `from_repr` still rebuilds it."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    shown = []
    for f in dataclasses.fields(value):
        given = getattr(value, f.name)
        if f.name == "order" or f.default is dataclasses.MISSING or given != f.default:
            shown.append(f"{f.name}={label(given)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def from_repr(text: str, names: Mapping[str, Any], what: str = "solver", values: Mapping[str, Any] | None = None) -> Any:
    """The value whose `repr` is `text`, built from the public `names` only. A bare name is called without arguments.

    values: further names that may stand inside, as options (coordinates, for example).

    Raises `UserError` for text that is not a literal call, an unknown name, or an option that the named class does not have.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(f"{text!r} is not a {what}: write it as Python shows it, e.g. {_example(names)}.") from None
    head = tree.func if isinstance(tree, ast.Call) else tree
    if not isinstance(head, ast.Name):
        raise UserError(f"{text!r} is not a {what}: write it as Python shows it, e.g. {_example(names)}.")
    if head.id not in names:
        raise UserError(f"unknown {what} {head.id!r}.{nearest(head.id, names)} There are: {', '.join(sorted(names))}.")
    try:
        value = _value(tree, {**(values or {}), **names}, what, text)
    except RecursionError:
        raise UserError(f"{text[:60]!r}... is not a {what}: it is nested too deeply.") from None
    return _call(value, [], {}, what) if inspect.isclass(value) else value


def _example(names: Mapping[str, Any]) -> str:
    return '"DDIM(eta=0.5)"' if "DDIM" in names else f'"{next(iter(names))}()"'


def _value(node: ast.expr, names: Mapping[str, Any], what: str, text: str) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=items):
            return tuple(_value(i, names, what, text) for i in items)
        case ast.List(elts=items):
            return [_value(i, names, what, text) for i in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _value(operand, names, what, text)
            if isinstance(inner, int | float) and not isinstance(inner, bool):
                return -inner
        case ast.Name(id="inf"):
            return float("inf")
        case ast.Name(id=name):
            if name in names:
                return names[name]
            raise UserError(f"{name!r} in {text!r} is unknown.{nearest(name, names)} There are: {', '.join(sorted(names))}.")
        case ast.Call(func=ast.Name() as function, args=args, keywords=keywords):
            made = _value(function, names, what, text)
            options = {k.arg: _value(k.value, names, what, text) for k in keywords if k.arg}
            if len(options) == len(keywords):
                return _call(made, [_value(a, names, what, text) for a in args], options, what)
    raise UserError(f"{text!r} is not a {what}: only names, numbers, texts and tuples are read, e.g. {_example(names)}.")


def _made(value: Any, what: str) -> Any:
    """A bare class name stands for its defaults, inside as at the top."""
    return _call(value, [], {}, what) if inspect.isclass(value) else value


def _call(made: Any, args: list[Any], options: dict[str, Any], what: str) -> Any:
    signature = inspect.signature(made)
    known = [p for p in signature.parameters if p != "self"]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{made.__name__} has no option {option!r}; {has}.{nearest(option, known)}")
    try:
        signature.bind(*args, **options)
    except TypeError as wrong:
        raise UserError(f"{made.__name__}: {wrong}; it takes {', '.join(known) or 'no options'}.") from None
    args = [_made(a, what) for a in args]
    options = {k: _made(v, what) for k, v in options.items()}
    try:
        return made(*args, **options)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError) as wrong:
        raise UserError(f"{made.__name__} cannot be made with these options: {wrong}.") from None
