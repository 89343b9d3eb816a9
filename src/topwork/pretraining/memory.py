"""Whether a step of training fits into memory, found out with a few images before it begins."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from topwork.errors import PlanError
from topwork.learn.loop import Inputs, device_of, mixed_precision, own_randomness
from topwork.phase import Phase

FEW, MORE = 2, 4
"""Images that the need is measured with; batch norms want more than one."""
GROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much the processes of a container may take together."""


def require_memory(stage: str, module: nn.Module, phase: Phase, inputs: Inputs) -> None:
    """Refuse a training whose steps keep more for the backward pass than there is room for.

    They need more than that, so what is refused could not have been done.

    Args:
        stage: its name, for the message.
        module: what is trained; it is left as it is, and so is the global random state.
        phase: how; its batch counts, or how many go through the module at once.
        inputs: what it learns from.

    Raises:
        PlanError: saying how many images would fit.
    """
    steps = max(1, math.ceil(len(inputs) / phase.batch))
    batch = math.ceil(len(inputs) / steps)  # as an epoch is divided
    at_once = min(phase.at_once or batch, batch)
    if at_once <= MORE:
        return
    few, more = (
        kept_bytes(module, inputs.batch(range(some), 0), phase.precision) for some in (FEW, MORE)
    )
    each = max(1, more - few) / (MORE - FEW)
    whatever = few - FEW * each  # such as weights in half precision
    needed, free = whatever + at_once * each, free_memory(device_of(module))
    if needed <= free:
        return
    fitting = int((free - whatever) / each)
    name = "at_once" if phase.at_once else "batch"
    fewer = f'fewer, such as {{"phase": {{"{name}": {max(fitting // 2, 1)}}}}} in --recipe'
    raise PlanError(
        f"{stage}: a step with {at_once} images keeps {needed / 1e9:.1f} GB and {free / 1e9:.1f}"
        f" are free; give {fewer if fitting > 0 else 'a smaller network'}, or a smaller --size"
    )


def kept_bytes(module: nn.Module, inputs: Sequence[Tensor], precision: str) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out.

    >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> kept_bytes(layers, [torch.ones(2, 4)], "float32")  # the inputs, and what the ReLU gives
    96
    """
    copied = deepcopy(module).train()  # batch norms would take notice
    own = {
        value.untyped_storage().data_ptr() for value in (*copied.parameters(), *copied.buffers())
    }
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    device = device_of(module)
    with (
        own_randomness(0, device),
        torch.autograd.graph.saved_tensors_hooks(note, lambda value: value),
        mixed_precision(device, precision),
    ):
        outputs = copied(*inputs)
    del outputs  # until here all that is kept is alive, and has a place of its own
    return sum(kept.values())


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free; infinity where nothing says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    found = []
    with suppress(OSError, ValueError, KeyError):
        found.append(1024 * read_numbers(Path("/proc/meminfo"))["MemAvailable:"])
    with suppress(OSError, ValueError, KeyError):
        limit, taken = (
            float((GROUP / f"memory.{what}").read_text()) for what in ("max", "current")
        )
        found.append(limit - taken + read_numbers(GROUP / "memory.stat")["inactive_file"])
    with suppress(AttributeError, OSError, ValueError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(found, default=float("inf"))


def read_numbers(file: Path) -> dict[str, float]:
    """Return the first number of each line of a file of Linux, by the word before it."""
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) > 1}
