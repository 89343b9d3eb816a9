"""The plans that are worth comparing for some images: from features at the top to from scratch.

They stand in the four corners of the textbook's table of size and similarity, and between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from topwork.advice.profile import DepthResult, Profile, images_per_class
from topwork.errors import UsageError, did_you_mean
from topwork.named_plans import named_plan
from topwork.network.chain import CutPoint
from topwork.phase import Phase, Stop
from topwork.plan import Hidden, Plan

TOP = "features at the top"
BEST = "features at the best depth"
SEVERAL = "features of several depths"
SMALL_LAYER = "small added layer"
LARGE_LAYERS = "large added layers"
VIEWS = "features of views"
DROP = "drop the top"
TWO_THIRDS = "fine-tune two thirds"
ALL = "fine-tune all"
REPLACE = "replace the top"
SCRATCH = "from scratch"

NAMES = (
    *(TOP, BEST, SEVERAL, SMALL_LAYER, LARGE_LAYERS, VIEWS),
    *(DROP, TWO_THIRDS, ALL, REPLACE, SCRATCH),
)

SMALL_SIMILAR, SMALL_DIFFERENT = "small, similar", "small, different"
LARGE_SIMILAR, LARGE_DIFFERENT = "large, similar", "large, different"

TRAINED_COST = 3.0
"""An image in training, forward and backward, against one in inference, where trials have not yet
shown what it is here."""

ENOUGH_TO_REPLACE = 100
"""Images per class below which new layers are not trained in place of reused ones."""

ENOUGH_FOR_SCRATCH = 500
"""Likewise, of a whole network."""

MORE_FOR = {"labels": 10, "numbers": 10}
"""Labels and numbers have no classes; so many times as many images are asked for in all."""

SEVERAL_DEPTHS = 4
APART = 0.1
"""Of the axis, that they lie apart at the least."""

ONE_PASS = 1.0
"""What all features of an image cost, in inferences of the whole network."""


@dataclass(frozen=True)
class Candidate:
    """A plan that may be recommended.

    Attributes:
        name: one of `NAMES`.
        plan: complete, as it would be fitted.
        why: when it is the right one, in a few words.
        corner: of the textbook's table that it belongs to; "" for those between.
        cost: of fitting it, in inferences of the whole network for each training image.
        hopeless: why it is not even tried here; None if it may be.
    """

    name: str
    plan: Plan
    why: str
    corner: str
    cost: float
    hopeless: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it trains by gradient descent."""
        return any(phase.epochs for phase in self.plan.phases)

    @property
    def tried(self) -> bool:
        """Whether it takes a trial; the others are judged by the profile's codes at once."""
        return self.trained or self.plan.views > 1

    @property
    def tunes(self) -> bool:
        """Whether it trains kept layers of the network, and not only what is above them."""
        return any(phase.epochs and phase.frozen is not None for phase in self.plan.phases)


def candidates(profile: Profile, base: Plan, only: Sequence[str] = ()) -> tuple[Candidate, ...]:
    """Return the plans to compare, the cheapest first.

    Args:
        profile: of the images.
        base: a plan that says backbone, kept depth, image size and channels.
        only: names of those that are wanted; all by default.

    Raises:
        UsageError: for a name that no candidate has.
    """
    for name in only:
        if name not in NAMES:
            hint = did_you_mean(name, NAMES) or f"; choose from: {', '.join(NAMES)}"
            raise UsageError(f"no candidate is named {name!r}{hint}")
    found = [*of_features(profile, base), *of_training(profile, base)]
    wanted = [candidate for candidate in found if not only or candidate.name in only]
    by_plan: dict[Plan, Candidate] = {}  # on a short network several names mean the same plan
    for candidate in sorted(wanted, key=lambda candidate: candidate.cost):
        by_plan.setdefault(candidate.plan, candidate)
    return tuple(by_plan.values())


def of_features(profile: Profile, base: Plan) -> list[Candidate]:
    """Return the candidates that train no layer of the network.

    Those on the profile's own codes cost the same, one pass. Of equals the first is taken: several
    depths lose little where one would do and gain more where one would not (docs/log.md).
    """
    top, best, several = profile.top, profile.best, several_depths(profile)
    side_by_side = features(base, several[-1])
    if len(several) > 1:
        names = tuple(depth.cut.name for depth in several)
        side_by_side = replace(side_by_side, codes=names)
    hidden = Phase(epochs=40, batch=32, rate=1e-3, warmup=1, stop=Stop())
    trainable = replace(side_by_side, head=next(iter(best.judged)), phases=(hidden,))
    found = []
    if len(several) > 1:
        found.append(
            Candidate(
                SEVERAL,
                side_by_side,
                "what is wanted is partly in lower features, partly in higher ones",
                "",
                ONE_PASS,
            )
        )
    if best is not top:
        found.append(
            Candidate(
                BEST,
                features(base, best),
                "little data that is unlike the source's: lower features are less specific",
                SMALL_DIFFERENT,
                ONE_PASS,
            )
        )
    return [
        *found,
        Candidate(
            TOP,
            features(base, top),
            "little data that is like the source's: its uppermost features fit already",
            SMALL_SIMILAR,
            ONE_PASS,
        ),
        Candidate(
            SMALL_LAYER,
            replace(trainable, added=(Hidden(128, dropout=0.5),)),
            "what is wanted is there, but not linear in the features",
            "",
            ONE_PASS + 0.2,
        ),
        Candidate(
            LARGE_LAYERS,
            replace(trainable, added=(Hidden(512, dropout=0.5), Hidden(512, dropout=0.5))),
            "the same, with labels enough for large new layers",
            "",
            ONE_PASS + 0.5,
        ),
        Candidate(
            VIEWS,
            replace(side_by_side, views=4),
            "little data, and the features change as an object moves in the picture",
            "",
            4 * ONE_PASS,
        ),
    ]


def of_training(profile: Profile, base: Plan) -> list[Candidate]:
    """Return the candidates that train layers of the network."""
    chain = profile.loaded.chain
    top, best = profile.top, profile.best
    head = next(iter(top.judged))
    per_class = images_per_class(profile.targets) / MORE_FOR.get(profile.targets.kind, 1)
    third_up = lowest_frozen(profile, 1 / 3)

    def tuned(kept: DepthResult, frozen: CutPoint) -> Plan:
        warmup = named_plan("warmup", base.backbone, frozen=(frozen.name,), head=head)
        return replace(warm(base, kept), head=head, phases=warmup.phases)

    found = [
        Candidate(
            TWO_THIRDS,
            tuned(top, third_up),
            "more data: the upper layers may be bent to it, the lowest serve any picture",
            LARGE_SIMILAR,
            cost_of_training(profile, top.cut, third_up),
        ),
        Candidate(
            ALL,
            tuned(top, chain.cuts[0]),
            "much data: even edges and colors may be learned anew, from a good start",
            LARGE_DIFFERENT,
            cost_of_training(profile, top.cut, chain.cuts[0]),
        ),
    ]
    if best is not top:
        below = lowest_frozen(profile, 1 / 2, best.cut)
        found.append(
            Candidate(
                DROP,
                tuned(best, below),
                "little data, unlike the source's: a shorter network, its upper half trained",
                "",
                cost_of_training(profile, best.cut, below),
            )
        )
        replaced = named_plan("finetune", base.backbone, frozen=(best.cut.name,), head=head)
        found.append(
            Candidate(
                REPLACE,
                replace(warm(base, top), reused=best.cut.name, head=head, phases=replaced.phases),
                "much data whose upper features are others than the source's",
                "",
                cost_of_training(profile, top.cut, best.cut),
                too_few(per_class, ENOUGH_TO_REPLACE, "to train new layers of this size"),
            )
        )
    scratch = named_plan("scratch", base.backbone, head=head)
    found.append(
        Candidate(
            SCRATCH,
            replace(warm(base, top), reused="input", head=head, phases=scratch.phases),
            "very much data, and nothing of the source's features is of use",
            "",
            2 * cost_of_training(profile, top.cut, chain.cuts[0]),
            too_few(per_class, ENOUGH_FOR_SCRATCH, "to train a whole network"),
        )
    )
    return found


def too_few(per_class: float, enough: float, what: str) -> str | None:
    """Say that there are too few images for something, or nothing."""
    if per_class >= enough:
        return None
    return f"{per_class:.0f} images for each class are too few {what} ({enough} at the least)"


def warm(base: Plan, depth: DepthResult) -> Plan:
    """Return the base plan, keeping layers up to a depth."""
    return replace(base, kept=depth.cut.name, pool=depth.pool)


def features(base: Plan, depth: DepthResult) -> Plan:
    """Return the plan of a head on the frozen features of a depth."""
    return replace(warm(base, depth), head=depth.head, phases=(Phase(),))


def several_depths(profile: Profile) -> list[DepthResult]:
    """Return up to four depths to read side by side, from the lowest up.

    The best, and then by falling merit those that lie a tenth of the axis apart from all that were
    chosen before and are pooled like the best.
    """
    best, count = profile.best, len(profile.depths)
    alike = [depth for depth in profile.depths if depth.pool == best.pool]
    chosen = [best]
    for depth in sorted(alike, key=lambda depth: depth.best.best.loss):
        apart = all(abs(depth.cut.depth - one.cut.depth) >= APART * count for one in chosen)
        if apart and depth not in chosen and len(chosen) < SEVERAL_DEPTHS:
            chosen.append(depth)
    return sorted(chosen, key=lambda depth: depth.cut.depth)


def lowest_frozen(profile: Profile, share: float, below: CutPoint | None = None) -> CutPoint:
    """Return the cut point at a share of the way up to another.

    The nearest, or the end of a stage that lies within a tenth of the way of it.
    """
    chain = profile.loaded.chain
    end = (below or profile.top.cut).depth
    wanted = share * end
    cuts = [cut for cut in chain.cuts[1:end] if cut.depth < end] or [chain.cuts[0]]
    nearest = min(cuts, key=lambda cut: abs(cut.depth - wanted))
    stages = [cut for cut in cuts if cut.stage_end and abs(cut.depth - wanted) <= max(1, end / 10)]
    return min(stages, key=lambda cut: abs(cut.depth - wanted)) if stages else nearest


def cost_of_training(profile: Profile, kept: CutPoint, frozen: CutPoint) -> float:
    """Return what training between two depths costs, likewise, for as many epochs as by default."""
    whole = max(1, profile.top.cut.multiply_adds)
    trained = (kept.multiply_adds - frozen.multiply_adds) / whole
    epochs = named_plan("warmup", "any").phases[-1].epochs
    return ONE_PASS + epochs * TRAINED_COST * trained
