from __future__ import annotations

import errno
import json
import os
import re

import pytest

from nopos.claims.ledger import SCHEMA
from nopos.errors import StorageError
from nopos.model import recipes
from nopos.populations.folder import INDEX, Folder, opened
from nopos.populations.settings import Model, settings_of
from nopos.storage import checkpoints

IDENTITY = {"asked": {"seeds": "0-3", "settings": {"sprint": {"train": {"steps": 200}}}}, "made_by": {"torch": "2"}}


def open_folder(path, identity=IDENTITY):
    return opened(path, identity, command="nopos sweep", environment={})


def test_the_same_sweep_goes_on_in_its_folder(tmp_path):
    with open_folder(tmp_path / "new" / "sweep") as folder:
        folder.note({"model": "a", "event": "trained"})
        identity = (folder.path / "sweep.json").read_bytes()
    with open_folder(tmp_path / "new" / "sweep") as folder:
        assert folder.events() == [{"model": "a", "event": "trained"}]
        assert (folder.path / "sweep.json").read_bytes() == identity


@pytest.mark.parametrize(
    ("identity", "difference"),
    [
        ({**IDENTITY, "asked": {**IDENTITY["asked"], "seeds": "0-4"}}, "its seeds is 0-3, not 0-4"),
        ({**IDENTITY, "made_by": {"torch": "3"}}, "its torch is 2, not 3"),
        ({**IDENTITY, "made_by": {"torch": "2", "claims": "1f"}}, "its claims is none, not 1f"),
        (
            {**IDENTITY, "asked": {"seeds": "0-3", "settings": {"sprint": {"train": {"steps": 300}}}}},
            "its setting sprint train steps is 200, not 300",
        ),
        (
            {**IDENTITY, "asked": {"seeds": "0-3", "settings": {**IDENTITY["asked"]["settings"], "other": {}}}},
            "its setting other is none, not one",
        ),
    ],
)
def test_the_folder_of_another_sweep_is_refused_in_one_line(tmp_path, identity, difference):
    with open_folder(tmp_path):
        pass
    message = f"{tmp_path}: is the folder of another sweep ({difference}); give another"
    with pytest.raises(StorageError, match=re.escape(message)), open_folder(tmp_path, identity):
        pass


def test_a_folder_with_other_files_is_refused_and_nothing_is_written_there(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    message = f"{tmp_path}: holds thesis.tex and is no sweep's folder; give an empty or a new one"
    with pytest.raises(StorageError, match=re.escape(message)), open_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 1, "asked": 3, "made_by": {}}'])
def test_a_damaged_identity_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(StorageError, match=r"sweep.json: is not what a sweep is known by"), open_folder(tmp_path):
        pass


def test_a_folder_of_another_schema_is_refused_in_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 0, **IDENTITY}))
    with pytest.raises(StorageError, match="has schema 0, and this version writes 1"), open_folder(tmp_path):
        pass


def test_a_file_where_the_folder_is_to_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="file: is a file; give the name of a folder"),
        open_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(StorageError, match="cannot be written"), open_folder(tmp_path / "file" / "sweep"):
        pass


def test_a_second_driver_is_refused_in_one_line_and_the_next_is_not(tmp_path):
    with open_folder(tmp_path):
        message = f"{tmp_path}: another nopos sweep is at work on it; wait for its end"
        with pytest.raises(StorageError, match=re.escape(message)), open_folder(tmp_path):
            pass
    with open_folder(tmp_path):
        pass


def test_what_a_killed_driver_was_writing_is_removed(tmp_path):
    with open_folder(tmp_path):
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / ".a.safetensors.1f.partial").write_text("")
    with open_folder(tmp_path):
        assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("torn", ['{"model": "b", "ev', '{"model": "b", "event": "trained"}'])
def test_a_torn_last_line_of_the_index_is_dropped_and_the_next_begins_on_a_line_of_its_own(tmp_path, torn):
    with open_folder(tmp_path) as folder:
        folder.note({"model": "a", "event": "trained"})
    with (tmp_path / INDEX).open("a") as file:
        file.write(torn)
    with open_folder(tmp_path) as folder:
        assert [event["model"] for event in folder.events()] == ["a"]
        folder.note({"model": "c", "event": "trained"})
        assert [event["model"] for event in folder.events()] == ["a", "c"]


@pytest.mark.parametrize(
    "line",
    ["no JSON", "3", "{}", '{"model": 1, "event": "trained"}', '{"model": "a", "event": "failed", "final": true}'],
)
def test_a_damaged_line_within_the_index_is_named(tmp_path, line):
    (tmp_path / INDEX).write_text(f'{{"model": "a", "event": "trained"}}\n{line}\n')
    with pytest.raises(StorageError, match=r"index.jsonl: line 2 is no event; remove that line"):
        Folder(tmp_path).events()


def test_an_index_that_is_a_folder_and_a_name_that_is_too_long_are_one_line(tmp_path):
    (tmp_path / INDEX).mkdir()
    with pytest.raises(StorageError, match=r"index.jsonl: cannot be read and mended \(Is a directory\)"):
        Folder(tmp_path).events()
    with pytest.raises(StorageError, match="cannot be looked into"), open_folder(tmp_path / ("a" * 300)):
        pass


def test_the_controls_of_an_earlier_run_stay_and_a_damaged_file_of_them_is_written_anew(tmp_path):
    folder, order = Folder(tmp_path), ["first", "second", "third"]
    folder.add_controls({"second": {"n": 2}, "third": {"n": 3}}, order=order)
    folder.add_controls({"first": {"n": 1}, "third": {"n": 4}}, order=order)
    found = json.loads((tmp_path / "controls.json").read_text())
    assert list(found["sizes"].items()) == [("first", {"n": 1}), ("second", {"n": 2}), ("third", {"n": 4})]
    for damaged in ("{", "[]", json.dumps(found | {"schema": SCHEMA - 1}), f'{{"schema": {SCHEMA}, "sizes": 3}}'):
        (tmp_path / "controls.json").write_text(damaged)
        folder.add_controls({"first": {"n": 5}}, order=order)
        assert json.loads((tmp_path / "controls.json").read_text())["sizes"] == {"first": {"n": 5}}


def test_an_event_is_on_disk_before_the_next_thing_is_done(tmp_path, events):
    Folder(tmp_path).note({"model": "a", "event": "trained"})
    assert events == ["flush file"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"index.jsonl: cannot be written \(No space left on device\)"):
        Folder(tmp_path).note({"model": "a", "event": "trained"})


@pytest.fixture
def tiny_model(tiny_recipe, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    (setting,) = settings_of(["tiny"], {})
    return Model(setting=setting, seed=0)


@pytest.fixture
def saved(tmp_path, tiny_recipe, tiny_model):
    import torch

    folder, trained = Folder(tmp_path), checkpoints.train(tiny_recipe, 0, torch.device("cpu"))
    assert folder.trained(tiny_model) is None
    folder.save(tiny_model, checkpoints.serialised(trained))
    return folder, trained


def test_a_model_is_trained_when_both_its_files_are_whole(saved, tiny_model):
    folder, trained = saved
    assert folder.trained(tiny_model).sha256 == trained.sha256
    weights = folder.weights(tiny_model)
    manifest = weights.with_suffix(".json").read_bytes()
    weights.with_suffix(".json").unlink()
    assert folder.trained(tiny_model) is None  # its writing was never finished
    weights.with_suffix(".json").write_bytes(manifest)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "SHA-256 is not the one that its manifest records" in folder.trained(tiny_model)


def test_a_model_under_the_name_of_another_is_not_taken_for_it(saved, tiny_model):
    folder, _ = saved
    other = Model(setting=tiny_model.setting, seed=1)
    for ending in (".safetensors", ".json"):
        folder.weights(tiny_model).with_suffix(ending).rename(folder.weights(other).with_suffix(ending))
    assert folder.trained(other) == f"{folder.weights(other)}: is of another model than its name says"


def test_a_model_is_checked_when_a_whole_ledger_of_its_weights_lies_there(tmp_path, tiny_model):
    folder = Folder(tmp_path)
    content = {"schema": SCHEMA, "complete": True, "subjects": [{"sha256": "1f", "claims": []}]}
    assert folder.checked(tiny_model, "1f") is None
    for change, whole in [({}, True), ({"complete": False}, False), ({"schema": 2}, False), ({"subjects": []}, False)]:
        folder.write(folder.ledger(tiny_model), content | change)
        assert (folder.checked(tiny_model, "1f") is not None) == whole, change
        assert folder.checked(tiny_model, "2f") is None
    without = {"schema": SCHEMA, "complete": True, "subjects": [{"sha256": "1f"}]}
    folder.write(folder.ledger(tiny_model), without)
    assert folder.checked(tiny_model, "1f") is None
    folder.write(folder.ledger(tiny_model), f'{{"schema": {SCHEMA}, "comp')
    assert folder.checked(tiny_model, "1f") is None
