from __future__ import annotations

from nopos.claims import Outcome, claim_of
from nopos.measure import Comparison

TRUE, FALSE = Comparison("a", 1.0, "nats", "< 2", 1.0, True), Comparison("b", 3.0, "", "< 2", -1.0, False)


def test_the_verdict_is_made_from_the_whole_record():
    assert Outcome("m", (TRUE,), 0.0).verdict == "holds"
    assert Outcome("m", (TRUE, FALSE), 0.0).verdict == "refuted"
    assert Outcome("m", (TRUE, FALSE), 0.0, ValueError("x")).verdict == "error"


def test_a_failure_message_states_what_was_got_and_expected():
    assert TRUE.describe() == "a: got 1 nats, expected < 2"
    assert FALSE.describe() == "b: got 3, expected < 2"


def test_an_unmarked_test_has_no_claim():
    assert claim_of(test_an_unmarked_test_has_no_claim) is None
