"""Test-only pytest fixtures: a place that cannot be written, what happens on disk, files of odd sizes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage import checkpoints


@dataclass(frozen=True)
class OddSizes:
    """Checkpoints of other sizes than the claims are about, and what is wrong with the first."""

    files: tuple[str, ...]
    problem: str


@pytest.fixture(params=[".safetensors", ".pt"], ids=["ours", "a state dict"])
def odd_sizes(request, tmp_path, tiny_recipe):
    """Two files of several odd sizes each: of ours, which know their sizes, or state dicts, whose shapes show them."""
    sizes = {"d_vocab": 11, "n_layers": 1, "d_mlp": 32}
    paths = [tmp_path / f"{name}{request.param}" for name in ("odd", "odder")]
    for path, more in zip(paths, ({}, {"n_ctx": 9}), strict=True):
        config = ModelConfig(**sizes | more)
        if request.param == ".pt":
            torch.save(initial_parameters(config, 0), path)
        else:
            checkpoints.save(checkpoints.train(replace(tiny_recipe, model=config), 0, torch.device("cpu")), path)
    found, right = "n_layers 1, d_mlp 32, d_vocab 11", "n_layers 2, d_mlp 256, d_vocab 300"
    return OddSizes(
        tuple(str(path) for path in paths), f"{paths[0]}: is a model with {found}; the claims are about {right}"
    )


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
