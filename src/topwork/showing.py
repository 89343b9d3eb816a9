"""The verbs that show something: the demo, and a network's depth axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from topwork.advising import profile
from topwork.api import fit, require_free
from topwork.data.items import open_images
from topwork.data.loading import Track, untracked
from topwork.network.backbone_folder import save_backbone
from topwork.network.codes import source_pool
from topwork.network.device import choose_device
from topwork.network.loading import build_chain, fit_input, load_backbone
from topwork.network.shipped import SHIPPED
from topwork.network.zoo import Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.report.record import Clock, write_json

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
    images = digits.target_images(seed)
    record = fit(images, out / "run", plan="features", backbone=backbone, seed=seed)
    return {
        "finding": finding(result),
        "table": describe(result),
        "study": result.record(),
        "record": record,
        "picture": str(picture),
        "seconds": clock.total(),
    }


def run_photos_demo(
    data: str | Path, out: str | Path, *, seed: int = 0, track: Track = untracked
) -> dict[str, Any]:
    """Show on a user's images what reused layers are worth, with the backbone that comes with us.

    Its probe at every depth stands beside that of the same network with random weights, on the
    same folds of the training images; then `fit` runs with nothing chosen by hand.

    Args:
        data: as for `topwork.fit`.
        out: the folder to make: the picture ``profile.png`` and the run folder ``run``.
        seed: of folds and random weights.
        track: shows progress.

    Returns:
        plain data: ``backbone``, ``reused`` and ``random`` (of its own weights and of random ones
            the best depth: name, accuracy with interval and n, log-loss), ``record`` (of the run),
            ``picture``, ``seconds``.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    from topwork.report.profile_picture import draw_profile

    clock = Clock()
    out = Path(out)
    require_free(out)
    images = open_images(data)
    shipped = find_backbone(SHIPPED)
    with TemporaryDirectory() as folder:
        control = with_random_weights(shipped, Path(folder) / "random", seed)
        both = profile(images, backbone=(shipped, control), seed=seed, track=track)
    record = fit(images, out / "run", backbone=shipped, seed=seed, track=track)
    picture = out / "profile.png"
    draw_profile(both["profiles"], picture)
    reused, random = (best_depth(found) for found in both["profiles"])
    return {
        "backbone": SHIPPED,
        "reused": reused,
        "random": random,
        "record": record,
        "picture": str(picture),
        "seconds": clock.total(),
    }


def with_random_weights(backbone: Backbone, folder: Path, seed: int) -> Backbone:
    """Return a backbone with random weights instead of its own, written to a folder."""
    plan = Plan(backbone.name, reused="0", phases=(Phase(frozen="input", epochs=1),))
    save_backbone(folder, load_backbone(backbone, plan, seed), {}, classifier=False)
    return replace(find_backbone(str(folder)), name="random weights")


def best_depth(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a profile says of its best depth."""
    best = next(depth for depth in found["depths"] if depth["name"] == found["best"])
    return {key: best[key] for key in ("name", "depth", "accuracy", "interval", "n", "loss")}


def inspect(
    backbone: str | Path,
    *,
    weights: str | Path | None = None,
    size: int | None = None,
    runtimes: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Describe a network's depth axis; weights are neither needed nor fetched.

    Args:
        backbone: its name.
        weights: a file of weights for it, to name in the description.
        size: height and width to inspect it at, in pixels; default its own.
        runtimes: also try, with random weights, what could run its layers; about a minute.
        device: where they are tried.

    Returns:
        plain data; ``cuts`` lists the cut points from the input up, ``runtimes`` what
        `topwork.trunk.runtimes.table.runtime_table` found.
    """
    size_asked = (size, size) if size else None
    found = fit_input(find_backbone(backbone, weights=weights), size_asked, None)
    pixels = found.preprocessing.size
    chain = build_chain(found.spec, pixels)
    tried = {}
    if runtimes:
        from topwork.trunk.runtimes.table import runtimes_of

        tried["runtimes"] = runtimes_of(chain, found.preprocessing, choose_device(device))
    return {
        "name": found.name,
        "library": found.spec.library,
        "architecture": found.spec.architecture,
        "input_size": list(pixels),
        "preprocessing": found.preprocessing.to_dict(),
        "license": found.about.get("license"),
        "weights": found.weights.describe() if found.weights else None,
        "reaches": found.reaches,
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
        **tried,
    }
