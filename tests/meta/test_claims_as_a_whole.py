"""What holds of all shipped claims together."""

from __future__ import annotations

import ast
import importlib.util
import inspect

import pytest

from nopos import CONTROLS
from nopos.claims import claim_of
from nopos.shipped import CLAIMS


def shipped_claims():
    """Every marked test of tests/claims, imported as pytest imports it."""
    tests = []
    for path in sorted(CLAIMS.glob("test_*.py")):
        specification = importlib.util.spec_from_file_location(path.stem, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        tests += [value for name, value in vars(module).items() if name.startswith("test_")]
    return tests


def test_every_test_among_the_claims_is_a_claim():
    unmarked = [test.__name__ for test in shipped_claims() if claim_of(test) is None]
    assert unmarked == []


def test_every_control_refutes_some_claim():
    used = {control.name for test in shipped_claims() for control in claim_of(test).refuted_by}
    assert used == {control.name for control in CONTROLS}


@pytest.mark.parametrize("test", shipped_claims(), ids=lambda test: test.__name__)
def test_a_claim_fits_fifteen_lines(test):
    (function,) = ast.parse(inspect.getsource(test)).body
    assert isinstance(function, ast.FunctionDef)
    first = function.body[1].lineno  # after the docstring
    assert function.end_lineno - first + 1 <= 15
