from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.methods.ablation import (
    KINDS,
    ablated,
    ablation_losses,
    global_mean,
    mean_by_distance,
    per_position_mean,
    replacement_for,
)
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.transformer import NoPosTransformer, permitted_keys


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_per_position_mean_keeps_position_and_the_global_mean_does_not():
    """Slip 2: the notebook's "average over the batch" takes content alone away."""
    by_position = torch.arange(5.0)[None, :, None].expand(3, 5, 2)
    assert torch.equal(per_position_mean(by_position), by_position[:1])
    assert torch.equal(global_mean(by_position), torch.full((1, 1, 2), 2.0))


def test_both_means_of_something_constant_are_it():
    constant = random(1, 1, 4).expand(3, 5, 4)
    torch.testing.assert_close(per_position_mean(constant).expand_as(constant), constant)
    torch.testing.assert_close(global_mean(constant).expand_as(constant), constant)


def test_the_mean_by_distance_by_hand(micro):
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.3, 0.1, 0.6]])[None, None]
    permitted = permitted_keys(micro, 3)
    expected = torch.tensor([[0.8, 0.0, 0.0], [0.15, 0.8, 0.0], [0.3, 0.15, 0.8]])[None, None]
    torch.testing.assert_close(mean_by_distance(pattern, permitted), expected)
    renormalised = replacement_for("blocks.0.attn.hook_pattern", pattern, "global_mean", permitted)
    torch.testing.assert_close(renormalised, expected / expected.sum(-1, keepdim=True))


def test_the_global_mean_of_scores_and_patterns_is_taken_by_distance_head_by_head(micro):
    permitted = permitted_keys(micro, 6)
    scores = random(4, 2, 6, 6).masked_fill(~permitted, -torch.inf)
    mean = replacement_for("blocks.1.attn.hook_attn_scores", scores, "global_mean", permitted)
    torch.testing.assert_close(mean, mean_by_distance(scores, permitted))
    assert not torch.equal(mean[:, 0], mean[:, 1])
    pattern = replacement_for("blocks.1.attn.hook_pattern", scores.softmax(-1), "global_mean", permitted)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 2, 6))
    assert (pattern[..., ~permitted] == 0).all()


@pytest.mark.parametrize("causal", [True, False])
def test_the_mean_by_distance_depends_on_distance_alone_and_leaves_masked_entries(micro, causal):
    permitted = permitted_keys(replace(micro, causal=causal), 6)
    scores = random(4, 2, 6, 6).masked_fill(~permitted, -torch.inf)
    mean = mean_by_distance(scores, permitted)
    assert mean.shape == (1, 2, 6, 6)
    for distance in range(-5, 6):
        diagonal = mean.diagonal(-distance, dim1=-2, dim2=-1)
        assert (diagonal == diagonal[..., :1]).all()
        assert diagonal.isfinite().all().item() is (causal is False or distance >= 0)


def test_zero_leaves_masked_scores_masked_and_a_scale_alone(micro):
    permitted = permitted_keys(micro, 6)
    scores = random(4, 2, 6, 6).masked_fill(~permitted, -torch.inf)
    zero = replacement_for("blocks.1.attn.hook_attn_scores", scores, "zero", permitted)
    torch.testing.assert_close(zero.softmax(-1)[0, 0, 2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0, 0]))
    assert (replacement_for("hook_embed", random(4, 6, 8), "zero", permitted) == 0).all()
    with pytest.raises(AnalysisError, match=r"blocks.0.ln1.hook_scale cannot be ablated to zero"):
        replacement_for("blocks.0.ln1.hook_scale", random(4, 6, 1), "zero", permitted)


@pytest.mark.parametrize("kind", ["per_position_mean", "resample"])
def test_an_ablation_takes_what_it_puts_in_from_the_other_tokens(micro, noisy, kind):
    model = NoPosTransformer(micro, noisy(micro, 0))
    tokens, others = held_out_tokens(micro, 8), held_out_tokens(micro, 9, stream=1)
    name = "blocks.0.hook_mlp_out"
    effect = ablated(model, tokens, other_tokens=others, kind=kind, hook_points=[name])[name]
    _, cache = model.run_with_cache(others)
    put_in = cache[name].mean(0).expand(8, 6, 8) if kind == "per_position_mean" else cache[name][:8]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: put_in)])
    expected = logits_changed(readout(model(tokens), tokens), readout(logits, tokens))
    assert effect.logits_changed == pytest.approx(expected, rel=1e-4)
    losses = ablation_losses(model, tokens, other_tokens=others, kind=kind, hook_points=[name])
    assert losses[name] == pytest.approx(mean_loss(logits, tokens).item(), rel=1e-6)


def test_resampling_a_sequence_from_itself_does_nothing(micro, noisy):
    model, tokens = NoPosTransformer(micro, noisy(micro, 0)), held_out_tokens(micro, 8)
    for effect in ablated(
        model, tokens, other_tokens=tokens, kind="resample", hook_points=list(model.hook_dict)
    ).values():
        assert (effect.answers_changed, effect.answers_lost) == (0.0, 0.0)
        assert effect.logits_changed == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_point_can_be_ablated_in_every_way_but_scales_to_zero(micro, noisy, kind):
    model, tokens = NoPosTransformer(micro, noisy(micro, 0)), held_out_tokens(micro, 4)
    names = [name for name in model.hook_dict if not (kind == "zero" and name.endswith("hook_scale"))]
    effects = ablated(model, tokens, other_tokens=tokens, kind=kind, hook_points=names)
    assert list(effects) == names
    assert all(torch.tensor(effect.logits_changed).isfinite() for effect in effects.values())
