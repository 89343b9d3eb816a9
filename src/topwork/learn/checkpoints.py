"""Checkpoints: all that a fit under way depends on, in files that are whole or not there.

A checkpoint is one safetensors file; what is no tensor lies in its header as JSON. Its name
carries its number and the SHA-256 of its bytes, so that a damaged one shows when it is read; the
one before it is kept until two newer ones are written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from topwork.data.files import write_atomically

log = logging.getLogger("topwork")

KEPT = 2
MOST_OF_THE_TIME = 0.05  # share of a training's time that saving may take


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: by name.
        facts: plain data.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass
class Checkpoints:
    """A folder of checkpoints.

    Attributes:
        folder: where they lie; it is made when the first is saved.
        saved_at: when the last was saved, on `time.perf_counter`.
        seconds: how long that took.
    """

    folder: Path
    saved_at: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def due(self) -> bool:
        """Say whether saving now would take no more than a twentieth of the time."""
        return self.seconds <= MOST_OF_THE_TIME * (time.perf_counter() - self.saved_at)

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the newest two.

        Raises:
            OSError: if it cannot be written; those before are still there.
        """
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Clones, as a file of safetensors holds no memory under two names.
        whole = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        data = safetensors.torch.save(whole, {"facts": json.dumps(facts)})
        files = self.files()
        number = int(files[-1].name.partition("-")[0]) + 1 if files else 1
        digest = hashlib.sha256(data).hexdigest()
        write_atomically(self.folder / f"{number:06d}-{digest}.safetensors", data)
        for old in files[: 1 - KEPT or None]:
            old.unlink(missing_ok=True)
        self.saved_at = time.perf_counter()
        self.seconds = self.saved_at - started

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; None if there is none.

        A damaged one is named in a warning and set aside, so that it does not count among those
        that are kept, and the one before it is taken.
        """
        for file in reversed(self.files()):
            checkpoint = read_checkpoint(file)
            if checkpoint is not None:
                return checkpoint
            log.warning("%s is damaged; set aside, looking for the checkpoint before it", file)
            with suppress(OSError):  # read-only; it is not used anyway
                file.replace(file.with_suffix(".damaged"))
        return None

    def files(self) -> list[Path]:
        """Return the checkpoints' files, the oldest first."""
        return sorted(self.folder.glob("[0-9]*-*.safetensors"))


def read_checkpoint(file: Path) -> Checkpoint | None:
    """Read a checkpoint; None if its bytes are not those that its name promises."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != file.stem.partition("-")[2]:
        return None
    try:
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
        return Checkpoint(safetensors.torch.load(data), facts)
    except (SafetensorError, ValueError, KeyError):
        return None
