from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.methods.activation_patching import (
    RANDOM_DRAWS,
    Answers,
    answers_at,
    effect_of_swapping_means,
    mean_activation,
    random_directions,
    response_to_swapped_token,
    swap_means,
    with_norms_of,
)
from nopos.methods.activations import centred
from nopos.model.data import held_out_tokens
from nopos.model.handwritten import relay_parameters
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import RELAY_CONFIG


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def relay():
    return NoPosTransformer(RELAY_CONFIG, relay_parameters(RELAY_CONFIG))


@pytest.fixture
def tokens():
    return held_out_tokens(RELAY_CONFIG, 16)


def test_swapped_positions_have_each_others_means_and_the_rest_their_own():
    means = drawn(12, 3)
    after = means + swap_means(means, torch.tensor([4, 10]), (1, 2))
    torch.testing.assert_close(after, means[[0, 1, 3, 2, 4, 5, 6, 7, 9, 8, 10, 11]])


def test_random_directions_have_the_norms_of_what_they_replace_and_differ_between_positions():
    added = drawn(12, 30)
    added[3] = 0
    noise = random_directions(added, torch.Generator().manual_seed(1))
    torch.testing.assert_close(noise.norm(dim=-1), centred(added).norm(dim=-1))
    torch.testing.assert_close(noise.mean(dim=-1), torch.zeros(12), atol=1e-6, rtol=0)
    alike = torch.nn.functional.cosine_similarity(noise[:, None], noise[None], dim=-1)
    assert alike[0, 1:3].abs().max() < 0.9
    assert torch.nn.functional.cosine_similarity(noise, added, dim=-1).abs().max() < 0.9


def test_random_directions_are_those_of_what_can_be_read():
    """What every LayerNorm subtracts makes them neither longer nor others."""
    added, more = drawn(12, 30), 5 * drawn(12, 1, seed=2)
    first, second = (random_directions(each, torch.Generator().manual_seed(1)) for each in (added, added + more))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_norms_by_hand():
    directions, others = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 10.0], [0.0, 0.0]])
    assert with_norms_of(directions, others).tolist() == [[6.0, 8.0], [0.0, 0.0]]


def test_answers_by_hand():
    """Of two queries in two sequences three answer with the previous token, and one with the one before it."""
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1]])
    logits = torch.zeros(2, 6, 6)
    for batch, query, answer in ((0, 3, 2), (0, 5, 4), (1, 3, 4), (1, 5, 3)):
        logits[batch, query, answer] = 1.0
    queries = torch.tensor([3, 5])
    assert answers_at(logits, tokens, queries, (1, 2)) == Answers(near=0.75, far=0.25)
    assert answers_at(100 * logits + 7, tokens, queries, (2, 1)) == Answers(near=0.25, far=0.75)
    assert answers_at(logits, tokens, queries[:1], (1, 3)) == Answers(near=1.0, far=0.0)


def test_swapping_what_the_relay_tells_positions_apart_by_swaps_its_answers(relay, tokens):
    """Its layer 0 looks one position back by W_pos: means swapped at the hook point of W_pos change what it sees."""
    swap = effect_of_swapping_means(relay, tokens, other_tokens=tokens, hook_point="hook_pos_embed", offsets=(1, 2))
    assert swap.before.near == 1
    assert swap.before.far < 0.05
    assert swap.swapped.near < 0.05
    assert swap.swapped.far > 0.95
    assert len(swap.random) == RANDOM_DRAWS
    assert len({answers.near for answers in swap.random}) > 1  # each has a draw of its own
    assert max(answers.far for answers in swap.random) < 0.5


def test_swapping_a_position_with_itself_changes_nothing(relay, tokens):
    swap = effect_of_swapping_means(relay, tokens, other_tokens=tokens, hook_point="hook_pos_embed", offsets=(1, 1))
    queries = torch.arange(2, 50, 5)
    expected = (relay(tokens).argmax(-1)[:, queries] == tokens[:, queries - 1]).float().mean().item()
    assert expected > 0.9
    for answers in (swap.before, swap.swapped, *swap.random):
        assert answers.near == answers.far == pytest.approx(expected)


def test_the_means_are_those_of_the_other_tokens(relay, tokens):
    torch.testing.assert_close(mean_activation(relay, tokens, hook_point="hook_pos_embed"), relay.pos_embed.W_pos)
    at = {"hook_point": "hook_embed", "offsets": (1, 2)}
    first, second = (
        effect_of_swapping_means(relay, tokens, other_tokens=held_out_tokens(RELAY_CONFIG, 2, stream=stream), **at)
        for stream in (1, 2)
    )
    assert first.before == second.before
    assert first.swapped != second.swapped


@pytest.mark.parametrize("offsets", [(0, 1), (2, 1), (1, 5), (-1, 2)], ids=str)
def test_offsets_whose_positions_would_meet_are_one_clear_line(relay, tokens, offsets):
    with pytest.raises(AnalysisError, match=r"they must rise, and lie from 1 to 4"):
        effect_of_swapping_means(relay, tokens, other_tokens=tokens, hook_point="hook_pos_embed", offsets=offsets)


def test_a_swap_changes_one_token_of_a_sequence_and_reports_what_the_neurons_saw(micro, noisy):
    model = NoPosTransformer(micro, noisy(micro, 0))
    own, others = held_out_tokens(micro, 40), held_out_tokens(micro, 40, stream=1)
    swaps = response_to_swapped_token(model, own, other_tokens=others, layer=1, offset=1)
    for number in range(40):
        query = 2 + number % 4
        swapped = own[number : number + 1].clone()
        swapped[0, query - 1] = others[number, query - 1]
        assert (swaps.before[number], swaps.after[number]) == (own[number, query - 1], others[number, query - 1])
        before, after = (
            model.run_with_cache(which)[1]["blocks.1.mlp.hook_pre"][0, query]
            for which in (own[number : number + 1], swapped)
        )
        torch.testing.assert_close(swaps.response[number], after - before, atol=1e-5, rtol=1e-4)
    assert (swaps.before == swaps.after).any()


def test_a_response_needs_as_many_other_tokens(micro, noisy):
    model = NoPosTransformer(micro, noisy(micro, 0))
    with pytest.raises(AnalysisError, match=r"other_tokens are \[1, 6\]; they must be at least as many as the tokens"):
        response_to_swapped_token(
            model, held_out_tokens(micro, 4), other_tokens=held_out_tokens(micro, 1), layer=1, offset=1
        )
