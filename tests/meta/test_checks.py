"""`.ci/check` runs lint, format, types and tests, stops at the first that fails, and knows no others."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / ".ci" / "check"
ALL = ["ruff check .", "ruff format --check .", "mypy", "pytest"]


@pytest.fixture
def check(tmp_path):
    """The command beside tools that only print how they were called; gives its exit code and what they printed."""
    bin_folder, copied = tmp_path / ".venv" / "bin", tmp_path / ".ci" / "check"
    bin_folder.mkdir(parents=True)
    copied.parent.mkdir()
    shutil.copy(CHECK, copied)
    for tool in ("ruff", "mypy", "pytest"):
        script = bin_folder / tool
        script.write_text(f'#!/bin/sh\necho "{tool} $@"\n[ "$FAILING" != {tool} ]\n')
        script.chmod(0o755)

    def run(*arguments: str, failing: str = "") -> tuple[int, list[str]]:
        environment = {**os.environ, "FAILING": failing}
        ended = subprocess.run(
            [copied, *arguments], cwd="/", env=environment, capture_output=True, text=True, check=False
        )
        return ended.returncode, [line.strip() for line in ended.stdout.splitlines() if not line.startswith("===")]

    return run


def test_all_four_run_the_fastest_first(check):
    assert check() == (0, ALL)


def test_those_that_are_named_run(check):
    assert check("types", "lint") == (0, [ALL[2], ALL[0]])


@pytest.mark.parametrize(("failing", "ran"), [("ruff", 1), ("mypy", 3), ("pytest", 4)])
def test_the_first_failure_ends_it(check, failing, ran):
    assert check(failing=failing) == (1, ALL[:ran])


def test_what_is_no_check_is_an_error(check):
    assert check("speed") == (2, [])
