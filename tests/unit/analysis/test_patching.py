from __future__ import annotations

import pytest
import torch

from nopos.analysis.patching import (
    SPACING,
    exchange_codes,
    loss_with_codes_exchanged,
    mean_code,
    response_to_swapped_token,
)
from nopos.data import held_out_tokens, per_token_loss
from nopos.model import NoPosTransformer
from nopos.theory import RELAY_CONFIG, relay_parameters


@pytest.fixture
def relay():
    return NoPosTransformer(RELAY_CONFIG, relay_parameters())


@pytest.fixture
def tokens():
    return held_out_tokens(RELAY_CONFIG, 16)


def test_exchanged_slots_have_each_others_codes_and_the_rest_their_own():
    codes = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    after = codes + exchange_codes(codes, torch.tensor([4, 10]), (1, 2))
    expected = codes[[0, 1, 3, 2, 4, 5, 6, 7, 9, 8, 10, 11]]
    torch.testing.assert_close(after, expected)


def test_exchanging_what_the_relay_finds_places_by_exchanges_the_places(relay, tokens):
    """Its layer 0 looks one slot back by W_pos: at the hook point of W_pos an exchange moves what it sees."""
    options = {"other_tokens": tokens, "hook_point": "hook_pos_embed", "offsets": (1, 2)}
    before = per_token_loss(relay(tokens), tokens, target_offset=2).mean().item()
    assert before > 20
    assert loss_with_codes_exchanged(relay, tokens, target_offset=2, **options) < 0.01
    assert loss_with_codes_exchanged(relay, tokens, target_offset=1, **options) > 20
    assert loss_with_codes_exchanged(relay, tokens, target_offset=2, direction="random", **options) > 1


def test_exchanging_a_slot_with_itself_changes_nothing(relay, tokens):
    queries = torch.arange(2, 50, SPACING)
    expected = per_token_loss(relay(tokens), tokens)[:, queries - 1].mean().item()
    for direction in ("code", "random"):
        loss = loss_with_codes_exchanged(
            relay,
            tokens,
            other_tokens=tokens,
            hook_point="hook_pos_embed",
            offsets=(1, 1),
            target_offset=1,
            direction=direction,
        )
        assert loss == pytest.approx(expected, abs=1e-6)


def test_the_mean_code_of_what_no_sequence_changes_is_it(relay, tokens):
    torch.testing.assert_close(mean_code(relay, tokens, hook_point="hook_pos_embed"), relay.pos_embed.W_pos)


def test_a_swap_changes_the_named_token_and_reports_what_the_neurons_saw(micro, noisy):
    model = NoPosTransformer(micro, noisy(micro, 0))
    own, others = held_out_tokens(micro, 40), held_out_tokens(micro, 40, stream=1)
    swaps = response_to_swapped_token(model, own, other_tokens=others, layer=1, offset=1)
    assert swaps.before.tolist() == own[:, 1].tolist()  # one query, slot 2
    assert swaps.after.tolist() == others[:, 1].tolist()
    same = swaps.before == swaps.after
    assert same.any()
    assert (swaps.response[same] == 0).all()
    assert (swaps.response[~same].abs().amax(-1) > 1e-3).all()
