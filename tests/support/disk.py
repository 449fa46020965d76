"""Test-only pytest fixtures: a place that cannot be written, what happens on disk, files of odd sizes."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage import checkpoints


@pytest.fixture(params=[".safetensors", ".pt"], ids=["ours", "a state dict"])
def odd_sizes(request, tmp_path, tiny_recipe):
    """A file of a model of odd sizes with one layer: ours, which knows its sizes, or a state dict that shows them."""
    config = ModelConfig(n_layers=1, n_heads=2, d_model=10, d_head=5, d_mlp=32, d_vocab=11, n_ctx=9)
    path = tmp_path / f"odd{request.param}"
    if request.param == ".pt":
        torch.save(initial_parameters(config, 0), path)
    else:
        checkpoints.save(checkpoints.train(replace(tiny_recipe, model=config), 0, torch.device("cpu")), path)
    return str(path), config


@pytest.fixture
def one_position(tmp_path):
    """A file of a model that has nothing to predict, and what is to be complained of."""
    path = tmp_path / "one.pt"
    torch.save(initial_parameters(ModelConfig(n_ctx=1), 0), path)
    return str(path), f"{path}: has 1 position; to predict the previous token it needs 2 or more"


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
