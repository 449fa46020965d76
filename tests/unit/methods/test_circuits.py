from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.methods.activation_patching import response_to_swapped_token
from nopos.methods.circuits import (
    copying_rank,
    full_ov_circuit,
    neuron_lines,
    normalized_embedding,
    ov_circuit,
    ov_into_neurons,
    qk_circuit,
)
from nopos.methods.embedding import mean_by_token
from nopos.methods.statistics import correlation
from nopos.model.data import held_out_tokens
from nopos.model.handwritten import relay_parameters
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.controls import reference
from tests.support.micro import RELAY_CONFIG, folded_of


@pytest.fixture
def folded(micro, noisy):
    """Without positions, so that layer 0 reads tokens alone."""
    parameters = noisy(micro, 0)
    parameters["pos_embed.W_pos"].zero_()
    return folded_of(NoPosTransformer(micro, parameters))


@pytest.fixture
def relay():
    return folded_of(NoPosTransformer(RELAY_CONFIG, relay_parameters(RELAY_CONFIG)))


def test_the_qk_circuit_of_layer_0_is_its_scores(folded, micro):
    tokens = held_out_tokens(micro, 4)
    _, cache = folded.run_with_cache(tokens)
    circuit = qk_circuit(folded, layer=0)
    expected = torch.stack([circuit[:, row[:, None], row[None, :]] for row in tokens])
    scores = cache["blocks.0.attn.hook_attn_scores"]
    assert (scores - expected)[scores.isfinite()].abs().max() < 1e-12


def test_the_ov_circuit_of_layer_0_makes_its_output(folded, micro):
    tokens = held_out_tokens(micro, 4)
    _, cache = folded.run_with_cache(tokens)
    written = torch.einsum(
        "bhqk,hbkd->bqd", cache["blocks.0.attn.hook_pattern"], ov_circuit(folded, layer=0)[:, tokens]
    )
    attn_out = cache["blocks.0.hook_attn_out"]
    assert (written + folded.block(0).attn.b_O - attn_out).abs().max() < 1e-12


def test_the_embedding_is_what_layer_0_reads(folded, micro):
    tokens = held_out_tokens(micro, 64)
    read = mean_by_token(folded, tokens, hook_point="blocks.0.ln1.hook_normalized")
    assert (normalized_embedding(folded) - read).abs().max() < 1e-12


def test_neurons_are_those_of_the_same_layer_unless_another_is_named(folded):
    for layer, mlp_layer, reader in ((1, None, 1), (0, None, 0), (1, 0, 0)):
        neurons = ov_into_neurons(folded, layer=layer, mlp_layer=mlp_layer)
        assert torch.equal(neurons, ov_circuit(folded, layer=layer) @ folded.block(reader).mlp.W_in)


def test_lines_are_columns_and_drawn_without_repetition(folded):
    circuit = ov_into_neurons(folded, layer=1)
    neurons, lines = neuron_lines(circuit, rng=torch.Generator().manual_seed(3))
    assert len(set(neurons.tolist())) == 5
    assert torch.equal(lines, circuit[..., neurons])
    again, _ = neuron_lines(circuit, rng=torch.Generator().manual_seed(3))
    assert torch.equal(neurons, again)


def test_the_notebooks_slip_shows_neurons_that_layer_1_does_not_feed():
    """Slip 3: through W_in[0] the plot of layer 1 says nothing of what its attention does to neurons."""
    subject = reference()
    swaps = response_to_swapped_token(
        subject.folded, subject.tokens, other_tokens=subject.other_tokens, layer=1, offset=1
    )
    reading = mean_by_token(subject.folded, subject.tokens, hook_point="blocks.1.ln1.hook_normalized")
    correlations = []
    for mlp_layer in (1, 0):
        circuit = ov_into_neurons(subject.folded, layer=1, reading=reading, mlp_layer=mlp_layer)[0]
        correlations.append(correlation(circuit[swaps.after] - circuit[swaps.before], swaps.response))
    mended, slip = correlations
    assert mended > 0.4
    assert abs(slip) < 0.1


def test_in_the_relay_the_full_ov_circuit_of_layer_1_knows_no_token_and_of_both_layers_copies(relay):
    """Layer 0 copies the embedding to where layer 1 reads; the embedding itself layer 1 cannot read."""
    assert copying_rank(full_ov_circuit(relay, layer=1)) < 0.5
    copied = ov_circuit(relay, layer=0)[0]
    both = full_ov_circuit(relay, layer=1, reading=copied)
    assert both.mean(-1).abs().max() < 1e-9
    assert copying_rank(both) == 1.0


def test_the_copying_rank_by_hand():
    circuit = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, -1.0]]])
    assert copying_rank(circuit) == pytest.approx((1 + 0.5 + 0) / 3)
    assert copying_rank(torch.eye(4)[None]) == 1.0


def test_circuits_need_a_folded_model_and_a_layer_that_is_there(micro, noisy, folded):
    with pytest.raises(AnalysisError, match="fold it first"):
        qk_circuit(NoPosTransformer(micro, noisy(micro, 0)), layer=0)
    with pytest.raises(AnalysisError, match="fold it first"):
        ov_into_neurons(NoPosTransformer(micro, noisy(micro, 0)), layer=0, reading=torch.zeros(7, 8))
    with pytest.raises(AnalysisError, match="layer is 2; this model's are 0 to 1"):
        ov_circuit(folded, layer=2)
