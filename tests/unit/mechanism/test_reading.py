from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.reading import effect_without_position_of
from nopos.methods.activations import centred
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import with_layer_1_attention

COUNT, CODE = "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


@pytest.fixture
def other_tokens(law_model):
    return held_out_tokens(law_model.config, 8, stream=1)


NAMES = {name: f"blocks.1.attn.hook_{name}" for name in "qkv"}


def read_without(model, tokens, other_tokens, components):
    """What layer 1's queries, keys and values are where its LayerNorm reads less, by a run in which it does."""
    cache = model.run_with_cache(other_tokens)[1]
    mean = sum(centred(cache[name].mean(dim=0)) for name in components)
    taken = mean - mean[1:].mean(dim=0)
    taken[0] = 0
    read = {}

    def keep(value, hook):
        read[hook.name] = value

    hooks = [
        ("blocks.1.hook_resid_pre", lambda stream, hook: stream - taken),
        *((name, keep) for name in NAMES.values()),
    ]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return read


def change_with(model, tokens, read, names):
    hooks = [(NAMES[name], lambda value, hook: read[hook.name]) for name in names]
    edited = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits_changed(readout(model(tokens), tokens), readout(edited, tokens))


@pytest.mark.parametrize("components", [(CODE,), (COUNT, CODE)], ids=len)
def test_queries_and_keys_lack_the_mean_of_each_position_and_values_do_not(law_model, tokens, other_tokens, components):
    """By one run whose first LayerNorm in layer 1 reads less, from which queries and keys are taken over."""
    read = read_without(law_model, tokens, other_tokens, components)
    expected = change_with(law_model, tokens, read, "qk")
    effect = effect_without_position_of(law_model, tokens, other_tokens=other_tokens, components=components)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-4
    for others in ("q", "k", "qkv"):
        assert change_with(law_model, tokens, read, others) != pytest.approx(expected, rel=0.02)


def test_the_means_are_those_of_the_other_tokens(law_model, tokens, other_tokens):
    few, many = (
        effect_without_position_of(law_model, tokens, other_tokens=others, components=(CODE,))
        for others in (other_tokens[:2], other_tokens)
    )
    assert few.logits_changed != pytest.approx(many.logits_changed, rel=0.02)


def test_without_any_component_no_bit_of_the_answers_changes(law_model, tokens, other_tokens):
    effect = effect_without_position_of(law_model, tokens, other_tokens=other_tokens, components=())
    assert (effect.answers_changed, effect.answers_lost, effect.logits_changed) == (0, 0, 0)


def test_queries_and_keys_that_read_nothing_lack_nothing(law_model, tokens, other_tokens):
    """The values read the position still, which would change the answers."""
    blind = with_layer_1_attention(law_model, W_Q=0.0, W_K=0.0)
    effect = effect_without_position_of(blind, tokens, other_tokens=other_tokens, components=(COUNT, CODE))
    assert effect.logits_changed == pytest.approx(0, abs=1e-6)
    assert change_with(blind, tokens, read_without(blind, tokens, other_tokens, (COUNT, CODE)), "v") > 1e-4


def test_what_is_the_same_at_all_positions_is_not_taken_out(law_model, tokens, other_tokens):
    """Where MLP 0 writes a bias alone, there is nothing of the position in it."""
    parameters = law_model.parameter_tensors()
    parameters["blocks.0.mlp.W_out"] = torch.zeros_like(parameters["blocks.0.mlp.W_out"])
    still = NoPosTransformer(law_model.config, parameters)
    effect = effect_without_position_of(still, tokens, other_tokens=other_tokens, components=(CODE,))
    assert still.block(0).mlp.b_out.abs().max() > 0.1
    assert effect.logits_changed == pytest.approx(0, abs=1e-5)


def test_what_there_is_not_is_one_clear_line(law_model, tokens, other_tokens):
    with pytest.raises(AnalysisError, match=r"there is no hook point 'blocks.0.hook_z'"):
        effect_without_position_of(law_model, tokens, other_tokens=other_tokens, components=("blocks.0.hook_z",))
    with pytest.raises(AnalysisError, match="layer is 2; this model's are 0 to 1"):
        effect_without_position_of(law_model, tokens, other_tokens=other_tokens, components=(CODE,), layer=2)
