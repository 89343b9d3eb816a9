"""Comparing two ways on the same rows, against closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from topwork.advice.comparison import paired_difference, standard_errors_above
from topwork.learn.standard_error import on_the_normal_scale, quantile, standard_error


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
    fewer = alone * math.sqrt(29 / 30)  # few groups say a little less
    assert repeated == pytest.approx(norm.isf(t.sf(fewer, 29)))
    assert standard_errors_above(losses.repeat(8), least.repeat(8)) > 2 * alone


def test_the_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(2).normal(size=500)
    assert standard_error(values) == pytest.approx(values.std() / math.sqrt(500))


def test_rows_without_a_loss_are_left_out():
    losses, least = np.array([2.0, np.nan, 3.0]), np.array([1.0, 1.0, np.nan])
    assert standard_errors_above(losses, least) == math.inf
    assert standard_errors_above(np.full(3, np.nan), least) == 0.0
    assert standard_errors_above(least[:2], least[:2]) == 0.0


def test_groups_of_one_row_change_nothing():
    first, second = np.random.default_rng(3).integers(0, 2, (2, 40)).astype(float)
    assert paired_difference(first, second, np.arange(40)) == paired_difference(first, second)
    alone = standard_errors_above(first, second)
    assert standard_errors_above(first, second, np.arange(40)) == alone


def test_one_group_tells_nothing_of_others():
    first, second = np.repeat([1.0, 0.0], [60, 40]), np.repeat([1.0, 0.0], [40, 60])
    found = paired_difference(first, second, np.zeros(100))
    assert (found.value, found.low, found.high) == (pytest.approx(0.2), -1.0, 1.0)
    single = paired_difference(first[:1], second[:1], np.zeros(1))
    assert (single.low, single.high) == (-1.0, 1.0)
    assert standard_errors_above(first, second, np.zeros(100)) == 0.0


def test_two_groups_that_agree_keep_a_width():
    right = np.ones(60)
    found = paired_difference(right, right, np.repeat([0, 1], 30))
    assert found.high == -found.low == pytest.approx(t.isf(0.025, 1) * math.sqrt(2) / 62)
    least = paired_difference(right[:4], 0 * right[:4], np.array([0, 0, 1, 1]))
    assert (least.low, least.high) == (-1.0, 1.0)


@pytest.mark.parametrize("groups", [2, 3, 5, 12])
def test_people_that_differ_are_seldom_told_apart_without_an_effect(groups):
    generator = np.random.default_rng(1)
    own, draws, apart, above = np.repeat(np.arange(groups), 30), 1500, 0, 0
    for _ in range(draws):
        leaning = generator.normal(0, 0.15, groups)[own] / 2
        chances = np.clip([0.75 + leaning, 0.75 - leaning], 0, 1)
        first, second = (generator.random((2, len(own))) < chances).astype(float)
        apart += paired_difference(first, second, own).told_apart
        above += standard_errors_above(second, first, own) > 2
    assert apart / draws < 0.07  # once .28 .22 .12 .07
    assert above / draws < 0.04  # once .15 .09 .05 .03


@pytest.mark.parametrize("freedom", [1, 2, 9, 300])
def test_what_is_as_rare_is_as_far_out(freedom):
    for ratio in (0.0, 0.3, 2.0, 9.0):
        expected = norm.isf(t.sf(ratio, freedom))
        assert on_the_normal_scale(ratio, freedom) == pytest.approx(expected)
        assert on_the_normal_scale(-ratio, freedom) == pytest.approx(-expected)
    assert on_the_normal_scale(quantile(freedom), freedom) == pytest.approx(norm.isf(0.025))
    far = [on_the_normal_scale(ratio, freedom) for ratio in (20.0, 1e3, 1e9)]
    assert far == sorted(far)
    assert math.isfinite(far[-1])
    assert on_the_normal_scale(math.inf, freedom) == math.inf
