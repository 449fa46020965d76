"""What every test here runs under: the claims' plugin, and hypothesis without deadlines, derandomised in CI."""

from __future__ import annotations

import importlib.util
import os

pytest_plugins = [
    "nopos.pytest_plugin",
    "fixtures.micro",
    "fixtures.command",
    "fixtures.claim_sessions",
    "fixtures.shipped_claims",
    "pytester",
]

if importlib.util.find_spec("hypothesis"):  # the claims run without the `test` extra
    from hypothesis import settings

    settings.register_profile("nopos", deadline=None, derandomize=os.environ.get("CI", "") not in ("", "0", "false"))
    settings.load_profile("nopos")
