"""Processes that build a cache of codes and may die at it; kill_extract.py and shared_cache.py.

Each is forked from the benchmark, which has imported everything and computed nothing: so a hundred
of them take minutes. A build tells through files what it did, which is known of a killed one too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from topwork.data.files import write_atomically
from topwork.data.items import open_images
from topwork.data.views import Preprocessing
from topwork.network.chain import trace_chain
from topwork.trunk import building, care, extraction
from topwork.trunk.cache import open_store
from topwork.trunk.execution import Execution
from topwork.trunk.manifest import read_manifest

CHUNK = 48  # images that are computed and written together
SIZE = (64, 64)
DEPTHS, POOLS = ("layer2", "layer4"), ("none", "avg")  # two stores: maps, and pooled codes
WORKERS = 2  # threads of an extraction here
AT_ONCE = 16  # images that a thread takes, one batch of them
MOST_LOST = CHUNK + (2 * WORKERS + 1) * AT_ONCE
"""Images that a kill may cost: a chunk not written yet, and what threads are given ahead."""
LONG_AGO = 3600.0

os.environ["OMP_NUM_THREADS"] = "1"  # processes share the cores, and the network is tiny
forked = multiprocessing.get_context("fork").Process


@dataclass(frozen=True)
class Build:
    """One process that builds, or goes on building, the codes of some photos.

    Attributes:
        photos: a folder of class folders.
        cache: where the codes go.
        report: a JSON file that it writes at its end; beside it lies a log of what it read.
        locks: whether the system's file locks work in it.
        gate: a file that it waits for when it is ready; None for none.
    """

    photos: Path
    cache: Path
    report: Path
    locks: bool = True
    gate: Path | None = None

    @property
    def log(self) -> Path:
        """The file that has a byte for each image read, by all that ran this build in turn."""
        return self.report.with_suffix(".reads")

    @property
    def started(self) -> Path:
        """A file that is there when the process is ready to extract."""
        return self.report.with_suffix(".started")

    @property
    def reads(self) -> int:
        """How many images were read, whatever became of them."""
        return self.log.stat().st_size

    def clear(self) -> None:
        """Remove the cache and what earlier processes of this build told."""
        shutil.rmtree(self.cache, ignore_errors=True)
        for path in (self.log, self.started, self.report):
            path.unlink(missing_ok=True)

    def begin(self) -> BaseProcess:
        """Start the process and return it when it is ready to extract."""
        self.started.unlink(missing_ok=True)
        self.report.unlink(missing_ok=True)
        process = forked(target=extract, args=(self,))
        process.start()
        while not self.started.exists() and process.is_alive():
            time.sleep(0.001)
        return process

    def result(self, process: BaseProcess) -> dict[str, Any]:
        """Wait for the end of the process and return its report.

        Raises:
            RuntimeError: if it has failed.
        """
        process.join()
        if process.exitcode or not self.report.exists():
            raise RuntimeError(f"a build that nobody killed ended with {process.exitcode}")
        return json.loads(self.report.read_text(encoding="utf-8"))


def extract(build: Build) -> None:
    """Extract all codes; what a process of a build does."""
    os.environ["TOPWORK_CACHE"] = str(build.cache)
    if not build.locks:
        fcntl.flock = fcntl.lockf = os.lockf = refuse
    images = open_images(build.photos)
    digests = [hashlib.sha256(images.read(index)).hexdigest() for index in range(len(images))]
    extractor = new_extractor()
    building.SHARD_ROWS, building.BATCHES = CHUNK, 1  # as small shards go with small tasks
    with logged(images.source, build.log) as source:
        build.started.touch()
        while build.gate and not build.gate.exists():
            time.sleep(0.001)
        start = time.perf_counter()
        codes = extraction.extract(
            extractor, replace(images, source=source), range(len(images)), digests
        )
        seconds = time.perf_counter() - start
    rows = hashlib.sha256()
    for part in codes.parts:
        rows.update(part.take(range(len(part))).tobytes())
    facts = {"rows": rows.hexdigest(), "computed": codes.computed, "seconds": seconds}
    write_atomically(build.report, json.dumps(facts).encode())


def new_extractor() -> extraction.Extractor:
    """Return a tiny residual network with random weights, always the same ones."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10).eval()
    chain = trace_chain(network, torch.zeros(1, 3, *SIZE))
    view = Preprocessing(SIZE, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    execution = Execution(torch.device("cpu"), runtime="eager", cache="float32")
    return extraction.prepare(chain, DEPTHS, POOLS, view, execution)


@contextmanager
def logged(source: Callable[[str], bytes], log: Path) -> Iterator[Callable[[str], bytes]]:
    """Yield a source of images that appends a byte to a file for each image read."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def read(name: str) -> bytes:
        os.write(descriptor, b".")
        return source(name)

    try:
        yield read
    finally:
        os.close(descriptor)


def refuse(*arguments: object) -> None:
    """Stand for a file lock where there is none."""
    raise OSError("no locks available")


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs of two classes, 160 x 120 pixels: clouds of color, no two alike."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("one", "two")[number % 2] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=90)


def merge(cache: Path) -> None:
    """Merge the small shards of a cache, as the next extraction that adds something would."""
    os.environ["TOPWORK_CACHE"] = str(cache)
    for folder in sorted(cache.glob("codes/*")):
        facts, _ = read_manifest(folder)
        open_store(facts).merge()


def shards_of(cache: Path) -> dict[str, str]:
    """Return the SHA-256 of every shard of a cache, by its path in it."""
    return {
        path.relative_to(cache).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cache.rglob("*.safetensors"))
    }


def damaged(cache: Path) -> list[str]:
    """Return what `topwork cache verify` would find wrong with a cache."""
    return [found.path for found in care.verify(sorted(cache.glob("codes/*")))]


def leftovers(cache: Path) -> Counter[str]:
    """Count by extension what is in a cache besides its shards and manifests."""
    known = (".safetensors", ".json")
    files = (path for path in cache.rglob("*") if path.is_file())
    return Counter(path.suffix or path.name for path in files if path.suffix not in known)


def let_claims_grow_old(cache: Path) -> None:
    """Make the claims of the dead as old as they would be after a while."""
    for claim in cache.glob("claims/*"):
        then = time.time() - LONG_AGO
        os.utime(claim, (then, then))


def shared_memory() -> set[str]:
    """Return what is in /dev/shm."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
