"""Test-only pytest fixtures: a place that cannot be written, and what happens on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


@pytest.fixture
def file_in_the_way(tmp_path):
    """Where a folder is needed there is a file: unwritable even for root."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "model.safetensors"


@pytest.fixture
def events(monkeypatch):
    """What happens on disk, in order: files flushed, names given, names taken away, folders flushed."""
    seen = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def note_fsync(descriptor):
        seen.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
        fsync(descriptor)

    def note_replace(self, target):
        seen.append(f"name {target.name}")
        return replace(self, target)

    def note_unlink(self, missing_ok=False):
        if not self.name.endswith(".partial"):
            seen.append(f"remove {self.name}")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(Path, "unlink", note_unlink)
    return seen
