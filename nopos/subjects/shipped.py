"""Where the claims and the models that ship with nopos lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from nopos.claims.claim import Claim, claim_of
from nopos.errors import ClaimError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = (_PACKAGE / "_fixtures").is_dir()

FOLDER = "tests/claims"
"""Of the claims in a checkout, and in their ids wherever they are run from."""
CLAIMS = _PACKAGE / "_claims" if _INSTALLED else _PACKAGE.parent / FOLDER
FIXTURES = _PACKAGE / "_fixtures" if _INSTALLED else _PACKAGE.parent / "fixtures"

CHECKING = ("claims", "model", "storage", "methods", "mechanism", "subjects")
"""The rooms of the package that a claim runs when it is checked."""

REFERENCE = "reference"
"""The name of the committed no-position model."""


def checkpoint_path(name: str) -> Path:
    """The weights of a shipped model: `reference`, or a trained control."""
    return FIXTURES / "checkpoints" / f"{name}.safetensors"


def shipped_claims() -> tuple[Claim, ...]:
    """Every claim that ships, in the order of the files.

    Raises:
        ClaimError: a test among them is no claim, or two have one name.
    """
    return claims_in(CLAIMS)


def checking_hash() -> str:
    """16 hex digits that stand for the claims, the controls and every module that runs when they are checked."""
    digest = hashlib.sha256()
    rooms = (path for room in CHECKING for path in (_PACKAGE / room).rglob("*.py"))
    controls = (FIXTURES / "checkpoints").glob("*.safetensors")
    for path in (*sorted(CLAIMS.glob("*.py")), *sorted(rooms), *sorted(controls)):
        digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@cache
def claims_in(folder: Path) -> tuple[Claim, ...]:
    """Every claim of a folder's `test_*.py`, in the order of the files; the files are imported once.

    Raises:
        ClaimError: a test among them is no claim, or two have one name.
    """
    claims: list[Claim] = []
    for path in sorted(folder.glob("test_*.py")):
        specification = importlib.util.spec_from_file_location(path.stem, path)
        if specification is None or specification.loader is None:
            raise ClaimError(f"{path}: cannot be imported; it must be a Python file")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        for name, test in vars(module).items():
            if name.startswith("test_"):
                claim = claim_of(test)
                if claim is None:
                    raise ClaimError(f"{path}: {name} is no claim; mark it with @claim")
                claims.append(replace(claim, id=f"{FOLDER}/{claim.id}"))
    _require_distinct(claims)
    return tuple(claims)


def _require_distinct(claims: Sequence[Claim]) -> None:
    """The tables of bounds and mutants know a claim by its name alone."""
    first: dict[str, Claim] = {}
    for one in claims:
        if one.name in first:
            raise ClaimError(f"two claims are called {one.name}; rename one ({first[one.name].where}, {one.where})")
        first[one.name] = one
