from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nopos.errors import AnalysisError, ConfigError
from nopos.methods.ablation import ablation_losses
from nopos.model.config import LAYER_NORM_EPS, ModelConfig
from nopos.model.data import held_out_tokens
from nopos.model.parameters import initial_parameters, parameter_shapes
from nopos.model.transformer import NoPosTransformer

BLOCK_HOOKS = [
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]


def test_exactly_the_notebooks_hooks_fire_in_its_order():
    model = NoPosTransformer.initialised(ModelConfig(), 0)
    _, cache = model.run_with_cache(held_out_tokens(ModelConfig(), 2))
    blocks = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in BLOCK_HOOKS]
    expected = ["hook_embed", "hook_pos_embed", *blocks, "ln_final.hook_scale", "ln_final.hook_normalized"]
    assert len(expected) == 38
    assert list(cache.keys()) == expected
    assert set(model.hook_dict) == set(expected)  # none that never fires


def by_numpy(config, parameters, tokens):
    """The same architecture written again with numpy, one sequence and one head at a time."""
    p = {name: value.double().numpy() for name, value in parameters.items()}

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + LAYER_NORM_EPS)
        return x * p[f"{name}.w"] + p[f"{name}.b"] if config.normalization == "LN" else x

    x = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][: len(tokens)]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        normalized, attended = layer_norm(x, f"{block}.ln1"), p[f"{block}.attn.b_O"]
        for head in range(config.n_heads):
            q, k, v = (normalized @ p[f"{block}.attn.W_{n}"][head] + p[f"{block}.attn.b_{n}"][head] for n in "QKV")
            scores = q @ k.T / np.sqrt(config.d_head)
            if config.causal:
                scores[np.triu_indices(len(tokens), 1)] = -np.inf
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            attended = attended + pattern @ v @ p[f"{block}.attn.W_O"][head]
        x = x + attended
        hidden = np.maximum(layer_norm(x, f"{block}.ln2") @ p[f"{block}.mlp.W_in"] + p[f"{block}.mlp.b_in"], 0)
        x = x + hidden @ p[f"{block}.mlp.W_out"] + p[f"{block}.mlp.b_out"]
    return layer_norm(x, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": False}, {"positions": "learned"}, {"normalization": "LNPre"}, {"n_layers": 1}, {"n_heads": 3}],
    ids=str,
)
def test_the_forward_pass_is_the_one_written_again_with_numpy(micro, noisy, changes):
    config = replace(micro, **changes)
    parameters = noisy(config, 1)
    tokens = held_out_tokens(config, 3)[:, :5]
    model = NoPosTransformer(config, {name: value.double() for name, value in parameters.items()})
    expected = [by_numpy(config, parameters, row) for row in tokens.numpy()]
    np.testing.assert_allclose(model(tokens).detach().numpy(), expected, atol=1e-12)


def test_the_parameters_have_hooked_transformers_names_and_load_strictly(micro):
    model = NoPosTransformer.initialised(micro, 0)
    assert list(model.parameter_tensors()) == list(parameter_shapes(micro))
    assert set(model.state_dict()) == set(parameter_shapes(micro))
    state = initial_parameters(micro, 0)
    with pytest.raises(RuntimeError, match="Missing key"):
        NoPosTransformer(micro, {name: value for name, value in state.items() if name != "ln_final.w"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        NoPosTransformer(micro, {**state, "extra": torch.zeros(1)})


def test_the_model_copies_what_it_is_given(micro):
    state = initial_parameters(micro, 0)
    model = NoPosTransformer(micro, state)
    model.unembed.W_U.data.zero_()
    assert state["unembed.W_U"].abs().max() > 0


def test_W_pos_is_zero_and_frozen_and_b_U_is_trained(micro):
    model = NoPosTransformer.initialised(micro, 0)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pos_embed.W_pos"]
    assert model.pos_embed.W_pos.abs().max() == 0
    learned = NoPosTransformer.initialised(replace(micro, positions="learned"), 0)
    assert all(parameter.requires_grad for parameter in learned.parameters())
    assert learned.pos_embed.W_pos.abs().max() > 0


def test_a_causal_model_cannot_see_ahead_and_another_can(micro, noisy):
    tokens = held_out_tokens(micro, 1)
    changed = tokens.clone()
    changed[0, -1] = tokens[0, -1] % 6 + 1
    for causal in (True, False):
        config = replace(micro, causal=causal)
        model = NoPosTransformer(config, noisy(config, 0))
        assert torch.equal(model(tokens)[0, :-1], model(changed)[0, :-1]) is causal


def test_a_sequence_longer_than_the_context_is_one_clear_line(micro):
    with pytest.raises(ConfigError, match=r"a sequence has 7 tokens; this model takes at most 6"):
        NoPosTransformer.initialised(micro, 0)(torch.zeros(1, 7, dtype=torch.long))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_pre"),
        ("blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out"),
        ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out"),
        ("hook_embed", "blocks.0.hook_resid_pre"),
    ],
)
def test_ablations_that_mathematics_makes_equal_are_equal(micro, noisy, first, second):
    """What lies between the two hook points is affine, and an affine map takes means to means."""
    config = micro
    parameters = noisy(config, 0) | {"pos_embed.W_pos": torch.zeros(config.n_ctx, config.d_model)}
    model = NoPosTransformer(config, {name: value.double() for name, value in parameters.items()})
    tokens, others = held_out_tokens(config, 8), held_out_tokens(config, 8, stream=1)
    hook_points = [first, second, "ln_final.hook_scale"]
    losses = ablation_losses(model, tokens, other_tokens=others, kind="per_position_mean", hook_points=hook_points)
    assert losses[first] == pytest.approx(losses[second], rel=1e-12)
    assert losses[first] != pytest.approx(losses["ln_final.hook_scale"], rel=1e-6)


def test_a_layer_that_is_not_there_is_one_clear_line(micro):
    model = NoPosTransformer.initialised(micro, 0)
    assert model.block(1) is model.blocks[1]
    for layer in (-1, 2):
        with pytest.raises(AnalysisError, match=f"layer is {layer}; this model's are 0 to 1"):
            model.block(layer)
