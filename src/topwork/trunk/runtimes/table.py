"""The table that ``topwork inspect --runtimes`` prints: each runtime tried, here and now."""

from __future__ import annotations

from typing import Any

import torch

from topwork.data.views import Preprocessing
from topwork.network.chain import Chain
from topwork.network.codes import choose_pool
from topwork.network.device import one_core_a_thread
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import prepare, program_facts
from topwork.trunk.program import TrunkProgram
from topwork.trunk.runtimes.available import ONNX_RUNTIMES, why_not
from topwork.trunk.runtimes.ready import ReadyTrunk, compiled_now, tried_here
from topwork.trunk.runtimes.runtime import Run
from topwork.trunk.runtimes.trials import Trial, fastest, gain


def runtimes_of(
    chain: Chain, preprocessing: Preprocessing, device: torch.device
) -> list[dict[str, Any]]:
    """Try every runtime on all of a network's layers below L; the rest as for `runtime_table`.

    Args:
        chain: the network.
        preprocessing: what an image goes through.
        device: where it runs.
    """
    pool = choose_pool(chain, [chain.top], None)
    with one_core_a_thread():
        trunk = prepare(chain, [chain.top.name], pool, preprocessing, Execution(device))
        return runtime_table(trunk.program, trunk.eager.run, program_facts(trunk))


def runtime_table(program: TrunkProgram, eager: Run, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Try every runtime on a trunk, anew; torch.compile alone takes half a minute.

    What is found out about the ONNX runtimes replaces what was kept.

    Args:
        program: the trunk.
        eager: runs it.
        facts: plain data that identifies it, as for `topwork.trunk.runtimes.choice.faster_run`.

    Returns:
        plain data, a row for each runtime, eager first: ``runtime``, ``images_per_second``,
        ``ratio`` (to eager), ``difference`` (from eager, relative), ``setup`` (seconds to open it,
        compiling included), ``problem`` (why it cannot be used) and ``chosen``.

    Raises:
        CacheError: if the compiled trunk cannot be kept.
    """
    trunk = ReadyTrunk(program, eager, facts)
    trials = [trunk.eager_trial]
    if any(why_not(name, trunk.device) is None for name in ONNX_RUNTIMES):
        trials += compiled_now(trunk).trials[1:]
    own = [name for name in ("compile", "half") if why_not(name, trunk.device) is None]
    trials += [tried_here(trunk, name)[0] for name in own]
    # What differs as much as half precision does is never chosen unasked.
    best = fastest([trial for trial in trials if trial.runtime != "half"])
    rows = [row_of(trial, trials[0]) | {"chosen": trial is best} for trial in trials]
    absent = {name: why_not(name, trunk.device) for name in (*ONNX_RUNTIMES, "compile", "half")}
    rows += [
        row_of(Trial(name, problem=reason), trials[0]) | {"chosen": False}
        for name, reason in absent.items()
        if reason
    ]
    return rows


def row_of(trial: Trial, eager: Trial) -> dict[str, Any]:
    """Return a trial as a row of the table."""
    seconds = trial.seconds_per_image
    return {
        "runtime": trial.runtime,
        "images_per_second": 1 / seconds if seconds else None,
        "ratio": gain(trial, eager) if seconds else None,
        "difference": trial.difference,
        "setup": trial.setup if seconds else None,
        "problem": trial.problem,
    }
