from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.errors import ClaimError
from nopos.model.config import ModelConfig
from nopos.model.recipes import NOTEBOOK, SPRINT
from nopos.storage import cache
from nopos.subjects import sizes
from nopos.subjects.controls import CONTROLS, reference
from nopos.subjects.sizes import SIZES, TRAINED, described, good_model, memory_of, recipe_of, size_of, trained
from nopos.subjects.subject import Subject
from tests.support.fake_subjects import Fake

OTHER = ModelConfig(n_layers=3, n_heads=2, d_model=32, d_head=16, d_mlp=40, d_vocab=20, n_ctx=24)


def test_a_size_is_that_of_a_good_model():
    assert size_of(replace(OTHER, causal=False, positions="learned")) == OTHER


def test_subjects_are_described_by_all_their_sizes():
    text = described(reference())
    assert text == "n_layers 2, n_heads 1, d_model 64, d_head 64, d_mlp 256, d_vocab 300, n_ctx 50"
    assert {field for field in vars(OTHER) if isinstance(vars(OTHER)[field], int)} - {"causal"} == set(SIZES)


@pytest.mark.parametrize("name", TRAINED)
def test_a_control_of_another_size_is_trained_by_sprint_with_what_makes_it(name):
    recipe, own = recipe_of(name, OTHER), TRAINED[name]
    layers = 1 if name == "one_layer" else OTHER.n_layers
    assert recipe.model == replace(OTHER, n_layers=layers, causal=own.model.causal, positions=own.model.positions)
    assert recipe.train == (SPRINT.train if name == "reference" else own.train)
    assert recipe.name == "sprint"


def test_models_of_the_notebooks_size_are_those_committed(monkeypatch):
    monkeypatch.setattr(cache, "load_or_train", None)
    for name, recipe in TRAINED.items():
        assert trained(name, NOTEBOOK.model).train == recipe.train


def in_no_time(recipe, seed, device):
    """As trained, but for a single step."""
    quick = replace(recipe, train=replace(recipe.train, steps=1, warmup_steps=0, schedule="constant"))
    return cache.checkpoints.train(quick, seed, device)


def test_every_control_has_the_sizes_of_its_subject(monkeypatch):
    monkeypatch.setattr(cache, "load_or_train", in_no_time)
    monkeypatch.setattr(sizes, "good_model", lambda size: trained("reference", size))
    monkeypatch.setattr("nopos.subjects.controls.good_model", lambda size: trained("reference", size))
    subject = Subject("mine", trained("reference", OTHER))
    for control in CONTROLS:
        config = control.model_for(subject).config
        expected = replace(OTHER, n_layers=1) if control.name == "one layer" else OTHER
        assert size_of(config) == expected, control.name


def test_a_near_miss_is_no_edit_of_a_model_that_is_bad_itself(monkeypatch):
    monkeypatch.setattr(cache, "load_or_train", in_no_time)
    with pytest.raises(ClaimError, match=r"^sprint gives no good model of this size to make it of: its loss is \d"):
        good_model(OTHER)


def test_a_control_of_ours_beside_another_kind_of_model_is_one_line():
    with pytest.raises(ClaimError, match=r"^mine is not a model of nopos's kind; name controls of its own kind$"):
        CONTROLS[0].model_for(Fake("mine"))


@pytest.mark.parametrize("field", ["d_vocab", "n_ctx", "d_mlp", "n_heads"])
def test_a_larger_model_takes_more_memory(field):
    assert memory_of(replace(OTHER, **{field: 10 * getattr(OTHER, field)})) > memory_of(OTHER)
