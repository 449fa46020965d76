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


def test_the_share_of_variance_by_hand(micro, noisy):
    """Each neuron's variance counts by what it writes that a LayerNorm leaves."""
    model, tokens = NoPosTransformer(micro, noisy(micro, 0)), held_out_tokens(micro, 5)
    post = model.run_with_cache(tokens)[1]["blocks.1.mlp.hook_post"][:, 1:]
    between, total = 0.0, 0.0
    for neuron, written in enumerate(model.block(1).mlp.W_out):
        weight = ((written - written.mean()) ** 2).sum()
        between += (weight * post[..., neuron].mean(dim=0).var(correction=0)).item()
        total += (weight * post[..., neuron].flatten().var(correction=0)).item()
    assert mlp_activations(model, tokens, layer=1).share_by_position == pytest.approx(between / total, rel=1e-5)


def test_a_neuron_of_another_scale_that_writes_the_same_counts_for_the_same(micro, noisy):
    parameters, tokens = noisy(micro, 0), held_out_tokens(micro, 5)
    before = mlp_activations(NoPosTransformer(micro, parameters), tokens, layer=0)
    scale = torch.linspace(0.1, 10, micro.d_mlp)
    for name in ("W_in", "b_in"):
        parameters[f"blocks.0.mlp.{name}"] *= scale
    parameters["blocks.0.mlp.W_out"] /= scale[:, None]
    after = mlp_activations(NoPosTransformer(micro, parameters), tokens, layer=0)
    torch.testing.assert_close(after.mean, scale * before.mean)
    assert after.share_by_position == pytest.approx(before.share_by_position, rel=1e-5)


def test_neurons_that_write_what_every_LayerNorm_subtracts_count_as_if_they_wrote_nothing(micro, noisy):
    parameters, tokens = noisy(micro, 0), held_out_tokens(micro, 5)
    own = parameters["blocks.0.mlp.W_out"].clone()

    def share(first, others):
        parameters["blocks.0.mlp.W_out"][:6], parameters["blocks.0.mlp.W_out"][6:] = first, others
        return mlp_activations(NoPosTransformer(micro, parameters), tokens, layer=0).share_by_position

    without = share(0.0, own[6:])
    assert share(100.0, own[6:]) == pytest.approx(without, rel=1e-5)
    assert share(own[:6], own[6:]) != pytest.approx(without, rel=0.01)
    assert share(100.0, 0.0) == 0
