"""Fitting a plan whose trunk is frozen all the way: run it once, solve for the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, untracked
from topwork.errors import UnsupportedError
from topwork.learn.probe import Probe, probe
from topwork.network.loading import Loaded
from topwork.network.model import Model
from topwork.plan import Plan
from topwork.trunk.extraction import Codes, Extractor, extract, prepare
from topwork.trunk.fingerprint import Runtime

FITTED_HEADS = ("softmax", "svm", "ridge")


@dataclass(frozen=True)
class Fitted:
    """What fitting gave.

    Attributes:
        model: the kept layers, which share their tensors with the loaded network, and the head.
        probe: how the head was chosen and solved for.
        codes: of the images that choosing used, in the order of ``indices``.
        indices: these images.
        extractor: the trunk, to run on further images.
    """

    model: Model
    probe: Probe
    codes: Codes
    indices: tuple[int, ...]
    extractor: Extractor


def require_fittable(plan: Plan) -> None:
    """Refuse, by name, what a plan may say but cannot be fitted yet.

    Raises:
        UnsupportedError: naming the part of the plan.
    """
    if plan.head not in FITTED_HEADS:
        raise UnsupportedError(
            f"head {plan.head!r} is not fitted yet; choose from {', '.join(FITTED_HEADS)}"
        )
    if plan.added:
        raise UnsupportedError('added hidden layers are not fitted yet; leave "added" empty')
    if plan.views > 1:
        raise UnsupportedError("augmented views are not fitted yet; give views 1")
    if plan.input_size is not None:
        raise UnsupportedError(
            'another input size than the backbone\'s is not fitted yet; leave out "input_size"'
        )
    for number, phase in enumerate(plan.phases, 1):
        if phase.epochs:
            raise UnsupportedError(
                f"phase {number} trains layers of the network (for {phase.epochs} epochs), which is"
                " not fitted yet; use --plan features"
            )


def require_all_frozen(plan: Plan) -> None:
    """Refuse a plan, settled on its network, that freezes less than it keeps.

    Raises:
        UnsupportedError: naming the phase.
    """
    for number, phase in enumerate(plan.phases, 1):
        if phase.frozen != plan.kept:
            raise UnsupportedError(
                f"phase {number} freezes only up to {phase.frozen} and trains the layers up to"
                f" {plan.kept}, which is not fitted yet; drop those with --kept {phase.frozen}, or"
                " leave out --frozen, to freeze them all"
            )


def fit_frozen(
    loaded: Loaded,
    images: ImageSet,
    audit: Audit,
    runtime: Runtime,
    seed: int,
    track: Track = untracked,
) -> Fitted:
    """Solve for the head on the codes of the training images; the trunk runs at most once.

    Regularization is chosen inside the training part, on the validation part if the data brings
    one; the head is then solved for on both.

    Raises:
        UnsupportedError: if the plan trains anything else.
    """
    plan = loaded.plan
    require_fittable(plan)
    require_all_frozen(plan)
    indices = (*audit.split.train, *audit.split.val)
    extractor = prepare(
        loaded.chain, plan.codes, plan.pool or "flatten", loaded.backbone.preprocessing, runtime
    )
    codes = extract(extractor, images, indices, digests_of(audit, indices), track)
    rows = [row for row in range(len(indices)) if row not in codes.failed]
    used = [indices[row] for row in rows]
    labels = labels_of(images, used)
    in_val = set(audit.split.val)
    validation = [row for row, index in enumerate(used) if index in in_val]
    groups = np.array([images.items[i].group or images.items[i].name for i in used])
    found = probe(
        codes.rows[rows],
        labels,
        len(images.classes),
        kind=plan.head,
        groups=groups if any(images.items[index].group for index in used) else None,
        validation=np.array(validation) if validation else None,
        seed=seed,
    )
    return Fitted(with_head(loaded, found), found, codes, tuple(indices), extractor)


def with_head(loaded: Loaded, found: Probe) -> Model:
    """Put a fitted head on the kept layers."""
    head, plan = found.head, loaded.plan
    outputs, width = head.weight.shape
    model = Model(loaded.chain, plan.codes, plan.pool or "flatten", width, outputs)
    layer = head.folded()
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(layer.weight))
        model.head.bias.copy_(torch.from_numpy(layer.bias))
    return model.eval()


def labels_of(images: ImageSet, indices: Sequence[int]) -> np.ndarray:
    """Return the class numbers of some images, int64 [N]."""
    number = {name: i for i, name in enumerate(images.classes)}
    return np.array([number[images.items[index].labels[0]] for index in indices], dtype=np.int64)


def digests_of(audit: Audit, indices: Sequence[int]) -> list[str]:
    """Return the content hashes of images that the audit could read, in the same order."""
    return [str(audit.digests[index]) for index in indices]
