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
    """Return what `near_pairs` needs of uint8 [N, 16, 16, 3]: grey [N, 16, 16], color [N, 3]."""
    grey = np.rint(miniatures @ _LUMA).astype(np.uint8)
    color = np.rint(miniatures.mean(axis=(1, 2))).astype(np.uint8)
    return grey, color


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


def near_pairs(grey: np.ndarray, color: np.ndarray, ranks: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (weaker, stronger) of nearly equal images on different sides.

    Args:
        grey: uint8 [N, 16, 16], as `describe` gives it.
        color: uint8 [N, 3], as `describe` gives it.
        ranks: as for `exact_pairs`.

    Returns:
        One pair per weaker item, ascending.
    """
    variance = grey.var(axis=(1, 2), dtype=np.float32)
    taking_part = np.flatnonzero((ranks >= 0) & (variance >= _MIN_CONTRAST**2))
    hashes = perceptual_hashes(grey[taking_part])
    twin: dict[int, int] = {}
    for first, second in _candidates(hashes, ranks[taking_part]):
        first, second = taking_part[first], taking_part[second]
        gap = grey[first].astype(np.float32) - grey[second]
        difference = np.square(gap).mean(axis=(1, 2))
        tint = np.abs(color[first].astype(np.int16) - color[second]).max(axis=1)
        allowed = _MAX_DIFFERENCE * (variance[first] + variance[second]) / 2
        same = (difference <= allowed) & (tint <= _MAX_COLOR)
        for one, other in zip(first[same].tolist(), second[same].tolist(), strict=True):
            weaker, stronger = sorted((one, other), key=lambda index: (ranks[index], index))
            twin[weaker] = min(stronger, twin.get(weaker, stronger))
    return sorted(twin.items())


def perceptual_hashes(grey: np.ndarray) -> np.ndarray:
    """Return uint64 [N]: the signs of the 8 by 8 lowest cosine frequencies, without the mean."""
    position = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    cosines = np.cos(np.arange(8)[:, None] * position).astype(np.float32)
    signs = ((cosines @ grey.astype(np.float32) @ cosines.T) > 0).reshape(len(grey), 64)
    signs[:, 0] = False
    return np.packbits(signs, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _candidates(hashes: np.ndarray, ranks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of index arrays whose hashes are close and whose ranks differ.

    Sorted with each of the eight bytes in front, close hashes come to lie near each other.
    """
    for turn in range(0, 64, 8):
        left, right = np.uint64(turn), np.uint64(-turn % 64)
        order = np.argsort((hashes << left) | (hashes >> right), kind="stable")
        for step in range(1, min(_REACH, len(order) - 1) + 1):
            first, second = order[:-step], order[step:]
            close = np.bitwise_count(hashes[first] ^ hashes[second]) <= _MAX_SIGNS
            close &= ranks[first] != ranks[second]
            if close.any():
                yield first[close], second[close]
