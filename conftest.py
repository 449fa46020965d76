"""What every test here runs under: the claims' plugin, and hypothesis without deadlines, derandomised in CI."""

from __future__ import annotations

import importlib.util
import os

import pytest

pytest_plugins = ["fixtures.micro"]

if importlib.util.find_spec("hypothesis"):  # the claims run without the `test` extra
    from hypothesis import settings

    settings.register_profile("nopos", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("nopos")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains from scratch or takes long")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
