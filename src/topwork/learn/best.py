"""Which weights of a stretch are kept: those that do best on held-out images, beyond chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topwork.learn.loop import Epoch
from topwork.learn.standard_error import (
    degrees_of_freedom,
    on_the_normal_scale,
    standard_error,
)
from topwork.learn.verdict import Verdict
from topwork.phase import Phase

LEAST_GAIN = 1.645
"""Standard errors by which a phase must better fitted weights that it began with. One epoch does so
by chance in one case of twenty; the best of several does so more often, but far from always."""


@dataclass(frozen=True, eq=False)
class Best:
    """The weights with the least loss on held-out images in a stretch.

    Loss moves smoothly where accuracy moves in steps of one image. As in the probe, each loss is
    taken at the temperature that suits the held-out images best. Smoothed labels, mixing and few
    images make a network under- or overconfident; that says nothing against what it has learned,
    and is mended at the end by folding the temperature into the head.

    Attributes:
        loss: on the held-out images, at the temperature; None for weights that any others replace.
        temperature: what scores are best divided by; 1 for numbers.
        accuracy: on the held-out images.
        epoch: 0 for the weights that the stretch began with.
        tensors: of the model, by layer name.
    """

    loss: float | None
    temperature: float
    accuracy: float
    epoch: int
    tensors: dict[str, Tensor]

    @staticmethod
    def before(found: Verdict, tensors: dict[str, Tensor], *, fitted: bool) -> Best:
        """Return the weights that a stretch begins with; if not fitted, any others are better."""
        loss = found.tempered_loss if fitted else None
        return Best(loss, found.temperature, found.accuracy, 0, tensors)

    @staticmethod
    def at(epoch: Epoch, tensors: dict[str, Tensor]) -> Best:
        """Return the weights after an epoch that was scored."""
        temperature, accuracy = epoch.temperature, epoch.validation_accuracy
        return Best(epoch.tempered_loss, temperature or 1.0, accuracy or 0.0, epoch.number, tensors)

    def facts(self) -> dict[str, Any]:
        """Return all but the tensors, as plain data."""
        return {name: value for name, value in vars(self).items() if name != "tensors"}


def is_better(epoch: Epoch, best: Best, phase: Phase) -> bool:
    """Say whether an epoch has the least loss so far, or the accuracy that is enough."""
    if epoch.tempered_loss is None:
        return False
    least = best.loss is None or epoch.tempered_loss < best.loss
    return least or reached(phase, epoch.validation_accuracy)


def reached(phase: Phase, accuracy: float | None) -> bool:
    """Say whether an accuracy is what the phase's rule to stop asks for."""
    enough = phase.stop.accuracy if phase.stop else None
    return enough is not None and accuracy is not None and accuracy >= enough


@torch.no_grad()
def fold(temperature: float, head: nn.Linear, learned: Sequence[int] | None) -> None:
    """Divide a head's scores by a temperature, in place.

    Outputs that no training image told anything about are left as they are: they had no part in
    the temperature, and what keeps them from ever winning must not be weakened.

    >>> head = nn.Linear(1, 3)
    >>> _ = nn.init.constant_(head.bias, -8.0)
    >>> fold(2.0, head, [0, 2])
    >>> head.bias.tolist()
    [-4.0, -8.0, -4.0]
    """
    rows = slice(None) if learned is None else list(learned)
    head.weight[rows] /= temperature
    head.bias[rows] /= temperature


def gain_of(before: Tensor, after: Tensor, groups: np.ndarray | None = None) -> float:
    """Return how far losses fell, in standard errors; 0 where no image differs.

    Images are compared with themselves, each side at its own temperature. Ten frames of one
    person are no ten people: those of a group are taken together, and of few groups the standard
    error itself is little known, so that the gain counts for less (by Student's t).

    Args:
        before: losses [n].
        after: those of the same images.
        groups: [n] what belongs together; None if each image stands alone.

    >>> before, after = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.4, 0.6])
    >>> round(gain_of(before, after), 2), gain_of(before, after, np.array([7, 7, 7]))
    (8.66, 0.0)
    """
    fall = (before - after).numpy().astype(np.float64)
    if len(fall) < 2:
        return 0.0
    error = standard_error(fall, groups) * math.sqrt(len(fall) / (len(fall) - 1))
    if error <= 0:
        return 0.0
    return on_the_normal_scale(float(fall.mean()) / error, degrees_of_freedom(groups))
