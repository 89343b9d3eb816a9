"""Does another labeled task help where labels are few? A network, pretrained and from scratch.

Two auxiliary tasks, learned by `topwork pretrain --method supervised`:

* CIFAR classes A (airplane, automobile, bird, cat, deer), then B (dog, frog, horse, ship, truck),
  ResNet-20. Either half has two kinds of vehicle and three of animal, and pairs that look alike
  (automobile and truck, cat and dog, deer and horse) are divided, so that A helps by what B's
  classes are made of, not by having nearly the same ones.
* Fashion-MNIST (a tenth), then MNIST, a small ConvNet of three layers at 28 pixels.

Of the target 10 and 50 labels a class are drawn, five times. Four ways learn from the same views
of the same images: all layers from random weights; a head alone on the pretrained codes; that head,
then all layers at a small rate; and all layers as in the first way, of which the lower two thirds
start from pretrained weights. All are judged by the same test images. The gain over the first is
paired by draw; its interval is Student's t over the draws, of one pretraining.

Rows are appended to OUT/auxiliary.jsonl; what is there is not done again.

    python benchmarks/auxiliary.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import t as student

import topwork
from backbones import digest, made
from kept_rows import append, row_of, rows_of
from places import options, require
from plans import HALVES
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_arrays, open_images
from topwork.named_plans import named_plan
from topwork.network.zoo import find_backbone
from topwork.plan import Augment, Plan

COUNTS = (10, 50)  # labels a class
DRAWS = 5
FIRST_DRAW = 10  # others were looked at while the ways were chosen
TESTED = 2000  # images of MNIST
VIEWS = 8
EPOCHS = 60  # of all layers on the target
SCRATCH, FEATURES, TUNED, LOWER = "scratch", "features", "fine-tuned", "lower two thirds"
WAYS = (SCRATCH, FEATURES, TUNED, LOWER)


@dataclass(frozen=True)
class Task:
    """An auxiliary task and the target that it is for.

    Attributes:
        source: images of the auxiliary task.
        target: for so many labels a class and a seed.
        backbone: the network.
        lower: where two thirds of its stages end.
        size: of the images that it sees.
        epochs: on the auxiliary task.
        augment: how views of either are drawn; digits are not mirrored.
    """

    source: Callable[[], ImageSet]
    target: Callable[[int, int], ImageSet]
    backbone: str
    lower: str
    size: int
    epochs: int
    augment: Augment


def main() -> int:
    parser = options(__doc__)
    place = Path(tempfile.gettempdir()) / "topwork-auxiliary"
    parser.add_argument("--out", type=Path, default=place, help=f"folder for all results; {place}")
    parser.add_argument("--only", choices=("cifar", "digits"), help="this task")
    parser.add_argument("--epochs", type=int, help="on the auxiliary task, instead of its own")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of labels")
    args = parser.parse_args()
    require(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOPWORK_CACHE", str(args.out / "cache"))
    log = args.out / "auxiliary.jsonl"
    for name, task in tasks(args.data).items():
        if args.only in (None, name):
            backbone = pretrained(name, task, args.out, args.epochs or task.epochs)
            for count in COUNTS:
                for draw in range(FIRST_DRAW, FIRST_DRAW + args.draws):
                    fit_all(name, task, backbone, count, draw, log)
                print_summary(name, task, backbone, count, rows_of(log), args.draws)
    return 0


def tasks(data: Path) -> dict[str, Task]:
    """Return the two tasks by name."""
    cifar = open_images(data / "cifar10_third_jpg.zip")
    return {
        "cifar": Task(
            lambda: of_classes(cifar, HALVES["A"]),
            lambda count, draw: few_labels(of_classes(cifar, HALVES["B"]), count, draw),
            "topwork:cifar_resnet20",
            "layer2",
            32,
            15,
            Augment(0.5, True),
        ),
        "digits": Task(
            lambda: open_images(data / "fashion_mnist_tenth.zip"),
            lambda count, draw: few_labels(digits(data / "mnist.npz"), count, draw),
            "topwork:small_convnet",
            "block2",
            28,
            60,
            Augment(0.7, False),
        ),
    }


def of_classes(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Return the images of some classes."""
    return replace(images, items=tuple(i for i in images.items if i.labels[0] in names))


def digits(archive: Path, count: int = TESTED) -> ImageSet:
    """Return MNIST's training images and so many of its test images, always the same."""
    with np.load(archive, allow_pickle=False) as arrays:
        tested = np.random.default_rng(0).permutation(len(arrays["x_test"]))[:count]
        pixels = np.concatenate([arrays["x_train"], arrays["x_test"][tested]])
        labels = np.concatenate([arrays["y_train"], arrays["y_test"][tested]])
    split = ["train"] * (len(labels) - len(tested)) + ["test"] * len(tested)
    return images_from_arrays(pixels, labels.tolist(), split=split)


def few_labels(images: ImageSet, count: int, draw: int) -> ImageSet:
    """Return all test images, and so many training images a class, drawn at random."""
    rng = np.random.default_rng(draw)
    kept = {number for number, item in enumerate(images.items) if item.split == "test"}
    for label in images.classes:
        own = [n for n, i in enumerate(images.items) if i.split == "train" and label in i.labels]
        kept.update(rng.permutation(own)[:count].tolist())
    return replace(images, items=tuple(images.items[number] for number in sorted(kept)))


def pretrained(name: str, task: Task, out: Path, epochs: int) -> Path:
    """Learn the auxiliary task, unless that has been done; return the backbone's folder."""
    folder = out / f"{name}-{epochs}"
    recipe = {
        "least_area": task.augment.least_area,
        "flip": task.augment.flip,
        "phase": {"epochs": epochs},
    }
    size = (task.size, task.size)
    record = made(folder, task.source(), "supervised", recipe, backbone=task.backbone, size=size)
    print(f"{name}: auxiliary task {record['results']['classes']}", flush=True)
    return folder


def fit_all(name: str, task: Task, backbone: Path, count: int, draw: int, log: Path) -> None:
    """Fit a draw of labels in each way that is not in the log yet, and append the rows."""
    for way in WAYS:
        plan = plan_of(way, task, backbone)
        key = {**key_of(name, task, backbone, count, way), "draw": draw}
        if row_of(log, key):
            continue
        images = task.target(count, draw)
        with tempfile.TemporaryDirectory() as folder:
            record = topwork.fit(
                images,
                Path(folder) / "run",
                plan=plan,
                backbone=find_backbone(plan.backbone),
                seed=draw,
            )
        row = key | {"value": record["value"], "n": record["n"], "seconds": record["seconds"]}
        append(log, row)
        print(f"  {name}, {count} a class, draw {draw}, {way}: {row['value']:.3f}", flush=True)


def key_of(name: str, task: Task, backbone: Path, count: int, way: str) -> dict:
    """Return what tells the rows of a way from others, but for the draw."""
    # The folder's name, not its place: a copy of it elsewhere is the same backbone.
    plan = replace(plan_of(way, task, backbone), backbone=task.backbone)
    settings = digest(backbone.name, plan)
    return {"task": name, "count": count, "way": way, "settings": settings}


def plan_of(way: str, task: Task, backbone: Path) -> Plan:
    """Return the plan of a way; all labels are learned from, none are held out to choose by."""
    name = {SCRATCH: "scratch", LOWER: "scratch", FEATURES: "features", TUNED: "warmup"}[way]
    epochs = None if way == FEATURES else EPOCHS
    start = task.backbone if way == SCRATCH else str(backbone)
    size = (task.size, task.size)
    plan = named_plan(name, start, epochs=epochs, views=VIEWS, input_size=size)
    phases = tuple(replace(phase, stop=None) for phase in plan.phases)
    if name == "scratch":
        phases = tuple(replace(phase, batch_norm="batch") for phase in phases)
    if way == LOWER:
        plan = replace(plan, reused=task.lower)
    return replace(plan, phases=phases, augment=task.augment)


def print_summary(
    name: str, task: Task, backbone: Path, count: int, rows: Sequence[dict], draws: int
) -> None:
    """Print accuracies, and gains over training from scratch with their intervals."""
    of_way = {way: values_of(rows, key_of(name, task, backbone, count, way), draws) for way in WAYS}
    scratch = of_way[SCRATCH]
    text = [f"from scratch {scratch.mean():.3f}"]
    for way in WAYS[1:]:
        gain, half = interval(of_way[way] - scratch)
        text.append(
            f"{way} {of_way[way].mean():.3f}, {100 * gain:+.1f} points"
            f" ({100 * (gain - half):+.1f} to {100 * (gain + half):+.1f})"
        )
    print(f"{name}, {count} labels a class, {draws} draws: {'; '.join(text)}", flush=True)


def values_of(rows: Sequence[dict], key: dict, draws: int) -> np.ndarray:
    """Return the accuracies of a way, draw by draw."""
    found = {row["draw"]: row["value"] for row in rows if key.items() <= row.items()}
    return np.array([found[draw] for draw in range(FIRST_DRAW, FIRST_DRAW + draws)])


def interval(gains: np.ndarray) -> tuple[float, float]:
    """Return the mean of gains and half the width of its 95 % interval.

    >>> mean, half = interval(np.array([0.1, 0.2, 0.3, 0.2, 0.2]))
    >>> f"{mean:.2f} {half:.3f}"
    '0.20 0.088'
    """
    spread = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    return float(gains.mean()), float(student.ppf(0.975, len(gains) - 1) * spread)


if __name__ == "__main__":
    sys.exit(main())
