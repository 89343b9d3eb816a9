"""Whether a step of training fits into memory, found out with two images before the work begins."""

from __future__ import annotations

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

TRIED = 2
"""Images that the need is measured with; batch norms want more than one."""
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says how much the processes of a container may take together."""


def require_memory(stage: str, module: nn.Module, phase: Phase, inputs: Inputs) -> None:
    """Refuse a training whose steps keep more for the backward pass than there is room for.

    That is a lower bound of what they need, so what is refused could not have been done.

    Args:
        stage: its name, for the message.
        module: what is trained; it is left as it is, and so is the global random state.
        phase: how; its batch counts.
        inputs: what it learns from.

    Raises:
        PlanError: saying how many images would fit.
    """
    batch = min(phase.at_once or phase.batch, len(inputs))
    if batch <= TRIED:
        return
    images = inputs.batch(range(TRIED), 0)
    each = kept_bytes(module, images, phase.precision) / TRIED
    free = free_memory(device_of(module))
    if batch * each <= free:
        return
    fitting = int(free / each)
    some = f'fewer at once, such as {{"phase": {{"batch": {max(fitting // 2, 1)}}}}} in --recipe'
    raise PlanError(
        f"{stage}: a step with {batch} images keeps {batch * each / 1e9:.1f} GB and"
        f" {free / 1e9:.1f} are free; give {some if fitting else 'a smaller network'},"
        " or a smaller --size"
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
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * float(available.split()[1]))
    with suppress(OSError, ValueError):
        found.append(float(GROUP_LIMIT.read_text(encoding="ascii")))
    with suppress(AttributeError, OSError, ValueError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(found, default=float("inf"))
