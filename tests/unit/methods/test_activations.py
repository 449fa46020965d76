from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopos.errors import AnalysisError
from nopos.methods.ablation import ablated
from nopos.methods.activations import activation, centred
from nopos.methods.attention import effect_of_keeping_only, effect_of_knock_out, mean_pattern, strongest_offset_share
from nopos.methods.attribution import direct_logit_attribution
from nopos.methods.interventions import logits_with
from nopos.methods.neurons import mlp_activations
from nopos.methods.probes import position_r2
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer


@pytest.fixture
def model(micro, noisy):
    return NoPosTransformer(micro, noisy(micro, 0))


@pytest.fixture
def tokens(micro):
    return held_out_tokens(micro, 4)


def test_what_is_read_is_what_passes(model, tokens):
    _, cache = model.run_with_cache(tokens)
    names = ["blocks.1.hook_mlp_out", "hook_embed"]
    read = model.activations(tokens, names)
    assert list(read) == names
    assert all(torch.equal(read[name], cache[name]) for name in names)
    assert torch.equal(activation(model, tokens, "hook_embed"), cache["hook_embed"])
    assert not read["hook_embed"].requires_grad


def test_what_is_centred_by_hand():
    assert centred(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])).tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]


@given(seed=st.integers(0, 10_000), shift=st.floats(-10, 10))
def test_what_is_centred_sums_to_zero_once_and_for_all_whatever_every_entry_has_in_common(seed, shift):
    written = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))
    rest = centred(written)
    torch.testing.assert_close(rest.sum(dim=-1), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(centred(written + shift), rest, atol=1e-5, rtol=0)
    torch.testing.assert_close(centred(rest), rest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer_norm", ["blocks.1.ln1", "blocks.1.ln2", "ln_final"])
def test_to_a_LayerNorm_it_is_all_there_is(model, layer_norm):
    written = 3 * torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)) + 2
    read_by = model.get_submodule(layer_norm)
    torch.testing.assert_close(read_by(centred(written)), read_by(written), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(read_by(written[..., :1].expand_as(written)), read_by(written))


OFFSET = r"offset is {}; with sequences of 6 it is 0 to 5"
HOOK_POINT = r"there is no hook point '{}'; names are as in 'blocks.1.hook_resid_post', and layers are 0 to 1"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        *[
            pytest.param(lambda model, tokens, ask=ask, wrong=wrong: ask(model, tokens, wrong), OFFSET.format(wrong))
            for wrong in (-1, 6)
            for ask in (
                lambda model, tokens, offset: effect_of_knock_out(model, tokens, layer=0, offset=offset),
                lambda model, tokens, offset: effect_of_keeping_only(model, tokens, layer=0, offset=offset),
                lambda model, tokens, offset: strongest_offset_share(model, tokens, layer=0, offset=offset),
                lambda model, tokens, offset: direct_logit_attribution(model, tokens, offset=offset),
            )
        ],
        (lambda model, tokens: activation(model, tokens, "blocks.0.hook_z"), HOOK_POINT.format("blocks.0.hook_z")),
        (
            lambda model, tokens: logits_with(model, tokens, {"blocks.9.hook_mlp_out": torch.zeros_like}),
            HOOK_POINT.format("blocks.9.hook_mlp_out"),
        ),
        (
            lambda model, tokens: mean_pattern(model, tokens, layer=2),
            HOOK_POINT.format("blocks.2.attn.hook_pattern"),
        ),
        (lambda model, tokens: mlp_activations(model, tokens, layer=0, sequence=4), "sequence is 4; there are 4"),
        (
            lambda model, tokens: position_r2(model, tokens, other_tokens=tokens, hook_point="blocks.0.attn.hook_k"),
            r"blocks.0.attn.hook_k is \[4, 6, 2, 4\]; a probe reads \[batch pos d_model\]",
        ),
        (
            lambda model, tokens: ablated(
                model, tokens, other_tokens=tokens[:3], kind="resample", hook_points=["hook_embed"]
            ),
            r"other_tokens are \[3, 6\]; they must be at least as many as the tokens, \[4, 6\], and as long",
        ),
        (
            lambda model, tokens: ablated(
                model, tokens, other_tokens=tokens, kind="median", hook_points=["hook_embed"]
            ),
            "kind is 'median'; it must be one of zero, per_position_mean, global_mean, resample",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(model, tokens, ask, message):
    with pytest.raises(AnalysisError, match=message):
        ask(model, tokens)
