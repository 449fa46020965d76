from __future__ import annotations

import pytest
import torch

from nopos.methods.neurons import mlp_activations
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer


def test_activations_are_those_of_the_layer(micro, noisy):
    model, tokens = NoPosTransformer(micro, noisy(micro, 0)), held_out_tokens(micro, 5)
    _, cache = model.run_with_cache(tokens)
    for layer in (0, 1):
        post = cache[f"blocks.{layer}.mlp.hook_post"]
        ours = mlp_activations(model, tokens, layer=layer, sequence=3)
        assert torch.equal(ours.of_one_sequence, post[3])
        torch.testing.assert_close(ours.mean, post.mean(0))
        torch.testing.assert_close(ours.share_active, (post > 0).float().mean(0))
        assert 0 < ours.share_by_position < 1


def test_neurons_that_see_only_the_position_vary_between_positions_alone(micro, noisy):
    parameters = noisy(micro, 0)
    for name in ("embed.W_E", "blocks.0.attn.W_O"):
        parameters[name].zero_()
    model, tokens = NoPosTransformer(micro, parameters), held_out_tokens(micro, 5)
    assert mlp_activations(model, tokens, layer=0).share_by_position == pytest.approx(1, abs=1e-5)
    parameters["pos_embed.W_pos"].zero_()
    blind = NoPosTransformer(micro, parameters)
    assert mlp_activations(blind, tokens, layer=0).share_by_position == 0.0


def test_neurons_that_see_only_the_token_hardly_vary_between_positions(micro, noisy):
    parameters = noisy(micro, 0)
    for name in ("pos_embed.W_pos", "blocks.0.attn.W_O"):
        parameters[name].zero_()
    model, tokens = NoPosTransformer(micro, parameters), held_out_tokens(micro, 500)
    assert mlp_activations(model, tokens, layer=0).share_by_position < 0.02
