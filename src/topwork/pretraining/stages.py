"""Stages of a pretraining: stretches of gradient descent that can be interrupted and gone on with.

Every method is a generator on top of `Stages.train`. Layer-by-layer methods have a stage for each
layer, the others one. What a stage trains is a module that returns each sample's loss itself, as
the first of two columns; in the second is how much of the sample was right, 0 to 1, where the
method has such a thing. So the training loop, its checkpoints and its randomness are those of
every fit (`topwork.learn.loop`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topwork.data.loading import Track, untracked
from topwork.errors import PlanError, UsageError
from topwork.learn.checkpoints import Checkpoint, Checkpoints
from topwork.learn.fitting import part
from topwork.learn.loop import Epoch, Inputs, Training, seed_of, steps
from topwork.learn.objective import Objective
from topwork.learn.optimizers import group_parameters
from topwork.phase import Phase
from topwork.pretraining.memory import require_memory

log = logging.getLogger("topwork")

FORMAT = 3
"""Of checkpoints; raise it when an older one cannot be taken up."""


@dataclass(frozen=True, eq=False)
class Progress:
    """What came of an epoch.

    Attributes:
        stage: which part of the work, in words, such as "layer 2".
        epoch: 1 for the stage's first.
        epochs: of the stage.
        loss: mean over the training images; None where it means nothing.
        held_out: mean loss over images that are never learned from; None without any.
        seconds: wall time.
        found: what else was measured, by its name.
        pictures: what there is to see after the stage's last epoch, by name: float32 [n, H, W] or
            [n, H, W, 3] in 0..1, or uint8.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float | None
    held_out: float | None
    seconds: float
    found: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return plain data: all but the pictures."""
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "loss": self.loss,
            "held_out": self.held_out,
            "seconds": self.seconds,
            **self.found,
        }


@dataclass
class Stages:
    """A pretraining under way.

    Attributes:
        network: the backbone's, whose tensors the stages train.
        seed: of everything that is drawn.
        identity: what must be the same for a checkpoint to be taken up.
        checkpoints: where it is saved; None for nowhere.
        track: shows progress.
        records: of the epochs that have ended, as plain data.
        pictures: what there is to see so far, by name.
        finished: names of the stages that have ended.
        stopped: a checkpoint that the stage under way there has yet to take up.
        settled: in what form inputs are kept and what gives them, by what they are of.
        before: seconds that it took before it was interrupted.
    """

    network: nn.Module
    seed: int
    identity: dict[str, Any]
    checkpoints: Checkpoints | None = None
    track: Track = untracked
    records: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    stopped: Checkpoint | None = None
    settled: dict[str, dict[str, str]] = field(default_factory=dict)
    before: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _ended: float | None = None
    _open: tuple[str, nn.Module, Training] | None = None

    def is_finished(self, stage: str) -> bool:
        """Say whether a stage ended before an interruption, so that it is to be left out."""
        return stage in self.finished

    def train(
        self,
        stage: str,
        module: nn.Module,
        phase: Phase,
        inputs: Inputs,
        held_out: Inputs | None = None,
        labels: tuple[Tensor, Tensor | None] | None = None,
    ) -> Iterator[Epoch | None]:
        """Train all parameters of a module; yield after every step, the epoch if it ended one.

        Nothing is trained of a stage that was trained to its end before an interruption, and an
        interrupted one goes on at the step where it was.

        Args:
            stage: its name, which no other stage has.
            module: takes what the inputs give and returns [n, 2], see above; with ``labels`` it
                returns scores [n, classes].
            phase: how; it must give a rate.
            inputs: what to learn from.
            held_out: to judge each epoch by.
            labels: int64 [n] classes of the inputs and of those held out.

        Raises:
            PlanError: for a phase without epochs or rate; if its batches do not fit into memory; if
                the loss is no longer finite.
        """
        if phase.rate is None or not phase.epochs:
            raise PlanError(f"{stage}: give its phase epochs and a rate")
        if self.is_finished(stage):
            return
        self.close()
        groups = group_parameters(dict(module.named_parameters()), {}, phase)
        objective = Objective("classes", phase.label_smoothing) if labels else Objective("losses")
        training = Training(
            module,
            phase,
            phase.rate,
            groups,
            objective,
            at_once=phase.at_once,
            seed=seed_of(self.seed, len(self.finished)),
        )
        if self.stopped and self.stopped.facts["stage"] == stage:
            module.load_state_dict(part(self.stopped.tensors, "module"))
            training.restore(part(self.stopped.tensors, "training"), self.stopped.facts["training"])
            self.stopped = None
        require_memory(stage, module, phase, inputs)
        self._open = stage, module, training
        own, theirs = labels if labels else (torch.zeros(len(inputs)), None)
        if theirs is None and held_out is not None:
            theirs = torch.zeros(len(held_out))
        judged = (held_out, theirs) if held_out is not None and theirs is not None else None
        total = math.ceil(len(inputs) / phase.batch) * (phase.epochs - len(training.epochs))
        bar = self.track(range(total - training.step), f"{stage}: training")
        for _, epoch in zip(bar, steps(training, inputs, own, judged), strict=False):
            yield epoch

    def close(self) -> None:
        """Take the stage under way for finished."""
        if self._open:
            self.finished.append(self._open[0])
            self._open = None

    def elapsed(self) -> float:
        """Return the wall time of all stages, interruptions left out, in seconds."""
        now = time.perf_counter() if self._ended is None else self._ended
        return self.before + now - self._started

    def stop_clock(self) -> None:
        """Take no more time into account: all stages have ended."""
        self._ended = time.perf_counter()

    def keep(self, progress: Progress) -> None:
        """Take an epoch's record and pictures in, unless they came back with a checkpoint."""
        place = (progress.stage, progress.epoch)
        if place not in {(record["stage"], record["epoch"]) for record in self.records}:
            self.records.append(progress.record())
        self.pictures |= dict(progress.pictures)

    def save(self) -> None:
        """Save everything, if there is a place to.

        Raises:
            UsageError: if it cannot be written; what was saved before is still there.
        """
        if self.checkpoints is None:
            return
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, value in self.pictures.items():
            tensors[f"picture.{name}"] = torch.from_numpy(np.ascontiguousarray(value))
        facts: dict[str, Any] = {"stage": None, "training": None}
        if self._open:
            stage, module, training = self._open
            tensors |= {f"module.{name}": value for name, value in module.state_dict().items()}
            tensors |= {f"training.{name}": value for name, value in training.tensors().items()}
            facts = {"stage": stage, "training": training.facts()}
        facts |= {
            "identity": {**self.identity, "format": FORMAT},
            "finished": self.finished,
            "records": self.records,
            "settled": self.settled,
            "seconds": self.elapsed(),
        }
        try:
            self.checkpoints.save(tensors, facts)
        except OSError as error:
            raise UsageError(
                f"{self.checkpoints.folder} cannot be written ({error.strerror or error}); free"
                " some space, then go on with --resume"
            ) from error

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one.

        Raises:
            UsageError: if it is of another pretraining, naming what differs.
        """
        stopped = self.checkpoints.newest() if self.checkpoints else None
        if stopped is None:
            if self.checkpoints and self.checkpoints.folder.exists():
                log.warning("no checkpoint of what was interrupted is whole; beginning anew")
            return
        written = stopped.facts["identity"]
        now = json.loads(json.dumps({**self.identity, "format": FORMAT}))
        for name in now:
            if written.get(name) != now[name]:
                raise UsageError(
                    f"--resume: what was interrupted had another {name}; give the same command"
                    " again, or remove what it left and begin anew"
                )
        self.network.load_state_dict(part(stopped.tensors, "network"))
        pictures = part(stopped.tensors, "picture")
        self.pictures = {name: value.numpy() for name, value in pictures.items()}
        self.finished = list(stopped.facts["finished"])
        self.records = list(stopped.facts["records"])
        self.settled = dict(stopped.facts["settled"])
        self.before = stopped.facts["seconds"]
        self.stopped = stopped


def progress_of(
    epoch: Epoch,
    stage: str,
    phase: Phase,
    found: Mapping[str, float] | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Progress:
    """Return what is to be told of an epoch of training."""
    facts = asdict(epoch)
    return Progress(
        stage,
        epoch.number,
        phase.epochs,
        facts["loss"],
        facts["validation_loss"],
        facts["seconds"],
        found or {},
        pictures or {},
    )
