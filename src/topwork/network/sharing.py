"""Copies of a module tree that share its tensors."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def share_copy(network: Network) -> Network:
    """Copy the modules of a network, not its tensors.

    The copy has its own modes, hooks and structure, so that cutting and re-arranging it leaves
    the original as it was; parameters and buffers are the very same objects.

    >>> import torch
    >>> original = torch.nn.Sequential(torch.nn.Linear(2, 3))
    >>> copied = share_copy(original).eval()
    >>> original.training, copied[0].weight is original[0].weight
    (True, True)
    """
    shared = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})


def without_data(network: Network) -> Network:
    """Copy a network with tensors that have shapes but no data (on torch's meta device).

    The copy is for looking at, not for training: its parameters ask for no gradients.

    >>> import torch
    >>> without_data(torch.nn.Linear(2, 3)).weight.device.type
    'meta'
    """
    empty: dict[int, object] = {}
    for parameter in network.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in network.buffers():
        empty[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(network, empty)
