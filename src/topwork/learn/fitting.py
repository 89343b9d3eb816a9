"""A fit under way, and how it is saved and taken up again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topwork.errors import UsageError
from topwork.learn.checkpoints import Checkpoint, Checkpoints
from topwork.learn.loop import Training
from topwork.learn.samples import Samples
from topwork.learn.targets import Targets
from topwork.network.loading import Loaded
from topwork.network.model import Model

FORMAT = 4
"""Of checkpoints; raise it when an older one cannot be taken up."""


@dataclass
class Fitting:
    """A fit under way.

    Attributes:
        loaded: the network, whose tensors are trained in place, and the plan.
        model: shares its tensors.
        samples: the images.
        indices: those that can be learned from, as numbers in the image set.
        targets: of these.
        groups: of these, what must not be divided.
        held_out: positions among these that are scored and not trained on.
        seed: of everything that is drawn.
        source: the source's weights, for phases that pull to them.
        checkpoints: where the fit is saved; None for nowhere.
        lowest: the lowest depth that anything was frozen at so far: below it nothing changed.
        records: what became of the phases that have ended.
        solved: whether the head is the solution on codes of all images but the held-out ones, and
            nothing was trained after it.
        overfitted: whether kept layers were trained: codes of the images that they were trained on
            look better than those of others, so that only held-out images can choose a head.
        before: seconds that it took before it was interrupted.
        began: when it began or was taken up, by `time.perf_counter`.
    """

    loaded: Loaded
    model: Model
    samples: Samples
    indices: tuple[int, ...]
    targets: Targets
    groups: np.ndarray
    held_out: np.ndarray
    seed: int
    source: dict[str, Tensor]
    checkpoints: Checkpoints | None
    lowest: int
    records: list[dict[str, Any]] = field(default_factory=list)
    solved: bool = False
    overfitted: bool = False
    before: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def rows(self, *, held_out: bool) -> list[int]:
        """Return the positions that are held out, or those that are trained on."""
        chosen = np.isin(np.arange(len(self.indices)), self.held_out)
        return np.flatnonzero(chosen == held_out).tolist()

    def groups_held_out(self) -> np.ndarray | None:
        """Return the groups of what is held out, in order; None if each image stands alone.

        Held out within their groups, for want of others, images tell of these groups only.
        """
        groups = self.groups[self.rows(held_out=True)]
        divided = np.isin(groups, self.groups[self.rows(held_out=False)])
        return None if divided.all() else groups

    def changed(self) -> dict[str, Tensor]:
        """Return all tensors of the model that the fit may have changed, by layer name."""
        depth_of = self.loaded.chain.depth_of_state()
        above = self.lowest + 1
        state = self.model.layer_state()
        return {k: v for k, v in state.items() if depth_of.get(k, above) >= above}

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have been written for, so that it can be taken up."""
        digests = [str(self.samples.audit.digests[index]) for index in self.indices]
        data = hashlib.sha256(" ".join(digests).encode())
        data.update(np.ascontiguousarray(self.targets.values).tobytes())
        data.update(self.held_out.tobytes())
        weights = self.loaded.weights
        return {
            "plan": self.loaded.plan.to_dict(),
            "training images and their labels": data.hexdigest(),
            "seed": self.seed,
            "weights": weights["sha256"] if weights else None,
            "backbone": self.loaded.backbone.spec.to_dict(),
            "device": self.samples.execution.device.type,
            "decoding": self.samples.execution.decoding,
            "format of checkpoints": FORMAT,
        }


def save(
    fitting: Fitting,
    facts: Mapping[str, Any],
    training: Training | None = None,
    best: Mapping[str, Tensor] | None = None,
    began: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a fit, if it has a place to be saved in.

    Args:
        fitting: the fit.
        facts: where it stands; ``phase`` is the number of the phase to go on with, from 0.
        training: the training under way.
        best: the tensors of the model that scored best in it.
        began: those that it began with, and how they scored.

    Raises:
        UsageError: if there is no space; what was saved before is still there.
    """
    if fitting.checkpoints is None:
        return
    tensors = {f"model.{name}": value for name, value in fitting.changed().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    tensors |= {f"began.{name}": value for name, value in (began or {}).items()}
    if training:
        tensors |= {f"training.{name}": value for name, value in training.tensors().items()}
    everything = {
        **facts,
        "identity": fitting.identity(),
        "training": training.facts() if training else None,
        "lowest": fitting.lowest,
        "records": fitting.records,
        "solved": fitting.solved,
        "overfitted": fitting.overfitted,
        "elapsed": fitting.before + time.perf_counter() - fitting.began,
    }
    try:
        fitting.checkpoints.save(tensors, everything)
    except OSError as error:
        raise UsageError(
            f"{fitting.checkpoints.folder} cannot be written ({error.strerror or error}); free some"
            " space, then go on with --resume"
        ) from error


def restore(fitting: Fitting, checkpoint: Checkpoint) -> None:
    """Bring a fit to where a checkpoint was written; a training under way is for its phase to do.

    Raises:
        UsageError: if the checkpoint is of another fit, naming what differs.
    """
    written = checkpoint.facts["identity"]
    now = json.loads(json.dumps(fitting.identity()))
    for name in now:
        if written.get(name) != now[name]:
            raise UsageError(
                f"--resume: the fit that was interrupted had another {name}; give the same"
                " command again, or remove what it left and begin anew"
            )
    fitting.lowest = checkpoint.facts["lowest"]
    fitting.records = checkpoint.facts["records"]
    fitting.solved = checkpoint.facts["solved"]
    fitting.overfitted = checkpoint.facts["overfitted"]
    fitting.before = checkpoint.facts["elapsed"]
    put(fitting.model, part(checkpoint.tensors, "model"))


def part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a kind, without it.

    >>> part({"best.w": torch.zeros(1), "model.w": torch.ones(1)}, "model")
    {'w': tensor([1.])}
    """
    prefix = f"{kind}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@torch.no_grad()
def put(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model by their layer names."""
    own = model.layer_state()
    for name, value in tensors.items():
        own[name].copy_(value)
