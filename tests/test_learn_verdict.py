"""How weights are judged on held-out samples, against a slow search for the temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from topwork.errors import DataError
from topwork.learn import temperature
from topwork.learn.objective import Objective, make_objective
from topwork.learn.verdict import verdict_on
from topwork.phase import Phase

GRID = np.geomspace(0.1, 20, 1000)


def classes(n: int = 40, count: int = 5) -> tuple[Tensor, Tensor]:
    """Return overconfident scores and classes."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) ** 2 % count
    return 6 * torch.randn(n, count, generator=generator) + 8 * torch.eye(count)[labels], labels


def labels(n: int = 30, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    marks = (torch.rand(n, count, generator=generator) < 0.4).float()
    return 5 * torch.randn(n, count, generator=generator) + 6 * (2 * marks - 1), marks


def best_on_grid(scores: Tensor, targets: Tensor) -> float:
    """Return the temperature with the least loss, two pseudo-samples spread over the outputs.

    Of labels every one is a sample of its own that is told apart from its absence.
    """
    if targets.ndim == 2:
        scores = torch.stack([torch.zeros_like(scores), scores], 2).flatten(0, 1)
        targets = targets.flatten().long()
    n, count = scores.shape
    wanted = (n * torch.eye(count)[targets] + 2 / count) / (n + 2)
    losses = [
        float(functional.cross_entropy(scores.double() / t, wanted.double())) for t in GRID.tolist()
    ]
    return float(GRID[int(np.argmin(losses))])


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_losses_are_those_at_the_temperature_that_suits_the_samples_best(kind: str):
    scores, targets = classes() if kind == "classes" else labels()
    found = verdict_on(scores, targets, Objective(kind))
    best = best_on_grid(scores, targets)
    assert found.temperature == pytest.approx(best, rel=5e-3)
    assert abs(found.temperature - 1) > 0.2
    wanted = targets.double() if kind == "labels" else targets
    expected = Objective(kind).loss(scores.double() / found.temperature, wanted)
    torch.testing.assert_close(found.losses, expected)
    assert found.tempered_loss == pytest.approx(float(expected.mean()))
    assert found.loss == pytest.approx(float(Objective(kind).loss(scores, targets).mean()))
    assert found.accuracy == float(Objective(kind).right(scores, targets).double().mean())


@pytest.mark.parametrize("kind", ["classes", "labels"])
@pytest.mark.parametrize("factor", [0.01, 0.5, 30.0])
def test_confidence_decides_nothing(kind: str, factor: float):
    scores, targets = classes() if kind == "classes" else labels()
    plain, other = (verdict_on(scores * by, targets, Objective(kind)) for by in (1.0, factor))
    assert other.temperature == pytest.approx(plain.temperature * factor, rel=1e-4)
    torch.testing.assert_close(other.losses, plain.losses, rtol=1e-4, atol=1e-6)
    assert other.accuracy == plain.accuracy
    assert other.loss != pytest.approx(plain.loss, rel=1e-2)


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_where_classes_are_balanced_a_rare_sample_counts_as_often_as_it_would_be_repeated(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(temperature, "PSEUDO_ROWS", 0)  # they depend on the number of samples
    rare = torch.arange(40) % 4 == 0
    drawn = 6 * torch.randn(40, 2, generator=torch.Generator().manual_seed(5))
    if kind == "classes":
        targets, scores = rare.long(), drawn + 8 * torch.eye(2)[rare.long()]
    else:
        targets, scores = rare.float()[:, None], drawn[:, :1] + 8 * (2 * rare[:, None] - 1.0)
    phase = Phase(epochs=1, balance="loss")
    found = verdict_on(scores, targets, make_objective(kind, targets, scores.shape[1], phase))
    times = torch.where(rare, 3, 1)  # a quarter is rare
    plain = verdict_on(
        scores.repeat_interleave(times, 0), targets.repeat_interleave(times, 0), Objective(kind)
    )
    assert found.temperature == pytest.approx(plain.temperature, rel=1e-4)
    assert found.tempered_loss == pytest.approx(plain.tempered_loss, rel=1e-4)
    unweighed = verdict_on(scores, targets, Objective(kind))
    assert found.tempered_loss != pytest.approx(unweighed.tempered_loss, rel=1e-2)
    assert (found.loss, found.accuracy) == (unweighed.loss, unweighed.accuracy)


@pytest.mark.parametrize("away", [-1e4, -312.5, 3.0])
def test_a_class_that_nothing_was_trained_on_is_left_out_whatever_its_score(away: float):
    scores, targets = classes()
    objective = make_objective("classes", torch.tensor([0, 1, 3, 4, 5]), 6, Phase(epochs=1))
    assert objective.learned == (0, 1, 3, 4, 5)
    columns = torch.tensor([0, 1, 3, 4, 5])
    wider = torch.full((41, 6), away).index_copy(1, columns, torch.cat([scores[:1], scores]))
    of_wider = torch.cat([torch.tensor([2]), columns[targets]])
    found, alone = (
        verdict_on(wider, of_wider, objective),
        verdict_on(scores, targets, Objective()),
    )
    assert found.temperature == alone.temperature
    torch.testing.assert_close(found.losses, alone.losses)
    assert found.rows.tolist() == list(range(1, 41))
    assert alone.rows.tolist() == list(range(40))


def test_a_label_that_all_or_no_training_samples_have_is_left_out():
    scores, targets = labels()
    trained = torch.tensor([[0.0, 1.0, 0, 1, 1], [1.0, 1.0, 0, 0, 0]])
    objective = make_objective("labels", trained, 5, Phase(epochs=1))
    assert objective.learned == (0, 3, 4)
    never = torch.full((30, 1), -1e4)
    wider = torch.cat([scores[:, :1], -never, never, scores[:, 1:]], 1)
    of_wider = torch.cat([targets[:, :1], targets[:, :2], targets[:, 1:]], 1)
    found = verdict_on(wider, of_wider, objective)
    alone = verdict_on(scores, targets, Objective("labels"))
    assert found.temperature == alone.temperature
    torch.testing.assert_close(found.losses, alone.losses)


def test_numbers_keep_their_loss():
    scores, wanted = torch.tensor([[1.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 2.0], [0.0, 3.0]])
    found = verdict_on(scores, wanted, make_objective("numbers", wanted, 2, Phase(epochs=1)))
    assert found.losses.tolist() == [2.5, 4.5]
    assert (found.loss, found.tempered_loss, found.temperature) == (3.5, 3.5, 1.0)


@pytest.mark.parametrize("kind", ["classes", "labels"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_have_no_loss(kind: str, value: float):
    scores, targets = classes() if kind == "classes" else labels()
    scores[3] = value
    with np.errstate(all="raise"):
        found = verdict_on(scores, targets, Objective(kind))
    assert (found.tempered_loss, found.temperature) == (None, 1.0)


def test_samples_of_unknown_classes_alone_cannot_judge():
    scores, _ = classes()
    with pytest.raises(DataError, match="no held-out row is of a class that the other rows have"):
        verdict_on(scores, torch.full((40,), 2), Objective(learned=(0, 1, 3, 4)))
