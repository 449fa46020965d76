"""The one hook by which a project names its subjects."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nopos.claims.run import SubjectLoader


@pytest.hookspec
def pytest_nopos_subjects(config: pytest.Config) -> Sequence[SubjectLoader]:  # type: ignore[empty-body]
    """The subjects that the claims are evaluated on; called once in each process, before tests are collected.

    What all implementations return is put together; each name must be there once. Write it in a conftest.py:

        from nopos.claims.run import SubjectLoader

        def pytest_nopos_subjects(config):
            return [SubjectLoader("my model", load=lambda: MyModel(safetensors.torch.load_file("model.safetensors")))]

    where `MyModel` has what `nopos.claims.control.Subject` names. Load a model that the command line names in the
    hook itself, so that a mistake ends the run in one line; leave the others to `load`.

    Raises:
        NoposError: an option that cannot be, or a named model that cannot be loaded.
    """
