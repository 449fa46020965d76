"""What holds of all shipped claims together."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from fixtures.shipped_claims import shipped_claims, shipped_tests
from nopos import CONTROLS
from nopos.claims import claim_of
from nopos.ledger import sentence

ROOT = Path(__file__).parents[2]


def test_every_test_among_the_claims_is_a_claim_and_no_two_have_one_name():
    assert [test.__name__ for test in shipped_tests() if claim_of(test) is None] == []
    assert len(shipped_claims()) == len(shipped_tests())


def test_every_control_refutes_some_claim():
    used = {control.name for claim in shipped_claims().values() for control in claim.refuted_by}
    assert used == {control.name for control in CONTROLS}


@pytest.mark.parametrize("test", shipped_tests(), ids=lambda test: test.__name__)
def test_a_claim_fits_fifteen_lines(test):
    (function,) = ast.parse(inspect.getsource(test)).body
    assert isinstance(function, ast.FunctionDef)
    first = function.body[1].lineno  # after the docstring
    assert function.end_lineno - first + 1 <= 15


def test_the_readme_lists_every_claim_in_order():
    """As the outline of a paper: with the kind of its evidence."""
    listed = re.findall(r"^   - (.+)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert listed == [
        f"{sentence(name)} ({claim.rung}{', kept as refuted' if claim.expect == 'refuted' else ''})"
        for name, claim in shipped_claims().items()
    ]
