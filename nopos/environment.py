"""The facts of machine and software that numbers depend on, and where the machine keeps what can be made again."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`NOPOS_CACHE_DIR`, or the user's cache folder for nopos."""
    import platformdirs  # here, because who asks for versions alone has no use for it

    named = os.environ.get("NOPOS_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_dir("nopos"))


def environment() -> dict[str, Any]:
    """The facts of machine and software that numbers depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in ("nopos", "torch", "transformer-lens", "numpy", "pytest")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
