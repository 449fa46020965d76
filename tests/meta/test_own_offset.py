"""What holds of two back, holds: the claims tried with the offset of the control that predicts the token two back."""

from __future__ import annotations

import pytest

from fixtures.make_own_offset import KEPT, table


@pytest.mark.slow
def test_the_kept_table_is_what_the_claims_say_of_two_back():
    assert KEPT.read_text() == table(), "run python -m fixtures.make_own_offset again"


def test_what_is_true_of_the_algorithm_holds_at_the_offset_of_two_back():
    rows = [line.split(" | ") for line in KEPT.read_text().splitlines() if line.startswith("| ")][2:]
    flipped = [row[0] for row in rows if row[1].startswith("refuted") and row[2].startswith("holds")]
    assert "| the previous token is predicted" in flipped
    assert "| layer 1 needs its attention to the previous token" in flipped
    assert "| positions that swap their counts are read for each other" in flipped
