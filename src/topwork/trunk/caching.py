"""Whether to keep what frozen layers give while the layers above are trained, and in what form.

Running the trunk once and reading its outputs in each epoch is the usual way to win. It loses where
an output is so much larger than its image that reading takes longer than computing, or where the
disk has no room. So the time of each form is estimated from what was measured on this machine, and
the cheapest is taken: outputs, or the rendered pixels with the trunk run anew in each epoch, or
nothing at all; outputs in half precision where there is no room for full.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from topwork.trunk.cache import cache_folder
from topwork.trunk.limit import require_limit

FORMS = ("float32", "float16", "pixels", "nothing")
"""What can be kept, from the best to reuse later to the worst."""

MEMORY_SPEED = 1.5e9
"""Bytes a second that are read from files the system holds in memory, checksums included."""

SHARE_OF_SPACE = 0.8
"""Of the free space that may be filled."""

PATIENCE = 1.25
"""How many times as long as the quickest a form may take that can be used again later."""

TRIED = 16 * 2**20  # bytes written to time the disk


@dataclass(frozen=True)
class Job:
    """What training asks of the layers below its cut.

    Attributes:
        images: that are seen in each epoch.
        epochs: at most.
        views: of each image, in turn.
        decode_seconds: to decode and render an image, all cores at work.
        trunk_seconds: to run the trunk on one, likewise.
        pixels: bytes of a rendered image.
        outputs: bytes of what the trunk gives for an image, in float32.
    """

    images: int
    epochs: int
    views: int
    decode_seconds: float
    trunk_seconds: float
    pixels: int
    outputs: int


@dataclass(frozen=True)
class Disk:
    """Where the cache lies.

    Attributes:
        speed: bytes a second, written and read back.
        space: bytes that may be filled.
        memory: bytes of files that the system can hold in memory meanwhile.
    """

    speed: float
    space: float
    memory: float


@dataclass(frozen=True)
class Estimate:
    """What keeping one form costs.

    Attributes:
        form: one of `FORMS`.
        seconds: for the whole job, but for the training itself.
        bytes: on the disk.
    """

    form: str
    seconds: float
    bytes: int


def estimate(form: str, job: Job, disk: Disk) -> Estimate:
    """Estimate the cost of keeping a form.

    >>> job = Job(1000, 20, 1, 0.002, 0.01, 150_000, 400_000)
    >>> estimate("nothing", job, Disk(1e9, 1e12, 1e10))
    Estimate(form='nothing', seconds=240.0, bytes=0)
    """
    rendered = job.images * min(job.views, job.epochs)
    seen = job.images * job.epochs
    if form == "nothing":
        return Estimate(form, seen * (job.decode_seconds + job.trunk_seconds), 0)
    of_one = {
        "float32": job.outputs,
        "float16": job.outputs // 2,
        "pixels": job.pixels,
    }[form]
    size = rendered * of_one
    read = MEMORY_SPEED if size <= disk.memory else min(disk.speed, MEMORY_SPEED)
    runs = seen if form == "pixels" else rendered
    seconds = (
        rendered * job.decode_seconds
        + runs * job.trunk_seconds
        + size / disk.speed
        + seen * of_one / read
    )
    return Estimate(form, seconds, size)


def choose_form(
    job: Job, disk: Disk, forms: Sequence[str] = FORMS
) -> tuple[Estimate, tuple[Estimate, ...]]:
    """Return the form to keep, and the estimates of all.

    The first that fits and takes not much longer than the quickest: what other plans and runs can
    use before what they cannot. Half precision only where full precision does not fit: the other
    forms give the same bits where the same runtime runs the trunk.
    """
    estimates = tuple(estimate(form, job, disk) for form in forms)
    fitting = [one for one in estimates if one.bytes <= disk.space]
    if any(one.form == "float32" for one in fitting):
        fitting = [one for one in fitting if one.form != "float16"]
    quickest = min(one.seconds for one in fitting)
    chosen = next(one for one in fitting if one.seconds <= PATIENCE * quickest)
    return chosen, estimates


def in_words(chosen: Estimate, estimates: tuple[Estimate, ...], disk: Disk, cut: str) -> str:
    """Say in one line what is kept, and why.

    >>> some = (Estimate("float32", 12.3, 4 * 10**8), Estimate("nothing", 240.0, 0))
    >>> in_words(some[0], some, Disk(1e9, 1e10, 1e10), "blocks.5")
    'cache: outputs of blocks.5 in float32, 0.40 GB of 10.00 free: about 12 s, without 240 s'
    """
    without = estimates[-1]
    if chosen.form == "nothing":
        full = estimates[0]
        why = (
            f"{cut} in float32 would take {full.bytes / 1e9:.2f} GB of {disk.space / 1e9:.2f} free"
        )
        return f"cache: nothing is kept, {why} and {full.seconds:.0f} s; so {without.seconds:.0f} s"
    what = "pixels" if chosen.form == "pixels" else f"outputs of {cut} in {chosen.form}"
    return (
        f"cache: {what}, {chosen.bytes / 1e9:.2f} GB of {disk.space / 1e9:.2f} free: about"
        f" {chosen.seconds:.0f} s, without {without.seconds:.0f} s"
    )


def measure_disk() -> Disk:
    """Measure the disk that the cache lies on; its speed once in a process.

    The space is what is free, or up to the limit of the cache if that is less: what is cached
    already may have to go for it.
    """
    folder = cache_folder()
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    space = shutil.disk_usage(above).free * SHARE_OF_SPACE
    limit = require_limit()
    return Disk(speed_of(folder), space if limit is None else min(space, limit), memory() / 2)


@lru_cache
def speed_of(folder: Path) -> float:
    """Return how many bytes a second can be written to the cache at a folder; 1 if none can."""
    path = folder / "codes" / f"{uuid4().hex}.tmp"
    data = os.urandom(TRIED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 10 * TRIED:
            return 1.0
        start = time.perf_counter()
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 1.0
    finally:
        with suppress(OSError):
            path.unlink()
    return TRIED / (time.perf_counter() - start)


def memory() -> float:
    """Return the bytes of memory that this machine has; 4 GiB where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4 * 2.0**30
