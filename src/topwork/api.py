"""The verbs of topwork as functions; the command line is a thin face of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from topwork.data.audit import Audit, audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import Track, untracked
from topwork.errors import DataError, UsageError
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.fit import fit_plan, require_fittable, require_solvable
from topwork.learn.targets import names_of, targets_of
from topwork.named_plans import named_plan
from topwork.network.device import choose_device
from topwork.network.folder import save_model
from topwork.network.loading import load_backbone
from topwork.network.predictor import load
from topwork.network.shipped import name_or_shipped, say_shipped
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.report.evidence import evidence_of
from topwork.report.page import rebuild, write_report
from topwork.report.record import (
    RECORD,
    Clock,
    facts_of_fit,
    given_groups,
    results,
    write_json,
    write_predictions,
    write_split,
)
from topwork.scoring import compare_with_cache, score
from topwork.staging import sole_worker, staged_folder
from topwork.trunk.execution import Execution

log = logging.getLogger("topwork")


def make_plan(
    plan: str | Path | Plan = "auto",
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str | None = None,
    epochs: int | None = None,
    rate: float | None = None,
    views: int | None = None,
    size: tuple[int, int] | None = None,
) -> Plan:
    """Return the plan that some options ask for.

    Args:
        plan: a plan, its JSON file, or a name: "features", "warmup", "partial", "finetune",
            "scratch"; of "auto", which is found out by measuring, what it begins with.
        backbone: the network; may be left out where the plan names one, and is the one that comes
            with topwork where nothing does.
        weights: a file with its weights, which the plan does not hold: then it must be named.
        kept: a depth, as in `Plan`.
        reused: likewise.
        frozen: likewise, phase by phase.
        head: likewise.
        epochs: of each phase that trains by gradient descent.
        rate: the learning rate of new layers in these.
        views: of each training image.
        size: height and width of the images that the network sees, in pixels.

    Raises:
        UsageError: if options contradict a plan that is complete in itself.
        PlanError: if the plan cannot be read or makes no sense.
    """
    if is_name(plan):
        backbone = name_or_shipped(backbone, weights)
        if plan == "auto":
            told: dict[str, Any] = {
                "--reused": reused,
                "--frozen": frozen,
                "--epochs": epochs,
                "--rate": rate,
                "--views": views,
            }
            for option, value in told.items():
                if was_given(value):
                    raise UsageError(
                        f"{option} is found out with --plan auto; leave it out, or name a plan"
                        " (features, warmup, partial, finetune, scratch, or a file)"
                    )
            if head in ("svm", "ridge"):
                raise UsageError(
                    f"--head {head} is for frozen features: give --plan features with it"
                )
        return named_plan(
            "features" if plan == "auto" else plan,
            backbone,
            kept=kept,
            reused=reused,
            frozen=frozen,
            head=head or "softmax",
            epochs=epochs,
            rate=rate,
            views=1 if views is None else views,
            input_size=size,
        )
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    options: dict[str, Any] = {
        "--kept": kept,
        "--reused": reused,
        "--frozen": frozen,
        "--head": head,
        "--epochs": epochs,
        "--rate": rate,
        "--views": views,
        "--size": size,
    }
    for option, value in options.items():
        if was_given(value):
            raise UsageError(f"{option} contradicts a complete plan; change it there instead")
    return loaded if backbone is None else replace(loaded, backbone=backbone)


def is_name(plan: str | Path | Plan) -> TypeGuard[str]:
    """Say whether a plan is meant by its name, so that a backbone must be found for it."""
    return isinstance(plan, str) and not plan.endswith(".json") and not Path(plan).is_file()


def was_given(value: Any) -> bool:
    """Say whether an option was given: 0 is something, no depths are not.

    >>> was_given(0.0), was_given(()), was_given(None)
    (True, False, False)
    """
    return value is not None and value != ()


def fit(
    data: str | Path | ImageSet,
    out: str | Path,
    *,
    plan: str | Path | Plan = "auto",
    backbone: str | Path | Backbone | None = None,
    weights: str | Path | None = None,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str | None = None,
    epochs: int | None = None,
    rate: float | None = None,
    views: int | None = None,
    size: tuple[int, int] | None = None,
    time_budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    runtime: str = "auto",
    decoding: str = "fast",
    cache: str = "auto",
    verify: str = "once",
    strict: bool = False,
    resume: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Fit a plan to images and write a run folder.

    Choosing is done inside the training part. The test part is looked at once, with the model
    that is shipped: its folder is written, opened again, and scored.

    Args:
        data: a folder, zip, .npz or manifest, as `topwork.data.items.open_images` takes it.
        out: the run folder to make; must not exist, or be empty.
        plan: see `make_plan`, also for what else a plan holds. "auto" measures and compares
            candidates first, see `topwork.advising.advise`, and fits what it recommends.
        backbone: a name, see `topwork.network.zoo.find_backbone`, or what that returns; if none is
            named, not by the plan either, the small one that comes with topwork.
        weights: a file with the backbone's pretrained weights.
        kept: a depth.
        reused: a depth.
        frozen: depths.
        head: the kind of head.
        epochs: of phases that train by gradient descent.
        rate: the learning rate of new layers in these.
        views: of each training image.
        size: height and width of the images that the network sees, in pixels.
        time_budget: for finding the plan, in seconds; for plan "auto" alone.
        seed: of folds, order, dropout, views and random weights.
        device: "cpu", "cuda", "mps" or "auto".
        runtime: what runs frozen layers, see `topwork.trunk.execution.Execution`.
        decoding: of images for them, likewise.
        cache: what is kept of their outputs, likewise.
        verify: when what was kept is checked, likewise.
        strict: make any finding about bad images an error.
        resume: go on with the fit of the same plan to the same images that was interrupted, if
            there was one. What it saved lies beside ``out``, in a folder named ``OUT.unfinished``.
        track: shows progress.

    Returns:
        the record, which ``record.json`` holds too: plain data with ``metric``, ``value``,
        ``interval``, ``n``, ``accuracy`` and ``seconds`` on top.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    clock = Clock()
    require_free(Path(out))
    named = backbone.name if isinstance(backbone, Backbone) else backbone
    asked = make_plan(
        plan,
        backbone=None if named is None else str(named),
        weights=weights,
        kept=kept,
        reused=reused,
        frozen=frozen,
        head=head,
        epochs=epochs,
        rate=rate,
        views=views,
        size=size,
    )
    require_fittable(asked)
    automatic = plan == "auto"
    if time_budget is not None and not automatic:
        raise UsageError("--time-budget is for finding a plan; leave it out, or give --plan auto")
    with sole_worker(Path(out)) as unfinished:
        checkpoints = Checkpoints(unfinished / "checkpoints")
        if automatic or any(phase.epochs for phase in asked.phases):
            require_no_checkpoints(unfinished, resume, Path(out))
        execution = Execution(choose_device(device), runtime, decoding, cache, verify)
        numbers = asked.head == "regression"
        images = data if isinstance(data, ImageSet) else open_images(data, numbers=numbers)
        if backbone is None and is_name(plan):
            say_shipped()
        backbone = find_backbone(
            backbone if isinstance(backbone, Backbone) else asked.backbone, weights=weights
        )
        loaded = load_backbone(backbone, asked, seed)
        require_solvable(loaded)
        clock.lap("backbone")
        audited = audit(images, strict=strict, numbers=numbers, track=track)
        if not audited.split.test:
            raise DataError(f"{images.location}: no image is left to test on; add images")
        clock.lap("audit")
        advice = None
        if automatic:
            finding = Finding(images, audited, backbone, loaded.weights, asked, execution, seed)
            advice = found_before(finding, unfinished, checkpoints) if resume else None
            advice = advice or find_plan(finding, unfinished, time_budget, track)
            loaded = load_backbone(backbone, Plan.from_dict(advice["recommended"]), seed)
            clock.lap("advice")
        trains = any(phase.epochs for phase in loaded.plan.phases)
        kept_in = checkpoints if trains else None
        fitted = fit_plan(loaded, images, audited, execution, seed, kept_in, resume, track)
        clock.begin_earlier(fitted.before)
        clock.lap("fit")

        leftovers = [unfinished / ADVICE, *([checkpoints.folder] if trains else [])]
        with staged_folder(Path(out), unfinished, leftovers) as staged:
            save_model(staged / "model", fitted.model, loaded, names_of(images, loaded.plan.head))
            predictor = load(staged / "model")
            tested, answers, lost = score(predictor, images, audited.split.test, track, audited)
            if not tested:
                raise DataError(f"{images.location}: no test image can be read any more; run again")
            clock.lap("test")
            targets = targets_of(images, tested, loaded.plan.head)
            cached = compare_with_cache(fitted, tested, targets, answers, seed)
            clock.lap("comparison")
            record = {
                **results(answers, targets, seed, given_groups(images, tested)),
                "seconds": clock.total(),
                "run": str(out),
                **facts_of_fit(loaded, fitted, audited, images, [*lost, *fitted.lost], clock, seed),
                "cached_codes": cached,
                "advice": advice,
            }
            write_split(staged, images, audited)
            write_predictions(staged / "predictions.csv", images, tested, answers, targets)
            write_json(staged / RECORD, record)
            try:
                evidence = evidence_of(
                    record, loaded, images, audited, tested, answers, targets, decoding
                )
                write_report(evidence, staged)
            except Exception as error:  # a page that cannot be made must not cost the fit
                log.warning("no report was written: %s: %s", type(error).__name__, error)
    return record


ADVICE = "advice.json"


@dataclass(frozen=True, eq=False)
class Finding:
    """What a plan is to be found for."""

    images: ImageSet
    audited: Audit
    backbone: Backbone
    weights: dict[str, str] | None
    base: Plan
    execution: Execution
    seed: int

    def identity(self) -> str:
        """Return what must be the same for advice to hold."""
        learned = (*self.audited.split.train, *self.audited.split.val)
        items = [self.images.items[index] for index in learned]
        facts = [
            self.base.to_dict(),
            self.backbone.spec.to_dict(),
            self.weights["sha256"] if self.weights else None,
            [str(self.audited.digests[index]) for index in learned],
            [[item.labels, item.group] for item in items],
            [self.seed, self.execution.device.type, self.execution.decoding],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def find_plan(
    finding: Finding, unfinished: Path, time_budget: float | None, track: Track
) -> dict[str, Any]:
    """Measure, compare and recommend a plan; keep the advice for a fit that is resumed."""
    from topwork.advising import advice_for_fit

    found = advice_for_fit(
        finding.images,
        finding.audited,
        finding.backbone,
        finding.base,
        finding.execution,
        time_budget=time_budget,
        seed=finding.seed,
        track=track,
    ).record()
    unfinished.mkdir(parents=True, exist_ok=True)
    write_json(unfinished / ADVICE, {"identity": finding.identity(), "advice": found})
    return found


def found_before(
    finding: Finding, unfinished: Path, checkpoints: Checkpoints
) -> dict[str, Any] | None:
    """Return the advice that an interrupted fit of the same began with; None if there is none.

    Raises:
        UsageError: if training has begun by other advice, which must not be lost.
    """
    try:
        kept = json.loads((unfinished / ADVICE).read_text(encoding="utf-8"))
        if kept["identity"] == finding.identity():
            return kept["advice"]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    if checkpoints.files():
        raise UsageError(
            f"--resume: what was interrupted had other images, weights or options; give the same"
            f" command again, or remove {unfinished} and begin anew"
        )
    return None


def require_no_checkpoints(unfinished: Path, resume: bool, out: Path) -> None:
    """Refuse to begin anew where a fit was interrupted, unless it is to be resumed.

    Raises:
        UsageError: naming both ways on.
    """
    if Checkpoints(unfinished / "checkpoints").files() and not resume:
        raise UsageError(
            f"--out {out}: a fit of it was interrupted or failed; --resume goes on with the very"
            f" same plan; for another, remove {unfinished}"
        )


def report(run: str | Path) -> dict[str, Any]:
    """Write the report of a run anew, from what its fit has kept for it.

    Returns:
        plain data: ``files``, the paths of the page and of its Markdown.

    Raises:
        TopworkError: if the folder is no run, or holds no evidence.
    """
    return {"run": str(run), "files": [str(path) for path in rebuild(run).values()]}


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
