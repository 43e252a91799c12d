from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student

from memcg_gym.training.stats import (
    MIN_PAIRS,
    Array,
    bootstrap,
    bootstrap_tail,
    holm,
    iqm,
    paired_difference,
    resample,
    standard_error,
    worst_decile,
)


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    values = np.array([100.0, 3.0, 1.0, 2.0, 4.0, -50.0, 5.0, 6.0])
    assert iqm(values) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_iqm_works_along_the_last_axis() -> None:
    values = np.array([[0.0, 1.0, 2.0, 99.0], [4.0, 4.0, 8.0, -9.0]])
    assert iqm(values).tolist() == [1.5, 4.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(20.0), 0.5),  # the two lowest of twenty
        (np.arange(21.0), 1.0),  # a tenth of 21 is 2.1: three values
        (np.array([7.0, 3.0]), 3.0),  # always at least one
    ],
)
def test_worst_decile_is_the_mean_of_the_lowest_tenth(values: Array, expected: float) -> None:
    assert worst_decile(values[::-1]) == expected


def test_holm_by_hand() -> None:
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, each at least the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_keeps_order() -> None:
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_comparison_needs_no_correction() -> None:
    assert holm([0.04]) == [0.04]


def test_resampling_stays_within_its_stratum() -> None:
    draws = resample([np.zeros(3), np.ones(5)], 50, seed=1)
    assert draws.shape == (50, 8)
    assert (draws[:, :3] == 0).all() and (draws[:, 3:] == 1).all()


def test_an_interval_is_close_to_student_s_for_normal_values() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 20)
    found = bootstrap([values])
    half = student.ppf(0.975, 19) * standard_error(values)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.08)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08)


def test_an_interval_of_ten_normal_values_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for k in range(300):
        found = bootstrap([rng.normal(0.0, 1.0, 10)], resamples=2000, seed=k)
        hits += found.low <= 0.0 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_too_few_values_give_no_interval_and_no_claim() -> None:
    few = np.arange(MIN_PAIRS - 1.0)
    found = bootstrap([few, np.arange(30.0)])
    assert math.isnan(found.low) and math.isnan(found.high)
    difference = paired_difference([few + 1.0], [few])
    assert difference.estimate == 1.0
    assert math.isnan(difference.low) and difference.p_value == 1.0


def test_a_shift_common_to_both_sides_cancels_in_pairs() -> None:
    rng = np.random.default_rng(5)
    theirs = rng.normal(0.0, 100.0, 20)
    ours = theirs + 0.5 + rng.normal(0.0, 0.1, 20)
    found = paired_difference([ours], [theirs])
    assert found.low > 0.4 and found.high < 0.6
    assert found.n_pairs == 20


def test_a_paired_difference_weighs_strata_alike() -> None:
    few, many = np.ones(5), np.zeros(45)
    found = paired_difference([few, many], [np.zeros(5), np.zeros(45)])
    assert found.estimate == 0.5


def test_a_p_value_is_close_to_the_t_test_s() -> None:
    values = np.random.default_rng(8).normal(0.5, 1.0, 20)
    found = paired_difference([values], [np.zeros(20)])
    assert found.p_value == pytest.approx(ttest_1samp(values, 0.0).pvalue, rel=0.35)


def test_p_value_and_interval_agree_on_zero() -> None:
    rng = np.random.default_rng(21)
    for k in range(40):
        values = rng.normal(0.45, 1.0, 20)
        found = paired_difference([values], [np.zeros(20)], seed=k)
        if abs(found.p_value - 0.05) > 0.01:
            assert (found.p_value < 0.05) == (found.low > 0.0 or found.high < 0.0)


def test_no_difference_at_all_is_no_claim() -> None:
    same = np.arange(10.0)
    found = paired_difference([same], [same])
    assert (found.estimate, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_tail_that_no_draw_reaches_follows_the_normal_curve() -> None:
    draws = np.random.default_rng(2).normal(6.0, 1.0, 10_000)
    assert bootstrap_tail(draws) == pytest.approx(2 * norm.sf(6.0), rel=0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    assert bootstrap([values], iqm, seed=4) == bootstrap([values], iqm, seed=4)
    assert bootstrap([values], iqm, seed=4) != bootstrap([values], iqm, seed=5)


@pytest.mark.parametrize("strata", [[], [np.array([])], [np.ones(5), np.array([])]])
def test_an_empty_stratum_is_refused(strata: list[Array]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap(strata)


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="as many values"):
        paired_difference([np.ones(5)], [np.ones(6)])


def test_the_error_of_one_value_is_unknown() -> None:
    assert math.isinf(standard_error(np.array([1.0])))
    assert standard_error(np.array([1.0, 3.0])) == 1.0
