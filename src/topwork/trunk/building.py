"""Computing what the cache lacks: chunk by chunk, beside other processes that do the same."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from topwork.data.loading import Track, map_ahead
from topwork.errors import CacheError, ImageError
from topwork.trunk.cache import CodeStore, cache_folder
from topwork.trunk.claims import Claims, open_claims
from topwork.trunk.memory import MemoryStore

log = logging.getLogger("topwork")

SHARD_ROWS = 512
SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 10.0
"""Images, bytes of codes or seconds of work after which what is finished is written: so that a run
that dies loses little, and little has to be held."""

BATCHES = 4
"""That a thread decodes and then runs, before it comes back for more."""

POLL = 0.2  # seconds between two looks at what another process has claimed

Store = CodeStore | MemoryStore
View = np.ndarray | ImageError


@dataclass(frozen=True)
class Work:
    """How the codes of images are computed.

    Attributes:
        read: from a digest to the rendered image, uint8 [H, W, C], or why there is none.
        codes: from pixels, uint8 [n, H, W, C] with n up to ``batch``, to what each store keeps.
        batch: images at a time.
        bytes: that the codes of an image take, those of all stores together.
    """

    read: Callable[[str], View]
    codes: Callable[[np.ndarray], list[np.ndarray]]
    batch: int
    bytes: int


@dataclass(frozen=True)
class Computed:
    """What became of one batch.

    Attributes:
        digests: of the images that could be read.
        codes: of these, [n, ...] for each store.
        failed: digest and reason of the others.
    """

    digests: list[str]
    codes: list[np.ndarray]
    failed: dict[str, str]


@dataclass
class Built:
    """What has been done.

    Attributes:
        computed: the number of images that went through the trunk here.
        unreadable: digest and reason of those that could not be read.
    """

    computed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def build(stores: Sequence[Store], digests: Sequence[str], work: Work, track: Track) -> Built:
    """Bring what stores lack of some images into them.

    Several processes may do so at once: each claims chunks of images, leaves those of others until
    it has nothing else to do, and takes over what a dead process has left.

    Args:
        stores: what is kept of an image goes to each of them.
        digests: of the images.
        work: how their codes are computed.
        track: shows the progress.

    Raises:
        CacheError: if a store cannot be written; what is in it already stays.
    """
    rows = max(work.batch, min(SHARD_ROWS, SHARD_BYTES // work.bytes))
    unique = list(dict.fromkeys(digests))
    chunks = [tuple(unique[i : i + rows]) for i in range(0, len(unique), rows)]
    lacking = [chunk for chunk in chunks if missing(stores, chunk)]
    count = sum(len(missing(stores, chunk)) for chunk in lacking)
    bar = iter(track(range(count), "running the trunk"))
    built = Built()
    shared = any(isinstance(store, CodeStore) for store in stores)
    with open_claims(cache_folder() / "claims") as claims, Writer(stores) as writer:
        while lacking:
            left: list[tuple[str, ...]] = []
            batches = claimed_batches(
                lacking, left, writer, claims if shared else None, BATCHES * work.batch
            )
            for (chunk, batch, is_last), done in map_ahead(
                batches, lambda claimed: compute(work, claimed[1])
            ):
                built.computed += len(done.digests)
                built.unreadable.update(done.failed)
                writer.take(done)
                if is_last:
                    writer.write(partial(claims.release, name_of(stores, chunk)))
                for _ in batch:
                    next(bar, None)
            writer.write()
            writer.wait()
            lacking = [chunk for chunk in left if unfinished(stores, chunk, built.unreadable)]
            if len(lacking) == len(left) and left:
                time.sleep(POLL)
    for _ in bar:  # what other processes have done
        pass
    return built


def claimed_batches(
    chunks: Sequence[tuple[str, ...]],
    left: list[tuple[str, ...]],
    writer: Writer,
    claims: Claims | None,
    size: int,
) -> Iterator[tuple[tuple[str, ...], list[str], bool]]:
    """Claim chunk after chunk and yield its batches, and whether each is the last of its chunk.

    Chunks that another process has claimed are put into ``left``.
    """
    stores = writer.stores
    for chunk in chunks:
        if claims and not claims.take(name_of(stores, chunk)):
            left.append(chunk)
            continue
        writer.wait()  # it adds to the stores in another thread
        for store in stores:
            store.refresh()
        lacking = missing(stores, chunk)
        if not lacking and claims:
            claims.release(name_of(stores, chunk))
        for start in range(0, len(lacking), size):
            yield chunk, lacking[start : start + size], start + size >= len(lacking)


def missing(stores: Sequence[Store], digests: Sequence[str]) -> list[str]:
    """Return the images that one of the stores lacks."""
    return [digest for digest in digests if any(digest not in store for store in stores)]


def unfinished(stores: Sequence[Store], chunk: Sequence[str], unreadable: dict[str, str]) -> bool:
    """Say whether a chunk that another process had claimed is still to be done."""
    for store in stores:
        store.refresh()
    return any(digest not in unreadable for digest in missing(stores, chunk))


def name_of(stores: Sequence[Store], chunk: Sequence[str]) -> str:
    """Return the name of the claim to a chunk of images for some stores."""
    text = " ".join([*(store.key for store in stores), *chunk])
    return hashlib.sha256(text.encode()).hexdigest()


def compute(work: Work, digests: Sequence[str]) -> Computed:
    """Run the trunk over the images of one task that can be read."""
    views = {digest: work.read(digest) for digest in digests}
    good = {d: view for d, view in views.items() if not isinstance(view, ImageError)}
    pixels = list(good.values())
    parts = [
        work.codes(np.stack(pixels[start : start + work.batch]))
        for start in range(0, len(pixels), work.batch)
    ]
    codes = [np.concatenate(part) for part in zip(*parts, strict=True)]
    failed = {d: view.reason for d, view in views.items() if isinstance(view, ImageError)}
    return Computed(list(good), codes, failed)


class Writer:
    """Writes what has been computed in a thread of its own, while the computing goes on."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.pending: list[Computed] = []
        self.rows = self.held = 0
        self.since = time.monotonic()
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is not None and not issubclass(kind, Exception):
                self.write()  # Ctrl-C: what is finished is kept
                self.wait()
        except CacheError as error:
            log.warning("%s", error)
        finally:
            self.thread.shutdown(wait=True)

    def take(self, done: Computed) -> None:
        """Take what became of a batch; write once there is enough of it."""
        self.pending.append(done)
        self.rows += len(done.digests)
        self.held += sum(codes.nbytes for codes in done.codes)
        late = time.monotonic() - self.since > SHARD_SECONDS
        if self.rows >= SHARD_ROWS or self.held >= SHARD_BYTES or late:
            self.write()

    def write(self, after: Callable[[], None] | None = None) -> None:
        """Have all that was taken written, a shard for each store of what it lacks.

        Args:
            after: called once it is written.

        Raises:
            CacheError: if what was to be written before could not be.
        """
        self.wait()
        pending, self.pending = self.pending, []
        self.rows = self.held = 0
        self.since = time.monotonic()

        def work() -> None:
            for number, store in enumerate(self.stores):
                write_shard(store, number, pending)
            if after:
                after()

        self.writing = self.thread.submit(work)

    def wait(self) -> None:
        """Wait for the end of the writing.

        Raises:
            CacheError: if something could not be written.
        """
        writing, self.writing = self.writing, None
        if writing:
            writing.result()


def write_shard(store: Store, number: int, pending: Sequence[Computed]) -> None:
    """Write what a store lacks of what was computed."""
    digests, codes = [], []
    for part in pending:
        for row, digest in enumerate(part.digests):
            if digest not in store:
                digests.append(digest)
                codes.append(part.codes[number][row])
    if digests:
        store.add(digests, np.stack(codes))
