"""What pytest loads by itself wherever nopos is installed.

It loads the plugin under the name that a conftest.py may give too, so that a project with the line
`pytest_plugins = ["nopos.claims.plugin"]` still works. `-p no:nopos` turns it off.
"""

from __future__ import annotations

import pytest


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin of claims; a project without claims notices nothing of it."""
    pluginmanager.import_plugin("nopos.claims.plugin")
