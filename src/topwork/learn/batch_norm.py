"""Which statistics batch norms use and learn.

In a trunk there is no question: it is never in training mode. In a top, reused batch norms keep
the source's statistics unless there is enough data to estimate better ones; layers that start
from random weights have no statistics yet and always learn them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from topwork.phase import Phase

LEAST_BATCH = 32
LEAST_IMAGES = 5_000


@dataclass(frozen=True)
class Statistics:
    """What the batch norms of a top do in a phase.

    Attributes:
        kept: those that keep the source's statistics.
        learned: those that use the batch's and update the running ones.
        reason: why, in words.
    """

    kept: frozenset[nn.Module]
    learned: frozenset[nn.Module]
    reason: str

    def record(self) -> str:
        """Return it as one line."""
        if not self.kept and not self.learned:
            return "no batch norms above the cut"
        return (
            f"{len(self.kept)} keep the source's statistics, {len(self.learned)} learn the"
            f" target's: {self.reason}"
        )


def choose_statistics(
    norms: Iterable[tuple[_BatchNorm, bool]], phase: Phase, images: int
) -> Statistics:
    """Decide for each batch norm of a top whether it keeps the source's statistics.

    Args:
        norms: each with whether it is reused.
        phase: its policy, and its batch.
        images: how many there are to train on.

    >>> choose_statistics([(nn.BatchNorm2d(3), True)], Phase(epochs=1, batch=32), 200).reason
    'reused ones are kept below 5,000 images (200 here)'
    """
    if phase.batch_norm != "auto":
        keep, reason = phase.batch_norm == "source", "the plan says so"
    elif phase.batch < LEAST_BATCH:
        keep, reason = True, f"reused ones are kept at batches below {LEAST_BATCH}"
    elif images < LEAST_IMAGES:
        keep = True
        reason = f"reused ones are kept below {LEAST_IMAGES:,} images ({images:,} here)"
    else:
        keep, reason = False, f"{images:,} images in batches of {phase.batch} are enough"
    kept: set[nn.Module] = set()
    learned: set[nn.Module] = set()
    for norm, reused in norms:
        (kept if reused and keep else learned).add(norm)
    return Statistics(frozenset(kept), frozenset(learned), reason)


def batch_norms(network: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yield the batch norms of a network that have running statistics, by name."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, norms: Iterable[_BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Give batch norms the statistics of some batches, each batch weighing the same.

    The network is run with the chosen norms in training mode, all else in eval mode: the control
    that freezes random layers gets statistics that belong to its weights. Parameters stay.
    """
    chosen = list(norms)
    before = [norm.momentum for norm in chosen]
    network.eval()
    for norm in chosen:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        for batch in batches:
            network(batch)
    finally:
        network.eval()
        for norm, momentum in zip(chosen, before, strict=True):
            norm.momentum = momentum
