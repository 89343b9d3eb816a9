"""The verb that makes backbones: `pretrain`."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from topwork.advice.depth_codes import collect
from topwork.advice.source_card import statistics_of, write_card
from topwork.api import require_free
from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, untracked
from topwork.data.unlabeled import audit_photos, open_photos
from topwork.errors import BackboneError, DataError, PlanError, UsageError
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.interruption import requests_to_stop
from topwork.learn.samples import Samples
from topwork.network.backbone_folder import save_backbone
from topwork.network.device import choose_device
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.material import Material
from topwork.pretraining.methods import PAPERS, outputs_of, recipe_of, run
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Progress, Stages
from topwork.pretraining.supervised import SupervisedRecipe
from topwork.report.pretraining_pictures import draw_pretraining
from topwork.report.pretraining_words import card_in_words
from topwork.report.record import Clock, write_json
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import LAYOUT

log = logging.getLogger("topwork")

HELD_OUT = 0.05
"""Share of the images that are held out to judge epochs by."""
MOST_HELD_OUT = 2000
DESCRIBED = 2000
"""Images whose codes' statistics go with the backbone."""
RECORD, CARD = "record.json", "README.md"


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be made, complete.

    Attributes:
        method: its name.
        recipe: how.
        plan: which backbone at which size, and how much of it is to start from weights.
        backbone: that.
        images: what to learn from.
        audited: what an audit found of them.
        execution: how frozen layers are run.
        seed: of everything that is drawn.
        teacher: a network with pretrained weights to learn from, if the method wants one.
    """

    method: str
    recipe: Recipe
    plan: Plan
    backbone: Backbone
    images: ImageSet
    audited: Audit
    execution: Execution
    seed: int
    teacher: Backbone | None = None


def pretrain(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    method: str,
    backbone: str | Backbone,
    weights: str | Path | None = None,
    teacher: str | Backbone | None = None,
    teacher_weights: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    epochs: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
    runtime: str = "auto",
    decoding: str = "fast",
    cache: str = "auto",
    resume: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Make a backbone: train a network on images, their labels mostly left aside.

    Of labeled images only the training part is used, so that a fit of the same images can be tested
    honestly. What is made is a folder that `topwork.fit` and its kin take as ``backbone``.

    Args:
        data: as `topwork.fit` takes it, or a folder or zip of images that lie in it anyhow.
        out: the backbone folder to make; must not exist, or be empty.
        method: one of `topwork.pretraining.methods.RECIPES`.
        backbone: the architecture; it starts from random weights.
        weights: a file with weights to start from instead.
        teacher: the pretrained network to distill, a name or a folder.
        teacher_weights: a file with the teacher's weights instead of those published for it.
        recipe: changes to the method's recipe, or a JSON file that holds them; ``arguments`` in it
            are those of the architecture's builder, such as {"widths": [500, 500]} of dense stacks.
        size: height and width of the images that the network sees, in pixels.
        epochs: of each stage, instead of the recipe's.
        rate: the highest learning rate, instead of the recipe's.
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
    asked_out, out = Path(out), Path(out).resolve()
    require_free(asked_out)
    unfinished = out.with_name(f"{out.name}.unfinished")
    checkpoints = Checkpoints(unfinished / "checkpoints")
    if checkpoints.files() and not resume:
        raise UsageError(
            f"--out {asked_out}: a pretraining of it was interrupted; --resume goes on with the"
            f" very same; for another, remove {unfinished}"
        )
    chosen, arguments = settle_recipe(recipe_of(method), recipe, epochs, rate)
    if not isinstance(backbone, Backbone):
        backbone = find_backbone(backbone, weights=weights)
    if arguments:
        spec = replace(backbone.spec, arguments={**backbone.spec.arguments, **arguments})
        backbone = replace(backbone, spec=spec)
    taught_by = settle_teacher(method, teacher, teacher_weights)
    plan = Plan(
        backbone.name,
        reused=None if weights else "0",
        phases=(Phase(frozen="input", epochs=1),),
        input_size=size,
    )
    execution = Execution(choose_device(device), runtime, decoding, cache)
    images = data if isinstance(data, ImageSet) else open_photos(data)
    audited = audit_photos(images, track)
    clock.lap("audit")
    request = Request(method, chosen, plan, backbone, images, audited, execution, seed, taught_by)
    material = make_material(request, checkpoints, track)
    if resume:
        material.stages.restore()
    work(material, request, track)
    clock.lap("training")

    staged = unfinished / f"backbone-{os.getpid()}"
    try:
        record = finish(material, request, staged, clock, track)
        record["backbone"] = str(asked_out)
        write_json(staged / RECORD, record)
        words = card_in_words(record, material.loaded.backbone.spec.architecture)
        (staged / CARD).write_text(words, encoding="utf-8")
        if out.exists():
            out.rmdir()  # empty, as was checked
        staged.rename(out)
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out {asked_out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):
            unfinished.rmdir()  # unless it holds checkpoints
    return record


def settle_recipe(
    default: Recipe,
    changes: str | Path | Mapping[str, Any] | None,
    epochs: int | None,
    rate: float | None,
) -> tuple[Recipe, dict[str, Any]]:
    """Return a recipe with what is asked for, and arguments for the architecture's builder.

    Raises:
        PlanError: if something in it makes no sense.
        UsageError: if the file cannot be read.
    """
    asked: dict[str, Any] = {}
    if isinstance(changes, Mapping):
        asked = dict(changes)
    elif changes is not None:
        try:
            asked = json.loads(Path(changes).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--recipe {changes} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise PlanError(f"--recipe {changes} is not readable JSON ({error})") from error
        if not isinstance(asked, dict):
            raise PlanError(f"--recipe {changes} holds no object; write it like {{}}")
    asked.pop("method", None)  # a backbone's record names it beside
    arguments = asked.pop("arguments", {})
    if not isinstance(arguments, dict):
        raise PlanError(
            f'recipe: arguments is {arguments!r}; give an object such as {{"depth": 4}}'
        )
    phase = {"epochs": epochs, "rate": rate}
    named = {key: value for key, value in phase.items() if value is not None}
    if named:
        asked["phase"] = {**asked.get("phase", {}), **named}
    return default.changed(asked), arguments


def settle_teacher(
    method: str, teacher: str | Backbone | None, weights: str | Path | None
) -> Backbone | None:
    """Return the network to distill, if that is the method.

    Raises:
        UsageError: if there is none to distill, or one is named for another method.
        BackboneError: if it cannot be found, or nothing is known of its weights.
    """
    if method != "distill":
        if teacher or weights:
            raise UsageError(
                f"--teacher belongs to --method distill, not to {method}; leave it out"
            )
        return None
    if teacher is None:
        raise UsageError("--method distill learns from another network; name it with --teacher")
    found = teacher if isinstance(teacher, Backbone) else find_backbone(teacher, weights=weights)
    if found.weights is None:
        raise BackboneError(
            f"--teacher {found.name}: no pretrained weights are known for it; give a file with"
            " --teacher-weights"
        )
    return found


def make_material(request: Request, checkpoints: Checkpoints, track: Track) -> Material:
    """Build the network and divide the images into those to learn from and those held out."""
    names, classes = classes_of(request.images)
    teacher = None
    if request.teacher:
        taught_by = load_backbone(request.teacher, Plan(request.teacher.name))
        teacher = Samples(taught_by, request.images, request.audited, request.execution, track)
    outputs = outputs_of(request.recipe, names, teacher)
    backbone = with_outputs(request.backbone, outputs) if outputs else request.backbone
    loaded = load_backbone(backbone, request.plan, request.seed)
    loaded.chain.network.to(request.execution.device).to(memory_format=LAYOUT)
    samples = Samples(loaded, request.images, request.audited, request.execution, track)
    split = request.audited.split
    everything = np.array(sorted((*split.train, *split.val)))
    failed = samples.unreadable(loaded.chain.cuts[0], everything.tolist())
    usable = np.delete(everything, list(failed))
    if len(usable) < 2:
        raise DataError(f"{request.images.location}: fewer than two images to learn from; add some")
    drawn = np.random.default_rng(request.seed).permutation(usable)
    count = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(usable))))
    digests = sorted(str(request.audited.digests[index]) for index in usable)
    identity = {
        "method": request.method,
        "recipe": request.recipe.to_dict(),
        "backbone": loaded.backbone.spec.to_dict(),
        "images": digests_digest(digests),
        "labels": None if classes is None else digests_digest([str(c) for c in classes[usable]]),
        "weights": loaded.weights["sha256"] if loaded.weights else None,
        "teacher": identity_of(teacher.loaded) if teacher else None,
        "seed": request.seed,
        "device": request.execution.device.type,
        "decoding": request.execution.decoding,
    }
    return Material(
        loaded,
        samples,
        tuple(sorted(drawn[count:].tolist())),
        tuple(sorted(drawn[:count].tolist())),
        classes,
        names,
        request.seed,
        Stages(loaded.chain.network, request.seed, identity, checkpoints, track),
        teacher,
    )


def with_outputs(backbone: Backbone, outputs: int) -> Backbone:
    """Return a backbone whose own classifier has so many outputs."""
    arguments = {**backbone.spec.arguments, "num_classes": outputs}
    return replace(backbone, spec=replace(backbone.spec, arguments=arguments))


def identity_of(teacher: Loaded) -> dict[str, Any]:
    """Return which network a teacher is, as plain data."""
    return {
        **teacher.backbone.spec.to_dict(),
        "weights_sha256": teacher.weights["sha256"] if teacher.weights else None,
        "license": teacher.backbone.about.get("license"),
    }


def classes_of(images: ImageSet) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return class names and the class of each image, -1 where it has none; None without classes.

    Where images have several labels, they have no class.
    """
    if images.multilabel or images.number_names or len(images.classes) < 2:
        return (), None
    number_of = {name: number for number, name in enumerate(images.classes)}
    classes = [number_of[item.labels[0]] if item.labels else -1 for item in images.items]
    return images.classes, np.array(classes, np.int64)


def digests_digest(digests: list[str]) -> str:
    """Return the SHA-256 of digests in a row."""
    import hashlib

    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def work(material: Material, request: Request, track: Track) -> None:
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
    material.chain.network.eval()


def in_words(progress: Progress) -> str:
    """Return a line about an epoch."""
    parts = [f"{progress.stage}, epoch {progress.epoch} of {progress.epochs}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.held_out is not None:
        parts.append(f"held out {progress.held_out:.4g}")
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in progress.found.items()]
    return ", ".join([*parts, f"{progress.seconds:.1f} s"])


def finish(
    material: Material, request: Request, staged: Path, clock: Clock, track: Track
) -> dict[str, Any]:
    """Write the backbone's folder, open it again, and describe what its source's codes are like."""
    card = card_of(material, request, clock)
    outputs = outputs_of(request.recipe, material.class_names, material.teacher)
    labels = material.class_names if isinstance(request.recipe, SupervisedRecipe) else ()
    classifier = outputs is not None
    save_backbone(staged, material.loaded, card, classifier=classifier, labels=labels)
    again = load_backbone(find_backbone(str(staged)), replace(request.plan, reused=None))
    indices = material.indices
    if len(indices) > DESCRIBED:
        rng = np.random.default_rng(request.seed)
        indices = tuple(np.sort(rng.choice(indices, DESCRIBED, replace=False)).tolist())
    again.chain.network.to(request.execution.device)
    codes = collect(again, request.images, request.audited, indices, request.execution, track)
    names = [cut.name for cut in codes.cuts]
    statistics = statistics_of(
        {name: codes.at(name) for name in names}, dict(zip(names, codes.pools, strict=True))
    )
    write_card(again, statistics)
    clock.lap("description")
    drawn = draw_pretraining(material.stages.records, material.stages.pictures, staged)
    return {
        **card,
        "epochs": material.stages.records,
        "pictures": drawn,
        "seconds": clock.total(),
        "times": clock.laps,
        "versions": {name: version(name) for name in ("topwork", "torch", "timm")},
    }


def card_of(material: Material, request: Request, clock: Clock) -> dict[str, Any]:
    """Return what goes with the weights: from what, how, when and how well they were made."""
    last: dict[str, dict[str, Any]] = {}
    for record in material.stages.records:
        last[record["stage"]] = {
            key: value for key, value in record.items() if key not in ("stage", "epoch", "epochs")
        }
    return {
        "method": request.method,
        "paper": PAPERS[request.method],
        "license": None,
        "source": request.images.location,
        **({"teacher": identity_of(material.teacher.loaded)} if material.teacher else {}),
        "images": len(material.indices),
        "held_out": len(material.held_out),
        "recipe": request.recipe.to_dict(),
        "arguments": material.loaded.backbone.spec.arguments,
        "seed": request.seed,
        "results": last,
        "training_seconds": round(sum(row["seconds"] for row in material.stages.records), 1),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {request.execution.device.type}",
    }
