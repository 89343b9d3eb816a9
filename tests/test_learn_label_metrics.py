"""Metrics of several labels, of rankings and of numbers, held against scikit-learn and loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from topwork.errors import DataError
from topwork.learn import bootstrap
from topwork.learn.label_metrics import evaluate_labels
from topwork.learn.metrics import evaluate, proportion
from topwork.learn.number_metrics import evaluate_numbers
from topwork.learn.ranking import rank

NAMES = ["wet", "cold", "dark"]


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and labels drawn by them; the third label is rare."""
    generator = np.random.default_rng(seed)
    probabilities = generator.beta(0.5, 0.5, size=(n, 3)).round(1) * [1.0, 1.0, 0.3]
    return probabilities, (generator.random((n, 3)) < probabilities).astype(np.float32)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_rankings_are_scikit_learns_with_any_number_of_each_row(rows, seed):
    scores, positive = np.array(rows, dtype=float).T
    times = np.random.default_rng(seed).integers(0, 3, size=(4, len(rows)))
    ranking = rank(scores, positive)
    precisions, areas = ranking.average_precision(times), ranking.area(times)
    for row, counts in enumerate(times):
        drawn = np.repeat(np.arange(len(rows)), counts)
        some, own = scores[drawn], positive[drawn]
        if not own.any():
            assert np.isnan(precisions[row])
        else:
            assert precisions[row] == pytest.approx(oracle.average_precision_score(own, some))
        if own.size and 0 < own.mean() < 1:
            assert areas[row] == pytest.approx(oracle.roc_auc_score(own, some))
        else:
            assert np.isnan(areas[row])


@pytest.mark.parametrize(("n", "seed"), [(300, 0), (25, 1)])
def test_label_figures_are_scikit_learns(n, seed):
    probabilities, labels = draw(n, seed)
    said = probabilities >= 0.5
    report = evaluate_labels(probabilities, labels, NAMES)
    tops = ("mean_average_precision", "f1", "exact_match", "label_accuracy", "log_loss")
    values = {key: report[key]["value"] for key in tops}
    assert values == {
        "mean_average_precision": pytest.approx(
            oracle.average_precision_score(labels, probabilities, average="macro")
        ),
        "f1": pytest.approx(oracle.f1_score(labels, said, average="macro", zero_division=0)),
        "exact_match": pytest.approx(oracle.accuracy_score(labels, said)),
        "label_accuracy": pytest.approx(1 - oracle.hamming_loss(labels, said)),
        "log_loss": pytest.approx(
            np.mean([oracle.log_loss(labels[:, i], probabilities[:, i]) for i in range(3)])
        ),
    }
    assert report["exact_match"] == proportion(int((labels == said).all(axis=1).sum()), n)
    for index, row in enumerate(report["per_label"]):
        own, its_said = labels[:, index], said[:, index]
        assert (row["label"], row["n"]) == (NAMES[index], own.sum())
        assert row["average_precision"]["value"] == pytest.approx(
            oracle.average_precision_score(own, probabilities[:, index])
        )
        assert row["f1"]["value"] == pytest.approx(oracle.f1_score(own, its_said))
        assert row["recall"] == proportion(int((own * its_said).sum()), int(own.sum()))
        assert row["precision"] == proportion(int((own * its_said).sum()), int(its_said.sum()))
    assert json.loads(json.dumps(report)) == report
    assert evaluate_labels(probabilities, labels, NAMES) == report


def test_label_intervals_are_those_of_a_slow_bootstrap():
    probabilities, labels = draw(80, 3)
    report = evaluate_labels(probabilities, labels, NAMES)
    generator = np.random.default_rng(5)
    slow = []
    for _ in range(300):
        drawn = generator.integers(0, 80, size=80)
        some, own = probabilities[drawn], labels[drawn]
        present = own.any(axis=0)
        scores = oracle.f1_score(own, some >= 0.5, average=None, zero_division=0)
        slow.append(
            [
                oracle.average_precision_score(own[:, present], some[:, present]),
                scores[present].mean(),
                ((some >= 0.5) == own).mean(),
            ]
        )
    for key, column in zip(
        ("mean_average_precision", "f1", "label_accuracy"), np.transpose(slow), strict=True
    ):
        expected = np.quantile(column, [0.025, 0.975])
        assert report[key]["interval"] == pytest.approx(expected, abs=0.35 * column.std())


def test_labels_that_no_row_has_are_named_and_not_averaged():
    probabilities = np.array([[0.9, 0.6, 0.2], [0.2, 0.7, 0.1]])
    report = evaluate_labels(probabilities, np.array([[1, 0, 0], [0, 0, 0]]), NAMES)
    assert report["absent"] == ["cold", "dark"]
    assert report["mean_average_precision"]["value"] == report["f1"]["value"] == 1.0
    assert report["per_label"][1]["average_precision"] == {"value": None, "interval": None, "n": 2}
    assert report["label_accuracy"]["value"] == pytest.approx(4 / 6)
    nothing = evaluate_labels(probabilities, np.zeros((2, 3)), NAMES)
    assert nothing["mean_average_precision"]["value"] is None
    assert nothing["exact_match"]["value"] == 0.0


def test_a_resample_that_lacks_a_label_does_not_move_the_mean():
    probabilities = np.column_stack([np.linspace(0.9, 0.1, 20), np.linspace(0.1, 0.9, 20)])
    labels = np.zeros((20, 2))
    labels[::2, 0] = labels[4, 1] = 1  # the second label has one row, and is ranked badly
    report = evaluate_labels(probabilities, labels, NAMES[:2])
    first, second = report["per_label"]
    _, high = report["mean_average_precision"]["interval"]
    assert second["average_precision"]["value"] < 0.1
    assert high < first["average_precision"]["value"]  # which is the mean without the second


def test_two_classes_are_ranked_too():
    probabilities, labels = draw(200)
    pairs, own = np.stack([1 - probabilities[:, 0], probabilities[:, 0]], 1), labels[:, 0]
    report = evaluate(pairs, own.astype(int), ["dry", "wet"])
    area, precision = report["roc_auc"], report["average_precision"]
    assert area["value"] == pytest.approx(oracle.roc_auc_score(own, pairs[:, 1]))
    assert precision["value"] == pytest.approx(oracle.average_precision_score(own, pairs[:, 1]))
    # Hanley & McNeil 1982: the standard error of the area, from the area and the counts alone
    a, m, n = area["value"], own.sum(), (1 - own).sum()
    q1, q2 = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
    error = np.sqrt((a * (1 - a) + (m - 1) * q1 + (n - 1) * q2) / m / n)
    assert np.diff(area["interval"])[0] == pytest.approx(2 * 1.96 * error, rel=0.35)
    one_kind = evaluate(pairs[own > 0], np.ones(int(own.sum()), int), ["dry", "wet"])
    assert one_kind["roc_auc"]["value"] is None
    assert "roc_auc" not in evaluate(np.full((3, 3), 1 / 3), np.arange(3), NAMES)


@pytest.mark.parametrize("columns", [1, 3])
def test_number_figures_are_scikit_learns(columns):
    generator = np.random.default_rng(columns)
    numbers = generator.normal(size=(150, columns)) * [1e-3, 1.0, 1e3][:columns] + 2000
    predicted = numbers + 0.5 * generator.normal(size=numbers.shape) * numbers.std(axis=0)
    names = ["a", "b", "c"][:columns]
    report = evaluate_numbers(predicted, numbers, names)
    for key, score in (
        ("mean_absolute_error", oracle.mean_absolute_error),
        ("root_mean_squared_error", oracle.root_mean_squared_error),
        ("r2", oracle.r2_score),
    ):
        assert report[key]["value"] == pytest.approx(score(numbers, predicted))
        for row, own in zip(
            report["per_number"], score(numbers, predicted, multioutput="raw_values"), strict=True
        ):
            assert row[key]["value"] == pytest.approx(own)
            low, high = row[key]["interval"]
            assert low < own < high
    assert [row["name"] for row in report["per_number"]] == names
    slow = []
    for _ in range(300):
        drawn = generator.integers(0, 150, size=150)
        some, own = predicted[drawn], numbers[drawn]
        slow.append([oracle.mean_absolute_error(own, some), oracle.r2_score(own, some)])
    for key, column in zip(("mean_absolute_error", "r2"), np.transpose(slow), strict=True):
        expected = np.quantile(column, [0.025, 0.975])
        assert report[key]["interval"] == pytest.approx(expected, abs=0.35 * column.std())
    assert json.loads(json.dumps(report)) == report


def test_numbers_that_are_all_the_same_have_no_r2():
    report = evaluate_numbers(np.array([[0.1], [0.3], [0.2]]), np.full((3, 1), 0.1), ["x"])
    assert report["r2"] == {"value": None, "interval": None, "n": 3}
    assert report["mean_absolute_error"]["value"] == pytest.approx(0.1)


def test_r2_is_the_mean_over_numbers_that_vary():
    generator = np.random.default_rng(0)
    varying = generator.normal(size=(30, 1))
    numbers = np.hstack([varying, np.full((30, 1), 7.0)])
    predicted = numbers + 0.3 * generator.normal(size=(30, 2))
    report = evaluate_numbers(predicted, numbers, ["age", "rooms"])
    alone = evaluate_numbers(predicted[:, :1], varying, ["age"])
    assert report["r2"] == alone["r2"] == report["per_number"][0]["r2"]
    assert report["per_number"][1]["r2"]["value"] is None
    assert report["mean_absolute_error"]["value"] == pytest.approx(
        np.abs(predicted - numbers).mean()
    )


def test_resamples_of_groups_hold_them_whole():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    times = np.concatenate(list(bootstrap.drawn(6, 500, 0, groups)))
    for group in "abc":
        own = times[:, groups == group]
        assert (own == own[:, :1]).all()
    assert (times[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert times.mean(axis=0) == pytest.approx(np.ones(6), abs=0.12)
    ones = np.concatenate(list(bootstrap.drawn(6, 500, 0, np.zeros(6))))
    assert np.array_equal(ones, np.concatenate(list(bootstrap.drawn(6, 500, 0))))


def test_labels_and_numbers_of_20_people_are_not_those_of_400(monkeypatch):
    monkeypatch.setattr(bootstrap, "MOST_RESAMPLES", 200)
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 20)
    covered = np.zeros((3, 2))
    for seed in range(150):
        own = generator.exponential(size=20)[groups]  # how far off one is, person by person
        errors = own * generator.choice([-1, 1], size=400)
        right = generator.random(400) < generator.beta(8, 2, size=20)[groups]
        true = generator.integers(0, 2, size=400)
        said = np.where(right, true, 1 - true)[:, None]
        for column, given_groups in enumerate((None, groups)):
            numbers = evaluate_numbers(
                errors[:, None], np.zeros((400, 1)), ["x"], seed=seed, groups=given_groups
            )
            labels = evaluate_labels(said, true[:, None], ["wet"], seed=seed, groups=given_groups)
            for row, (number, truth) in enumerate(
                (
                    (numbers["mean_absolute_error"], 1.0),
                    (labels["label_accuracy"], 0.8),
                    (labels["exact_match"], 0.8),
                )
            ):
                low, high = number["interval"]
                covered[row, column] += low <= truth <= high
    assert (covered[:, 0] / 150 < 0.8).all()
    assert (covered[:, 1] / 150 >= 0.86).all()
    assert numbers["groups"] == labels["groups"] == 20


def test_a_percentile_interval_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        errors = generator.exponential(size=(60, 1))
        report = evaluate_numbers(errors, np.zeros((60, 1)), ["x"], seed=seed)
        low, high = report["mean_absolute_error"]["interval"]
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_resampling_in_chunks_changes_nothing(monkeypatch):
    probabilities, labels = draw(60)
    whole = evaluate_labels(probabilities, labels, NAMES)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 500)
    again = evaluate_labels(probabilities, labels, NAMES)
    for key in ("mean_average_precision", "f1", "label_accuracy", "log_loss"):
        assert again[key]["interval"] == pytest.approx(whole[key]["interval"])


@pytest.mark.parametrize(
    ("probabilities", "labels", "text"),
    [
        ([[0.5, np.nan]], [[0, 1]], "row 0 does not hold probabilities; give sigmoid outputs"),
        ([[0.5, 0.5], [0.5, 1.1]], [[0, 1], [0, 1]], "row 1 does not hold probabilities"),
        ([[0.5, 0.5]], [[0, 2]], "other values than 0 and 1"),
        ([[0.5, 0.5]], [[0.0, np.nan]], "other values than 0 and 1"),
        ([[0.5, 0.5]], [0, 1], r"shape \[1, 2\] do not fit labels of shape \[2\]"),
        ([[0.5]], [[1]], "and 2 names"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no rows to evaluate"),
    ],
)
def test_bad_labels_are_named(probabilities, labels, text):
    with pytest.raises(DataError, match=text):
        evaluate_labels(np.array(probabilities), np.array(labels), ["a", "b"])


@pytest.mark.parametrize(
    ("predicted", "numbers", "text"),
    [
        ([[1.0], [np.inf]], [[1.0], [2.0]], "row 1 holds NaN or infinity"),
        ([[1.0]], [[np.nan]], "row 0 holds NaN or infinity"),
        ([1.0], [1.0], r"give \[n, m\], \[n, m\] and m"),
        (np.zeros((0, 1)), np.zeros((0, 1)), "no rows to evaluate"),
    ],
)
def test_bad_numbers_are_named(predicted, numbers, text):
    with pytest.raises(DataError, match=text):
        evaluate_numbers(np.array(predicted), np.array(numbers), ["a"])
