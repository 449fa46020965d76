"""The machinery of claims serves any model: it knows none, and runs without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.coin_project import CONFTEST

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


def test_a_project_of_ones_own_names_its_subjects_by_the_hook_alone(project):
    result = project()
    result.assert_outcomes(passed=2, deselected=2)
    result.stdout.fnmatch_lines(["fair (a coin)", "*false on loaded (broken)", "*2 of 2 claims came out as expected"])


NO_SUBJECT = "nopos: no provider names a subject; implement pytest_nopos_subjects in conftest.py"


@pytest.mark.parametrize("provider", ["", "def pytest_nopos_subjects(config):\n    return []"], ids=["none", "empty"])
def test_claims_without_a_subject_are_one_line_and_other_tests_run(project, provider):
    conftest = {"conftest.py": f"import pytest\n{provider}"}
    result = project(files=conftest)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {NO_SUBJECT}"])
    project(files=conftest | {"test_claims.py": "def test_that_is_no_claim():\n    pass"}).assert_outcomes(passed=1)


def test_claims_without_a_subject_are_an_error_and_no_crash_under_xdist(project):
    result = project("-n1", files={"conftest.py": "import pytest"}, process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([NO_SUBJECT])
    result.stdout.no_fnmatch_line("INTERNALERROR*")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('SubjectLoader("slow"', 'SubjectLoader("fair"', "fair: is named twice; name each model once"),
        ("    return [", "    raise ConfigError('there is no coin')\n    return [", "there is no coin"),
        (
            "return [fair,",
            "return (one for one in ()) or [fair,",
            "pytest_nopos_subjects gives <generator *>; *",
        ),
        ("return [fair,", "return 'fair' or [fair,", "pytest_nopos_subjects gives 'fair'; it must give a list of *"),
        ('lambda: Coin("fair", 0.5)', "'fair'", "fair: load is 'fair'; give the function that makes the subject"),
    ],
    ids=["two of one name", "an error of its own", "no list", "a text", "no function"],
)
def test_what_a_provider_names_wrongly_is_one_line(project, old, new, message):
    result = project(files={"conftest.py": "from nopos.errors import ConfigError\n" + CONFTEST.replace(old, new)})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: nopos: {message}"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Coin("fair"', 'Coin("unfair"', "fair: its loader gives a model called 'unfair'; give both one name"),
        (
            'lambda: Coin("fair", 0.5)',
            "object",
            "fair: its loader gives a value of type object; it must give a subject, as ModelSubject is",
        ),
        ('lambda: Coin("fair", 0.5)', "lambda: 1 / 0", "ZeroDivisionError: division by zero"),
    ],
    ids=["of another name", "no subject", "raises"],
)
def test_a_loader_that_fails_is_the_reason_of_its_claims(project, old, new, message):
    result = project(files={"conftest.py": CONFTEST.replace(old, new)})
    result.assert_outcomes(errors=2, deselected=2)
    result.stdout.fnmatch_lines([f"  * setup failed: {message}*"])
    assert "During handling" not in result.stdout.str()
