"""Training images as the top above a cut takes them: view by view, cached or run anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from topwork.data.audit import Audit
from topwork.data.augment import PLAIN, View
from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, map_ahead, read_view, workers
from topwork.data.views import to_tensor
from topwork.errors import DataError, ImageError
from topwork.network.chain import CutPoint
from topwork.network.device import one_core_a_thread
from topwork.network.loading import Loaded
from topwork.trunk.caching import FORMS, Job, choose_form, in_words, measure_disk
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import (
    LAYOUT,
    Codes,
    Extractor,
    Runner,
    choose_runner,
    extract,
    is_begun,
    prepare,
    runtime_for,
)
from topwork.trunk.runtimes.available import why_not
from topwork.trunk.shards import DamagedShard

log = logging.getLogger("topwork")

Read = TypeVar("Read")

TRIES = 3  # to read what turns out to be damaged
TIMED = 4  # images that are decoded to see how long one takes


@dataclass
class Samples:
    """Images of a set, seen through the trunk of a network at any depth.

    Attributes:
        loaded: the network and the plan.
        images: where they come from.
        audit: gives their content hashes.
        execution: how the trunk is run.
        track: shows progress.
        computed: views of images that went through a trunk so far; others came from the cache.
        keys: the cache keys used so far, each once.
        runtimes: what computed the codes used so far, each once.
    """

    loaded: Loaded
    images: ImageSet
    audit: Audit
    execution: Execution
    track: Track
    computed: int = 0
    keys: dict[str, None] = field(default_factory=dict)
    runtimes: dict[str, None] = field(default_factory=dict)

    def at(
        self,
        frozen: CutPoint,
        indices: Sequence[int],
        views: int = 1,
        epochs: int = 1,
        settled: dict[str, str] | None = None,
    ) -> CachedInputs | LiveInputs:
        """Return images as the layers above a cut take them, with the weights of this moment.

        Args:
            frozen: the cut.
            indices: which images.
            views: of each image, taken in turn from epoch to epoch; each is rendered and run
                through the trunk when it is first needed, unless the cache has it.
            epochs: in which each of them will be taken, at most; what is kept goes by it.
            settled: what ``settled`` of others gave, to treat these like them.

        Raises:
            DataError: if an image cannot be read any more.
        """
        extractor = self.extractor(frozen)
        settled = settled or self.settle(extractor, frozen, indices, views, epochs)
        form = settled["form"]
        extractor = extractor.treated(runtime=self.at_hand(settled["runtime"]))
        if form not in ("pixels", "nothing"):
            return self.cached(extractor, frozen, form, indices, views, settled)
        pixels = None
        if form == "pixels":
            start = self.loaded.chain.cuts[0]
            pixels = self.cached(self.extractor(start), start, "float32", indices, views, settled)
        runner = choose_runner(extractor, len(indices) * epochs)
        takes_map = self.takes_map(frozen)
        return LiveInputs(self, runner, takes_map, tuple(indices), views, pixels, settled)

    def settle(
        self,
        extractor: Extractor,
        frozen: CutPoint,
        indices: Sequence[int],
        views: int,
        epochs: int,
    ) -> dict[str, str]:
        """Return what shall be kept of images, and what runs the trunk for all of their views."""
        form = self.form_of_codes
        if self.takes_map(frozen):
            form = self.form_of(extractor, frozen, indices, views, epochs)
        if form in ("pixels", "nothing"):
            runner = choose_runner(extractor, len(indices) * epochs)
            return {"form": form, "runtime": runner.runtime.name}
        digests = [str(self.audit.digests[index]) for index in indices]
        runtime = runtime_for(extractor.treated(cache=form), digests, views)
        return {"form": form, "runtime": runtime.name}

    def codes(self, cut: CutPoint, indices: Sequence[int], views: int) -> np.ndarray:
        """Return pooled codes of images for a head to be solved on, the kept layers all frozen.

        Returns:
            float32 [views * n, D], view after view.
        """
        inputs = self.pooled(self.extractor(cut), cut, indices, views)
        return np.concatenate(
            [inputs.whole(view, lambda codes: codes.rows) for view in range(views)]
        )

    def side_by_side(
        self,
        depths: Sequence[str],
        pools: Sequence[str],
        indices: Sequence[int],
        views: int,
        settled: dict[str, str] | None = None,
    ) -> CachedInputs:
        """Return codes of images at several depths, each pooled in a way of its own.

        Args:
            depths: by depth, the plan's uppermost code the last.
            pools: how they are pooled, see `topwork.network.codes.pool_module`.
            indices: which images.
            views: of each image, as in `at`.
            settled: likewise.
        """
        chain = self.loaded.chain
        top = chain.resolve(depths[-1])
        view = self.loaded.backbone.preprocessing
        extractor = prepare(chain, depths, pools, view, self.execution)
        return self.pooled(extractor, top, indices, views, settled)

    def pooled(
        self,
        extractor: Extractor,
        frozen: CutPoint,
        indices: Sequence[int],
        views: int,
        settled: dict[str, str] | None = None,
    ) -> CachedInputs:
        """Return images as their pooled codes up to a cut; arguments as in `at`."""
        settled = settled or self.settle(extractor, frozen, indices, views, 1)
        extractor = extractor.treated(runtime=self.at_hand(settled["runtime"]))
        return self.cached(extractor, frozen, settled["form"], indices, views, settled)

    def at_hand(self, runtime: str) -> str:
        """Return the name of a runtime; where this machine has it not, of what goes on instead."""
        reason = why_not(runtime, self.execution.device)
        if not reason or runtime == self.execution.runtime:  # asked for, it is missed where needed
            return runtime
        log.warning(
            "runtime %s, with which this was begun: %s; another one goes on, and the last bits"
            " will differ",
            runtime,
            reason,
        )
        return self.execution.runtime

    def cached(
        self,
        extractor: Extractor,
        frozen: CutPoint,
        form: str,
        indices: Sequence[int],
        views: int,
        settled: dict[str, str],
    ) -> CachedInputs:
        """Return images that are taken from the cache, kept in a form there."""
        extractor = extractor.treated(cache=form)
        return CachedInputs(self, extractor, self.takes_map(frozen), tuple(indices), views, settled)

    def takes_map(self, frozen: CutPoint) -> bool:
        """Say whether the layers above a cut take its tensor, not only codes from below."""
        return self.loaded.chain.resolve(self.loaded.plan.codes[-1]).depth > frozen.depth

    @property
    def form_of_codes(self) -> str:
        """In what form pooled codes are kept: they are small."""
        return "float32" if self.execution.cache == "auto" else self.execution.cache

    def form_of(
        self,
        extractor: Extractor,
        frozen: CutPoint,
        indices: Sequence[int],
        views: int,
        epochs: int,
    ) -> str:
        """Return what is to be kept of images, and say so where there was something to choose."""
        asked = self.execution.cache
        if asked != "auto":
            return "nothing" if asked == "off" else asked
        digests = [str(self.audit.digests[index]) for index in indices]
        for form in ("float32", "float16"):  # what has been begun is gone on with
            if is_begun(extractor.treated(cache=form), digests):
                return form
        forms = FORMS if extractor.program.numbers else ("pixels", "nothing")
        size = extractor.preprocessing.size
        pixels = prod(size) * extractor.preprocessing.channels
        canary = extractor.canary
        job = Job(
            len(indices),
            epochs,
            views,
            self.seconds_to_decode(indices[:TIMED]),
            canary.seconds,
            pixels,
            canary.bytes or pixels,
        )
        disk = measure_disk()
        chosen, estimates = choose_form(job, disk, forms)
        if epochs > 1:
            log.info("%s", in_words(chosen, estimates, disk, frozen.name))
        if chosen.form == "pixels" and not extractor.program.numbers:
            return "float32"  # pixels are what is at the cut
        return chosen.form

    def seconds_to_decode(self, indices: Sequence[int]) -> float:
        """Return how long an image takes to be read and rendered, all cores at work."""
        start = time.perf_counter()
        for index in indices:
            self.render(index, PLAIN)
        return (time.perf_counter() - start) / max(1, len(indices)) / workers()

    def render(self, index: int, view: View) -> np.ndarray | ImageError:
        """Return a view of an image, uint8 [H, W, C], or why there is none."""
        return read_view(
            self.images,
            index,
            str(self.audit.digests[index]),
            self.loaded.backbone.preprocessing,
            view,
            self.execution.decoding,
        )

    def unreadable(self, frozen: CutPoint, indices: Sequence[int]) -> dict[int, str]:
        """Return the positions of images that cannot be read any more, with the reason.

        Where codes are to be kept of them they are kept by this already.
        """
        if not self.takes_map(frozen) and self.form_of_codes != "off":
            return self.extract(self.extractor(frozen), indices, PLAIN).failed
        positions = self.track(range(len(indices)), "reading images")
        with quiet():
            found = map_ahead(positions, lambda position: self.render(indices[position], PLAIN))
            return {
                position: rendered.reason
                for position, rendered in found
                if isinstance(rendered, ImageError)
            }

    def extractor(self, frozen: CutPoint) -> Extractor:
        """Return the trunk below a cut, and what the layers above take from it.

        That is the whole tensor at the cut, unless no code lies above it, after the pooled codes
        from below.
        """
        chain, plan = self.loaded.chain, self.loaded.plan
        codes = [chain.resolve(name) for name in plan.codes]
        below = [cut.name for cut in codes if cut.depth <= frozen.depth]
        pools = [plan.pool or "flatten"] * len(below)
        if codes[-1].depth > frozen.depth:
            below, pools = [*below, frozen.name], [*pools, "none"]
        return prepare(chain, below, pools, self.loaded.backbone.preprocessing, self.execution)

    def extract(
        self, extractor: Extractor, indices: Sequence[int], view: View, passes: int = 1
    ) -> Codes:
        """Run a trunk over some images, or fetch what is cached."""
        digests = [str(self.audit.digests[index]) for index in indices]
        codes = extract(extractor, self.images, indices, digests, self.track, view, passes)
        self.computed += codes.computed
        self.keys |= dict.fromkeys(codes.fingerprints)
        if extractor.program.numbers:
            self.runtimes[codes.runtime] = None
        return codes

    def on_device(self, part: np.ndarray) -> Tensor:
        """Return pixels (uint8 [n, H, W, C]) or codes as a tensor where training takes place."""
        preprocessing = self.loaded.backbone.preprocessing
        to_float = partial(to_tensor, preprocessing=preprocessing)
        tensor = to_float(part) if part.dtype == np.uint8 else torch.from_numpy(part).float()
        layout = LAYOUT if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self.execution.device, memory_format=layout)

    def changed(self, index: int, reason: str) -> DataError:
        """Return the error for an image that could be read before and cannot any more."""
        return DataError(
            f"{self.images.items[index].name}: {reason}; it could be read before; run again"
        )


@dataclass
class CachedInputs:
    """Images as the layers above a cut take them, from the cache: `topwork.learn.loop.Inputs`.

    Attributes:
        samples: where they come from.
        extractor: the trunk below the cut.
        takes_map: whether the last of what it gives is the tensor at the cut, not a code.
        indices: which images.
        views: of each.
        settled: their form and runtime: what must be the same when a fit is taken up again.
        found: what each view is, by its number, as far as they were needed.
    """

    samples: Samples
    extractor: Extractor
    takes_map: bool
    indices: tuple[int, ...]
    views: int
    settled: dict[str, str]
    found: dict[int, Codes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    def view(self, number: int) -> Codes:
        """Return one view of all the images.

        Raises:
            DataError: if an image cannot be read any more.
        """
        if number not in self.found:
            view = View(number, self.samples.loaded.plan.augment)
            to_come = max(1, self.views - len(self.found))
            codes = self.samples.extract(self.extractor, self.indices, view, to_come)
            for position, reason in codes.failed.items():
                raise self.samples.changed(self.indices[position], reason)
            self.found[number] = codes
        return self.found[number]

    def whole(self, number: int, read: Callable[[Codes], Read]) -> Read:
        """Read from a view; where that shows damage, have what was damaged computed again.

        Raises:
            DamagedShard: if it happens again and again.
        """
        for _ in range(TRIES):
            with suppress(DamagedShard):
                return read(self.view(number))
            self.found.pop(number, None)
        return read(self.view(number))

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return some images as inputs of a `topwork.network.model.Top`: the map comes first."""
        parts = self.whole(
            epoch % self.views, lambda codes: [part.take(rows) for part in codes.parts]
        )
        return map_first([self.samples.on_device(part) for part in parts], self.takes_map)


@dataclass
class LiveInputs:
    """Images as the layers above a cut take them, run through the trunk whenever they are taken.

    Attributes:
        samples: where they come from.
        runner: the trunk below the cut, and what runs it.
        takes_map: whether the last of what it gives is the tensor at the cut, not a code.
        indices: which images.
        views: of each.
        pixels: the rendered images; None if each is decoded whenever it is taken.
        settled: as in `CachedInputs`.
    """

    samples: Samples
    runner: Runner
    takes_map: bool
    indices: tuple[int, ...]
    views: int
    pixels: CachedInputs | None
    settled: dict[str, str]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return some images as `CachedInputs` does.

        Raises:
            DataError: if an image cannot be read any more.
        """
        view = View(epoch % self.views, self.samples.loaded.plan.augment)
        taken = None
        if self.pixels:
            taken = self.pixels.whole(view.number, lambda codes: codes.parts[-1].take(rows))
        size = self.runner.runtime.batch
        batches = [range(len(rows))[start : start + size] for start in range(0, len(rows), size)]

        def codes_of(batch: range) -> list[np.ndarray]:
            if taken is not None:
                return self.runner.codes(taken[batch.start : batch.stop])
            return self.runner.codes(self.rendered(rows[batch.start : batch.stop], view))

        with quiet(), one_core_a_thread():
            found = [codes for _, codes in map_ahead(batches, codes_of)]
        parts = [np.concatenate(part) for part in zip(*found, strict=True)]
        return map_first([self.samples.on_device(part) for part in parts], self.takes_map)

    def rendered(self, rows: Sequence[int], view: View) -> np.ndarray:
        """Return the pixels of some images, uint8 [n, H, W, C]."""
        pixels = []
        for row in rows:
            found = self.samples.render(self.indices[row], view)
            if isinstance(found, ImageError):
                raise self.samples.changed(self.indices[row], found.reason)
            pixels.append(found)
        return np.stack(pixels)


def map_first(parts: list[Tensor], takes_map: bool) -> tuple[Tensor, ...]:
    """Return the inputs of a top in its order."""
    return (parts[-1], *parts[:-1]) if takes_map else tuple(parts)
