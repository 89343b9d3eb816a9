"""What training minimizes: the loss of a batch, for each kind of target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.phase import Phase


@dataclass(frozen=True)
class Objective:
    """The loss of scores against targets, and how it is weighed.

    Attributes:
        kind: "classes" (cross-entropy), "labels" (binary cross-entropy, mean over the labels),
            "numbers" (squared error, mean over the numbers), or "losses": the network itself gives
            each sample's loss, and in a second column how much of it was right, from 0 to 1.
        label_smoothing: of classes: share of the weight spread over all of them.
        weights: of classes [classes], of labels [labels] for where they apply; None for equal.
            A smoothed or mixed sample weighs what its own classes do, by their shares.
        balance: weights likewise, by which held-out samples are judged: those of the loss, or what
            drawing classes equally often comes to.
        learned: the outputs that training targets say something about; None for all of them.
    """

    kind: str = "classes"
    label_smoothing: float = 0.0
    weights: Tensor | None = None
    balance: Tensor | None = None
    learned: tuple[int, ...] | None = None

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, [n].

        Args:
            scores: [n, outputs].
            targets: int64 [n] classes, or shares [n, classes] where samples are mixed; float
                [n, outputs] labels or numbers.
        """
        if self.kind == "labels":
            terms = functional.binary_cross_entropy_with_logits(
                scores, targets, pos_weight=self.weights, reduction="none"
            )
            return terms.mean(1)
        if self.kind == "numbers":
            return (scores - targets).square().mean(1)
        if self.kind == "losses":
            return scores[:, 0]
        if self.weights is None:
            return functional.cross_entropy(
                scores, targets, label_smoothing=self.label_smoothing, reduction="none"
            )
        return self._weighed(scores, targets, self.weights)

    def _weighed(self, scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, smoothed, times the weight of its class.

        torch's own gives the share that smoothing spreads out the weights of the classes it falls
        on: by that rare classes win, and most of all one without samples.
        """
        logs = scores.log_softmax(1)
        shares = targets if targets.ndim == 2 else functional.one_hot(targets, scores.shape[1])
        weighed = shares * weights
        own = -(weighed * logs).sum(1)
        spread = -weighed.sum(1) * logs.mean(1)
        return (1 - self.label_smoothing) * own + self.label_smoothing * spread

    def plain(self) -> Objective:
        """Return the same without smoothing and weights."""
        return Objective(self.kind)

    def right(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return for each sample whether it is right, [n]: its class, or all of its labels.

        Of numbers none is right. Of a mixed sample, the class with the largest share counts.
        """
        if self.kind == "labels":
            return ((scores > 0) == (targets > 0.5)).all(1)
        if self.kind == "numbers":
            return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        if self.kind == "losses":
            return scores[:, 1]
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        return scores.argmax(1) == classes


def make_objective(kind: str, targets: Tensor, outputs: int, phase: Phase) -> Objective:
    """Return a phase's objective on given training targets.

    With ``balance="loss"`` a class weighs n / (classes present * its samples), so that the mean
    weight of a sample is 1, and one without samples nothing; a label's positive samples weigh as
    much as its negative ones.
    """
    balance = None
    if phase.balance != "none" and kind == "labels":
        positive = targets.sum(0).clamp(min=1)
        balance = (len(targets) - positive).clamp(1) / positive
    if phase.balance != "none" and kind == "classes":
        counts = torch.bincount(targets, minlength=outputs).float()
        balance = len(targets) / (counts * (counts > 0).sum())
        balance[counts == 0] = 0
    weights = balance if phase.balance == "loss" else None
    learned = learned_outputs(kind, targets, outputs)
    return Objective(kind, phase.label_smoothing, weights, balance, learned)


def learned_outputs(kind: str, targets: Tensor, outputs: int) -> tuple[int, ...] | None:
    """Return the outputs that training targets say something about, ascending; None for all.

    Those are the classes with samples, the labels that some samples have and others lack, and all
    numbers.

    >>> learned_outputs("classes", torch.tensor([2, 0, 2]), 3)
    (0, 2)
    """
    if kind == "numbers":
        return None
    if kind == "classes":
        found = targets.unique()
    else:
        found = (targets.min(0).values < targets.max(0).values).nonzero()[:, 0]
    return None if len(found) == outputs else tuple(found.tolist())


@dataclass(frozen=True)
class Scale:
    """Where numbers lie: training sees them with mean 0 and deviation 1, whatever their units.

    Attributes:
        mean: of each number, [outputs].
        deviation: likewise; 1 where a number is constant.
    """

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(numbers: Tensor) -> Scale:
        """Return the scale of training numbers [n, outputs]."""
        deviation = numbers.std(0, unbiased=False)
        return Scale(numbers.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def apply(self, numbers: Tensor) -> Tensor:
        """Return numbers in units of the deviation, around the mean."""
        return (numbers - self.mean) / self.deviation

    @torch.no_grad()
    def enter(self, head: nn.Linear) -> None:
        """Make a head that gives numbers give scaled ones."""
        head.weight.div_(self.deviation[:, None])
        head.bias.sub_(self.mean).div_(self.deviation)

    @torch.no_grad()
    def leave(self, head: nn.Linear) -> None:
        """Make a head that gives scaled numbers give them in their own units."""
        head.weight.mul_(self.deviation[:, None])
        head.bias.mul_(self.deviation).add_(self.mean)


def sampling_weights(kind: str, targets: Tensor) -> Tensor:
    """Return the chance of each sample to be drawn, such that classes are drawn equally often.

    >>> sampling_weights("classes", torch.tensor([0, 0, 0, 1])).tolist()[-1]
    0.5
    """
    if kind != "classes":
        return torch.full((len(targets),), 1 / max(1, len(targets)))
    _, own, counts = torch.unique(targets, return_inverse=True, return_counts=True)
    return 1 / (counts[own] * len(counts))


def mix_batch(
    inputs: tuple[Tensor, ...], targets: Tensor, classes: int, phase: Phase, draw: torch.Generator
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Mix the samples of a batch with each other, and their targets by the same shares.

    "mixup" (Zhang et al. 2018) adds share * sample + (1 - share) * another, the share drawn from
    Beta(a, a), one for the batch. "cutmix" (Yun et al. 2019) puts a rectangle of the other into
    the sample, its area 1 - share; it needs a map, [n, c, height, width].

    Args:
        inputs: tensors [n, ...] that belong to the same samples.
        targets: int64 [n], or float [n, outputs].
        classes: number of classes, for int64 targets.
        phase: says which and how strongly.
        draw: random numbers.

    Returns:
        inputs and float targets [n, classes | outputs].
    """
    soft = functional.one_hot(targets, classes).float() if targets.ndim == 1 else targets
    # Beta(a, a) from two Gamma draws; torch.distributions would use the global random state.
    # At small a most of them are too small for float32.
    strength = torch.full((2,), phase.mix_strength, dtype=torch.float64)
    pair = torch._standard_gamma(strength, generator=draw)
    share = float(pair[0] / pair.sum()) if float(pair.sum()) > 0 else 1.0
    other = torch.randperm(len(targets), generator=draw).to(inputs[0].device)
    if phase.mix == "mixup":
        mixed = tuple(share * value + (1 - share) * value[other] for value in inputs)
        return mixed, share * soft + (1 - share) * soft[other]
    (image,) = inputs
    height, width = image.shape[-2:]
    side = math.sqrt(1 - share)
    center = torch.rand(2, generator=draw)
    top, bottom = span(float(center[0]), side, height)
    left, right = span(float(center[1]), side, width)
    image = image.clone()
    image[..., top:bottom, left:right] = image[other][..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return (image,), share * soft + (1 - share) * soft[other]


def span(center: float, side: float, length: int) -> tuple[int, int]:
    """Return first and last + 1 of a stretch around a center, cut off at the ends.

    >>> span(0.5, 0.5, 8), span(0.0, 0.5, 8)
    ((2, 6), (0, 2))
    """
    half = side * length / 2
    middle = center * length
    return max(0, round(middle - half)), min(length, round(middle + half))
