"""The verb that makes backbones: `pretrain`."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from topwork.advice.depth_codes import collect
from topwork.advice.source_card import statistics_of, write_card
from topwork.api import require_free
from topwork.data.findings import listed
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, untracked
from topwork.data.unlabeled import audit_photos, open_photos
from topwork.errors import UsageError
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.interruption import requests_to_stop
from topwork.network.backbone_folder import save_backbone
from topwork.network.device import choose_device
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import REACHES, Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.material import Material, drawn_rows
from topwork.pretraining.methods import METHODS, learned_up_to, outputs_of, recipe_of, run
from topwork.pretraining.preparing import identity_of, load_networks, make_material
from topwork.pretraining.request import (
    Request,
    reused_of,
    settle_network,
    settle_recipe,
    settle_teacher,
)
from topwork.pretraining.stages import Progress
from topwork.pretraining.supervised import SupervisedRecipe
from topwork.report.pretraining_pictures import draw_pretraining
from topwork.report.pretraining_words import card_in_words, cell, measured
from topwork.report.record import Clock, write_json
from topwork.staging import sole_worker, staged_folder
from topwork.trunk.execution import Execution

log = logging.getLogger("topwork")

DESCRIBED = 2000
"""Images whose codes' statistics go with the backbone."""
UNKNOWN = "one that is not known"
"""Said of a license."""
RECORD, CARD = "record.json", "README.md"


def pretrain(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    method: str,
    backbone: str | Path | Backbone,
    weights: str | Path | None = None,
    teacher: str | Path | Backbone | None = None,
    teacher_weights: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    epochs: int | None = None,
    rate: float | None = None,
    half: bool = False,
    seed: int = 0,
    device: str = "auto",
    runtime: str = "auto",
    decoding: str = "fast",
    cache: str = "auto",
    resume: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Make a backbone: train a network on images, their labels mostly left aside.

    Of labeled images only the training part is used, so that a fit of the same images is tested
    honestly; it chooses honestly, too, unless the method learned their labels (supervised) and the
    data brings no val/ to choose by, which is warned of. What is made is a folder that
    `topwork.fit` and its kin take as ``backbone``.

    Args:
        data: as `topwork.fit` takes it, or a folder or zip of images that lie in it anyhow.
        out: the backbone folder to make; must not exist, or be empty.
        method: one of `topwork.pretraining.methods.RECIPES`.
        backbone: the architecture, which starts from random weights; or a folder with weights to
            start from, or "topwork:rootstock", which has such.
        weights: a file with weights to start from.
        teacher: the pretrained network to distill, a name or a folder.
        teacher_weights: a file with the teacher's weights instead of those published for it.
        recipe: changes to the method's recipe, or a JSON file that holds them; ``arguments`` in it
            are those of the architecture's builder, such as {"widths": [500, 500]} of dense stacks.
        size: height and width of the images that the network sees, in pixels.
        epochs: of each stage, instead of the recipe's.
        rate: the highest learning rate, instead of the recipe's.
        half: write matrices and kernels in half precision, which halves the file; loaded, they are
            float32 again.
        seed: of random weights, order and all that is drawn.
        device: "cpu", "cuda", "mps" or "auto".
        runtime: what runs frozen layers, see `topwork.trunk.execution.Execution`.
        decoding: of images, likewise.
        cache: what is kept of them and of frozen layers' outputs, likewise.
        resume: go on with the same pretraining where it was interrupted. What it saved lies beside
            ``out``, in a folder named ``OUT.unfinished``.
        track: shows progress.

    Returns:
        the record, which ``record.json`` holds too: plain data.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    clock = Clock()
    out = Path(out)
    require_free(out)
    with sole_worker(out) as unfinished:
        checkpoints = Checkpoints(unfinished / "checkpoints")
        if checkpoints.files() and not resume:
            raise UsageError(
                f"--out {out}: a pretraining of it was interrupted or failed; --resume goes on"
                f" with the very same; for another, remove {unfinished}"
            )
        chosen, arguments = settle_recipe(method, recipe_of(method), recipe, epochs, rate)
        found = find_backbone(backbone, weights=weights)
        found, channels = settle_network(found, arguments)
        taught_by = settle_teacher(method, teacher, teacher_weights)
        plan = Plan(
            found.name,
            reused=reused_of(found),
            phases=(Phase(frozen="input", epochs=1),),
            input_size=size,
            channels=channels,
        )
        execution = Execution(choose_device(device), runtime, decoding, cache)
        images = data if isinstance(data, ImageSet) else open_photos(data)
        request = Request(
            method, chosen, plan, found, images, execution, seed, taught_by, half, arguments
        )
        networks = load_networks(request)
        began, up_to = networks.loaded.weights, networks.loaded.plan.reused
        first = f"{began['file']}, up to {up_to}" if began else "random weights"
        log.info("%s starts from %s", found.name, first)
        clock.lap("backbone")
        audited = audit_photos(images, track)
        for line in audited.lines():
            log.info("%s", line)
        if aside := len(audited.split.val) + len(audited.split.test):
            log.info("%d of them are left aside, as a fit would choose and test with them", aside)
        if isinstance(chosen, SupervisedRecipe) and not audited.split.val:
            log.warning(
                "--method supervised learns the labels of the whole training part; to fit the same"
                " images afterwards, give a val/ to choose by (other images are not concerned)"
            )
        clock.lap("audit")
        material = make_material(request, networks, audited, checkpoints, track)
        if material.lost:
            log.warning("%s", listed(material.lost, "cannot be decoded, left out", ": ".join))
        if resume:
            material.stages.restore()
            clock.begin_earlier(material.stages.before)
        work(material, request)
        clock.lap("training")

        with staged_folder(out, unfinished, [checkpoints.folder]) as staged:
            record = finish(material, request, staged, clock, track)
            record["backbone"] = str(out)
            write_json(staged / RECORD, record)
            words = card_in_words(record, material.loaded.backbone.spec.architecture)
            (staged / CARD).write_text(words, encoding="utf-8")
    return record


def work(material: Material, request: Request) -> None:
    """Run the method, tell of each epoch, save whenever it is due, and stop when asked to.

    Raises:
        KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM, once everything is saved.
    """
    stages = material.stages
    with requests_to_stop() as asked:
        for progress in run(material, request.recipe):
            if progress:
                stages.keep(progress)
                log.info("%s", in_words(progress))
            if stages.checkpoints and (stages.checkpoints.due() or asked.signal):
                stages.save()
            if asked.signal:
                log.warning("stopped, and saved; the same command with --resume goes on from here")
                break
        asked.obey()
    stages.close()
    stages.save()
    stages.stop_clock()
    material.chain.network.eval()


def in_words(progress: Progress) -> str:
    """Return a line about an epoch."""
    parts = [f"{progress.stage}, epoch {progress.epoch} of {progress.epochs}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.held_out is not None:
        parts.append(f"held out {progress.held_out:.4g}")
    parts += [
        f"{key.replace('_', ' ')} {cell(progress.found, key)}" for key in measured([progress.found])
    ]
    return ", ".join([*parts, f"{progress.seconds:.1f} s"])


def finish(
    material: Material, request: Request, staged: Path, clock: Clock, track: Track
) -> dict[str, Any]:
    """Write the backbone's folder, open it again, and describe what its source's codes are like."""
    chain = material.chain
    up_to = learned_up_to(request.recipe, chain)  # what lies above would not go with it
    card = card_of(material, request) | {REACHES: None if up_to is chain.top else up_to.name}
    teacher = material.teacher.loaded if material.teacher else None
    labels = material.class_names if isinstance(request.recipe, SupervisedRecipe) else ()
    save_backbone(
        staged,
        material.loaded,
        card,
        classifier=outputs_of(request.recipe, material.class_names, teacher) is not None,
        up_to=up_to,
        labels=labels,
        half=request.half,
    )
    plan = replace(request.plan, reused=None, kept=card[REACHES])
    again = load_backbone(find_backbone(str(staged)), plan)
    indices = [material.indices[row] for row in drawn_rows(DESCRIBED, len(material.indices))]
    again.chain.network.to(request.execution.device)
    audited = material.samples.audit
    codes = collect(again, request.images, audited, indices, request.execution, track)
    names = [cut.name for cut in codes.cuts]
    statistics = statistics_of(
        {name: codes.at(name) for name in names}, dict(zip(names, codes.pools, strict=True))
    )
    write_card(again, statistics)
    clock.lap("description")
    drawn = draw_pretraining(material.stages.records, material.stages.pictures, staged)
    return {
        **card,
        "data": audited.to_dict()
        | {"summary": audited.lines(), "lost_later": [list(entry) for entry in material.lost]},
        "epochs": material.stages.records,
        "pictures": drawn,
        "seconds": clock.total(),
        "times": clock.laps,
    }


def started_from(loaded: Loaded) -> dict[str, Any] | None:
    """Return which weights a network began with, up to where; None for random ones."""
    if loaded.weights is None:
        return None
    return {"name": loaded.backbone.name, "up_to": loaded.plan.reused, **loaded.weights}


def license_of(material: Material) -> str:
    """Return the licenses of the weights that these are made from, a teacher's among them.

    Nothing if all of them are unknown, or there are no such weights.
    """
    teacher = [material.teacher.loaded] if material.teacher else []
    sources = [one.backbone.about for one in (material.loaded, *teacher) if one.weights]
    found = {about.get("license") or UNKNOWN for about in sources}
    return "" if found == {UNKNOWN} else " and ".join(sorted(found))


def source_of(teacher: Loaded) -> dict[str, Any]:
    """Return which network teaches, by its name too."""
    return {"name": teacher.backbone.name, **identity_of(teacher)}


def card_of(material: Material, request: Request) -> dict[str, Any]:
    """Return what goes with the weights: from what, how, when and how well they were made."""
    last: dict[str, dict[str, Any]] = {}
    for record in material.stages.records:
        last[record["stage"]] = {
            key: value for key, value in record.items() if key not in ("stage", "epoch", "epochs")
        }
    loaded, execution, audited = material.loaded, request.execution, material.samples.audit
    return {
        "method": request.method,
        "paper": METHODS[request.method].paper,
        "source": request.images.location,
        "architecture": loaded.backbone.spec.to_dict(),
        "preprocessing": loaded.backbone.preprocessing.to_dict(),
        "started_from": started_from(loaded),
        **({"license": license} if (license := license_of(material)) else {}),
        **({"teacher": source_of(material.teacher.loaded)} if material.teacher else {}),
        "images": len(material.indices),
        "held_out": len(material.held_out),
        "left_aside": len(audited.split.val) + len(audited.split.test),
        "recipe": request.recipe_in_full(),
        "seed": request.seed,
        "execution": {
            "device": execution.device.type,
            "runtime": execution.runtime,
            "decoding": execution.decoding,
            "cache": execution.cache,
        },
        "results": last,
        "measures": METHODS[request.method].measures,
        "training_seconds": round(material.stages.elapsed(), 1),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {execution.device.type}",
        "versions": {name: version(name) for name in ("topwork", "torch", "timm")},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
