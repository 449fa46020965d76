"""Bounds come from data: each was set with room around many models of both recipes, and the table is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.make_bounds import KEPT, kept, table
from fixtures.shipped_claims import compared, shipped_claims

ROOM = 0.5
"""Of the range over a recipe's seeds: how far beyond the worst of its models a bound must lie."""


def test_the_table_is_printed_from_the_measurements():
    assert KEPT.with_suffix(".md").read_text() == table(kept()), "run fixtures/make_bounds.py again"


def test_the_measurements_are_of_ten_models_of_each_recipe():
    for row in kept():
        assert {recipe: len(values) for recipe, values in row.values.items()} == {"sprint": 10, "notebook": 10}


def test_every_bound_is_in_the_table(evaluated):
    in_table = [[row.claim, row.name, row.bound] for row in kept()]
    assert compared(evaluated.outcomes) == in_table, "run fixtures/make_bounds.py again"


def test_a_bound_moved_on_purpose_is_caught(evaluated):
    """Weakened to where the controls still refute it, so that only the table can notice."""
    name, outcome = next(iter(evaluated.outcomes.items()))
    weakened = replace(outcome.comparisons[0], bound="< 1e-05")
    moved = {**evaluated.outcomes, name: replace(outcome, comparisons=(weakened, *outcome.comparisons[1:]))}
    assert compared(moved) != compared(evaluated.outcomes)
    assert compared(moved) != [[row.claim, row.name, row.bound] for row in kept()]


@pytest.mark.parametrize("row", kept(), ids=lambda row: f"{row.claim}: {row.name}")
def test_a_bound_leaves_room_around_all_models(row):
    """On a sentence that is refuted the room is what it lacks."""
    for recipe in row.values:
        if shipped_claims()[row.claim].expect == "refuted":
            opposite = replace(row, bound=row.bound.translate(str.maketrans("<>", "><")))
            assert opposite.room(recipe) >= ROOM * row.spread(recipe)
        else:
            assert row.room(recipe) >= ROOM * row.spread(recipe)
