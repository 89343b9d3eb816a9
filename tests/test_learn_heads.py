"""Heads held against scikit-learn on the objective that the docstring states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from topwork.data import loading
from topwork.errors import DataError, UsageError
from topwork.learn import principal
from topwork.learn.heads import CLASS_KINDS, LinearHead, fit_head, fit_path, softmax
from topwork.learn.lbfgs import minimize
from topwork.learn.principal import principal_axes
from topwork.learn.problems import extrapolated

SHAPES = [(60, 12, 2), (60, 12, 4), (40, 150, 2), (40, 150, 4)]


def draw(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes with correlated columns of very different scales, and labels that they tell partly."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = generator.normal(size=(classes, d))
    codes = (centers[labels] + 2 * generator.normal(size=(n, d))) @ generator.normal(size=(d, d))
    return codes * 10.0 ** generator.uniform(-1.5, 1.5, size=d) + generator.normal(size=d), labels


def divisors(codes: np.ndarray) -> np.ndarray:
    """What the docstring divides each column by, so that rows have a mean squared length of one."""
    deviation = codes.std(axis=0)
    held = np.maximum(deviation, 0.1 * np.sqrt((deviation**2).mean()))
    return held * np.sqrt(((deviation / held) ** 2).sum())


def standardized(codes: np.ndarray) -> np.ndarray:
    return (codes - codes.mean(axis=0)) / divisors(codes)


def on_standardized(head: LinearHead, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = head.weight.astype(float) * divisors(codes)
    return weight, head.bias + head.weight.astype(float) @ codes.mean(axis=0)


def objective(
    kind: str, z: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength
) -> float:
    """The docstring's objective, summed over the problems of one-versus-rest, row by row."""
    total = 0.0
    for row, label in zip(z, labels, strict=True):
        scores = weight @ row + bias
        if kind == "softmax":
            total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]
            continue
        for index, score in enumerate(scores):
            sign = 1.0 if (label == index if len(scores) > 1 else label == 1) else -1.0
            total += max(0.0, 1 - sign * score) ** 2 if kind == "svm" else (score - sign) ** 2
    return total / len(z) + strength / 2 * float((weight**2).sum())


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_softmax_reaches_the_minimum_that_scikit_learn_finds(n, d, classes, strength):
    codes, labels = draw(n, d, classes)
    z = standardized(codes)
    head = fit_head(codes, labels, classes, kind="softmax", strength=strength)
    ours = objective("softmax", z, labels, *on_standardized(head, codes), strength)
    c = (2 if classes == 2 else 1) / (n * strength)
    oracle = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(z, labels)
    weight, bias = oracle.coef_, oracle.intercept_
    if classes == 2:
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    assert ours == pytest.approx(objective("softmax", z, labels, weight, bias, strength), rel=1e-6)


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_svm_reaches_the_minimum_that_scikit_learn_finds(n, d, classes, strength):
    codes, labels = draw(n, d, classes)
    z = standardized(codes)
    head = fit_head(codes, labels, classes, kind="svm", strength=strength)
    weight, bias = on_standardized(head, codes)
    if classes == 2:
        np.testing.assert_array_equal(head.weight[0], -head.weight[1])
        weight, bias = 2 * weight[1:], 2 * bias[1:]
    oracle = LinearSVC(
        C=1 / (n * strength), dual=False, tol=1e-9, intercept_scaling=1e3, max_iter=100_000
    ).fit(z, labels)
    theirs = objective("svm", z, labels, oracle.coef_, oracle.intercept_, strength)
    assert objective("svm", z, labels, weight, bias, strength) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_ridge_path_is_scikit_learns_ridge_at_each_strength(n, d, classes):
    codes, labels = draw(n, d, classes)
    z = standardized(codes)
    signs = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    path = [1.0, 1e-2, 1e-4]
    heads = list(fit_path(codes, labels, classes, kind="ridge", strengths=path))
    for strength, head in zip(path, heads, strict=True):
        oracle = Ridge(alpha=n * strength / 2, solver="svd").fit(z, signs)
        scores = oracle.predict(z) / (2 if classes == 2 else 1)
        np.testing.assert_allclose(head.scores(codes), scores, atol=2e-4)
        assert head.strength == strength


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_path_runs_from_strong_to_weak_and_equals_single_fits(kind):
    codes, labels = draw(50, 20, 3)
    path = [1e-2, 1.0, 3e-4, 1e-1, 1e-1]
    heads = list(fit_path(codes, labels, 3, kind=kind, strengths=path))
    assert [head.strength for head in heads] == sorted(path, reverse=True)
    for head in heads:
        alone = fit_head(codes, labels, 3, kind=kind, strength=head.strength)
        np.testing.assert_allclose(head.scores(codes), alone.scores(codes), atol=5e-3)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(CLASS_KINDS),
    n=st.integers(6, 30),
    d=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_strength_means_the_same_for_any_scale_and_number_of_rows_and_columns(kind, n, d, seed):
    generator = np.random.default_rng(seed)
    codes, labels = generator.normal(size=(n, d)), np.arange(n) % 3
    scores = fit_head(codes, labels, 3, kind=kind, strength=1e-2).scores(codes)
    shifted = codes * generator.uniform(0.5, 2, size=d) + generator.normal(size=d)
    wide = np.hstack([codes, codes, np.full((n, 2), 7.0)])
    tall, twice = np.vstack([codes, codes]), np.concatenate([labels, labels])
    for same, its_labels in ((shifted, labels), (wide, labels), (tall, twice)):
        head = fit_head(same, its_labels, 3, kind=kind, strength=1e-2)
        np.testing.assert_allclose(head.scores(same)[:n], scores, atol=2e-3)


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_blocks_and_single_precision_change_nothing(kind, monkeypatch):
    codes, labels = draw(50, 10, 3)
    scores = fit_head(codes, labels, 3, kind=kind, strength=1e-3).scores(codes)
    monkeypatch.setattr(principal, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(principal, "MANY", 0)
    again = fit_head(codes, labels, 3, kind=kind, strength=1e-3).scores(codes)
    np.testing.assert_allclose(again, scores, atol=2e-3)


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_number_of_cores_changes_no_bit(kind, monkeypatch):
    codes, labels = draw(60, 10, 3)
    monkeypatch.setattr(principal, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(principal, "MANY", 0)
    weights = []
    for cores in (1, 3):
        monkeypatch.setattr(loading, "workers", lambda cores=cores: cores)
        weights.append(fit_head(codes, labels, 3, kind=kind, strength=1e-3).weight)
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (40, 150)])
def test_principal_axes_are_those_of_the_singular_value_decomposition(n, d, monkeypatch):
    codes, _ = draw(n, d, 4)
    z = standardized(codes)
    axes = principal_axes(codes)
    rank = min(n - 1, d)
    singular = np.linalg.svd(z, compute_uv=False)[:rank]
    np.testing.assert_allclose(np.sort(axes.variances)[::-1], singular**2 / n, rtol=1e-6)
    coordinates = axes.coordinates(codes)
    assert coordinates.shape == (n, rank + 1)
    products = coordinates.T @ coordinates / n
    np.testing.assert_allclose(products, np.diag([*axes.variances, 1]), atol=1e-9)
    np.testing.assert_allclose(axes.rotated_back(coordinates[:, :-1].T).T, z, atol=1e-9)
    np.testing.assert_allclose(axes.rotated(z.T).T, coordinates[:, :-1], atol=1e-9)
    monkeypatch.setattr(principal, "MANY", 0)
    many = axes.coordinates(codes)
    assert many.dtype == np.float32
    np.testing.assert_allclose(many, coordinates, atol=1e-5)


def test_extrapolation_follows_a_parabola_and_goes_no_further_than_the_points_are_apart():
    places = [0.0, -1.0, -3.0]
    curve = {place: np.array([place**2 - place]) for place in places}
    np.testing.assert_allclose(extrapolated(curve, -3.5), [3.5**2 + 3.5])
    np.testing.assert_allclose(extrapolated(curve, -9.0), [4.0**2 + 4.0])
    alone = {places[0]: np.array([5.0])}
    np.testing.assert_array_equal(extrapolated(alone, -9.0), [5.0])


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_constant_columns_have_no_weight(kind):
    codes, labels = draw(30, 6, 2)
    codes[:, 2] = 0.0
    codes[:, 4] = 1000 + 1e-4 * np.random.default_rng(1).normal(size=30)  # but for rounding
    head = fit_head(codes, labels, 2, kind=kind, strength=1e-4)
    assert not head.weight[:, [2, 4]].any()
    assert head.weight[:, [0, 1, 3, 5]].all()


def test_softmax_of_constant_codes_is_the_share_of_the_classes():
    head = fit_head(np.ones((4, 3)), np.array([0, 1, 1, 1]), 2, kind="softmax", strength=1.0)
    np.testing.assert_allclose(head.probabilities(np.ones((1, 3))), [[0.25, 0.75]], atol=1e-4)


@pytest.mark.parametrize("kind", CLASS_KINDS)
@pytest.mark.parametrize("own", [(1, 4), (1, 3, 4)])
def test_a_class_without_rows_never_wins(kind, own):
    codes, labels = draw(40, 5, len(own))
    head = fit_head(codes, np.array(own)[labels], 6, kind=kind, strength=1e-2)
    assert head.weight.shape == (6, 5)
    probabilities = head.probabilities(codes)
    assert not np.delete(probabilities, own, axis=1).any()
    dense = fit_head(codes, labels, len(own), kind=kind, strength=1e-2)
    np.testing.assert_array_equal(head.scores(codes)[:, list(own)], dense.scores(codes))


def test_half_precision_codes_are_read_as_they_are():
    codes, labels = draw(30, 40, 3)
    half = (codes / np.abs(codes).max(axis=0)).astype(np.float16)
    scores = [
        fit_head(some, labels, 3, kind="softmax", strength=1e-3).scores(some)
        for some in (half, half.astype(np.float64))
    ]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_temperature_is_folded_into_the_layer():
    codes, labels = draw(30, 4, 3)
    head = fit_head(codes, labels, 3, kind="svm", strength=1e-2)
    warm = LinearHead(head.kind, head.weight, head.bias, head.strength, temperature=0.3)
    np.testing.assert_array_equal(warm.scores(codes), head.scores(codes))
    folded = warm.folded()
    assert folded.temperature == 1.0
    assert folded.weight.dtype == folded.bias.dtype == np.float32
    np.testing.assert_allclose(softmax(folded.scores(codes)), warm.probabilities(codes), atol=1e-4)
    assert (folded.scores(codes).argmax(axis=1) == head.scores(codes).argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kind": "sofmax"}, UsageError, "unknown kind of head 'sofmax'; did you mean 'softmax'?"),
        ({"kind": "forest"}, UsageError, "choose one of softmax, svm, ridge"),
        ({"strengths": [0.0]}, UsageError, "must be positive"),
        ({"strengths": []}, UsageError, "give at least one"),
        ({"targets": np.zeros(4, int)}, DataError, "at least two classes"),
        (
            {"targets": np.array([0, 1, 2, 0])},
            DataError,
            "labels run from 0 to 2; give numbers from",
        ),
        ({"targets": np.array([0, 1])}, DataError, r"codes of shape \[4, 2\] do not fit labels"),
        ({"codes": np.array([[0, 1], [1, np.nan], [0, 1], [2, 2.0]])}, DataError, "row 1 hold NaN"),
    ],
)
def test_bad_input_is_named(change, error, text):
    arguments = {
        "codes": np.arange(8.0).reshape(4, 2),
        "targets": np.array([0, 0, 1, 1]),
        "kind": "softmax",
        "strengths": [0.1],
    } | change
    with pytest.raises(error, match=text):
        list(fit_path(outputs=2, **arguments))


def test_minimizer_solves_separate_columns_as_if_each_were_alone():
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(3, 8, 8))
    matrices = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(8)
    rights = generator.normal(size=(3, 8)) * np.array([[1e-3], [1.0], [1e3]])

    def evaluate(weights):
        products = np.einsum("kij,jk->ik", matrices, weights)
        values = 1 + ((products / 2 - rights.T) * weights).sum(axis=0) + 1e6 * np.array([0, 0, 1])
        return values, products - rights.T, np.einsum("kii->ik", matrices)

    found = minimize(evaluate, np.zeros((8, 3)), separate=True, tolerance=1e-15)
    for index in range(3):
        solution = np.linalg.solve(matrices[index], rights[index])
        np.testing.assert_allclose(found[:, index], solution, rtol=1e-4, atol=1e-6)


def test_minimizer_gives_up_where_no_step_helps():
    calls = []

    def evaluate(weights):
        calls.append(weights)
        return np.ones(1), np.ones((2, 1)), np.ones((2, 1))

    start = np.zeros((2, 1))
    found = minimize(evaluate, start, separate=False, tolerance=1e-9)
    np.testing.assert_array_equal(found, start)
    assert len(calls) < 50


def draw_labels(n: int, d: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    codes, classes = draw(n, d, 4)
    flips = np.random.default_rng(1).random((n, count)) < 0.2
    return codes, (((classes[:, None] + np.arange(count)) % 2 == 0) ^ flips).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (40, 150)])
@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-5])
def test_sigmoid_is_scikit_learns_logistic_regression_of_each_label(n, d, strength):
    codes, labels = draw_labels(n, d, 3)
    z = standardized(codes)
    head = fit_head(codes, labels, 3, kind="sigmoid", strength=strength)
    weight, bias = on_standardized(head, codes)
    for column in range(3):
        oracle = LogisticRegression(C=1 / (n * strength), tol=1e-10, max_iter=100_000)
        oracle.fit(z, labels[:, column])

        def objective_of(w, b, own=labels[:, column]):
            scores = z @ w + b
            return np.mean(np.logaddexp(0, scores) - own * scores) + strength / 2 * (w @ w)

        ours = objective_of(weight[column], bias[column])
        theirs = objective_of(oracle.coef_[0], oracle.intercept_[0])
        assert ours == pytest.approx(theirs, rel=1e-5)
        if strength > 1e-4:
            np.testing.assert_allclose(
                head.probabilities(codes)[:, column], oracle.predict_proba(z)[:, 1], atol=2e-3
            )


def test_a_label_alone_is_fitted_as_it_is_beside_others():
    codes, labels = draw_labels(60, 12, 3)
    together = fit_head(codes, labels, 3, kind="sigmoid", strength=1e-3)
    for column in range(3):
        alone = fit_head(codes, labels[:, [column]], 1, kind="sigmoid", strength=1e-3)
        np.testing.assert_allclose(
            alone.scores(codes)[:, 0], together.scores(codes)[:, column], atol=2e-3
        )


def test_labels_that_none_or_all_rows_have_are_certain():
    codes, labels = draw_labels(40, 5, 2)
    padded = np.column_stack([np.zeros(40), labels[:, 0], np.ones(40), labels[:, 1]])
    head = fit_head(codes, padded, 4, kind="sigmoid", strength=1e-2)
    probabilities = head.probabilities(codes)
    assert not probabilities[:, 0].any()
    assert (probabilities[:, 2] == 1).all()
    dense = fit_head(codes, labels, 2, kind="sigmoid", strength=1e-2)
    np.testing.assert_array_equal(head.scores(codes)[:, [1, 3]], dense.scores(codes))
    with pytest.raises(DataError, match="a label that some images have and others lack"):
        fit_head(codes, padded[:, [0, 2]], 2, kind="sigmoid", strength=1e-2)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (40, 150)])
def test_regression_path_is_scikit_learns_ridge(n, d):
    codes, _ = draw(n, d, 4)
    z = standardized(codes)
    generator = np.random.default_rng(2)
    numbers = z @ generator.normal(size=(d, 3)) + 0.1 * generator.normal(size=(n, 3))
    numbers = np.column_stack([numbers * [1.0, 1e3, 1e-3] + [0, 2000, 0], np.full(n, 7.0)])
    path = [1e-4, 1.0, 1e-2]
    heads = list(fit_path(codes, numbers, 4, kind="regression", strengths=path))
    assert [head.strength for head in heads] == [1.0, 1e-2, 1e-4]
    for head in heads:
        oracle = Ridge(alpha=n * head.strength / 2, solver="svd").fit(z, numbers)
        scale = np.maximum(numbers.std(axis=0), 1e-3)
        np.testing.assert_allclose(
            head.scores(codes) / scale, oracle.predict(z) / scale, atol=5e-3, rtol=1e-5
        )
        assert not head.weight[3].any()
        np.testing.assert_array_equal(head.folded().weight, head.weight)
        with pytest.raises(UsageError, match="a regression has no probabilities"):
            head.probabilities(codes)


def test_temperature_of_a_sigmoid_is_folded_into_the_layer():
    codes, labels = draw_labels(30, 4, 2)
    head = fit_head(codes, labels, 2, kind="sigmoid", strength=1e-2)
    warm = LinearHead(head.kind, head.weight, head.bias, head.strength, temperature=0.3)
    scores = warm.folded().scores(codes)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), warm.probabilities(codes), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "targets", "text"),
    [
        (
            "sigmoid",
            np.array([0, 1, 0, 1]),
            r"labels of shape \[4\]; give \[n, d\] and \[n, outputs\]",
        ),
        (
            "sigmoid",
            np.array([[0, 1], [1, 0], [0, 2], [1, 1]]),
            "labels run from 0 to 2; give 0 or",
        ),
        ("sigmoid", np.array([[0, 1], [1, 0], [0, np.nan], [1, 1]]), "give 0 or 1"),
        ("regression", np.array([[0, 1], [1, 0], [0, np.inf], [1, 1]]), "hold NaN or infinity"),
        ("regression", np.zeros((4, 3)), r"shape \[4, 3\]"),
    ],
)
def test_bad_labels_and_numbers_are_named(kind, targets, text):
    with pytest.raises(DataError, match=text):
        fit_head(np.arange(8.0).reshape(4, 2), targets, 2, kind=kind, strength=0.1)
