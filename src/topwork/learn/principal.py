"""Codes standardized and rotated onto their principal axes, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from topwork.data.loading import map_ahead
from topwork.errors import DataError

Array = np.ndarray
Part = TypeVar("Part")

CONSTANT = 1e-6  # a column that varies less than this, relative to its mean, is rounding noise
LEAST_DEVIATION = 0.1  # of the columns' root mean square, for the deviation that divides a column
NEGLIGIBLE = 1e-12  # an axis with less than this part of the largest axis's variance is noise
ROWS_AT_ONCE = 1024  # a block of rows and its scores stay in the processor's cache
MANY = 2**24  # numbers in the codes above which all cores work, and rotated codes are float32


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """How codes are rotated: z = (codes - mean) * scale, and coordinates = z @ directions.

    Attributes:
        mean: [d].
        scale: [d], so that rows z have a mean squared length of one; zero for constant columns.
        basis: the directions [d, r], orthonormal; where there are rows, [n, r]: the directions are
            rows.T @ basis, a large product that is never made.
        rows: z [n, d] where the codes have no more rows than columns, else None.
        variances: [r], mean square of each coordinate; they sum to one.
    """

    mean: Array
    scale: Array
    basis: Array
    rows: Array | None
    variances: Array

    def standardized(self, codes: Array) -> Array:
        """Return rows z [n, d], float64."""
        return (codes - self.mean) * self.scale

    def rotated(self, vectors: Array) -> Array:
        """Return the coordinates [r, m] of vectors [d, m]."""
        return self.basis.T @ (vectors if self.rows is None else self.rows @ vectors)

    def rotated_back(self, coordinates: Array) -> Array:
        """Return the vectors [d, m] with coordinates [r, m]."""
        product = self.basis @ coordinates
        return product if self.rows is None else self.rows.T @ product

    def coordinates(self, codes: Array) -> Array:
        """Return the coordinates [n, r + 1] of the codes that the axes were made from.

        The last column is ones, which carry a bias; the columns are orthogonal to each other. They
        are float64, or float32 where there are very many.
        """
        n, r = len(codes), len(self.variances)
        result = np.ones((n, r + 1), dtype=np.float32 if codes.size > MANY else np.float64)
        if self.rows is not None:
            result[:, :-1] = self.basis * (self.variances * n)
            return result
        basis = self.basis.astype(result.dtype, copy=False)

        def fill(rows: slice) -> None:
            z = self.standardized(codes[rows]).astype(result.dtype, copy=False)
            result[rows, :-1] = z @ basis

        for _ in map_blocks(codes, fill):
            pass
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
        squares, vectors = _decomposed(z @ z.T)
        return PrincipalAxes(mean, scale, vectors / np.sqrt(squares), z, squares / n)

    def products_in(rows: slice) -> Array:
        z = (codes[rows] - mean) * scale
        return z.T @ z

    squares, vectors = _decomposed(sum_blocks(codes, products_in))
    return PrincipalAxes(mean, scale, vectors, None, squares / n)


def _decomposed(products: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of a matrix of products, less those that are noise."""
    with one_thread():
        squares, vectors = np.linalg.eigh(products)
    kept = squares > NEGLIGIBLE * max(squares[-1], 0.0)
    return squares[kept], vectors[:, kept]


def blocks(n: int) -> Iterator[slice]:
    """Yield slices that cover n rows, a block at a time.

    >>> [(rows.start, rows.stop) for rows in blocks(1500)]
    [(0, 1024), (1024, 2048)]
    """
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))


def map_blocks(codes: Array, work: Callable[[slice], Part]) -> Iterator[Part]:
    """Yield what work makes of each block of rows, in order.

    Of many codes several blocks are under way at once, each on a core of its own.
    """
    if codes.size <= MANY:
        yield from map(work, blocks(len(codes)))
        return
    with one_thread():
        for _, part in map_ahead(blocks(len(codes)), work):
            yield part


def sum_blocks(codes: Array, work: Callable[[slice], Array]) -> Array:
    """Return the sum of what work makes of the blocks of rows."""
    parts = map_blocks(codes, work)
    total = next(parts)
    for part in parts:
        total += part
    return total


def one_thread() -> AbstractContextManager[Any]:
    """Hold NumPy's matrix products to the thread that asks for them.

    On a busy machine several that wait for each other take many times as long as one.
    """
    return _blas().limit(limits=1)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")


def _standardization(codes: Array) -> tuple[Array, Array]:
    """Return the columns' means and the scale that gives rows a mean squared length of one.

    A column is divided by its deviation, but by no less than a tenth of what the columns' is on the
    whole: one that is nearly always zero would give the few images, of the training part or seen
    later, for which it is not, lengths of thousands of deviations.
    """
    n = len(codes)
    mean = sum_blocks(codes, lambda rows: codes[rows].sum(axis=0, dtype=np.float64)) / n
    if not np.isfinite(mean).all():
        row = int(np.flatnonzero(~np.isfinite(codes).all(axis=1))[0])
        raise DataError(f"codes of row {row} hold NaN or infinity; leave that image out")
    squares = sum_blocks(codes, lambda rows: np.square(codes[rows] - mean).sum(axis=0))
    deviation = np.sqrt(squares / n)
    varies = deviation > CONSTANT * np.abs(mean)
    scale = np.zeros_like(mean)
    if varies.any():
        deviation = deviation[varies]
        divisor = np.maximum(deviation, LEAST_DEVIATION * np.sqrt(np.square(deviation).mean()))
        scale[varies] = 1 / (divisor * np.linalg.norm(deviation / divisor))
    return mean, scale
