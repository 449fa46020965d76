from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from nopos.errors import CheckpointError, ConfigError, StorageError, TrainingError
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.model.recipes import SPRINT
from nopos.model.transformer import NoPosTransformer
from nopos.storage import checkpoints, tensor_files
from nopos.storage.checkpoints import Checkpoint, device_named, load, save, train, train_together
from tests.support.micro import same

CPU = torch.device("cpu")


def test_a_trained_checkpoint_is_loaded_as_it_was_saved(tmp_path, tiny_recipe):
    trained = train(tiny_recipe, 5, CPU)
    save(trained, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert same(trained, loaded)
    assert loaded.path == tmp_path / "model.safetensors"
    for field in ("config", "train", "recipe", "seed", "losses", "sha256", "made_with"):
        assert getattr(loaded, field) == getattr(trained, field), field
    assert loaded.describe().startswith("recipe tiny, seed 5, kernel ")
    assert len(loaded.losses) == 3
    assert loaded.made_with["torch"] == torch.__version__
    assert loaded.made_with["device"] == "cpu"


def test_the_same_seed_trains_the_same_model_and_another_another(tiny_recipe):
    first, again, other = (train(tiny_recipe, seed, CPU) for seed in (0, 0, 1))
    assert same(first, again)
    assert first.sha256 == again.sha256
    assert not same(first, other)


def test_a_checkpoint_in_bytes_is_saved_as_it_would_have_been_and_is_the_same_again(tmp_path, tiny_recipe):
    trained = train(tiny_recipe, 5, CPU)
    given = checkpoints.serialised(trained)
    save(trained, tmp_path / "first.safetensors")
    checkpoints.save_serialised(given, tmp_path / "second.safetensors")
    for ending in (".safetensors", ".json"):
        assert (tmp_path / f"second{ending}").read_bytes() == (tmp_path / f"first{ending}").read_bytes()
    again = checkpoints.deserialised("again", given)
    assert same(trained, again)
    for field in ("config", "train", "recipe", "seed", "losses", "sha256", "made_with"):
        assert getattr(again, field) == getattr(trained, field), field
    with pytest.raises(CheckpointError, match="torn: is not a whole safetensors file"):
        checkpoints.deserialised("torn", replace(given, weights=given.weights[:99]))
    with pytest.raises(CheckpointError, match="odd: does not describe a model"):
        checkpoints.deserialised("odd", replace(given, manifest={}))


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
    assert loaded.describe() == "weights of unknown training, causal"
    NoPosTransformer(loaded.config, loaded.parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed.W_E": torch.zeros(300, 32)}, "pos_embed.W_pos is [50, 64]; this model needs [50, 32]"),
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
    manifest = json.loads(tensor_files.manifest_path(path).read_text())
    edit(manifest)
    tensor_files.manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"model.json: does not describe a model"):
        load(path)


def test_only_what_was_trained_here_can_be_saved(tmp_path):
    torch.save(hooked_transformer_state(), tmp_path / "model.pt")
    with pytest.raises(StorageError, match="only a model trained here"):
        save(load(tmp_path / "model.pt"), tmp_path / "again.safetensors")


def test_a_description_says_in_what_the_training_differs_from_the_recipe(tiny_recipe):
    sprint = replace(SPRINT, train=replace(SPRINT.train, target_offset=2))
    config = ModelConfig(positions="learned")
    one = Checkpoint(config=config, parameters={}, sha256="", recipe="sprint", train=sprint.train, seed=4)
    assert one.describe() == "recipe sprint, but positions learned, but target_offset 2, seed 4"


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


@pytest.mark.parametrize("changes", [{"optimizer": "nadam"}, {"label_smoothing": 0.1}, {"target_noise": 0.2}])
def test_what_the_fast_trainer_does_not_have_is_trained_by_the_reference_loop(tiny_recipe, tmp_path, changes):
    """A model for each seed, with what decided its bits and why it was not the fused kernel; saved and loaded again."""
    recipe = replace(tiny_recipe, train=replace(tiny_recipe.train, warmup_steps=0, initial_scale=0.5, **changes))
    first, second = train_together(recipe, [3, 4], CPU)
    assert [first.seed, second.seed, len(first.losses)] == [3, 4, recipe.train.steps]
    assert not same(first, second)
    assert same(first, train(recipe, 3, CPU))
    assert (first.made_with["kernel"], first.made_with["threads"]) == ("torch", torch.get_num_threads())
    assert first.made_with["why_not_fused"] == recipe.train.why_by_the_loop
    assert not same(first, train(replace(recipe, train=replace(recipe.train, initial_scale=0.8)), 3, CPU))
    save(first, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").train == recipe.train
    with pytest.raises(
        ConfigError, match=r"^kernel is fused, which cannot train here: .*; use torch, or leave it out$"
    ):
        train_together(recipe, [3], CPU, kernel="fused")


def test_a_model_that_diverges_by_the_reference_loop_is_an_error_in_its_place(tiny_recipe):
    recipe = replace(tiny_recipe, train=replace(tiny_recipe.train, steps=9, optimizer="sgd", peak_lr=1e30))
    (found,) = train_together(recipe, [0], CPU)
    assert isinstance(found, TrainingError)
    assert "nothing was saved" in str(found)
