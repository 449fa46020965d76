from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopos.claims.measure import Measure, rounded
from nopos.errors import ClaimError

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(FINITE, FINITE, st.sampled_from(["lt", "le", "gt", "ge", "eq"]))
def test_a_comparison_records_the_truth_and_lets_the_body_go_on(value, bound, name):
    measure = Measure()
    compare = getattr(operator, name)
    assert compare(measure("x", value, "nats"), bound) is True
    (recorded,) = measure.close()
    assert recorded.holds is compare(value, bound)
    assert recorded.value == value
    assert recorded.unit == "nats"
    if value != bound:
        assert (recorded.margin > 0) is (recorded.holds and name != "eq")
        assert abs(recorded.margin) == abs(value - bound)


def test_a_measurement_is_a_float():
    assert Measure()("x", 1.5) + 1 == 2.5


def test_a_measurement_is_compared_once():
    measured = Measure()("x", 1.0)
    assert measured < 2
    with pytest.raises(ClaimError, match="'x' is compared twice"):
        assert measured < 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda measure: bool(measure("x", 1.0)), "'x' is used without a bound"),
        (lambda measure: measure("x", 1.0) != 2.0, "almost any value passes"),
        (lambda measure: measure("x", 1.0) < "high", "the bound of x is 'high'; it must be a number"),
        (lambda measure: measure("x", None), "x is None; it must be a number"),
        (lambda measure: measure("x", float("-inf")), "x is -inf; it must be finite"),
        (lambda measure: [measure("x", 1.0), measure("x", 1.0)], "'x' is measured twice"),
    ],
)
def test_a_misuse_is_an_error(use, message):
    with pytest.raises(ClaimError, match=message):
        use(Measure())


def test_what_is_not_compared_shows_when_the_record_is_closed():
    measure = Measure()
    with pytest.raises(ClaimError, match="nothing was compared"):
        measure.close()
    measure = Measure()
    measure("x", 1.0)
    with pytest.raises(ClaimError, match="'x' is measured and never compared"):
        measure.close()


def test_an_error_that_was_swallowed_comes_again_when_the_record_is_closed():
    measure = Measure()
    assert measure("good", 1.0) < 2
    with pytest.raises(ClaimError):
        measure("bad", float("nan"))
    with pytest.raises(ClaimError, match="bad is nan"):
        measure.close()


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(0.99999985, 0.9999999, "0.99999985"), (0.5, 0.6, "0.5"), (0.123456789, 0.1, "0.1235"), (1.00004, 1.0, "1.00004")],
)
def test_a_value_is_not_rounded_to_the_other_side_of_its_limit(value, limit, text):
    assert rounded(value, limit, digits=4) == text
