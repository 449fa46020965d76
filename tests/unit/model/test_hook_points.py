from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.model.data import held_out_tokens
from nopos.model.hook_points import (
    EMBED,
    FINAL_NORMALIZED,
    FINAL_SCALE,
    OF_A_BLOCK,
    POS_EMBED,
    hook_point,
    layer_of,
    stop_after,
)
from nopos.model.transformer import NoPosTransformer


def test_every_hook_point_of_a_model_has_a_name_here_in_the_order_of_its_forward_pass(micro):
    config = replace(micro, n_layers=3)
    of_blocks = [hook_point(layer, activation) for layer in range(3) for activation in OF_A_BLOCK]
    model = NoPosTransformer.initialised(config, 0)
    _, passed = model.run_with_cache(held_out_tokens(config, 1))
    assert list(passed.keys()) == [EMBED, POS_EMBED, *of_blocks, FINAL_SCALE, FINAL_NORMALIZED]
    assert set(model.hook_dict) == set(passed.keys())


def test_names_are_the_notebooks():
    assert hook_point(1, "attn.k") == "blocks.1.attn.hook_k"
    assert hook_point(0, "resid_post") == "blocks.0.hook_resid_post"
    assert hook_point(12, "ln2.scale") == "blocks.12.ln2.hook_scale"


@pytest.mark.parametrize("activation", ["k", "attn.hook_k", "mlp.out", ""])
def test_an_activation_that_no_block_has_is_an_error_that_lists_those_it_has(activation):
    with pytest.raises(KeyError, match=r"it has resid_pre, .*, resid_post"):
        hook_point(0, activation)


@pytest.mark.parametrize("layer", [0, 1, 12])
def test_the_layer_of_a_hook_point_is_the_one_it_was_named_for(layer):
    assert {layer_of(hook_point(layer, activation)) for activation in OF_A_BLOCK} == {layer}


def test_what_lies_before_the_first_and_after_the_last_layer_has_none():
    assert {layer_of(name) for name in (EMBED, POS_EMBED, FINAL_SCALE, FINAL_NORMALIZED)} == {None}


def test_a_pass_stops_after_the_last_layer_that_is_read():
    assert stop_after([EMBED, POS_EMBED]) == 0
    assert stop_after([hook_point(0, "attn.k")]) == 1
    assert stop_after([hook_point(1, "resid_post"), EMBED, hook_point(0, "attn.k")]) == 2
    assert stop_after([hook_point(0, "attn.k"), FINAL_SCALE]) is None
