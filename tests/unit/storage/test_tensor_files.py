from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from nopos.errors import CheckpointError, StorageError
from nopos.storage import tensor_files

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    tensor_files.write_checkpoint(path, TENSORS, {"seed": 3})
    return path


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, crater):
        self.crater = crater

    def __reduce__(self):
        return (os.mkdir, (str(self.crater),))


def test_what_is_written_is_read(weights):
    tensors, manifest, digest = tensor_files.read_checkpoint(weights)
    assert {name: value.tolist() for name, value in tensors.items()} == {k: v.tolist() for k, v in TENSORS.items()}
    assert manifest["seed"] == 3
    assert manifest["weights"] == {"bytes": weights.stat().st_size, "sha256": digest}
    assert sorted(path.name for path in weights.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_equal_tensors_have_equal_bytes_and_a_transposed_one_is_stored_as_it_reads():
    transposed = {"a": torch.arange(6.0).reshape(3, 2).T}
    assert tensor_files.serialise(transposed) == tensor_files.serialise({"a": transposed["a"].contiguous()})


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_saved_by_torch_is_read(tmp_path, suffix):
    torch.save(TENSORS, tmp_path / f"model{suffix}")
    tensors, manifest, _ = tensor_files.read_checkpoint(tmp_path / f"model{suffix}")
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert manifest is None


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def lose_the_manifest(path):
    tensor_files.manifest_path(path).unlink()


def empty(path):
    path.write_bytes(b"")


def garble_the_header(path):
    path.write_bytes(b"\xff" * 64)


def garble_the_manifest(path):
    tensor_files.manifest_path(path).write_text("{")


def replace_the_manifest(path):
    tensor_files.manifest_path(path).write_text("[]")


def forget_the_digest(path):
    tensor_files.manifest_path(path).write_text('{"seed": 3}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "bytes; its manifest records"),
        (flip_a_bit, "its SHA-256 is not the one that its manifest records"),
        (lose_the_manifest, "has no manifest model.json; its writing was never finished"),
        (empty, "is not a whole safetensors file"),
        (garble_the_header, "is not a whole safetensors file"),
        (garble_the_manifest, "model.json: is not a manifest"),
        (replace_the_manifest, "it must be a JSON object"),
        (forget_the_digest, "does not record the length and SHA-256"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_that_names_the_file(weights, damage, message):
    damage(weights)
    with pytest.raises(CheckpointError) as caught:
        tensor_files.read_checkpoint(weights)
    assert message in str(caught.value)
    assert str(weights.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_another_ending_have_messages_of_their_own(tmp_path):
    for path, message in (
        (tmp_path / "none.safetensors", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "model.bin", "ends in .bin"),
        (tmp_path / "model", "ends in nothing"),
        (tmp_path / ("long" * 100), "ends in nothing"),
        (tmp_path / f"{'long' * 100}.pt", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tensor_files.read_checkpoint(path)


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.safetensors"])
def test_code_in_a_pickle_is_never_executed(tmp_path, name):
    crater = tmp_path / "crater"
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": Bomb(crater)}))
    with pytest.raises(CheckpointError):
        tensor_files.read_checkpoint(path)
    torch.save({"a": Bomb(crater)}, path)
    with pytest.raises(CheckpointError):
        tensor_files.read_checkpoint(path)
    assert not crater.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {1: torch.ones(1)}, torch.ones(3)])
def test_a_pickle_of_something_else_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="a state dict is needed"):
        tensor_files.read_checkpoint(tmp_path / "model.pt")


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint_or_an_error(tmp_path):
    """`kill -9` while the same two checkpoints are written over and over."""
    path = tmp_path / "model.safetensors"
    code = (
        "import torch; from pathlib import Path; from nopos.storage import tensor_files\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for value in (1.0, 2.0):\n"
        "        tensors = {'a': torch.full((50_000,), value)}\n"
        f"        tensor_files.write_checkpoint(Path({str(path)!r}), tensors, {{'value': value}})\n"
    )
    for delay in (0.02, 0.05, 0.08):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(delay)
            writer.kill()
        try:
            tensors, manifest, _ = tensor_files.read_checkpoint(path)
        except CheckpointError:
            continue
        assert (tensors["a"] == manifest["value"]).all()


def test_a_checkpoint_that_cannot_be_written_is_one_line(file_in_the_way):
    with pytest.raises(StorageError, match="cannot be written") as caught:
        tensor_files.write_checkpoint(file_in_the_way, TENSORS, {})
    assert "\n" not in str(caught.value)


def test_the_manifest_is_the_commit_record_and_everything_is_flushed(tmp_path, events):
    tensor_files.write_checkpoint(tmp_path / "model.safetensors", TENSORS, {})
    assert events == [
        "flush file",
        "flush file",
        "remove model.json",
        "name model.safetensors",
        "flush folder",
        "name model.json",
        "flush folder",
    ]


def test_a_full_disk_costs_no_older_checkpoint(weights, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        tensor_files.write_checkpoint(weights, {"a": torch.zeros(2)}, {})
    tensors, manifest, _ = tensor_files.read_checkpoint(weights)
    assert manifest["seed"] == 3
    assert sorted(tensors) == ["a", "b"]
    assert len(list(weights.parent.iterdir())) == 2


def test_another_projects_file_may_lie_beside_another_projects_json(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"n_layers": 2}')
    tensors, manifest, _ = tensor_files.read_checkpoint(tmp_path / "model.safetensors")
    assert manifest is None
    assert sorted(tensors) == ["a", "b"]


def test_a_manifest_is_readable_json(weights):
    assert json.loads(tensor_files.manifest_path(weights).read_text())["seed"] == 3
