"""One word for one thing: the field's word, which docs/glossary.md has, and no private one beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATTERNS = (
    "*.md",
    "conftest.py",
    "docs/*.md",
    "docs/*.py",
    "fixtures/*.json",
    "fixtures/*.md",
    "fixtures/*.py",
    "nopos/**/*.py",
    "tests/**/*.md",
    "tests/**/*.py",
)


@dataclass(frozen=True)
class Private:
    """A word that is not to be used, but where it has another meaning."""

    word: str
    """As a regular expression."""
    say: str
    """The word to use instead."""
    rightly_in: tuple[str, ...] = ()
    """Files and folders that use it in that other meaning."""


OLD_NAMES = "CHANGELOG.md"
"""It has what there was under its name of then."""
ON_DISK = (
    "nopos/claims/",
    "nopos/storage/",
    "nopos/cli.py",
    "nopos/verify.py",
    "tests/support/",
    "tests/unit/storage/",
    "tests/unit/test_cli.py",
    "tests/unit/test_verify.py",
)
"""A file has a place."""
OF_A_PROGRAM = ("nopos/storage/", "tests/unit/storage/", "docs/training.md")
"""The cache knows a trainer by a hash of its sources."""

PRIVATE = (
    Private("(?<!__)slots?", "position", (OLD_NAMES,)),
    Private("(?<!in.)(?<!in its.)places?", "position", (OLD_NAMES, *ON_DISK)),
    Private("twins?", "folded model"),
    Private("said", "predicted, recorded or stated"),
    Private("told", "patched, or what is put in"),
    Private("moved", "patched or swapped", (OLD_NAMES, "tests/unit/training/")),
    Private("exchang(?:e|es|ed|ing)", "swap", (OLD_NAMES,)),
    Private("eras(?:e|es|ed|ing)", "which ablation"),
    Private("cut(?!.short|.off)|cuts|cutting", "knock out"),
    Private("rungs?", "evidence", (OLD_NAMES,)),
    Private("rulers?", "probe"),
    Private("lawful", "by the law of dilution"),
    Private("toothless", "a claim that cannot fail"),
    Private("generator=source|source: torch|source = (?:torch|generator)", "rng"),
    Private("(?<!model_bridge.)sources", "loaders", (OLD_NAMES, *OF_A_PROGRAM)),
    Private("steps?.(?:between|over|from.key)", "fall, chord or stage", (OLD_NAMES,)),
)


@cache
def texts() -> dict[str, list[str]]:
    """The lines of every file that speaks to a reader, by its path; its path is the first."""
    paths = {path for pattern in PATTERNS for path in ROOT.glob(pattern)} - {Path(__file__)}
    found = {path.relative_to(ROOT).as_posix(): path.read_text().splitlines() for path in sorted(paths)}
    return {path: [path, *lines] for path, lines in found.items()}


def uses(word: str) -> dict[str, list[str]]:
    """The lines that have a word, by file; a part of a name counts, a part of a word does not."""
    pattern = re.compile(rf"(?<![a-z])(?:{word})(?![a-z])", flags=re.IGNORECASE)
    found = {path: [line for line in lines if pattern.search(line)] for path, lines in texts().items()}
    return {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.say)
def test_the_fields_word_is_used(private):
    used = uses(private.word)
    assert {path: lines for path, lines in used.items() if not path.startswith(private.rightly_in)} == {}
    assert [where for where in private.rightly_in if not any(path.startswith(where) for path in used)] == []
