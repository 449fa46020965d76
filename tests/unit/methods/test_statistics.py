from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nopos.methods.statistics import (
    correlation,
    interval,
    rank_correlation,
    relative_range,
    share_above,
    share_explained,
    slope,
)


def drawn(seed):
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_a_correlation_is_bounded_symmetric_and_blind_to_scale_and_shift(seed, scale, shift):
    first, second = drawn(seed), drawn(seed + 1)
    value = correlation(first, second)
    assert -1 <= value <= 1
    assert correlation(second, first) == pytest.approx(value, abs=1e-9)
    assert correlation(first, scale * second + shift) == pytest.approx(value, abs=1e-4)
    assert correlation(first, first) == pytest.approx(1)
    assert correlation(first, -first) == pytest.approx(-1)


def test_nothing_correlates_with_a_constant():
    assert correlation(drawn(0), torch.full((2, 5, 7), 3.0)) == 0.0


def test_ranks_by_hand():
    """Equal values share the mean of their ranks."""
    first, second = torch.tensor([1.0, 5.0, 5.0, 9.0]), torch.tensor([2.0, 30.0, 4.0, 100.0])
    ranks = torch.tensor([1.0, 2.5, 2.5, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert rank_correlation(first, second) == pytest.approx(correlation(*ranks))
    assert rank_correlation(second, second.exp()) == pytest.approx(1)
    assert rank_correlation(second, -second) == pytest.approx(-1)
    assert rank_correlation(second, torch.ones(4)) == 0


@given(seed=st.integers(0, 10_000))
def test_a_rank_correlation_is_the_same_in_any_order_of_the_entries_and_that_of_scipy(seed):
    drawn = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, 9, (2, 40), generator=drawn).double()
    order = torch.randperm(40, generator=drawn)
    found = rank_correlation(first, second)
    assert rank_correlation(first[order].tolist(), second[order].tolist()) == found
    assert found == pytest.approx(spearmanr(first.numpy(), second.numpy()).statistic, abs=1e-12)


def test_an_interval_is_exact():
    assert interval(10, 10) == pytest.approx([0.025 ** (1 / 10), 1.0])  # none of n failing: the rule in closed form
    assert interval(0, 10) == pytest.approx([0.0, 1 - 0.025 ** (1 / 10)])
    assert interval(5, 10) == pytest.approx([0.18708603, 0.81291397])
    assert interval(0, 0) == (0.0, 1.0)


VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


def test_a_share_above_by_hand():
    """Of pairs, equal values counting half."""
    assert share_above([3.0, 4.0], [1.0, 2.0]) == 1
    assert share_above([1.0, 2.0], [3.0, 4.0]) == 0
    assert share_above([1.0, 3.0], [2.0]) == 0.5
    assert share_above([2.0, 3.0], [2.0, 1.0]) == (0.5 + 1 + 1 + 1) / 4
    assert share_above([2.0, 2.0], [2.0]) == 0.5


@given(first=VALUES, second=VALUES)
def test_shares_above_in_both_directions_are_one_together(first, second):
    assert share_above(first, second) + share_above(second, first) == pytest.approx(1)


WHOLE = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=6)


@given(first=WHOLE, second=WHOLE)
def test_a_share_above_is_counted_pair_by_pair_and_blind_to_scale(first, second):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    share = share_above(first, second)
    assert share == pytest.approx(sum(pairs) / len(pairs))
    assert share_above([value**3 for value in first], [value**3 for value in second]) == share


def test_a_relative_range_by_hand():
    assert relative_range(torch.tensor([1.0, 2.0, 3.0])) == 1
    assert relative_range(torch.tensor([-1.0, -2.0, -3.0])) == 1
    assert relative_range(torch.tensor([2.0, 2.0])) == 0
    assert relative_range(torch.zeros(3)) == 0


def test_a_slope_by_hand():
    assert slope(torch.tensor([2.0, 4.0]), on=torch.tensor([1.0, 2.0])) == 2
    assert slope(torch.tensor([2.0, -1.0]), on=torch.tensor([1.0, 2.0])) == 0
    assert slope(torch.tensor([3.0, 5.0]), on=torch.tensor([1.0, 2.0])) == pytest.approx(13 / 5)
    assert slope(torch.tensor([3.0, 5.0]), on=torch.zeros(2)) == 0


@given(seed=st.integers(0, 10_000), factor=st.floats(-5, 5))
def test_what_a_slope_leaves_is_orthogonal_to_what_it_is_on(seed, factor):
    values, on = drawn(seed), drawn(seed + 1)
    assert slope(factor * on, on) == pytest.approx(factor, abs=1e-5)
    assert ((values - slope(values, on) * on) * on).sum().item() == pytest.approx(0, abs=1e-2)


def test_a_share_explained_by_hand():
    observed = torch.tensor([[2.0, 4.0]])
    assert share_explained(torch.tensor([[1.0, 2.0]]), observed) == 1 - 5 / 20
    assert share_explained(observed, observed) == 1
    assert share_explained(torch.zeros(1, 2), observed) == 0
    assert share_explained(-observed, observed) == 0  # more is missed than there is
    assert share_explained(observed, torch.zeros(1, 2)) == 0
