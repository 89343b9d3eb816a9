"""Watching a pretraining: what its codes are worth so far, and whether they tell images apart.

A method that makes two views of an image alike has a trivial solution: the same codes for all
images, or codes that vary along a few directions only. Its loss alone does not show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topwork.errors import PlanError
from topwork.learn.heads import fit_head
from topwork.learn.loop import Inputs
from topwork.learn.metrics import wilson
from topwork.learn.principal import one_thread
from topwork.pretraining.material import Material, drawn_rows, outputs_of

WATCHED = 500
"""Images, plain ones, whose codes are looked at after each epoch."""
STRENGTH = 1e-4
"""Of the online probe's penalty: close to the best on codes of random and of trained layers."""
LEAST_RANK = 2.0
"""Effective rank below which codes are taken for collapsed; random layers have more."""
FEW_DIRECTIONS = 8
"""Highest possible rank below which a low one says nothing, as of a few images or columns."""
LEAST_DEVIATION = 0.05
"""Deviation of projections below which they are; good ones have nearly 1, those of noise 0.2."""


def effective_rank(codes: Tensor) -> float:
    """Return along how many directions codes vary, from 0 (not at all) to min(n - 1, d).

    It is the exponential of the entropy of the singular values of the centered codes, divided by
    their sum (Roy and Vetterli 2007); of pretrained networks it goes along with how well a linear
    head does (RankMe, Garrido et al. 2023). Variation below the precision of float32 is none.

    Args:
        codes: floating point [n, d], finite.

    >>> round(effective_rank(torch.eye(3)), 6), effective_rank(torch.ones(5, 3))
    (2.0, 0.0)
    """
    values = codes.detach().cpu().double()  # mps has no float64
    spread = torch.linalg.svdvals(values - values.mean(0))
    spread = spread[spread > torch.finfo(torch.float32).eps * values.norm()]
    if not len(spread):
        return 0.0
    shares = spread / spread.sum()
    return float((-(shares * shares.log()).sum()).exp())


def deviation(outputs: Tensor) -> Tensor:
    """Return how far outputs differ from one to another: the root mean square of their columns'.

    What is compared by angle is to be scaled to the length of the square root of d before; then 1
    means that outputs lie around the origin, and 0 that all are the same.

    Args:
        outputs: floating point [n, d], finite.

    >>> deviation(torch.tensor([[1.0, 3.0], [-1.0, 1.0]])), deviation(torch.ones(2, 2))
    (tensor(1.), tensor(0.))
    """
    values = outputs.detach()
    return (values - values.mean(0)).square().mean().sqrt()


def watched_codes(body: nn.Module, inputs: Inputs) -> Tensor:
    """Return codes [n, d] of some images, always the same, on the CPU.

    Args:
        body: maps inputs to codes; taken in eval mode.
        inputs: the images learned from; their first view is taken.
    """
    return outputs_of(body, inputs, drawn_rows(WATCHED, len(inputs)))


def share_found(name: str, share: float, count: int) -> dict[str, float]:
    """Return a share, its 95 % interval (Wilson's) and count: ``NAME_low``, ``_high`` and ``_n``.

    Args:
        name: of the measure.
        share: of what was right, 0 to 1.
        count: images that it is of, 1 or more.

    >>> {key: round(value, 2) for key, value in share_found("probe", 0.5, 10).items()}
    {'probe': 0.5, 'probe_low': 0.24, 'probe_high': 0.76, 'probe_n': 10}
    """
    low, high = wilson(round(share * count), count)
    return {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_n": count}


def online_probe(
    material: Material, body: nn.Module, inputs: Inputs, held_out: Inputs | None
) -> dict[str, float]:
    """Return ``probe``, the accuracy of a linear head on codes; nothing where labels are missing.

    With it go its interval and the number of images, see `share_found`.

    The head is a softmax on the codes of labeled images, `topwork.pretraining.material.LABELED` of
    them at most, and scored on as many that are held out. Nothing else learns from the labels.

    Args:
        material: says which images have labels.
        body: maps inputs to codes [n, d]; taken in eval mode.
        inputs: the images learned from, in the order of ``material.indices``.
        held_out: the others, in the order of ``material.held_out``.
    """
    own, theirs = material.labeled(material.indices), material.labeled(material.held_out)
    if material.classes is None or held_out is None or not theirs:
        return {}
    classes = material.classes[np.array(material.indices)[own]]
    if len(np.unique(classes)) < 2:
        return {}
    codes, unseen = outputs_of(body, inputs, own), outputs_of(body, held_out, theirs)
    with one_thread():
        head = fit_head(codes.numpy(), classes, len(material.class_names), strength=STRENGTH)
    right = material.classes[np.array(material.held_out)[theirs]]
    share = float((head.scores(unseen.numpy()).argmax(1) == right).mean())
    return share_found("probe", share, len(right))


def require_alive(
    records: Sequence[Mapping[str, Any]],
    stage: str,
    found: Mapping[str, float],
    highest_rank: int,
) -> None:
    """Refuse to go on with codes that have collapsed, in this epoch and in the one before.

    Codes that could not have a rank of `FEW_DIRECTIONS` if they would are let pass.

    Args:
        records: of the epochs that have ended, as `topwork.pretraining.stages.Stages` keeps them.
        stage: which of them are of the same stage.
        found: of this epoch; ``effective_rank`` of the codes and ``deviation`` of what the loss
            compares are looked at.
        highest_rank: what the rank could be, min(n - 1, d) of codes [n, d].

    Raises:
        PlanError: if codes hardly tell images apart any more.
    """
    if highest_rank < FEW_DIRECTIONS:
        return
    before = [record for record in records if record["stage"] == stage]
    if before and _is_dead(before[-1]) and _is_dead(found):
        raise PlanError(
            f"{stage}: the codes have collapsed in epoch {before[-1]['epoch'] + 1} (effective rank"
            f" {found['effective_rank']:.2g}, deviation {found['deviation']:.2g}): all images look"
            " alike to the network; lower the rate, or keep the recipe's weights at their defaults"
        )


def _is_dead(found: Mapping[str, Any]) -> bool:
    return found["effective_rank"] < LEAST_RANK or found["deviation"] < LEAST_DEVIATION
