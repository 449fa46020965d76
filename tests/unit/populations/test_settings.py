from __future__ import annotations

import re
from dataclasses import replace

import pytest

from nopos.errors import ConfigError
from nopos.model.recipes import SPRINT
from nopos.populations.settings import grid_of, models_of, named, settings_of


def test_settings_are_recipes_by_the_grid_and_models_are_settings_by_seeds():
    grid = grid_of(["train.peak_lr=0.02,4e-2", "train.weight_decay=0,0.1"])
    settings = settings_of(["sprint", "notebook"], grid)
    assert [setting.name for setting in settings] == [
        f"{recipe},peak_lr={rate},weight_decay={decay}"
        for recipe in ("sprint", "notebook")
        for rate in ("0.02", "0.04")
        for decay in ("0", "0.1")
    ]
    assert [model.name for model in models_of(settings[:1], range(3, 5))] == [
        "sprint,peak_lr=0.02,weight_decay=0-seed-3",
        "sprint,peak_lr=0.02,weight_decay=0-seed-4",
    ]


def test_a_setting_is_its_recipe_but_for_what_the_grid_changes():
    (plain,) = settings_of(["sprint"], {})
    assert (plain.name, plain.recipe, plain.grid) == ("sprint", SPRINT, ())
    (changed,) = settings_of(["sprint"], grid_of(["train.steps=300"]))
    assert changed.recipe.name == "sprint"
    assert (changed.recipe.train.steps, changed.recipe.train.muon_lr) == (300, SPRINT.train.muon_lr)
    assert changed.grid == (("train.steps", 300),)


def test_a_grid_over_sizes_changes_the_model_alone():
    narrow, wide = settings_of(["sprint"], grid_of(["d_model=32,128", "n_heads=2"]))
    assert (narrow.name, narrow.grid) == ("sprint,d_model=32,n_heads=2", (("d_model", 32), ("n_heads", 2)))
    assert wide.recipe == replace(SPRINT, model=replace(SPRINT.model, d_model=128, n_heads=2))


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("train.steps=100,200", (100, 200)),
        ("train.peak_lr=1e-3, 2", (0.001, 2.0)),
        ("train.optimizer=adamw,muon", ("adamw", "muon")),
        ("train.shuffled_targets=true,False", (True, False)),
        ("train.betas=0.9:0.95,0.8:0.99", ((0.9, 0.95), (0.8, 0.99))),
    ],
)
def test_values_have_the_type_of_their_field(option, values):
    (found,) = grid_of([option]).values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.lr=1"], "grid names 'train.lr', which is no field; it must be one of train.steps, "),
        (["peak_lr=1"], "grid names 'peak_lr', which is no field; it must be one of train.steps, "),
        (["causal=false"], "grid names causal; of the model only sizes may vary: n_layers, n_heads, d_model, d_head"),
        (["positions=learned"], "grid names positions; of the model only sizes may vary"),
        (["model.n_ctx=32"], "grid names 'model.n_ctx', which is no field"),
        (["d_model=wide"], "grid gives d_model the value 'wide'; it must be an integer"),
        (["train.steps"], "grid is 'train.steps'; it must be a field and its values, as train.peak_lr=0.02,0.04"),
        (["train.steps="], "grid gives train.steps '', which lacks a value; it must be values with commas between"),
        (["train.steps=1,,2"], "grid gives train.steps '1,,2', which lacks a value"),
        (["train.steps=1", "train.steps=2"], "grid gives train.steps twice; give all its values at once"),
        (["train.peak_lr=0.02,2e-2"], "grid gives train.peak_lr the value 2e-2 twice; give it once"),
        (["train.steps=1.5"], "grid gives train.steps the value '1.5'; it must be an integer"),
        (["train.peak_lr=high"], "grid gives train.peak_lr the value 'high'; it must be a number"),
        (["train.incl_bos_token=2"], "grid gives train.incl_bos_token the value '2'; it must be true or false"),
        (["train.betas=0.9"], "grid gives train.betas the value '0.9'; it must be two numbers, as 0.9:0.95"),
        (["train.betas=0.9:x"], "grid gives train.betas the value '0.9:x'; it must be two numbers"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        grid_of(options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.peak_lr=-1", "the setting sprint,peak_lr=-1 cannot be: peak_lr is -1.0; it must be finite and above 0"),
        ("train.peak_lr=nan", "the setting sprint,peak_lr=nan cannot be: peak_lr is nan"),
        ("train.optimizer=lion", "the setting sprint,optimizer=lion cannot be: optimizer is 'lion'; it must be one of"),
        ("train.warmup_steps=200", "cannot be: steps is 200; a cosine needs more than the 200 warm-up steps"),
        ("train.target_offset=50", "cannot be: target_offset is 50; it must be below n_ctx, 50"),
    ],
)
def test_a_value_that_a_config_refuses_is_one_line(option, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings_of(["sprint"], grid_of([option]))


def test_a_recipe_that_there_is_not_or_that_is_named_twice_is_one_line():
    with pytest.raises(ConfigError, match="recipe is 'marathon'; it must be one of"):
        settings_of(["marathon"], {})
    with pytest.raises(ConfigError, match="recipe sprint is named twice; name it once"):
        settings_of(["sprint", "sprint"], {})


def test_a_name_that_no_file_can_have_is_one_line():
    names = ("peak_lr", "muon_lr", "momentum", "weight_decay", "max_grad_norm")
    grid = dict.fromkeys(names, (1 / 3,)) | {"train.betas": ((1 / 3, 2 / 3),), "train.batch_size": (10**60,)}
    with pytest.raises(ConfigError, match=r"has a name of 2\d\d characters; 200 are the most"):
        settings_of(["sprint"], grid)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.02, "0.02"),
        (1.0, "1"),
        (1, "1"),
        (1e-5, "1e-05"),
        (True, "true"),
        ("muon", "muon"),
        ((0.9, 0.95), "0.9_0.95"),
    ],
)
def test_a_value_has_a_name_that_a_file_can_have(value, name):
    assert named(value) == name
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", name)
