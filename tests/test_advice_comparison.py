"""Comparing two ways on the same rows, against closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from topwork.advice.comparison import paired_difference, standard_errors_above
from topwork.learn.standard_error import standard_error


def bonett_price(both_orders: tuple[int, int], n: int) -> tuple[float, float]:
    """The interval as the paper writes it, from the counts of rows on which the ways differ."""
    first, second = ((count + 1) / (n + 2) for count in both_orders)
    half = 1.959963984540054 * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return first - second - half, first - second + half


@pytest.mark.parametrize(("wins", "losses", "n"), [(7, 2, 40), (0, 0, 30), (5, 5, 100), (1, 0, 8)])
def test_the_interval_is_bonett_and_prices(wins, losses, n):
    first = np.array([1.0] * wins + [0.0] * losses + [1.0] * (n - wins - losses))
    second = np.array([0.0] * wins + [1.0] * losses + [1.0] * (n - wins - losses))
    found = paired_difference(first, second)
    low, high = bonett_price((wins, losses), n)
    assert found.value == pytest.approx((wins - losses) / n)
    assert (found.low, found.high) == pytest.approx((min(low, found.value), max(high, found.value)))
    assert found.n == n


def test_the_interval_covers():
    generator = np.random.default_rng(0)
    truth, covered, draws = 0.1, 0, 2000
    for _ in range(draws):
        cells = generator.choice(4, size=60, p=[0.6, 0.1, 0.2, 0.1])
        first, second = np.isin(cells, (0, 2)), np.isin(cells, (0, 3))
        found = paired_difference(first.astype(float), second.astype(float))
        covered += found.low <= truth <= found.high
    assert 0.93 < covered / draws < 0.975


def test_rows_of_one_group_count_as_one():
    generator = np.random.default_rng(1)
    losses, least = generator.normal(1.0, 1, 30), generator.normal(0.5, 1, 30)
    alone = standard_errors_above(losses, least)
    groups = np.repeat(np.arange(30), 8)
    repeated = standard_errors_above(losses.repeat(8), least.repeat(8), groups)
    assert repeated == pytest.approx(alone * math.sqrt(29 / 30))  # few groups say a little less
    assert standard_errors_above(losses.repeat(8), least.repeat(8)) > 2 * alone


def test_the_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(2).normal(size=500)
    assert standard_error(values) == pytest.approx(values.std() / math.sqrt(500))


def test_rows_without_a_loss_are_left_out():
    losses, least = np.array([2.0, np.nan, 3.0]), np.array([1.0, 1.0, np.nan])
    assert standard_errors_above(losses, least) == math.inf
    assert standard_errors_above(np.full(3, np.nan), least) == 0.0
    assert standard_errors_above(least[:2], least[:2]) == 0.0
