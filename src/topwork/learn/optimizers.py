"""How to train: the settings of a training, its learning rates step by step, its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from topwork.errors import PlanError


@dataclass(frozen=True)
class Training:
    """How to train. The rate rises linearly, then falls along half a cosine, step by step.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: most samples in a step; an epoch is divided into steps of nearly equal size.
        optimizer: "sgd" (with momentum) or "adamw" (Loshchilov and Hutter 2019).
        rate: the learning rate at its highest.
        weight_decay: L2 penalty ("sgd") or decoupled decay ("adamw"); none on norms and biases.
        momentum: of "sgd"; "adamw" keeps to (0.9, 0.999).
        warmup_epochs: length of the rise, possibly a fraction, less than `epochs`.

    Raises:
        PlanError: when a value is out of its range.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "optimizer": (self.optimizer in ("sgd", "adamw"), "'sgd' or 'adamw'"),
            "rate": (0 < self.rate < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "from 0 to below epochs"),
        }
        for name, (fits, legal) in ranges.items():
            if not fits:
                raise PlanError(f"training: {name} is {getattr(self, name)!r}; make it {legal}")


def rate_at(step: int, steps_per_epoch: int, settings: Training) -> float:
    """Return the learning rate of a step, counted from 0 through the whole training.

    Linear warm-up (Goyal et al. 2017), then half a cosine (Loshchilov and Hutter 2017).

    >>> settings = Training(epochs=3, rate=1.0, warmup_epochs=1)
    >>> [round(rate_at(step, 2, settings), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.rate * (step + 1) / warmup
    progress = (step - warmup) / (settings.epochs * steps_per_epoch - warmup)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(network: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters of `network`, in two groups.

    The first group's weights decay; the second's do not: norms and biases, which are told, as
    timm does, by having one dimension or by their name.

    >>> optimizer = make_optimizer(nn.Linear(3, 2), Training(epochs=1))
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(1, 0.0005), (1, 0.0)]
    """
    weights, others = [], []  # type: list[nn.Parameter], list[nn.Parameter]
    for name, parameter in network.named_parameters():
        is_weight = parameter.ndim > 1 and not name.endswith("bias")
        (weights if is_weight else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum)
