"""Choosing what runs a trunk: eager, or what is measured to be faster and repays its making."""

from __future__ import annotations

import logging
from typing import Any

from topwork.data.loading import workers
from topwork.errors import CacheError, UsageError
from topwork.network.trace import first_line
from topwork.trunk.execution import Execution
from topwork.trunk.program import TrunkProgram
from topwork.trunk.runtimes.available import (
    ONNX_RUNTIMES,
    require_runtime,
    runtime_named,
    why_not,
)
from topwork.trunk.runtimes.compiled import CompiledTrunk, remembered
from topwork.trunk.runtimes.cost import COMPILING, GUESS, repays, worth_compiling
from topwork.trunk.runtimes.onnx_runs import open_onnx
from topwork.trunk.runtimes.ready import ReadyTrunk, compiled_now, tried_here
from topwork.trunk.runtimes.runtime import Run, Runtime
from topwork.trunk.runtimes.timing import fixed_pixels
from topwork.trunk.runtimes.trials import Trial, fastest, gain, judged, said_of

log = logging.getLogger("topwork")


def runtimes_for(execution: Execution, size: tuple[int, int]) -> tuple[Runtime, ...]:
    """Return the runtimes that may run trunks here, eager first; or the one that is asked for.

    Half precision is never among them unless asked for: it differs by more than others may.

    Args:
        execution: how trunks are to be run.
        size: height and width of an image in pixels.

    Raises:
        UsageError: if the one asked for cannot be had here.
    """
    if execution.runtime != "auto":
        require_runtime(execution.runtime, execution.device)
        return (runtime_named(execution.runtime, execution.device, size),)
    names = ("eager", *ONNX_RUNTIMES, "compile")
    possible = [name for name in names if not why_not(name, execution.device)]
    return tuple(runtime_named(name, execution.device, size) for name in possible)


def faster_run(
    program: TrunkProgram,
    eager: Run,
    facts: dict[str, Any],
    images_left: int,
    seconds_per_image: float,
    wanted: str = "auto",
) -> tuple[Runtime, Run]:
    """Return what shall run a trunk: the fastest that repays itself within the work at hand.

    What is found out about a trunk is kept, so that the next run begins with it.

    Args:
        program: the trunk.
        eager: runs it.
        facts: plain data that identifies its weights, calls, outputs and preprocessing.
        images_left: that are to go through it.
        seconds_per_image: wall time that one takes eager, all cores at work.
        wanted: a runtime's name, or "auto".

    Raises:
        UsageError: if the runtime asked for by name cannot be had, fails, or gives other numbers
            than eager.
        CacheError: if what was asked for by name cannot be kept.
    """
    trunk = ReadyTrunk(program, eager, facts)
    plain = trunk.runtime("eager"), eager
    if wanted == "eager":
        return plain
    if wanted != "auto":
        return named_run(trunk, wanted)
    return (
        onnx_run(trunk, images_left, seconds_per_image)
        or inductor_run(trunk, images_left, seconds_per_image)
        or plain
    )


def onnx_run(trunk: ReadyTrunk, images: int, seconds: float) -> tuple[Runtime, Run] | None:
    """Return the fastest ONNX runtime if it gains and repays itself, else None."""
    if not any(why_not(name, trunk.device) is None for name in ONNX_RUNTIMES):
        return None
    kept = remembered(trunk.key)
    if kept is None and not worth_compiling(images, seconds, trunk.shape[0], trunk.megabytes):
        return None
    try:
        compiled = kept or compiled_now(trunk)
    except CacheError as error:
        log.warning("runtime: eager, for a compiled trunk cannot be kept: %s", error)
        return None
    best, eager = fastest(compiled.trials), compiled.trials[0]
    if best is eager:
        if not kept:
            log.info("runtime: %s", story(compiled, eager))
        return None
    if not repays(images, seconds, gain(best, eager), best.setup):
        return None
    try:
        run = opened(trunk, compiled, best)
    except UsageError as error:
        log.warning("%s; eager goes on", error)
        return None
    log.info("runtime: %s", said_of(best, eager) if kept else story(compiled, best))
    return trunk.runtime(best.runtime), run


def inductor_run(trunk: ReadyTrunk, images: int, seconds: float) -> tuple[Runtime, Run] | None:
    """Return torch.compile's program if the work is long enough and it gains, else None.

    Where an ONNX runtime could be had it was faster in all that was measured, and is taken.
    """
    if not repays(images, seconds, GUESS, COMPILING):
        return None
    trial, run = tried_here(trunk, "compile")
    if run is None or fastest([trunk.eager_trial, trial]) is not trial:
        log.info("runtime: eager; %s", said_of(trial))
        return None
    log.info("runtime: %s", said_of(trial, trunk.eager_trial))
    return trunk.runtime("compile"), run


def named_run(trunk: ReadyTrunk, name: str) -> tuple[Runtime, Run]:
    """Return the runtime that was asked for by name, fast or not."""
    require_runtime(name, trunk.device)
    if name not in ONNX_RUNTIMES:
        trial, run = tried_here(trunk, name)
        if run is None:
            raise UsageError(f"--runtime {name}: {trial.problem}; choose auto or eager")
        log.info("runtime: %s", said_of(trial, trunk.eager_trial))
        return trunk.runtime(name), run
    kept = remembered(trunk.key)
    if kept and kept.trial(name).problem:  # it may have had its moment
        kept = None
    compiled = kept or compiled_now(trunk)
    trial = compiled.trial(name)
    if trial.problem:
        raise UsageError(f"--runtime {name}: {trial.problem}; choose auto or eager")
    run = opened(trunk, compiled, trial)
    log.info("runtime: %s", said_of(trial, compiled.trials[0]) if kept else story(compiled, trial))
    return trunk.runtime(name), run


def story(compiled: CompiledTrunk, chosen: Trial) -> str:
    """Say what was found out about a trunk."""
    eager = compiled.trials[0]
    others = [trial for trial in compiled.trials[1:] if trial is not chosen]
    parts = [said_of(chosen, eager if chosen is not eager else None), *map(said_of, others)]
    return f"{'; '.join(parts)}; found out in {compiled.seconds:.1f} s and kept"


def opened(trunk: ReadyTrunk, compiled: CompiledTrunk, trial: Trial) -> Run:
    """Open a compiled trunk, and hold it against eager once more.

    Raises:
        UsageError: if it does not open here, or gives other numbers than eager.
    """
    name = trial.runtime
    try:
        run = open_onnx(name, compiled.model, workers())
        found = run(fixed_pixels(trunk.shape))
    except Exception as error:  # the runtimes' own, of many kinds
        raise UsageError(f"runtime {name}: does not open ({first_line(error)})") from error
    again = judged(name, found, trunk.expected, trial.seconds_per_image or 0.0, trial.setup)
    if again.problem:
        raise UsageError(f"runtime {name}: {again.problem}; choose auto or eager")
    return run
