"""What training minimizes, against the definitions written out in float64."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.learn.loop import train
from topwork.learn.objective import Objective, make_objective, mix_batch, sampling_weights, span
from topwork.phase import Phase


def scores_and_classes(n: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, classes, generator=generator) * 3, torch.arange(n) ** 2 % classes


def scores_and_labels(n: int = 9, labels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    marks = torch.rand(n, labels, generator=generator) < 0.3
    return torch.randn(n, labels, generator=generator) * 3, marks.float()


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


@pytest.mark.parametrize(
    ("smoothing", "weighed"), list(product((0.0, 0.1, 0.7), (False, True))), ids=str
)
def test_cross_entropy_with_smoothing_and_weights_is_its_definition(
    smoothing: float, weighed: bool
):
    scores, classes = scores_and_classes()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]) if weighed else None
    got = Objective("classes", smoothing, weights).loss(scores, classes)
    expected = []
    for row, label in zip(scores.double().numpy(), classes.tolist(), strict=True):
        wanted = np.full(5, smoothing / 5)
        wanted[label] += 1 - smoothing
        terms = -wanted * np.log(softmax(row))
        expected.append(terms.sum() * (float(weights[label]) if weighed else 1))
    assert got.tolist() == pytest.approx(expected, rel=1e-5)


def test_shares_of_classes_are_weighed_by_their_share():
    scores, classes = scores_and_classes()
    shares = 0.3 * torch.eye(5)[classes] + 0.7 * torch.eye(5)[(classes + 1) % 5]
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])
    for smoothing in (0.0, 0.2):
        objective = Objective(label_smoothing=smoothing, weights=weights)
        own, other = (objective.loss(scores, c).double() for c in (classes, (classes + 1) % 5))
        got = objective.loss(scores, shares).double()
        torch.testing.assert_close(got, 0.3 * own + 0.7 * other, rtol=1e-5, atol=1e-6)


def predicted(classes: Tensor, outputs: int, phase: Phase) -> Tensor:
    """Train a linear head on codes that tell the classes apart, and return what it says of them."""
    noise = torch.randn(len(classes), 2, generator=torch.Generator().manual_seed(1))
    codes = 4 * functional.one_hot(classes, 2) + 0.1 * noise
    head = nn.Linear(2, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    *_, last = train(head, codes, classes, phase, seed=0)
    assert math.isfinite(last.loss)
    return head(codes).argmax(1)


@pytest.mark.parametrize("mix", ["none", "mixup"])
def test_a_rare_class_does_not_win_where_labels_are_smoothed_and_the_loss_is_balanced(mix: str):
    phase = Phase(
        epochs=40, rate=0.05, batch=50, balance="loss", label_smoothing=0.1, weight_decay=0, mix=mix
    )
    classes = (torch.arange(500) % 50 == 0).long()  # 49 : 1
    assert torch.equal(predicted(classes, 2, phase), classes)


def test_a_class_without_samples_does_not_win_where_the_loss_is_balanced():
    phase = Phase(epochs=20, rate=0.05, batch=50, balance="loss", label_smoothing=0.1)
    classes = torch.arange(200) % 2
    assert torch.equal(predicted(classes, 3, phase), classes)


@pytest.mark.parametrize("weighed", [False, True])
def test_labels_are_scored_by_the_mean_of_their_binary_cross_entropies(weighed: bool):
    scores, labels = scores_and_labels()
    weights = torch.tensor([1.0, 2.0, 0.5, 7.0])
    got = Objective("labels", weights=weights if weighed else None).loss(scores, labels)
    expected = []
    for row, marks in zip(scores.tolist(), labels.tolist(), strict=True):
        terms = []
        for score, mark, weight in zip(row, marks, weights.tolist(), strict=True):
            chance = 1 / (1 + math.exp(-score))
            factor = weight if weighed else 1.0
            terms.append(-factor * math.log(chance) if mark else -math.log(1 - chance))
        expected.append(sum(terms) / 4)
    assert got.tolist() == pytest.approx(expected, rel=1e-4)


def test_numbers_are_scored_by_the_mean_square():
    scores, wanted = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    assert Objective("numbers").loss(scores, wanted).tolist() == [2.5, 4.5]


def test_scoring_leaves_smoothing_and_weights_out():
    scores, classes = scores_and_classes()
    plain = Objective("classes", 0.2, torch.arange(5.0)).plain()
    assert plain == Objective("classes")
    expected = -torch.log_softmax(scores, 1)[range(12), classes]
    torch.testing.assert_close(plain.loss(scores, classes), expected)


def test_right_is_the_largest_score_or_all_labels_or_nothing():
    scores = torch.tensor([[2.0, 1.0, -1.0], [0.1, 0.2, 0.3], [-1.0, -2.0, -3.0]])
    assert Objective().right(scores, torch.tensor([0, 1, 2])).tolist() == [True, False, False]
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.3, 0.4], [0.2, 0.3, 0.5]])
    assert Objective().right(scores, shares).tolist() == [True, True, False]
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert Objective("labels").right(scores, labels).tolist() == [True, False, True]
    assert Objective("numbers").right(scores, scores).tolist() == [False, False, False]


def test_balanced_loss_gives_each_class_present_the_same_weight_and_samples_a_mean_of_1():
    classes = torch.tensor([0] * 6 + [1] * 3 + [3] * 1)
    phase = Phase(epochs=1, balance="loss", label_smoothing=0.1)
    objective = make_objective("classes", classes, 4, phase)
    assert objective.weights is not None
    each = objective.weights[classes]
    totals = [float(each[classes == number].sum()) for number in (0, 1, 3)]
    assert totals == pytest.approx([10 / 3] * 3)
    assert float(each.mean()) == pytest.approx(1)
    assert objective.weights.isfinite().all()
    assert objective.label_smoothing == 0.1


def test_balanced_loss_gives_positive_and_negative_samples_of_a_label_the_same_weight():
    _, labels = scores_and_labels(50)
    labels[:, 0] = 0  # never seen, and always: their weights stay finite
    labels[:, 1] = 1
    objective = make_objective("labels", labels, 4, Phase(epochs=1, balance="loss"))
    assert objective.weights is not None
    for number in (2, 3):
        positive = float(labels[:, number].sum())
        assert 0 < positive < 50
        assert float(objective.weights[number]) * positive == pytest.approx(50 - positive)
    assert objective.weights.isfinite().all()
    assert (objective.weights > 0).all()


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_without_balance_nothing_is_weighed(kind: str):
    phase = Phase(epochs=1, label_smoothing=0.2)
    assert make_objective(kind, torch.tensor([0, 0, 1]), 2, phase) == Objective(kind, 0.2)


def test_balanced_sampling_weighs_held_out_samples_alone():
    classes = torch.tensor([0, 0, 0, 1])
    sampled, weighed = (
        make_objective("classes", classes, 2, Phase(epochs=1, balance=balance))
        for balance in ("sampling", "loss")
    )
    assert sampled.weights is None
    assert sampled.balance is not None
    assert weighed.weights is not None
    for found in (sampled.balance, weighed.balance, weighed.weights):
        assert found.tolist() == pytest.approx([2 / 3, 2])


def test_numbers_are_never_balanced():
    targets = torch.tensor([[0.5], [2.0]])
    assert make_objective("numbers", targets, 1, Phase(epochs=1, balance="loss")).weights is None


def test_sampling_weights_give_each_class_the_same_chance():
    classes = torch.tensor([4, 0, 0, 2, 0, 2, 0])
    chances = sampling_weights("classes", classes)
    assert float(chances.sum()) == pytest.approx(1)
    for number in (0, 2, 4):
        assert float(chances[classes == number].sum()) == pytest.approx(1 / 3)
        assert len(set(chances[classes == number].tolist())) == 1
    draw = torch.Generator().manual_seed(0)
    drawn = classes[torch.multinomial(chances, 9000, replacement=True, generator=draw)]
    torch.testing.assert_close(
        torch.bincount(drawn)[[0, 2, 4]] / 9000, torch.full((3,), 1 / 3), rtol=0, atol=0.02
    )


def mixed(mix: str, inputs: tuple[Tensor, ...], targets: Tensor, seed: int, strength: float = 1.0):
    phase = Phase(epochs=1, mix=mix, mix_strength=strength)
    draw = torch.Generator().manual_seed(seed)
    return mix_batch(inputs, targets, len(targets), phase, draw)


@pytest.mark.parametrize("seed", range(6))
def test_mixup_mixes_samples_and_targets_by_the_same_shares(seed: int):
    own = torch.eye(7)  # each sample is its own target, so mixed samples are mixed targets
    (first, second), targets = mixed("mixup", (own, 10 * own), torch.arange(7), seed)
    torch.testing.assert_close(targets.sum(1), torch.ones(7))
    assert torch.equal(first, targets)
    torch.testing.assert_close(second, 10 * targets)
    assert ((targets > 0).sum(1) <= 2).all()
    torch.testing.assert_close(targets.sum(0), torch.ones(7))  # the others are a permutation


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_puts_one_rectangle_of_another_sample_in_and_targets_are_the_areas(seed: int):
    height, width = 9, 13
    images = torch.eye(7)[:, :, None, None].expand(7, 7, height, width).clone()
    (image,), targets = mixed("cutmix", (images,), torch.arange(7), seed)
    torch.testing.assert_close(image.mean((2, 3)), targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(7))
    assert torch.equal(image.sum(1), torch.ones(7, height, width))  # pixels are not blended
    others = [number for number in range(7) if targets[number, number] < 1]
    masks = [image[number, number] == 0 for number in others]
    for mask in masks:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0))
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert len(rows) == rows[-1] - rows[0] + 1
        assert len(columns) == columns[-1] - columns[0] + 1
        assert torch.equal(mask, masks[0])
    assert torch.equal(images.argmax(1)[:, 0, 0], torch.arange(7))  # the batch itself is unchanged


def test_cutmix_draws_the_area_as_mixup_draws_its_share():
    size, whole = 64, 0
    images = torch.eye(6)[:, :, None, None].expand(6, 6, size, size)
    for seed in range(60):
        drawn = float(mixed("mixup", (torch.eye(6),), torch.arange(6), seed)[1].diagonal().min())
        (image,), targets = mixed("cutmix", (images,), torch.arange(6), seed)
        covered = 1 - float(targets.diagonal().min())
        assert covered < 1 - drawn + 0.05
        number = int(targets.diagonal().argmin())
        rows, columns = (image[number, number] == 0).nonzero(as_tuple=True)
        if covered and 0 < rows.min() <= rows.max() < size - 1 > columns.max() and columns.min():
            assert covered == pytest.approx(1 - drawn, abs=0.03)
            whole += 1
    assert whole > 5


def test_cutmix_rectangles_have_the_area_drawn_where_the_edges_allow_it():
    for share, length in product((0.1, 0.4, 0.9), (8, 31, 224)):
        first, last = span(0.5, math.sqrt(1 - share), length)
        assert last - first == pytest.approx(math.sqrt(1 - share) * length, abs=1)
    for center in np.linspace(0, 1, 21):
        first, last = span(float(center), 0.6, 10)
        assert 0 <= first <= last <= 10
        inside = [p for p in range(10) if 10 * center - 3 < p + 0.5 < 10 * center + 3]
        assert abs(len(inside) - (last - first)) <= 1
    assert (span(0.5, 0.0, 9)[1] - span(0.5, 0.0, 9)[0], span(0.5, 1.0, 9)) == (0, (0, 9))


@pytest.mark.parametrize("strength", [0.2, 1.0, 5.0])
def test_shares_come_from_the_beta_distribution(strength: float):
    shares = []
    for seed in range(1500):
        _, targets = mixed("mixup", (torch.zeros(8, 1),), torch.arange(8), seed, strength)
        shares.append(float(targets.diagonal().min()))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * strength + 1)), rel=0.1)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_follows_from_its_own_draw_and_leaves_the_global_random_state(mix: str):
    images = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        (image,), targets = mixed(mix, (images,), torch.arange(5), 9)
        assert torch.equal(torch.get_rng_state(), before)
        results.append((image, targets))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(results[0][0], mixed(mix, (images,), torch.arange(5), 10)[0][0])


def test_labels_are_mixed_as_they_are():
    own = torch.eye(6)
    (inputs,), targets = mixed("mixup", (own,), own[:, :4].clone(), 2)
    torch.testing.assert_close(inputs[:, :4], targets)


def test_a_small_strength_leaves_samples_nearly_whole():
    shares = []
    for seed in range(200):
        (inputs,), targets = mixed("mixup", (torch.eye(8),), torch.arange(8), seed, 0.01)
        assert torch.equal(inputs, targets)
        shares.append(float(targets.diagonal().min()))
    assert sum(0.1 < share < 0.9 for share in shares) < 20  # 2 in 100 expected
