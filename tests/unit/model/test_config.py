from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.errors import ConfigError
from nopos.model.config import ModelConfig, content_hash, overrides
from nopos.model.recipes import NOTEBOOK, SPRINT, Recipe, TrainConfig, recipe_named


def test_the_notebook_recipe_is_the_notebooks():
    model, train = NOTEBOOK.model, NOTEBOOK.train
    assert (model.n_layers, model.n_heads, model.d_model, model.d_head, model.d_mlp) == (2, 1, 64, 64, 256)
    assert (model.d_vocab, model.n_ctx, model.causal, model.positions) == (300, 50, True, "none")
    assert (train.steps, train.batch_size, train.peak_lr, train.betas) == (4000, 256, 1e-4, (0.9, 0.95))
    assert (train.weight_decay, train.max_grad_norm, train.stream, train.target_offset) == (0.1, 1.0, "notebook", 1)


def test_the_notebook_warms_up_from_zero_over_100_steps_and_stays():
    """Slip 5: the first published notebook had max instead of min, which is no warm-up."""
    factor = NOTEBOOK.train.learning_rate_factor
    assert [factor(step) for step in (0, 1, 50, 99, 100, 101, 3999)] == [0.0, 0.01, 0.5, 0.99, 1.0, 1.0, 1.0]


def test_the_sprint_falls_from_its_peak_to_zero_along_half_a_cosine():
    factor = SPRINT.train.learning_rate_factor
    assert factor(0) == 0.0
    assert factor(10) == 1.0
    assert factor(105) == pytest.approx(0.5)
    assert factor(200) == pytest.approx(0.0)
    falling = [factor(step) for step in range(10, 201)]
    assert falling == sorted(falling, reverse=True)


def test_without_a_warm_up_the_first_step_has_the_peak_rate():
    assert replace(NOTEBOOK.train, warmup_steps=0).learning_rate_factor(0) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(n_layers=0), "n_layers is 0; it must be an integer of at least 1"),
        (lambda: ModelConfig(d_model=True), "d_model is True; it must be an integer of at least 1"),
        (lambda: ModelConfig(d_mlp=2.5), "d_mlp is 2.5"),
        (lambda: ModelConfig(d_vocab=1), "d_vocab is 1; BOS and at least one other token need 2"),
        (lambda: ModelConfig(causal=1), "causal is 1; it must be true or false"),
        (lambda: ModelConfig(positions="rotary"), "positions is 'rotary'; it must be one of none, learned"),
        (lambda: ModelConfig(normalization="RMS"), "normalization is 'RMS'; it must be one of LN, LNPre"),
        (lambda: TrainConfig(shuffled_targets=1), "shuffled_targets is 1; it must be true or false"),
        (lambda: TrainConfig(shuffled_targets=True, batch_size=1), "batch_size is 1; shuffled targets need another"),
        (lambda: TrainConfig(steps=0), "steps is 0"),
        (lambda: TrainConfig(batch_size=-1), "batch_size is -1"),
        (lambda: TrainConfig(peak_lr=0.0), "peak_lr is 0.0; it must be finite and above 0"),
        (lambda: TrainConfig(peak_lr=float("nan")), "peak_lr is nan"),
        (lambda: TrainConfig(weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: TrainConfig(optimizer="lion"), "optimizer is 'lion'; it must be one of adamw, muon, adadelta, "),
        (lambda: TrainConfig(label_smoothing=1.0), "label_smoothing is 1.0; it must be from 0 up to, not including, 1"),
        (lambda: TrainConfig(target_noise=-0.1), "target_noise is -0.1; it must be from 0"),
        (lambda: TrainConfig(initial_scale=0.0), "initial_scale is 0.0; it must be finite and above 0"),
        (
            lambda: TrainConfig(optimizer="sgd", precision="bfloat16"),
            "precision is bfloat16; the reference loop, by which this trains, has full alone",
        ),
        (lambda: TrainConfig(betas=(0.9, 1.0)), "betas is (0.9, 1.0)"),
        (lambda: TrainConfig(betas=(0.9,)), "betas is (0.9,)"),
        (lambda: TrainConfig(schedule="linear"), "schedule is 'linear'"),
        (lambda: TrainConfig(stream="mine"), "stream is 'mine'"),
        (lambda: TrainConfig(target_offset=0), "target_offset is 0"),
        (lambda: TrainConfig(steps=100, schedule="cosine"), "a cosine needs more than the 100 warm-up steps"),
        (lambda: Recipe(name="far", train=TrainConfig(target_offset=50)), "it must be below n_ctx, 50"),
        (lambda: recipe_named("marathon"), "recipe is 'marathon'; it must be one of notebook, sprint"),
    ],
)
def test_a_config_that_cannot_be_is_one_line_that_names_the_field(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_differs_from_the_defaults_counts():
    assert overrides(ModelConfig()) == {}
    assert overrides(ModelConfig(n_heads=4, causal=False)) == {"n_heads": 4, "causal": False}
    assert overrides(TrainConfig()) == {}


def test_a_content_hash_tells_values_apart_and_not_their_order():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"optimizer": "muon", "initial_scale": 0.4}, None),
        ({"optimizer": "nadam"}, "optimizer is nadam"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1"),
        ({"target_noise": 0.05}, "target_noise is 0.05"),
    ],
)
def test_what_the_fast_trainer_does_not_have_is_trained_by_the_reference_loop(changes, reason):
    assert TrainConfig(**changes).why_by_the_loop == reason


def test_the_fields_that_came_later_change_no_older_recipe():
    later = {"label_smoothing", "target_noise", "initial_scale"}
    assert not later & (set(overrides(NOTEBOOK.train)) | set(overrides(SPRINT.train)))
