from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.methods.attribution import (
    component_names,
    direct_logit_attribution,
    logit_attribution,
    residual_components,
)
from nopos.methods.folding import fold_layer_norm, folded_config
from nopos.model.data import held_out_tokens
from nopos.model.handwritten import relay_parameters
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import RELAY_CONFIG


@pytest.fixture(params=["LN", "LNPre"])
def model(request, micro, noisy):
    """In float64, unfolded and folded."""
    parameters = {name: value.double() for name, value in noisy(micro, 0).items()}
    if request.param == "LNPre":
        return NoPosTransformer(folded_config(micro), fold_layer_norm(micro, parameters))
    return NoPosTransformer(micro, parameters)


def test_the_components_sum_to_the_residual_stream(model, micro):
    tokens = held_out_tokens(micro, 4)
    _, cache = model.run_with_cache(tokens)
    components = residual_components(model, tokens)
    assert len(components) == len(component_names(micro)) == 6
    assert (components.sum(0) - cache["blocks.1.hook_resid_post"]).abs().max() < 1e-12


def test_the_attributions_sum_to_the_logits(model, micro):
    tokens = held_out_tokens(micro, 4)
    attribution = logit_attribution(model, tokens)
    assert attribution.shape == (7, 4, 6, 7)
    assert (attribution.sum(0) - model(tokens)).abs().max() < 1e-12


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_the_direct_attribution_is_that_of_one_token_over_the_mean_logit(model, micro, offset):
    tokens = held_out_tokens(micro, 4)
    whole = logit_attribution(model, tokens)
    centred = (whole - whole.mean(-1, keepdim=True))[:, :, offset:]
    wanted = tokens[:, : 6 - offset]
    expected = torch.stack([each.gather(-1, wanted[..., None])[..., 0].mean(0) for each in centred])
    ours = direct_logit_attribution(model, tokens, offset=offset)
    assert list(ours) == [*component_names(micro), "bias"]
    assert (torch.stack(list(ours.values())) - expected).abs().max() < 1e-12


def test_a_model_of_one_layer_has_its_four_components(micro, noisy):
    config = replace(micro, n_layers=1)
    model, tokens = NoPosTransformer(config, noisy(config, 0)), held_out_tokens(config, 4)
    assert logit_attribution(model, tokens).shape == (5, 4, 6, 7)


def test_in_the_relay_layer_1_writes_the_answer():
    model, tokens = NoPosTransformer(RELAY_CONFIG, relay_parameters(RELAY_CONFIG)), held_out_tokens(RELAY_CONFIG, 8)
    added = {
        name: by_position.mean().item()
        for name, by_position in direct_logit_attribution(model, tokens, offset=1).items()
    }
    assert added.pop("blocks.1.hook_attn_out") > 40
    assert max(map(abs, added.values())) < 0.01
