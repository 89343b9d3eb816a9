"""Which weights of a stretch are kept, and how their temperature goes into the head."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from topwork.learn.best import Best, fold, gain_of, is_better, reached
from topwork.learn.loop import Epoch
from topwork.learn.objective import Objective
from topwork.learn.verdict import Verdict, verdict_on
from topwork.phase import Phase, Stop

PHASE = Phase(epochs=9, stop=Stop())


def epoch_of(number: int, found: Verdict) -> Epoch:
    scored = (found.loss, found.accuracy, found.tempered_loss, found.temperature)
    return Epoch(number, 1.0, 0.5, 0.1, 2.0, *scored)


def scores(right: int, margin: float) -> Verdict:
    """Judge 80 samples of ten classes, so many of them right, all by the same margin."""
    labels = torch.arange(80) % 10
    said = torch.where(torch.arange(80) < right, labels, (labels + 1) % 10)
    return verdict_on(margin * torch.eye(10)[said], labels, Objective())


def test_the_epoch_with_more_right_is_kept_though_smoothing_made_it_underconfident():
    early, late = scores(76, 5.0), scores(79, 3.0)
    assert late.loss > early.loss
    best = Best.at(epoch_of(4, early), {})
    assert is_better(epoch_of(12, late), best, PHASE)
    assert not is_better(epoch_of(4, early), Best.at(epoch_of(12, late), {}), PHASE)


def test_weights_that_were_not_fitted_are_replaced_by_any_that_can_be_scored():
    sure = scores(80, 9.0)
    wrong, not_scored = epoch_of(1, scores(3, 9.0)), Epoch(1, 1.0, 0.5, 0.1, 2.0)
    fitted, random = (Best.before(sure, {}, fitted=fitted) for fitted in (True, False))
    assert not is_better(wrong, fitted, PHASE)
    assert is_better(wrong, random, PHASE)
    assert not is_better(not_scored, random, PHASE)
    assert fitted.loss == sure.tempered_loss


def test_an_accuracy_that_is_enough_is_better_than_any_loss():
    phase = Phase(epochs=9, stop=Stop(accuracy=0.9))
    best = Best.at(epoch_of(1, scores(80, 9.0)), {})
    assert is_better(epoch_of(2, scores(73, 9.0)), best, phase)
    assert not is_better(epoch_of(2, scores(71, 9.0)), best, phase)
    assert not reached(PHASE, 1.0)


def test_facts_come_back_from_a_checkpoint_as_they_were():
    tensors = {"w": torch.ones(1)}
    for best in (
        Best.at(epoch_of(3, scores(70, 1 / 3)), tensors),
        Best.before(scores(70, 1 / 3), tensors, fitted=False),
    ):
        again = Best(**json.loads(json.dumps(best.facts(), allow_nan=False)), tensors=tensors)
        assert vars(again) == vars(best)


def test_a_folded_head_gives_the_tempered_probabilities():
    generator = torch.Generator().manual_seed(0)
    codes, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    head = nn.Linear(4, 3)
    before = verdict_on(head(codes).detach(), labels, Objective())
    fold(before.temperature, head, None)
    after = verdict_on(head(codes).detach(), labels, Objective())
    assert after.temperature == pytest.approx(1, rel=1e-4)
    assert after.loss == pytest.approx(before.tempered_loss, rel=1e-5)
    plain = functional.cross_entropy(head(codes).detach(), labels)
    assert plain.item() == pytest.approx(after.loss)


def test_folding_leaves_alone_what_never_wins():
    head = nn.Linear(2, 3)
    with torch.no_grad():
        head.weight[1], head.bias[1] = 0.0, -1e4
    weight, bias = (value.detach().clone() for value in (head.weight, head.bias))
    fold(40.0, head, (0, 2))
    assert torch.equal(head.weight[[0, 2]], weight[[0, 2]] / 40)
    assert torch.equal(head.bias[[0, 2]], bias[[0, 2]] / 40)
    assert (head.bias[1].item(), head.weight[1].tolist()) == (-1e4, [0.0, 0.0])


def test_gain_is_the_mean_fall_in_standard_errors():
    generator = np.random.default_rng(0)
    before, after = generator.random(50), generator.random(50)
    fall = before - after
    expected = fall.mean() / (fall.std(ddof=1) / math.sqrt(50))
    assert gain_of(torch.from_numpy(before), torch.from_numpy(after)) == pytest.approx(expected)
    assert gain_of(torch.ones(5), torch.ones(5)) == gain_of(torch.ones(1), torch.zeros(1)) == 0
