"""Measures do not depend on how a function is written in weights, nor on how sure the answers are."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from nopos.mechanism import count, decode, decoded_position, kernel, kernel_interventions, layer_0_table, position_code
from nopos.mechanism.program import effect_of_the_program
from nopos.mechanism.reading import effect_without_position_of
from nopos.methods import activation_patching, attention, neurons, probes
from nopos.methods.ablation import ablated
from nopos.methods.interventions import Effect
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.gauges import GAUGES, all_of_them
from tests.support.micro import LAW_CONFIG, folded_of, noisy_parameters

CONFIG = replace(LAW_CONFIG, n_heads=2)
COUNT, CODE, RESIDUAL = "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"
SEQUENCES = 8


def written_as(gauge=None):
    """What an analysis may ask for, of a model with noise on all weights but W_pos, written in one way or another."""
    parameters = noisy_parameters(CONFIG, 2)
    parameters["pos_embed.W_pos"].zero_()
    if gauge is not None:
        parameters = gauge(parameters, CONFIG, torch.Generator().manual_seed(0))
    model = NoPosTransformer(CONFIG, parameters)
    tokens, other_tokens = (held_out_tokens(CONFIG, SEQUENCES, stream=stream) for stream in (0, 1))
    return {"model": model, "folded": folded_of(model), "tokens": tokens, "other_tokens": other_tokens}


@pytest.fixture(scope="module")
def one_way():
    return written_as()


@pytest.fixture(scope="module")
def another_way():
    return written_as(all_of_them)


def share_by_position(model, tokens):
    return neurons.mlp_activations(model, tokens, layer=0).share_by_position


def principal_shares(model, tokens):
    return position_code.principal_shares(position_code.position_codes(model, tokens))[: CONFIG.d_model - 1]


def smallest_turn(model, tokens):
    return position_code.smallest_turn(position_code.position_codes(model, tokens), stride=3)


def distances_of_codes(model, tokens):
    codes = position_code.position_codes(model, tokens)
    return (codes[:, None] - codes).norm(dim=-1)


def share_of_harm(model, tokens, other_tokens):
    return kernel_interventions.tilts(model, tokens, other_tokens=other_tokens).share_of_harm_tilted_away


MEASURES = [
    (ablated, {"kind": "per_position_mean", "hook_points": (COUNT, CODE, "blocks.1.mlp.hook_post")}),
    (ablated, {"kind": "resample", "hook_points": (COUNT, "blocks.1.attn.hook_pattern")}),
    (attention.mean_pattern, {"layer": 1}),
    (attention.effect_of_knock_out, {"layer": 1, "offset": 1}),
    (attention.effect_of_keeping_only, {"layer": 1, "offset": 1}),
    (attention.effect_of_averaging_bos_key, {"layer": 0}),
    (activation_patching.effect_of_swapping_means, {"hook_point": RESIDUAL, "offsets": (1, 2)}),
    (share_by_position, {}),
    (probes.position_r2, {"hook_point": CODE}),
    (probes.position_r2, {"hook_point": RESIDUAL}),
    (probes.position_r2, {"hook_point": RESIDUAL, "control_task": True}),
    (count.dilution, {}),
    (count.error_of_the_law, {}),
    (count.effect_of_the_law, {}),
    (count.effect_of_averaging_values, {"keys": "BOS"}),
    (layer_0_table.effect_of_the_table, {}),
    (principal_shares, {}),
    (smallest_turn, {}),
    (distances_of_codes, {}),
    (position_code.effect_of_directions, {"count": 1, "kept": True}),
    (position_code.effect_of_noise_in_the_plane, {}),
    (position_code.effect_of_keeping_neurons, {"count": 3}),
    (effect_without_position_of, {"components": (COUNT, CODE)}),
    (decoded_position.after_a_second_bos, {"position": 5}),
    (decoded_position.with_bos_weighted, {"factor": 2.0}),
    (decoded_position.with_the_key_of_bos_elsewhere, {"position": 5}),
    (decoded_position.with_values_averaged, {"keys": "BOS"}),
    (decoded_position.of_patched_counts, {"counts": (3, 20)}),
    (decoded_position.shift_by_dilution, {"one_for_all": True}),
    (decoded_position.answers_to_swapped_counts, {"offsets": (1, 2)}),
    (kernel.score_shares, {}),
    (kernel.score_falls, {}),
    (kernel.effect_of_scores_from_weights, {}),
    (kernel.share_explained_by_weights, {"own_token": False}),
    (kernel_interventions.scores_of_patched_codes, {}),
    (share_of_harm, {}),
    (decode.copying_share, {}),
    (decode.neuron_response_correlation, {"offset": 1}),
    (decode.written_per_weight, {"offsets": 3}),
    (decode.current_token_wins, {"reader": "both", "own": True}),
    (effect_of_the_program, {}),
]


def ask(analysis, options, offered):
    asked = inspect.signature(analysis).parameters
    return analysis(**{name: value for name, value in offered.items() if name in asked}, **options)


def numbers(result):
    """All numbers of a result; of an effect the one that no answer can turn by rounding."""
    if isinstance(result, Effect):
        return numbers(result.logits_changed)
    if is_dataclass(result):
        return numbers([getattr(result, field.name) for field in fields(result)])
    if isinstance(result, dict):
        return numbers(list(result.values()))
    if isinstance(result, list | tuple):
        return torch.cat([numbers(part) for part in result])
    return torch.as_tensor(result).double().flatten()


@pytest.mark.parametrize(("analysis", "options"), MEASURES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_measure_is_the_same_however_the_weights_are_written(one_way, another_way, analysis, options):
    expected, found = (numbers(ask(analysis, options, offered)) for offered in (one_way, another_way))
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=2e-3)


SEEN_IN = {
    "neurons": "blocks.0.mlp.hook_post",
    "residual_mean": RESIDUAL,
    "key_bias": "blocks.1.attn.hook_attn_scores",
    "head_basis": "blocks.1.attn.hook_q",
    "logit_mean": None,
    "logit_scale": None,
}


@pytest.mark.parametrize("gauge", GAUGES)
def test_weights_written_in_another_way_show_in_activations_or_logits_and_in_no_answer(one_way, gauge):
    other, tokens, seen_in = written_as(GAUGES[gauge]), one_way["tokens"], SEEN_IN[gauge]
    before, after = (
        offered["model"].logits(tokens) if seen_in is None else offered["model"].activations(tokens, [seen_in])[seen_in]
        for offered in (one_way, other)
    )
    shown = before.isfinite()
    assert (after - before)[shown].abs().max() > 0.1 * before[shown].abs().mean()
    answers, same = (offered["model"].logits(tokens).argmax(dim=-1) for offered in (one_way, other))
    assert torch.equal(answers, same)
