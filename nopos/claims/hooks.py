"""The one hook by which a project names its subjects."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nopos.claims.run import SubjectLoader


@pytest.hookspec(firstresult=True)
def pytest_nopos_subjects(config: pytest.Config) -> Sequence[SubjectLoader] | None:
    """The subjects on which the claims of a folder are evaluated.

    Write it in the folder's conftest.py:

        from nopos import SubjectLoader

        def pytest_nopos_subjects(config):
            return [SubjectLoader("my model", load_my_model)]

    where `load_my_model()` gives a subject, such as `nopos.ModelSubject("my model", ...)`. It counts for the claims in
    that folder and below, and before what the folders above and the plugins name; None leaves it to these. It is
    called once in each process, when the run starts or when claims below are collected. Leave what takes time to
    `load`; but load a model here that the command line names, so that a mistake ends the run in one line.

    Raises:
        NoposError: an option that cannot be, or a named model that cannot be loaded.
    """
