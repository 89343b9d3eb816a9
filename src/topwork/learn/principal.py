"""Codes standardized and rotated onto their principal axes, in float64 and block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from topwork.errors import DataError

Array = np.ndarray

CONSTANT = 1e-6  # a column that varies less than this, relative to its mean, is rounding noise
NEGLIGIBLE = 1e-12  # an axis with less than this part of the largest axis's variance is noise
ROWS_AT_ONCE = 1024  # a block of rows and its scores stay in the processor's cache
WIDE = 2**27  # numbers in the rotated codes beyond which they are kept in float32 (0.5 GiB)


@dataclass(frozen=True)
class PrincipalAxes:
    """How codes are rotated: z = (codes - mean) * scale, and coordinates = z @ directions.

    Attributes:
        mean: [d].
        scale: [d], so that rows z have a mean squared length of one; zero for constant columns.
        directions: [d, r], orthonormal.
        variances: [r], mean square of each coordinate; they sum to one.
    """

    mean: Array
    scale: Array
    directions: Array
    variances: Array

    def standardized(self, codes: Array) -> Array:
        """Return rows z [n, d], float64."""
        return (codes - self.mean) * self.scale

    def coordinates(self, codes: Array) -> Array:
        """Return the coordinates [n, r + 1], the last column being ones, which carry a bias.

        The columns are orthogonal to each other on the rows that the axes were made from. They are
        float64, or float32 where there are very many.
        """
        n, r = len(codes), len(self.variances)
        result = np.ones((n, r + 1), dtype=np.float32 if n * r > WIDE else np.float64)
        for rows in blocks(n):
            result[rows, :-1] = self.standardized(codes[rows]) @ self.directions
        return result


def principal_axes(codes: Array) -> PrincipalAxes:
    """Return the principal axes of codes [n, d], at most min(n - 1, d) of them.

    The decomposition is of the rows' products or of the columns', whichever are fewer.

    Raises:
        DataError: if a row holds NaN or infinity.

    >>> axes = principal_axes(np.array([[0.0, 5.0], [2.0, 5.0]]))
    >>> axes.mean.tolist(), axes.scale.tolist(), axes.variances.tolist()
    ([1.0, 5.0], [1.0, 0.0], [1.0])
    """
    n, d = codes.shape
    mean, scale = _standardization(codes)
    if n <= d:
        z = (codes - mean) * scale
        squares, directions = _decomposed(z @ z.T)
        directions = z.T @ (directions / np.sqrt(squares))
    else:
        products = np.zeros((d, d))
        for rows in blocks(n):
            z = (codes[rows] - mean) * scale
            products += z.T @ z
        squares, directions = _decomposed(products)
    return PrincipalAxes(mean, scale, directions, squares / n)


def _decomposed(products: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of a matrix of products, less those that are noise."""
    squares, vectors = np.linalg.eigh(products)
    kept = squares > NEGLIGIBLE * max(squares[-1], 0.0)
    return squares[kept], vectors[:, kept]


def blocks(n: int) -> Iterator[slice]:
    """Yield slices that cover n rows, a block at a time.

    >>> [(rows.start, rows.stop) for rows in blocks(1500)]
    [(0, 1024), (1024, 2048)]
    """
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))


def _standardization(codes: Array) -> tuple[Array, Array]:
    mean = codes.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        row = int(np.flatnonzero(~np.isfinite(codes).all(axis=1))[0])
        raise DataError(f"codes of row {row} hold NaN or infinity; leave that image out")
    squares = np.zeros_like(mean)
    for rows in blocks(len(codes)):
        squares += np.square(codes[rows] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(codes))
    varies = deviation > CONSTANT * np.abs(mean)
    scale = np.zeros_like(mean)
    scale[varies] = 1 / (deviation[varies] * np.sqrt(varies.sum()))
    return mean, scale
