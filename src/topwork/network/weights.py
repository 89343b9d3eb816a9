"""Giving weights to a network, with every tensor of both accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topwork.errors import WeightsError
from topwork.network.inputs import InputChange, adapt_state, shown
from topwork.network.state import read_state

__all__ = ["Accounting", "NameMatch", "assign_weights", "match_names", "read_state"]

# What wrappers of networks (DataParallel, torch.compile, Lightning, ...) put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "network.", "net.")

# Names in torchvision's own files that its modules have since changed.
OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),  # DenseNet before 0.3
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),  # ViT before 0.13
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


@dataclass(frozen=True)
class NameMatch:
    """A state under a network's own names.

    Attributes:
        state: tensors by name; names that match nothing are kept.
        prefix: what was taken off the names of the file, often ``""``.
        renamed: how many names were brought up to date otherwise.
    """

    state: dict[str, Tensor]
    prefix: str
    renamed: int


def match_names(state: Mapping[str, Tensor], wanted: Iterable[str]) -> NameMatch:
    """Take wrappers' prefixes off the names of a state where that makes more of them match.

    >>> match_names({"module.fc.bias": torch.zeros(2)}, ["fc.weight", "fc.bias"]).prefix
    'module.'
    """
    known = set(wanted)

    def translate(name: str, prefix: str) -> str:
        return _current_name(name.removeprefix(prefix), known)

    def matches(prefix: str) -> int:
        return sum(translate(name, prefix) in known for name in state)

    candidates = {"", *(chain for name in state for chain in _prefix_chains(name))}
    prefix = max(sorted(candidates, key=len), key=matches)  # of equally good ones the shortest
    translated = {name: translate(name, prefix) for name in state}
    # A name that the file holds both with and without the prefix stays as it is: a leftover.
    final = {
        name: name if new != name and new in state else new for name, new in translated.items()
    }
    renamed = sum(new != name.removeprefix(prefix) for name, new in final.items() if new in known)
    return NameMatch({final[name]: tensor for name, tensor in state.items()}, prefix, renamed)


def _prefix_chains(name: str) -> Iterator[str]:
    """Yield ``"module."``, then ``"module.encoder."``, for ``"module.encoder.conv1.weight"``."""
    chain = ""
    while part := next((p for p in PREFIXES if name.startswith(p, len(chain))), ""):
        chain += part
        yield chain


def _current_name(name: str, known: set[str]) -> str:
    if name not in known:
        for old, new in OLD_NAMES:
            if (current := old.sub(new, name)) in known:
                return current
    return name


@dataclass(frozen=True)
class Accounting:
    """Where every tensor of a network and of its weights file went.

    ``reused``, ``reinitialized``, ``dropped`` and ``counters`` together are the network's names;
    ``reused`` and ``unused`` together are the file's, under the network's names.

    Attributes:
        reused: copied from the file.
        reinitialized: kept in the architecture, but left random because the plan says so.
        dropped: above the kept depth.
        counters: batch counters of reused batch norms that the file lacks; they stay at zero.
        unused: in the file, and not needed.
        prefix: what was taken off the names in the file.
        renamed: how many names of the file were brought up to date otherwise.
        adapted: those of ``reused`` that were fitted to another image size or channel count.
    """

    reused: tuple[str, ...]
    reinitialized: tuple[str, ...]
    dropped: tuple[str, ...]
    counters: tuple[str, ...]
    unused: tuple[str, ...]
    prefix: str
    renamed: int
    adapted: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the counts in one line."""
        adapted = f" ({len(self.adapted)} adapted to other images)" if self.adapted else ""
        parts = [
            f"{len(self.reused)} tensors reused{adapted}",
            f"{len(self.reinitialized)} re-initialized",
            f"{len(self.dropped)} dropped",
        ]
        if self.counters:
            parts.append(f"{len(self.counters)} batch counters absent from the file")
        if self.unused:
            parts.append(f"{len(self.unused)} in the file not needed")
        if self.prefix:
            parts.append(f"prefix {self.prefix!r} taken off")
        if self.renamed:
            parts.append(f"{self.renamed} old names brought up to date")
        return ", ".join(parts)


def assign_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    depth_of: Mapping[str, int],
    depths: Sequence[str],
    reused: int,
    kept: int,
    file: str,
    change: InputChange | None = None,
    beside: tuple[str, ...] = (),
) -> Accounting:
    """Copy a state into the layers of a network up to depth ``reused``, and account for the rest.

    Everything is checked before anything is copied.

    Args:
        network: its parameters and buffers are written in place.
        state: tensors by name, as :func:`read_state` returns them.
        depth_of: for every name of ``network.state_dict()`` the index of the first depth that
            includes it; ``len(depths)`` for what lies above the last cut point, the source's head.
        depths: names of the cut points by index; ``depths[0]`` is the input.
        reused: names up to this depth must be in the state, with equal shapes.
        kept: names above ``reused`` and up to this depth stay as they are; those above are dropped.
        file: what the state was read from, for messages.
        change: how the network's images differ from the state's, if they do; what that alters is
            adapted.
        beside: what names begin with that the state may have and the network not, as those of a
            model's added layers do.

    Raises:
        WeightsError: the state lacks a needed tensor, has one of another shape or one that the
            network does not know (only the source's head may differ, and what lies ``beside``),
            or holds infinities or NaN.
    """
    own = network.state_dict()
    match = match_names(state, own)
    adapted = adapt_state(match.state, network, change) if change else {}
    given = match.state | adapted
    above = len(depths)
    heads = {name.rpartition(".")[0] + "." for name in own if depth_of[name] == above}
    above_all = (*heads, *beside)
    computed = {name for name, _ in network.named_buffers()} - own.keys()

    needed = [name for name in own if depth_of[name] <= reused]
    absent = [name for name in needed if name not in given]
    counters = tuple(name for name in absent if name.endswith("num_batches_tracked"))
    missing = [name for name in absent if name not in counters]
    known = own.keys() | computed
    unknown = [name for name in given if name not in known and not name.startswith(above_all)]
    misshapen = [
        name
        for name in own
        if name in given
        and own[name].shape != given[name].shape
        and (depth_of[name] < above or reused == above)
    ]
    if missing and not unknown and not misshapen:
        _check_coverage(missing, given, depth_of, depths, file)
    if missing or unknown or misshapen:
        hint = "is it the file of another network?"
        if misshapen and change:
            hint = (
                f"it is for {shown(change.source)} pixels, channels: {change.source_channels}, and"
                " not all of it can be adapted; leave out input_size and channels, or choose"
                " another network"
            )
        raise WeightsError(_misfit(file, own, given, missing, unknown, misshapen, hint))

    copied = tuple(name for name in needed if name in given)
    _check_finite(copied, given, file)
    with torch.no_grad():
        for name in copied:
            own[name].copy_(given[name])
    return Accounting(
        reused=copied,
        reinitialized=tuple(name for name in own if reused < depth_of[name] <= kept),
        dropped=tuple(name for name in own if depth_of[name] > max(reused, kept)),
        counters=counters,
        unused=tuple(name for name in given if name not in set(copied)),
        prefix=match.prefix,
        renamed=match.renamed,
        adapted=tuple(name for name in copied if name in adapted),
    )


def _check_coverage(
    missing: Sequence[str],
    given: Mapping[str, Tensor],
    depth_of: Mapping[str, int],
    depths: Sequence[str],
    file: str,
) -> None:
    """Raise if the file is whole up to some depth and holds nothing of the layers above it."""
    covered = min(depth_of[name] for name in missing) - 1
    if covered < 1 or any(covered < depth_of.get(name, 0) < len(depths) for name in given):
        return
    depth = depths[covered]
    raise WeightsError(
        f"{file} holds weights only up to {depth}; keep that much with --kept {depth}"
        f" or reuse that much with --reused {depth}"
    )


def _check_finite(names: Iterable[str], given: Mapping[str, Tensor], file: str) -> None:
    for name in names:
        if not torch.isfinite(given[name]).all():
            raise WeightsError(f"{file}: {name} holds infinities or NaN; fetch the file again")


def _misfit(
    file: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: Sequence[str],
    unknown: Sequence[str],
    misshapen: Sequence[str],
    hint: str,
) -> str:
    shapes = [
        f"{name} is {list(given[name].shape)} in the file, {list(own[name].shape)} in the network"
        for name in misshapen
    ]
    findings = [
        f"{len(names)} {what} ({_first(names)})"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown to the network"),
            (shapes, "of another shape"),
        )
        if names
    ]
    return f"{file} does not fit the network: {'; '.join(findings)}; {hint}"


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
