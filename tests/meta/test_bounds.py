"""Bounds come from data: each was set with room around many models of both recipes, and the table is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.make_bounds import KEPT, kept, table
from fixtures.outcomes import compared

ROOM = 0.5
"""Of the range over a recipe's seeds: how far beyond the worst of its models a bound must lie."""

MODELS = {"sprint": 10, "notebook": 10}
FEWER = {
    # Measured since, when the weights of the other notebook models were no longer there.
    ("test_each_answer_leans_on_neurons_of_MLP_1_of_its_own", "logit difference lost, more than by another's eight"): {
        "sprint": 10,
        "notebook": 3,
    }
}


def in_table():
    """Claim, name, operator and limit of each row."""
    return [[row.claim, row.name, row.operator, row.limit] for row in kept()]


def test_the_table_is_printed_from_the_measurements():
    assert KEPT.with_suffix(".md").read_text() == table(kept()), "run python -m fixtures.make_bounds again"


def test_the_measurements_are_of_ten_models_of_each_recipe():
    for row in kept():
        models = {recipe: len(values) for recipe, values in row.values.items()}
        assert models == FEWER.get((row.claim, row.name), MODELS)


def test_every_bound_is_in_the_table(evaluated):
    assert compared(evaluated.outcomes) == in_table(), "run python -m fixtures.make_bounds again"


def test_a_bound_moved_on_purpose_is_caught(evaluated):
    """Weakened to where the controls still refute it, so that only the table can notice."""
    name, outcome = next(iter(evaluated.outcomes.items()))
    weakened = replace(outcome.comparisons[0], operator="<", limit=1e-05)
    moved = {**evaluated.outcomes, name: replace(outcome, comparisons=(weakened, *outcome.comparisons[1:]))}
    assert compared(moved) != compared(evaluated.outcomes)
    assert compared(moved) != in_table()


@pytest.mark.parametrize("row", kept(), ids=lambda row: f"{row.claim}: {row.name}")
def test_a_bound_leaves_room_around_all_models(row):
    for recipe in row.values:
        assert row.room(recipe) >= ROOM * row.spread(recipe)
