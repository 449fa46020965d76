"""Bounds come from data: each was set with room around many models of both recipes, and the table is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.make_bounds import KEPT, kept, table
from fixtures.outcomes import compared, outcomes
from nopos.subjects import shipped
from nopos.subjects.subject import Subject

ROOM = 0.5
"""Of the range over a recipe's seeds: how far beyond the worst of its models a bound must lie."""

MODELS = {"sprint": 10, "notebook": 10}

FILE, BOUND = "test_4_previous_token.py", "> 4.0\n"
"""One bound of one claim, as its file has it."""


def in_table():
    """Claim, name, operator and limit of each row."""
    return [[row.claim, row.name, row.operator, row.limit] for row in kept()]


def test_the_table_is_printed_from_the_measurements():
    assert KEPT.with_suffix(".md").read_text() == table(kept()), "run python -m fixtures.make_bounds again"


def test_the_measurements_are_of_ten_models_of_each_recipe():
    for row in kept():
        models = {recipe: len(values) for recipe, values in row.values.items()}
        assert models == MODELS


def test_every_bound_is_in_the_table(evaluated):
    assert compared(evaluated.outcomes) == in_table(), "run python -m fixtures.make_bounds again"


def compared_in(folder: Path, text: str, subject: Subject) -> list[list[str | float]]:
    """What the claims compare that a folder with this one file holds."""
    folder.mkdir()
    (folder / FILE).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "CLAIMS", folder)
        return compared(outcomes(subject))


@pytest.mark.parametrize(("operator", "limit"), [(">", 3.9), (">=", 4.0)])
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
    for recipe in row.values:
        assert row.room(recipe) >= ROOM * row.spread(recipe)
