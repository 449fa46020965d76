"""Layers are arguments: with a layer that does nothing in between, what was asked of layer 1 is asked of layer 2."""

from __future__ import annotations

import inspect
from dataclasses import astuple, is_dataclass, replace

import pytest
import torch

from nopos.mechanism import decode, decoded_position, kernel, kernel_interventions, position_code, program, reading
from nopos.methods import activation_patching, attention, circuits, neurons
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import folded_of

WRITES = ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out")


@pytest.fixture
def three_layers(law_model):
    """The model with a layer between its two that writes nothing."""
    own = law_model.parameter_tensors()
    second = {name.replace("blocks.1.", "blocks.2."): value for name, value in own.items() if "blocks.1." in name}
    idle = {name.replace("blocks.0.", "blocks.1."): value for name, value in own.items() if "blocks.0." in name}
    idle |= {f"blocks.1.{name}": torch.zeros_like(idle[f"blocks.1.{name}"]) for name in WRITES}
    return NoPosTransformer(replace(law_model.config, n_layers=3), own | second | idle)


ANALYSES_OF_A_LAYER = [
    (attention.effect_of_averaging_bos_key, {}),
    (attention.effect_of_knock_out, {"offset": 1}),
    (attention.effect_of_keeping_only, {"offset": 1}),
    (attention.mean_pattern, {}),
    (attention.mean_weight_by_offset, {}),
    (attention.patterns, {}),
    (attention.strongest_offset_share, {"offset": 1}),
    (neurons.mlp_activations, {}),
    (circuits.qk_circuit, {}),
    (circuits.ov_circuit, {}),
    (circuits.ov_into_neurons, {}),
    (circuits.full_ov_circuit, {}),
    (circuits.mean_reading, {}),
    (activation_patching.response_to_swapped_token, {"offset": 1}),
    (decode.copying_share, {}),
    (decode.neuron_response_correlation, {"offset": 1}),
    (decode.written_per_weight, {"offsets": 3}),
    (position_code.position_codes, {}),
    (position_code.effect_of_directions, {"count": 1, "kept": True}),
    (position_code.effect_of_noise_in_the_plane, {}),
    (position_code.effect_of_keeping_neurons, {"count": 2}),
    (decoded_position.after_a_second_bos, {"position": 5}),
    (decoded_position.with_bos_weighted, {"factor": 2.0}),
    (decoded_position.with_the_key_of_bos_elsewhere, {"position": 5}),
    (decoded_position.with_values_averaged, {"keys": "BOS"}),
    (decoded_position.of_patched_counts, {"counts": (3, 20)}),
    (decoded_position.shift_by_dilution, {"one_for_all": True}),
    (kernel.score_shares, {}),
    (kernel.score_falls, {}),
    (program.affine_map_of_mlp, {}),
    (reading.effect_without_position_of, {"components": ("blocks.0.hook_mlp_out",)}),
    (kernel_interventions.tilts, {}),
]


def ask(analysis, options, model, layer):
    """The numbers that an analysis gives of a layer."""
    offered = {
        "model": model,
        "folded": folded_of(model),
        "tokens": held_out_tokens(model.config, 8),
        "other_tokens": held_out_tokens(model.config, 8, stream=1),
    }
    asked = inspect.signature(analysis).parameters
    result = analysis(**{name: value for name, value in offered.items() if name in asked}, **options, layer=layer)
    parts = astuple(result) if is_dataclass(result) else (result,)
    return [torch.as_tensor(part).double() for part in parts if not isinstance(part, str)]


@pytest.mark.parametrize(("analysis", "options"), ANALYSES_OF_A_LAYER, ids=lambda value: getattr(value, "__name__", ""))
def test_an_analysis_of_a_layer_is_of_that_layer_wherever_it_stands(law_model, three_layers, analysis, options):
    expected = ask(analysis, options, law_model, 1)
    for ours, theirs in zip(ask(analysis, options, three_layers, 2), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, equal_nan=True)
    idle = ask(analysis, options, three_layers, 1)
    same = all(torch.allclose(ours, theirs, equal_nan=True) for ours, theirs in zip(idle, expected, strict=True))
    assert same is (analysis is circuits.mean_reading)  # what follows an idle layer reads what that reads


def test_every_analysis_that_takes_a_layer_is_tried_here():
    modules = (activation_patching, attention, circuits, decode, decoded_position, kernel, kernel_interventions)
    takes_one = {
        function
        for module in (*modules, neurons, position_code, program, reading)
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
        if "layer" in inspect.signature(function).parameters
    }
    assert takes_one - {analysis for analysis, _ in ANALYSES_OF_A_LAYER} == {decoded_position.position_decoder}
