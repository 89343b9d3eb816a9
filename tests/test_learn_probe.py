"""Folds that divide rightly, and a probe that chooses inside them only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from topwork.errors import DataError, UsageError
from topwork.learn import judging
from topwork.learn.folds import label_strata, number_strata, stratified_folds
from topwork.learn.heads import CLASS_KINDS, NEVER, fit_head
from topwork.learn.judging import judge, judge_divisions
from topwork.learn.metrics import wilson
from topwork.learn.probe import probe
from topwork.learn.temperature import as_two_classes, fit_temperature, log_loss


def draw(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % classes)
    centers = generator.normal(size=(classes, d))
    return centers[labels] + 1.5 * generator.normal(size=(n, d)), labels


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    count=st.integers(2, 7),
    seed=st.integers(0, 9),
)
def test_folds_partition_the_rows_and_spread_every_class(labels, count, seed):
    labels = np.array(labels)
    folds = stratified_folds(labels, count=count, seed=seed)
    assert len(folds) == min(count, len(labels))
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels)))
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for label in np.unique(labels):
        held = [(labels[fold] == label).sum() for fold in folds]
        assert max(held) - min(held) <= 1


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=2, max_size=60),
    count=st.integers(2, 5),
)
def test_groups_are_never_divided(rows, count):
    labels, groups = np.array(rows).T
    if len(np.unique(groups)) < 2:
        with pytest.raises(DataError, match="1 groups cannot be divided"):
            stratified_folds(labels, groups, count)
        return
    folds = stratified_folds(labels, groups, count)
    assert len(folds) == min(count, len(np.unique(groups)))
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels)))
    held = [set(groups[fold]) for fold in folds]
    assert all(held)
    assert sum(len(some) for some in held) == len(np.unique(groups))


def test_grouped_folds_hold_about_the_same_share_of_every_class():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), generator.integers(1, 12, size=60))
    labels = generator.integers(0, 3, size=60)[groups]
    for fold in stratified_folds(labels, groups):
        for label in range(3):
            share = (labels[fold] == label).sum() / (labels == label).sum()
            assert 0.15 < share < 0.25


def test_folds_follow_the_seed_and_name_what_is_impossible():
    labels = np.arange(40) % 4
    first, again, other = (stratified_folds(labels, seed=seed) for seed in (0, 0, 1))
    assert all((left == right).all() for left, right in zip(first, again, strict=True))
    assert any((left != right).any() for left, right in zip(first, other, strict=True))
    with pytest.raises(DataError, match="1 rows cannot be divided"):
        stratified_folds(np.array([0]))
    with pytest.raises(DataError, match="3 groups for 4 labels"):
        stratified_folds(np.arange(4), np.arange(3))


@pytest.mark.parametrize("kind", CLASS_KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_table_is_that_of_the_plain_loop(kind, classes):
    codes, labels = draw(70, 10, classes)
    strengths = [1e-3, 1e-1, 1.0]
    found = probe(codes, labels, classes, kind=kind, strengths=strengths, seed=4)
    assert [result.strength for result in found.table] == [1.0, 1e-1, 1e-3]
    for result in found.table:
        scores = np.zeros((70, classes))
        for fold in stratified_folds(labels, seed=4):
            kept = np.setdiff1d(np.arange(70), fold)
            head = fit_head(codes[kept], labels[kept], classes, kind=kind, strength=result.strength)
            scores[fold] = head.scores(codes[fold])
        assert result.accuracy == pytest.approx((scores.argmax(axis=1) == labels).mean())
        temperature = fit_temperature(scores, labels)
        assert result.temperature == pytest.approx(temperature, rel=1e-2)
        assert result.loss == pytest.approx(log_loss(scores, labels, temperature), rel=1e-3)
    assert found.chosen == np.argmin([result.loss for result in found.table])
    best = found.table[found.chosen]
    head = fit_head(codes, labels, classes, kind=kind, strength=best.strength)
    np.testing.assert_array_equal(found.head.weight, head.weight)
    assert found.head.temperature == best.temperature
    assert found.out_of_fold["value"] == pytest.approx(best.accuracy)
    assert found.out_of_fold["n"] == 70
    assert found.folds_made == found.folds_evaluated == 5


def test_temperature_is_the_best_on_a_grid_of_softened_log_loss():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, size=200)
    scores = 30 * generator.normal(size=(200, 4))
    scores[np.arange(200), labels] += 40
    epsilon = 2 / 202  # two pseudo-rows, spread over the four classes
    targets = np.full((200, 4), epsilon / 4)
    targets[np.arange(200), labels] += 1 - epsilon

    def loss(temperature):
        scaled = scores / temperature
        normalized = scaled - scaled.max(axis=1, keepdims=True)
        normalized -= np.log(np.exp(normalized).sum(axis=1, keepdims=True))
        return -(targets * normalized).sum(axis=1).mean()

    grid = np.geomspace(1, 1000, 2000)
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    assert fit_temperature(scores, labels) == pytest.approx(best, rel=5e-3)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_temperature_moves_with_the_scores(factor):
    labels = np.arange(100) % 3
    scores = np.random.default_rng(0).normal(size=(100, 3)) + np.eye(3)[labels]
    temperature = fit_temperature(scores, labels)
    assert 0.5 < temperature < 2
    assert fit_temperature(scores * factor, labels) == pytest.approx(temperature * factor)


def test_temperature_at_the_ends():
    labels = np.arange(40) % 2
    right = np.where(labels[:, None] == np.arange(2), 1.0, -1.0)
    assert 0.05 < fit_temperature(right, labels) < 1  # all right: sure, but not infinitely
    assert fit_temperature(-right, labels) > 100  # all wrong: as good as even odds
    assert fit_temperature(np.zeros((40, 2)), labels) == 1.0


def test_unseen_classes_do_not_spoil_temperature_or_log_loss():
    codes, labels = draw(60, 2, 2)
    padded = np.column_stack([codes, np.full(60, NEVER)])
    padded = np.vstack([padded, [0.0, 0.0, NEVER]])
    padded_labels = np.append(labels, 2)
    temperature = fit_temperature(padded, padded_labels)
    assert temperature == pytest.approx(fit_temperature(codes, labels), rel=0.05)
    assert log_loss(padded, padded_labels, 2.0) == pytest.approx(log_loss(codes, labels, 2.0))


def test_validation_rows_choose_and_are_then_learned_from():
    codes, labels = draw(90, 8, 3)
    rows = np.arange(60, 90)
    found = probe(codes, labels, 3, validation=rows, strengths=[1e-2])
    apart = fit_head(codes[:60], labels[:60], 3, strength=1e-2)
    expected = (apart.scores(codes[60:]).argmax(axis=1) == labels[60:]).mean()
    assert found.table[0].accuracy == pytest.approx(expected)
    assert found.out_of_fold["n"] == 30
    assert found.folds_made == 1
    whole = fit_head(codes, labels, 3, strength=1e-2)
    np.testing.assert_array_equal(found.head.weight, whole.weight)
    kept_out = probe(codes, labels, 3, validation=rows, strengths=[1e-2], keep_out=True)
    assert kept_out.table == found.table
    without = fit_head(codes[:60], labels[:60], 3, strength=1e-2)
    np.testing.assert_array_equal(kept_out.head.weight, without.weight)
    with pytest.raises(DataError, match="not among rows 0 to 89"):
        probe(codes, labels, 3, validation=np.array([90]))
    with pytest.raises(DataError, match="at least two classes"):
        probe(codes, labels, 3, validation=np.flatnonzero(labels > 0))


@pytest.mark.parametrize("kind", ["softmax", "svm", "regression"])
def test_heads_learn_from_all_views_of_images_and_are_judged_by_the_plain_ones(kind):
    plain, labels = draw(90, 8, 3)
    noise = np.random.default_rng(1).normal(size=(2, 90, 8))
    codes = np.concatenate([plain, *(plain + 3 * noise)])  # crops show less than plain views
    targets = labels if kind != "regression" else np.eye(3)[labels]
    held_out = np.arange(60, 90)
    given = {"kind": kind, "validation": held_out, "strengths": [1e-2]}
    found = probe(codes, targets, 3, views=3, **given)
    learned = np.concatenate([np.arange(60) + 90 * view for view in range(3)])
    tiled = np.concatenate([targets] * 3)
    apart = fit_head(codes[learned], tiled[learned], 3, kind=kind, strength=1e-2)
    said = apart.scores(plain[60:])
    if kind == "regression":
        assert found.out_of_fold["value"] == pytest.approx(np.abs(said - targets[60:]).mean())
    else:
        assert found.table[0].accuracy == (said.argmax(axis=1) == labels[60:]).mean()
        assert found.head.temperature == pytest.approx(fit_temperature(said, labels[60:]), rel=1e-3)
    assert found.out_of_fold["n"] == 30
    whole = fit_head(codes, tiled, 3, kind=kind, strength=1e-2)
    np.testing.assert_array_equal(found.head.weight, whole.weight)


def test_views_are_no_images():
    plain, labels = draw(60, 8, 2)
    one = probe(plain, labels, 2, groups=np.arange(60))
    four = probe(np.tile(plain, (4, 1)), labels, 2, groups=np.arange(60), views=4)
    for found in (one, four):
        assert found.out_of_fold["n"] == 60
    assert four.out_of_fold["value"] == pytest.approx(one.out_of_fold["value"], abs=0.05)
    with pytest.raises(DataError, match="do not fit labels"):
        probe(plain, labels, 2, views=2)


def test_groups_keep_copies_from_flattering():
    generator = np.random.default_rng(0)
    codes, labels = generator.normal(size=(40, 60)), np.arange(40) % 2
    codes, labels, groups = np.tile(codes, (4, 1)), np.tile(labels, 4), np.tile(np.arange(40), 4)
    assert probe(codes, labels, 2).out_of_fold["value"] > 0.95
    assert probe(codes, labels, 2, groups=groups).out_of_fold["value"] < 0.75


def test_photos_of_few_people_are_not_as_many_people():
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(12), 20)
    labels = people % 2
    codes = labels[:, None] + 0.9 * generator.normal(size=(12, 4))[people]
    codes += 0.2 * generator.normal(size=codes.shape)
    found = judge(codes, labels, 2, groups=people).out_of_fold
    right = found["value"]
    assert 0.5 < right < 1.0
    assert found["n"] == 240
    low, high = wilson(round(240 * right), 240)
    assert found["interval"][1] - found["interval"][0] > 2 * (high - low)
    alone = judge(codes, labels, 2, groups=np.arange(240)).out_of_fold
    assert alone["interval"] == pytest.approx(wilson(round(240 * alone["value"]), 240))
    for kind, targets in (("sigmoid", np.eye(2)[labels]), ("regression", codes[:, :1] ** 2)):
        parts = [
            judge_divisions(
                codes,
                targets,
                targets.shape[1],
                [(np.flatnonzero(people < 6), np.flatnonzero(people > 5))],
                kind=kind,
                path=[0.1],
                groups=groups,
            ).out_of_fold
            for groups in (None, people)
        ]
        widths = [np.diff(part["interval"])[0] for part in parts]
        assert widths[1] > 1.5 * widths[0]


def test_many_rows_mean_fewer_folds_and_say_so(monkeypatch):
    codes, labels = draw(100, 4, 2)
    monkeypatch.setattr(judging, "MOST_ROWS", 250)
    found = probe(codes, labels, 2, strengths=[0.1])
    assert (found.folds_made, found.folds_evaluated, found.out_of_fold["n"]) == (5, 2, 40)
    assert found.notes == ("2 of 5 folds evaluated: 100 rows are many",)
    monkeypatch.setattr(judging, "MOST_HELD_OUT", 10)
    assert probe(codes, labels, 2, strengths=[0.1]).out_of_fold["n"] == 20


def test_a_best_strength_at_the_end_of_the_path_is_noted():
    codes, labels = draw(200, 10, 3)
    weak = probe(codes, labels, 3, strengths=[1e1, 1e0])
    assert "is the weakest tried" in weak.notes[0]
    assert probe(codes, labels, 3).notes == ()


def test_classes_with_one_or_two_members_are_lived_with():
    codes, labels = draw(40, 5, 2)
    labels[:3] = [2, 3, 3]
    found = probe(codes, labels, 4)
    assert np.isfinite(found.table[found.chosen].loss)
    assert found.out_of_fold["n"] == 40
    assert found.head.weight.shape == (4, 5)
    with pytest.raises(DataError, match="no held-out row is of a class"):
        probe(codes[:3], np.array([0, 1, 2]), 3)
    with pytest.raises(DataError, match="at least two classes"):
        probe(codes[:2], np.array([0, 1]), 2)


def test_labels_without_relation_to_the_codes_are_guessed():
    generator = np.random.default_rng(3)
    found = probe(generator.normal(size=(200, 30)), np.arange(200) % 2, 2)
    low, high = found.out_of_fold["interval"]
    assert low < 0.5 < high
    assert found.table[found.chosen].loss == pytest.approx(np.log(2), abs=0.05)


def test_runs_alike_twice_and_leaves_threads_and_random_state_alone():
    from threadpoolctl import threadpool_info

    codes, labels = draw(80, 6, 3)
    threads, state = threadpool_info(), np.random.get_state()[1].copy()
    first, second = (probe(codes, labels, 3) for _ in range(2))
    np.testing.assert_array_equal(first.head.weight, second.head.weight)
    assert first.table == second.table
    assert threadpool_info() == threads
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert json.loads(json.dumps(first.record()))["table"][0]["strength"] == 1.0


def test_bad_input_is_named():
    with pytest.raises(DataError, match="do not fit labels"):
        probe(np.eye(4), np.array([0, 0, 1, 1, 1]), 2)
    with pytest.raises(UsageError, match="did you mean 'ridge'"):
        probe(np.eye(4), np.array([0, 0, 1, 1]), 2, kind="rigde")


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_handwritten_digits_are_read_as_well_as_by_scikit_learn(kind):
    codes, labels = load_digits(return_X_y=True)
    train, test = np.arange(0, 600), np.arange(1000, 1797)
    found = probe(codes[train], labels[train], 10, kind=kind)
    accuracy = (found.head.scores(codes[test]).argmax(axis=1) == labels[test]).mean()
    scaler = StandardScaler().fit(codes[train])
    plain = {
        "softmax": LogisticRegression(max_iter=2000),
        "svm": LinearSVC(),
        "ridge": RidgeClassifier(),
    }[kind].fit(scaler.transform(codes[train]), labels[train])
    assert accuracy > plain.score(scaler.transform(codes[test]), labels[test]) - 0.01
    assert abs(accuracy - found.out_of_fold["value"]) < 0.08


def draw_labels(n: int, d: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes and labels of falling frequency that overlap."""
    generator = np.random.default_rng(seed)
    codes = generator.normal(size=(n, d))
    scores = 2 * codes[:, :count] + generator.normal(size=(n, count)) - np.arange(count)
    return codes, (scores > 0).astype(np.float32)


def test_sigmoid_table_is_that_of_the_plain_loop():
    codes, labels = draw_labels(90, 8, 3)
    found = probe(codes, labels, 3, kind="sigmoid", strengths=[1e-3, 1e-1, 1.0], seed=4)
    for result in found.table:
        scores = np.zeros((90, 3))
        for fold in stratified_folds(label_strata(labels), seed=4):
            kept = np.setdiff1d(np.arange(90), fold)
            head = fit_head(codes[kept], labels[kept], 3, kind="sigmoid", strength=result.strength)
            scores[fold] = head.scores(codes[fold])
        warm = scores / result.temperature
        loss = (np.logaddexp(0, warm) - labels * warm).mean()
        assert result.loss == pytest.approx(loss, rel=1e-3)
        assert result.accuracy == pytest.approx(((scores > 0) == labels).mean())
        for other in (0.9, 1.1):
            warm = scores / result.temperature / other
            assert loss < (np.logaddexp(0, warm) - labels * warm).mean() + 1e-4
    assert found.chosen == np.argmin([result.loss for result in found.table])
    best = fit_head(codes, labels, 3, kind="sigmoid", strength=found.head.strength)
    np.testing.assert_array_equal(found.head.weight, best.weight)
    assert found.head.temperature == found.table[found.chosen].temperature
    assert found.out_of_fold["metric"] == "mean_average_precision"
    low, high = found.out_of_fold["interval"]
    assert low < found.out_of_fold["value"] < high
    assert json.loads(json.dumps(found.record()))["out_of_fold"]["n"] == 90


def test_regression_table_is_that_of_the_plain_loop():
    codes, _ = draw(80, 10, 2)
    generator = np.random.default_rng(1)
    numbers = codes[:, :2] * [1.0, 100.0] + generator.normal(size=(80, 2)) * [0.5, 20.0]
    found = probe(codes, numbers, 2, kind="regression", strengths=[1e-3, 1e-1, 10.0], seed=2)
    for result in found.table:
        predicted = np.zeros((80, 2))
        for fold in stratified_folds(number_strata(numbers), seed=2):
            kept = np.setdiff1d(np.arange(80), fold)
            head = fit_head(
                codes[kept], numbers[kept], 2, kind="regression", strength=result.strength
            )
            predicted[fold] = head.scores(codes[fold])
        relative = ((predicted - numbers) ** 2).mean(axis=0) / numbers.var(axis=0)
        assert result.loss == pytest.approx(relative.mean(), rel=1e-4)
        assert (result.accuracy, result.temperature) == (None, 1.0)
    assert found.chosen == np.argmin([result.loss for result in found.table])
    assert found.out_of_fold["metric"] == "mean_absolute_error"
    assert found.table[found.chosen].loss < 0.5


def test_one_label_gives_what_a_softmax_of_two_classes_gives():
    codes, labels = draw(120, 6, 2)
    single = probe(codes, labels[:, None], 1, kind="sigmoid", strengths=[1e-2])
    double = probe(codes, labels, 2, strengths=[2e-2])  # two rows share the penalty
    assert single.out_of_fold["metric"] == double.out_of_fold["metric"] == "accuracy"
    assert single.out_of_fold["n"] == 120
    np.testing.assert_allclose(
        single.head.probabilities(codes)[:, 0], double.head.probabilities(codes)[:, 1], atol=0.02
    )


def test_labels_that_are_rare_or_constant_are_lived_with():
    codes, labels = draw_labels(60, 5, 2)
    rare = np.zeros(60)
    rare[7] = 1
    table = np.column_stack([labels, rare, np.zeros(60), np.ones(60)])
    found = probe(codes, table, 5, kind="sigmoid")
    assert np.isfinite(found.table[found.chosen].loss)
    probabilities = found.head.probabilities(codes)
    assert not probabilities[:, 3].any()
    assert (probabilities[:, 4] == 1).all()
    with pytest.raises(DataError, match="a label that some images have and others lack"):
        probe(codes, table[:, 3:], 2, kind="sigmoid")
    constant = probe(codes, np.full((60, 1), 3.0), 1, kind="regression")
    np.testing.assert_allclose(constant.head.scores(codes), 3.0)


def test_validation_rows_choose_for_labels_and_numbers_too():
    codes, labels = draw_labels(60, 5, 2)
    for kind in ("sigmoid", "regression"):
        found = probe(codes, labels, 2, kind=kind, validation=np.arange(40, 60))
        assert (found.folds_made, found.out_of_fold["n"]) == (1, 20)


@given(
    labels=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=60
    ),
    seed=st.integers(0, 9),
)
def test_folds_of_labels_spread_the_rarest_evenly(labels, seed):
    labels = np.array(labels, dtype=int)
    strata = label_strata(labels)
    for left in range(len(labels)):  # the same stratum means the same labels
        assert ((strata == strata[left]) == (labels == labels[left]).all(axis=1)).all()
    folds = stratified_folds(strata, count=5, seed=seed)
    rarest = labels.sum(axis=0).argmin()
    held = [labels[fold, rarest].sum() for fold in folds]
    assert max(held) - min(held) <= 1


@given(
    numbers=st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=80), seed=st.integers(0, 9)
)
def test_folds_of_numbers_hold_each_tenth_evenly(numbers, seed):
    numbers = np.array(numbers, dtype=float)
    strata = number_strata(numbers[:, None])
    order = np.argsort(numbers, kind="stable")
    assert (np.diff(strata[order]) >= 0).all()
    sizes = np.bincount(strata, minlength=10)
    assert max(sizes) - min(sizes) <= 1
    for fold in stratified_folds(strata, seed=seed):
        held = np.bincount(strata[fold], minlength=10)
        assert (held <= np.ceil(sizes / 2) + 1).all()


def test_labels_as_two_classes_leave_out_what_was_never_seen():
    scores = np.array([[2.0, NEVER, -NEVER], [-1.0, NEVER, -NEVER]])
    pairs, classes = as_two_classes(scores, np.array([[1, 0, 1], [0, 1, 1]]))
    assert pairs.tolist() == [[0.0, 2.0], [0.0, -1.0]]
    assert classes.tolist() == [1, 0]
    assert log_loss(pairs, classes, 2.0) == pytest.approx(
        (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-0.5))) / 2
    )
