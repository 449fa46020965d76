from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.errors import AnalysisError
from nopos.methods.metrics import TENTHS, by_tenth, largest, lead, logit_difference, logits_changed, readout


def random_logits(seed):
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


def read(logits):
    """What logits answer about tokens that do not matter."""
    return readout(logits, torch.zeros(logits.shape[:2], dtype=torch.long))


@pytest.mark.parametrize("target_offset", [1, 2])
def test_a_readout_has_the_largest_logits_and_where_they_are_right(target_offset):
    logits, tokens = random_logits(3), torch.arange(10).reshape(2, 5) % 7
    found = readout(logits, tokens, target_offset=target_offset)
    predicted = logits[:, target_offset:]
    assert found.largest.equal(predicted.argmax(-1))
    assert found.right.equal(predicted.argmax(-1) == tokens[:, :-target_offset])
    torch.testing.assert_close(found.logits.softmax(-1), predicted.softmax(-1))
    assert found.logits.mean(-1).abs().max() < 1e-6


def test_of_several_largest_logits_the_first_is_the_answer():
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-3.0, -2.0, -1.0]])
    assert largest(logits).tolist() == [1, 0, 2]
    assert largest(logits.requires_grad_())[0] == 1


@given(seed=st.integers(0, 10_000))
def test_the_same_logits_are_no_change_to_the_last_bit(seed):
    logits = random_logits(seed)
    assert logits_changed(read(logits), read(logits.clone())) == 0


@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_surer_logits_change_by_as_much_as_they_are_surer(seed, factor):
    logits = random_logits(seed)
    assert logits_changed(read(logits), read(factor * logits)) == pytest.approx(abs(factor - 1), rel=1e-4, abs=1e-6)


def test_logits_that_have_nothing_to_do_with_each_other_change_by_the_root_of_two():
    first, second = (torch.randn(40, 20, 50, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert logits_changed(read(first), read(second)) == pytest.approx(2**0.5, rel=0.02)


@given(seed=st.integers(0, 10_000))
def test_a_change_is_no_larger_than_the_changes_on_the_way(seed):
    """In units of the first logits: the triangle inequality."""
    first, second, third = (read(random_logits(seed + more)) for more in range(3))
    rescaled = logits_changed(second, third) * (second.logits.norm() / first.logits.norm()).item()
    assert logits_changed(first, third) <= logits_changed(first, second) + rescaled + 1e-5


@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_the_change_of_logits_is_a_share_of_them_and_blind_to_what_is_added_to_all(seed, factor):
    first, second = random_logits(seed), random_logits(seed + 1)
    shift = torch.arange(5.0)[:, None]  # the same for all tokens of a position
    assert logits_changed(read(first), read(first + shift)) == pytest.approx(0, abs=1e-6)
    changed = logits_changed(read(first), read(second))
    assert changed > 0.1
    assert logits_changed(read(factor * first), read(factor * second)) == pytest.approx(changed, rel=1e-4)


def test_the_change_of_logits_by_hand():
    """Logits of 1 and -1, and then of -1 and 1: they change by twice themselves. Where there are none it is 0."""
    before = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]])
    assert logits_changed(read(before), read(-before)) == pytest.approx(2)
    assert logits_changed(read(before), read(0 * before)) == pytest.approx(1)
    assert logits_changed(read(0 * before), read(before)) == 0


def test_the_logit_difference_is_between_the_previous_and_the_current_token():
    tokens = torch.tensor([[0, 2, 1]])
    logits = torch.tensor([[[9.0, 9.0, 9.0], [5.0, 1.0, 2.0], [7.0, 4.0, 0.5]]])
    assert logit_difference(logits, tokens).tolist() == [[5.0 - 2.0, 0.5 - 4.0]]


def test_the_lead_is_over_the_largest_other_logit():
    tokens = torch.tensor([[0, 2, 1]])
    logits = torch.tensor([[[9.0, 9.0, 9.0], [5.0, 1.0, 2.0], [7.0, 4.0, 0.5]]])
    assert lead(logits, tokens).tolist() == [[5.0 - 2.0, 0.5 - 7.0]]
    assert lead(logits, tokens, target_offset=2).tolist() == [[7.0 - 4.0]]
    assert logits[0, 1].tolist() == [5.0, 1.0, 2.0]  # what the token to predict is masked in is a copy


@given(seed=st.integers(0, 10_000), target_offset=st.integers(1, 3))
def test_the_lead_is_positive_where_the_answer_is_right_and_blind_to_what_is_added_to_all(seed, target_offset):
    logits, tokens = random_logits(seed), torch.arange(10).reshape(2, 5) % 7
    found = lead(logits, tokens, target_offset=target_offset)
    assert (found > 0).equal(readout(logits, tokens, target_offset=target_offset).right)
    shift = torch.arange(5.0)[:, None]  # the same for all tokens of a position
    torch.testing.assert_close(lead(logits + shift, tokens, target_offset=target_offset), found, atol=1e-5, rtol=0)
    over_current = logit_difference(logits, tokens, target_offset=target_offset)
    another = tokens[:, target_offset:] != tokens[:, :-target_offset]
    assert (found <= over_current)[another].all()


def test_tenths_of_a_context_by_hand():
    """Of 20 positions the first has nothing to predict, so the first tenth is of one position and each other of two."""
    values = torch.arange(1.0, 20.0)
    assert by_tenth(values, pos=20).tolist() == [1.0, *(2.0 * tenth + 0.5 for tenth in range(1, 10))]
    assert by_tenth(torch.ones(48), pos=50).tolist() == [1.0] * 10


def test_tenths_of_a_context_that_ten_does_not_divide_by_hand():
    """Of 26 positions: 0 to 2, 3 to 5, 6 and 7, 8 to 10, 11 and 12, and so on; position 0 has nothing to predict."""
    values = torch.arange(1.0, 26.0)
    assert by_tenth(values, pos=26).tolist() == [1.5, 4.0, 6.5, 9.0, 11.5, 14.0, 17.0, 19.5, 22.0, 24.5]


@given(pos=st.integers(30, 120), first=st.integers(1, 2))
def test_every_position_is_in_one_tenth_in_order_and_all_tenths_are_about_as_long(pos, first):
    weights = torch.stack([by_tenth(one, pos=pos) for one in torch.eye(pos - first)])  # [predicted tenth]
    assert (weights > 0).sum(dim=-1).eq(1).all()
    assert weights.argmax(dim=-1).diff().ge(0).all()
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(TENTHS))
    sizes = (weights > 0).sum(dim=0)
    assert sizes[1:].max() - sizes[1:].min() <= 1
    assert sizes[0] + first - sizes[1:].min() in (0, 1)


@pytest.mark.parametrize(("predicted", "pos"), [(8, 9), (9, 10), (18, 20)])
def test_a_context_with_a_tenth_that_predicts_nothing_is_one_clear_line(predicted, pos):
    with pytest.raises(AnalysisError, match=f"sequences have {pos} positions; for tenths of them it must be"):
        by_tenth(torch.ones(predicted), pos=pos)
