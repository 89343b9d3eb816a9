"""Finding a learning rate: raise it step by step until the loss turns (Smith 2017)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from topwork.errors import PlanError
from topwork.learn.loop import Inputs, Training, device_of, own_randomness, seed_of, take_step
from topwork.learn.optimizers import Group, set_rates

STEPS = 40
LOWEST, HIGHEST = 1e-5, 1.0
SMOOTHING = 0.8
DIVERGED = 4.0  # times the least loss so far
BELOW = 10.0  # the rate taken lies this far below that of the least loss


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rate: the learning rate to train new layers at.
        rates: those tried, ascending.
        losses: the smoothed loss at each.
    """

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rate": self.rate, "rates": list(self.rates), "losses": list(self.losses)}


def find_rate(training: Training, inputs: Inputs, targets: Tensor) -> RangeTest:
    """Try learning rates from 1e-5 to 1 on a copy of a training, one step each; choose one.

    The rate taken is a tenth of the one with the least smoothed loss, where the loss still falls
    safely. Trying ends where the smoothed loss is four times its least, or no longer finite.
    Network, optimizer and the global random state are left as they are, to the last byte: all
    is done on copies.

    Raises:
        PlanError: if already the lowest rate gives a loss that is not finite.
    """
    trial = copy_of(training)
    phase, network = trial.phase, trial.network
    generator = torch.Generator().manual_seed(seed_of(training.seed, -1))
    rates, smoothed = [], []  # type: list[float], list[float]
    mean = 0.0
    for step in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        count = min(phase.batch, len(inputs))
        rows = torch.randperm(len(inputs), generator=generator)[:count].tolist()
        set_rates(trial.optimizer, trial.groups, rate, 1.0)
        trial.sums.zero_()
        seed = seed_of(training.seed, -1, step)
        with own_randomness(seed, device_of(network)):
            take_step(trial, inputs.batch(rows, 0), targets[rows], seed)
        loss = float(trial.sums[0]) / count
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate)
        smoothed.append(mean / (1 - SMOOTHING ** (step + 1)))
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
    if not rates:
        raise PlanError("range test: the loss is not finite at the lowest rate; check the inputs")
    best = rates[smoothed.index(min(smoothed))]
    return RangeTest(best / BELOW, tuple(rates), tuple(smoothed))


def copy_of(training: Training) -> Training:
    """Copy a training with all its tensors."""
    copies: dict[int, Any] = {}
    network = copy.deepcopy(training.network, copies)

    def twin(parameter: nn.Parameter) -> nn.Parameter:
        found: nn.Parameter = copies[id(parameter)]
        return found

    groups: Sequence[Group] = [
        replace(group, parameters=tuple(map(twin, group.parameters))) for group in training.groups
    ]
    return replace(
        training,
        network=network,
        groups=groups,
        keep_statistics=frozenset(copies[id(norm)] for norm in training.keep_statistics),
    )
