"""The verbs of topwork as functions; the command line is a thin face of them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from topwork.data.audit import Audit, audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import Track, untracked
from topwork.errors import DataError, ImageError, UnsupportedError, UsageError
from topwork.learn.fit import (
    Fitted,
    digests_of,
    fit_frozen,
    labels_of,
    require_all_frozen,
    require_fittable,
)
from topwork.named_plans import named_plan
from topwork.network.codes import source_pool
from topwork.network.device import choose_device
from topwork.network.folder import save_model
from topwork.network.loading import build_chain, load_backbone
from topwork.network.predictor import Predictor, load
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.report.record import (
    RECORD,
    Clock,
    facts_of_fit,
    headline,
    write_json,
    write_predictions,
    write_split,
)
from topwork.trunk.extraction import extract
from topwork.trunk.fingerprint import choose_runtime


def make_plan(
    plan: str | Path | Plan = "auto",
    *,
    backbone: str | None = None,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str | None = None,
) -> Plan:
    """Return the plan that some options ask for.

    Args:
        plan: a plan, its JSON file, or a name: "features", "warmup", "partial", "finetune",
            "scratch"; "auto" means "features" for now.
        backbone: the network; may be left out where the plan names one.
        kept: a depth, as in `Plan`.
        reused: likewise.
        frozen: likewise, phase by phase.
        head: likewise.

    Raises:
        UsageError: if options contradict a plan that is complete in itself.
        PlanError: if the plan cannot be read or makes no sense.
    """
    if isinstance(plan, str) and not plan.endswith(".json") and not Path(plan).is_file():
        if backbone is None:
            raise UsageError("no backbone is named; give --backbone (`topwork zoo` lists some)")
        name = "features" if plan == "auto" else plan
        return named_plan(
            name, backbone, kept=kept, reused=reused, frozen=frozen, head=head or "softmax"
        )
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    options = {"--kept": kept, "--reused": reused, "--frozen": frozen, "--head": head}
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} contradicts a complete plan; change it there instead")
    return loaded if backbone is None else replace(loaded, backbone=backbone)


def fit(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    plan: str | Path | Plan = "auto",
    backbone: str | Backbone | None = None,
    weights: str | Path | None = None,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str | None = None,
    seed: int = 0,
    device: str = "auto",
    strict: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Fit a plan to images and write a run folder.

    Choosing is done inside the training part. The test part is looked at once, with the model
    that is shipped: its folder is written, opened again, and scored.

    Args:
        data: a folder, zip, .npz or manifest, as `topwork.data.items.open_images` takes it.
        out: the run folder to make; must not exist, or be empty.
        plan: see `make_plan`, also for backbone, kept, reused, frozen and head.
        backbone: a name, see `topwork.network.zoo.find_backbone`, or what that returns.
        weights: a file with the backbone's pretrained weights.
        kept: a depth.
        reused: a depth.
        frozen: depths.
        head: the kind of head.
        seed: of folds and random weights.
        device: "cpu", "cuda", "mps" or "auto".
        strict: make any finding about bad images an error.
        track: shows progress.

    Returns:
        the record, which ``record.json`` holds too: plain data with ``metric``, ``value``,
        ``interval``, ``n``, ``accuracy`` and ``seconds`` on top.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    clock = Clock()
    asked_out, out = out, Path(out).resolve()
    require_free(Path(asked_out))
    name = backbone.name if isinstance(backbone, Backbone) else backbone
    asked = make_plan(plan, backbone=name, kept=kept, reused=reused, frozen=frozen, head=head)
    require_fittable(asked)
    runtime = choose_runtime(choose_device(device))
    images = data if isinstance(data, ImageSet) else open_images(data)
    if images.multilabel:
        raise UnsupportedError(
            f"{images.location}: images with several labels are not fitted yet; give one label"
            " column"
        )
    if not isinstance(backbone, Backbone):
        backbone = find_backbone(asked.backbone, weights=weights)
    loaded = load_backbone(backbone, asked, seed)
    require_all_frozen(loaded.plan)
    clock.lap("backbone")
    audited = audit(images, strict=strict, track=track)
    if not audited.split.test:
        raise DataError(f"{images.location}: no image is left to test on; add images")
    clock.lap("audit")
    fitted = fit_frozen(loaded, images, audited, runtime, seed, track)
    clock.lap("codes and head")

    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        save_model(partial / "model", fitted.model, loaded, images.classes)
        predictor = load(partial / "model")
        tested, probabilities, lost = score(predictor, images, audited.split.test, track, audited)
        if not tested:
            raise DataError(f"{images.location}: no test image can be read any more; run again")
        clock.lap("test")
        cached = compare_with_cache(fitted, images, audited, tested, probabilities)
        clock.lap("comparison")
        lost += [(images.items[fitted.indices[i]].name, r) for i, r in fitted.codes.failed.items()]
        record = {
            **headline(probabilities, labels_of(images, tested), images.classes, seed),
            "seconds": clock.total(),
            "run": str(asked_out),
            **facts_of_fit(loaded, fitted, audited, images, lost, clock, seed),
            "cached_codes": cached,
        }
        write_split(partial / "split.csv", images, audited)
        write_predictions(partial / "predictions.csv", images, tested, probabilities)
        write_json(partial / RECORD, record)
        if out.exists():
            out.rmdir()  # empty, as was checked
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out {asked_out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def evaluate_model(
    model: str | Path,
    data: str | Path | ImageSet,
    *,
    seed: int = 0,
    device: str = "auto",
    track: Track = untracked,
) -> dict[str, Any]:
    """Score a model folder on labeled images, all of them, whatever their split.

    Returns:
        plain data: as the record of `fit`, ``test`` included.

    Raises:
        DataError: if the images have labels that the model does not know.
        ModelError: if the model cannot be opened.
    """
    clock = Clock()
    predictor = load(model, device)
    images = data if isinstance(data, ImageSet) else open_images(data)
    if images.multilabel:
        raise UnsupportedError(f"{images.location}: several labels are not scored yet")
    unknown = sorted(set(images.classes) - set(predictor.labels))
    if unknown:
        raise DataError(
            f"{images.location}: the model does not know the class {unknown[0]!r}; it knows"
            f" {', '.join(predictor.labels)}"
        )
    indices = range(len(images.items))
    tested, probabilities, _ = score(predictor, images, tuple(indices), track)
    if not tested:
        raise DataError(f"{images.location}: none of the images can be read")
    number = {name: i for i, name in enumerate(predictor.labels)}
    labels = np.array([number[images.items[index].labels[0]] for index in tested])
    head = headline(probabilities, labels, predictor.labels, seed)
    skipped = len(images.items) - len(tested)
    return {**head, "seconds": clock.total(), "unreadable": skipped, "model": str(model)}


DEMO_SEEDS = 6


def run_demo(
    out: str | Path, *, seed: int = 0, seeds: int = DEMO_SEEDS, track: Track = untracked
) -> dict[str, Any]:
    """Show what reused layers are worth, on handwritten digits; no weights, no network.

    A small network is trained on some digits and its layers are reused for others with few
    labels, against the same network from scratch (`topwork.study.digits`). Then `fit` runs as it
    would on a user's own images, with the trained network as the backbone.

    Args:
        out: the folder to make: the study's picture and numbers, the trained network's weights,
            and the run folder ``run``.
        seed: the first of the seeds.
        seeds: how many trials.
        track: shows progress.

    Returns:
        plain data: ``finding``, ``table`` (text), ``study`` (all numbers), ``record`` (of the
        run), ``picture``, ``seconds``.
    """
    from topwork.report.pictures import draw_transfer
    from topwork.study import digits
    from topwork.study.transfer import describe, finding, summarize

    clock = Clock()
    out = Path(out)
    require_free(out)
    numbers = range(seed, seed + seeds)
    trials = [digits.run_trial(number) for number in track(numbers, "training on digits")]
    result = summarize(trials)
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "transfer.png"
    draw_transfer(result, picture)
    write_json(out / "transfer.json", result.record())
    backbone = digits.save_source(out / "source.safetensors", seed)
    record = fit(digits.target_images(seed), out / "run", backbone=backbone, seed=seed)
    return {
        "finding": finding(result),
        "table": describe(result),
        "study": result.record(),
        "record": record,
        "picture": str(picture),
        "seconds": clock.total(),
    }


def inspect(
    backbone: str, *, weights: str | Path | None = None, size: int | None = None
) -> dict[str, Any]:
    """Describe a network's depth axis; weights are neither needed nor fetched.

    Args:
        backbone: its name.
        weights: a file of weights for it, to name in the description.
        size: height and width to inspect it at, in pixels; default its own.

    Returns:
        plain data; ``cuts`` lists the cut points from the input up.
    """
    found = find_backbone(backbone, weights=weights)
    pixels = (size, size) if size else found.preprocessing.size
    chain = build_chain(found.spec, pixels)
    return {
        "name": found.name,
        "library": found.spec.library,
        "architecture": found.spec.architecture,
        "input_size": list(pixels),
        "preprocessing": found.preprocessing.to_dict(),
        "license": found.about.get("license"),
        "weights": found.weights.describe() if found.weights else None,
        "head": chain.head,
        "pool": source_pool(chain),
        "note": chain.note,
        "cuts": [
            {
                "depth": cut.depth,
                "name": cut.name,
                "shape": list(cut.shape),
                "layout": str(cut.layout),
                "stage_end": cut.stage_end,
                "parameters": cut.parameters,
                "multiply_adds": cut.multiply_adds,
                "bytes": cut.bytes,
                "before": cut.before,
            }
            for cut in chain.cuts
        ],
    }


def score(
    predictor: Predictor,
    images: ImageSet,
    indices: tuple[int, ...],
    track: Track,
    audited: Audit | None = None,
) -> tuple[list[int], np.ndarray, list[tuple[str, str]]]:
    """Predict some images.

    Args:
        predictor: the model.
        images: where they come from.
        indices: which of them.
        track: shows progress.
        audited: if given, an image whose bytes are no longer those audited is refused.

    Returns:
        those that could be read, their probabilities [N, C], and the others with the reason.
    """
    tested, rows, lost = [], [], []
    digests = digests_of(audited, indices) if audited else None
    for index, result in predictor.predict_set(images, indices, digests, track):
        if isinstance(result, ImageError):
            lost.append((result.name, result.reason))
        else:
            tested.append(index)
            rows.append(result)
    return tested, np.array(rows).reshape(len(rows), len(predictor.labels)), lost


def compare_with_cache(
    fitted: Fitted,
    images: ImageSet,
    audited: Audit,
    tested: list[int],
    shipped: np.ndarray,
) -> dict[str, Any]:
    """Tell how far the score on cached codes lies from that of the shipped model."""
    codes = extract(fitted.extractor, images, tested, digests_of(audited, tested))
    rows = [row for row in range(len(tested)) if row not in codes.failed]
    cached = fitted.probe.head.probabilities(codes.rows[rows])
    labels = labels_of(images, [tested[row] for row in rows])
    return {
        "accuracy": float((cached.argmax(1) == labels).mean()),
        "largest_difference_in_probability": float(np.abs(cached - shipped[rows]).max()),
        "keys": list(codes.fingerprints),
        "computed": fitted.codes.computed + codes.computed,
        "images": len(fitted.indices) + len(tested),
    }


def require_free(out: Path) -> None:
    """Refuse a run folder that holds something already.

    Raises:
        UsageError: naming it.
    """
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"--out {out} exists already; choose another name, or remove it first")
    # Nothing is made before there is something to put into it.
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise UsageError(f"--out {out} cannot be made: {above} is a file; choose another name")
    if not os.access(above, os.W_OK):
        raise UsageError(
            f"--out {out} cannot be made: no permission to write in {above}; choose another place"
        )
