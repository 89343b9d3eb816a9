"""Extraction from JPEG files, end to end on all cores, against DataLoader and eager timm.

The codes at the top of a network of hymenoptera's photos, in one process, imports apart. The plain
way is the usual script: timm's transform, batches of 32 from a DataLoader, inference_mode; of 0, 1
and 2 workers those that were fastest beforehand. topwork has an empty cache each time: once with
eager PyTorch asked for, once at its first use, where it may choose and compile a runtime, and once
with the compiled trunk of an earlier use. What the last consists of is timed alone, by as many
threads: making the trunk ready, decoding, and running the network. The ways take turns; a ratio
compares those of one round. How well decoding and network overlap is judged on more photos, with
--large: those of hymenoptera take so little time that making ready and writing are much of it.

    python benchmarks/extraction.py
    python benchmarks/extraction.py --large --network mobilenetv2_100
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset

from places import options, require
from topwork.data.decode import quiet
from topwork.data.items import images_from_paths
from topwork.data.loading import map_ahead, read_view
from topwork.errors import ImageError
from topwork.network.device import one_core_a_thread
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Codes, Extractor, Runner, choose_runner, extract, prepare

PLAIN, EAGER, FIRST, COMPILED = "plain way", "eager", "first use", "compiled trunk"
READY, DECODING, NETWORK = "making ready", "decoding alone", "network alone"
WANTED = {"mobilenetv2_100": 3.0, "resnet18": 1.3, "vit_tiny_patch16_224": 1.05}
LARGE = ("hymenoptera", "flowers12", "pacs")
WANTED_FIRST, WANTED_WALL = 0.95, 1.15
ALIKE = 0.98  # cosine of topwork's codes and the plain way's, whose decoders differ
WORKERS = (0, 1, 2)
BATCH = 32
PACKAGES = ("topwork", "torch", "timm", "numpy", "pillow", "simplejpeg", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Done:
    """What one way took, and the codes [N, D] where it gives any."""

    seconds: float
    codes: np.ndarray | None = None


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--network", choices=WANTED, action="append", help="this one only")
    parser.add_argument("--images", type=int, help="as many only")
    parser.add_argument(
        "--large", action="store_true", help="on three sets, and without the plain way"
    )
    parser.add_argument("--json", type=Path, help="file for the seconds of each round")
    args = parser.parse_args()
    require(args.weights, *(args.data / name for name in LARGE))
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    folders = [args.data / name for name in LARGE[: len(LARGE) if args.large else 1]]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jpg"))][: args.images]
    passed, kept = True, {}
    for name in args.network or WANTED:
        bench = Bench(name, args.weights, paths)
        ways = {**({} if args.large else bench.plain_way()), **bench.own_ways()}
        print(f"\n{name}, {len(paths)} photos", flush=True)
        rounds = []
        for number in range(1, args.rounds + 1):
            rounds.append({way: run() for way, run in ways.items()})
            seconds = ", ".join(f"{way} {done.seconds:.2f} s" for way, done in rounds[-1].items())
            print(f"  round {number}: {seconds} (load {os.getloadavg()[0]:.1f})", flush=True)
        passed &= summary(name, len(paths), rounds)
        print(f"  the compiled trunk is run by {bench.runtime}")
        kept[name] = [{way: done.seconds for way, done in round_.items()} for round_ in rounds]
        if args.json:
            args.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print("\nPASS" if passed else "\nFAIL")
    return not passed


class Bench:
    """One network and its images, and the ways of getting codes at its top."""

    def __init__(self, name: str, weights: Path, paths: list[Path]) -> None:
        self.paths = paths
        self.images = images_from_paths(paths)
        self.indices = range(len(paths))
        self.digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        folder = weights / name
        self.source = str(folder) if folder.is_dir() else f"timm:{name}"
        self.loaded = load(self.source)
        self.kept = tempfile.TemporaryDirectory()
        self.runtime = self.compile()

    def plain_way(self) -> dict[str, Callable[[], Done]]:
        """Return what is usual, with the number of workers that is the fastest."""
        model = plain_model(self.source, self.loaded)
        workers = min(WORKERS, key=lambda count: plain(model, self.paths, count).seconds)
        print(f"plain way: {workers} workers are the fastest of {WORKERS}")
        return {PLAIN: lambda: plain(model, self.paths, workers)}

    def own_ways(self) -> dict[str, Callable[[], Done]]:
        """Return each of topwork's ways, and the parts of the last, by its name."""
        return {
            EAGER: lambda: self.topwork("eager"),
            FIRST: lambda: self.topwork("auto"),
            COMPILED: lambda: self.topwork("auto", Path(self.kept.name)),
            READY: self.ready,
            DECODING: self.decoding,
            NETWORK: self.network,
        }

    def compile(self) -> str:
        """Keep a compiled trunk, as an earlier use leaves it; return what will run it."""
        with cache_at(Path(self.kept.name)):
            self.extract(self.extractor("onnxruntime"), 2)
            return self.runner().runtime.name

    def topwork(self, runtime: str, kept: Path | None = None) -> Done:
        """Get the codes by topwork, its cache empty but for the compiled trunks that are kept."""
        with tempfile.TemporaryDirectory() as folder, cache_at(Path(folder)):
            if kept:
                shutil.copytree(kept / "trunks", Path(folder) / "trunks")
            start = time.perf_counter()
            rows = self.extract(self.extractor(runtime), len(self.paths)).rows
            return Done(time.perf_counter() - start, rows)

    def ready(self) -> Done:
        """Cut the network and open its compiled form only."""
        with cache_at(Path(self.kept.name)):
            start = time.perf_counter()
            self.runner()
            return Done(time.perf_counter() - start)

    def decoding(self) -> Done:
        """Decode and resize only."""
        start = time.perf_counter()
        with quiet(), one_core_a_thread():
            for _ in map_ahead(self.indices, self.pixels):
                pass
        return Done(time.perf_counter() - start)

    def network(self) -> Done:
        """Run the network only, on pixels that are there."""
        with cache_at(Path(self.kept.name)), one_core_a_thread():
            runner = self.runner()
            size = runner.runtime.batch
            pixels = [self.pixels(index) for index in self.indices]
            batches = [np.stack(pixels[i : i + size]) for i in range(0, len(pixels), size)]
            start = time.perf_counter()
            for _ in map_ahead(batches, runner.codes):
                pass
            return Done(time.perf_counter() - start)

    def pixels(self, index: int) -> np.ndarray:
        """Read and render an image as extraction does."""
        preprocessing = self.loaded.backbone.preprocessing
        found = read_view(self.images, index, self.digests[index], preprocessing, decoding="fast")
        if isinstance(found, ImageError):
            raise found
        return found

    def runner(self) -> Runner:
        """Return what runs the trunk where its compiled form is kept."""
        return choose_runner(self.extractor("auto"), len(self.paths))

    def extractor(self, runtime: str) -> Extractor:
        """Make the trunk up to the top ready."""
        chain, plan = self.loaded.chain, self.loaded.plan
        execution = Execution(torch.device("cpu"), runtime=runtime, decoding="fast")
        preprocessing = self.loaded.backbone.preprocessing
        return prepare(chain, plan.codes, str(plan.pool), preprocessing, execution)

    def extract(self, extractor: Extractor, count: int) -> Codes:
        """Get the codes of the first images."""
        return extract(extractor, self.images, self.indices[:count], self.digests[:count])


def load(source: str) -> Loaded:
    """Load a network; one without a folder of weights gets random ones, the same each time."""
    reused = None if Path(source).is_dir() else "input"
    plan = Plan(source, reused=reused, frozen_random=reused is not None)
    return load_backbone(find_backbone(source), plan)


@contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Let topwork's cache lie in a folder."""
    before = os.environ.get("TOPWORK_CACHE")
    os.environ["TOPWORK_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TOPWORK_CACHE")
        if before:
            os.environ["TOPWORK_CACHE"] = before


class Photos(Dataset):
    """Images of files by timm's transform, as people write it."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def plain_model(source: str, loaded: Loaded) -> nn.Module:
    """Return the network as timm makes it, without its head, of the same weights."""
    if Path(source).is_dir():
        return timm.create_model(f"local-dir:{source}", pretrained=True, num_classes=0).eval()
    model = timm.create_model(loaded.backbone.spec.architecture, num_classes=0).eval()
    state = loaded.chain.network.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def plain(model: nn.Module, paths: list[Path], workers: int) -> Done:
    """Get the codes the plain way."""
    start = time.perf_counter()
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.inference_mode():
        loader = DataLoader(Photos(paths, transform), batch_size=BATCH, num_workers=workers)
        codes = [model(images).numpy() for images in loader]
    return Done(time.perf_counter() - start, np.concatenate(codes))


def summary(name: str, images: int, rounds: list[dict[str, Done]]) -> bool:
    """Print each way's median and the ratios that are wanted; say whether all are there."""
    seconds = {way: [round_[way].seconds for round_ in rounds] for way in rounds[0]}
    for way, taken in seconds.items():
        print(f"  {way:16}{median(taken):8.2f} s{images / median(taken):8.1f} images/s")
    passed = judged(f"{FIRST} to {EAGER}", ratios(seconds, EAGER, FIRST), at_least=WANTED_FIRST)
    parts = [sum(pair) for pair in zip(seconds[DECODING], seconds[NETWORK], strict=True)]
    walls = [wall / alone for wall, alone in zip(seconds[COMPILED], parts, strict=True)]
    said = f"{COMPILED} to decoding and network alone"
    if PLAIN not in seconds:
        return passed & judged(said, walls, at_most=WANTED_WALL)
    print(f"  {said}: {median(walls):.2f}, fixed costs included (judged with --large)")
    passed &= judged(
        f"{COMPILED} to {PLAIN}", ratios(seconds, PLAIN, COMPILED), at_least=WANTED[name]
    )
    return passed & judged("lowest cosine to plain codes", [min(cosines(rounds[0]))], ALIKE)


def ratios(seconds: dict[str, list[float]], slow: str, fast: str) -> list[float]:
    """Return how many times as fast one way was as another, round by round."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]


def cosines(ways: dict[str, Done]) -> list[float]:
    """Return the cosine between topwork's codes and the plain way's of each image."""
    plain, own = ways[PLAIN].codes, ways[COMPILED].codes
    assert plain is not None
    assert own is not None
    norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(own, axis=1)
    return ((plain * own).sum(1) / norms).tolist()


def judged(
    what: str, values: list[float], at_least: float | None = None, at_most: float | None = None
) -> bool:
    """Print the median of some values, their range and what is wanted; say whether it is so."""
    found = median(values)
    passed = at_least is None or found >= at_least
    passed &= at_most is None or found <= at_most
    wanted = f"at least {at_least}" if at_least is not None else f"at most {at_most}"
    print(
        f"  {what}: {found:.3f} ({min(values):.3f} to {max(values):.3f}), wanted {wanted}:"
        f" {'PASS' if passed else 'FAIL'}"
    )
    return passed


if __name__ == "__main__":
    sys.exit(main())
