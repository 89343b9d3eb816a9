"""Scores of how well a backbone's codes suit a target, without training a head.

Each of them is one pass of linear algebra over the codes of the target's images (H-score, LogME),
or over what the source's own classifier says about these (LEEP, NCE). Higher is better; values of
different targets cannot be compared. How far they agree with a probe is measured by
``benchmarks/ranking.py``.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

STEPS = 100  # of LogME's fixed point; it takes about ten
PRECISION = 1e-4  # relative change of both of its parameters, at which it stops
NEGLIGIBLE = 1e-12  # an axis with less than this part of the largest one's square is noise


def h_score(codes: Array, labels: Array, *, shrinkage: float | None = None) -> float:
    """Return the H-score: how far apart the classes' mean codes lie, in units of all codes' spread.

    It is ``tr(S^-1 (1 - a) B)``, B the covariance of the class means, each as often as it has
    rows, and ``S = (1 - a) C + a tr(C)/d I``, C the covariance of the codes. With a = 0 it is the
    score of Bao et al. 2019 ("An Information-Theoretic Approach to Transferability in Task
    Transfer Learning"). With fewer rows than columns that one is the number of classes less one
    for any codes; so a is by default what Ledoit & Wolf 2004 estimate from the rows, after
    Ibrahim et al. 2021 ("Newer is not always better").

    Args:
        codes: [n, d] floats.
        labels: [n] integers.
        shrinkage: a, from 0 to 1; None to estimate it.

    Returns:
        from 0 to the number of classes less one.

    >>> codes = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, 5.0], [5.0, 4.0]])
    >>> round(h_score(codes, np.array([0, 0, 1, 1]), shrinkage=0.0), 3)
    1.0
    """
    codes = np.asarray(codes, dtype=np.float64)
    centered = codes - codes.mean(axis=0)
    if shrinkage is None:
        shrinkage = ledoit_wolf_shrinkage(centered)
    n, d = centered.shape
    classes, own = np.unique(labels, return_inverse=True)
    members = (own[:, None] == np.arange(len(classes))).astype(np.float64)
    squares, projections = principal_projections(centered, members)
    # With centered codes U s V', the class means are s U'y / n_c on the axes V.
    between = squares / n * np.square(projections / np.sqrt(members.sum(axis=0))).sum(axis=1)
    spread = (1 - shrinkage) * squares / n + shrinkage * squares.sum() / (n * d)
    return float(((1 - shrinkage) * between / spread).sum())


def ledoit_wolf_shrinkage(centered: Array) -> float:
    """Return how far to draw a covariance towards a multiple of I (Ledoit & Wolf 2004).

    Args:
        centered: [n, d] floats whose columns have mean zero.

    Returns:
        from 0 (the covariance as it is) to 1; 0 for codes that do not vary.

    >>> ledoit_wolf_shrinkage(np.array([[3.0, 0.0], [-3.0, 0.0]]))
    0.0
    """
    n, d = centered.shape
    gram = centered @ centered.T if n <= d else centered.T @ centered
    squared = float(np.square(gram / n).sum())  # of the covariance's entries
    trace = float(np.trace(gram)) / n
    distance = squared - trace**2 / d
    lengths = np.square(centered).sum(axis=1)
    noise = (float(np.square(lengths).sum()) / n - squared) / n
    return min(noise, distance) / distance if distance > 0 else 0.0


def log_me(codes: Array, targets: Array) -> float:
    """Return LogME: the log evidence of a Bayesian linear model of the targets, for each row.

    Weights have the prior N(0, I/a), targets the noise N(0, 1/b), no bias; a and b are those that
    make the targets likeliest, found for each column of targets by a fixed point, and the columns'
    log evidences are averaged (You et al. 2021, "LogME: Practical Assessment of Pre-trained Models
    for Transfer Learning").

    Args:
        codes: [n, d] floats.
        targets: [n] integer classes, each of which is a column of 0 and 1; or [n, m] labels or
            numbers.

    Returns:
        in nats for each row and column.

    >>> codes = np.array([[0.0, 1.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.2]])
    >>> log_me(codes, np.array([0, 0, 1, 1])) > log_me(codes, np.array([0, 1, 0, 1]))
    True
    """
    codes, columns = np.asarray(codes, dtype=np.float64), target_columns(targets)
    n, d = codes.shape
    squares, projections = principal_projections(codes, columns)
    squares, along = squares[:, None], np.square(projections)
    lengths = np.square(columns).sum(axis=0)
    outside = np.maximum(lengths - along.sum(axis=0), 0.0)  # what no codes can explain
    least = NEGLIGIBLE * lengths
    prior, noise = np.ones(columns.shape[1]), np.ones(columns.shape[1])
    for _ in range(STEPS):
        before = prior, noise
        weights, residual = _weights_and_residual(squares, along, outside, prior, noise)
        known = (noise * squares / (prior + noise * squares)).sum(axis=0)
        prior = known / np.maximum(weights, least)
        noise = (n - known) / np.maximum(residual, least)
        if np.allclose(before, (prior, noise), rtol=PRECISION, atol=0.0):
            break
    weights, residual = _weights_and_residual(squares, along, outside, prior, noise)
    determinant = np.log(prior + noise * squares).sum(axis=0) + (d - len(squares)) * np.log(prior)
    evidence = (
        n * np.log(noise / (2 * np.pi))
        + d * np.log(prior)
        - noise * residual
        - prior * weights
        - determinant
    ) / 2
    return float(evidence.mean() / n)


def _weights_and_residual(
    squares: Array, along: Array, outside: Array, prior: Array, noise: Array
) -> tuple[Array, Array]:
    """Return the squared lengths [m] of the likeliest weights and of what they leave over."""
    shrunk = prior + noise * squares
    weights = (noise**2 * squares * along / shrunk**2).sum(axis=0)
    return weights, (prior**2 * along / shrunk**2).sum(axis=0) + outside


def target_columns(targets: Array) -> Array:
    """Return targets as float64 columns; of classes one for each that occurs.

    >>> target_columns(np.array([2, 0, 2])).tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    targets = np.asarray(targets)
    if targets.ndim == 1:
        targets = targets[:, None] == np.unique(targets)
    columns = targets.astype(np.float64)
    return columns[:, np.square(columns).sum(axis=0) > 0]


def principal_projections(codes: Array, columns: Array) -> tuple[Array, Array]:
    """Return the squared singular values [r] of codes ``U s V'``, and ``U' columns`` [r, m].

    From the smaller of the two Gram matrices; axes that are rounding noise are left out.

    >>> squares, found = principal_projections(np.array([[2.0, 0.0], [0.0, 0.0]]), np.eye(2))
    >>> squares.tolist(), np.abs(found).tolist()
    ([4.0], [[1.0, 0.0]])
    """
    n, d = codes.shape
    squares, vectors = np.linalg.eigh(codes @ codes.T if n <= d else codes.T @ codes)
    kept = squares > NEGLIGIBLE * max(squares[-1], 0.0)
    squares, vectors = squares[kept], vectors[:, kept]
    if n <= d:
        return squares, vectors.T @ columns
    return squares, vectors.T @ (codes.T @ columns) / np.sqrt(squares)[:, None]


def leep(source: Array, labels: Array) -> float:
    """Return LEEP: the log-likelihood of the labels, given what the source's classifier says.

    A label is drawn by first drawing a source class from the classifier's probabilities, then a
    label from the table of both: the mean of ``ln sum_z P(y|z) p(z|x)`` (Nguyen et al. 2020,
    "LEEP: A New Measure to Evaluate Transferability of Learned Representations").

    Args:
        source: [n, z] probabilities of the source's classes.
        labels: [n] integers.

    Returns:
        in nats; at most 0.

    >>> leep(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))
    0.0
    """
    source, labels = np.asarray(source, dtype=np.float64), np.asarray(labels)
    classes, own = np.unique(labels, return_inverse=True)
    joint = np.stack([source[own == number].sum(axis=0) for number in range(len(classes))])
    shares = joint.sum(axis=0)
    given = np.divide(joint, shares, out=np.zeros_like(joint), where=shares > 0)
    return float(np.log((given[own] * source).sum(axis=1)).mean())


def nce(source_labels: Array, labels: Array) -> float:
    """Return the negative conditional entropy of the labels, given the source's.

    ``sum_yz P(y, z) ln P(y|z)`` over the table of both (Tran et al. 2019, "Transferability and
    Hardness of Supervised Classification Tasks"); with the class that the source's classifier
    finds likeliest in place of a source label, as Nguyen et al. 2020 do.

    Args:
        source_labels: [n] integers.
        labels: [n] integers.

    Returns:
        in nats; at most 0.

    >>> round(nce(np.array([7, 7, 9, 9]), np.array([0, 1, 2, 2])), 4)
    -0.3466
    """
    source_classes, source = np.unique(source_labels, return_inverse=True)
    classes, own = np.unique(labels, return_inverse=True)
    size = len(source_classes) * len(classes)
    counts = np.bincount(source * len(classes) + own, minlength=size).reshape(-1, len(classes))
    given = counts / counts.sum(axis=1, keepdims=True)
    return float((counts * np.log(np.where(counts > 0, given, 1.0))).sum() / len(own))
