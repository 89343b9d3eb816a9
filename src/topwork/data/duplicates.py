"""The same image twice: byte for byte, or re-encoded, resized or slightly touched.

Near duplicates are found in two steps. A perceptual hash (signs of the lowest frequencies of a
cosine transform; Zauner 2010) proposes pairs, the miniatures themselves decide. The limits are set
low on purpose: a missed pair costs a little honesty, a false one costs a training image. Textures,
digits and flat images, which a hash alone confuses, stay apart; neighboring slices of one scan
or frames of one film can be close enough to count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Miniatures have this many pixels per side.
SIDE = 16

# Of 63 signs so many may differ. Two hashes that close agree in at least one of their 8 bytes.
_MAX_SIGNS = 7

# The mean squared difference of two miniatures, as a share of their variance, and the difference of
# their mean colors in levels of 255, may be so large.
_MAX_DIFFERENCE = 0.004
_MAX_COLOR = 8

# Below this standard deviation (levels of 255) there is too little in a miniature to compare.
_MIN_CONTRAST = 4.0

# Hashes are compared with so many successors in each sorted order, however many look alike.
_REACH = 64

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def describe(miniatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `near_pairs` needs of uint8 [N, 16, 16, 3]: gray [N, 16, 16], color [N, 3]."""
    gray = np.rint(miniatures @ _LUMA).astype(np.uint8)
    color = np.rint(miniatures.mean(axis=(1, 2))).astype(np.uint8)
    return gray, color


def exact_pairs(digests: Sequence[str | None], ranks: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (weaker, stronger) of items with equal bytes on different sides.

    Args:
        digests: per item; None takes no part.
        ranks: int [N]; the higher a side's rank, the less may be taken from it; -1 takes no part.

    Returns:
        One pair per weaker item, with the first of the strongest side as its twin; ascending.

    >>> exact_pairs(["a", "b", "a", "a"], np.array([0, 0, 1, 0]))
    [(0, 2), (3, 2)]
    """
    strongest: dict[str, int] = {}
    for index, digest in enumerate(digests):
        if digest is None or ranks[index] < 0:
            continue
        known = strongest.get(digest)
        if known is None or ranks[index] > ranks[known]:
            strongest[digest] = index
    return [
        (index, strongest[digest])
        for index, digest in enumerate(digests)
        if digest is not None and 0 <= ranks[index] < ranks[strongest[digest]]
    ]


def near_pairs(gray: np.ndarray, color: np.ndarray, taking_part: np.ndarray) -> np.ndarray:
    """Return pairs of nearly equal images.

    Args:
        gray: uint8 [N, 16, 16], as `describe` gives it.
        color: uint8 [N, 3], as `describe` gives it.
        taking_part: bool [N]; the others are in no pair.

    Returns:
        int64 [pairs, 2], each pair once, the smaller index first; ascending.
    """
    variance = gray.var(axis=(1, 2), dtype=np.float32)
    level, spread = gray.mean(axis=(1, 2), dtype=np.float32), np.sqrt(variance)
    compared = np.flatnonzero(taking_part & (variance >= _MIN_CONTRAST**2))
    found = [np.empty((0, 2), np.int64)]
    for candidates in _candidates(perceptual_hashes(gray[compared])):
        first, second = compared[candidates]
        allowed = _MAX_DIFFERENCE * (variance[first] + variance[second]) / 2
        # No less than this is the difference; it spares most a look at their pixels.
        least = (level[first] - level[second]) ** 2 + (spread[first] - spread[second]) ** 2
        near = least <= 1.001 * allowed
        first, second, allowed = first[near], second[near], allowed[near]
        gap = gray[first].astype(np.float32) - gray[second]
        difference = np.square(gap).mean(axis=(1, 2))
        tint = np.abs(color[first].astype(np.int16) - color[second]).max(axis=1)
        same = (difference <= allowed) & (tint <= _MAX_COLOR)
        found.append(np.sort(np.stack([first[same], second[same]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def across_sides(pairs: np.ndarray, ranks: np.ndarray) -> list[tuple[int, int]]:
    """Return from pairs of images those on different sides, as (weaker, stronger).

    Args:
        pairs: int64 [pairs, 2], as `near_pairs` gives them.
        ranks: as for `exact_pairs`.

    Returns:
        One pair per weaker item, with the first of its twins; ascending.

    >>> across_sides(np.array([[0, 1], [0, 2], [1, 2]]), np.array([0, 0, 1]))
    [(0, 2), (1, 2)]
    """
    twin: dict[int, int] = {}
    for one, other in pairs[ranks[pairs[:, 0]] != ranks[pairs[:, 1]]].tolist():
        weaker, stronger = sorted((one, other), key=lambda index: ranks[index])
        twin[weaker] = min(stronger, twin.get(weaker, stronger))
    return sorted(twin.items())


def clusters(pairs: np.ndarray, members: np.ndarray) -> list[tuple[int, ...]]:
    """Return what pairs between members join, directly or through others of them.

    Args:
        pairs: int64 [pairs, 2], as `near_pairs` gives them.
        members: bool [N]; pairs with others join nothing.

    Returns:
        the indices of each cluster of two or more, ascending; clusters by their first index.

    >>> clusters(np.array([[0, 2], [1, 4], [2, 3]]), np.array([True, True, True, True, False]))
    [(0, 2, 3)]
    """
    first, second = pairs[members[pairs].all(axis=1)].T
    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=2 * (len(members),))
    _, cluster_of = connected_components(edges, directed=False)
    joined: dict[int, list[int]] = {}
    for index in np.unique(np.concatenate([first, second])).tolist():
        joined.setdefault(cluster_of[index], []).append(index)
    return [tuple(indices) for indices in joined.values()]


def perceptual_hashes(gray: np.ndarray) -> np.ndarray:
    """Return uint64 [N]: the signs of the 8 by 8 lowest cosine frequencies, without the mean."""
    position = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    cosines = np.cos(np.arange(8)[:, None] * position).astype(np.float32)
    signs = ((cosines @ gray.astype(np.float32) @ cosines.T) > 0).reshape(len(gray), 64)
    signs[:, 0] = False
    return np.packbits(signs, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _candidates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pairs whose hashes are close, int64 [2, pairs]; the same pair may come several times.

    Sorted with each of the eight bytes in front, close hashes come to lie near each other.
    """
    for turn in range(0, 64, 8):
        left, right = np.uint64(turn), np.uint64(-turn % 64)
        order = np.argsort((hashes << left) | (hashes >> right), kind="stable")
        for step in range(1, min(_REACH, len(order) - 1) + 1):
            first, second = order[:-step], order[step:]
            close = np.bitwise_count(hashes[first] ^ hashes[second]) <= _MAX_SIGNS
            if close.any():
                yield np.stack([first[close], second[close]])
