"""What a pretraining method is given: a network with random weights, and images at any of its cuts.

A method is a generator of `topwork.pretraining.stages.Progress` (None for steps that end no epoch)
that trains ``material.loaded.chain.network`` in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from topwork.learn.loop import AT_ONCE, Inputs
from topwork.learn.samples import CachedInputs, LiveInputs, Samples
from topwork.network.chain import Chain, CutPoint
from topwork.network.codes import pool_module
from topwork.network.cut import segment
from topwork.network.loading import Loaded
from topwork.pretraining.stages import Stages

LABELED = 1000
"""Images with labels that an online probe learns from at most, and as many to score it."""


@dataclass
class Material:
    """What is there to learn from.

    Attributes:
        loaded: the network, all random or as far as a plan reuses, trained in place.
        samples: the images, at any cut of it.
        indices: of the images to learn from.
        held_out: of those to judge an epoch by, which nothing is learned from.
        classes: of the images, int64 by index, -1 where unknown; None if there are no labels.
        class_names: what these numbers stand for.
        seed: of everything that is drawn.
        stages: trains, saves and goes on.
        teacher: the same images, seen through another network with pretrained weights, if the
            method learns from one.
        lost: images that could not be decoded after the audit, with the reason.
    """

    loaded: Loaded
    samples: Samples
    indices: tuple[int, ...]
    held_out: tuple[int, ...]
    classes: np.ndarray | None
    class_names: tuple[str, ...]
    seed: int
    stages: Stages
    teacher: Samples | None = None
    lost: tuple[tuple[str, str], ...] = ()

    @property
    def chain(self) -> Chain:
        """The network's depth axis."""
        return self.loaded.chain

    @property
    def device(self) -> torch.device:
        """Where training takes place."""
        return self.samples.execution.device

    def inputs(
        self, cut: CutPoint, epochs: int, views: int = 1
    ) -> tuple[CachedInputs | LiveInputs, CachedInputs | LiveInputs | None]:
        """Return the images to learn from and those held out, as tensors at a cut.

        At the input they are the normalized pixels, float32 [n, C, H, W]; at other cuts below L
        the whole tensor, which the layers below give with their weights of this moment. They come
        from the cache, or are run again at each use, as `topwork.learn.samples.Samples` finds
        cheaper. What it finds is kept with the stages: after an interruption it holds again.

        Args:
            cut: below L.
            epochs: in which they will be taken.
            views: of each image, taken in turn from epoch to epoch.
        """
        stages, of = self.stages, f"{self.samples.loaded.backbone.name}: {cut.name}"
        own = self.samples.at(cut, self.indices, views, epochs, stages.settled.get(of))
        stages.settled[of] = own.settled
        if not self.held_out:
            return own, None
        return own, self.samples.at(cut, self.held_out, settled=own.settled)

    def body(self, above: CutPoint | None = None) -> nn.Module:
        """Return the layers from the pixels to pooled codes at a cut, as a module to be trained.

        It shares all tensors with the network: what it learns is there.

        Args:
            above: the cut; None for L, where codes are pooled as the network does.
        """
        chain = self.chain
        top = above is None or above is chain.top
        layers = segment(chain, chain.cuts[0], above or chain.top)
        how = self.loaded.plan.pool or "flatten" if top else "avg"
        return nn.Sequential(layers, pool_module(chain, above or chain.top, how))

    def pictures(self, values: Tensor) -> np.ndarray:
        """Return normalized pixels, in any shape with as many numbers, as pictures.

        Returns:
            float32 in 0..1, [n, H, W, 3] of colors, else [n, H, W], the mean of the channels.
        """
        view = self.loaded.backbone.preprocessing
        maps = values.detach().cpu().float().reshape(-1, view.channels, *view.size)
        mean, std = (torch.tensor(row).view(-1, 1, 1) for row in (view.mean, view.std))
        maps = (maps * std + mean).clamp(0, 1)
        return (maps.permute(0, 2, 3, 1) if view.channels == 3 else maps.mean(1)).numpy()

    def labeled(self, indices: Sequence[int]) -> list[int]:
        """Return the positions among these of images with labels, at most `LABELED` of them."""
        if self.classes is None:
            return []
        known = np.flatnonzero(self.classes[list(indices)] >= 0)
        if len(known) > LABELED:
            known = np.sort(np.random.default_rng(self.seed).choice(known, LABELED, replace=False))
        return known.tolist()


def drawn_rows(count: int, of: int) -> list[int]:
    """Return some positions in random order, always the same: images often come sorted by class.

    >>> drawn_rows(3, 10), sorted(drawn_rows(3, 2))
    ([4, 6, 2], [0, 1])
    """
    return np.random.default_rng(0).permutation(of)[:count].tolist()


@torch.no_grad()
def outputs_of(module: nn.Module, inputs: Inputs, rows: Sequence[int]) -> Tensor:
    """Return what a module makes of some samples in eval mode, on the CPU; its mode is kept."""
    training = module.training
    module.eval()
    parts = [module(*batch).cpu() for batch in batches(inputs, rows)]
    module.train(training)
    return torch.cat(parts)


def batches(inputs: Inputs, rows: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Yield samples, some hundred at a time."""
    for first in range(0, len(rows), AT_ONCE):
        yield inputs.batch(rows[first : first + AT_ONCE], 0)


def pictured_weights(maps: Tensor) -> np.ndarray:
    """Return weights [n, C, h, w] as pictures, each stretched so that zero is a middle gray."""
    maps = maps.detach().cpu().float()
    maps = 0.5 + maps / (2 * maps.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12))
    return (maps.permute(0, 2, 3, 1) if maps.shape[1] == 3 else maps.mean(1)).numpy()
