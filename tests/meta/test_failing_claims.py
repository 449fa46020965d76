"""What a claim looks like in pytest that did not come out as it should, in a project whose subjects are coins."""

from __future__ import annotations

import sys

import pytest

from tests.support.coin_project import BENT, CLAIMS


def only_the_claims_text_is_shown(result):
    failures = result.stdout.str().partition("= FAILURES =")[2].partition("\n=====")[0]
    return failures != "" and "nopos/claims" not in failures


@pytest.mark.parametrize("processes", [(), ("-n2",)], ids=["one process", "two processes"])
def test_a_wrong_claim_fails_at_the_line_of_its_comparison(project, processes):
    result = project(*processes, files=BENT, process=bool(processes))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       assert measure("share of heads", subject.heads) < 0.6',
            "E       AssertionError: share of heads: got 0.7, expected < 0.6",
            "test_claims.py:11: AssertionError",
        ]
    )
    assert only_the_claims_text_is_shown(result)


def test_the_summary_says_measurement_got_and_expected_first(project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    got = "share of heads: got 0.7, expected < 0.6"
    lines = project(files=BENT).stdout.lines
    assert f"    the coin is fair: {got}" in lines
    assert f"FAILED test_claims.py::test_the_coin_is_fair[fair] - {got}" in lines


def test_a_comparison_that_no_control_refutes_fails_where_it_stands(project):
    result = project(files={"test_claims.py": CLAIMS.replace("< 0.8", "< 0.95")})
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       assert measure("share of heads", subject.heads) < 0.95',
            "E       AssertionError: cannot tell fair from loaded: 'share of heads' is false on none of them",
            "test_claims.py:16: AssertionError",
        ]
    )


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ('"loaded", 0.9', '"loaded", "x"', ">       assert measure(*) < 0.6"),
        ('Coin("loaded", 0.9)', "1 / 0", ">   LOADED = Control(*"),
    ],
    ids=["measured", "built"],
)
def test_an_error_on_a_control_fails_where_it_was_raised_and_names_the_control(project, old, new, shown):
    claims = CLAIMS.replace(old, new).replace("subject.heads) < 0.6", "0 + subject.heads) < 0.6")
    result = project("-k", "fair", files={"test_claims.py": claims})
    result.stdout.fnmatch_lines([shown, "E * nopos.errors.ClaimError: control loaded: *Error: *; an error is never *"])
    assert only_the_claims_text_is_shown(result)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("subject.weight", ">       assert measure(*weight) < 0.6"),
        ("float('nan') + subject.heads", ">       assert measure(*nan*) < 0.6"),
    ],
    ids=["an error of the body", "a misuse of measure"],
)
def test_what_is_raised_on_the_subject_is_shown_where_it_was_raised(project, body, shown):
    result = project("-k", "fair", files={"test_claims.py": CLAIMS.replace("subject.heads) < 0.6", f"{body}) < 0.6")})
    result.stdout.fnmatch_lines([shown])
    assert only_the_claims_text_is_shown(result)


def test_the_debugger_stops_in_the_claim_on_the_subject_that_failed(project, pytester):
    project(files=BENT)
    asked = b"p subject.name, subject.heads\nq\n"
    result = pytester.run(sys.executable, "-mpytest", "--pdb", "-pno:cacheprovider", "-mnot slow", stdin=asked)
    lines = result.stdout.lines
    assert "(Pdb) ('fair', 0.7)" in lines
    assert any(line.startswith("> ") and line.endswith("test_claims.py(11)test_the_coin_is_fair()") for line in lines)


@pytest.mark.parametrize("where", ["on a control", "while a control is built"])
def test_what_ends_the_session_ends_it_also_on_a_control(project, where):
    leaving = "lambda: pytest.exit('enough')" if where != "on a control" else "lambda: Coin('loaded', 2)"
    claims = "import pytest\n" + CLAIMS.replace('lambda: Coin("loaded", 0.9)', leaving)
    leave = "    if subject.heads > 1:\n        pytest.exit('enough')\n    assert measure"
    result = project(files={"test_claims.py": claims.replace("    assert measure", leave)})
    result.stdout.fnmatch_lines(["*Exit: enough*"])
    result.assert_outcomes()


def test_an_error_of_nopos_on_a_control_is_shown_where_it_was_raised(project):
    torn = """
from nopos import NoposError

class Torn(Coin):
    def __getattribute__(self, name):
        if name == "heads":
            raise NoposError("too many")
        return super().__getattribute__(name)

    def record(self):
        return {}

LOADED"""
    claims = CLAIMS.replace("\nLOADED", torn, 1).replace('Coin("loaded"', 'Torn("loaded"')
    result = project("-k", "fair", files={"test_claims.py": claims})
    shown = ['>           raise NoposError("too many")', "E * control loaded: NoposError: too many; an error is *"]
    result.stdout.fnmatch_lines(shown)
    assert only_the_claims_text_is_shown(result)


def test_a_method_of_a_TestCase_is_no_claim_and_fails(project):
    lines = (
        CLAIMS.partition("@claim")[0]
        + """
import unittest

class TestIt(unittest.TestCase):
    @claim(evidence="behavioural", source="here", refuted_by=[LOADED])
    def test_it(self, subject, measure):
        '''It is.'''
        assert measure("share of heads", subject.heads) < 0.6
"""
    )
    result = project(files={"test_claims.py": lines})
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("INTERNALERROR*")


def test_captured_output_says_which_model_printed_it(project):
    printing = """
    say = subject.heads
    print("on", say)
    print("aside", say, file=sys.stderr)
    assert"""
    claims = "import sys\n" + CLAIMS.replace("\n    assert", printing, 1)
    result = project("-k", "fair", files=BENT | {"test_claims.py": claims})
    result.stdout.fnmatch_lines(
        [
            "*- Captured stdout on fair, call -*",
            "on 0.7",
            "*- Captured stderr on fair, call -*",
            "aside 0.7",
            "*- Captured stdout on loaded, call -*",
            "on 0.9",
            "*- Captured stderr on loaded, call -*",
            "aside 0.9",
        ]
    )
    assert result.stdout.str().count("aside 0.7") == 1
