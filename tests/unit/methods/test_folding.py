from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nopos.methods.folding import fold_layer_norm, folded_config, largest_log_prob_gap
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import MICRO, folded_of, noisy_parameters


def model_and_folded(config, seed):
    model = NoPosTransformer(config, noisy_parameters(config, seed))
    return model, folded_of(model)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    n_layers=st.integers(1, 3),
    n_heads=st.integers(1, 3),
    causal=st.booleans(),
    positions=st.sampled_from(["none", "learned"]),
)
def test_folding_changes_no_output_whatever_the_weights(seed, n_layers, n_heads, causal, positions):
    config = replace(MICRO, n_layers=n_layers, n_heads=n_heads, causal=causal, positions=positions)
    model, folded = model_and_folded(config, seed)
    tokens = held_out_tokens(config, 4)
    assert largest_log_prob_gap(model, tokens, folded=folded, dtype=torch.float64) < 1e-9
    assert largest_log_prob_gap(model, tokens, folded=folded, dtype=torch.float32) < 1e-3


def test_the_folded_model_has_nothing_of_layer_norm_left_and_is_centred():
    _, folded = model_and_folded(MICRO, 0)
    state = folded.state_dict()
    assert not any(name.split(".")[-1] in ("w", "b") for name in state)
    for name in (
        "embed.W_E",
        "blocks.0.attn.W_O",
        "blocks.1.mlp.W_out",
        "blocks.1.mlp.b_out",
        "unembed.W_U",
        "unembed.b_U",
    ):
        assert state[name].mean(-1).abs().max() < 1e-12, name
        assert state[name].abs().max() > 0.01, name
    assert state["blocks.0.attn.b_V"].abs().max() == 0


@pytest.mark.parametrize(
    "lost", ["blocks.0.ln1.b", "blocks.1.ln2.b", "ln_final.b", "blocks.0.attn.b_V", "blocks.1.attn.b_O", "unembed.b_U"]
)
def test_every_bias_that_is_dropped_shows(lost):
    parameters = noisy_parameters(MICRO, 0)
    model = NoPosTransformer(MICRO, parameters)
    damaged = fold_layer_norm(MICRO, {**parameters, lost: torch.zeros_like(parameters[lost])})
    folded = NoPosTransformer(folded_config(MICRO), damaged)
    assert largest_log_prob_gap(model, held_out_tokens(MICRO, 4), folded=folded, dtype=torch.float64) > 1e-3


def test_the_gap_is_that_of_the_dtype_asked_for():
    model, folded = model_and_folded(MICRO, 0)
    tokens = held_out_tokens(MICRO, 4)
    exact, rounded = (
        largest_log_prob_gap(model, tokens, folded=folded, dtype=t) for t in (torch.float64, torch.float32)
    )
    assert exact < 1e-12 < rounded
    assert next(model.parameters()).dtype == torch.float32
    assert next(folded.parameters()).dtype == torch.float64
