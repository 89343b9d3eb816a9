"""Reading values from plain data, as JSON holds it, strictly: nothing unknown, nothing missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from topwork.errors import PlanError, did_you_mean

KINDS_IN_WORDS: dict[Any, str] = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def in_words(kind: Any) -> str:
    """Name the JSON values that fit an annotation."""
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        return " or ".join(in_words(part) for part in inner)
    if get_origin(kind) is tuple:
        return "a list" if inner[-1] is ... else f"a list of {len(inner)}"
    return KINDS_IN_WORDS.get(kind, "an object with named values")


def read(kind: Any, value: Any, where: str) -> Any:
    """Make a value of an annotated kind from plain data.

    Args:
        kind: a dataclass, or what a field of one is annotated with.
        value: what JSON holds.
        where: what the value is called in messages.

    Raises:
        PlanError: for an unknown or missing key or a value of the wrong kind.
    """
    part, *null = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if null and value is None:
        return None
    inner = get_args(part)
    if is_dataclass(part):
        fits = isinstance(value, Mapping)
    elif inner:
        fits = isinstance(value, (list, tuple)) and (... in inner or len(value) == len(inner))
    else:
        fits = isinstance(value, (int, float) if part is float else part)
        fits = fits and isinstance(value, bool) == (part is bool)  # to Python, true is an int
    if not fits:
        raise PlanError(f"{where} is {value!r}; it must be {in_words(kind)}")
    if is_dataclass(part):
        return read_object(part, value)
    if inner:
        items = enumerate(value, start=1)
        return tuple(read(inner[0], item, f"item {n} of {where}") for n, item in items)
    return value


def read_object(kind: Any, data: Mapping[str, Any]) -> Any:
    """Make a dataclass from names and values, as `read` does."""
    what = getattr(kind, "IN_WORDS", kind.__name__.lower())
    kinds = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
    for key in data:
        if key not in kinds:
            hint = did_you_mean(key, kinds)
            raise PlanError(f"unknown key {key!r} in {what}{hint}; known are {', '.join(kinds)}")
    for part in fields(kind):
        if part.name not in data and part.default is MISSING and part.default_factory is MISSING:
            raise PlanError(f"incomplete {what}: {part.name} is missing; add it")
    return kind(**{key: read(kinds[key], data[key], f"{key} in {what}") for key in data})
