from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.methods.interventions import activation_with, effects, logits_with
from nopos.methods.metrics import logit_difference, per_token_kl, readout
from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.transformer import NoPosTransformer


@pytest.fixture
def model(micro, noisy):
    return NoPosTransformer(micro, noisy(micro, 0))


def test_an_activation_replaced_by_itself_changes_no_bit(model, micro):
    tokens = held_out_tokens(micro, 4)
    for name in model.hook_dict:
        assert torch.equal(logits_with(model, tokens, {name: lambda activation: activation}), model(tokens)), name


def test_every_hook_point_reaches_the_output(model, micro):
    tokens = held_out_tokens(micro, 4)
    rng = torch.Generator().manual_seed(0)
    for name in model.hook_dict:

        def jolt(activation):
            return activation * (1 + torch.rand(activation.shape, generator=rng))

        assert not torch.allclose(logits_with(model, tokens, {name: jolt}), model(tokens)), name


def test_the_model_is_left_as_it_was(model, micro):
    tokens = held_out_tokens(micro, 4)
    before = model(tokens)
    edited = logits_with(model, tokens, {"hook_embed": torch.zeros_like})
    assert mean_loss(edited, tokens) != mean_loss(before, tokens)
    assert torch.equal(model(tokens), before)
    assert not any(point.has_hooks() for point in model.hook_dict.values())


def test_a_replacement_may_broadcast_over_the_batch(model, micro):
    tokens = held_out_tokens(micro, 4)
    one = logits_with(model, tokens, {"hook_embed": lambda activation: activation[:1]})
    assert torch.allclose(one, one[:1].expand_as(one), atol=1e-6)


def test_an_effect_by_hand(model, micro):
    """An edit that changes nothing, and one that leaves the unembedding's bias alone."""
    tokens = held_out_tokens(micro, 4)
    nothing, silenced = effects(
        model, tokens, [("hook_embed", lambda value: value), ("ln_final.hook_normalized", torch.zeros_like)]
    )
    assert (nothing.nats_added, nothing.logit_difference_lost) == (0.0, 0.0)
    assert nothing.loss == pytest.approx(mean_loss(model(tokens), tokens).item())
    assert nothing.kl == pytest.approx(0, abs=1e-6)
    bias = model.unembed.b_U.expand(4, 6, -1)
    assert silenced.loss == pytest.approx(mean_loss(bias, tokens).item())
    assert silenced.kl == pytest.approx(
        per_token_kl(readout(model(tokens), tokens), readout(bias, tokens)).mean().item(), rel=1e-5
    )
    assert silenced.kl != pytest.approx(
        per_token_kl(readout(bias, tokens), readout(model(tokens), tokens)).mean().item(), rel=1e-2
    )
    changed = (model(tokens).argmax(-1) != bias.argmax(-1))[:, 1:].float().mean().item()
    assert silenced.answers_changed == pytest.approx(changed)
    assert changed > 0
    assert nothing.answers_changed == 0


def test_the_logit_difference_that_is_lost_is_a_share_of_the_lead(model, micro):
    """Of a model in which the right token leads; of another there is nothing to lose."""
    tokens = held_out_tokens(micro, 4)
    before = logit_difference(model(tokens), tokens).mean().item()
    backwards = ("ln_final.hook_normalized", lambda normalized: -0.5 * normalized)
    (effect,) = effects(model, tokens, [backwards])
    assert before < 0
    assert effect.logit_difference_lost == 0.0
    with torch.no_grad():
        model.unembed.W_U.neg_()
        model.unembed.b_U.neg_()
    before = logit_difference(model(tokens), tokens).mean().item()
    after = logit_difference(logits_with(model, tokens, dict([backwards])), tokens).mean().item()
    (effect,) = effects(model, tokens, [backwards])
    assert before > 0
    assert effect.logit_difference_lost == pytest.approx((before - after) / before, rel=1e-4)
    assert abs(effect.logit_difference_lost - 1) > 0.1


def test_how_sure_the_answers_are_changes_none_of_them(model, micro):
    tokens = held_out_tokens(micro, 4)
    model.unembed.b_U.data.zero_()
    model.ln_final.b.data.zero_()
    (softened,) = effects(model, tokens, [("ln_final.hook_normalized", lambda value: 0.5 * value)])
    assert softened.answers_changed == 0
    assert softened.kl > 1e-3


def test_an_activation_is_read_while_others_are_replaced(model, micro):
    tokens = held_out_tokens(micro, 4)
    edits = {"hook_embed": torch.zeros_like, "blocks.1.hook_attn_out": lambda activation: activation + 1}
    with model.hooks([(name, lambda activation, hook, edit=edit: edit(activation)) for name, edit in edits.items()]):
        expected = model.run_with_cache(tokens)[1]["blocks.1.mlp.hook_pre"]
    observed = activation_with(model, tokens, "blocks.1.mlp.hook_pre", edits)
    assert torch.equal(observed, expected)
    assert torch.equal(
        activation_with(model, tokens, "blocks.1.mlp.hook_pre", {}),
        model.run_with_cache(tokens)[1]["blocks.1.mlp.hook_pre"],
    )
    assert not torch.allclose(observed, activation_with(model, tokens, "blocks.1.mlp.hook_pre", {}))


def test_several_edits_are_made_at_once(model, micro):
    tokens = held_out_tokens(micro, 4)
    first, second = "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out"
    both = logits_with(model, tokens, {first: torch.zeros_like, second: torch.zeros_like})
    alone = [logits_with(model, tokens, {name: torch.zeros_like}) for name in (first, second)]
    assert not any(torch.allclose(both, logits) for logits in alone)


def test_an_edit_where_there_is_no_hook_point_is_one_clear_line(model, micro):
    tokens = held_out_tokens(micro, 4)
    for read, edits in (("hook_embed", {"blocks.7.hook_attn_out": torch.zeros_like}), ("hook_nothing", {})):
        with pytest.raises(AnalysisError, match="there is no hook point"):
            activation_with(model, tokens, read, edits)
