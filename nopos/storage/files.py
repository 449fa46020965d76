"""Files on disk: written whole or not at all, and over nothing but another of their kind. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nopos.errors import StorageError


def sha256(data: bytes) -> str:
    """Hex digest, 64 digits."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes of a file that holds a JSON object; equal objects give equal bytes.

    Raises:
        ValueError: a number is not finite.
    """
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for less than all of it, even after a crash.

    Raises:
        StorageError: the folder or the file cannot be written; what was there stays, and nothing is left behind.
    """
    with partial_file(path, data) as partial:
        partial.replace(path)
        sync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise StorageError unless files can be made in the folder, which is made if need be: ask before the long work."""
    probe = folder / f".{uuid.uuid4().hex}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}); give a place that can") from None


def require_place(path: Path, *, what: str, holding: set[str]) -> None:
    """Raise StorageError unless a JSON file can be written there, over nothing but another of its kind.

    The folder must be there: a name with a typing error in it must not make one.

    Args:
        path: the file to be written later: ask before the long work.
        what: the kind, for the message.
        holding: keys by which a file of that kind is known.
    """
    if path.is_dir() or not path.name:
        raise StorageError(f"{path}: is a folder; give the name of a file for the {what}")
    if not path.parent.exists():
        raise StorageError(f"{path.parent}: no such folder; make it first, or give another place for the {what}")
    require_writable(path.absolute().parent)
    if path.exists():
        try:
            of_its_kind = holding <= json.loads(path.read_bytes()).keys()
        except (OSError, ValueError, AttributeError):
            of_its_kind = False
        if not of_its_kind:
            raise StorageError(f"{path}: exists and is not a {what}; give another name, or remove it first")


@contextmanager
def partial_file(path: Path, data: bytes) -> Iterator[Path]:
    """The data in a file beside the path, safely on disk, to be renamed; it is gone afterwards if it was not."""
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error}); give a place that can") from None


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, so that a rename survives a crash."""
    if os.name == "nt":
        return  # Windows cannot open a folder to flush it
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
