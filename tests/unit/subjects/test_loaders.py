from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.errors import CheckpointError, ConfigError
from nopos.model import recipes
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage import cache
from nopos.subjects import loaders, sizes
from nopos.subjects.shipped import checkpoint_path

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch, own_cache, tiny_recipe):
    """The recipes by name, each trained in a blink."""
    for name in ("notebook", "sprint"):
        monkeypatch.setitem(recipes.RECIPES, name, replace(tiny_recipe, name=name, model=ModelConfig()))


def test_the_slow_tier_checks_a_model_of_the_notebooks_recipe_and_two_sprints(quick):
    found = loaders.slow_loaders(CPU)
    assert [loader.name for loader in found] == ["notebook seed 0", "sprint seed 100", "sprint seed 101"]
    assert all(loader.slow for loader in found)
    for loader in found:
        subject = loader.load()
        assert subject.name == loader.name
        assert f"{subject.record()['recipe']} seed {subject.record()['seed']}" == loader.name


def test_a_named_model_is_trained_once_and_then_found(quick, monkeypatch):
    first = loaders.recipe_subject("sprint", 3, CPU).record()
    monkeypatch.setattr(cache.checkpoints, "train_together", None)
    assert loaders.recipe_subject("sprint", 3, CPU).record() == first


def test_files_come_first_and_the_model_of_a_recipe_last(quick):
    file = str(checkpoint_path("reference"))
    named = loaders.named_subjects([file], recipe="sprint", seed=None, device="cpu")
    assert [subject.name for subject in named] == [file, "sprint seed 0"]


def test_a_file_named_twice_is_refused_before_it_is_read():
    with pytest.raises(ConfigError, match=r"none.pt: is named twice; name each model once"):
        list(loaders.named_subjects(["none.pt", "none.pt"], recipe=None, seed=None, device=None))


def test_a_model_of_any_sizes_is_a_subject(odd_sizes):
    path, config = odd_sizes
    (subject,) = loaders.named_subjects([path], recipe=None, seed=None, device=None)
    assert subject.config == config


def test_a_file_without_a_mask_is_bidirectional_where_that_is_asked(tmp_path):
    path = tmp_path / "open.pt"
    torch.save(initial_parameters(ModelConfig(causal=False), 0), path)
    for bidirectional in (False, True):
        (subject,) = loaders.named_subjects(
            [str(path)], recipe=None, seed=None, device=None, bidirectional=bidirectional
        )
        assert subject.config.causal is not bidirectional
        assert subject.record()["description"].endswith("bidirectional" if bidirectional else "causal")


def test_a_model_with_nothing_to_predict_is_one_line(one_position):
    path, problem = one_position
    with pytest.raises(CheckpointError) as raised:
        list(loaders.named_subjects([path], recipe=None, seed=None, device=None))
    assert str(raised.value) == problem


def test_a_model_that_the_memory_is_too_small_for_is_one_line(monkeypatch):
    class Little:
        available = 10**8

    monkeypatch.setattr(sizes.psutil, "virtual_memory", Little)
    with pytest.raises(CheckpointError, match=r"d_vocab 300, n_ctx 50, d_mlp 256 takes about .* GB of memory; 0.1 are"):
        list(loaders.named_subjects([str(checkpoint_path("reference"))], recipe=None, seed=None, device=None))


@pytest.mark.parametrize("control", ["learned_positions", "no_causal_mask"])
def test_a_model_with_positions_or_without_a_mask_has_the_claims_sizes(control):
    (subject,) = loaders.named_subjects([str(checkpoint_path(control))], recipe=None, seed=None, device=None)
    assert subject.config != ModelConfig()


def test_an_empty_name_of_a_file_is_not_taken_for_the_folder():
    with pytest.raises(ConfigError, match=r"^checkpoint is empty; name a file$"):
        list(loaders.named_subjects([""], recipe=None, seed=None, device=None))


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"device": None, "retrain": True}], ids=["device", "retrain"])
def test_how_to_train_is_refused_where_nothing_is_trained(given):
    with pytest.raises(ConfigError, match=r"^\w+ is given, but nothing is trained; name a recipe, or leave it out$"):
        loaders.require_possible(recipe=None, seed=None, **given)
    loaders.require_possible(recipe="sprint", seed=None, **given)
    loaders.require_possible(recipe=None, seed=None, slow=True, **given)


def test_a_seed_without_a_recipe_and_a_device_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="seed is given without a recipe"):
        loaders.require_possible(recipe=None, seed=0, device=None)
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        loaders.require_possible(recipe=None, seed=None, device="tpu")
    loaders.require_possible(recipe="sprint", seed=0, device="cpu")
