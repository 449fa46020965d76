from __future__ import annotations

import os

import pytest

from nopos.errors import StorageError
from nopos.storage import files


def test_a_place_that_cannot_be_written_is_one_line(file_in_the_way):
    for write in (
        lambda: files.write_atomically(file_in_the_way, b"x"),
        lambda: files.require_writable(file_in_the_way),
    ):
        with pytest.raises(StorageError, match="cannot be written") as caught:
            write()
        assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    files.write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_and_never_written_over(tmp_path, events):
    path = tmp_path / "ledger.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert events == ["flush file", "name ledger.json", "flush folder"]
    assert path.read_bytes() == b"new"


def test_equal_objects_have_equal_bytes_and_a_number_that_is_not_finite_has_none():
    assert files.json_bytes({"a": [1.5]}) == b'{\n "a": [\n  1.5\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_bytes({"a": float("nan")})
