"""Estimates against values worked out by hand or printed in the literature."""

from __future__ import annotations

import math

import pytest

from openk2.evaluate import statistics as st


def test_proportion_has_the_binomial_standard_error() -> None:
    estimate = st.proportion(90, 100)
    assert (estimate.value, estimate.n) == (0.9, 100)
    assert estimate.stderr == pytest.approx(0.03)
    assert math.isnan(st.proportion(0, 0).value)
    with pytest.raises(ValueError, match="saw 3 successes of 2"):
        st.proportion(3, 2)


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_the_published_intervals(rate: float, n: int, low: float, high: float) -> None:
    assert st.wilson(rate, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything_and_stays_in_bounds() -> None:
    assert st.wilson(0.0, 0) == (0.0, 1.0)
    assert st.wilson(1.0, 20)[1] == 1.0


def test_mean_and_its_standard_error() -> None:
    estimate = st.mean([2, 4, 4, 4, 5, 5, 7, 9])
    assert estimate.value == 5.0
    assert estimate.stderr == pytest.approx(math.sqrt(32 / 7 / 8))
    assert math.isnan(st.mean([1.0]).stderr)
    assert st.mean([]).as_dict() == {"value": None, "n": 0, "stderr": None}


def test_ratio_is_a_mean_where_all_denominators_are_one() -> None:
    values = [1.0, 3.0, 4.0, 8.0]
    assert st.ratio(values, [1.0] * 4).stderr == pytest.approx(st.mean(values).stderr)
    weighted = st.ratio([2.0, 30.0], [1.0, 10.0])
    assert weighted.value == pytest.approx(32 / 11)
    # residuals 2 - 32/11 = -10/11 and 30 - 320/11 = 10/11; sqrt(2 / 1 * 2 * (10/11)^2) / 11
    assert weighted.stderr == pytest.approx(2 * (10 / 11) / 11)


def test_paired_difference_is_sharper_than_the_unpaired_one() -> None:
    before = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    after = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    paired = st.paired_difference(after, before)
    assert paired.value == pytest.approx(3 / 8)
    assert paired.stderr == pytest.approx(math.sqrt((3 * (5 / 8) ** 2 + 5 * (3 / 8) ** 2) / 7 / 8))
    assert paired.stderr < st.difference(st.mean(after), st.mean(before)).stderr
    with pytest.raises(ValueError, match="saw 2 and 1 results"):
        st.paired_difference([1.0, 0.0], [1.0])


def test_two_standard_error_rule() -> None:
    assert st.beyond_two_standard_errors(st.Estimate(0.21, 100, 0.1))
    assert not st.beyond_two_standard_errors(st.Estimate(0.2, 100, 0.1))
    assert not st.beyond_two_standard_errors(st.Estimate(-0.5, 100, 0.1))
    assert not st.beyond_two_standard_errors(st.mean([1.0])), "one item proves nothing"
    assert not st.beyond_two_standard_errors(st.Estimate(0.0, 200, 0.0)), "both saturated: no difference"


def test_minimal_detectable_difference_against_the_textbook_sample_size() -> None:
    # (1.95996 + 0.84162)^2 * 2 * 0.25 / d^2 = n: d = 0.1 needs n = 392.4 a group.
    assert st.minimal_detectable_difference(392, 0.5) == pytest.approx(0.1, abs=1e-4)
    assert st.minimal_detectable_difference(200, 0.9) == pytest.approx(2.80159 * 0.03, abs=1e-5)
