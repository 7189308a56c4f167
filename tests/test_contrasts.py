"""Differences of classifiers equal independent implementations', and alarms are as rare as they say."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headstart.contrasts import (
    LEVEL,
    adjust_holm,
    contrast_runs,
    count_more_images,
    estimate_accuracy,
    permute_signs,
    rank_with_ties,
)
from headstart.metrics import wilson_interval


def make(both, only_first, only_second, neither):
    """One run each with these counts of images."""
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first[None], second[None], np.arange(len(first))


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (5, 0), (6, 1), (20, 35), (300, 250), (7, 7)]
)
def test_the_test_of_single_runs_is_mcnemars(only_first, only_second):
    found = contrast_runs(*make(40, only_first, only_second, 9))
    total = only_first + only_second
    wanted = stats.binomtest(only_first, total).pvalue if total else 1.0
    assert found.p == pytest.approx(wanted, abs=1e-9)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.difference.value == pytest.approx((only_first - only_second) / (49 + total))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_signs_are_permuted_exactly(differences):
    total = abs(sum(differences))
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(own, differences, strict=True))) for own in signs]
    wanted = np.mean([s >= total for s in sums])
    assert permute_signs(np.array(differences)) == pytest.approx(wanted, abs=1e-9)


def test_a_difference_beyond_all_doubt_has_a_value_of_p():
    assert permute_signs(np.ones(5000, dtype=np.int64)) == 1e-12


def test_the_interval_is_about_that_of_agresti_and_min():
    first, second, units = make(800, 60, 40, 100)
    found = contrast_runs(first, second, units).difference
    # The Wald interval with half an image more in each cell (Agresti and Min 2005).
    n, b, c = 1002, 60.5, 40.5
    error = np.sqrt((b + c) - (b - c) ** 2 / n) / n
    wanted = (b - c) / n + stats.norm.ppf([0.025, 0.975]) * error
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-3)


def test_runs_that_never_differ_are_not_certain_to_be_equal():
    found = contrast_runs(*make(90, 0, 0, 10))
    assert found.p == 1
    assert -0.03 < found.difference.low < -0.01 < 0.01 < found.difference.high < 0.03


def test_exchanging_the_two_exchanges_the_signs():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 80)) < 0.9, rng.random((2, 80)) < 0.8
    units = np.arange(80) // 4
    one, other = contrast_runs(first, second, units), contrast_runs(second, first, units)
    assert one.p == pytest.approx(other.p)
    assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.difference.low == pytest.approx(-other.difference.high, abs=0.01)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)


def test_images_of_one_group_count_as_one():
    first, second, alone = make(80, 16, 4, 20)
    groups = np.concatenate([np.arange(80), np.repeat([80, 81, 82, 83, 84], 4), np.arange(85, 105)])
    single, grouped = (contrast_runs(first, second, units) for units in (alone, groups))
    assert single.p < LEVEL < grouped.p
    assert grouped.p == pytest.approx(stats.binomtest(4, 5).pvalue)
    assert grouped.difference.low < single.difference.low
    low = estimate_accuracy(first, groups).low
    assert low < estimate_accuracy(first, alone).low


def test_one_group_of_all_tells_nothing():
    first, second, _ = make(50, 30, 0, 20)
    found = contrast_runs(first, second, np.zeros(100, dtype=np.int64))
    assert found.p == 1
    assert (found.difference.low, found.difference.high) == (-1, 1)
    assert count_more_images(found) is None


def test_the_accuracy_of_one_run_has_wilsons_interval():
    right = np.arange(150)[None] >= 12
    found, wanted = estimate_accuracy(right, np.arange(150)), wilson_interval(138, 150)
    assert vars(found) == pytest.approx(vars(wanted), abs=1e-6)
    perfect = estimate_accuracy(np.ones((3, 40), dtype=bool), np.arange(40))
    assert vars(perfect) == pytest.approx(vars(wilson_interval(40, 40)))


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile(np.arange(400) >= 40, (3, 1))
    apart = np.stack([np.arange(400) >= n for n in (10, 40, 70)])
    units = np.arange(400)
    one, other = estimate_accuracy(alike, units), estimate_accuracy(apart, units)
    assert one.value == other.value == 0.9
    assert other.high - other.low > 2 * (one.high - one.low)
    worse = alike & (np.arange(400) % 15 > 0)
    assert contrast_runs(alike, worse, units).p < LEVEL < contrast_runs(apart, worse, units).p


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_is_by_its_definition(values):
    adjusted = adjust_holm(values)
    order = np.argsort(values, kind="stable")
    for place, i in enumerate(order):
        steps = [min(1, (len(values) - k) * values[j]) for k, j in enumerate(order[: place + 1])]
        assert adjusted[i] == pytest.approx(max(steps))


def test_so_many_images_do_tell():
    found = contrast_runs(*make(80, 12, 8, 20))
    more = count_more_images(found)
    assert found.p > LEVEL
    # The usual formula for paired proportions, at a level of 5 % and a power of 80 %.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    rate, difference = 20 / 120, 4 / 120
    assert 120 + more == pytest.approx(z**2 * (rate - difference**2) / difference**2, rel=0.1)
    rng, told = np.random.default_rng(0), []
    for _ in range(200):
        counts = rng.multinomial(120 + more, [80 / 120, 12 / 120, 8 / 120, 20 / 120])
        told.append(contrast_runs(*make(*counts)).p < LEVEL)
    assert 0.7 < np.mean(told) < 0.9
    assert count_more_images(found, level=0.01) > more
    assert count_more_images(contrast_runs(*make(80, 10, 10, 20))) is None


def test_those_that_cannot_be_told_apart_share_a_rank():
    assert rank_with_ties(3, []) == [1, 1, 1]
    assert rank_with_ties(3, [(0, 2)]) == [1, 1, 2]
    assert rank_with_ties(4, [(0, 1), (0, 2), (0, 3), (2, 3)]) == [1, 2, 2, 3]


@pytest.mark.parametrize(("seeds", "shift"), [(1, 0.0), (3, 0.0), (3, 0.2), (5, 0.2)])
def test_false_alarms_are_rare(seeds, shift):
    """Of contenders that differ by seed only; benchmarks/compare_alarms.py looks at more kinds of them."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(500):
        odds = rng.normal(2, 2.5, 200)
        runs = [
            rng.random((seeds, 200)) < 1 / (1 + np.exp(-odds - rng.normal(0, shift, (seeds, 1))))
            for _ in range(2)
        ]
        alarms += contrast_runs(*runs, np.arange(200)).p < LEVEL
    assert alarms / 500 <= 0.06
