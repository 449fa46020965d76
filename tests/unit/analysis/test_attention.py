from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.analysis.attention import cut, keep_only, loss_keeping_only, loss_with_cut, strongest_offset_share
from nopos.data import held_out_tokens, mean_loss
from nopos.model import NoPosTransformer
from nopos.theory import RELAY_CONFIG, relay_parameters


def causal_pattern(seed, pos=6):
    scores = torch.randn(2, 1, pos, pos, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(pos, pos, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def test_a_cut_by_hand():
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])[None, None]
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2 / 3, 0.0, 1 / 3]])[None, None]
    torch.testing.assert_close(cut(pattern, 1), expected)


def test_keeping_one_offset_by_hand():
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])[None, None]
    expected = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[None, None]
    torch.testing.assert_close(keep_only(pattern, 1), expected)


@given(seed=st.integers(0, 10_000), offset=st.integers(0, 7))
def test_rows_stay_distributions_and_lose_what_is_cut(seed, offset):
    pattern = causal_pattern(seed)
    for edited in (cut(pattern, offset), keep_only(pattern, offset)):
        torch.testing.assert_close(edited.sum(-1), torch.ones(2, 1, 6))
        assert (edited >= 0).all()
    after_cut = cut(pattern, offset).diagonal(-offset, dim1=-2, dim2=-1) if offset < 6 else torch.zeros(1)
    first_row_kept = 1 if offset == 0 else 0  # slot 0 sees nothing but itself
    assert (after_cut[..., first_row_kept:] == 0).all()
    kept = keep_only(pattern, offset).diagonal(-offset, dim1=-2, dim2=-1) if offset < 6 else torch.ones(1)
    assert (kept == 1).all()


@given(seed=st.integers(0, 10_000), offset=st.integers(0, 5))
def test_a_cut_keeps_the_proportions_of_the_rest(seed, offset):
    pattern, edited = causal_pattern(seed), cut(causal_pattern(seed), offset)
    kept = edited > 0
    ratio = torch.where(kept, edited / pattern, torch.nan)
    spread = ratio.nan_to_num(-torch.inf).amax(-1) - ratio.nan_to_num(torch.inf).amin(-1)
    assert (spread.abs() < 1e-5).all()


@pytest.mark.parametrize(("layer", "looks_back"), [(0, 1), (1, 0)])
def test_the_relay_depends_on_what_it_was_built_to_look_at(layer, looks_back):
    model, tokens = NoPosTransformer(RELAY_CONFIG, relay_parameters()), held_out_tokens(RELAY_CONFIG, 16)
    loss = mean_loss(model(tokens), tokens).item()
    other = 1 - looks_back
    assert strongest_offset_share(model, tokens, layer=layer, offset=looks_back) == 1.0
    assert strongest_offset_share(model, tokens, layer=layer, offset=other) == pytest.approx(0, abs=0.03)
    assert loss_keeping_only(model, tokens, layer=layer, offset=looks_back) == pytest.approx(loss, abs=1e-3)
    assert loss_keeping_only(model, tokens, layer=layer, offset=other) > loss + 5
    assert loss_with_cut(model, tokens, layer=layer, offset=other) == pytest.approx(loss, abs=1e-3)
