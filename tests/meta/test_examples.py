"""The examples, as their readers run them: each in a copy of its folder, away from this project."""

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
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/conftest.py"))
ANOTHER_LIBRARY, INDUCTION = ROOT / "examples" / "another_library", ROOT / "examples" / "induction"
PUBLIC = {"claim", "Control", "ModelSubject", "NotMeasurableError", "SubjectLoader"}
"""The names that docs/your-own-model.md documents for a project of one's own, as far as the examples need them."""


def copied(example, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "trained")
    return Path(shutil.copytree(example, tmp_path / "copy", ignore=ignored))


def printed_by_pytest(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return " ".join(ran.stdout.split())


def names(path):
    """Module and name of all that a file imports from nopos."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nopos":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "nopos")


def test_there_are_two():
    assert [path.name for path in EXAMPLES] == ["another_library", "induction"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_it_imports_public_names_alone_and_its_conftest_is_short(example):
    imported = {name for path in example.glob("*.py") for name in names(path)}
    assert {"claim", "Control", "ModelSubject", "SubjectLoader"} <= {name for _, name in imported}
    assert [name for name in imported if name[0] != "nopos" or name[1] not in PUBLIC] == []
    conftest = (example / "conftest.py").read_text()
    assert len(conftest.splitlines()) <= 15
    assert "pytest_plugins" not in conftest


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_its_claims_hold_and_its_README_says_what_is_printed(example, tmp_path):
    output = printed_by_pytest(copied(example, tmp_path))
    (shown,) = [block for block in (example / "README.md").read_text().split("```") if "came out as expected" in block]
    assert re.search(r"\d of \d claims came out as expected", shown)[0] in output
    lines = [re.split(r"  |[<>]", line.strip())[0] for line in shown.splitlines() if "sha256" not in line]
    assert [text for text in lines if text not in output and " passed in " not in text] == []


BOUNDS_OF_TWO_SEEDS = """
import make_bounds
from training import Recipe
make_bounds.FITTING, make_bounds.JUDGING = range(1, 2), range(2, 3)
make_bounds.Recipe = lambda seed: Recipe(seed, steps=3)
make_bounds.main()
"""


def rows_of(table):
    """Cells of each comparison, by its name and bound."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row[2:] for row in rows if row[1].startswith(("<", ">"))}


@pytest.mark.slow
def test_the_bounds_are_made_of_all_seeds_and_of_the_committed_model(tmp_path):
    """Of two seeds that have hardly been trained, so that the bounds do not hold on them and the script says so."""
    folder, committed = copied(INDUCTION, tmp_path), rows_of((INDUCTION / "bounds.md").read_text())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BOUNDS_OF_TWO_SEEDS]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "AssertionError: share of answers right: the bound lies too near to the worst seed" in ran.stderr
    assert sorted(path.name for path in (folder / "trained").iterdir()) == ["1.safetensors", "2.safetensors"]
    made = rows_of((folder / "bounds.md").read_text())
    assert made.keys() == committed.keys()
    for bound, (model_under_test, mean, spread, _, held, controls) in made.items():
        assert float(model_under_test) == pytest.approx(float(committed[bound][0]), abs=1e-3)
        assert mean == spread  # of one seed
        assert held in ("0 of 1", "1 of 1")
        assert "untrained" in controls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "name", "measured"),
    [
        ("without_mask", "no causal mask", "largest change of an earlier probability"),
        ("two_tokens", "two tokens embedded", "accuracy without attention one back"),
        ("untrained", "untrained", "accuracy without attention two back"),
    ],
)
def test_a_claim_is_refuted_where_its_control_is_the_subject(tmp_path, builder, name, measured):
    folder = copied(ANOTHER_LIBRARY, tmp_path)
    conftest = folder / "conftest.py"
    conftest.write_text(conftest.read_text().replace("trained", builder).replace("small GPT-2", name))
    assert f"refuted: {measured}" in printed_by_pytest(folder)
