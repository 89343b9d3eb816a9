"""Metrics held against scikit-learn, SciPy and loops; intervals against simulated coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as oracle

from topwork.errors import DataError
from topwork.learn.metrics import evaluate, mean_proportion, proportion, share, wilson


def draw(n: int, c: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(c, 0.5), size=n)
    labels = np.array([generator.choice(c, p=row) for row in probabilities])
    return probabilities, labels, [f"class {index}" for index in range(c)]


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    successes = round(share * n)
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "seed"), [(400, 5, 0), (37, 2, 1), (1, 3, 2)])
def test_values_are_scikit_learns(n, c, seed):
    probabilities, labels, classes = draw(n, c, seed)
    predicted = probabilities.argmax(axis=1)
    report = evaluate(probabilities, labels, classes)
    everything = np.arange(c)
    assert report["n"] == n
    assert report["accuracy"]["value"] == pytest.approx(oracle.accuracy_score(labels, predicted))
    present = np.unique(labels)
    recalls = oracle.recall_score(
        labels, predicted, labels=everything, average=None, zero_division=0
    )
    assert report["balanced_accuracy"]["value"] == pytest.approx(recalls[present].mean())
    assert report["log_loss"]["value"] == pytest.approx(
        oracle.log_loss(labels, probabilities, labels=everything)
    )
    confusion = oracle.confusion_matrix(labels, predicted, labels=everything)
    assert report["confusion"] == {"classes": classes, "counts": confusion.tolist()}
    precisions = oracle.precision_score(
        labels, predicted, labels=everything, average=None, zero_division=0
    )
    for index, row in enumerate(report["per_class"]):
        assert row["class"] == classes[index]
        assert row["recall"]["n"] == (labels == index).sum()
        assert row["precision"]["n"] == (predicted == index).sum()
        for name, values in (("recall", recalls), ("precision", precisions)):
            expected = values[index] if row[name]["n"] else None
            assert row[name]["value"] == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_calibration_error_is_the_loop_over_bins(dtype):
    probabilities, labels, classes = draw(300, 3, 5)
    probabilities[:3] = [[1.0, 0, 0], [0.4, 0.3, 0.3], [2 / 3, 1 / 3, 0]]
    probabilities = probabilities.astype(dtype)
    total = 0.0
    for low in range(15):
        members = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities.astype(float), labels, strict=True)
            if low < 15 * row.max() <= low + 1
        ]
        if members:
            confidence, correct = np.mean(members, axis=0)
            total += len(members) / 300 * abs(correct - confidence)
    error = evaluate(probabilities, labels, classes)["calibration_error"]
    assert error["value"] == pytest.approx(total)
    assert error["bins"] == 15


def test_bootstrap_intervals_are_those_of_a_slow_bootstrap():
    probabilities, labels, classes = draw(200, 3, 7)
    probabilities = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)  # too sure
    report = evaluate(probabilities, labels, classes, seed=3)
    generator = np.random.default_rng(11)
    means, errors = [], []
    for _ in range(400):
        drawn = generator.integers(0, 200, size=200)
        some, own = probabilities[drawn], labels[drawn]
        means.append(oracle.log_loss(own, some, labels=np.arange(3)))
        confidence, correct = some.max(axis=1), some.argmax(axis=1) == own
        bins = np.ceil(15 * confidence)
        sums = [abs((correct - confidence)[bins == index].sum()) for index in range(1, 16)]
        errors.append(sum(sums) / 200)
    width = np.std(means)
    assert report["log_loss"]["interval"] == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.35 * width
    )
    value, half = report["calibration_error"]["value"], 1.96 * np.std(errors)
    low = value - (np.mean(errors) - value) - half
    assert report["calibration_error"]["interval"] == pytest.approx([low, value + half], abs=0.004)
    assert report["bootstrap"] == {"resamples": 2000, "seed": 3}


def test_every_interval_holds_its_value_and_the_report_is_plain_data():
    probabilities, labels, classes = draw(120, 4, 9)
    report = evaluate(probabilities, labels, classes)
    numbers = [report[name] for name in ("accuracy", "balanced_accuracy", "log_loss")]
    numbers += [report["calibration_error"]]
    numbers += [row[name] for row in report["per_class"] for name in ("recall", "precision")]
    for number in numbers:
        low, high = number["interval"]
        assert low <= number["value"] <= high
        assert number["n"] > 0
    assert json.loads(json.dumps(report)) == report
    assert evaluate(probabilities, labels, classes) == report


def test_wilson_covers_the_truth_about_95_times_in_100_and_of_a_mean_no_less():
    generator = np.random.default_rng(0)
    counts, truths = np.array([8, 30, 60]), np.array([0.97, 0.9, 0.8])
    draws = generator.binomial(counts, truths, size=(3000, 3))
    covered = np.zeros(2)
    for successes in draws:
        low, high = mean_proportion(successes, counts)["interval"]
        covered[0] += low <= truths.mean() <= high
        low, high = wilson(int(successes[1]), 30)
        covered[1] += low <= truths[1] <= high
    assert 0.93 <= covered[0] / 3000 <= 0.995  # the wider of two
    assert 0.93 <= covered[1] / 3000 <= 0.985


def test_balanced_accuracy_has_the_wider_of_two_intervals_also_at_100_percent():
    successes, counts = np.array([3, 20]), np.array([4, 25])
    (l1, u1), (l2, u2) = wilson(3, 4), wilson(20, 25)
    mean = (0.75 + 0.8) / 2
    low = mean - math.hypot(0.75 - l1, 0.8 - l2) / 2
    high = mean + math.hypot(u1 - 0.75, u2 - 0.8) / 2
    result = mean_proportion(successes, counts)
    effective = 4 / (1 / 4 + 1 / 25)
    wider = wilson(mean * effective, effective)
    assert wider[0] < low < high < wider[1]
    assert result["interval"] == pytest.approx(wider)
    certain = mean_proportion(np.array([950, 25]), np.array([950, 50]))["interval"]
    (l1, _), (l2, u2) = wilson(950, 950), wilson(25, 50)
    assert certain[0] == pytest.approx(0.75 - math.hypot(1 - l1, 0.5 - l2) / 2)
    assert certain[1] == pytest.approx(0.75 + (u2 - 0.5) / 2)
    perfect = mean_proportion(np.array([10, 10]), np.array([10, 10]))
    assert perfect["interval"][0] < 0.9
    assert perfect["interval"][1] == 1.0
    assert mean_proportion(np.array([7]), np.array([9]))["interval"] == pytest.approx(wilson(7, 9))


@pytest.mark.parametrize(
    ("counts", "truths"),
    [
        ([3] * 102, [0.9] * 102),
        ([20] * 12, [0.92] * 12),
        ([950, 50], [0.99, 0.5]),
        ([95, 5], [0.99, 0.6]),
        (np.arange(1, 31), np.linspace(0.75, 1.0, 30)),
    ],
)
def test_balanced_accuracy_is_covered_with_many_classes_or_few_images(counts, truths):
    generator = np.random.default_rng(0)
    counts, truths = np.array(counts), np.array(truths)
    draws = generator.binomial(counts, truths, size=(1000, len(counts)))
    found = [mean_proportion(successes, counts)["interval"] for successes in draws]
    assert np.mean([low <= truths.mean() <= high for low, high in found]) >= 0.93


def people(count: int, photos: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities that are right about some people more than others, labels and groups."""
    generator = np.random.default_rng(seed)
    skill = np.repeat(generator.beta(8, 2, size=count), photos)
    labels = generator.integers(0, 2, size=count * photos)
    said = np.where(generator.random(count * photos) < skill, labels, 1 - labels)
    own = np.repeat(np.arange(count), photos)
    shuffled = generator.permutation(len(own))
    return np.eye(2)[said][shuffled] * 0.6 + 0.2, labels[shuffled], own[shuffled]


def test_images_of_20_people_are_not_taken_as_600_people(monkeypatch):
    monkeypatch.setattr("topwork.learn.bootstrap.MOST_RESAMPLES", 200)
    loss = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    truths = {"accuracy": 0.8, "balanced_accuracy": 0.8, "log_loss": loss}
    covered, alone = dict.fromkeys(truths, 0), 0
    for seed in range(200):
        probabilities, labels, groups = people(20, 30, seed)
        found = evaluate(probabilities, labels, ["a", "b"], groups=groups)
        assert found["groups"] == 20
        for metric, truth in truths.items():
            low, high = found[metric]["interval"]
            covered[metric] += low <= truth <= high
        low, high = wilson(round(600 * found["accuracy"]["value"]), 600)
        alone += low <= 0.8 <= high
    assert alone / 200 < 0.75
    assert min(covered.values()) / 200 >= 0.88
    assert max(covered.values()) / 200 <= 0.99


@pytest.mark.parametrize("count", [3, 5, 10])
def test_few_people_are_taken_as_few(count):
    covered = 0
    for seed in range(400):
        probabilities, labels, groups = people(count, 30, seed)
        low, high = share(probabilities.argmax(axis=1) == labels, groups)["interval"]
        covered += low <= 0.8 <= high
    assert covered / 400 >= 0.9


def test_groups_that_do_not_matter_hardly_widen():
    generator = np.random.default_rng(0)
    right, groups = generator.random(2000) < 0.9, np.repeat(np.arange(500), 4)
    (low, high), (low_alone, high_alone) = (share(right, own)["interval"] for own in (groups, None))
    assert high_alone - low_alone <= high - low < 1.15 * (high_alone - low_alone)


def test_the_design_effect_at_its_ends():
    right = np.random.default_rng(0).random(60) < 0.8
    everyone = np.arange(60)
    assert share(right, everyone) == share(right, None) == proportion(int(right.sum()), 60)
    one = share(right, np.zeros(60))  # one person: as of a single image
    assert one["interval"] == pytest.approx(wilson(right.mean(), 1))
    assert one["n"] == 60
    twins = np.repeat(right, 10), np.repeat(everyone, 10)
    low, high = share(*twins)["interval"]  # copies tell nothing
    assert low < wilson(int(right.sum()), 60)[0]
    assert high > wilson(int(right.sum()), 60)[1]
    assert high - low == pytest.approx(np.diff(wilson(int(right.sum()), 60))[0], rel=0.04)
    # Of two people whose photos are all right, nobody knows how much people differ.
    assert share(np.ones(60, bool), np.repeat([0, 1], 30))["interval"][0] < 0.5


def test_groups_of_one_change_nothing_and_names_do_not_matter():
    probabilities, labels, classes = draw(50, 2, 3)
    plain = evaluate(probabilities, labels, classes)
    assert evaluate(probabilities, labels, classes, groups=np.arange(50)[::-1]) == plain
    named = np.array([f"person {row // 5}" for row in range(50)])
    found = evaluate(probabilities, labels, classes, groups=named)
    assert found == evaluate(probabilities, labels, classes, groups=np.arange(50) // 5)
    assert found["groups"] == 10
    assert "groups" not in plain
    alone = evaluate(probabilities, labels, classes, groups=np.zeros(50))
    assert alone["log_loss"] == plain["log_loss"]  # of one group only its rows can be drawn


def test_a_perfect_ranking_of_few_images_is_not_certain():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    found = evaluate(probabilities, np.array([0, 0, 0, 1]), ["a", "b"])
    for metric in ("roc_auc", "average_precision"):
        assert found[metric]["value"] == 1.0
        assert found[metric]["interval"] == pytest.approx([wilson(1, 1)[0], 1.0])
    two = evaluate(probabilities, np.array([0, 0, 1, 1]), ["a", "b"])
    assert two["roc_auc"]["interval"] == pytest.approx([wilson(2, 2)[0], 1.0])


def test_absent_classes_are_named_and_not_averaged():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
    report = evaluate(probabilities, np.array([0, 0, 0]), ["ant", "bee", "cow"])
    assert report["absent"] == ["bee", "cow"]
    assert report["balanced_accuracy"]["value"] == pytest.approx(2 / 3)
    assert report["per_class"][1]["recall"] == {"value": None, "interval": None, "n": 0}
    assert report["per_class"][2]["precision"] == proportion(0, 1)


def test_a_probability_of_zero_at_the_label_stays_finite():
    report = evaluate(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]), ["a", "b"])
    assert report["log_loss"]["value"] == pytest.approx(-np.log(2.220446e-16) / 2)
    assert report["calibration_error"]["value"] == pytest.approx(0.5)


def test_resampling_in_chunks_changes_nothing(monkeypatch):
    probabilities, labels, classes = draw(60, 3, 4)
    whole = evaluate(probabilities, labels, classes)
    monkeypatch.setattr("topwork.learn.bootstrap.DRAWS_AT_ONCE", 500)
    assert evaluate(probabilities, labels, classes)["log_loss"] == whole["log_loss"]


@pytest.mark.parametrize(
    ("probabilities", "labels", "text"),
    [
        ([[0.5, np.nan], [0.5, 0.5]], [0, 1], "row 0 does not hold probabilities"),
        ([[0.5, 0.5], [np.inf, 0.5]], [0, 1], "row 1 does not hold probabilities"),
        ([[1.5, -0.5], [0.5, 0.5]], [0, 1], "row 0 does not hold probabilities"),
        ([[3.0, 1.0], [0.5, 0.5]], [0, 1], "give softmax outputs"),
        ([[0.5, 0.5]], [0, 1], r"shape \[1, 2\] do not fit labels of shape \[2\]"),
        ([[0.5, 0.5]], [2], "labels run from 2 to 2; give numbers from 0 to 1"),
        ([[0.5, 0.3, 0.2]], [0], "2 class names for 3 columns"),
        (np.zeros((0, 2)), [], "no rows to evaluate"),
    ],
)
def test_bad_input_is_named(probabilities, labels, text):
    with pytest.raises(DataError, match=text):
        evaluate(np.array(probabilities), np.array(labels, dtype=int), ["a", "b"])
