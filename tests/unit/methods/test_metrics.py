from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.methods.metrics import logit_difference, per_token_kl


def random_logits(seed):
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


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
