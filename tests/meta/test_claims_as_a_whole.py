"""What holds of all shipped claims together."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from nopos import CONTROLS
from nopos.subjects.shipped import shipped_claims

ROOT = Path(__file__).parents[2]

REQUESTED = {
    "test_W_pos_is_exactly_zero",
    "test_the_loss_is_under_a_fiftieth_of_a_nat",
    "test_the_folded_model_gives_the_same_outputs",
    "test_ablation_ranks_the_critical_hook_points_above_the_harmless_ones",
    "test_layer_1_needs_its_attention_to_the_previous_token",
}
"""The findings that the user of the project asked for by name. None is ever dropped."""


def test_exactly_the_five_findings_that_the_user_asked_for_are_marked_so():
    assert {claim.name for claim in shipped_claims() if claim.requested} == REQUESTED


def test_the_believed_sentence_about_layer_1_and_the_previous_token_is_kept_as_refuted():
    refuted = [claim.refutes for claim in shipped_claims() if claim.refutes]
    assert refuted == ["layer 1 attends mostly to the previous token"]


def test_every_control_refutes_some_claim():
    used = {control for claim in shipped_claims() for control in claim.refuted_by}
    assert used == set(CONTROLS)


@pytest.mark.parametrize("claim", shipped_claims(), ids=lambda claim: claim.name)
def test_a_claim_fits_fifteen_lines(claim):
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(claim.function))).body
    assert isinstance(function, ast.FunctionDef)
    first = function.body[1].lineno  # after the docstring
    assert function.end_lineno - first + 1 <= 15


def test_the_documents_list_every_claim_in_order():
    """As the outline of a paper: with the kind of its evidence."""
    listed = re.findall(r"^   - (.+)$", (ROOT / "docs" / "claims.md").read_text(), flags=re.MULTILINE)
    assert listed == [f"{claim.sentence} ({claim.evidence})" for claim in shipped_claims()]
