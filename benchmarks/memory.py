"""Memory of extracting and training from 1,000, 10,000 and 100,000 images: flat, and a picture.

A few hundred small photos are repeated; each copy holds its number in a comment, so that it is an
image of its own with the same pixels. For each number of images a process of its own extracts the
maps at a cut of a tiny network, trains the layers above it for an epoch, and solves for a head on
pooled codes. What counts is its anonymous memory: mapped files (the cache, the libraries) are the
system's to drop. A head is solved in memory, as meant: on the codes in float32, a part of them that
leaves a fold out, and that part rotated, in float64. Besides that, and the list of the images and
their hashes, nothing should grow by more than 100 MB.

    python benchmarks/memory.py
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from places import options
from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet, Item
from topwork.estimators.inputs import all_training
from topwork.learn.fit import fit_plan
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.trunk.execution import Execution

SIZES = (1_000, 10_000, 100_000)
SIDE = 32
PHOTOS = 200
FROZEN = "layer1"
MAP_BYTES = 4 * 32 * 8 * 8  # that an image takes there
WIDTH = 96  # of the codes at the top of the network
COPIES = 4  # of the codes, in float32, that a head is solved on: 1 + 1 + 2
GROWTH = 100.0  # MB
STEPS = ("images", "top", "head")
TITLES = {
    "images": "list of the images",
    "top": "extracting maps, training the top",
    "head": "extracting codes, solving for the head",
}
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "memory.png"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to draw it")
    parser.add_argument("--one", type=int, help="measure this number alone, and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one)))
        return 0
    print("images    step                                     MB over the start   mapped   seconds")
    found = {size: in_a_process(size) for size in args.sizes}
    draw(found, args.picture)
    print(f"\ndrawn: {args.picture}")
    first, *_, last = sorted(found)
    passed = True
    for step in STEPS[1:]:
        growth = found[last][step]["anonymous"] - found[first][step]["anonymous"]
        meant = found[last]["images"]["anonymous"] - found[first]["images"]["anonymous"]
        if step == "head":
            meant += held(last) - held(first)
        passed &= growth <= GROWTH + meant
        print(
            f"{TITLES[step]}: {growth:+.0f} MB from {first:,} to {last:,} images"
            f" ({1e6 * growth / (last - first):.0f} bytes an image), {meant:.0f} of them as meant"
            f" (at most {GROWTH:.0f} more wanted)"
        )
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


def held(size: int) -> float:
    """Return the MB that a head is solved in, of so many images."""
    return COPIES * 4 * WIDTH * size / 1e6


def in_a_process(size: int) -> dict[str, dict[str, float]]:
    """Measure one number of images in a process of its own, and print it."""
    command = [sys.executable, __file__, "--one", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the run of {size} images failed with {done.returncode}")
    found = json.loads(done.stdout)
    for step in STEPS:
        peak = found[step]
        print(
            f"{size:<9,} {TITLES[step]:40} {peak['anonymous']:17.0f} {peak['mapped']:8.0f}"
            f" {peak['seconds']:9.1f}",
            flush=True,
        )
    return found


def measured(size: int) -> dict[str, dict[str, float]]:
    """Return each step's peak of memory over that at the start, in MB, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPWORK_CACHE"] = str(Path(folder) / "cache")
        backbone = write_backbone(Path(folder) / "backbone")
        photos = draw_photos()
        fit(backbone, *repeated(photos, 64), "top")  # what libraries load when first used
        fit(backbone, *repeated(photos, 64), "head")
        watch = Watch()
        with watch.step("images"):
            images, audit = repeated(photos, size)
        for step in STEPS[1:]:
            with watch.step(step):
                fit(backbone, images, audit, step)
        return watch.peaks


class Watch:
    """Samples the memory of this process.

    Attributes:
        start: anonymous and mapped memory when it was made, MB.
        peaks: by step, the most of each over the start, and the seconds it took.
    """

    def __init__(self) -> None:
        self.start = resident()
        self.peaks: dict[str, dict[str, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Watch a step."""
        samples: list[dict[str, float]] = []
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.05):
                samples.append(resident())

        thread = threading.Thread(target=sample)
        thread.start()
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            done.set()
            thread.join()
            samples.append(resident())
            self.peaks[name] = {
                kind: max(sample[kind] for sample in samples) - self.start[kind]
                for kind in self.start
            } | {"seconds": seconds}


def resident() -> dict[str, float]:
    """Return the anonymous and the mapped memory of this process, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    anonymous, mapped = (int(fields[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile"))
    return {"anonymous": anonymous, "mapped": mapped}


def fit(backbone: Path, images: ImageSet, audit: Audit, step: str) -> None:
    """Fit the top above a cut for an epoch, or a head on the codes at the network's top."""
    phase = Phase(frozen=FROZEN, epochs=1, batch=256, rate=1e-3) if step == "top" else Phase()
    plan = Plan(str(backbone), input_size=(SIDE, SIDE), phases=(phase,))
    loaded = load_backbone(find_backbone(str(backbone)), plan)
    execution = Execution(torch.device("cpu"), cache="float32")
    fit_plan(loaded, images, audit, execution, seed=0)


def repeated(photos: list[bytes], size: int) -> tuple[ImageSet, Audit]:
    """Return so many images of two classes, all for training, and their content hashes."""
    items = tuple(Item(f"{number}", (("one", "two")[number % 2],)) for number in range(size))
    images = ImageSet("photos", items, partial(numbered, photos))
    digests = tuple(hashlib.sha256(images.read(number)).hexdigest() for number in range(size))
    return images, all_training(images, digests)


def numbered(photos: list[bytes], name: str) -> bytes:
    """Return one of the photos with its number in a comment, right after the start marker."""
    photo = photos[int(name) % len(photos)]
    return photo[:2] + b"\xff\xfe\x00\x0e" + name.rjust(12).encode() + photo[2:]


def draw_photos() -> list[bytes]:
    """Return small JPEGs of two classes in turn, one of them a little more red."""
    generator = np.random.default_rng(0)
    photos = []
    for number in range(PHOTOS):
        pixels = generator.integers(0, 200, (5, 6, 3), dtype=np.uint8)
        pixels[..., 0] += 40 * (number % 2)
        image = Image.fromarray(pixels).resize((40, SIDE), Image.Resampling.BICUBIC)
        image.save(file := io.BytesIO(), "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos


def write_backbone(folder: Path) -> Path:
    """Write a tiny residual network with random weights as a folder in timm's format."""
    folder.mkdir()
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    save_file(network.state_dict(), folder / "model.safetensors")
    view = {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "interpolation": "bilinear"}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": view}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def draw(found: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw the anonymous memory of each step against the number of images."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted(found)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for step in STEPS:
        peaks = [found[size][step]["anonymous"] for size in sizes]
        axes.plot(sizes, peaks, marker="o", label=TITLES[step])
    meant = [held(size) for size in sizes]
    axes.plot(sizes, meant, ":", color="gray", label="of that, what a head is solved in")
    maps = [MAP_BYTES * size / 1e6 for size in sizes]
    axes.plot(sizes, maps, "--", color="lightgray", label="for comparison: the maps, on the disk")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images")
    axes.set_ylabel("anonymous memory over the start, MB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
