"""A student of a fourteenth of its teacher's cost: distilled, from labels alone, and random.

MobileNetV2 at 224 pixels (299 million multiply-adds an image) teaches timm's
mobilenetv4_conv_small_050 at 128 (21 million; of the small networks of timm the one that trains the
fastest on CPU cores for its cost) on the photos of tiny_imagenet (74 of each of 198 classes),
without their labels. Beside it the same student learns the classes of the same photos by
`--method supervised`, from as large crops, for as many epochs as take about the same time (one more
photo of each class is held out), and a third is left random.

Each is judged by heads on its codes of hymenoptera and flowers12, at the top and at the depth that
the profile of the training part chooses; the latter is what counts. Bees and ants are left out of
what is pretrained on: some of the bees are the very photos of hymenoptera.

Rows are appended to OUT/distill.jsonl; what is there is not done again.

    python benchmarks/distill.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from backbones import made, training_seconds
from depth_gains import divide_and_judge
from kept_rows import append, row_of
from places import options, require
from sets import write_set
from topwork.advice.comparison import paired_difference
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_paths, open_images
from topwork.learn.metrics import wilson
from topwork.network.backbone_folder import save_backbone
from topwork.network.loading import load_backbone, sha256
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan

TEACHER = "mobilenetv2_100"
STUDENT, SIZE = "timm:mobilenetv4_conv_small_050", (128, 128)
LARGEST = 0.1  # share of the teacher's multiply-adds
PHOTOS = "tiny_imagenet_200x75.zip"
SETS = ("hymenoptera", "flowers12")
LEFT_OUT = ("n02206856", "n02219486")
"""WordNet ids of bees and ants: eleven of these bees are in hymenoptera (recipes/rootstock)."""
EPOCHS = 16  # of distillation: an hour of a core
LABELS_EPOCHS = 1.3  # of learning labels, for one of distillation: there is no teacher to run
LEAST_AREA = 0.3  # of a photo, that either sees
PRECISION = "bfloat16"  # of both: faster on processors that have it


def main() -> int:
    parser = options(__doc__)
    place = Path(tempfile.gettempdir()) / "topwork-distill"
    parser.add_argument("--out", type=Path, default=place, help=f"folder for all results; {place}")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of distillation")
    parser.add_argument("--photos", type=int, help="so many a class, to see a trend sooner")
    args = parser.parse_args()
    require(args.data, args.weights / TEACHER)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOPWORK_CACHE", str(args.out / "cache"))
    teacher = args.weights / TEACHER
    folders = students(args.data, teacher, args.out, args.epochs, args.photos)
    share = multiply_adds(folders["random"]) / multiply_adds(teacher)
    print(f"the student does {share:.3f} of its teacher's multiply-adds; wanted {LARGEST} at most")
    passed = share <= LARGEST
    log = args.out / "distill.jsonl"
    for name in SETS:
        images = open_images(write_set(name, args.data, args.out))
        rows = {
            who: judged(name, images, folder, log)
            for who, folder in (folders | {"teacher": teacher}).items()
        }
        passed &= summary(name, rows)
    print("PASS" if passed else "FAIL")
    return not passed


def students(
    data: Path, teacher: Path, out: Path, epochs: int, photos: int | None
) -> dict[str, Path]:
    """Make the three students, as far as they have not been made; return their folders."""
    labeled = labeled_photos(unpacked(data / PHOTOS, out), photos)
    learned = [Path(labeled.location) / i.name for i in labeled.items if i.split == "train"]
    mark = f"{epochs}-{photos or 'all'}"
    folders = {name: out / f"{name}-{mark}" for name in ("distilled", "supervised")}
    records = {
        "distilled": student(
            images_from_paths(learned), folders["distilled"], "distill", epochs, teacher
        ),
        "supervised": student(
            labeled, folders["supervised"], "supervised", round(LABELS_EPOCHS * epochs)
        ),
    }
    for name, record in records.items():
        minutes = training_seconds(record) / 60
        print(f"{name}: {len(record['epochs'])} epochs, {minutes:.0f} minutes, {record['results']}")
    return folders | {"random": random_student(out / "random")}


def unpacked(archive: Path, out: Path) -> Path:
    """Return a folder with what an archive holds."""
    folder = out / "data" / archive.stem
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(part)
        part.rename(folder)
    return folder


def labeled_photos(folder: Path, photos: int | None) -> ImageSet:
    """Return the photos of a folder; of each class one is set apart, else a fifth would be."""
    images = open_images(folder)
    seen: Counter[str] = Counter()
    items = []
    for item in images.items:
        if item.labels[0] in LEFT_OUT:
            continue
        seen[item.labels[0]] += 1
        if photos is None or seen[item.labels[0]] <= photos:
            split = "test" if seen[item.labels[0]] == 1 else "train"
            items.append(replace(item, split=split))
    return replace(images, items=tuple(items))


def student(
    images: ImageSet, folder: Path, method: str, epochs: int, teacher: Path | None = None
) -> dict:
    """Pretrain the student, unless that has been done; return the record."""
    return made(
        folder,
        images,
        method,
        {"least_area": LEAST_AREA, "phase": {"epochs": epochs, "precision": PRECISION}},
        backbone=STUDENT,
        teacher=str(teacher) if teacher else None,
        size=SIZE,
    )


def random_student(folder: Path) -> Path:
    """Return a folder with the student's architecture and random weights."""
    if not folder.exists():
        phases = (Phase(frozen="input", epochs=1),)
        plan = Plan(STUDENT, reused="0", input_size=SIZE, phases=phases)
        save_backbone(folder, load_backbone(find_backbone(STUDENT), plan), {}, classifier=False)
    return folder


def multiply_adds(folder: Path) -> int:
    """Return what an image costs a network below its classifier."""
    return load_backbone(find_backbone(str(folder)), Plan(str(folder))).chain.top.multiply_adds


def judged(name: str, images: ImageSet, folder: Path, log: Path) -> dict:
    """Return a row: whether heads at the chosen depth and at the top are right, image by image."""
    backbone = find_backbone(str(folder))
    key = {"set": name, "weights": sha256(folder / "model.safetensors")}
    if there := row_of(log, key):
        return there
    found = divide_and_judge(images, backbone, seed=0)
    row = key | {
        "backbone": folder.name,
        "depth": found.depth,
        "chosen": found.chosen.astype(int).tolist(),
        "top": found.top.astype(int).tolist(),
    }
    append(log, row)
    return row


def summary(name: str, rows: dict[str, dict]) -> bool:
    """Print a set's rows; say whether distillation did better than labels alone, beyond chance.

    What counts is the depth that the training part chooses.
    """
    print(f"\n| {name} | at the top | at the chosen depth | which |\n|---|---|---|---|")
    for who, row in rows.items():
        print(f"| {who} | {share_of(row['top'])} | {share_of(row['chosen'])} | {row['depth']} |")
    for place in ("top", "chosen"):
        first, second = (np.array(rows[who][place]) for who in ("distilled", "supervised"))
        gain = paired_difference(first, second)
        print(
            f"distilled over supervised, {place}: {100 * gain.value:+.1f} points"
            f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
            flush=True,
        )
    return gain.low > 0


def share_of(right: list[int]) -> str:
    """Return an accuracy with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return f"{sum(right) / len(right):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
