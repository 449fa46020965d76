"""The analyses, on sequences small enough to write down and on models whose answers are known."""

import pytest
import torch
from torch import nn

import analyses
from model import AttentionOnly, Sizes
from nopos import NotMeasurableError
from sequences import (
    PERIODS,
    answer_pos,
    has_answer,
    keeps_its_successor,
    repeats,
    rotation,
    with_copy_of_another,
)

# Two copies of 4 5 6 7, and of 4 5 6.
TOKENS = torch.tensor([[8, 9, 4, 5, 6, 7, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 4, 5, 6]])
PERIODS_OF_TOKENS = torch.tensor([4, 3])


class Successor(nn.Module):
    """Answers by content: the token after the last earlier occurrence of the current one."""

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 64)
        for row, sequence in enumerate(tokens.tolist()):
            for pos, token in enumerate(sequence):
                before = [earlier for earlier in range(pos) if sequence[earlier] == token]
                logits[row, pos, sequence[before[-1] + 1] if before else 63] = 1
        return logits


class Lag(nn.Module):
    """Answers by position: the token three back, which is right where the period is four."""

    def forward(self, tokens):
        return nn.functional.one_hot(tokens.roll(3, dims=1), 64).double()


def test_a_sequence_ends_with_two_copies_and_has_no_other_token_twice():
    tokens, periods = repeats(50, PERIODS, torch.Generator().manual_seed(0))
    assert set(periods.tolist()) == set(PERIODS)
    for sequence, period in zip(tokens.tolist(), periods.tolist(), strict=True):
        assert sequence[-period:] == sequence[-2 * period : -period]
        assert len(set(sequence)) == len(sequence) - period


def test_what_has_an_answer_and_where_it_stands():
    answered, positions = has_answer(TOKENS, PERIODS_OF_TOKENS), answer_pos(TOKENS, PERIODS_OF_TOKENS)
    assert answered[0].nonzero().flatten().tolist() == [6, 7, 8]
    assert positions[0, 6:9].tolist() == [3, 4, 5]
    assert (TOKENS.gather(1, positions) == TOKENS.roll(-1, dims=1))[answered].all()


def test_rotation_moves_each_token_and_keeps_what_follows_it():
    rotated = TOKENS.gather(1, rotation(TOKENS, PERIODS_OF_TOKENS))
    assert rotated.tolist() == [[8, 9, 6, 7, 4, 5, 4, 5, 6, 7], [0, 1, 2, 3, 5, 6, 4, 4, 5, 6]]
    kept = keeps_its_successor(TOKENS, PERIODS_OF_TOKENS)
    assert [row.nonzero().flatten().tolist() for row in kept] == [[6, 8], [8]]  # 5 and 4 end the first copy


def test_the_copy_of_another_sequence_leaves_what_stands_before_it():
    changed = with_copy_of_another(TOKENS, PERIODS_OF_TOKENS, torch.Generator().manual_seed(0))
    assert (changed[0, :6] == TOKENS[0, :6]).all()
    assert (changed[1, :7] == TOKENS[1, :7]).all()
    assert (changed[0, 6:] != TOKENS[0, 6:]).all()


def test_a_model_that_answers_by_content_is_right_wherever_the_copy_stands():
    given = {"tokens": TOKENS, "periods": PERIODS_OF_TOKENS}
    assert analyses.answers_right(Successor(), **given) == 1
    assert analyses.answers_by_content(Successor(), **given) == 1
    assert analyses.answers_by_lag(Successor(), **given) == 0


def test_a_model_that_answers_by_lag_is_right_where_the_period_is_its_own():
    assert analyses.answers_right(Lag(), TOKENS, PERIODS_OF_TOKENS) == pytest.approx(3 / 5)
    period_of_four = {"tokens": TOKENS[:1], "periods": PERIODS_OF_TOKENS[:1]}
    assert analyses.answers_right(Lag(), **period_of_four) == 1
    assert analyses.answers_by_content(Lag(), **period_of_four) == 0
    assert analyses.answers_by_lag(Lag(), **period_of_four) == 1


def test_an_induction_circuit_written_by_hand_is_one_by_every_measure():
    model, given = _written_by_hand(), {"tokens": TOKENS, "periods": PERIODS_OF_TOKENS}
    assert analyses.answers_right(model, **given) == 1
    assert analyses.attention_back(model, TOKENS, layer=0, distance=1) == pytest.approx([1])
    assert analyses.attention_to_answer(model, **given) == pytest.approx(1)
    assert analyses.answers_lost_without_answer(model, **given) == 1
    lost = analyses.answers_lost_by_distance(model, **given, layer=0)
    assert lost.pop(1) == 1
    assert set(lost.values()) == {0}
    assert analyses.answers_by_content(model, **given) == 1
    assert analyses.answers_by_lag(model, **given) == 0
    assert analyses.answers_by_key(model, **given) == 1


def test_attention_of_a_model_that_attends_to_all_alike():
    model = _attending_alike()
    assert analyses.attention_back(model, TOKENS, layer=0, distance=8) == pytest.approx([(1 / 9 + 1 / 10) / 2] * 4)
    in_each = [1 / (pos + 1) for pos in (6, 7, 8, 7, 8)]
    assert analyses.attention_to_answer(model, TOKENS, PERIODS_OF_TOKENS) == pytest.approx(sum(in_each) / 5)


def test_knocked_out_attention_is_nothing_and_the_rest_adds_up_to_one():
    model, edges = _attending_alike(), torch.ones(9, dtype=torch.bool).diag(-1)
    with analyses._knocked_out(model, 0, edges):
        pattern = analyses._pattern(model, TOKENS, 0)
    assert (pattern.diagonal(-1, dim1=2, dim2=3) == 0).all()
    assert torch.allclose(pattern.sum(dim=3), torch.ones(2, 4, 10))
    assert torch.allclose(pattern[0, 0, 3], torch.tensor([1 / 3, 1 / 3, 0, 1 / 3] + [0] * 6))
    assert analyses.attention_back(model, TOKENS, layer=0, distance=1)[0] > 0  # outside the block nothing is edited


def test_only_the_head_that_does_it_is_missed():
    model, given = _written_by_hand(n_heads=2), {"tokens": TOKENS, "periods": PERIODS_OF_TOKENS}
    assert analyses.answers_lost_without_head(model, **given, layer=0, head=0) == 0
    assert analyses.answers_lost_without_head(model, **given, layer=0, head=1) == 1


def test_a_model_of_one_layer_has_no_last_layer_that_reads_another():
    model = AttentionOnly(Sizes(n_layers=1, n_ctx=10), seed=0)
    for analysis in (analyses.attention_to_answer, analyses.answers_lost_without_answer, analyses.answers_by_key):
        with pytest.raises(NotMeasurableError, match="has one layer"):
            analysis(model, TOKENS, PERIODS_OF_TOKENS)


def _attending_alike():
    model = AttentionOnly(Sizes(n_ctx=10), seed=0)
    for layer in model.layers:
        layer.W_Q.data.zero_()
    return model


def _written_by_hand(n_heads=1):
    """Layer 0 looks one back by position and writes the token there; layer 1 looks for the current token in that.

    The last head of each layer does it, and others write nothing.
    """
    model = AttentionOnly(Sizes(n_heads=n_heads, d_model=40, d_head=10, d_vocab=10, n_ctx=10), seed=0)
    for parameter in model.parameters():
        parameter.requires_grad_(False).zero_()
    one = torch.eye(10)
    token, before, answer, position = (slice(start, start + 10) for start in (0, 10, 20, 30))
    model.W_E[:, token], model.W_pos[:, position], model.W_U[answer] = one, one, one
    first, last = model.layers
    first.W_Q[-1, position], first.W_K[-1, position] = 100 * one, one.roll(1, dims=1)
    first.W_V[-1, token], first.W_O[-1, :, before] = one, one
    last.W_Q[-1, token], last.W_K[-1, before] = 100 * one, one
    last.W_V[-1, token], last.W_O[-1, :, answer] = one, one
    return model
