from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.methods.probes import linear_r2, position_r2, untrained_position_r2
from nopos.model.config import ModelConfig
from nopos.model.data import held_out_tokens
from nopos.model.parameters import initial_parameters
from nopos.model.transformer import NoPosTransformer


@given(seed=st.integers(0, 10_000), shift=st.floats(-10, 10))
def test_what_is_linear_is_read_whole_whatever_its_scale(seed, shift):
    rng = torch.Generator().manual_seed(seed)
    features, held_out = (torch.randn(40, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(3, generator=rng, dtype=torch.float64)
    assert linear_r2(features, features @ weights + shift, held_out, held_out @ weights + shift) == pytest.approx(1)


def test_noise_is_not_read():
    rng = torch.Generator().manual_seed(0)
    features, held_out = (torch.randn(2000, 3, generator=rng) for _ in range(2))
    labels, held_out_labels = (torch.randn(2000, generator=rng) for _ in range(2))
    assert abs(linear_r2(features, labels, held_out, held_out_labels)) < 0.02


def test_a_fit_that_predicts_the_mean_scores_zero():
    features, labels = torch.zeros(4, 2), torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert linear_r2(features, labels, features, labels) == pytest.approx(0)


def test_position_is_found_where_it_is_written_and_not_where_it_is_not(micro, noisy):
    parameters = noisy(micro, 0)
    parameters["embed.W_E"].zero_()
    parameters["pos_embed.W_pos"].zero_()
    tokens, others = held_out_tokens(micro, 40), held_out_tokens(micro, 40, stream=1)
    nothing = position_r2(NoPosTransformer(micro, parameters), tokens, other_tokens=others, hook_point="hook_embed")
    assert nothing == pytest.approx(0, abs=1e-6)
    parameters["pos_embed.W_pos"][:, 2] = torch.arange(6.0)
    model = NoPosTransformer(micro, parameters)
    read = {
        control: position_r2(
            model, tokens, other_tokens=others, hook_point="blocks.0.hook_resid_pre", control_task=control
        )
        for control in (False, True)
    }
    assert read[False] == pytest.approx(1, abs=1e-6)
    assert read[True] < 0.9  # a straight line does not fit an arbitrary order


@pytest.mark.parametrize("control", [False, True])
def test_what_every_LayerNorm_subtracts_is_not_read(micro, noisy, control):
    """A position that is written to all of d_model alike is no position to any later layer."""
    parameters = noisy(micro, 0)
    parameters["pos_embed.W_pos"].zero_()
    tokens, others = held_out_tokens(micro, 40), held_out_tokens(micro, 40, stream=1)
    options = {"other_tokens": others, "hook_point": "blocks.0.hook_resid_post", "control_task": control}
    expected = position_r2(NoPosTransformer(micro, parameters), tokens, **options)
    parameters["pos_embed.W_pos"] += torch.arange(6.0)[:, None]
    observed = position_r2(NoPosTransformer(micro, parameters), tokens, **options)
    assert observed == pytest.approx(expected, abs=1e-4)
    parameters["pos_embed.W_pos"][:, 1:] = 0
    assert position_r2(NoPosTransformer(micro, parameters), tokens, **options) > expected + 0.02


def test_the_control_task_asks_for_an_order_that_is_far_from_the_positions():
    config = ModelConfig(d_model=4, d_head=4, d_mlp=4, d_vocab=9, positions="learned")
    parameters = initial_parameters(config, 0)
    parameters["embed.W_E"].zero_()
    parameters["pos_embed.W_pos"].zero_()
    parameters["pos_embed.W_pos"][:, 2] = torch.arange(50.0)
    tokens = held_out_tokens(config, 4)
    read = position_r2(
        NoPosTransformer(config, parameters),
        tokens,
        other_tokens=tokens,
        hook_point="hook_pos_embed",
        control_task=True,
    )
    assert read < 0.1


def test_a_probe_is_fitted_on_the_other_tokens(micro, noisy):
    """So few that it fits their noise: it would be right on them, and is not on those it is tested on."""
    model = NoPosTransformer(micro, noisy(micro, 0))
    few, others = held_out_tokens(micro, 1), held_out_tokens(micro, 40, stream=1)
    options = {"hook_point": "blocks.0.hook_mlp_out"}
    assert position_r2(model, few, other_tokens=few, **options) == pytest.approx(1)
    assert position_r2(model, others, other_tokens=few, **options) < 0.5


def test_the_untrained_probe_does_not_look_at_the_weights_it_is_given(micro, noisy):
    tokens, others = held_out_tokens(micro, 40), held_out_tokens(micro, 40, stream=1)
    options = {"other_tokens": others, "hook_point": "blocks.0.hook_resid_post"}
    untrained = untrained_position_r2(NoPosTransformer(micro, noisy(micro, 0)), tokens, **options)
    assert untrained == untrained_position_r2(NoPosTransformer(micro, noisy(micro, 1)), tokens, **options)
    assert untrained == position_r2(NoPosTransformer.initialised(micro, 0), tokens, **options)
    other = untrained_position_r2(NoPosTransformer(micro, noisy(micro, 0)), tokens, seed=1, **options)
    assert other == position_r2(NoPosTransformer.initialised(micro, 1), tokens, **options) != untrained
