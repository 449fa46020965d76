"""The example of another library's model, as its reader runs it: in a copy of its folder, away from this project."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "another_library"


@pytest.fixture
def pytest_in_a_copy(tmp_path):
    """Run pytest in a copy of the folder, on the model of this name that this function of small_gpt2.py builds."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider"]

    def run(builder="trained", name="small GPT-2"):
        conftest = folder / "conftest.py"
        conftest.write_text(conftest.read_text().replace("trained", builder).replace("small GPT-2", name))
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return " ".join(ran.stdout.split())

    return run


@pytest.mark.slow
def test_both_claims_hold_and_the_README_says_what_is_printed(pytest_in_a_copy):
    output = pytest_in_a_copy()
    assert "2 of 2 claims came out as expected" in output
    shown = (EXAMPLE / "README.md").read_text().split("```")[3]
    printed = [re.split(r"  |[<>]", line.strip())[0] for line in shown.splitlines() if "sha256" not in line]
    assert [text for text in printed if text not in output] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "name", "measured"),
    [
        ("without_mask", "no causal mask", "largest change of an earlier probability"),
        ("two_tokens", "two tokens embedded", "accuracy without attention one back"),
        ("untrained", "untrained", "accuracy without attention two back"),
    ],
)
def test_a_claim_is_refuted_where_its_control_is_the_subject(pytest_in_a_copy, builder, name, measured):
    assert f"refuted: {measured}" in pytest_in_a_copy(builder, name)


def test_it_imports_public_names_alone_and_its_conftest_is_short():
    imported = [
        (node.module, alias.name)
        for path in EXAMPLE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module is not None and node.module.startswith("nopos")
    ]
    allowed = {"claim", "Control", "ModelSubject", "NotMeasurableError", "SubjectLoader"}
    assert imported
    assert [one for one in imported if one[0] != "nopos" or one[1] not in allowed] == []
    assert len((EXAMPLE / "conftest.py").read_text().splitlines()) <= 15
