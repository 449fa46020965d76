from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.methods.interventions import Effect, activation_with, effect_of, effect_of_edits, effects, logits_with
from nopos.methods.metrics import logits_changed, readout
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
    assert (nothing.answers_changed, nothing.answers_lost, nothing.logits_changed) == (0.0, 0.0, 0.0)
    before, after = model(tokens), model.unembed.b_U.expand(4, 6, -1)
    assert silenced.logits_changed == pytest.approx(logits_changed(readout(before, tokens), readout(after, tokens)))
    changed = (before.argmax(-1) != after.argmax(-1))[:, 1:].float()
    torch.testing.assert_close(silenced.changed_by_position, changed.mean(dim=0))
    assert silenced.answers_changed == pytest.approx(changed.mean().item())
    assert silenced.pos == 6
    assert changed.mean() > 0


def test_the_tenths_of_an_effect_by_hand():
    """Of 20 positions, in the second half of which one answer in four changes."""
    by_position = torch.cat([torch.zeros(9), torch.full((10,), 0.25)])
    effect = Effect(by_position, pos=20, answers_lost=0.0, logits_changed=0.0)
    assert effect.changed_by_tenth.tolist() == [0.0] * 5 + [0.25] * 5
    assert effect.answers_changed == pytest.approx(2.5 / 19)
    with pytest.raises(AnalysisError, match="sequences have 6 positions; for tenths of them"):
        _ = Effect(torch.zeros(5), pos=6, answers_lost=0.0, logits_changed=0.0).changed_by_tenth


def test_an_effect_on_another_task_is_on_what_that_asks_for(model, micro):
    """The token three back: from position 3 on, and right where it is that token."""
    tokens = held_out_tokens(micro, 40)
    three_back = effect_of(model, tokens, "ln_final.hook_normalized", torch.zeros_like, target_offset=3)
    before, after = (logits.argmax(-1)[:, 3:] for logits in (model(tokens), model.unembed.b_U.expand(40, 6, -1)))
    torch.testing.assert_close(three_back.changed_by_position, (before != after).float().mean(dim=0))
    lost = (before == tokens[:, :-3]) & (after != tokens[:, :-3])
    assert three_back.answers_lost == pytest.approx(lost.float().mean().item())
    assert (
        three_back.answers_lost != effect_of(model, tokens, "ln_final.hook_normalized", torch.zeros_like).answers_lost
    )
    assert lost.any()


def test_lost_answers_are_those_that_were_right_and_are_wrong(model, micro):
    tokens = held_out_tokens(micro, 40)
    edits = [("ln_final.hook_normalized", torch.zeros_like)]
    (effect,) = effects(model, tokens, edits)
    before, after = (logits.argmax(-1)[:, 1:] for logits in (model(tokens), model.unembed.b_U.expand(40, 6, -1)))
    wanted = tokens[:, :-1]
    assert effect.answers_lost == pytest.approx(((before == wanted) & (after != wanted)).float().mean().item())
    assert 0 < effect.answers_lost < effect.answers_changed


def test_several_edits_at_once_are_one_effect(model, micro):
    tokens = held_out_tokens(micro, 4)
    edits = {"blocks.0.hook_mlp_out": torch.zeros_like, "blocks.1.hook_attn_out": torch.zeros_like}
    together = effect_of_edits(model, tokens, edits)
    hooks = [(name, lambda value, hook: torch.zeros_like(value)) for name in edits]
    after = model.run_with_hooks(tokens, fwd_hooks=hooks)
    expected = logits_changed(readout(model(tokens), tokens), readout(after, tokens))
    assert together.logits_changed == pytest.approx(expected)
    assert together.logits_changed not in [effect.logits_changed for effect in effects(model, tokens, edits.items())]


def test_how_sure_the_answers_are_changes_none_of_them(model, micro):
    tokens = held_out_tokens(micro, 4)
    model.unembed.b_U.data.zero_()
    model.ln_final.b.data.zero_()
    (softened,) = effects(model, tokens, [("ln_final.hook_normalized", lambda value: 0.5 * value)])
    assert softened.answers_changed == 0
    assert softened.logits_changed == pytest.approx(0.5)


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
