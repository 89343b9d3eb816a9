"""One pass over images that collects pooled outputs at every cut point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, untracked
from topwork.network.chain import Chain, CutPoint
from topwork.network.codes import possible_pools, source_pool
from topwork.network.loading import Loaded
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Codes, extract, prepare


@dataclass(frozen=True, eq=False)
class DepthCodes:
    """Pooled outputs at cut points, for the same images at all of them.

    Attributes:
        cuts: from the lowest up to where the plan keeps layers.
        pools: how each is pooled.
        indices: the images, as numbers in their set; those that cannot be read are left out.
        codes: what the trunk gave.
        lost: the images that could not be read, as numbers in their set, with the reason.
        seconds_an_image: that an image takes through all kept layers in PyTorch, all cores at work.
    """

    cuts: tuple[CutPoint, ...]
    pools: tuple[str, ...]
    indices: tuple[int, ...]
    codes: Codes
    lost: dict[int, str]
    seconds_an_image: float

    def at(self, name: str) -> np.ndarray:
        """Return the codes at the cut point of a name, float32 [n, columns]."""
        place = [cut.name for cut in self.cuts].index(name)
        failed = self.codes.failed
        part = self.codes.parts[place]
        return part.take([row for row in range(len(part)) if row not in failed])


def collect(
    loaded: Loaded,
    images: ImageSet,
    audit: Audit,
    indices: Sequence[int],
    execution: Execution,
    track: Track = untracked,
) -> DepthCodes:
    """Run each image once through the kept layers and keep the pooled output at every cut point.

    They are the very codes that a plan with such a cut and pooling learns from, under the same
    keys of the cache: what is collected here is not computed again there.

    Args:
        loaded: the network.
        images: where the images come from.
        audit: gives their content hashes.
        indices: which images.
        execution: how the trunk is run.
        track: shows progress.
    """
    chain = loaded.chain
    kept = chain.resolve(loaded.plan.kept or 0)
    cuts = chain.cuts[1 : kept.depth + 1]
    pools = [pool_at(chain, cut) for cut in cuts]
    names = [cut.name for cut in cuts]
    extractor = prepare(chain, names, pools, loaded.backbone.preprocessing, execution)
    digests = [str(audit.digests[index]) for index in indices]
    codes = extract(extractor, images, indices, digests, track)
    present = tuple(index for i, index in enumerate(indices) if i not in codes.failed)
    lost = {indices[i]: reason for i, reason in codes.failed.items()}
    seconds = extractor.canary.seconds
    return DepthCodes(cuts, tuple(pools), present, codes, lost, seconds)


def pool_at(chain: Chain, cut: CutPoint) -> str:
    """Return the pooling at a cut point: the mean, beside the class token where there is one.

    At L it is the source's own, if that is more than either.
    """
    if cut is chain.top and source_pool(chain) == "flatten":
        return "flatten"
    possible = possible_pools(cut.layout)
    return next(how for how in ("token+avg", "avg", "flatten") if how in possible)
