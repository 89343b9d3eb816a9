"""Running the trunk over images: every image once, what is cached not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, map_ahead, read_view, untracked
from topwork.data.views import Preprocessing, to_tensor
from topwork.errors import ImageError
from topwork.network.chain import Chain
from topwork.network.codes import pool_module
from topwork.network.cut import Trunk
from topwork.network.device import one_core_a_thread
from topwork.trunk.cache import CodeStore, open_store
from topwork.trunk.fingerprint import Runtime, canary, fingerprint

SHARD_ROWS = 512
"""Images after which finished codes are written, so that a run that dies loses few."""


@dataclass(frozen=True)
class Extractor:
    """A trunk made ready to run: moved to its device and memory layout.

    Every batch has the same size, short ones are filled up: so that an image's codes do not
    depend on how many others come with it.
    """

    trunk: Trunk
    pools: tuple[nn.Module, ...]
    pool: str
    preprocessing: Preprocessing
    runtime: Runtime

    def codes(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the codes of at most one batch of pixels at each of the trunk's cuts.

        Args:
            pixels: uint8 [N, H, W, 3], N at most the runtime's batch.

        Returns:
            float32 [N, D] for each cut, the lowest first.
        """
        missing = self.runtime.batch - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        images = to_tensor(filled, self.preprocessing).to(
            self.runtime.device, memory_format=self.runtime.layout
        )
        with torch.inference_mode():
            outputs = self.trunk.outputs(images)
            codes = [pool(value) for pool, (_, value) in zip(self.pools, outputs, strict=True)]
        return [code[: len(pixels)].float().cpu().numpy() for code in codes]


@dataclass(frozen=True)
class Codes:
    """What extraction found.

    Attributes:
        rows: float32 [N, D], one row for each image asked for; several cuts side by side.
        failed: positions of images that could not be read after all, with the reason; their
            rows are zero and must not be used.
        computed: images that went through the trunk; the others came from the cache.
        fingerprints: the cache keys, one for each cut.
    """

    rows: np.ndarray
    failed: dict[int, str]
    computed: int
    fingerprints: tuple[str, ...]


def prepare(
    chain: Chain, depths: Sequence[str], pool: str, preprocessing: Preprocessing, runtime: Runtime
) -> Extractor:
    """Make the trunk of a chain ready to run up to some depths."""
    trunk = Trunk(chain, depths)
    pools = tuple(pool_module(chain, cut, pool).to(runtime.device).eval() for cut in trunk.cuts)
    moved = trunk.to(runtime.device, runtime.layout)
    return Extractor(moved, pools, pool, preprocessing, runtime)


def extract(
    extractor: Extractor,
    images: ImageSet,
    indices: Sequence[int],
    digests: Sequence[str],
    track: Track = untracked,
) -> Codes:
    """Return the codes of some images, running the trunk on those that the cache lacks.

    Args:
        extractor: the trunk.
        images: where the bytes come from.
        indices: which of them, in the order of the rows returned.
        digests: the SHA-256 of each of these images' bytes; they key the cache.
        track: shows the progress.

    Raises:
        CacheError: if the cache cannot be written.
    """
    with quiet(), one_core_a_thread():
        stores = open_stores(extractor)
        first_at = {digest: i for i, digest in reversed(list(enumerate(digests)))}
        missing = [
            first_at[digest]
            for digest in dict.fromkeys(digests)
            if any(digest not in store for store in stores)
        ]
        size = extractor.runtime.batch
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]

        def work(batch: list[int]) -> Computed:
            views = {
                digests[i]: read_view(images, indices[i], digests[i], extractor.preprocessing)
                for i in batch
            }
            return compute(extractor, views)

        unreadable: dict[str, str] = {}
        pending: list[Computed] = []
        for _, computed in map_ahead(track(batches, "running the trunk"), work):
            unreadable.update(computed.failed)
            pending.append(computed)
            if sum(len(part.digests) for part in pending) >= SHARD_ROWS:
                write_shards(stores, pending)
        write_shards(stores, pending)

    return Codes(
        rows=np.concatenate([store.rows(digests, absent=unreadable) for store in stores], axis=1),
        failed={i: unreadable[d] for i, d in enumerate(digests) if d in unreadable},
        computed=len(missing) - len(unreadable),
        fingerprints=tuple(store.key for store in stores),
    )


@dataclass(frozen=True)
class Computed:
    """What became of one batch.

    Attributes:
        digests: of the images that could be read.
        codes: of these, float32 [n, D] for each cut.
        failed: digest and reason of the others.
    """

    digests: list[str]
    codes: list[np.ndarray]
    failed: dict[str, str]


def compute(extractor: Extractor, views: dict[str, np.ndarray | ImageError]) -> Computed:
    """Run the trunk over the views of one batch that could be read."""
    good = {d: view for d, view in views.items() if not isinstance(view, ImageError)}
    codes = extractor.codes(np.stack(list(good.values()))) if good else []
    failed = {d: view.reason for d, view in views.items() if isinstance(view, ImageError)}
    return Computed(list(good), codes, failed)


def open_stores(extractor: Extractor) -> list[CodeStore]:
    """Open the cache of each of the trunk's cuts."""
    signs = canary(extractor.codes, extractor.preprocessing)
    return [
        open_store(
            fingerprint(
                trunk=extractor.trunk,
                number=number,
                pool=extractor.pool,
                preprocessing=extractor.preprocessing,
                runtime=extractor.runtime,
                canary=sign,
            )
        )
        for number, sign in enumerate(signs)
    ]


def write_shards(stores: list[CodeStore], pending: list[Computed]) -> None:
    """Write what has been computed, one shard for each cut, and forget it."""
    parts = [part for part in pending if part.digests]
    if parts:
        digests = [digest for part in parts for digest in part.digests]
        for number, store in enumerate(stores):
            store.add(digests, np.concatenate([part.codes[number] for part in parts]))
    pending.clear()
