from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.methods import metrics
from nopos.methods.metrics import answers_changed, logit_difference, readout
from nopos.model.data import mean_loss


def random_logits(seed):
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


def read(logits):
    """What logits answer about tokens that do not matter."""
    return readout(logits, torch.zeros(logits.shape[:2], dtype=torch.long))


def per_token_kl(before, after):
    return metrics.per_token_kl(read(before), read(after))


@pytest.mark.parametrize("target_offset", [1, 2])
def test_a_readout_has_the_loss_and_the_largest_logits(target_offset):
    logits, tokens = random_logits(3), torch.arange(10).reshape(2, 5) % 7
    of_logits = readout(logits, tokens, target_offset=target_offset)
    assert of_logits.loss == mean_loss(logits, tokens, target_offset=target_offset).item()
    assert of_logits.largest.equal(logits[:, target_offset:].argmax(-1))
    expected = logit_difference(logits, tokens, target_offset=target_offset).mean().item()
    assert of_logits.logit_difference == expected
    assert of_logits.probs.sum(-1).sub(1).abs().max() < 1e-6


def test_answers_change_where_another_logit_is_the_largest():
    before = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 2.0]]])
    after = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.3, 0.2]]])
    assert answers_changed(read(before), read(after)) == 0.25
    assert answers_changed(read(before), read(before)) == 0


@given(seed=st.integers(0, 10_000))
def test_kl_is_zero_for_the_same_answer_and_positive_for_another(seed):
    first, second = random_logits(seed), random_logits(seed + 1)
    shifted = first + torch.arange(5.0)[:, None]  # the same for all tokens of a position
    assert per_token_kl(first, shifted).abs().max() < 1e-5
    assert (per_token_kl(first, second) > 0).all()
    assert per_token_kl(first, second).shape == (2, 4)


def test_kl_by_hand_and_in_which_direction():
    """A sure answer against a fair coin costs ln 2; a fair coin against a sure answer costs far more."""
    sure, coin = torch.tensor([[[0.0, -50.0]] * 2]), torch.zeros(1, 2, 2)
    assert per_token_kl(sure, coin).item() == pytest.approx(0.6931, abs=1e-4)
    assert per_token_kl(coin, sure).item() == pytest.approx(25 - 0.6931, abs=1e-4)


def test_kl_sees_what_the_loss_does_not():
    """Two wrong tokens swap their probabilities: the right one keeps its own."""
    before, after = torch.tensor([[[0.0, 1.0, 3.0]] * 2]), torch.tensor([[[0.0, 3.0, 1.0]] * 2])
    assert before.log_softmax(-1)[..., 0].equal(after.log_softmax(-1)[..., 0])
    assert per_token_kl(before, after).item() > 1


def test_the_logit_difference_is_between_the_previous_and_the_current_token():
    tokens = torch.tensor([[0, 2, 1]])
    logits = torch.tensor([[[9.0, 9.0, 9.0], [5.0, 1.0, 2.0], [7.0, 4.0, 0.5]]])
    assert logit_difference(logits, tokens).tolist() == [[5.0 - 2.0, 0.5 - 4.0]]
