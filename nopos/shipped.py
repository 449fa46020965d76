"""Where the claims and the models that ship with nopos lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = (_PACKAGE / "_fixtures").is_dir()

CLAIMS = _PACKAGE / "_claims" if _INSTALLED else _PACKAGE.parent / "tests" / "claims"
FIXTURES = _PACKAGE / "_fixtures" if _INSTALLED else _PACKAGE.parent / "fixtures"
VERIFY_INI = _PACKAGE / "verify.ini"


def checkpoint_path(name: str) -> Path:
    """The weights of a shipped model: `reference`, or a trained control."""
    return FIXTURES / "checkpoints" / f"{name}.safetensors"
