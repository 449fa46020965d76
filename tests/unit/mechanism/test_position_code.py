from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.position_code import (
    effect_of_directions,
    effect_of_keeping_neurons,
    effect_of_noise_in_the_plane,
    position_codes,
    principal_directions,
    principal_shares,
    smallest_turn,
)
from nopos.methods.activation_patching import mean_activation
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import generator, held_out_tokens
from nopos.model.hook_points import hook_point

NEURONS_0, RESIDUAL = hook_point(0, "mlp.post"), hook_point(0, "resid_post")


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


@pytest.fixture
def other_tokens(law_model):
    return held_out_tokens(law_model.config, 8, stream=1)


def seen(residual):
    """What LayerNorm leaves to be read."""
    return residual - residual.mean(dim=-1, keepdim=True)


def change_when(model, tokens, hook_point, added):
    edited = model.run_with_hooks(tokens, fwd_hooks=[(hook_point, lambda activation, hook: activation + added)])
    return logits_changed(readout(model(tokens), tokens), readout(edited, tokens))


def test_a_code_is_the_mean_residual_as_a_LayerNorm_leaves_it_to_be_read(law_model, tokens):
    residual = law_model.run_with_cache(tokens)[1][RESIDUAL].mean(dim=0)
    torch.testing.assert_close(position_codes(law_model, tokens), seen(residual))
    assert not torch.allclose(seen(residual), residual)


@pytest.mark.parametrize("count", [1, 2])
def test_directions_are_taken_from_what_can_be_read(law_model, tokens, other_tokens, count):
    """MLP 0 writes the position to all of d_model alike, larger than all else: it is none of the first directions."""
    expected = effect_of_directions(law_model, tokens, other_tokens=other_tokens, count=count, kept=False)
    hidden = 100 * torch.arange(26.0)[:, None]
    law_model.add_perma_hook("blocks.0.hook_mlp_out", lambda written, hook: written + hidden)
    observed = effect_of_directions(law_model, tokens, other_tokens=other_tokens, count=count, kept=False)
    assert observed.logits_changed == pytest.approx(expected.logits_changed, rel=1e-2)
    assert expected.logits_changed > 1e-3


def test_principal_shares_by_hand():
    """BOS counts for nothing; three units along one axis and one along another."""
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


def test_all_directions_are_the_code_and_none_leaves_it_still(law_model, tokens, other_tokens):
    def effect(count, *, kept):
        return effect_of_directions(law_model, tokens, other_tokens=other_tokens, count=count, kept=kept).logits_changed

    codes = mean_activation(law_model, other_tokens, hook_point=RESIDUAL)
    still = codes[1:].mean(dim=0) - codes
    still[0] = 0
    expected = change_when(law_model, tokens, RESIDUAL, still)
    assert expected > 1e-4
    for unchanged in (effect(8, kept=True), effect(0, kept=False)):
        assert unchanged == pytest.approx(0, abs=1e-7)
    assert effect(0, kept=True) == pytest.approx(expected, rel=1e-3)
    assert effect(8, kept=False) == pytest.approx(expected, rel=1e-3)


def test_the_first_direction_is_the_one_with_the_largest_variance(law_model, tokens, other_tokens):
    codes = seen(mean_activation(law_model, other_tokens, hook_point=RESIDUAL))
    centred = codes[1:] - codes[1:].mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    along = centred @ vectors[:, -1:] @ vectors[:, -1:].T
    removed = torch.cat([torch.zeros(1, 8), -along])
    taken = effect_of_directions(law_model, tokens, other_tokens=other_tokens, count=1, kept=False).logits_changed
    assert taken == pytest.approx(change_when(law_model, tokens, RESIDUAL, removed), rel=1e-3)
    assert values[-1] > 2 * values[-2]


def test_all_neurons_kept_change_nothing_and_none_kept_hold_every_mean(law_model, tokens, other_tokens):
    mean = mean_activation(law_model, other_tokens, hook_point=NEURONS_0)
    held = mean[1:].mean(dim=0) - mean
    held[0] = 0

    def effect(count):
        return effect_of_keeping_neurons(law_model, tokens, other_tokens=other_tokens, count=count).logits_changed

    assert effect(12) == pytest.approx(0, abs=1e-7)
    assert effect(0) == pytest.approx(change_when(law_model, tokens, NEURONS_0, held), rel=1e-3)
    assert effect(0) > 1e-4


def test_the_neurons_that_write_most_of_the_plane_are_kept_first(law_model, tokens, other_tokens):
    mean = mean_activation(law_model, other_tokens, hook_point=NEURONS_0)[1:]
    codes = seen(mean_activation(law_model, other_tokens, hook_point=RESIDUAL))[1:]
    _, vectors = torch.linalg.eigh((codes - codes.mean(0)).T @ (codes - codes.mean(0)))
    into_plane = (law_model.block(0).mlp.W_out @ vectors[:, -2:]).norm(dim=-1)
    order = (mean.std(dim=0) * into_plane).argsort(descending=True)
    by_size = mean.std(dim=0).argsort(descending=True)
    count = next(k for k in range(1, 12) if set(order[:k].tolist()) != set(by_size[:k].tolist()))
    held = torch.zeros(26, 12)
    held[1:] = mean.mean(dim=0) - mean
    held[:, order[:count]] = 0
    expected = change_when(law_model, tokens, NEURONS_0, held)
    kept = effect_of_keeping_neurons(law_model, tokens, other_tokens=other_tokens, count=count).logits_changed
    assert kept == pytest.approx(expected, rel=1e-3)


def test_principal_directions_are_unit_vectors_the_largest_variance_first():
    codes = torch.tensor([[9.0, 9.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(principal_directions(codes).abs(), torch.eye(2))


def test_noise_in_the_plane_is_as_large_as_what_lies_outside_and_in_the_plane(law_model, tokens, other_tokens):
    codes = seen(mean_activation(law_model, other_tokens, hook_point=RESIDUAL))
    plane, centred = principal_directions(codes)[:2], codes[1:] - codes[1:].mean(dim=0)
    outside = (centred - centred @ plane.T @ plane).norm(dim=-1)
    rng = generator("noise in the plane", 0)
    noise = torch.randn(25, 8, generator=rng) @ plane.T @ plane
    noise = torch.cat([torch.zeros(1, 8), noise * (outside / noise.norm(dim=-1))[:, None]])
    effect = effect_of_noise_in_the_plane(law_model, tokens, other_tokens=other_tokens)
    assert effect.logits_changed == pytest.approx(change_when(law_model, tokens, RESIDUAL, noise), rel=1e-3)
    assert effect.logits_changed > 1e-6


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda model, t: effect_of_directions(model, t, other_tokens=t, count=9, kept=True),
            "count is 9; it is 0 to 8",
        ),
        (lambda model, t: effect_of_keeping_neurons(model, t, other_tokens=t, count=-1), "count is -1; it is 0 to 12"),
        (lambda model, t: smallest_turn(torch.zeros(26, 2), stride=0), "stride is 0; with 26 positions it is 1 to 12"),
        (
            lambda model, t: smallest_turn(torch.zeros(26, 2), stride=13),
            "stride is 13; with 26 positions it is 1 to 12",
        ),
    ],
)
def test_numbers_that_there_are_not_are_one_clear_line(law_model, tokens, ask, message):
    with pytest.raises(AnalysisError, match=message):
        ask(law_model, tokens)
