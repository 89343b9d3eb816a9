"""Groups of parameters, the optimizer over them, and its learning rates step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from topwork.phase import Phase


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike.

    Attributes:
        names: of the parameters, in the network they come from.
        parameters: these, in the same order.
        rate: learning rate as a share of the phase's.
        decays: whether the weights decay; norms and biases do not.
        reused: whether they start from pretrained weights.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    rate: float
    decays: bool
    reused: bool

    def record(self, rate: float) -> dict[str, Any]:
        """Return the group as plain data; ``rate`` is that of new layers."""
        return {
            "layers": layers_of(self.names),
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "rate": rate * self.rate,
            "decays": self.decays,
            "reused": self.reused,
        }


def layers_of(names: Iterable[str]) -> list[str]:
    """Return the layers that parameters belong to, each once, in order.

    >>> layers_of(["stem.weight", "stem.bias", "head.weight"])
    ['stem', 'head']
    """
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def group_parameters(
    parameters: Mapping[str, nn.Parameter], depth_of: Mapping[str, int], phase: Phase
) -> list[Group]:
    """Divide parameters into groups by what they start from and by depth.

    New layers are trained at the phase's rate, reused ones at ``reused_rate`` of it, times
    ``depth_decay`` for each cut point that they lie below the uppermost reused one. Weights decay;
    norms, biases, class tokens and position embeddings, which are told by having one dimension or
    another name than "weight", do not; nor do reused layers that are pulled to their source.

    Args:
        parameters: by name.
        depth_of: the depth of each reused one; the others are new.
        phase: how to train.

    >>> linear = nn.Linear(3, 2)
    >>> groups = group_parameters(dict(linear.named_parameters()), {"weight": 4}, Phase(epochs=1))
    >>> [(group.names, group.rate, group.decays) for group in groups]
    [(('weight',), 0.1, True), (('bias',), 1.0, False)]
    """
    highest = max((depth_of[name] for name in parameters if name in depth_of), default=0)
    members: dict[tuple[float, bool, bool], list[str]] = {}
    for name, parameter in parameters.items():
        reused = name in depth_of
        rate = 1.0
        if reused:
            rate = phase.reused_rate * phase.depth_decay ** (highest - depth_of[name])
        is_weight = parameter.ndim > 1 and name.endswith("weight")
        decays = is_weight and not (reused and phase.pull)
        members.setdefault((rate, decays, reused), []).append(name)
    return [
        Group(tuple(names), tuple(parameters[name] for name in names), *key)
        for key, names in members.items()
    ]


def make_optimizer(groups: Sequence[Group], phase: Phase, rate: float) -> torch.optim.Optimizer:
    """Return the phase's optimizer over groups of parameters, its rates those of the start."""
    options: list[dict[str, Any]] = [
        {
            "params": list(group.parameters),
            "lr": rate * group.rate,
            "weight_decay": phase.weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }
    momentum: dict[str, Any] = {"betas": (phase.momentum, 0.999)}
    if phase.optimizer in ("sgd", "rmsprop"):
        momentum = {"momentum": phase.momentum}
    if phase.optimizer == "adagrad":
        momentum = {}
    return kinds[phase.optimizer](options, lr=rate, **momentum)


def set_rates(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], rate: float, share: float
) -> None:
    """Give each group of an optimizer its learning rate, a share of its highest."""
    for options, group in zip(optimizer.param_groups, groups, strict=True):
        options["lr"] = rate * group.rate * share


def share_at(step: int, steps_per_epoch: int, phase: Phase) -> float:
    """Return the learning rate of a step as a share of the highest; steps count from 0.

    Linear warm-up (Goyal et al. 2017), then half a cosine (Loshchilov and Hutter 2017), or none.

    >>> phase = Phase(epochs=3, warmup=1)
    >>> [round(share_at(step, 2, phase), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(phase.warmup * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if phase.schedule == "constant":
        return 1.0
    progress = (step - warmup) / (phase.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
