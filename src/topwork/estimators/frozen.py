"""Frozen layers as a scikit-learn transformer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from topwork.errors import PlanError
from topwork.estimators.inputs import digests_of, image_set, require_all
from topwork.network.chain import CutPoint
from topwork.network.codes import choose_pool, possible_pools
from topwork.network.device import choose_device
from topwork.network.fetch import weights_file
from topwork.network.loading import Loaded, load_backbone
from topwork.network.model import code_width
from topwork.network.shipped import SHIPPED
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Extractor, extract, prepare

Depth = str | int
Size = int | tuple[int, int] | None
Output = tuple[str, str]  # the name of a cut point and a pooling


class FrozenFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Codes of images at a depth of a pretrained network, as features for scikit-learn.

    ``fit`` learns nothing from images: the layers are frozen. Codes are cached by the content of
    the images, and those of every depth are kept when an image first goes through the network. So
    whatever cross-validation and searches over depths ask for again is not computed again.

    At L, and wherever the source network thresholds before it goes on, codes are taken after the
    ReLU; at a cut point that lies inside such a step they are what crosses it (see ``before`` of
    `topwork.inspect`).

    Args:
        backbone: the network, as for `topwork.fit`: a name or a folder; None for the small one that
            comes with topwork.
        depth: name or number of a cut point, as ``topwork inspect`` prints them; None for L,
            or as far up as the backbone has weights.
        pool: "avg", "token", "token+avg" or "flatten"; None for what the source's own head uses,
            where the layout at the depth allows it.
        weights: a file with the pretrained weights.
        input_size: side, or height and width, in pixels that the network sees; None for its own.
        device: "cpu", "cuda", "mps" or "auto".
        runtime: what runs the layers, see `topwork.trunk.execution.Execution`.
        decoding: "fast" or "exact", likewise.
        cache: what is kept, likewise. With "off" nothing is, and layers above the depth do not run.

    Attributes:
        depth_: the name of the cut point.
        pool_: how its tensor is pooled.
        range_: the range of numbers that became pixels (see `topwork.estimators.inputs`); None
            where fit saw images.
        n_features_in_: columns of X, where it had numbers.

    The two networks that were used last, and the two last ways of running one, stay in memory (and
    on the device): estimators share them, so that each fold and each setting of a search does not
    build its own. `release_networks` lets go of them.

    X is a sequence of paths, of Pillow images, or of arrays, uint8 or uint16, [H, W] or [H, W, C];
    numeric [n, d] is taken as flattened gray images, a convenience. An image that cannot be read is
    a `topwork.errors.ImageError`: no row may be missing.

        features = FrozenFeatures("timm:resnet18", depth="layer3")
        model = make_pipeline(features, StandardScaler(), LogisticRegression())
        cross_val_score(model, paths, labels)
    """

    def __init__(
        self,
        backbone: str | Path | None = None,
        *,
        depth: Depth | None = None,
        pool: str | None = None,
        weights: str | Path | None = None,
        input_size: Size = None,
        device: str = "auto",
        runtime: str = "auto",
        decoding: str = "fast",
        cache: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.depth = depth
        self.pool = pool
        self.weights = weights
        self.input_size = input_size
        self.device = device
        self.runtime = runtime
        self.decoding = decoding
        self.cache = cache

    def fit(self, X: Any, y: Any = None) -> FrozenFeatures:
        """Look up the depth in the network; of X see only what kind of input it is.

        Raises:
            ValueError: for numbers that scikit-learn would not take.
            TopworkError: one of its kinds, for a network, depth or option that makes no sense.
        """
        source = self._source()
        image_set(self, X, reset=True, channels=source.backbone.preprocessing.channels)
        chain = open_network(source).chain
        cut = highest_of(source) if self.depth is None else chain.resolve(self.depth)
        require_weights(source, cut)
        self.depth_ = cut.name
        self.pool_ = choose_pool(chain, [cut], self.pool)
        self._n_features_out = code_width(chain, [cut.name], self.pool_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the codes of images, float32 [n, width].

        Raises:
            ValueError: for numbers that scikit-learn would not take.
            ImageError: for an image that cannot be read, naming it.
            CacheError: if the cache cannot be written.
        """
        check_is_fitted(self, "depth_")
        source = self._source()
        require_weights(source, open_network(source).chain.resolve(self.depth_))
        images = image_set(self, X, reset=False, channels=source.backbone.preprocessing.channels)
        digests, failed = digests_of(images)
        require_all(images, failed)
        device = choose_device(self.device)
        execution = Execution(device, self.runtime, self.decoding, self.cache)
        asked = (self.depth_, self.pool_)
        outputs = kept_together(source, asked, self.pool, self.cache)
        extractor = open_extractor(source, outputs, execution)
        codes = extract(extractor, images, range(len(images)), [str(each) for each in digests])
        require_all(images, codes.failed)
        return np.asarray(codes.parts[outputs.index(asked)].take(range(len(images))), np.float32)

    def _source(self) -> Source:
        return source_of(self.backbone, self.weights, self.input_size)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.three_d_array = True
        return tags


@dataclass(frozen=True)
class Source:
    """A network with its weights and image size.

    Attributes:
        facts: what tells it from others, the state of its weights file included: a file that was
            written or replaced since, even one of the same size and date, is another.
        backbone: the network.
        size: height and width in pixels that it shall see; None for its own.
    """

    facts: str
    backbone: Backbone = field(compare=False)
    size: tuple[int, int] | None = field(compare=False)


def source_of(backbone: str | Path | None, weights: str | Path | None, size: Size) -> Source:
    """Return the network of a name, as it is at this moment.

    Raises:
        BackboneError: if there is none.
    """
    found = find_backbone(SHIPPED if backbone is None else str(backbone), weights=weights)
    state: list[int] = []
    if found.weights is not None:
        file = weights_file(found.weights)
        if file.is_file():
            now = file.stat()
            state = [now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns]
    pixels = height_and_width(size)
    view, spec = found.preprocessing.to_dict(), found.spec.to_dict()
    facts = json.dumps([found.name, spec, view, str(found.weights), state, pixels])
    return Source(facts, found, pixels)


def height_and_width(size: Size) -> tuple[int, int] | None:
    """Return a size in full, as plain integers; what is no size is left for plans to refuse.

    >>> height_and_width(np.int64(96)), height_and_width([96, 64])
    ((96, 96), (96, 64))
    """
    side = as_int(size)
    if isinstance(side, int):
        return side, side
    given: Any = size  # a plan says what is wrong with it
    return tuple(map(as_int, given)) if isinstance(given, list | tuple | np.ndarray) else given


def as_int(count: Any) -> Any:
    """Return a whole number of NumPy's, as searches give them, as Python's; all else as it is.

    >>> type(as_int(np.int64(2))), as_int(None)
    (<class 'int'>, None)
    """
    return int(count) if isinstance(count, np.integer) else count


# Every fold and every setting of a search has an estimator of its own, but they share a network:
# nothing ever changes it, and building it takes longer than reading cached codes. An extractor
# holds a copy of the layers on its device, and what a runtime made of them; so few are kept.


@lru_cache(maxsize=2)
def open_network(source: Source) -> Loaded:
    """Return a network with pretrained weights up to L, or as far as it has any; keep the last two.

    Raises:
        TopworkError: as `topwork.network.loading.load_backbone` does.
    """
    return load_backbone(source.backbone, Plan(source.backbone.name, input_size=source.size))


def highest_of(source: Source) -> CutPoint:
    """Return the highest cut point that has pretrained weights alone below it."""
    loaded = open_network(source)
    return loaded.chain.resolve(loaded.plan.kept or loaded.chain.top.name)


def require_weights(source: Source, cut: CutPoint) -> None:
    """Refuse a cut point that has layers without pretrained weights below it.

    Raises:
        PlanError: naming the highest that has none.
    """
    highest = highest_of(source)
    if cut.depth > highest.depth:
        raise PlanError(
            f"depth: {source.backbone.name} has weights up to {highest.name} only, and {cut.name}"
            " lies above it; leave depth out, or give a lower one"
        )


@lru_cache(maxsize=2)
def open_extractor(source: Source, outputs: tuple[Output, ...], execution: Execution) -> Extractor:
    """Return what runs the layers up to some depths, with a pooling each; the last two are kept."""
    loaded = open_network(source)
    depths, pools = zip(*outputs, strict=True)
    return prepare(loaded.chain, depths, pools, loaded.backbone.preprocessing, execution)


def release_networks() -> None:
    """Let go of the networks that are kept for further estimators, and of what runs them.

    Their memory is free once nobody else holds them; that of a GPU goes back to torch, which keeps
    it until `torch.cuda.empty_cache`. An estimator that needs a network builds it again.
    """
    open_extractor.cache_clear()
    open_network.cache_clear()


@lru_cache(maxsize=16)
def kept_together(
    source: Source, asked: Output, pool: str | None, cache: str
) -> tuple[Output, ...]:
    """Return the depths that are kept in one pass, with the pooling of each, by depth.

    Those are all where the same choice of pooling gives a short code: computing them costs next to
    nothing on the way to L, and the next question is often about another depth.

    Args:
        source: the network.
        asked: depth and pooling that are wanted.
        pool: the pooling chosen for all depths; None for the default of each.
        cache: "off" if nothing is kept.
    """
    chain = open_network(source).chain
    cut = chain.resolve(asked[0])
    if cache == "off" or cut.depth == 0 or is_long(cut, asked[1]):
        return (asked,)
    possible = [
        (other, choose_pool(chain, [other], pool))
        for other in chain.cuts[1 : highest_of(source).depth + 1]
        if pool is None or pool in possible_pools(other.layout)
    ]
    return tuple((other.name, how) for other, how in possible if not is_long(other, how))


def is_long(cut: CutPoint, pool: str) -> bool:
    """Say whether a code is a whole map, or all tokens."""
    return pool == "flatten" and cut.layout.kind != "vector"
