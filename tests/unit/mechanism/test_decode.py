from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.decode import (
    current_token_wins,
    written_of_tokens,
    written_per_weight,
)
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


def share_won(logits, tokens):
    won = [
        logits[batch, position, tokens[batch, position]] > logits[batch, position, tokens[batch, position - 1]]
        for batch in range(len(tokens))
        for position in range(1, tokens.shape[1])
        if tokens[batch, position] != tokens[batch, position - 1]
    ]
    return sum(won).item() / len(won)


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
def test_only_the_reader_named_misses_what_was_written(model, tokens, other_tokens, own):
    """By a forward pass of its own from the residual stream before MLP 1."""
    taken = written_of_tokens(model, other_tokens)[tokens if own else tokens.roll(1, dims=0)]
    mid = model.run_with_cache(tokens)[1]["blocks.1.hook_resid_mid"]
    block = model.block(1)

    def logits(to_mlp, to_unembedding):
        return model.unembed(model.ln_final(to_unembedding + block.mlp(block.ln2(to_mlp))))

    options = {"other_tokens": other_tokens, "own": own}
    observed = current_token_wins(model, tokens, reader="MLP 1", **options)
    assert observed == pytest.approx(share_won(logits(mid - taken, mid), tokens))
    observed = current_token_wins(model, tokens, reader="unembedding", **options)
    assert observed == pytest.approx(share_won(logits(mid, mid - taken), tokens))
    observed = current_token_wins(model, tokens, reader="both", **options)
    assert observed == pytest.approx(share_won(logits(mid - taken, mid - taken), tokens))


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
