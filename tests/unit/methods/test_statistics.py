from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nopos.methods.statistics import (
    correlation,
    interval,
    kendall_tau,
    rank_correlation,
    relative_range,
    share_explained,
    slope,
    slopes,
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


def test_kendalls_tau_by_hand():
    ranking = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    one_swap = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 4.0}
    assert kendall_tau(ranking, ranking) == 1.0
    assert kendall_tau(ranking, {name: -value for name, value in ranking.items()}) == -1.0
    assert kendall_tau(ranking, one_swap) == pytest.approx((5 - 1) / 6)
    tied = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 4.0}
    assert kendall_tau(ranking, dict.fromkeys(ranking, 1.0)) == 0.0
    assert kendall_tau(ranking, tied) == pytest.approx(5 / (6 * 5) ** 0.5)  # tau-b


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_kendalls_tau_is_symmetric_bounded_and_blind_to_scale(values, rng):
    first = {str(i): float(value) for i, value in enumerate(values)}
    shuffled = list(first.values())
    rng.shuffle(shuffled)
    second = dict(zip(first, shuffled, strict=True))
    tau = kendall_tau(first, second)
    assert -1 <= tau <= 1
    assert tau == kendall_tau(second, first)
    assert tau == kendall_tau({name: value**3 for name, value in first.items()}, second)


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


def test_slopes_are_those_of_each_row():
    values, on = torch.tensor([[2.0, 4.0], [3.0, 5.0], [3.0, 5.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    assert slopes(values, on=on).tolist() == pytest.approx([2, 13 / 5, 0])


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
