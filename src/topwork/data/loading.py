"""Loading batches in threads, ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

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


def load_ahead(
    batches: Iterable[Sequence[Key]], load: Callable[[Key], Value]
) -> Iterator[tuple[Sequence[Key], list[Value]]]:
    """Yield batches with what their keys load, in order; the next few load meanwhile.

    Threads are enough: decoding and resizing release Python's lock.

    >>> list(load_ahead([[1, 2], [3]], lambda key: key * 10))
    [([1, 2], [10, 20]), ([3], [30])]
    """
    workers = min(os.cpu_count() or 1, 8)
    waiting: deque[tuple[Sequence[Key], list[Future[Value]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches:
            waiting.append((batch, [pool.submit(load, key) for key in batch]))
            if len(waiting) > workers + 1:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        while waiting:
            ready, futures = waiting.popleft()
            yield ready, [future.result() for future in futures]
