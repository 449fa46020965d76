from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.decode import (
    IN_ADVANCE,
    copying_share,
    current_token_wins,
    neuron_response_correlation,
    written_of_tokens,
    written_per_weight,
)
from nopos.methods.activation_patching import response_to_swapped_token
from nopos.methods.circuits import copying_rank, full_ov_circuit, mean_reading, ov_into_neurons
from nopos.methods.statistics import correlation
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import folded_of


@pytest.fixture
def model(micro, noisy):
    return NoPosTransformer(micro, noisy(micro, 0))


@pytest.fixture
def tokens(micro):
    return held_out_tokens(micro, 40)


@pytest.fixture
def other_tokens(micro):
    return held_out_tokens(micro, 40, stream=1)


def share_won(logits, tokens, offset=1):
    won = [
        logits[batch, position, tokens[batch, position]] > logits[batch, position, tokens[batch, position - offset]]
        for batch in range(len(tokens))
        for position in range(offset, tokens.shape[1])
        if tokens[batch, position] != tokens[batch, position - offset]
    ]
    return sum(won).item() / len(won)


def test_a_copying_share_by_hand(model, other_tokens):
    """Of logits over what all tokens add to them, those of other tokens that a token's own beats; BOS is none."""
    folded = folded_of(model)
    read = folded.run_with_cache(other_tokens)[1]["blocks.1.ln1.hook_normalized"]
    attention, beaten = folded.block(1).attn, []
    for head in range(2):
        means = torch.stack([read[other_tokens == token].mean(dim=0) for token in range(1, 7)])
        logits = (means @ attention.W_V[head] @ attention.W_O[head] @ folded.unembed.W_U)[:, 1:]
        logits = logits - logits.mean(dim=1, keepdim=True) - (logits - logits.mean(dim=1, keepdim=True)).mean(dim=0)
        beaten += [(logits[token, token] > logits[token]).sum() / 5 for token in range(6)]
    assert copying_share(folded, other_tokens) == pytest.approx(torch.stack(beaten).mean().item())


def test_what_is_added_to_a_logit_whatever_is_attended_to_is_no_copying(model, other_tokens):
    """Values get a part that all tokens share, which lifts some logits far above the rest."""
    folded, parameters = folded_of(model), folded_of(model).parameter_tensors()
    read = mean_reading(folded, other_tokens, layer=1)[1:]
    alike = torch.linalg.pinv(read).sum(dim=1)
    torch.testing.assert_close(read @ alike, torch.ones(6).double())
    parameters["blocks.1.attn.W_V"] = parameters["blocks.1.attn.W_V"] + 100 * alike[:, None]
    lifted = NoPosTransformer(folded.config, parameters)
    assert copying_share(lifted, other_tokens) == pytest.approx(copying_share(folded, other_tokens))
    with_what_all_add, without = (
        copying_rank(full_ov_circuit(each, layer=1, reading=mean_reading(each, other_tokens, layer=1)))
        for each in (lifted, folded)
    )
    assert with_what_all_add != pytest.approx(without, rel=0.02)


def test_a_neuron_response_correlation_is_over_neurons_in_units_of_their_own(model, tokens, other_tokens):
    folded = folded_of(model)
    swaps = response_to_swapped_token(folded, tokens, other_tokens=other_tokens, layer=1, offset=2)
    circuit = ov_into_neurons(folded, layer=1, reading=mean_reading(folded, other_tokens, layer=1)).sum(dim=0)
    predicted, observed = [], []
    for neuron in range(12):
        unit = (swaps.response[:, neuron] ** 2).mean().sqrt()
        predicted.append((circuit[swaps.after, neuron] - circuit[swaps.before, neuron]) / unit)
        observed.append(swaps.response[:, neuron] / unit)
    expected = correlation(torch.stack(predicted), torch.stack(observed))
    found = neuron_response_correlation(folded, tokens, other_tokens, offset=2)
    assert found == pytest.approx(expected)
    assert found != pytest.approx(correlation(circuit[swaps.after] - circuit[swaps.before], swaps.response), rel=1e-3)


def test_a_neuron_that_never_responds_is_divided_by_nothing(model, tokens, other_tokens):
    folded = folded_of(model)

    def with_dead(neurons):
        parameters = folded.parameter_tensors()
        parameters["blocks.1.mlp.W_in"] = parameters["blocks.1.mlp.W_in"].index_fill(
            1, torch.tensor(neurons).long(), 0.0
        )
        return neuron_response_correlation(NoPosTransformer(folded.config, parameters), tokens, other_tokens, offset=1)

    assert -1 <= with_dead([5]) <= 1
    assert with_dead([5]) != with_dead([])
    assert with_dead(list(range(12))) == 0


def test_what_is_written_of_a_token_is_its_mean_over_the_mean_of_all(model, other_tokens):
    written = written_of_tokens(model, other_tokens)
    cache = model.run_with_cache(other_tokens)[1]
    out = cache["hook_embed"] + cache["blocks.0.hook_mlp_out"]
    means = torch.stack([out[other_tokens == token].mean(dim=0) for token in range(7)])
    torch.testing.assert_close(written[3], means[3] - means[1:].mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(written[1:].mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)


def test_nothing_is_written_of_a_token_that_is_nowhere(model, other_tokens):
    without_five = other_tokens.masked_fill(other_tokens == 5, 3)
    written = written_of_tokens(model, without_five)
    assert (written[5] == 0).all()
    torch.testing.assert_close(written[[1, 2, 3, 4, 6]].mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("components", "offset"), [(IN_ADVANCE, 1), (IN_ADVANCE, 2), (IN_ADVANCE[1:], 1)])
def test_only_the_reader_named_misses_what_was_written(model, tokens, other_tokens, own, components, offset):
    """By a forward pass of its own from the residual stream before MLP 1."""
    of_tokens = written_of_tokens(model, other_tokens, components=components)
    taken = of_tokens[tokens if own else tokens.roll(1, dims=0)]
    mid = model.run_with_cache(tokens)[1]["blocks.1.hook_resid_mid"]
    block = model.block(1)

    def logits(to_mlp, to_unembedding):
        return model.unembed(model.ln_final(to_unembedding + block.mlp(block.ln2(to_mlp))))

    options = {"other_tokens": other_tokens, "own": own, "components": components, "target_offset": offset}
    observed = current_token_wins(model, tokens, reader="MLP 1", **options)
    assert observed == pytest.approx(share_won(logits(mid - taken, mid), tokens, offset))
    observed = current_token_wins(model, tokens, reader="unembedding", **options)
    assert observed == pytest.approx(share_won(logits(mid, mid - taken), tokens, offset))
    observed = current_token_wins(model, tokens, reader="both", **options)
    assert observed == pytest.approx(share_won(logits(mid - taken, mid - taken), tokens, offset))


def test_what_is_written_by_some_components_is_of_these_alone(model, other_tokens):
    names = ("hook_embed", "blocks.0.hook_mlp_out")
    each = [written_of_tokens(model, other_tokens, components=(name,)) for name in names]
    torch.testing.assert_close(sum(each), written_of_tokens(model, other_tokens))
    assert not torch.allclose(*each)


def test_a_model_whose_MLP_0_writes_nothing_of_tokens_misses_nothing_of_it(model, tokens, other_tokens):
    parameters = model.parameter_tensors()
    parameters["blocks.0.mlp.W_out"] = torch.zeros_like(parameters["blocks.0.mlp.W_out"])
    silent = NoPosTransformer(model.config, parameters)
    expected = share_won(silent(tokens), tokens)
    for reader in ("MLP 1", "unembedding", "both"):
        options = {"other_tokens": other_tokens, "reader": reader, "own": True}
        observed = current_token_wins(silent, tokens, components=("blocks.0.hook_mlp_out",), **options)
        assert observed == pytest.approx(expected)


def test_where_layer_1_reads_tokens_alone_it_writes_each_by_its_weight(law_model):
    """Layer 0 writes nothing, and no score depends on content, so a patched token moves nothing but its own value."""
    parameters = law_model.parameter_tensors()
    for name in ("blocks.0.attn.W_O", "blocks.0.mlp.W_out", "blocks.1.attn.W_Q", "blocks.1.attn.b_Q"):
        parameters[name] = torch.zeros_like(parameters[name])
    plain = NoPosTransformer(law_model.config, parameters)
    tokens, other_tokens = (held_out_tokens(law_model.config, 30, stream=stream) for stream in (0, 1))
    written = written_per_weight(plain, tokens, other_tokens=other_tokens, folded=folded_of(plain), offsets=4)
    # queries differ in how many keys they see, so a slope over the mean weight is near one, and alike for all offsets
    weights = plain.run_with_cache(tokens)[1]["blocks.1.attn.hook_pattern"][:, 0]
    query = 4 + torch.arange(30) % 22
    for offset in range(4):
        own = torch.stack([weights[row, position, position - offset] for row, position in enumerate(query)])
        mean = weights.mean(0).diagonal(-offset).mean()
        assert own.min() / mean - 0.01 <= written[offset] <= own.max() / mean + 0.01
    silent = NoPosTransformer(
        law_model.config, {**parameters, "blocks.1.attn.W_O": 0 * parameters["blocks.1.attn.W_O"]}
    )
    nothing = written_per_weight(silent, tokens, other_tokens=other_tokens, folded=folded_of(plain), offsets=4)
    assert (nothing == 0).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda m, t: current_token_wins(m, t, other_tokens=t, reader="MLP", own=True),
            "reader is 'MLP'; it must be one",
        ),
        (
            lambda m, t: written_per_weight(m, t, other_tokens=t[:2], folded=folded_of(m), offsets=2),
            "must be at least as many",
        ),
        (lambda m, t: written_per_weight(m, t, other_tokens=t, folded=m, offsets=6), "offsets is 6; it is 0 to 5"),
    ],
)
def test_what_there_is_not_is_one_clear_line(model, tokens, ask, message):
    with pytest.raises(AnalysisError, match=message):
        ask(model, tokens)
