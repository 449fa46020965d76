"""What the documents name is there."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests" / "README.md"])


def named_tests(text: str) -> list[tuple[str, str]]:
    """Path and function of every test that a text names as `tests/...py::test_name`."""
    return re.findall(r"\b(tests/[\w/.-]+\.py)::(\w+)", text)


def named_scripts(text: str) -> list[str]:
    """The modules that a text says to run as `python -m fixtures.NAME`."""
    return re.findall(r"\bpython -m (fixtures(?:\.\w+)+)", text)


def linked_files(text: str) -> list[str]:
    """What a text links to beside it."""
    return re.findall(r"\]\(((?!https?:|#)[^)#]+)", text)


def folders() -> list[str]:
    """Every folder of the project that a layout must name: the rooms of nopos/ and tests/, and what is beside them."""
    rooms = [path for name in ("nopos", "tests") for path in (ROOT / name).iterdir() if any(path.glob("*.*"))]
    beside = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "nopos"]
    found = [path.relative_to(ROOT) for path in rooms + beside if path.is_dir() and path.name != "__pycache__"]
    return sorted(f"{path}/" for path in found)


def functions(path: Path) -> set[str]:
    """Names of the functions at the top of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def is_there(path: str, test: str) -> bool:
    return (ROOT / path).is_file() and test in functions(ROOT / path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_script_and_file_that_a_document_names_is_there(document):
    text = document.read_text()
    assert [name for name in named_tests(text) if not is_there(*name)] == []
    assert [name for name in named_scripts(text) if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
    assert [name for name in linked_files(text) if not (document.parent / name).exists()] == []


def test_the_layout_names_every_folder():
    layout = README.read_text().partition("## Layout")[2].partition("\n## ")[0]
    assert {"nopos/claims/", "tests/newcomer/", "fixtures/"} <= set(folders())
    assert [folder for folder in folders() if folder not in layout] == []


def test_every_module_has_a_mirror_or_a_line_that_says_what_tests_it():
    listed = (ROOT / "tests" / "README.md").read_text().partition("## What has no mirror")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`", listed)
    assert [name for name in named if not any((ROOT / folder / name).is_file() for folder in ("nopos", "tests"))] == []
    modules = [path.relative_to(ROOT / "nopos") for path in ROOT.glob("nopos/**/*.py") if path.stem != "__init__"]
    without = [
        path for path in modules if not (ROOT / "tests" / "unit" / path.with_name(f"test_{path.name}")).is_file()
    ]
    assert [str(path) for path in without if str(path) not in named] == []


def test_names_are_found_in_a_text():
    text = "`tests/unit/a_b.py::test_x`, python -m fixtures.make_it, [a](docs/b.md#c) [d](https://e.org/f) [g](#h)"
    assert named_tests(text) == [("tests/unit/a_b.py", "test_x")]
    assert named_scripts(text) == ["fixtures.make_it"]
    assert linked_files(text) == ["docs/b.md"]
    assert not is_there("tests/meta/test_documents.py", "test_x")
    assert not is_there("tests/meta/test_nowhere.py", "test_x")


def test_each_of_the_notebooks_seven_slips_names_its_tests():
    slips = re.split(r"^\d\. ", (ROOT / "docs" / "notebook.md").read_text().partition("## Its slips")[2], flags=re.M)[
        1:
    ]
    assert len(slips) == 7
    assert [number for number, slip in enumerate(slips, 1) if not named_tests(slip)] == []


def test_pre_commit_runs_what_the_one_command_runs():
    command = ROOT / ".ci" / "check"
    assert os.access(command, os.X_OK)
    defaults = re.search(r"set -- (.+)$", command.read_text(), flags=re.M)
    assert defaults is not None
    hooks = re.findall(r"entry: \.ci/check (\w+)$", (ROOT / ".pre-commit-config.yaml").read_text(), flags=re.M)
    assert hooks == defaults[1].split()
