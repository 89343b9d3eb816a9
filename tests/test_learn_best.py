"""Which weights of a stretch are kept, and how their temperature goes into the head."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from topwork.learn.best import LEAST_GAIN, Best, fold, gain_of, is_better, reached
from topwork.learn.loop import Epoch, TensorInputs, Training, judge, steps
from topwork.learn.objective import Objective, make_objective
from topwork.learn.optimizers import group_parameters
from topwork.learn.probe import probe
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


def test_images_of_one_group_count_once():
    generator = np.random.default_rng(0)
    before, after = generator.random((2, 40))
    alone = gain_of(torch.from_numpy(before), torch.from_numpy(after), np.arange(40))
    assert alone == pytest.approx(gain_of(torch.from_numpy(before), torch.from_numpy(after)))
    frames = [torch.from_numpy(np.repeat(losses, 10)) for losses in (before, after)]
    assert gain_of(*frames, np.repeat(np.arange(40), 10)) == pytest.approx(alone, rel=0.02)
    assert abs(gain_of(*frames)) > 3 * abs(alone)
    assert gain_of(*frames, np.zeros(400)) == 0  # one group tells nothing of others


@pytest.mark.parametrize("groups", [2, 4, 20])
def test_groups_without_any_effect_seldom_pass_the_bar(groups: int):
    generator = np.random.default_rng(0)
    passed, own = 0, np.repeat(np.arange(groups), 10)
    for _ in range(1000):
        people = generator.normal(0, 0.1, groups)[own]
        fall = torch.from_numpy(people + generator.normal(0, 0.1, len(own)))
        passed += gain_of(fall, torch.zeros(len(own)), own) >= LEAST_GAIN
    assert passed / 1000 < 0.07  # of 20 by single images .26


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_a_balanced_phase_is_judged_by_what_it_is_for(balance: str):
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.05).astype(np.int64)
    codes = generator.normal(size=(2000, 8)).astype(np.float32)
    codes[:, 0] += 1.5 * labels
    solved = probe(codes[:1600], labels[:1600], 2).head.folded()
    head = nn.Linear(8, 2)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved.weight))
        head.bias.copy_(torch.from_numpy(solved.bias))
    phase = Phase(epochs=6, batch=64, rate=1e-2, balance=balance, stop=Stop())
    inputs, targets = torch.from_numpy(codes), torch.from_numpy(labels)
    objective = make_objective("classes", targets[:1600], 2, phase)
    groups = group_parameters(dict(head.named_parameters()), {}, phase)
    training = Training(head, phase, 1e-2, groups, objective)
    held_out = TensorInputs(inputs[1600:]), targets[1600:]
    rare = inputs[1600:][targets[1600:] == 1]

    before, found_before = judge(training, *held_out), head(rare).argmax(1).double().mean()
    best = Best.before(before, {}, fitted=True)
    epochs = [
        e for e in steps(training, TensorInputs(inputs[:1600]), targets[:1600], held_out) if e
    ]
    assert is_better(epochs[-1], best, phase)
    assert gain_of(before.losses, judge(training, *held_out).losses) > LEAST_GAIN
    assert found_before < 0.2
    assert head(rare).argmax(1).double().mean() > 0.5
