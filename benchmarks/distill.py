"""A student of a fourteenth of its teacher's cost: distilled, from labels alone, and random.

MobileNetV2 at 224 pixels (299 million multiply-adds an image) teaches timm's
mobilenetv4_conv_small_050 at 128 (21 million; of the small networks of timm the one that trains the
fastest on CPU cores for its cost) on the photos of tiny_imagenet (75 of each of 200 classes) and
one of each ImageNet class, without their labels. Beside it the same student learns tiny_imagenet's
classes by `--method supervised`, for as many epochs as fit in the same time, and a third is left
random.

Each is judged by heads on its codes of hymenoptera and flowers12, at the top and at the depth that
the profile of the training part chooses. Bees and ants are left out of what is pretrained on: some
of the bees are the very photos of hymenoptera.

Rows are appended to OUT/distill.jsonl; what is there is not done again.

    python benchmarks/distill.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from auxiliary import rows_of
from backbones import made
from depth_gains import divide_and_judge
from places import options, require
from sets import write_set
from topwork.advice.comparison import paired_difference
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_paths, open_images
from topwork.learn.metrics import wilson
from topwork.network.backbone_folder import save_backbone
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan

TEACHER = "mobilenetv2_100"
STUDENT, SIZE = "timm:mobilenetv4_conv_small_050", (128, 128)
LARGEST = 0.1  # share of the teacher's multiply-adds
LABELED, PHOTOS = "tiny_imagenet_200x75.zip", "imagenet_1000_photos_160px.zip"
SETS = ("hymenoptera", "flowers12")
LEFT_OUT = ("n02206856", "n02219486")
"""WordNet ids of bees and ants: eleven of these bees are in hymenoptera (recipes/rootstock)."""
EPOCHS = 40  # of distillation, about 25 minutes on two cores


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
    labeled = labeled_photos(unpacked(data / LABELED, out), photos)
    everything = [Path(labeled.location) / item.name for item in labeled.items]
    varied = sorted(unpacked(data / PHOTOS, out).rglob("*.jpg"))
    everything += [path for path in varied if path.name[:9] not in LEFT_OUT]
    mark = f"{epochs}-{photos or 'all'}"
    distilled = student(
        images_from_paths(everything), out / f"distilled-{mark}", "distill", epochs, teacher
    )
    seconds = distilled["training_seconds"]
    trial = student(labeled, out / f"trial-{mark}", "supervised", 2)  # the first epoch decodes, too
    count = max(1, round(seconds / trial["epochs"][-1]["seconds"]))
    supervised = student(labeled, out / f"supervised-{mark}", "supervised", count)
    print(
        f"distilled: {epochs} epochs, {seconds:.0f} s, {distilled['results']['distillation']}\n"
        f"supervised: {count} epochs, {supervised['training_seconds']:.0f} s,"
        f" {supervised['results']['classes']}",
        flush=True,
    )
    names = "distilled", "supervised"
    return {name: out / f"{name}-{mark}" for name in names} | {
        "random": random_student(out / "random")
    }


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
    """Return the photos of a folder, one of each class set apart: `pretrain` takes the others."""
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
        {"phase": {"epochs": epochs}},
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
    key = {"set": name, "backbone": folder.name}
    for row in rows_of(log):
        if key.items() <= row.items():
            return row
    found = divide_and_judge(images, find_backbone(str(folder)), seed=0)
    row = key | {
        "depth": found.depth,
        "chosen": found.chosen.astype(int).tolist(),
        "top": found.top.astype(int).tolist(),
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def summary(name: str, rows: dict[str, dict]) -> bool:
    """Print a set's rows; say whether distillation did better than labels alone, beyond chance."""
    print(f"\n| {name} | at the top | at the chosen depth | which |\n|---|---|---|---|")
    for who, row in rows.items():
        print(f"| {who} | {share_of(row['top'])} | {share_of(row['chosen'])} | {row['depth']} |")
    sure = False
    for place in ("top", "chosen"):
        first, second = (np.array(rows[who][place]) for who in ("distilled", "supervised"))
        gain = paired_difference(first, second)
        sure |= gain.low > 0
        print(
            f"distilled over supervised, {place}: {100 * gain.value:+.1f} points"
            f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
            flush=True,
        )
    return sure


def share_of(right: list[int]) -> str:
    """Return an accuracy with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return f"{sum(right) / len(right):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
