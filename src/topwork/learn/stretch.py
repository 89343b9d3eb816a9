"""A stretch of training: one phase, or one step of a gradual one, with the cut at one depth."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from topwork.errors import PlanError
from topwork.learn.batch_norm import Statistics, choose_statistics
from topwork.learn.best import LEAST_GAIN, Best, fold, gain_of, is_better, reached
from topwork.learn.checkpoints import Checkpoint
from topwork.learn.fitting import Fitting, part, put, save
from topwork.learn.interruption import requests_to_stop
from topwork.learn.loop import Epoch, Training, judge, mixed_precision, seed_of, steps
from topwork.learn.metrics import proportion
from topwork.learn.objective import Scale, make_objective
from topwork.learn.optimizers import group_parameters, layers_of
from topwork.learn.range_test import find_rate
from topwork.network.chain import CutPoint
from topwork.network.model import Top
from topwork.phase import Phase

log = logging.getLogger("topwork")

CACHE_SIZED = 14 * 2**20
"""Bytes that the largest tensor between two blocks may have: small enough that forward and
backward pass find it in the processor's caches, which made training on two cores up to four times
as fast as batches of 32 (docs/log.md)."""


LOSSES = "held-out losses"  # beside the weights that a stretch began with


def train_stretch(
    fitting: Fitting,
    phase: Phase,
    number: int,
    frozen: CutPoint,
    before: Sequence[dict[str, Any]],
    stopped: Checkpoint | None,
) -> dict[str, Any]:
    """Train the layers above a cut, or go on where a checkpoint was written.

    Args:
        fitting: the fit; its model is trained in place.
        phase: how to train.
        number: of the phase, from 0.
        frozen: the cut.
        before: records of the phase's stretches that have ended.
        stopped: a checkpoint of this very stretch.

    Returns:
        the stretch's record, plain data.
    """
    facts: dict[str, Any] = stopped.facts if stopped else {"seconds": 0.0}
    started = time.perf_counter() - facts["seconds"]
    plan, samples = fitting.loaded.plan, fitting.samples
    device = samples.execution.device
    top = Top(fitting.loaded.chain, fitting.model, plan.codes, frozen)
    learned, scored = fitting.rows(held_out=False), fitting.rows(held_out=True)
    require_map_for_cutmix(phase, number, frozen, top)
    inputs = samples.at(
        frozen,
        [fitting.indices[row] for row in learned],
        plan.views,
        phase.epochs,
        settled=facts.get("inputs"),
    )
    targets = fitting.targets.tensor().to(device)
    scale = Scale.of(targets[learned]) if fitting.targets.kind == "numbers" else None
    if scale:
        targets = scale.apply(targets)
        if not stopped:  # what a checkpoint holds is scaled already
            scale.enter(top.head)
    validation = None
    if phase.chooses:
        validation = (
            samples.at(frozen, [fitting.indices[row] for row in scored], settled=inputs.settled),
            targets[scored],
        )
    training, statistics = make_training(fitting, phase, number, frozen, top, targets[learned])
    fitted = bool(number or before)  # else the head is random, and there is nothing to go back to
    tested = facts.get("range_test")
    if phase.rate is None:
        if tested is None:
            tested = find_rate(training, inputs, targets[learned]).record()
        training = replace(training, rate=tested["rate"])
    if stopped:
        training.restore(part(stopped.tensors, "training"), facts["training"])
        best = Best(**facts["best"], tensors=part(stopped.tensors, "best"))
        began = part(stopped.tensors, "began")
        start = facts["start"]
    else:
        best, began, start = Best(None, 1.0, 0.0, 0, {}), {}, None
        if validation:
            found = judge(training, *validation)
            best = Best.before(found, copies(fitting), fitted=fitted)
            began = {**best.tensors, LOSSES: found.losses}
            right = None if fitting.targets.kind == "numbers" else found.accuracy
            start = {"loss": found.tempered_loss, "accuracy": right}

    def save_now() -> None:
        save(
            fitting,
            {
                "phase": number,
                "stretches": list(before),
                "start": start,
                "range_test": tested,
                "inputs": inputs.settled,
                "best": best.facts(),
                "seconds": time.perf_counter() - started,
            },
            training,
            best.tensors,
            began,
        )

    announce(number, frozen, training, statistics, len(scored) if validation else 0)
    steps_left = math.ceil(len(learned) / phase.batch) * (phase.epochs - len(training.epochs))
    bar = samples.track(range(steps_left - training.step), f"phase {number + 1}: training")
    reason = why_stop(phase, training.epochs, best)
    going_on = [] if reason else steps(training, inputs, targets[learned], validation)
    with requests_to_stop() as request:
        for _, epoch in zip(bar, going_on, strict=False):
            if epoch:
                log.info("%s", in_words(epoch, phase.epochs, fitting.targets.kind))
            if epoch and is_better(epoch, best, phase):
                with training.averaged():
                    best = Best.at(epoch, copies(fitting))
            if fitting.checkpoints and fitting.checkpoints.due():
                save_now()
            if request.signal:
                break
            reason = why_stop(phase, training.epochs, best)
            if epoch and reason:
                break
        if request.signal and fitting.checkpoints:
            save_now()
            log.warning("stopped, and saved; the same command with --resume goes on from here")
        request.obey()
    gain, improved = None, True
    if validation:
        put(fitting.model, best.tensors)
        training.average.clear()  # the best weights are averages already
        if best.epoch and fitted and not phase.gradual and not reached(phase, best.accuracy):
            found, groups = judge(training, *validation), fitting.groups_held_out()
            groups = None if groups is None else groups[found.rows.numpy()]
            gain = gain_of(began[LOSSES], found.losses, groups)
        improved = best.epoch > 0 and (gain is None or gain >= LEAST_GAIN)
        if improved:
            fold(best.temperature, top.head, training.objective.learned)
        elif best.epoch:
            put(fitting.model, {name: value for name, value in began.items() if name != LOSSES})
    elif training.average:
        training.network.load_state_dict(training.average)
    if scale:
        scale.leave(top.head)
    return {
        "frozen": frozen.name,
        "images": len(learned),
        "held_out": len(scored) if validation else 0,
        "rate": training.rate,
        "range_test": tested,
        "groups": [group.record(training.rate) for group in training.groups],
        "batch_norm": statistics.record(),
        "inputs": inputs.settled,
        "at_once": training.at_once,
        "precision": "bfloat16" if mixed_precision(device, phase.precision)._enabled else "float32",
        "start": start,
        "epochs": [asdict(epoch) for epoch in training.epochs],
        "best": {
            "epoch": best.epoch,
            "loss": best.loss,
            "temperature": best.temperature,
            "accuracy": proportion(round(best.accuracy * len(scored)), len(scored))
            if fitting.targets.kind != "numbers"
            else {"value": None, "interval": None, "n": len(scored)},
        }
        if validation
        else None,
        "stopped": reason,
        "gain": gain,
        "improved": improved,
        "seconds": time.perf_counter() - started,
    }


def announce(
    number: int, frozen: CutPoint, training: Training, statistics: Statistics, held_out: int
) -> None:
    """Tell what is about to be trained, group by group."""
    log.info(
        "phase %d: training what lies above %s%s",
        number + 1,
        frozen.name,
        f"; {held_out} images are held out" if held_out else "",
    )
    for group in training.groups:
        layers = layers_of(group.names)
        first, last = layers[0], layers[-1]
        log.info(
            "  rate %.2g, %s: %s layers, %s%s",
            training.rate * group.rate,
            "weights decay" if group.decays else "no decay",
            f"{len(layers)} {'reused' if group.reused else 'new'}",
            first,
            f" to {last}" if len(layers) > 1 else "",
        )
    log.info("  batch norm: %s", statistics.record())


def in_words(epoch: Epoch, epochs: int, kind: str) -> str:
    """Return an epoch as one line."""
    text = f"  epoch {epoch.number} of {epochs}: loss {epoch.loss:.4f}"
    if epoch.tempered_loss is not None:
        text += f", held out {epoch.tempered_loss:.4f}"
        if kind != "numbers":
            text += f", {epoch.validation_accuracy:.1%} right"
    return f"{text}, {epoch.seconds:.1f} s"


def require_map_for_cutmix(phase: Phase, number: int, frozen: CutPoint, top: Top) -> None:
    """Refuse to cut rectangles from what has none.

    Raises:
        PlanError: naming the depth.
    """
    layout = frozen.layout
    is_map = layout.kind == "map" and not layout.channels_last and top.takes_map
    if phase.mix == "cutmix" and not (is_map and len(top.pools) == top.codes_read):
        raise PlanError(
            f"phase {number + 1}: cutmix needs a map alone, channels first, which the layers above"
            f" {frozen.name} do not take; use mixup, or freeze less"
        )


def make_training(
    fitting: Fitting, phase: Phase, number: int, frozen: CutPoint, top: Top, targets: Tensor
) -> tuple[Training, Statistics]:
    """Return the training of a top, ready for its first step, and what its batch norms do."""
    chain, plan = fitting.loaded.chain, fitting.loaded.plan
    parameters = top.layer_parameters()
    reused = chain.resolve(plan.reused or 0).depth
    depth_of = {name: depth for name, depth in chain.depth_of_state().items() if depth <= reused}
    own = {name: depth for name, depth in depth_of.items() if name in parameters}
    norms = [
        (module, f"{name}.running_mean" in depth_of)
        for name, module in top.layers()
        if isinstance(module, _BatchNorm)
    ]
    statistics = choose_statistics(norms, phase, len(targets))
    outputs = top.head.out_features
    training = Training(
        top,
        phase,
        phase.rate or 1.0,
        group_parameters(parameters, own, phase),
        make_objective(fitting.targets.kind, targets, outputs, phase),
        statistics.kept,
        images_at_once(fitting, phase, frozen, statistics),
        fitting.source,
        seed_of(fitting.seed, number, frozen.depth),
    )
    return training, statistics


def images_at_once(
    fitting: Fitting, phase: Phase, frozen: CutPoint, statistics: Statistics
) -> int | None:
    """Return how many images to take through the network together; None for the whole batch.

    Batch norms that learn need the whole batch. Otherwise a step's gradient is the same sum
    however it is divided, and on a CPU parts that fit its caches are much faster.
    """
    if phase.at_once or statistics.learned or fitting.samples.execution.device.type != "cpu":
        return phase.at_once
    cuts = fitting.loaded.chain.cuts[max(1, frozen.depth) :]
    # Inside its blocks a transformer holds several times what crosses between them.
    largest = max(cut.bytes * (6 if cut.layout.kind == "tokens" else 1) for cut in cuts)
    return min(phase.batch, 2 ** int(math.log2(max(1, CACHE_SIZED // largest))))


def why_stop(phase: Phase, epochs: Sequence[Epoch], best: Best) -> str | None:
    """Say why a stretch ends here; None if it goes on."""
    stop = phase.stop
    if stop is None or not epochs:
        return None
    accuracy = epochs[-1].validation_accuracy
    if reached(phase, accuracy):
        return f"validation accuracy {accuracy:.3f} reached {stop.accuracy:g}"
    if stop.patience is not None and not phase.gradual:
        since = epochs[-1].number - best.epoch
        if since >= stop.patience:
            return f"no better validation score in {since} epochs"
    return None


def copies(fitting: Fitting) -> dict[str, Tensor]:
    """Return copies of all tensors that the fit may have changed."""
    return {name: value.detach().clone() for name, value in fitting.changed().items()}
