from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch

from nopos.environment import cache_folder
from nopos.errors import DamagedCacheEntry, StorageError, TrainingError
from nopos.storage import cache, checkpoints, tensor_files
from nopos.storage.cache import forget, load_or_train, load_or_train_each
from nopos.storage.checkpoints import train
from nopos.training import fused, trainer
from tests.support.micro import same

CPU = torch.device("cpu")


def test_training_that_diverges_is_an_error_and_nothing_is_cached(own_cache, tiny_recipe):
    wild = replace(tiny_recipe, train=replace(tiny_recipe.train, steps=20, peak_lr=1e30))
    with pytest.raises(TrainingError, match=r"training tiny, seed 0: the loss is (nan|inf) at step \d+"):
        load_or_train(wild, 0, CPU)
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock" and path.name != "kernels"] == []


def test_the_cache_is_where_the_environment_says(own_cache, monkeypatch):
    assert cache_folder() == own_cache
    monkeypatch.delenv("NOPOS_CACHE_DIR")
    assert cache_folder().name == "nopos"


def test_a_model_is_trained_once_and_then_found(own_cache, tiny_recipe, monkeypatch):
    first = load_or_train(tiny_recipe, 0, CPU)
    monkeypatch.setattr(checkpoints, "train_together", None)  # calling it would fail
    second = load_or_train(tiny_recipe, 0, CPU)
    assert same(first, second)
    assert first.sha256 == second.sha256


def test_what_decides_the_weights_decides_the_entry(own_cache, tiny_recipe, monkeypatch):
    load_or_train(tiny_recipe, 0, CPU)
    longer = replace(tiny_recipe, train=replace(tiny_recipe.train, steps=4))
    wider = replace(tiny_recipe, model=replace(tiny_recipe.model, d_mlp=5))
    for recipe, seed in ((tiny_recipe, 1), (longer, 0), (wider, 0)):
        load_or_train(recipe, seed, CPU)
    assert len(list(own_cache.glob("*.json"))) == 4
    monkeypatch.setattr(checkpoints, "sources_hash", lambda: "other sources")
    load_or_train(tiny_recipe, 0, CPU)
    assert len(list(own_cache.glob("*.json"))) == 5
    names = {
        cache._entry_name(tiny_recipe, 0, device, kernel)
        for device in (CPU, torch.device("cuda"))
        for kernel in ("fused", "torch")
    }
    assert len(names) == 4


def test_the_number_of_threads_decides_the_entry_where_it_decides_the_bits(own_cache, tiny_recipe, monkeypatch):
    def names(kernel):
        found = set()
        for threads in (1, 2):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found.add(cache._entry_name(tiny_recipe, 0, CPU, kernel))
        return found

    assert len(names("fused")) == 1
    assert len(names("torch")) == 2


def test_every_source_that_training_runs_is_in_the_key():
    """Found by importing the trainer in a fresh process: a module that it loads and the key forgets would hide."""
    code = (
        "import sys, nopos.storage.checkpoints as c\n"
        "names = {n.removeprefix('nopos.').replace('.', '/') + '.py' for n in sys.modules if n.startswith('nopos.')}\n"
        "print(sorted(names - set(c._TRAINING_SOURCES)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = ["model.py", "storage.py", "training.py"]
    storage = ["checkpoints.py", "files.py", "state_dicts.py", "tensor_files.py"]
    no_part_of_training = ["environment.py", "errors.py", *packages, *(f"storage/{name}" for name in storage)]
    assert result.stdout.strip() == str(sorted(no_part_of_training))


def damaged_entry(own_cache, tiny_recipe):
    load_or_train(tiny_recipe, 0, CPU)
    (weights,) = own_cache.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    return weights


def test_a_damaged_entry_is_set_aside_and_trained_again_with_one_warning(own_cache, tiny_recipe):
    weights = damaged_entry(own_cache, tiny_recipe)
    with pytest.warns(DamagedCacheEntry, match="it was set aside, and the model trained again") as caught:
        again = load_or_train(tiny_recipe, 0, CPU)
    assert len(caught) == 1
    assert str(weights) in str(caught[0].message)
    assert same(again, train(tiny_recipe, 0, CPU))
    assert sorted(path.suffix for path in own_cache.iterdir()) == [
        ".damaged",
        ".damaged",
        ".json",
        ".lock",
        ".safetensors",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_or_train(tiny_recipe, 0, CPU)


def test_a_warning_that_is_an_error_comes_after_the_model_is_mended(own_cache, tiny_recipe):
    damaged_entry(own_cache, tiny_recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DamagedCacheEntry):
            load_or_train(tiny_recipe, 0, CPU)
        load_or_train(tiny_recipe, 0, CPU)


def test_this_projects_own_settings_let_a_run_go_on_after_a_damaged_entry(own_cache, tiny_recipe):
    damaged_entry(own_cache, tiny_recipe)
    with warnings.catch_warnings(record=True) as caught:  # records what the settings do not turn into an error
        load_or_train(tiny_recipe, 0, CPU)
    assert [warning.category for warning in caught] == [DamagedCacheEntry]


def test_an_entry_that_is_being_written_again_is_left_alone(own_cache, tiny_recipe, monkeypatch):
    """Where the lock does nothing: the manifest is gone for a moment after we have listed it."""
    load_or_train(tiny_recipe, 0, CPU)
    real = checkpoints.load

    def vanish_first(weights):
        tensor_files.manifest_path(weights).unlink()
        return real(weights)

    monkeypatch.setattr(checkpoints, "load", vanish_first)
    name = cache._entry_name(tiny_recipe, 0, CPU, fused.chosen(tiny_recipe.model, CPU, "full"))
    assert cache._cached(own_cache, name) == (None, [])
    assert len(list(own_cache.glob("*.safetensors"))) == 1


def test_a_folder_where_the_lock_should_be_is_one_line(own_cache, tiny_recipe):
    (own_cache / f"{cache._entry_name(tiny_recipe, 0, CPU, fused.chosen(tiny_recipe.model, CPU, 'full'))}.lock").mkdir(
        parents=True
    )
    with pytest.raises(StorageError, match="cannot be locked"):
        load_or_train(tiny_recipe, 0, CPU)


def test_weights_without_their_manifest_are_not_an_entry(own_cache, tiny_recipe):
    load_or_train(tiny_recipe, 0, CPU)
    (manifest,) = own_cache.glob("*.json")
    manifest.unlink()
    load_or_train(tiny_recipe, 0, CPU)
    assert manifest.exists()


def test_a_forgotten_model_is_trained_again(own_cache, tiny_recipe, monkeypatch):
    load_or_train(tiny_recipe, 0, CPU)
    load_or_train(tiny_recipe, 1, CPU)
    forget(tiny_recipe, 0, CPU)
    assert len(list(own_cache.glob("tiny-*.safetensors"))) == 1
    load_or_train(tiny_recipe, 0, CPU)
    assert len(list(own_cache.glob("tiny-*.safetensors"))) == 2


RACE = """
import sys, torch
from nopos.storage import cache
from nopos.storage import checkpoints
from nopos.model.config import ModelConfig
from nopos.model.recipes import Recipe, TrainConfig
if sys.argv[1] == "without a lock":
    cache._Lock.__enter__ = cache._Lock.__exit__ = lambda self, *exception: None
trained = []
real = checkpoints.train_together
checkpoints.train_together = lambda *arguments, **by: trained.append(1) or real(*arguments, **by)
sys.stdin.readline()
recipe = Recipe(name="tiny", model=ModelConfig(), train=TrainConfig(steps=20, batch_size=8))
found = cache.load_or_train(recipe, 0, torch.device("cpu"))
print(len(trained), found.sha256)
"""


@pytest.mark.slow
@pytest.mark.parametrize("locking", ["with a lock", "without a lock"])
def test_processes_that_race_for_a_model_all_get_it(own_cache, locking):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, locking],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    outputs = []
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        outputs.append(racer.communicate(timeout=120)[0].split())
        assert racer.returncode == 0
    assert len({digest for _, digest in outputs}) == 1
    times_trained = sum(int(count) for count, _ in outputs)
    assert times_trained == 1 if locking == "with a lock" else 1 <= times_trained <= 2
    assert len(list(own_cache.glob("*.json"))) == 1


def test_a_cache_that_cannot_be_written_is_one_line_before_any_training(tmp_path, tiny_recipe, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOPOS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(checkpoints, "train_together", None)
    with pytest.raises(StorageError, match="cannot be written"):
        load_or_train(tiny_recipe, 0, CPU)


@pytest.fixture
def two_at_once(monkeypatch):
    monkeypatch.setattr(trainer, "members_at_once", lambda *_: 2)


def test_a_population_is_what_its_members_are_alone(own_cache, tiny_recipe, two_at_once):
    population = list(load_or_train_each(tiny_recipe, [3, 1, 2], CPU))
    assert [member.seed for member in population] == [3, 1, 2]
    assert [member.made_with["together"] for member in population] == [2, 2, 1]
    for member in population:
        assert same(member, train(tiny_recipe, member.seed, CPU))


def test_a_chunk_is_saved_before_the_next_is_trained(own_cache, tiny_recipe, two_at_once):
    population = load_or_train_each(tiny_recipe, [0, 1, 2, 3], CPU)
    next(population)
    assert len(list(own_cache.glob("*.json"))) == 2


def test_only_what_is_missing_is_trained(own_cache, tiny_recipe, two_at_once, monkeypatch):
    load_or_train(tiny_recipe, 1, CPU)
    asked = []
    real = checkpoints.train_together
    monkeypatch.setattr(
        checkpoints,
        "train_together",
        lambda recipe, seeds, *on, **by: asked.append(seeds) or real(recipe, seeds, *on, **by),
    )
    list(load_or_train_each(tiny_recipe, range(4), CPU))
    assert asked == [[0], [2, 3]]
    list(load_or_train_each(tiny_recipe, range(4), CPU))
    assert asked == [[0], [2, 3]]


def test_a_member_that_diverges_is_reported_and_the_others_are_saved(own_cache, tiny_recipe, monkeypatch):
    real = trainer.train

    def spoilt(*arguments, **options):
        good, bad = real(*arguments, **options)
        return [good, replace(bad, losses=(2.0, float("nan"), float("nan")))]

    monkeypatch.setattr(trainer, "members_at_once", lambda *_: 2)
    monkeypatch.setattr(trainer, "train", spoilt)
    good, bad = load_or_train_each(tiny_recipe, [5, 6], CPU)
    assert good.seed == 5
    assert isinstance(bad, TrainingError)
    assert str(bad) == "training tiny, seed 6: the loss is nan at step 1; nothing was saved"
    assert len(list(own_cache.glob("*.json"))) == 1


def test_a_full_disk_loses_nothing_that_was_finished(own_cache, tiny_recipe, monkeypatch):
    """The second of two that were trained together cannot be written; the first is there, and the second is no half."""
    real, written = checkpoints.save, []

    def full_disk(trained, weights):
        if written:
            raise StorageError(f"{weights}: cannot be written (No space left on device); give a place that can")
        written.append(weights)
        real(trained, weights)

    monkeypatch.setattr(trainer, "members_at_once", lambda *_: 2)
    monkeypatch.setattr(checkpoints, "save", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        list(load_or_train_each(tiny_recipe, [0, 1], CPU))
    monkeypatch.undo()
    monkeypatch.setenv("NOPOS_CACHE_DIR", str(own_cache))
    assert len(list(own_cache.glob("*.safetensors"))) == 1
    monkeypatch.setattr(checkpoints, "train_together", None)  # calling it would fail
    assert load_or_train(tiny_recipe, 0, CPU).seed == 0


POPULATION = """
import os, pathlib, signal, sys, torch
from nopos.storage import cache
from nopos.model.config import ModelConfig
from nopos.model.recipes import Recipe, TrainConfig
from nopos.training import fused, trainer
trainer.members_at_once = lambda *_: 2
fused.chosen(ModelConfig(), torch.device("cpu"), "full")  # compiles the kernel, whose own renames do not count
moment, renames, real = sys.argv[1], 0, pathlib.Path.replace
def replace(self, target):
    global renames
    renames += 1
    if moment == f"before rename {renames}": os.kill(os.getpid(), signal.SIGKILL)
    result = real(self, target)
    if moment == f"after rename {renames}": os.kill(os.getpid(), signal.SIGKILL)
    return result
pathlib.Path.replace = replace
recipe = Recipe(name="killed", model=ModelConfig(), train=TrainConfig(steps=6, batch_size=4, stream="own"))
for number, found in enumerate(cache.load_or_train_each(recipe, range(8), torch.device("cpu"))):
    print(found.seed, found.sha256, flush=True)
"""


@pytest.mark.slow
def test_a_population_killed_at_any_moment_and_started_again_ends_with_the_same_files(tmp_path):
    """Killed around the renames of a save, and at times spread over a run."""

    def start(folder, moment="never"):
        environment = {**os.environ, "NOPOS_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", POPULATION, moment]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def files(folder):
        return sorted(path for path in folder.iterdir() if path.is_file())

    def saved(folder):
        return sorted(path.name for path in folder.glob("*.json"))

    peace, killed = tmp_path / "peace", tmp_path / "killed"
    began = time.perf_counter()
    expected = start(peace).communicate(timeout=120)[0].split()
    seconds = time.perf_counter() - began
    assert len(expected) == 16
    counts = []
    for moment in ("before rename 1", "after rename 1", "before rename 4", "after rename 3", "after rename 2"):
        run = start(killed, moment)
        run.communicate(timeout=120)
        assert run.returncode == -signal.SIGKILL
        counts.append(len(saved(killed)))
    assert counts == [0, 0, 1, 2, 3]  # two renames a model: weights, then the manifest that commits them
    for share in (0.7, 0.8, 0.9):
        run = start(killed)
        time.sleep(share * seconds)
        run.kill()
        run.communicate(timeout=120)
    assert start(killed).communicate(timeout=120)[0].split() == expected
    for path in files(peace):
        again = killed / path.name
        if path.suffix == ".json":  # how long it took, and with how many others, may differ
            one, other = (json.loads(each.read_text()) for each in (path, again))
            assert one.pop("made_with").keys() == other.pop("made_with").keys()
            assert one == other
        else:
            assert path.read_bytes() == again.read_bytes()
    assert [path.name for path in files(killed)] == [path.name for path in files(peace)]


def test_a_seed_that_is_asked_for_twice_is_trained_once(own_cache, tiny_recipe, two_at_once):
    assert [found.seed for found in load_or_train_each(tiny_recipe, [4, 4, 5], CPU)] == [4, 5]
