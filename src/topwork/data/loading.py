"""Working on batches in threads, ahead of the use of what comes out."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from topwork.data.augment import PLAIN, View
from topwork.data.image_set import ImageSet
from topwork.data.rendering import rendered
from topwork.data.views import Preprocessing
from topwork.errors import ImageError

Key = TypeVar("Key")
Value = TypeVar("Value")
Part = TypeVar("Part")


class Track(Protocol):
    """What shows the progress of long work; ``rich.progress.track`` is one."""

    def __call__(self, sequence: Sequence[Part], description: str) -> Iterable[Part]:
        """Yield the parts of a sequence, telling how far it is."""


def untracked(sequence: Sequence[Part], description: str) -> Iterable[Part]:
    """Show nothing."""
    return sequence


def workers() -> int:
    """Return how many batches are worked on side by side."""
    return min(os.cpu_count() or 1, 8)


def map_ahead(batches: Iterable[Key], work: Callable[[Key], Value]) -> Iterator[tuple[Key, Value]]:
    """Yield batches with what work makes of each, in order; several are under way at once.

    Threads are enough: decoding, resizing and running a network release Python's lock.

    >>> list(map_ahead([[1, 2], [3]], sum))
    [([1, 2], 3), ([3], 3)]
    """
    count = workers()
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(work, batch)))
            if len(waiting) > 2 * count:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()


def read_view(
    images: ImageSet,
    index: int,
    digest: str | None,
    preprocessing: Preprocessing,
    view: View = PLAIN,
    decoding: str = "exact",
) -> np.ndarray | ImageError:
    """Read, check and render one image; one that cannot be used is returned as its error.

    Args:
        images: where it comes from.
        index: which of them.
        digest: the SHA-256 that its bytes must have; None for any.
        preprocessing: how it is rendered.
        view: which rendering.
        decoding: "fast" for trunks, "exact" for what numbers are reported of.

    Returns:
        uint8 [H, W, C].
    """
    name = images.items[index].name
    try:
        data = images.read(index)
        found = hashlib.sha256(data).hexdigest()
        if digest not in (None, found):
            raise ImageError(name, "changed while it was being used; run again")
        return rendered(data, name, preprocessing, view, found, decoding)
    except ImageError as error:
        return error
