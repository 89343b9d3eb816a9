"""A trunk for which something faster than eager is sought, and what is known of it by then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from topwork.data.loading import workers
from topwork.network.device import one_core_a_thread
from topwork.network.trace import first_line
from topwork.trunk.program import TrunkProgram
from topwork.trunk.runtimes.available import runtime_named
from topwork.trunk.runtimes.compiled import CompiledTrunk, compile_trunk, trunk_key
from topwork.trunk.runtimes.eager import compiled_run, half_run
from topwork.trunk.runtimes.runtime import Run, Runtime
from topwork.trunk.runtimes.timing import fixed_pixels, seconds_per_image
from topwork.trunk.runtimes.trials import Trial, judged, try_eager


@dataclass(frozen=True, eq=False)
class ReadyTrunk:
    """A trunk that eager can run, for which something faster is sought.

    Attributes:
        program: the layers.
        eager: runs them.
        facts: plain data that identifies them.
    """

    program: TrunkProgram
    eager: Run
    facts: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.program.mean.device

    def runtime(self, name: str) -> Runtime:
        """Return the runtime of a name, as it would run this trunk."""
        return runtime_named(name, self.device, self.program.size[:2])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a batch of pixels, [B, H, W, C]."""
        return (self.runtime("eager").batch, *self.program.size)

    @cached_property
    def key(self) -> str:
        """Of its compiled form."""
        return trunk_key(self.facts, self.shape, workers())

    @cached_property
    def expected(self) -> list[np.ndarray]:
        """What eager makes of the fixed pixels."""
        return self.eager(fixed_pixels(self.shape))

    @cached_property
    def eager_trial(self) -> Trial:
        """How fast eager is, measured as the others are."""
        with one_core_a_thread():
            return try_eager(self.eager, self.shape, workers())

    @property
    def megabytes(self) -> float:
        """Of its weights."""
        return sum(value.nbytes for value in self.program.state_dict().values()) / 1e6


def compiled_now(trunk: ReadyTrunk) -> CompiledTrunk:
    """Export a trunk, try the ONNX runtimes that are installed on it, and keep all that.

    Raises:
        CacheError: if it cannot be kept.
    """
    return compile_trunk(
        trunk.program, trunk.key, trunk.eager_trial, trunk.expected, trunk.shape, workers()
    )


def tried_here(trunk: ReadyTrunk, name: str) -> tuple[Trial, Run | None]:
    """Try one of torch's own runtimes in this process; no run comes with a problem."""
    make = half_run if name == "half" else compiled_run
    pixels, begin = fixed_pixels(trunk.shape), time.perf_counter()
    try:
        with one_core_a_thread():
            run = make(trunk.program, trunk.device)
            found = run(pixels)
            setup = time.perf_counter() - begin
            seconds = seconds_per_image(run, pixels, workers())
    except Exception as error:  # no compiler, an operation it does not know, and many more
        return Trial(name, problem=first_line(error)), None
    trial = judged(name, found, trunk.expected, seconds, setup)
    return trial, None if trial.problem else run
