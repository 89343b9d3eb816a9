"""Running the trunk over images: every image once, what is cached not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from topwork.data.augment import PLAIN, View
from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, read_view, untracked, workers
from topwork.data.views import Preprocessing
from topwork.errors import CacheError, ImageError, UsageError
from topwork.network.chain import Chain
from topwork.network.codes import pool_module
from topwork.network.cut import Trunk
from topwork.network.device import one_core_a_thread
from topwork.trunk.building import Store, Work, build, missing
from topwork.trunk.cache import cache_folder, open_store
from topwork.trunk.execution import Execution
from topwork.trunk.fingerprint import (
    digest_of_digests,
    digests_of_code,
    digests_of_tensors,
    fingerprint,
    fingerprint_of_pixels,
    fixed_inputs,
    key_of,
    signs_of,
)
from topwork.trunk.memory import HeldRows, MemoryStore
from topwork.trunk.program import WHOLE, Output, TrunkProgram
from topwork.trunk.runtimes.available import runtime_named
from topwork.trunk.runtimes.choice import faster_run, runtimes_for
from topwork.trunk.runtimes.eager import eager_run
from topwork.trunk.runtimes.runtime import Run, Runtime
from topwork.trunk.shards import DamagedShard, Rows

log = logging.getLogger("topwork")

TRIES = 3
"""To have what is cached written and read back."""

LAYOUT = torch.channels_last
"""The memory layout of maps."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A trunk made ready to run: moved to its device and memory layout.

    Attributes:
        trunk: the layers.
        outputs: what is kept, by depth.
        program: the layers from pixels to all outputs that are not pixels themselves.
        preprocessing: what an image goes through.
        execution: how it is run, and what is kept.
    """

    trunk: Trunk
    outputs: tuple[Output, ...]
    program: TrunkProgram
    preprocessing: Preprocessing
    execution: Execution

    @cached_property
    def eager(self) -> Runner:
        """The trunk as PyTorch runs it, which any other way is held against."""
        device = self.execution.device
        runtime = runtime_named("eager", device, self.preprocessing.size)
        return Runner(self, runtime, eager_run(self.program, device))

    @cached_property
    def canary(self) -> Canary:
        """What eager makes of two fixed inputs, and how long an image takes it.

        Raises:
            ChainError: if a code depends on what else is in its batch.
        """
        side_by_side = workers() if self.execution.device.type == "cpu" else 1
        if all(output.is_pixels for output in self.outputs):
            return Canary([""] * len(self.outputs), 0.0, 0)
        pixels = fixed_inputs(self.preprocessing)
        with one_core_a_thread():
            found = self.eager.codes(pixels)
            start = time.perf_counter()
            alone = self.eager.codes(pixels[:1])
            seconds = (time.perf_counter() - start) / self.eager.runtime.batch
        return Canary(
            signs_of(found, alone), seconds / side_by_side, sum(part[:1].nbytes for part in found)
        )

    @cached_property
    def weights(self) -> dict[int, str]:
        """The digest of the weights below each of the cuts, by the cut's number."""
        digests: dict[str, str] = {}
        found = {}
        for number, part in enumerate(self.trunk.segments):
            digests |= digests_of_tensors(part.state_dict())
            found[number] = digest_of_digests(digests)
        return found

    @cached_property
    def code(self) -> dict[int, str]:
        """The digest of the code of blocks below each of the cuts, by the cut's number."""
        return dict(enumerate(digests_of_code(self.trunk.segments)))

    @cached_property
    def opened(self) -> dict[str, Runner]:
        """What runs the trunk beside eager, by name, as far as it was asked for by name."""
        return {}

    def treated(self, **changes: Any) -> Extractor:
        """Return the same trunk with another execution: nothing is computed again."""
        other = replace(self, execution=replace(self.execution, **changes))
        for name in ("eager", "canary", "weights", "code", "opened"):
            vars(other)[name] = getattr(self, name)
        return other

    @property
    def dtype(self) -> str:
        """In which codes are kept."""
        return "float16" if self.execution.cache == "float16" else "float32"


@dataclass(frozen=True)
class Canary:
    """What eager makes of fixed inputs.

    Attributes:
        signs: the SHA-256 of each output, "" for pixels.
        seconds: that an image takes, all cores at work.
        bytes: that the outputs of an image take in full precision.
    """

    signs: list[str]
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Runner:
    """A trunk and what runs it.

    Every batch has the same size, short ones are filled up: so that an image's codes do not
    depend on how many others come with it.

    Attributes:
        extractor: the trunk.
        runtime: what runs it.
        run: runs one batch.
    """

    extractor: Extractor
    runtime: Runtime
    run: Run

    def codes(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return each output for at most one batch of pixels.

        Args:
            pixels: uint8 [N, H, W, C], N at most the runtime's batch.

        Returns:
            contiguous arrays: of codes float32 [N, D], of whole tensors float32 [N, ...], of
            pixels uint8 [N, H, W, C].
        """
        outputs = self.extractor.outputs
        if all(output.is_pixels for output in outputs):
            return [pixels for _ in outputs]
        lacking = self.runtime.batch - len(pixels)
        if lacking:
            pixels = np.concatenate([pixels, np.zeros((lacking, *pixels.shape[1:]), np.uint8)])
        computed = iter(self.run(pixels))
        count = self.runtime.batch - lacking
        return [(pixels if o.is_pixels else next(computed))[:count] for o in outputs]


@dataclass(frozen=True, eq=False)
class Codes:
    """What extraction found.

    Attributes:
        parts: one for each of the extractor's outputs, with a row for each image asked for.
        pools: how each of them was pooled.
        failed: positions of images that could not be read after all, with the reason; they have
            no rows in ``parts``.
        computed: images that went through the trunk here; the others came from the cache.
        fingerprints: the cache keys, one for each part.
        runtime: what computed them, now or when they were cached.
    """

    parts: tuple[Rows | HeldRows, ...]
    pools: tuple[str, ...]
    failed: dict[int, str]
    computed: int
    fingerprints: tuple[str, ...]
    runtime: str

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
    execution: Execution,
) -> Extractor:
    """Make the trunk of a chain ready to run up to some depths.

    Args:
        chain: the network.
        depths: names of cut points. The outputs come by depth; one cut point may be named twice,
            with different poolings, which come in the order given.
        pool: the pooling, for all depths or for each; "none" keeps the whole tensor, and at the
            input the rendered pixels.
        preprocessing: what an image goes through.
        execution: how the trunk is run.
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
        outputs.append(Output(number, how, module.to(execution.device).eval(), is_pixels))
    moved = trunk.to(execution.device, LAYOUT)
    program = TrunkProgram(moved, tuple(outputs), preprocessing, execution.device)
    return Extractor(moved, tuple(outputs), program, preprocessing, execution)


def extract(
    extractor: Extractor,
    images: ImageSet,
    indices: Sequence[int],
    digests: Sequence[str],
    track: Track = untracked,
    view: View = PLAIN,
    passes: int = 1,
) -> Codes:
    """Return the codes of some images, running the trunk on those that the cache lacks.

    Codes that any runtime of this machine has computed before are used as they are, if all are
    there; else the fastest that repays itself computes what its cache lacks.

    Args:
        extractor: the trunk.
        images: where the bytes come from.
        indices: which of them, in the order of the rows returned.
        digests: the SHA-256 of each of these images' bytes; they key the cache.
        track: shows the progress.
        view: which rendering of each image.
        passes: like this one, this one included, that are to be expected: views, say. A runtime
            that has to be compiled first may repay itself over all of them.

    Raises:
        CacheError: if the cache cannot be written.
        UsageError: if the runtime asked for cannot be used.
    """
    with quiet(), one_core_a_thread():
        runtime, lacking = fullest(extractor, digests, view)
        runner = None
        if lacking:
            started = runtime if lacking <= len(digests) / 2 else None
            runner = choose_runner(extractor, lacking * passes, started)
            runtime = runner.runtime
        stores = open_stores(extractor, runtime, view)
        computed, unreadable = 0, dict[str, str]()
        if runner:
            work = work_of(runner, images, dict(zip(digests, indices, strict=True)), view)
            for _ in range(TRIES):
                built = build(stores, digests, work, track)
                computed, unreadable = computed + built.computed, unreadable | built.unreadable
                for store in stores:
                    with suppress(DamagedShard):  # set aside; what was in it is lacking again
                        store.merge()
                    store.refresh()
                left = [d for d in missing(stores, digests) if d not in unreadable]
                if not left:
                    break
            else:
                raise CacheError(
                    f"{cache_folder()}: what is written there cannot be read back; set"
                    " TOPWORK_CACHE to another disk, or use --cache off"
                )
    return Codes(
        parts=tuple(store.rows(digests, absent=unreadable) for store in stores),
        pools=tuple(output.pool for output in extractor.outputs),
        failed={i: unreadable[d] for i, d in enumerate(digests) if d in unreadable},
        computed=computed,
        fingerprints=tuple(store.key for store in stores),
        runtime=runtime.name,
    )


def choose_runner(extractor: Extractor, images: int, started: Runtime | None = None) -> Runner:
    """Return what shall run the trunk over some images.

    Args:
        extractor: the trunk.
        images: how many there will be.
        started: the runtime to go on with, where most codes are there already: another one's would
            all have to be computed anew.

    Raises:
        UsageError: if the runtime asked for cannot be used.
    """
    if not extractor.program.numbers:
        return extractor.eager
    wanted = extractor.execution.runtime
    if wanted == "auto" and started:
        try:
            return runner_of(extractor, images, started.name)
        except UsageError as error:  # nobody has asked for it by name
            log.warning("%s", error)
    return runner_of(extractor, images, wanted)


def runner_of(extractor: Extractor, images: int, wanted: str) -> Runner:
    """Return a runtime by its name, or the fastest that repays itself.

    Raises:
        UsageError: if the one that is wanted cannot be used.
    """
    if wanted in extractor.opened:
        return extractor.opened[wanted]
    runtime, run = faster_run(
        extractor.program,
        extractor.eager.run,
        program_facts(extractor),
        images,
        extractor.canary.seconds,
        wanted,
    )
    return extractor.opened.setdefault(runtime.name, Runner(extractor, runtime, run))


def work_of(runner: Runner, images: ImageSet, index_of: dict[str, int], view: View) -> Work:
    """Return how the codes of images are computed.

    Args:
        runner: runs the trunk.
        images: where the bytes come from.
        index_of: the number of the image with a digest.
        view: which rendering of each.
    """
    extractor = runner.extractor
    preprocessing, decoding = extractor.preprocessing, extractor.execution.decoding

    def read(digest: str) -> np.ndarray | ImageError:
        return read_view(images, index_of[digest], digest, preprocessing, view, decoding)

    pixels = prod(preprocessing.size) * preprocessing.channels
    kept_pixels = pixels * sum(output.is_pixels for output in extractor.outputs)
    size = extractor.canary.bytes + kept_pixels
    return Work(read, runner.codes, runner.runtime.batch, size)


def fullest(extractor: Extractor, digests: Sequence[str], view: View) -> tuple[Runtime, int]:
    """Return the runtime whose stores lack the fewest of some images, and how many they lack.

    The first that is possible, where the cache has nothing yet.
    """
    possible: Sequence[Runtime] = (extractor.eager.runtime,)
    if extractor.program.numbers:
        possible = runtimes_for(extractor.execution, extractor.preprocessing.size)
    found = {possible[0]: len(digests)}
    for runtime in possible:
        if all(is_there(facts) for facts in facts_of(extractor, runtime, view)):
            found[runtime] = len(missing(open_stores(extractor, runtime, view), digests))
    best = min(found, key=lambda runtime: found[runtime])
    return best, found[best]


def is_begun(extractor: Extractor, digests: Sequence[str]) -> bool:
    """Say whether most of the plain views of some images are cached."""
    return fullest(extractor, digests, PLAIN)[1] <= len(digests) / 2


def runtime_for(extractor: Extractor, digests: Sequence[str], views: int) -> Runtime:
    """Return what shall run the trunk for all views of some images."""
    runtime, lacking = fullest(extractor, digests, PLAIN)
    if not lacking and views == 1:
        return runtime
    started = runtime if lacking <= len(digests) / 2 else None
    return choose_runner(extractor, lacking + len(digests) * (views - 1), started).runtime


def open_stores(extractor: Extractor, runtime: Runtime, view: View = PLAIN) -> list[Store]:
    """Open the cache of each of the outputs, or what stands in for it where nothing is kept."""
    execution = extractor.execution
    facts = facts_of(extractor, runtime, view)
    if execution.cache == "off":
        return [MemoryStore(key_of(of_one)) for of_one in facts]
    return [open_store(of_one, execution.verify) for of_one in facts]


def facts_of(extractor: Extractor, runtime: Runtime, view: View = PLAIN) -> list[dict[str, Any]]:
    """Return the facts that identify the codes of each output."""
    decoding = extractor.execution.decoding
    return [
        fingerprint_of_pixels(extractor.preprocessing, decoding, view)
        if output.is_pixels
        else fingerprint(
            trunk=extractor.trunk,
            number=output.number,
            pool=output.pool,
            preprocessing=extractor.preprocessing,
            weights=extractor.weights[output.number],
            code=extractor.code[output.number],
            runtime=runtime,
            decoding=decoding,
            dtype=extractor.dtype,
            canary=sign,
            view=view,
        )
        for output, sign in zip(extractor.outputs, extractor.canary.signs, strict=True)
    ]


def program_facts(extractor: Extractor) -> dict[str, Any]:
    """Return the facts that identify the layers that a runtime runs, whatever the images."""
    outputs = [output for output in extractor.outputs if not output.is_pixels]
    preprocessing = extractor.preprocessing
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "outputs": [
            {
                "weights": extractor.weights[output.number],
                "program": extractor.trunk.programs[output.number],
                "code": extractor.code[output.number],
                "cut": extractor.trunk.cuts[output.number].name,
                "pool": output.pool,
            }
            for output in outputs
        ],
        "canary": [sign for sign in extractor.canary.signs if sign],
    }


def is_there(facts: dict[str, Any]) -> bool:
    """Say whether the cache holds something under a fingerprint."""
    return (cache_folder() / "codes" / key_of(facts)).is_dir()
