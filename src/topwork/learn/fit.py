"""Fitting a plan: one routine for every way of reusing layers.

Phase by phase: a phase without epochs solves for the head on cached codes; one with epochs trains
the top above its cut, on the cached outputs of the trunk below. Trained weights stay in the
network, so that the next phase, cut lower or higher, finds them there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, untracked
from topwork.errors import DataError, PlanError
from topwork.learn.batch_norm import batch_norms, estimate_statistics
from topwork.learn.best import reached
from topwork.learn.checkpoints import Checkpoint, Checkpoints
from topwork.learn.fitting import Fitting, restore, save
from topwork.learn.folds import stratified_folds
from topwork.learn.loop import own_randomness, scores_of, seed_of
from topwork.learn.probe import probe
from topwork.learn.samples import Samples
from topwork.learn.stretch import train_stretch
from topwork.learn.targets import Targets, targets_of
from topwork.network.chain import CutPoint
from topwork.network.cut import segment
from topwork.network.loading import Loaded
from topwork.network.model import Model, Top, code_width
from topwork.phase import BALANCES, Phase, Stop
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import LAYOUT

log = logging.getLogger("topwork")

TRAINED_HEADS = ("softmax", "sigmoid", "regression")
HELD_OUT = 5  # one image in so many is held out where something goes by a score
FEWEST_STAGES = 4  # with fewer, a gradual phase goes cut point by cut point
PATIENCE = 2  # steps of a gradual phase
CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Fitted:
    """What fitting gave.

    Attributes:
        model: the kept layers, added layers and head, in eval mode.
        top: the layers of it above ``frozen``.
        frozen: the lowest depth that a phase froze at: below it no tensor was changed.
        records: of the phases, as plain data.
        samples: gives further images as ``top`` takes them.
        indices: the images that could be learned from.
        lost: name and reason of those that could not be read after the audit.
        before: seconds that were spent before an interruption.
    """

    model: Model
    top: Top
    frozen: CutPoint
    records: tuple[dict[str, Any], ...]
    samples: Samples
    indices: tuple[int, ...]
    lost: tuple[tuple[str, str], ...]
    before: float

    def scores(self, indices: Sequence[int]) -> Tensor:
        """Return the scores of further images by way of the cache, [n, outputs]."""
        return scores_of(self.top, self.samples.at(self.frozen, indices), 256)


def require_fittable(plan: Plan) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        PlanError: naming the part of the plan.
    """
    for number, phase in enumerate(plan.phases, 1):
        if phase.epochs and plan.head not in TRAINED_HEADS:
            raise PlanError(
                f"phase {number} trains by gradient descent, which a {plan.head} head is not made"
                f" for; choose from {', '.join(TRAINED_HEADS)}, or leave out its epochs"
            )
        if plan.added and not phase.epochs:
            raise PlanError(
                f"phase {number} solves for the head alone, but the added hidden layers below it"
                ' must be trained; give the phase epochs, or leave "added" empty'
            )
        if phase.stop and phase.stop.accuracy is not None and plan.head == "regression":
            raise PlanError(f"phase {number}: numbers have no accuracy to stop at; give patience")
        if phase.mix != "none" and plan.head != "softmax":
            raise PlanError(f"phase {number}: {phase.mix} mixes classes; it needs head softmax")
        if phase.label_smoothing and plan.head != "softmax":
            raise PlanError(
                f"phase {number}: label_smoothing spreads a label over classes; it needs head"
                " softmax; leave it out"
            )
        balanced = {"softmax": BALANCES, "sigmoid": ("none", "loss")}.get(plan.head, ("none",))
        if phase.epochs and phase.balance not in balanced:
            raise PlanError(
                f"phase {number}: balance {phase.balance!r} makes no sense with head {plan.head};"
                f" possible: {', '.join(balanced)}"
            )


def require_solvable(loaded: Loaded) -> None:
    """Refuse a settled plan with a phase that cannot be: before anything is trained.

    That solves for a head above layers that the plan means to train, or unfreezes where there is
    nothing to unfreeze.

    Raises:
        PlanError: naming the phase.
    """
    plan = loaded.plan
    for number, phase in enumerate(plan.phases, 1):
        depths_of(loaded, number - 1)
        if not phase.epochs and phase.frozen != plan.kept:
            raise PlanError(
                f"phase {number} freezes only up to {phase.frozen}, but has no epochs to train the"
                f" layers up to {plan.kept} in; give it epochs in a plan file, drop those layers"
                f" with --kept {phase.frozen}, or leave out --frozen"
            )


def fit_plan(
    loaded: Loaded,
    images: ImageSet,
    audit: Audit,
    execution: Execution,
    seed: int,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    track: Track = untracked,
) -> Fitted:
    """Fit a plan to the training part of some images.

    Every choice is made inside the training part: on its validation part if the data brings one,
    else on a fifth of it that is held out, or by folds.

    Args:
        loaded: the network, which is trained in place, and the settled plan.
        images: what to learn from.
        audit: says which of them may be, and where they belong.
        execution: how trunks are run; training takes place on its device.
        seed: of everything that is drawn.
        checkpoints: where to save the fit so that it can be resumed.
        resume: go on from there.
        track: shows progress.

    Raises:
        PlanError: for a plan that contradicts itself.
        UsageError: if a checkpoint belongs to another fit.
        KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM, once the fit is saved.
    """
    plan, chain = loaded.plan, loaded.chain
    require_fittable(plan)
    require_solvable(loaded)
    chain.network.to(execution.device).to(memory_format=LAYOUT)
    source = source_weights(loaded) if any(phase.pull for phase in plan.phases) else {}
    samples = Samples(loaded, images, audit, execution, track)
    everything = (*audit.split.train, *audit.split.val)
    calibrate_random_layers(samples, everything, seed)
    failed = samples.unreadable(chain.resolve(plan.phases[0].frozen or 0), everything)
    indices = tuple(index for i, index in enumerate(everything) if i not in failed)
    targets = targets_of(images, indices, plan.head)
    groups = groups_of(images, audit, indices)
    fitting = Fitting(
        loaded,
        new_model(loaded, targets, seed),
        samples,
        indices,
        targets,
        groups,
        held_out_rows(loaded, images, audit, indices, targets, groups, seed),
        seed,
        source,
        checkpoints,
        lowest=chain.top.depth,
    )
    stopped = checkpoints.newest() if checkpoints and resume else None
    if resume and checkpoints and checkpoints.folder.exists() and not stopped:
        log.warning("no checkpoint of the interrupted fit is whole; beginning anew")
    first = 0
    if stopped:
        restore(fitting, stopped)
        first = stopped.facts["phase"]
    for number, phase in enumerate(plan.phases[first:], first):
        fitting.records.append(run_phase(fitting, phase, number, stopped))
        save(fitting, {"phase": number + 1})
        stopped = None
    if fitting.solved:
        # Nothing that was tried beat the head alone; so it may learn from the held-out images too.
        fitting.records.append({**solve(fitting, everything=True), "at_last": True})
    names = [images.items[everything[position]].name for position in failed]
    return finish(fitting, tuple(zip(names, failed.values(), strict=True)))


def run_phase(
    fitting: Fitting, phase: Phase, number: int, stopped: Checkpoint | None
) -> dict[str, Any]:
    """Run one phase, or the rest of it; return its record."""
    chain, plan = fitting.loaded.chain, fitting.loaded.plan
    if phase.epochs == 0:
        last = number + 1 == len(plan.phases)
        return solve(fitting, everything=last or not len(fitting.held_out))
    stretches: list[dict[str, Any]] = stopped.facts.get("stretches", []) if stopped else []
    under_way = stopped if stopped and stopped.facts["training"] else None
    for depth in depths_of(fitting.loaded, number)[len(stretches) :]:
        if given_up(stretches, phase):
            break
        fitting.lowest = min(fitting.lowest, depth.depth)
        record = train_stretch(fitting, phase, number, depth, stretches, under_way)
        under_way = None
        stretches.append(record)
        if record["improved"]:
            fitting.solved = False
            fitting.overfitted |= depth.depth < chain.resolve(plan.kept or 0).depth
        if phase.gradual:
            save(fitting, {"phase": number, "stretches": stretches})
    return stretches[0] if not phase.gradual else record_of_gradual(stretches)


def depths_of(loaded: Loaded, number: int) -> list[CutPoint]:
    """Return the depths that a phase of the plan, counted from 0, trains above, one by one.

    A gradual one goes down from where the phase before was to freeze at last: stage by stage where
    the network has at least four of them below, else cut point by cut point.

    Raises:
        PlanError: if there are none.
    """
    chain, plan = loaded.chain, loaded.plan
    phase = plan.phases[number]
    lowest = chain.resolve(phase.frozen or plan.kept or 0)
    if not phase.gradual:
        return [lowest]
    above = plan.phases[number - 1].frozen if number else plan.kept
    highest = chain.resolve(above or 0)
    end = highest.depth
    if not plan.frozen_random:
        end = min(end, chain.resolve(plan.reused or 0).depth + 1)
    below = list(reversed(chain.cuts[lowest.depth : end]))
    if not below:
        raise PlanError(
            f"phase {number + 1} unfreezes step by step, but there is nothing between"
            f" {highest.name}, where it begins, and {lowest.name}; give a lower frozen"
        )
    stages = [cut for cut in below if cut.stage_end or cut is lowest]
    return stages if len(stages) >= FEWEST_STAGES else below


def given_up(stretches: Sequence[dict[str, Any]], phase: Phase) -> bool:
    """Say whether a gradual phase ends here: unfreezing more has not helped for some steps."""
    if not phase.gradual or not stretches:
        return False
    stop = phase.stop or Stop()
    if reached(phase, stretches[-1]["best"]["accuracy"]["value"]):
        return True
    latest = stretches[-(stop.patience or PATIENCE) :]
    return len(latest) == (stop.patience or PATIENCE) and not any(s["improved"] for s in latest)


def record_of_gradual(stretches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a gradual phase: the curve, the depth it chose, and each stretch."""
    curve = [
        {
            "frozen": stretch["frozen"],
            "accuracy": stretch["best"]["accuracy"]["value"],
            "interval": stretch["best"]["accuracy"]["interval"],
            "loss": stretch["best"]["loss"],
            "improved": stretch["improved"],
            "seconds": stretch["seconds"],
        }
        for stretch in stretches
    ]
    chosen = [stretch["frozen"] for stretch in stretches if stretch["improved"]]
    return {
        "gradual": True,
        "frozen": stretches[-1]["frozen"],
        "chosen": chosen[-1] if chosen else None,
        "start": stretches[0]["start"],
        "curve": curve,
        "stretches": list(stretches),
        "epochs": [epoch for stretch in stretches for epoch in stretch["epochs"]],
        "seconds": sum(stretch["seconds"] for stretch in stretches),
    }


def solve(fitting: Fitting, *, everything: bool) -> dict[str, Any]:
    """Solve for the head on cached codes, at a strength chosen inside them; put it in place.

    Args:
        fitting: the fit.
        everything: learn from the held-out images too.
    """
    started = time.perf_counter()
    chain, plan, samples = fitting.loaded.chain, fitting.loaded.plan, fitting.samples
    kept = chain.resolve(plan.kept or 0)
    rows = fitting.rows(held_out=False)
    if everything or fitting.overfitted:
        rows = list(range(len(fitting.indices)))
    used = [fitting.indices[row] for row in rows]
    in_val = set(samples.audit.split.val)
    validation = [row for row, index in enumerate(used) if index in in_val]
    keep_out = fitting.overfitted and not everything
    if fitting.overfitted:
        validation = fitting.held_out.tolist()
    found = probe(
        samples.codes(kept, used, plan.views),
        fitting.targets.values[rows],
        fitting.targets.outputs,
        kind=plan.head,
        groups=fitting.groups[rows],
        validation=np.array(validation) if validation else None,
        keep_out=keep_out,
        views=plan.views,
        seed=fitting.seed,
    )
    layer = found.head.folded()
    head = fitting.model.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(layer.weight))
        head.bias.copy_(torch.from_numpy(layer.bias))
    fitting.solved = not everything
    return {
        "frozen": plan.kept,
        "images": len(rows) - (len(validation) if keep_out else 0),
        "probe": found.record(),
        "epochs": [],
        "seconds": time.perf_counter() - started,
    }


def new_model(loaded: Loaded, targets: Targets, seed: int) -> Model:
    """Return the kept layers with added layers and a head that start from random weights."""
    plan, chain = loaded.plan, loaded.chain
    pool = plan.pool or "flatten"
    with own_randomness(seed_of(seed), torch.device("cpu")):
        width = code_width(chain, plan.codes, pool)
        model = Model(chain, plan.codes, pool, width, targets.outputs, plan.added)
    model.added.to(chain.device)
    model.head.to(chain.device)
    return model.eval()


def source_weights(loaded: Loaded) -> dict[str, Tensor]:
    """Return copies of the weights that layers are pulled to, by name."""
    parameters = loaded.chain.network.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in parameters}


def calibrate_random_layers(samples: Samples, indices: Sequence[int], seed: int) -> None:
    """Give random layers that will be frozen the batch statistics that belong to them.

    That is the control experiment. One pass over the training images, before anything is frozen.
    """
    chain, plan = samples.loaded.chain, samples.loaded.plan
    reused = chain.resolve(plan.reused or 0)
    highest = max(
        (chain.resolve(phase.frozen or 0) for phase in plan.phases), key=attrgetter("depth")
    )
    if highest.depth <= reused.depth:
        return
    part = segment(chain, chain.cuts[0], highest)
    known = {k for k, depth in chain.depth_of_state().items() if depth <= reused.depth}
    norms = [norm for name, norm in batch_norms(part) if f"{name}.running_mean" not in known]
    if norms:
        failed = samples.unreadable(chain.cuts[0], indices)
        readable = [index for i, index in enumerate(indices) if i not in failed]
        order = np.random.default_rng(seed).permutation(len(readable))
        pixels = samples.at(chain.cuts[0], [readable[i] for i in order])
        parts = np.array_split(np.arange(len(order)), math.ceil(len(order) / CALIBRATION_BATCH))
        batches = (pixels.batch(rows.tolist(), 0)[0] for rows in parts)
        estimate_statistics(part, norms, batches)


def goes_by_held_out(loaded: Loaded) -> bool:
    """Say whether something is chosen that images which were trained on cannot choose.

    The weights of a phase that goes by a score, or a head that is solved for above layers which an
    earlier phase trained.
    """
    chain, plan = loaded.chain, loaded.plan
    trained = False
    for phase in plan.phases:
        if phase.chooses or (trained and not phase.epochs):
            return True
        frozen, kept = (chain.resolve(name or 0) for name in (phase.frozen or plan.kept, plan.kept))
        trained |= phase.epochs > 0 and frozen.depth < kept.depth
    return False


def held_out_rows(
    loaded: Loaded,
    images: ImageSet,
    audit: Audit,
    indices: Sequence[int],
    targets: Targets,
    groups: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the positions to hold out: none, if nothing goes by a score."""
    if not goes_by_held_out(loaded):
        return np.array([], dtype=np.int64)
    in_val = set(audit.split.val)
    held_out = np.array([i for i, index in enumerate(indices) if index in in_val], dtype=np.int64)
    if len(held_out):
        return held_out
    if len(np.unique(groups)) < HELD_OUT:
        log.warning("fewer than %d groups: images are held out within them", HELD_OUT)
        groups = np.arange(len(indices))
    held_out = stratified_folds(targets.strata(), groups, HELD_OUT, seed)[0]
    if targets.kind == "classes":  # a class that is held out whole could not be learned
        left = np.delete(targets.values, held_out)
        held_out = held_out[np.isin(targets.values[held_out], left)]
    if not len(held_out):
        raise DataError(
            f"{images.location}: no class has an image to spare for choosing; add images, or give"
            " a plan without stop, gradual phases and heads that are solved for after training"
        )
    return held_out


def groups_of(images: ImageSet, audit: Audit, indices: Sequence[int]) -> np.ndarray:
    """Return what must not be divided: the group of each image, or else what it shows.

    Images without a given group are one where they are the same or nearly so.
    """
    first = {index: cluster[0] for cluster in audit.lookalikes for index in cluster}
    shown = [audit.digests[first.get(index, index)] for index in indices]
    return np.array(
        [images.items[i].group or str(digest) for i, digest in zip(indices, shown, strict=True)]
    )


def finish(fitting: Fitting, lost: tuple[tuple[str, str], ...]) -> Fitted:
    """Return what a fit gave."""
    loaded, samples = fitting.loaded, fitting.samples
    frozen = loaded.chain.cuts[
        min(fitting.lowest, loaded.chain.resolve(loaded.plan.kept or 0).depth)
    ]
    top = Top(loaded.chain, fitting.model, loaded.plan.codes, frozen)
    return Fitted(
        fitting.model.eval(),
        top.eval(),
        frozen,
        tuple(fitting.records),
        samples,
        fitting.indices,
        lost,
        fitting.before,
    )
