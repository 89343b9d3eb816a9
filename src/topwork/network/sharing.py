"""Copies of a module tree that share its tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def share_copy(network: Network) -> Network:
    """Copy the modules of a network, not its tensors.

    The copy has its own modes and structure, so that cutting and re-arranging it leaves the
    original as it was; parameters and buffers are the very same objects. Forward hooks are the
    caller's and stay behind: they would be called with tensors that he never sees, some without
    data. Forward pre-hooks come along, as old-style weight norm works through them.

    >>> import torch
    >>> original = torch.nn.Sequential(torch.nn.Linear(2, 3))
    >>> copied = share_copy(original).eval()
    >>> original.training, copied[0].weight is original[0].weight
    (True, True)
    """
    copies: dict[int, object] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        copies[id(tensor)] = tensor
    for module in network.modules():
        for kind in (
            "_forward_hooks",
            "_forward_hooks_with_kwargs",
            "_forward_hooks_always_called",
        ):
            copies[id(getattr(module, kind))] = OrderedDict()
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # weight norm leaves its result
                copies[id(value)] = value.detach().clone()
    return copy.deepcopy(network, copies)


@contextmanager
def spare_buffers(network: nn.Module) -> Iterator[list[str]]:
    """Let a network use clones of its buffers for a while, then put its own back.

    The list that is given is filled at the end: with the names of the buffers that were written.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(2)
    >>> with spare_buffers(norm) as written:
    ...     _ = norm(torch.ones(3, 2))
    >>> written, norm.num_batches_tracked.item()
    (['running_mean', 'running_var', 'num_batches_tracked'], 0)
    """
    own = dict(network.named_buffers(remove_duplicate=False))
    clones = {id(buffer): buffer.detach().clone() for buffer in own.values()}
    set_buffers(network, {name: clones[id(buffer)] for name, buffer in own.items()})
    written: list[str] = []
    try:
        yield written
        used = dict(network.named_buffers(remove_duplicate=False))
        written += [
            name for name in own if name not in used or not same_bytes(own[name], used[name])
        ]
    finally:
        set_buffers(network, own)


def set_buffers(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Replace buffers by their paths, as objects."""
    for path, buffer in buffers.items():
        parent, _, name = path.rpartition(".")
        network.get_submodule(parent)._buffers[name] = buffer


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Compare two tensors such that NaN is the same as NaN."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    flat = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


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
