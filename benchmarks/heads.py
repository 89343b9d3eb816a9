"""Paths of heads on 50,000 codes of 768 numbers and 100 classes, beside scikit-learn.

The ridge path of 20 strengths and the softmax path of 10 are timed as `fit_path` gives them, from
codes in memory; the softmax path to two tolerances, that of fits that only choose and that of one
that is kept. At some of the strengths scikit-learn fits the same standardized codes, and both
objectives are evaluated here in float64.

The codes are drawn to be like those of a network, and no easier: a class is a point about which its
images are spread in all directions, some of them far more than others (variances fall with the
power 1.5 of their rank); five classes at a time lie close together; the classes spread differently,
and the largest has about five times the images of the smallest; the axes of all that are none of
the columns', which have means and scales of their own.

    python benchmarks/heads.py
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from places import options
from topwork.learn.heads import STRENGTHS, LinearHead, fit_path
from topwork.learn.judging import CHOOSING

FAMILY = 5
WANTED_GAP = 1e-4
EXACT = 1e-8  # the tolerance of a fit that is kept


@dataclass(frozen=True)
class Path:
    """What is fitted.

    Attributes:
        kind: of head.
        strengths: of the path.
        compared: the strengths that scikit-learn fits too.
        seconds: that are wanted.
    """

    kind: str
    strengths: Sequence[float]
    compared: Sequence[int]
    seconds: float


PATHS = (
    Path("ridge", STRENGTHS["ridge"], (0, 10, 19), 2),
    Path("softmax", STRENGTHS["softmax"][:10], (0, 4, 8), 30),
)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    args = parser.parse_args()
    rows = args.rows + args.rows // 10
    codes, labels = draw(rows, args.columns, args.classes)
    codes, unseen = codes[: args.rows], codes[args.rows :]
    labels, their_labels = labels[: args.rows], labels[args.rows :]
    print(f"{args.rows} x {args.columns} codes, {args.classes} classes, {os.cpu_count()} cores")
    z = standardized(codes)
    passed = True
    for path in PATHS:
        for tolerance in (EXACT,) if path.kind == "ridge" else (CHOOSING, EXACT):
            heads, seconds, processor = timed_path(codes, labels, args.classes, path, tolerance)
            right = [
                float((head.scores(unseen).argmax(1) == their_labels).mean()) for head in heads
            ]
            print(
                f"{path.kind}, {len(heads)} strengths to {path.strengths[-1]:.1e}, tolerance"
                f" {tolerance:.0e}: {seconds:.1f} s (wanted {path.seconds}; processor time"
                f" {processor:.1f} s); right on others: {right[0]:.3f} to {right[-1]:.3f},"
                f" at best {max(right):.3f}",
                flush=True,
            )
            passed &= seconds <= path.seconds
        for index in path.compared:
            passed &= compare(path.kind, heads[index], codes, z, labels)
    print("PASS" if passed else "FAIL")
    return not passed


def draw(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [n, d], float32, and the class of each, as the module says."""
    generator = np.random.default_rng(0)
    shares = generator.uniform(0.3, 1.7, classes)
    labels = generator.choice(classes, n, p=shares / shares.sum())
    deviations = np.arange(1, d + 1) ** -0.75
    families = np.repeat(generator.normal(size=(-(-classes // FAMILY), d)), FAMILY, axis=0)
    centers = families[:classes] + generator.normal(size=(classes, d))
    centers *= deviations * np.arange(1, d + 1) ** -0.4
    spread = generator.uniform(0.6, 1.6, size=(classes, 1))
    axes = np.linalg.qr(generator.normal(size=(d, d)))[0]
    axes *= generator.uniform(0.3, 3, d)
    means = generator.normal(size=d)
    codes = np.empty((n, d), np.float32)
    for start in range(0, n, 1000):
        own = labels[start : start + 1000]
        noise = generator.normal(size=(len(own), d)) * deviations
        codes[start : start + 1000] = (centers[own] + spread[own] * noise) @ axes + means
    return codes, labels


def standardized(codes: np.ndarray) -> np.ndarray:
    """Return what the heads' docstring calls z, float64."""
    return (codes - codes.mean(axis=0, dtype=np.float64)) / divisors(codes)


def divisors(codes: np.ndarray) -> np.ndarray:
    """Return what each column is divided by, float64 [d]."""
    deviation = codes.std(axis=0, dtype=np.float64)
    held = np.maximum(deviation, 0.1 * np.sqrt(np.square(deviation).mean()))
    return held * np.linalg.norm(deviation / held)


def timed_path(
    codes: np.ndarray, labels: np.ndarray, classes: int, path: Path, tolerance: float
) -> tuple[list[LinearHead], float, float]:
    """Return a head for each strength, the seconds, and those of all processors."""
    start, begun = time.perf_counter(), time.process_time()
    heads = list(
        fit_path(
            codes,
            labels,
            classes,
            kind=path.kind,
            strengths=path.strengths,
            tolerance=tolerance,
        )
    )
    return heads, time.perf_counter() - start, time.process_time() - begun


def compare(
    kind: str, head: LinearHead, codes: np.ndarray, z: np.ndarray, labels: np.ndarray
) -> bool:
    """Let scikit-learn fit at a head's strength; print both objectives, say whether they agree."""
    n, scale = len(z), divisors(codes)
    weight = head.weight.astype(np.float64)
    ours = objective(
        kind,
        z,
        labels,
        weight * scale,
        head.bias + weight @ codes.mean(axis=0, dtype=np.float64),
        head.strength,
    )
    start = time.perf_counter()
    if kind == "ridge":
        signs = np.where(labels[:, None] == np.arange(len(weight)), 1.0, -1.0)
        oracle = Ridge(alpha=n * head.strength / 2, solver="cholesky").fit(z, signs)
    else:
        oracle = LogisticRegression(C=1 / (n * head.strength), tol=1e-7, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            oracle.fit(z, labels)
    seconds = time.perf_counter() - start
    theirs = objective(kind, z, labels, oracle.coef_, oracle.intercept_, head.strength)
    gap = (ours - theirs) / theirs
    print(
        f"  strength {head.strength:.1e}: objective {ours:.8f}, scikit-learn's {theirs:.8f} after"
        f" {seconds:.1f} s: {gap:+.1e} (wanted within {WANTED_GAP:.0e})",
        flush=True,
    )
    return abs(gap) <= WANTED_GAP


def objective(
    kind: str,
    z: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    strength: float,
) -> float:
    """Return the objective that the heads' docstring states, in float64."""
    total = 0.0
    for start in range(0, len(z), 1000):
        scores = z[start : start + 1000] @ weight.T + bias
        own = labels[start : start + 1000]
        if kind == "softmax":
            scores -= scores.max(axis=1, keepdims=True)
            total += np.log(np.exp(scores).sum(axis=1)).sum() - scores[range(len(own)), own].sum()
        else:
            total += np.square(scores - np.where(own[:, None] == range(len(weight)), 1, -1)).sum()
    return total / len(z) + strength / 2 * float(np.square(weight).sum())


if __name__ == "__main__":
    sys.exit(main())
