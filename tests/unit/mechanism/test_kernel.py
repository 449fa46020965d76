from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.kernel import (
    effect_of_scores_from_weights,
    near,
    score_falls,
    score_shares,
    scores_from_weights,
    share_explained_by_weights,
    shares,
)
from nopos.mechanism.layer_0_table import residual_table
from nopos.methods.attention import LATE
from nopos.methods.metrics import logits_changed, readout
from nopos.methods.statistics import relative_range
from nopos.model.data import held_out_tokens
from tests.support.micro import folded_of, with_layer_1_attention

Q, K, SCORES = (f"blocks.1.attn.hook_{name}" for name in ("q", "k", "attn_scores"))


@pytest.fixture
def every_token(law_model):
    """Each token in each position after BOS exactly once."""
    tokens = 1 + (torch.arange(6)[:, None] + torch.arange(26)[None]) % 6
    tokens[:, 0] = 0
    return tokens


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_near_scores_are_the_offsets_of_late_queries_less_their_mean():
    scores = drawn(2, 1, 14, 14)
    observed = near(scores)
    assert observed.shape == (2, 1, 4, 6)
    row = torch.stack([scores[1, 0, 12, 12 - offset] for offset in range(6)])
    torch.testing.assert_close(observed[1, 0, 2], row - row.mean())
    torch.testing.assert_close(near(scores, first=1)[1, 0, 2], row[1:] - row[1:].mean())


def test_shares_by_what_scores_are_made_of():
    distance = drawn(1, 1, 1, 6).expand(400, 1, 30, 6)
    position = drawn(1, 1, 30, 6, seed=1).expand(400, 1, 30, 6)
    content = drawn(400, 1, 30, 6, seed=2)
    centred = [part - part.mean(dim=-1, keepdim=True) for part in (distance, position, content)]
    variances = [part.pow(2).mean() for part in centred]
    only_distance, only_content = shares(centred[0]), shares(centred[2])
    assert only_distance.position == pytest.approx(1)
    assert only_distance.distance == pytest.approx(1)
    assert only_content.position == pytest.approx(0, abs=0.01)
    mixed = shares(centred[0] + centred[1] + centred[2])
    assert mixed.position == pytest.approx(((variances[0] + variances[1]) / sum(variances)).item(), abs=0.05)
    assert mixed.distance == pytest.approx((variances[0] / (variances[0] + variances[1])).item(), abs=0.1)
    nothing = shares(torch.zeros(2, 1, 3, 6))
    assert (nothing.position, nothing.distance) == (0, 0)


def test_score_shares_are_of_layer_1(law_model, tokens):
    assert score_shares(law_model, tokens) == shares(near(law_model.run_with_cache(tokens)[1][SCORES]))


def test_falls_by_hand(law_model, tokens):
    falls = score_falls(law_model, tokens)
    cache = law_model.run_with_cache(tokens)[1]
    scores = cache[SCORES][:, 0].mean(dim=0)
    keys = (cache[K][:, :, 0] @ cache[Q][:, LATE:, 0].mean(dim=(0, 1))).mean(dim=0) / 2  # d_head is 4
    for number, query in enumerate(range(LATE, 26)):
        expected = (scores[query, query - 1] - scores[query, query - 5]) / 4
        torch.testing.assert_close(falls.of_scores[number], expected, atol=1e-5, rtol=1e-4)
        expected = (keys[query - 1] - keys[query - 5]) / 4
        torch.testing.assert_close(falls.of_keys[number], expected, atol=1e-5, rtol=1e-4)


def test_asked_by_one_query_keys_fall_as_scores_do(law_model, tokens):
    """Without W_Q every query is b_Q."""
    falls = score_falls(with_layer_1_attention(law_model, W_Q=0.0), tokens)
    torch.testing.assert_close(falls.of_scores, falls.of_keys, atol=1e-5, rtol=1e-4)


def test_a_model_without_scores_has_no_falls(law_model, tokens):
    falls = score_falls(with_layer_1_attention(law_model, W_K=0.0, b_K=0.0), tokens)
    assert relative_range(falls.of_scores) == relative_range(falls.of_keys) == 0


def test_where_the_law_is_exact_the_scores_from_weights_are_the_mean_scores(law_model, every_token):
    folded = folded_of(law_model)
    cache = folded.run_with_cache(every_token)[1]
    q, k = cache[Q][:, :, 0], cache[K][:, :, 0]
    expected = q.mean(0) @ k.mean(0).T / 2
    own = cache[SCORES][:, 0].mean(dim=0).diagonal()
    permitted = torch.ones(26, 26).tril().bool()
    observed = scores_from_weights(folded, pos=26, own_token=False)[0]
    torch.testing.assert_close(observed[1:, 1:][permitted[1:, 1:]], expected[1:, 1:][permitted[1:, 1:]])
    torch.testing.assert_close(observed[1:, 0], expected[1:, 0])
    assert (observed[~permitted] == -torch.inf).all()
    with_own = scores_from_weights(folded, pos=26)[0]
    torch.testing.assert_close(with_own.diagonal()[1:], own[1:])
    torch.testing.assert_close(with_own.tril(-1)[permitted], observed.tril(-1)[permitted])


def test_scores_from_weights_replace_scores(law_model, tokens):
    folded = folded_of(law_model)
    for own_token in (True, False):
        scores = scores_from_weights(folded, pos=26, own_token=own_token).float()
        edited = law_model.run_with_hooks(
            tokens, fwd_hooks=[(SCORES, lambda old, hook, new=scores: new.expand_as(old))]
        )
        expected = logits_changed(readout(law_model(tokens), tokens), readout(edited, tokens))
        observed = effect_of_scores_from_weights(law_model, tokens, folded=folded, own_token=own_token).logits_changed
        assert observed == pytest.approx(expected, rel=1e-4)
        assert expected > 1e-6


def test_the_weights_explain_all_where_it_is_exact_and_little_of_another_models_scores(law_model, every_token):
    """Without W_Q query and key match in no position, so nothing is left but the products of means."""
    plain = with_layer_1_attention(law_model, W_Q=0.0)
    assert share_explained_by_weights(plain, every_token, folded=folded_of(plain)) == pytest.approx(1, abs=1e-4)
    backwards = with_layer_1_attention(law_model, W_Q=0.0)
    with torch.no_grad():
        backwards.block(1).attn.b_Q.neg_()
    assert share_explained_by_weights(plain, every_token, folded=folded_of(backwards)) == 0


@pytest.mark.parametrize("ask", [score_shares, score_falls])
def test_sequences_without_late_queries_are_one_clear_line(law_model, tokens, ask):
    with pytest.raises(AnalysisError, match="sequences have 10 positions; this analysis needs at least 11"):
        ask(law_model, tokens[:, :10])


def test_the_law_is_asked_for_as_many_positions_as_there_are(law_model, tokens):
    short = tokens[:, :20]
    folded = folded_of(law_model)
    assert effect_of_scores_from_weights(law_model, short, folded=folded).logits_changed > 0
    assert 0 <= share_explained_by_weights(law_model, short, folded=folded) <= 1


def test_the_table_of_layer_0_is_what_scores_from_weights_read(law_model):
    """Scores of BOS as a key are those of its one entry."""
    folded = folded_of(law_model)
    table, attention = residual_table(folded), folded.block(1).attn
    normalized = folded.block(1).ln1(table)
    q = (normalized[1:] @ attention.W_Q[0] + attention.b_Q[0]).mean(0)
    k = normalized[0, 0] @ attention.W_K[0] + attention.b_K[0]
    torch.testing.assert_close(scores_from_weights(folded, pos=26)[0, 1:, 0], (q @ k / 2)[1:])
