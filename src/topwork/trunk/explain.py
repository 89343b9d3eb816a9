"""Why two stores are two: the facts in which their fingerprints differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topwork.errors import UsageError
from topwork.trunk.care import find_stores
from topwork.trunk.manifest import read_manifest

WAY = {
    "decoding": "how image files are decoded",
    "preprocessing": "how images are brought to the network's size and range",
    "rendering": "how images are brought to the network's size",
    "view": "which view of each image, and how views are drawn",
    "weights": "the trunk's weights",
    "program": "the trunk's layers",
    "code": "the code of blocks that are not PyTorch's or timm's",
    "cut": "where the network is cut",
    "pool": "how the output at the cut is pooled",
    "dtype": "the precision in which codes are kept",
    "runtime": "what ran the trunk",
    "versions": "versions of libraries",
    "format": "the format of the cache",
    "canary": "what the trunk gives for two fixed inputs: it shows what nothing else does, such as"
    " the code of a function, another processor or number of threads",
}
"""The facts of a fingerprint in the order of the way of the data; the canary reflects the others.
"""


@dataclass(frozen=True)
class Difference:
    """A fact in which two fingerprints differ.

    Attributes:
        fact: its name, with dots where it lies inside another.
        meaning: what it is about.
        first: its value in the one, None if it is not there.
        second: its value in the other.
    """

    fact: str
    meaning: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """Two stores, and in what they differ, the first thing on the way of the data first.

    Attributes:
        first: the key of the one.
        second: the key of the other.
        differences: empty only if the keys are the same.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]


def explain(one: str, other: str | None = None) -> list[Comparison]:
    """Compare stores.

    Args:
        one: the beginning of a key, or a run folder, whose stores are each compared.
        other: likewise; of its stores that with the most facts in common is taken. None for all
            others of the cache.

    Raises:
        UsageError: if one of them means no store, or what its codes are is not known.
    """
    first = find_stores([one])
    second = find_stores([other]) if other is not None else find_stores([])
    if other is None:
        second = [folder for folder in second if folder not in first]
    candidates = {folder.name: facts for folder in second if (facts := facts_of(folder))}
    if not candidates:
        raise UsageError("there is nothing in the cache to compare it with; see topwork cache ls")
    found = []
    for folder in first:
        facts = facts_of(folder)
        if not facts:
            raise UsageError(f"{folder} has no manifest that can be read; see topwork cache repair")
        nearest = min(candidates, key=lambda key: (len(differences(facts, candidates[key])), key))
        found.append(Comparison(folder.name, nearest, differences(facts, candidates[nearest])))
    return found


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the facts of a store; none if its manifest cannot be read."""
    try:
        return read_manifest(folder)[0]
    except (OSError, ValueError):
        return {}


def differences(first: dict[str, Any], second: dict[str, Any]) -> tuple[Difference, ...]:
    """Return the facts in which two fingerprints differ, in the order of the way of the data.

    >>> differences({"cut": "layer3", "view": {"flip": True}}, {"cut": "layer4", "view": "plain"})
    ... # doctest: +ELLIPSIS
    (Difference(fact='view', ...first={'flip': True}, second='plain'), Difference(fact='cut', ...))
    """
    rank = {fact: number for number, fact in enumerate(WAY)}
    names = sorted(first.keys() | second.keys(), key=lambda name: (rank.get(name, len(rank)), name))
    return tuple(
        Difference(fact, WAY.get(name, "another fact"), one, other)
        for name in names
        for fact, one, other in differing(name, first.get(name), second.get(name))
    )


def differing(name: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of what differs in a fact, which may hold others.

    >>> list(differing("versions", {"torch": "2.1", "timm": "1"}, {"torch": "2.2", "timm": "1"}))
    [('versions.torch', '2.1', '2.2')]
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for inner in sorted(one.keys() | other.keys()):
            yield from differing(f"{name}.{inner}", one.get(inner), other.get(inner))
    elif one != other:
        yield name, one, other


def shortened(value: Any) -> str:
    """Return a value as it is printed in a line: a hash by its beginning.

    >>> shortened("plain"), shortened(None), shortened("ab" * 32)
    ('plain', '-', 'abababababab...')
    """
    text = "-" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
