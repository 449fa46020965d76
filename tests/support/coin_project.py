"""Test-only: a project of one's own, whose subjects are coins and know nothing of this project's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

COIN = """
from contextlib import nullcontext

class Coin:
    def __init__(self, name, heads):
        self.name, self.heads = name, heads

    def solves_the_task(self):
        return True

    def proven_unchanged(self):
        return nullcontext()

    def record(self):
        return {"description": "a coin", "config": {"heads": self.heads}}
"""

CONFTEST = """
from coin import Coin
from nopos.claims.run import SubjectLoader

def pytest_nopos_subjects(config):
    fair = SubjectLoader("fair", lambda: Coin("fair", 0.5))
    return [fair, SubjectLoader("slow", lambda: Coin("slow", 0.5), slow=True)]
"""

CLAIMS = """
from coin import Coin
from nopos.claims.claim import claim
from nopos.claims.control import Control

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

BENT = {"conftest.py": CONFTEST.replace('Coin("fair", 0.5)', 'Coin("fair", 0.7)')}
"""The subject is one on which one of the two claims is false."""

SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["."]
addopts = ["--import-mode=importlib"]
"""

Project = Callable[..., pytest.RunResult]


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    """Run pytest in the project, by default without its slow subject.

    A file is replaced, or added, by `files={name: text}`; an empty text leaves it out.
    """

    def run_project(*options: str, files: Mapping[str, str] | None = None, process: bool = False) -> pytest.RunResult:
        standing = {"coin.py": COIN, "conftest.py": CONFTEST, "pyproject.toml": SETTINGS, "test_claims.py": CLAIMS}
        for name, text in (standing | dict(files or {})).items():
            if text:
                (pytester.path / name).parent.mkdir(parents=True, exist_ok=True)
                (pytester.path / name).write_text(text)
        selected = () if any(option.startswith("-m") for option in options) else ("-mnot slow",)
        run = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
        return run("-pno:cacheprovider", *selected, *options)

    return run_project
