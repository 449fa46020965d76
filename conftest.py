"""What every test here runs under: checked shapes, the claims' plugin, and hypothesis derandomised in CI."""

from __future__ import annotations

import importlib.util
import os

import pytest

if importlib.util.find_spec("beartype"):  # the claims run without the `test` extra
    from jaxtyping import install_import_hook

    # For good and before anything imports nopos, so that every shape and type in a signature is checked at each call.
    # An int is a float too, as PEP 484 says and mypy has it.
    install_import_hook("nopos", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

pytest_plugins = [
    "nopos.subjects.plugin",
    "tests.support.micro",
    "tests.support.command",
    "tests.support.disk",
    "tests.support.shapes",
    "tests.support.claim_sessions",
    "tests.support.shipped_claims",
    "pytester",
]

if importlib.util.find_spec("hypothesis"):  # the claims run without the `test` extra
    from hypothesis import settings

    settings.register_profile("nopos", deadline=None, derandomize=os.environ.get("CI", "") not in ("", "0", "false"))
    settings.load_profile("nopos")


def pytest_configure(config: pytest.Config) -> None:
    """The one warning that is no error: the run goes on with a model trained again, and says so.

    It stands here and not in pyproject.toml, for which pytest would import nopos before its shapes can be checked.
    """
    config.addinivalue_line("filterwarnings", "default::nopos.errors.DamagedCacheEntry")
