"""What every test here runs under: the claims' plugin, and hypothesis without deadlines, derandomised in CI."""

from __future__ import annotations

import importlib.util
import os

pytest_plugins = ["nopos.pytest_plugin", "fixtures.micro", "pytester"]

if importlib.util.find_spec("hypothesis"):  # the claims run without the `test` extra
    from hypothesis import settings

    settings.register_profile("nopos", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("nopos")
