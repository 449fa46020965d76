"""The machinery of claims serves any model: it knows none, and runs without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

FOLDER = Path(__file__).parents[2] / "nopos" / "claims"
ALLOWED = ("nopos.claims", "nopos.errors", "nopos.environment", "nopos.storage.files")


def imported(node):
    if isinstance(node, ast.ImportFrom):
        return [node.module if node.module != "nopos" else f"nopos.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_machinery_imports_nothing_of_this_project_but_the_foundation(path):
    names = [name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)]
    ours = [name for name in names if name.startswith(("nopos", "torch", "transformer_lens"))]
    assert [name for name in ours if not name.startswith(ALLOWED)] == []


def test_loading_the_machinery_loads_no_torch():
    modules = [f"nopos.claims.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}\nprint(sorted({{'torch', 'safetensors'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


CONFTEST = """
from contextlib import nullcontext
from nopos.claims.run import SubjectLoader

pytest_plugins = ["nopos.claims.plugin"]

class Coin:
    def __init__(self, name, heads):
        self.name, self.heads = name, heads

    def solves_the_task(self):
        return True

    def proven_unchanged(self):
        return nullcontext()

    def record(self):
        return {"description": "a coin", "config": {"heads": self.heads}}

def pytest_nopos_subjects(config):
    fair = SubjectLoader("fair", lambda: Coin("fair", 0.5))
    return [fair, SubjectLoader("slow", lambda: Coin("slow", 0.5), slow=True)]
"""

CLAIM = """
from nopos.claims.claim import claim
from nopos.claims.control import Control
from conftest import Coin

LOADED = Control("loaded", "a tail", lambda: Coin("loaded", 0.9), "broken")

@claim(evidence="behavioural", source="here", refuted_by=[LOADED], requested="fairness")
def test_the_coin_is_fair(subject, measure):
    '''It is.'''
    assert measure("share of heads", subject.heads) < 0.6

@claim(evidence="behavioural", source="here", refuted_by=[LOADED])
def test_the_coin_has_a_tail(subject, measure):
    '''It has.'''
    assert measure("share of heads", subject.heads) < 0.8
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A project of one's own, with subjects that are no models of this project."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(CLAIM)
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{FOLDER.parents[1]}")
    return lambda *options: pytester.runpytest_subprocess("-pno:cacheprovider", *options)


def test_a_project_of_ones_own_names_its_subjects_by_the_hook_alone(project):
    result = project("-mnot slow")
    result.assert_outcomes(passed=2, deselected=2)
    result.stdout.fnmatch_lines(["fair (a coin)", "*false on loaded (broken)", "*2 of 2 claims came out as expected"])


def test_the_header_names_the_subjects(project):
    assert "nopos: claims are checked on fair, slow" in project("-mnot slow").stdout.lines


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only", "--collect-only", "--fixtures", "--markers"])
def test_a_run_that_is_to_run_nothing_has_nothing_that_was_not_run(project, option):
    result = project(option)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*nopos: what was measured*")


def test_the_XML_of_a_run_says_in_JSON_what_was_claimed_and_measured(project, pytester):
    project("-mnot slow", "--junitxml=run.xml")
    cases = ET.parse(pytester.path / "run.xml").getroot().iter("testcase")
    properties = {case.get("name"): json.loads(case.find(".//property").get("value")) for case in cases}
    fair = properties["test_the_coin_is_fair[fair]"]
    assert (fair["subject"], fair["statement"], fair["verdict"]) == ("fair", "It is.", "holds")
    (measured,) = fair["measurements"]
    assert [measured[part] for part in ("name", "value", "operator", "limit")] == ["share of heads", 0.5, "<", 0.6]
    assert [one["name"] for one in measured["refuted_by"]] == ["loaded"]


def test_the_findings_that_were_requested_are_selected_by_their_marker(project):
    result = project("-mrequested and not slow", "--strict-markers")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["*the coin is fair*"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('SubjectLoader("slow"', 'SubjectLoader("fair"', "*ERROR: nopos: fair: is named twice; name each model once"),
        ("    return [", "    raise ConfigError('there is no coin')\n    return [", "*ERROR: nopos: there is no coin"),
    ],
    ids=["two of one name", "an error of its own"],
)
def test_what_a_provider_objects_to_is_one_line(project, pytester, old, new, message):
    pytester.makeconftest("from nopos.errors import ConfigError\n" + CONFTEST.replace(old, new))
    result = project()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_loader_whose_model_has_another_name_fails_its_tests(project, pytester):
    pytester.makeconftest(CONFTEST.replace('Coin("fair"', 'Coin("unfair"'))
    result = project("-mnot slow")
    result.assert_outcomes(errors=2, deselected=2)
    result.stdout.fnmatch_lines(["*fair: its loader gives a model called 'unfair'; give both one name"])


def test_a_loader_that_gives_no_subject_fails_its_tests_in_one_line(project, pytester):
    pytester.makeconftest(CONFTEST.replace('lambda: Coin("fair", 0.5)', "object"))
    result = project("-mnot slow")
    result.assert_outcomes(errors=2, deselected=2)
    message = "fair: its loader gives a value of type object; it must give a subject, as ModelSubject is"
    result.stdout.fnmatch_lines([message, f"  * setup failed: {message}"])
    assert "During handling" not in result.stdout.str()


def test_what_a_loader_raises_is_the_reason_of_its_claims(project, pytester):
    pytester.makeconftest(CONFTEST.replace('lambda: Coin("fair", 0.5)', "lambda: 1 / 0"))
    result = project("-mnot slow")
    result.assert_outcomes(errors=2, deselected=2)
    result.stdout.fnmatch_lines(["*setup failed: ZeroDivisionError: division by zero*"])


NO_SUBJECT = "nopos: no provider names a subject; implement pytest_nopos_subjects in conftest.py"


@pytest.mark.parametrize("provider", ["", "def pytest_nopos_subjects(config):\n    return []"], ids=["none", "empty"])
def test_claims_without_a_subject_are_one_line_and_other_tests_run(project, pytester, provider):
    pytester.makeconftest(CONFTEST.partition("def pytest_nopos_subjects")[0] + provider)
    result = project()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {NO_SUBJECT}"])
    pytester.makepyfile("def test_that_is_no_claim():\n    pass")
    project().assert_outcomes(passed=1)


def test_claims_without_a_subject_are_an_error_and_no_crash_under_xdist(project, pytester):
    pytester.makeconftest(CONFTEST.partition("def pytest_nopos_subjects")[0])
    result = project("-n1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([NO_SUBJECT])
    result.stdout.no_fnmatch_line("INTERNALERROR*")
