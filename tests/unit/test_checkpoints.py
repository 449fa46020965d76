from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from nopos import checkpoints, storage
from nopos.checkpoints import Checkpoint, cache_folder, device_named, forget, load, load_or_train, save, train
from nopos.config import SPRINT, ModelConfig
from nopos.errors import CheckpointError, ConfigError, DamagedCacheEntry, StorageError, TrainingError
from nopos.model import NoPosTransformer
from nopos.parameters import initial_parameters

CPU = torch.device("cpu")


def same(first, second):
    return all(torch.equal(value, second.parameters[name]) for name, value in first.parameters.items())


def test_a_trained_checkpoint_is_loaded_as_it_was_saved(tmp_path, tiny_recipe):
    trained = train(tiny_recipe, 5, CPU)
    save(trained, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert same(trained, loaded)
    assert loaded.path == tmp_path / "model.safetensors"
    for field in ("config", "train", "recipe", "seed", "losses", "sha256", "made_with"):
        assert getattr(loaded, field) == getattr(trained, field), field
    assert loaded.describe() == "recipe tiny, seed 5"
    assert len(loaded.losses) == 3
    assert loaded.made_with["torch"] == torch.__version__
    assert loaded.made_with["device"] == "cpu"


def test_the_same_seed_trains_the_same_model_and_another_another(tiny_recipe):
    first, again, other = (train(tiny_recipe, seed, CPU) for seed in (0, 0, 1))
    assert same(first, again)
    assert first.sha256 == again.sha256
    assert not same(first, other)


def test_training_that_diverges_is_an_error_and_nothing_is_cached(own_cache, tiny_recipe):
    wild = replace(tiny_recipe, train=replace(tiny_recipe.train, steps=20, peak_lr=1e30))
    with pytest.raises(TrainingError, match=r"training tiny, seed 0: the loss is (nan|inf) at step \d+"):
        load_or_train(wild, 0, CPU)
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == []


def hooked_transformer_state():
    """What HookedTransformer's own state dict holds for the notebook's model: parameters, two buffers a layer."""
    state = dict(initial_parameters(ModelConfig(), 0))
    for layer in (0, 1):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(50, 50, dtype=torch.bool).tril()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_hooked_transformer_state_dict_is_loaded(tmp_path, suffix):
    path = tmp_path / f"hooked{suffix}"
    if suffix == ".safetensors":
        save_file(hooked_transformer_state(), path)
    else:
        torch.save(hooked_transformer_state(), path)
    loaded = load(path)
    assert loaded.config == ModelConfig()
    assert loaded.recipe is None
    assert loaded.describe() == "weights of unknown training"
    NoPosTransformer(loaded.config, loaded.parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed.W_E": torch.zeros(300, 32)}, "embed.W_E is [300, 32]; this model needs [300, 64]"),
        ({"blocks.0.mlp.W_in": torch.full((64, 256), torch.nan)}, "blocks.0.mlp.W_in holds values that are not finite"),
        ({"blocks.2.mlp.b_in": torch.zeros(256)}, "holds blocks.2.mlp.b_in, which this model does not have"),
        ({"embed.W_E": torch.zeros(300, 64).to_sparse()}, "embed.W_E is no ordinary dense tensor"),
        ({"embed.W_E": torch.zeros(300, 64, device="meta")}, "embed.W_E is no ordinary dense tensor"),
    ],
)
def test_a_checkpoint_of_another_shape_or_not_finite_is_one_line(tmp_path, change, message):
    torch.save(hooked_transformer_state() | change, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "model.pt")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "model.pt"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("model"),
        lambda manifest: manifest["model"].update(n_layers=0),
        lambda manifest: manifest["model"].update(flavour="strange"),
        lambda manifest: manifest["model"].update(normalization="LNPre"),
        lambda manifest: manifest.update(train=3),
        lambda manifest: manifest.update(seed="abc"),
        lambda manifest: manifest.update(seed=-1),
        lambda manifest: manifest.update(recipe=5),
        lambda manifest: manifest.update(losses=None),
        lambda manifest: manifest.update(losses=["low"]),
        lambda manifest: manifest.update(made_with=None),
    ],
)
def test_a_manifest_that_describes_no_model_is_one_line(tmp_path, tiny_recipe, edit):
    path = tmp_path / "model.safetensors"
    save(train(tiny_recipe, 0, CPU), path)
    manifest = json.loads(storage.manifest_path(path).read_text())
    edit(manifest)
    storage.manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"model.json: does not describe a model"):
        load(path)


def test_only_what_was_trained_here_can_be_saved(tmp_path):
    torch.save(hooked_transformer_state(), tmp_path / "model.pt")
    with pytest.raises(StorageError, match="only a model trained here"):
        save(load(tmp_path / "model.pt"), tmp_path / "again.safetensors")


def test_the_cache_is_where_the_environment_says(own_cache, monkeypatch):
    assert cache_folder() == own_cache
    monkeypatch.delenv("NOPOS_CACHE_DIR")
    assert cache_folder().name == "nopos"


def test_a_model_is_trained_once_and_then_found(own_cache, tiny_recipe, monkeypatch):
    first = load_or_train(tiny_recipe, 0, CPU)
    monkeypatch.setattr(checkpoints, "train", None)  # calling it would fail
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
    monkeypatch.setattr(checkpoints, "_sources_hash", lambda: "other sources")
    load_or_train(tiny_recipe, 0, CPU)
    assert len(list(own_cache.glob("*.json"))) == 5
    cuda = torch.device("cuda")
    assert checkpoints._entry_name(tiny_recipe, 0, cuda) != checkpoints._entry_name(tiny_recipe, 0, CPU)


def test_every_source_that_training_runs_is_in_the_key():
    """Found by importing the trainer in a fresh process: a module that it loads and the key forgets would hide."""
    code = (
        "import sys, nopos.checkpoints as c\n"
        "names = {n.removeprefix('nopos.').replace('.', '/') + '.py' for n in sys.modules if n.startswith('nopos.')}\n"
        "print(sorted(names - set(c._TRAINING_SOURCES)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(["checkpoints.py", "errors.py", "storage.py", "training.py"])


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
        storage.manifest_path(weights).unlink()
        return real(weights)

    monkeypatch.setattr(checkpoints, "load", vanish_first)
    name = checkpoints._entry_name(tiny_recipe, 0, CPU)
    assert checkpoints._cached(own_cache, name) == (None, [])
    assert len(list(own_cache.glob("*.safetensors"))) == 1


def test_a_folder_where_the_lock_should_be_is_one_line(own_cache, tiny_recipe):
    (own_cache / f"{checkpoints._entry_name(tiny_recipe, 0, CPU)}.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be locked"):
        load_or_train(tiny_recipe, 0, CPU)


def test_a_description_says_in_what_the_training_differs_from_the_recipe(tiny_recipe):
    sprint = replace(SPRINT, train=replace(SPRINT.train, target_offset=2))
    config = ModelConfig(positions="learned")
    one = Checkpoint(config=config, parameters={}, sha256="", recipe="sprint", train=sprint.train, seed=4)
    assert one.describe() == "recipe sprint, but positions learned, but target_offset 2, seed 4"


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
from nopos import checkpoints
from nopos.config import ModelConfig, Recipe, TrainConfig
if sys.argv[1] == "without a lock":
    checkpoints._Lock.__enter__ = checkpoints._Lock.__exit__ = lambda self, *exception: None
trained = []
real = checkpoints.train
checkpoints.train = lambda *arguments: trained.append(1) or real(*arguments)
sys.stdin.readline()
recipe = Recipe(name="tiny", model=ModelConfig(), train=TrainConfig(steps=20, batch_size=8))
found = checkpoints.load_or_train(recipe, 0, torch.device("cpu"))
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
    monkeypatch.setattr(checkpoints, "train", None)
    with pytest.raises(StorageError, match="cannot be written"):
        load_or_train(tiny_recipe, 0, CPU)


def test_devices():
    assert device_named("cpu") == CPU
    assert device_named(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device is 'tpu'; it must be cpu or cuda"):
        device_named("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_one_line():
    with pytest.raises(ConfigError, match="device is cuda, but torch finds no CUDA here; use cpu"):
        device_named("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_cuda_starts_where_the_cpu_starts_and_goes_the_same_way(tiny_recipe):
    here, there = train(tiny_recipe, 0, CPU), train(tiny_recipe, 0, torch.device("cuda"))
    assert there.losses == pytest.approx(here.losses, rel=1e-4)
    assert all(value.device.type == "cpu" for value in there.parameters.values())
