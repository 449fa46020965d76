from __future__ import annotations

import pytest
import torch

from fixtures.micro import twin_of
from nopos.analysis.codes import (
    NEURONS_0,
    RESIDUAL,
    effect_of_directions,
    effect_of_keeping_neurons,
    effect_of_layer_0_by_law,
    effect_of_noise_in_the_plane,
    principal_directions,
    principal_shares,
    residual_by_law,
    smallest_turn,
)
from nopos.analysis.metrics import per_token_kl
from nopos.analysis.patching import mean_code
from nopos.data import generator, held_out_tokens
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer


@pytest.fixture
def tokens(lawful):
    return held_out_tokens(lawful.config, 8)


@pytest.fixture
def other_tokens(lawful):
    return held_out_tokens(lawful.config, 8, stream=1)


def kl_when(model, tokens, hook_point, added):
    edited = model.run_with_hooks(tokens, fwd_hooks=[(hook_point, lambda activation, hook: activation + added)])
    return per_token_kl(model(tokens), edited).mean().item()


def test_principal_shares_by_hand():
    """BOS counts for nothing; three steps along one axis and one along another."""
    codes = torch.tensor([[9.0, 9.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(principal_shares(codes), torch.tensor([0.9, 0.1], dtype=torch.float64))
    torch.testing.assert_close(principal_shares(codes + 7), torch.tensor([0.9, 0.1], dtype=torch.float64))
    assert (principal_shares(torch.ones(5, 2)) == 0).all()


def test_turns_by_hand():
    line = torch.tensor([[99.0, 5.0], [0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    assert smallest_turn(line, stride=1) == pytest.approx(1)
    corner = torch.tensor([[99.0, 5.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 1.0]])
    assert smallest_turn(corner, stride=1) == pytest.approx(0)
    there_and_back = torch.tensor([[99.0, 5.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert smallest_turn(there_and_back, stride=1) == pytest.approx(-1)
    zigzag = torch.tensor([[99.0, 5.0], [0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, -1.0], [4.0, 0.0]])
    assert smallest_turn(zigzag, stride=2) == pytest.approx(1)
    assert smallest_turn(zigzag, stride=1) == pytest.approx(0)
    assert smallest_turn(torch.zeros(5, 2), stride=1) == 0


def test_all_directions_are_the_code_and_none_leaves_it_still(lawful, tokens, other_tokens):
    def effect(count, *, kept):
        return effect_of_directions(lawful, tokens, other_tokens=other_tokens, count=count, kept=kept).kl

    codes = mean_code(lawful, other_tokens, hook_point=RESIDUAL)
    still = codes[1:].mean(dim=0) - codes
    still[0] = 0
    expected = kl_when(lawful, tokens, RESIDUAL, still)
    assert expected > 1e-4
    for unchanged in (effect(8, kept=True), effect(0, kept=False)):
        assert unchanged == pytest.approx(0, abs=1e-7)
    assert effect(0, kept=True) == pytest.approx(expected, rel=1e-3)
    assert effect(8, kept=False) == pytest.approx(expected, rel=1e-3)


def test_the_first_direction_is_the_one_with_the_largest_variance(lawful, tokens, other_tokens):
    codes = mean_code(lawful, other_tokens, hook_point=RESIDUAL)
    centred = codes[1:] - codes[1:].mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    along = centred @ vectors[:, -1:] @ vectors[:, -1:].T
    removed = torch.cat([torch.zeros(1, 8), -along])
    taken = effect_of_directions(lawful, tokens, other_tokens=other_tokens, count=1, kept=False).kl
    assert taken == pytest.approx(kl_when(lawful, tokens, RESIDUAL, removed), rel=1e-3)
    assert values[-1] > 2 * values[-2]


def test_all_neurons_kept_change_nothing_and_none_kept_hold_every_mean(lawful, tokens, other_tokens):
    mean = mean_code(lawful, other_tokens, hook_point=NEURONS_0)
    held = mean[1:].mean(dim=0) - mean
    held[0] = 0

    def effect(count):
        return effect_of_keeping_neurons(lawful, tokens, other_tokens=other_tokens, count=count).kl

    assert effect(12) == pytest.approx(0, abs=1e-7)
    assert effect(0) == pytest.approx(kl_when(lawful, tokens, NEURONS_0, held), rel=1e-3)
    assert effect(0) > 1e-4


def test_the_neurons_that_write_most_of_the_plane_are_kept_first(lawful, tokens, other_tokens):
    mean = mean_code(lawful, other_tokens, hook_point=NEURONS_0)[1:]
    codes = mean_code(lawful, other_tokens, hook_point=RESIDUAL)[1:]
    _, vectors = torch.linalg.eigh((codes - codes.mean(0)).T @ (codes - codes.mean(0)))
    into_plane = (lawful.block(0).mlp.W_out @ vectors[:, -2:]).norm(dim=-1)
    order = (mean.std(dim=0) * into_plane).argsort(descending=True)
    by_size = mean.std(dim=0).argsort(descending=True)
    count = next(k for k in range(1, 12) if set(order[:k].tolist()) != set(by_size[:k].tolist()))
    held = torch.zeros(26, 12)
    held[1:] = mean.mean(dim=0) - mean
    held[:, order[:count]] = 0
    expected = kl_when(lawful, tokens, NEURONS_0, held)
    kept = effect_of_keeping_neurons(lawful, tokens, other_tokens=other_tokens, count=count).kl
    assert kept == pytest.approx(expected, rel=1e-3)


def test_principal_directions_are_unit_vectors_the_largest_variance_first():
    codes = torch.tensor([[9.0, 9.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(principal_directions(codes).abs(), torch.eye(2))


def test_noise_in_the_plane_is_as_large_as_what_lies_outside_and_in_the_plane(lawful, tokens, other_tokens):
    codes = mean_code(lawful, other_tokens, hook_point=RESIDUAL)
    plane, centred = principal_directions(codes)[:2], codes[1:] - codes[1:].mean(dim=0)
    outside = (centred - centred @ plane.T @ plane).norm(dim=-1)
    source = generator("noise in the plane", 0)
    noise = torch.randn(25, 8, generator=source) @ plane.T @ plane
    noise = torch.cat([torch.zeros(1, 8), noise * (outside / noise.norm(dim=-1))[:, None]])
    effect = effect_of_noise_in_the_plane(lawful, tokens, other_tokens=other_tokens)
    assert effect.kl == pytest.approx(kl_when(lawful, tokens, RESIDUAL, noise), rel=1e-3)
    assert effect.kl > 1e-6


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda model, t: effect_of_directions(model, t, other_tokens=t, count=9, kept=True),
            "count is 9; it is 0 to 8",
        ),
        (lambda model, t: effect_of_keeping_neurons(model, t, other_tokens=t, count=-1), "count is -1; it is 0 to 12"),
        (lambda model, t: smallest_turn(torch.zeros(26, 2), stride=0), "stride is 0; with 26 slots it is 1 to 12"),
        (lambda model, t: smallest_turn(torch.zeros(26, 2), stride=13), "stride is 13; with 26 slots it is 1 to 12"),
    ],
)
def test_numbers_that_there_are_not_are_one_clear_line(lawful, tokens, ask, message):
    with pytest.raises(AnalysisError, match=message):
        ask(lawful, tokens)


def test_where_the_law_is_exact_layer_0_is_its_table(lawful, tokens):
    """Every residual, BOS's included, is the table's entry for its token and slot."""
    twin = twin_of(lawful)
    table = residual_by_law(twin)
    assert table.shape == (7, 26, 8)
    found = twin.run_with_cache(tokens)[1][RESIDUAL]
    torch.testing.assert_close(found, table[tokens, torch.arange(26)])
    assert effect_of_layer_0_by_law(lawful, tokens, twin=twin).kl == pytest.approx(0, abs=1e-6)
    assert not torch.allclose(table[3, 5], table[3, 6])
    assert not torch.allclose(table[3, 5], table[4, 5])


def test_a_table_is_made_for_one_head(micro, noisy):
    with pytest.raises(AnalysisError, match="layer 0 has 2 heads"):
        residual_by_law(twin_of(NoPosTransformer(micro, noisy(micro, 0))))
