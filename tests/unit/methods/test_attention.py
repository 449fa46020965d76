from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.methods.attention import (
    average_bos_key,
    effect_of_averaging_bos_key,
    effect_of_keeping_only,
    effect_of_knock_out,
    keep_only,
    knock_out,
    mean_pattern,
    mean_weight_by_offset,
    patterns,
    strongest_offset_share,
)
from nopos.model.data import held_out_tokens
from nopos.model.handwritten import relay_parameters
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import RELAY_CONFIG


def causal_pattern(seed, pos=6):
    scores = torch.randn(2, 1, pos, pos, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(pos, pos, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def test_a_knock_out_by_hand():
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])[None, None]
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2 / 3, 0.0, 1 / 3]])[None, None]
    torch.testing.assert_close(knock_out(pattern.log(), 1).softmax(-1), expected)


def test_a_knock_out_reaches_a_query_that_saw_nothing_else():
    """A weight so small that it is rounded to zero is what is left."""
    scores = torch.tensor([[0.0, -torch.inf], [200.0, 0.0]])[None, None]
    assert scores.softmax(-1)[0, 0, 1].tolist() == [1.0, 0.0]
    assert knock_out(scores, 1).softmax(-1)[0, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_keeping_one_offset_by_hand():
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])[None, None]
    expected = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[None, None]
    torch.testing.assert_close(keep_only(pattern, 1), expected)


@given(seed=st.integers(0, 10_000), offset=st.integers(0, 7))
def test_rows_stay_distributions_and_lose_what_is_knocked_out(seed, offset):
    pattern = causal_pattern(seed)
    after = knock_out(pattern.log(), offset).softmax(-1)
    for edited in (after, keep_only(pattern, offset)):
        torch.testing.assert_close(edited.sum(-1), torch.ones(2, 1, 6))
        assert (edited >= 0).all()
    at_offset = after.diagonal(-offset, dim1=-2, dim2=-1) if offset < 6 else torch.zeros(1)
    first_row_kept = 1 if offset == 0 else 0  # position 0 sees nothing but itself
    assert (at_offset[..., first_row_kept:] == 0).all()
    kept = keep_only(pattern, offset).diagonal(-offset, dim1=-2, dim2=-1) if offset < 6 else torch.ones(1)
    assert (kept == 1).all()


@given(seed=st.integers(0, 10_000), offset=st.integers(0, 5))
def test_a_knock_out_keeps_the_proportions_of_the_rest(seed, offset):
    pattern = causal_pattern(seed)
    edited = knock_out(pattern.log(), offset).softmax(-1)
    kept = edited > 0
    ratio = torch.where(kept, edited / pattern, torch.nan)
    spread = ratio.nan_to_num(-torch.inf).amax(-1) - ratio.nan_to_num(torch.inf).amin(-1)
    assert (spread.abs() < 1e-5).all()


@pytest.mark.parametrize(("layer", "looks_back"), [(0, 1), (1, 0)])
def test_the_relay_depends_on_what_it_was_built_to_look_at(layer, looks_back):
    model, tokens = NoPosTransformer(RELAY_CONFIG, relay_parameters(RELAY_CONFIG)), held_out_tokens(RELAY_CONFIG, 16)
    other = 1 - looks_back
    assert strongest_offset_share(model, tokens, layer=layer, offset=looks_back) == 1.0
    assert strongest_offset_share(model, tokens, layer=layer, offset=other) == pytest.approx(0, abs=0.03)
    assert mean_weight_by_offset(model, tokens, layer=layer)[looks_back] > 0.99
    alone, without = (
        {offset: edited(model, tokens, layer=layer, offset=offset) for offset in (looks_back, other)}
        for edited in (effect_of_keeping_only, effect_of_knock_out)
    )
    for unchanged in (alone[looks_back], without[other]):
        assert unchanged.logits_changed == pytest.approx(0, abs=1e-3)
        assert unchanged.answers_changed == 0
    for lost in (alone[other], without[looks_back]):
        assert lost.answers_lost > 0.95
        assert lost.logits_changed > 1


def test_patterns_and_their_means_are_distributions_over_what_a_query_may_see(micro, noisy):
    model, tokens = NoPosTransformer(micro, noisy(micro, 0)), held_out_tokens(micro, 5)
    pattern = patterns(model, tokens, layer=1)
    assert pattern.shape == (5, 2, 6, 6)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(5, 2, 6))
    mean = mean_pattern(model, tokens, layer=1)
    torch.testing.assert_close(mean, pattern.mean((0, 1)))
    assert (mean.triu(1) == 0).all()
    by_offset = mean_weight_by_offset(model, tokens, layer=1)
    assert by_offset[0].item() == pytest.approx(mean.diagonal().mean().item())
    assert by_offset[5].item() == pytest.approx(mean[5, 0].item())


def test_averaging_the_key_of_bos_leaves_the_others_and_their_mean():
    k = torch.arange(12.0).reshape(1, 4, 1, 3)
    averaged = average_bos_key(k)
    assert torch.equal(averaged[:, 1:], k[:, 1:])
    torch.testing.assert_close(averaged[0, 0, 0], k[0, 1:, 0].mean(0))


def test_a_model_whose_keys_are_all_alike_does_not_miss_the_key_of_bos(micro, noisy):
    parameters = noisy(micro, 0)
    tokens = held_out_tokens(micro, 5)
    assert effect_of_averaging_bos_key(NoPosTransformer(micro, parameters), tokens, layer=0).logits_changed > 1e-3
    parameters["blocks.0.attn.W_K"].zero_()
    effect = effect_of_averaging_bos_key(NoPosTransformer(micro, parameters), tokens, layer=0)
    assert effect.logits_changed == pytest.approx(0, abs=1e-6)
