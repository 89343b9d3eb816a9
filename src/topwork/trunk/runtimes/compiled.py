"""Compiled trunks: the ONNX file of a trunk and what was found about it, kept in the cache.

A compiled trunk is a folder ``trunks/<key>`` of the cache with ``trunk.onnx`` and ``trials.json``.
The key covers the trunk (weights, calls, outputs, preprocessing), the batch, the machine and the
versions of the packages that take part: another processor or release tries anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from topwork.data.files import write_atomically
from topwork.trunk.cache import cache_folder, cannot_write
from topwork.trunk.fingerprint import key_of
from topwork.trunk.program import TrunkProgram
from topwork.trunk.runtimes.available import ONNX_RUNTIMES
from topwork.trunk.runtimes.machine import machine_facts, version_of, versions
from topwork.trunk.runtimes.onnx_program import NoOnnxForm, write_onnx
from topwork.trunk.runtimes.trials import Trial, try_onnx

log = logging.getLogger("topwork")

FORMAT = 1
MODEL, TRIALS = "trunk.onnx", "trials.json"
DAY = 86400

ABANDONED = 3600
"""Seconds after which a folder that was begun and never finished may go."""


@dataclass(frozen=True)
class CompiledTrunk:
    """A trunk as ONNX, tried.

    Attributes:
        model: the file; not there if the trunk has no ONNX form.
        trials: eager's, then those of the ONNX runtimes that are installed.
        seconds: that it took to export and try.
    """

    model: Path
    trials: tuple[Trial, ...]
    seconds: float

    def trial(self, runtime: str) -> Trial:
        """Return the trial of a runtime."""
        found = [trial for trial in self.trials if trial.runtime == runtime]
        return found[0] if found else Trial(runtime, problem="was not tried")


def trunk_key(facts: dict[str, Any], shape: Sequence[int], threads: int) -> str:
    """Return the key under which a compiled trunk is kept.

    Args:
        facts: plain data that identifies the trunk and its outputs.
        shape: of its pixels, [B, H, W, C].
        threads: that run it.
    """
    return key_of(
        {
            "format": FORMAT,
            "trunk": facts,
            "shape": list(shape),
            "threads": threads,
            "machine": machine_facts(),
            "versions": versions(),
        }
    )


def remembered(key: str) -> CompiledTrunk | None:
    """Open a compiled trunk, checking every byte; None if there is none.

    A damaged one is set aside, named, and None returned.
    """
    folder = folder_of(key)
    if not folder.is_dir():
        return None
    try:
        found = json.loads((folder / TRIALS).read_text(encoding="utf-8"))
        trials = tuple(Trial(**trial) for trial in found["trials"])
        is_whole = found["sha256"] == digest_of(folder / MODEL)
        compiled = CompiledTrunk(folder / MODEL, trials, float(found["seconds"]))
    except (OSError, ValueError, LookupError, TypeError):
        is_whole = False
    if is_whole and is_doubtful(folder, trials):
        return None
    if is_whole:
        with suppress(OSError):  # what was not used for longest goes first where room is needed
            os.utime(folder / TRIALS)
        return compiled
    if not folder.is_dir():  # removed meanwhile, to make room
        return None
    set_aside(folder)
    log.warning("cache: the compiled trunk at %s is damaged; set aside, it is made again", folder)
    return None


def is_doubtful(folder: Path, trials: Sequence[Trial]) -> bool:
    """Say whether every runtime failed a day ago or more: the reason may be gone by now."""
    tried = trials[1:]
    if not tried or not all(trial.problem for trial in tried):
        return False
    return time.time() - folder.stat().st_mtime > DAY


def compile_trunk(
    program: TrunkProgram,
    key: str,
    eager: Trial,
    expected: Sequence[np.ndarray],
    shape: tuple[int, ...],
    threads: int,
) -> CompiledTrunk:
    """Export a trunk, try the runtimes that are installed on it, and keep all that.

    Args:
        program: the trunk, on the CPU.
        key: of `trunk_key`; what was kept under it is replaced.
        eager: eager's own trial.
        expected: what eager makes of the fixed pixels.
        shape: of these, [B, H, W, C].
        threads: that will run it.

    Raises:
        CacheError: if it cannot be written.
    """
    begin = time.perf_counter()
    home = folder_of(key)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(home.parent)
        staged = home.parent / f"{uuid4().hex}.tmp"
        staged.mkdir()
        try:
            tried = export_and_try(program, staged / MODEL, expected, shape, threads)
            facts = {
                "format": FORMAT,
                "sha256": digest_of(staged / MODEL),
                "seconds": time.perf_counter() - begin,
                "trials": [asdict(trial) for trial in (eager, *tried)],
                "machine": machine_facts(),
                "versions": versions(),
            }
            write_atomically(staged / TRIALS, json.dumps(facts, indent=2).encode())
            put_in_place(staged, home)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise cannot_write(home, error) from error
    return CompiledTrunk(home / MODEL, (eager, *tried), time.perf_counter() - begin)


def export_and_try(
    program: TrunkProgram,
    model: Path,
    expected: Sequence[np.ndarray],
    shape: tuple[int, ...],
    threads: int,
) -> list[Trial]:
    """Write the ONNX file, and try each runtime that is installed on it."""
    installed = [name for name in ONNX_RUNTIMES if version_of(name)]
    try:
        write_onnx(program, shape, model)
    except NoOnnxForm as error:
        model.unlink(missing_ok=True)
        return [Trial(name, problem=f"has no ONNX form: {error}") for name in installed]
    return [try_onnx(name, model, expected, shape, threads) for name in installed]


def put_in_place(staged: Path, home: Path) -> None:
    """Rename a finished folder; one that is there is replaced, unless nothing failed in it.

    It is so where another process was first; it may be at work with its files.

    Raises:
        OSError: if it cannot be renamed, and no other process has put one there either.
    """
    if home.is_dir():
        kept = remembered(home.name)
        if kept and kept.model.exists() and not any(trial.problem for trial in kept.trials):
            return
        shutil.rmtree(home, ignore_errors=True)
    try:
        staged.rename(home)
    except OSError:
        if not home.is_dir():
            raise


def set_aside(folder: Path) -> None:
    """Move a damaged folder out of the way; only the last one is kept."""
    aside = folder.with_suffix(".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # another process was first
        os.replace(folder, aside)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes left behind that died while compiling."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def folder_of(key: str) -> Path:
    """Return where the compiled trunk of a key lies."""
    return cache_folder() / "trunks" / key


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
