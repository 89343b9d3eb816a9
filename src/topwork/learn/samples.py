"""Training images as the top above a cut takes them: from the cache, view by view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from topwork.data.audit import Audit
from topwork.data.augment import View
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track
from topwork.data.views import to_tensor
from topwork.errors import DataError
from topwork.network.chain import CutPoint
from topwork.network.loading import Loaded
from topwork.trunk.extraction import Codes, Extractor, extract, prepare
from topwork.trunk.fingerprint import Runtime


@dataclass
class Samples:
    """Images of a set, seen through the trunk of a network at any depth.

    Attributes:
        loaded: the network and the plan.
        images: where they come from.
        audit: gives their content hashes.
        runtime: runs the trunk.
        track: shows progress.
        computed: views of images that went through a trunk so far; others came from the cache.
        keys: the cache keys used so far, each once.
    """

    loaded: Loaded
    images: ImageSet
    audit: Audit
    runtime: Runtime
    track: Track
    computed: int = 0
    keys: dict[str, None] = field(default_factory=dict)

    def at(self, frozen: CutPoint, indices: Sequence[int], views: int = 1) -> CachedInputs:
        """Return images as the layers above a cut take them, with the weights of this moment.

        Args:
            frozen: the cut.
            indices: which images.
            views: of each image, taken in turn from epoch to epoch; each is rendered and run
                through the trunk when it is first needed, unless the cache has it.

        Raises:
            DataError: if an image cannot be read any more.
        """
        highest = self.loaded.chain.resolve(self.loaded.plan.codes[-1])
        takes_map = highest.depth > frozen.depth
        return CachedInputs(self, self.extractor(frozen), takes_map, tuple(indices), views)

    def unreadable(self, frozen: CutPoint, indices: Sequence[int]) -> dict[int, str]:
        """Return the positions of images that cannot be read any more, with the reason."""
        return self.extract(self.extractor(frozen), indices, View()).failed

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
        return prepare(chain, below, pools, self.loaded.backbone.preprocessing, self.runtime)

    def extract(self, extractor: Extractor, indices: Sequence[int], view: View) -> Codes:
        """Run a trunk over some images, or fetch what is cached."""
        digests = [str(self.audit.digests[index]) for index in indices]
        codes = extract(extractor, self.images, indices, digests, self.track, view)
        self.computed += codes.computed
        self.keys |= dict.fromkeys(codes.fingerprints)
        return codes


@dataclass
class CachedInputs:
    """Images as the layers above a cut take them: `topwork.learn.loop.Inputs`.

    Attributes:
        samples: where they come from.
        extractor: the trunk below the cut.
        takes_map: whether the last of what it gives is the tensor at the cut, not a code.
        indices: which images.
        views: of each.
        found: what each view is, by its number, as far as they were needed.
    """

    samples: Samples
    extractor: Extractor
    takes_map: bool
    indices: tuple[int, ...]
    views: int
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
            codes = self.samples.extract(self.extractor, self.indices, view)
            for position, reason in codes.failed.items():
                name = self.samples.images.items[self.indices[position]].name
                raise DataError(f"{name}: {reason}; it could be read before; run again")
            self.found[number] = codes
        return self.found[number]

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return some images as inputs of a `topwork.network.model.Top`: the map comes first."""
        parts = [part.take(rows) for part in self.view(epoch % self.views).parts]
        tensors = [self.on_device(part) for part in parts]
        return (tensors[-1], *tensors[:-1]) if self.takes_map else tuple(tensors)

    def codes(self) -> np.ndarray:
        """Return the pooled codes of all images, view after view, float32 [views * n, D]."""
        return np.concatenate([self.view(number).rows for number in range(self.views)])

    def on_device(self, part: np.ndarray) -> Tensor:
        """Return pixels (uint8 [n, H, W, C]) or codes as a tensor where training takes place."""
        samples = self.samples
        preprocessing = samples.loaded.backbone.preprocessing
        to_float = partial(to_tensor, preprocessing=preprocessing)
        tensor = to_float(part) if part.dtype == np.uint8 else torch.from_numpy(part)
        layout = samples.runtime.layout if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(samples.runtime.device, memory_format=layout)
