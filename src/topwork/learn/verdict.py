"""How weights do on samples that they were not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topwork.learn.objective import Objective
from topwork.learn.temperature import tempered_losses


@dataclass(frozen=True, eq=False)
class Verdict:
    """How weights do on held-out samples.

    Attributes:
        loss: mean loss, smoothing and weights left out; None where it is not finite.
        accuracy: share that is right.
        temperature: what scores are best divided by; 1 for numbers and for losses.
        losses: of each sample at that temperature, float64 [n], times its weight where training
            balances classes; those of classes that no training sample has are left out.
        rows: which samples those are, int64 [n].
    """

    loss: float | None
    accuracy: float
    temperature: float
    losses: Tensor
    rows: Tensor

    @property
    def tempered_loss(self) -> float | None:
        """The mean of ``losses``; None where it is not finite."""
        return finite(float(self.losses.mean()))


def verdict_on(scores: Tensor, targets: Tensor, objective: Objective) -> Verdict:
    """Judge scores [n, outputs] by the targets that they were meant for, both on the CPU.

    Raises:
        DataError: if no sample is of a class that is trained on too.

    >>> found = verdict_on(torch.eye(3) * 9, torch.arange(3), Objective())
    >>> found.accuracy, found.temperature > 1  # three samples allow no such certainty
    (1.0, True)
    """
    losses, right = losses_of(scores, targets, objective)
    loss, temperature = finite(float(losses.mean())), 1.0
    rows = torch.arange(len(targets))
    if objective.kind == "classes" and objective.learned is not None:
        rows = torch.isin(targets, torch.tensor(objective.learned)).nonzero()[:, 0]
    if objective.kind in ("classes", "labels"):
        balance = None if objective.balance is None else objective.balance.cpu().numpy()
        tempered, temperature = tempered_losses(
            objective.kind, scores.numpy(), targets.numpy(), objective.learned, balance
        )
        losses = torch.from_numpy(tempered)
    return Verdict(loss, float(right.mean()), temperature, losses, rows)


def losses_of(scores: Tensor, targets: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return the plain loss of each sample and whether it is right, float64 [n]."""
    losses = objective.plain().loss(scores, targets)
    return losses.double(), objective.right(scores, targets).double()


def finite(value: float) -> float | None:
    """Return a number, or None where it is not finite, for which JSON has no word.

    >>> finite(0.5), finite(math.nan)
    (0.5, None)
    """
    return value if math.isfinite(value) else None
