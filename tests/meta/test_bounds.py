"""Bounds come from data: each was set with room around the models of the zoo's fitting half, and the table is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.make_bounds import KEPT, kept, table, verdicts
from fixtures.outcomes import compared, outcomes
from fixtures.zoo.settings import zoo_settings
from nopos.subjects import shipped
from nopos.subjects.subject import Subject

ROOM = 0.1
"""Of the median model's distance to a bound: how far the model that comes nearest to it must stay from it."""
FITTING = [setting.name for setting in zoo_settings() if setting.half == "fitting"]
OUT_OF_SCOPE = {"adafactor-0.03": 36}
"""Of how many claims, on the only model whose answers do not come from positions that layer 0 writes."""

FILE, BOUND = "test_4_previous_token.py", "> 0.7\n"
"""One bound of one claim, as its file has it."""


def in_table():
    """Claim, name, operator and limit of each row."""
    return [[row.claim, row.name, row.operator, row.limit] for row in kept()]


def test_the_table_is_printed_from_the_measurements():
    assert KEPT.with_suffix(".md").read_text() == table(kept()), "run python -m fixtures.make_bounds again"


def test_the_measurements_are_of_every_model_of_the_fitting_half_and_of_no_other():
    for row in kept():
        assert sorted([*row.in_scope, *row.outside]) == sorted(FITTING)


def test_no_claim_is_refuted_in_scope_and_most_are_about_nearly_all_models():
    counts = verdicts(kept())
    assert {setting: found["refuted"] for setting, found in counts.items() if found["refuted"]} == {}
    outside = {setting: found["out of scope"] for setting, found in counts.items()}
    assert {setting: number for setting, number in outside.items() if number > 3} == OUT_OF_SCOPE


def test_every_bound_is_in_the_table(evaluated):
    assert compared(evaluated.outcomes) == in_table(), "run python -m fixtures.make_bounds again"


def compared_in(folder: Path, text: str, subject: Subject) -> list[list[str | float]]:
    """What the claims compare that a folder with this one file holds."""
    folder.mkdir()
    (folder / FILE).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "CLAIMS", folder)
        return compared(outcomes(subject))


@pytest.mark.parametrize(("operator", "limit"), [(">", 0.69), (">=", 0.7)])
def test_a_bound_changed_in_a_claim_is_not_that_of_the_table(evaluated, tmp_path, operator, limit):
    """Changed so little that the controls still refute the claim: only the table can notice."""
    text, rows = (shipped.CLAIMS / FILE).read_text(), in_table()
    assert text.count(BOUND) == 1
    as_it_stands = compared_in(tmp_path / "as it stands", text, evaluated.subject)
    changed = compared_in(tmp_path / "changed", text.replace(BOUND, f"{operator} {limit}\n"), evaluated.subject)
    assert [row for row in as_it_stands if row not in rows] == []
    assert [row[2:] for row in changed if row not in rows] == [[operator, limit]]


@pytest.mark.parametrize("row", kept(), ids=lambda row: f"{row.claim}: {row.name}")
def test_a_bound_leaves_room_around_all_models(row):
    assert all(row.holds(value) for value in row.in_scope.values())
    assert row.operator == "==" or row.room >= ROOM
