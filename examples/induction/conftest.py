"""Which models the claims are checked on."""

from nopos import SubjectLoader
from subjects import induction


def pytest_nopos_subjects(config):
    """The model under test."""
    return [SubjectLoader("induction", induction)]
