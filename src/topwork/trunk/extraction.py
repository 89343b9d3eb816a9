"""Running the trunk over images: every image once, what is cached not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from topwork.data.augment import PLAIN, View
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
from topwork.trunk.fingerprint import Runtime, canary, fingerprint, fingerprint_of_pixels
from topwork.trunk.shards import Rows

SHARD_ROWS = 512
SHARD_BYTES = 64 * 2**20
"""Images, or bytes of codes, after which what is finished is written: so that a run that dies loses
little, and little has to be held."""

WHOLE = "none"
"""The pooling that is none: the tensor at the cut as it stands."""


@dataclass(frozen=True)
class Output:
    """What is kept of an image at a cut.

    Attributes:
        number: of the cut, among the trunk's.
        pool: how its tensor is pooled, or `WHOLE`.
        module: does it.
        is_pixels: whether it is the rendered pixels themselves that are kept.
    """

    number: int
    pool: str
    module: nn.Module
    is_pixels: bool


@dataclass(frozen=True)
class Extractor:
    """A trunk made ready to run: moved to its device and memory layout.

    Every batch has the same size, short ones are filled up: so that an image's codes do not
    depend on how many others come with it.

    Attributes:
        trunk: the layers.
        outputs: what is kept, by depth.
        preprocessing: what an image goes through.
        runtime: how the trunk is run.
    """

    trunk: Trunk
    outputs: tuple[Output, ...]
    preprocessing: Preprocessing
    runtime: Runtime

    def codes(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return each output for at most one batch of pixels.

        Args:
            pixels: uint8 [N, H, W, C], N at most the runtime's batch.

        Returns:
            contiguous arrays: of codes float32 [N, D], of whole tensors float32 [N, ...], of
            pixels uint8 [N, H, W, C].
        """
        if all(output.is_pixels for output in self.outputs):
            return [pixels for _ in self.outputs]
        missing = self.runtime.batch - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        images = to_tensor(filled, self.preprocessing).to(
            self.runtime.device, memory_format=self.runtime.layout
        )
        with torch.inference_mode():
            codes = [
                output.module(value)
                for number, (_, value) in enumerate(self.trunk.outputs(images))
                for output in self.outputs
                if output.number == number
            ]
        return [
            pixels if output.is_pixels else code[: len(pixels)].float().cpu().contiguous().numpy()
            for output, code in zip(self.outputs, codes, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Codes:
    """What extraction found.

    Attributes:
        parts: one for each of the extractor's outputs, with a row for each image asked for.
        pools: how each of them was pooled.
        failed: positions of images that could not be read after all, with the reason; they have
            no rows in ``parts``.
        computed: images that went through the trunk; the others came from the cache.
        fingerprints: the cache keys, one for each part.
    """

    parts: tuple[Rows, ...]
    pools: tuple[str, ...]
    failed: dict[int, str]
    computed: int
    fingerprints: tuple[str, ...]

    @cached_property
    def rows(self) -> np.ndarray:
        """All pooled codes side by side, in memory: float32 [N, D].

        The rows of images that failed are zero and must not be used.
        """
        pooled = [part for part, pool in zip(self.parts, self.pools, strict=True) if pool != WHOLE]
        count = len(self.parts[0])
        present = [row for row in range(count) if row not in self.failed]
        ends = np.cumsum([0, *(part.shape[0] for part in pooled)])
        rows = np.zeros((count, ends[-1]), np.float32)
        for part, start, end in zip(pooled, ends, ends[1:], strict=False):
            rows[present, start:end] = part.take(present)
        return rows


def prepare(
    chain: Chain,
    depths: Sequence[str],
    pool: str | Sequence[str],
    preprocessing: Preprocessing,
    runtime: Runtime,
) -> Extractor:
    """Make the trunk of a chain ready to run up to some depths.

    Args:
        chain: the network.
        depths: names of cut points. The outputs come by depth; one cut point may be named twice,
            with different poolings, which come in the order given.
        pool: the pooling, for all depths or for each; "none" keeps the whole tensor, and at the
            input the rendered pixels.
        preprocessing: what an image goes through.
        runtime: how the trunk is run.
    """
    trunk = Trunk(chain, depths)
    pools = [pool] * len(depths) if isinstance(pool, str) else pool
    asked = {
        (trunk.cuts.index(chain.resolve(depth)), how): None
        for depth, how in zip(depths, pools, strict=True)
    }
    outputs = []
    for number, how in sorted(asked, key=lambda output: output[0]):
        cut = trunk.cuts[number]
        module = nn.Identity() if how == WHOLE else pool_module(chain, cut, how)
        is_pixels = how == WHOLE and cut.depth == 0
        outputs.append(Output(number, how, module.to(runtime.device).eval(), is_pixels))
    moved = trunk.to(runtime.device, runtime.layout)
    return Extractor(moved, tuple(outputs), preprocessing, runtime)


def extract(
    extractor: Extractor,
    images: ImageSet,
    indices: Sequence[int],
    digests: Sequence[str],
    track: Track = untracked,
    view: View = PLAIN,
) -> Codes:
    """Return the codes of some images, running the trunk on those that the cache lacks.

    Args:
        extractor: the trunk.
        images: where the bytes come from.
        indices: which of them, in the order of the rows returned.
        digests: the SHA-256 of each of these images' bytes; they key the cache.
        track: shows the progress.
        view: which rendering of each image.

    Raises:
        CacheError: if the cache cannot be written.
    """
    with quiet(), one_core_a_thread():
        stores = open_stores(extractor, view)
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
                digests[i]: read_view(images, indices[i], digests[i], extractor.preprocessing, view)
                for i in batch
            }
            return compute(extractor, views)

        unreadable: dict[str, str] = {}
        pending: list[Computed] = []
        for _, computed in map_ahead(track(batches, "running the trunk"), work):
            unreadable.update(computed.failed)
            pending.append(computed)
            if is_a_shard(pending):
                write_shards(stores, pending)
        write_shards(stores, pending)

    return Codes(
        parts=tuple(store.rows(digests, absent=unreadable) for store in stores),
        pools=tuple(output.pool for output in extractor.outputs),
        failed={i: unreadable[d] for i, d in enumerate(digests) if d in unreadable},
        computed=len(missing) - len(unreadable),
        fingerprints=tuple(store.key for store in stores),
    )


@dataclass(frozen=True)
class Computed:
    """What became of one batch.

    Attributes:
        digests: of the images that could be read.
        codes: of these, [n, ...] for each output.
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


def open_stores(extractor: Extractor, view: View = PLAIN) -> list[CodeStore]:
    """Open the cache of each of the outputs."""
    signs = canary(extractor.codes, extractor.preprocessing)
    return [
        open_store(
            fingerprint_of_pixels(extractor.preprocessing, view)
            if output.is_pixels
            else fingerprint(
                trunk=extractor.trunk,
                number=output.number,
                pool=output.pool,
                preprocessing=extractor.preprocessing,
                runtime=extractor.runtime,
                canary=sign,
                view=view,
            )
        )
        for output, sign in zip(extractor.outputs, signs, strict=True)
    ]


def is_a_shard(pending: list[Computed]) -> bool:
    """Say whether enough has been computed to be written."""
    rows = sum(len(part.digests) for part in pending)
    held = sum(codes.nbytes for part in pending for codes in part.codes)
    return rows >= SHARD_ROWS or held >= SHARD_BYTES


def write_shards(stores: list[CodeStore], pending: list[Computed]) -> None:
    """Write what has been computed, a shard of each store for what it lacks, and forget it."""
    for number, store in enumerate(stores):
        digests, codes = [], []
        for part in pending:
            for row, digest in enumerate(part.digests):
                if digest not in store:
                    digests.append(digest)
                    codes.append(part.codes[number][row])
        if digests:
            store.add(digests, np.stack(codes))
    pending.clear()
