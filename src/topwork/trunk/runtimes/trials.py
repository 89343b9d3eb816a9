"""Trials: how fast a runtime is on this machine, and how far its outputs lie from eager's.

An ONNX runtime is tried in a process apart (`topwork.trunk.runtimes.child`): a kernel that holds
an instruction which this processor lacks kills that one, and the run goes on without it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topwork.trunk.runtimes.runtime import Run
from topwork.trunk.runtimes.timing import fixed_pixels, seconds_per_image

CHILD = "topwork.trunk.runtimes.child"
TIMEOUT = 120
"""Seconds after which a trial is taken to hang."""

TOLERANCE = 1e-4
"""Between runtimes, relative to a tensor's largest absolute value."""

HALF_TOLERANCE = 1e-2
"""Of half precision, which is never chosen unless asked for."""

GAIN = 1.05
"""How many times as fast as eager a runtime must be to be taken."""


@dataclass(frozen=True)
class Trial:
    """What came of trying a runtime.

    Attributes:
        runtime: its name.
        seconds_per_image: wall time, all threads at work; None if it did not get so far.
        difference: from eager, relative to the tensor's largest absolute value, over all outputs.
        setup: seconds until it was open: compiling included, exporting not.
        problem: why it must not be used, in words; None if it may.
    """

    runtime: str
    seconds_per_image: float | None = None
    difference: float | None = None
    setup: float = 0.0
    problem: str | None = None


def try_eager(run: Run, shape: tuple[int, ...], threads: int) -> Trial:
    """Time eager as a child times the others."""
    return Trial("eager", seconds_per_image(run, fixed_pixels(shape), threads), 0.0)


def try_onnx(
    runtime: str,
    model: Path,
    expected: Sequence[np.ndarray],
    shape: tuple[int, ...],
    threads: int,
) -> Trial:
    """Try a runtime on an ONNX file, in a process apart.

    Args:
        runtime: its name.
        model: the file.
        expected: what eager makes of the fixed pixels.
        shape: of these.
        threads: as many run batches side by side.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs.npz"
        try:
            ended = subprocess.run(
                child_command(runtime, model, outputs, shape, threads),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return Trial(runtime, problem=f"did not end within {TIMEOUT} s")
        if ended.returncode:
            return Trial(runtime, problem=how_it_ended(ended.returncode, ended.stderr))
        try:
            said = json.loads(ended.stdout.splitlines()[-1])
            with np.load(outputs, allow_pickle=False) as file:
                found = [file[name] for name in file.files]
            seconds, setup = float(said["seconds_per_image"]), float(said["setup"])
        except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
            return Trial(runtime, problem="ended without a result")
    return judged(runtime, found, expected, seconds, setup)


def child_command(
    runtime: str, model: Path, outputs: Path, shape: tuple[int, ...], threads: int
) -> list[str]:
    """Return the command of a trial. -P: nothing is imported from the folder we happen to be in."""
    arguments = [runtime, str(model), str(outputs), "x".join(map(str, shape)), str(threads)]
    return [sys.executable, "-P", "-m", CHILD, *arguments]


def how_it_ended(code: int, errors: str) -> str:
    """Say in words how a process ended that should not have.

    >>> how_it_ended(-4, ""), how_it_ended(1, "ValueError: no such layer")
    ('killed by SIGILL', 'ValueError: no such layer')
    """
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    said = errors.strip().splitlines()
    return said[-1] if said else f"ended with code {code}"


def judged(
    runtime: str,
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    seconds: float,
    setup: float,
) -> Trial:
    """Return a trial, with its problem if the outputs are not eager's."""
    tolerance = HALF_TOLERANCE if runtime == "half" else TOLERANCE
    if [part.shape for part in found] != [part.shape for part in expected]:
        return Trial(runtime, seconds, None, setup, "gives outputs of other shapes than eager")
    apart = float(np.max([0.0, *map(relative_difference, found, expected)]))  # NaN goes through
    if not np.isfinite(apart):
        return Trial(runtime, seconds, None, setup, "gives numbers that are not finite")
    problem = None
    if apart > tolerance:
        problem = f"differs from eager by {apart:.0e}, more than {tolerance:.0e}"
    return Trial(runtime, seconds, apart, setup, problem)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the largest absolute value expected.

    Not finite where one of the values is not.

    >>> relative_difference(np.array([1.0, 4.5]), np.array([1.0, 5.0]))
    0.1
    """
    apart = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    return apart / scale if scale else apart


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the fastest trial without a problem; eager's unless another gains enough.

    >>> wrong = Trial("openvino", 0.001, problem="differs from eager")
    >>> fastest([Trial("eager", 0.02), Trial("onnxruntime", 0.0195), wrong]).runtime
    'eager'
    """
    eager = next(trial for trial in trials if trial.runtime == "eager")
    good = [trial for trial in trials if trial.problem is None]
    best = min(good, key=lambda trial: trial.seconds_per_image or float("inf"))
    return best if gain(best, eager) >= GAIN else eager


def gain(trial: Trial, eager: Trial) -> float:
    """Return how many times as fast as eager a runtime is; 0 if it was not timed."""
    if not trial.seconds_per_image or not eager.seconds_per_image:
        return 0.0
    return eager.seconds_per_image / trial.seconds_per_image


def said_of(trial: Trial, eager: Trial | None = None) -> str:
    """Say how a trial went, and how that compares with eager's.

    >>> said_of(Trial("onnxruntime", 0.004, 8e-7), Trial("eager", 0.01))
    'onnxruntime, 250 images/s against 100 eager (largest difference 8e-07)'
    >>> said_of(Trial("openvino", problem="killed by SIGILL"))
    'openvino, killed by SIGILL'
    """
    if trial.problem or not trial.seconds_per_image:
        return f"{trial.runtime}, {trial.problem or 'not timed'}"
    speed = f"{trial.runtime}, {1 / trial.seconds_per_image:.3g} images/s"
    if eager is None or not eager.seconds_per_image:
        return speed
    return (
        f"{speed} against {1 / eager.seconds_per_image:.3g} eager"
        f" (largest difference {trial.difference or 0.0:.0e})"
    )
