"""What a model's scores say, by the kind of its head: classes, labels or numbers.

head          scores [n, ...]    answers [n, ...]                      kind
softmax       classes            probabilities, of sum one             classes
svm, ridge    classes            the same, a temperature folded in     classes
sigmoid       1                  probabilities of two classes          classes
sigmoid       labels             a probability for each label          labels
regression    numbers            the numbers                           numbers
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Answer = str | float | tuple[str, ...] | tuple[float, ...]

LIKELY = 0.5  # the probability from which on a label is said to apply


def kind_of_answers(head: str, outputs: int) -> str:
    """Return "classes", "labels" or "numbers" for a kind of head and its number of scores.

    >>> kind_of_answers("sigmoid", 1), kind_of_answers("sigmoid", 5)
    ('classes', 'labels')
    """
    if head == "regression":
        return "numbers"
    return "labels" if head == "sigmoid" and outputs > 1 else "classes"


def answers(head: str, scores: Array) -> Array:
    """Return what scores [n, outputs] say, float64, a column for each name that the model knows.

    A sigmoid head with one output tells two classes apart; its answers are the probabilities of
    both, that of the second one being the sigmoid.

    >>> answers("sigmoid", np.array([[0.0], [np.log(3)]])).round(2).tolist()
    [[0.5, 0.5], [0.25, 0.75]]
    """
    if head == "regression":
        return np.asarray(scores, dtype=np.float64)
    if head != "sigmoid":
        return softmax(scores)
    if scores.shape[1] == 1:
        return np.hstack([sigmoid(-scores), sigmoid(scores)])
    return sigmoid(scores)


def conclusions(kind: str, names: Sequence[str], rows: Array) -> list[Answer]:
    """Return for each row of answers its class, its labels as a tuple, or its number or numbers.

    >>> conclusions("labels", ["wet", "cold"], np.array([[0.7, 0.5], [0.1, 0.2]]))
    [('wet', 'cold'), ()]
    >>> conclusions("numbers", ["age"], np.array([[41.5]]))
    [41.5]
    """
    if kind == "classes":
        return [names[index] for index in rows.argmax(axis=1)]
    if kind == "labels":
        return [
            tuple(name for name, value in zip(names, row, strict=True) if value >= LIKELY)
            for row in rows
        ]
    return [tuple(row) if len(row) > 1 else row[0] for row in rows.tolist()]


def softmax(scores: Array, temperature: float = 1.0) -> Array:
    """Return ``exp(scores / temperature)`` with each row divided by its sum: [n, c] float64.

    >>> softmax(np.array([[0.0, np.log(3)]])).tolist()
    [[0.25, 0.75]]
    """
    result = np.asarray(scores, dtype=np.float64) / temperature
    result -= result.max(axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


def sigmoid(scores: Array, temperature: float = 1.0) -> Array:
    """Return ``1 / (1 + exp(-scores / temperature))`` in float64; nothing overflows.

    >>> sigmoid(np.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    small = np.exp(-np.abs(scaled))
    return np.where(scaled >= 0, 1.0, small) / (1.0 + small)
