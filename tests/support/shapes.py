"""Test-only: how a test asks for what a signature does not allow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run the test without checks of types and shapes, as users do, to see what they read when they ask for a wrong
    value.
    """
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
