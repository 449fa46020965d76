"""Preflight: a claim about an edit that reaches nothing would be empty, so each edit must reach the output."""

from __future__ import annotations

import pytest
import torch

from nopos.methods.interventions import logits_with
from nopos.subjects.controls import CONTENT_ALONE, UNIFORM_LAYER_1, WITHOUT_BOS_KEY, reference
from nopos.subjects.shipped import shipped_claims


def test_the_claims_edit_keys_values_patterns_and_the_residual_stream(evaluated):
    errors = {name: outcome.error for name, outcome in evaluated.outcomes.items()}
    assert errors == dict.fromkeys(claim.name for claim in shipped_claims())
    assert evaluated.edited <= set(evaluated.subject.model.hook_dict)
    assert len(evaluated.edited) > 23
    assert {"blocks.0.attn.hook_k", "blocks.1.attn.hook_pattern", "blocks.0.hook_resid_post"} <= evaluated.edited


def test_every_edit_of_a_claim_reaches_the_output_and_its_removal_restores_it_bit_for_bit(evaluated):
    model, tokens = evaluated.subject.model, evaluated.subject.tokens[:4]
    before = model(tokens)
    for name in sorted(evaluated.edited):
        rng = torch.Generator().manual_seed(0)

        def jolt(activation, rng=rng):
            return activation * (1 + torch.rand(activation.shape, generator=rng))

        assert (logits_with(model, tokens, {name: jolt}) - before).abs().max() > 1e-3, name
        assert torch.equal(model(tokens), before), name


def test_no_hook_survives_the_claims(evaluated):
    for model in (evaluated.subject.model, evaluated.subject.folded):
        assert not any(point.has_hooks(dir="both") for point in model.hook_dict.values())


@pytest.mark.parametrize("control", [WITHOUT_BOS_KEY, CONTENT_ALONE, UNIFORM_LAYER_1], ids=lambda control: control.name)
def test_a_standing_edit_changes_the_output_of_model_and_folded_model_and_survives_other_edits(control):
    plain, edited = reference(), control.model_for(reference())
    tokens = edited.tokens[:4]
    before = edited.model(tokens)
    assert (before - plain.model(tokens)).abs().max() > 1
    assert (edited.folded(tokens).log_softmax(-1) - before.double().log_softmax(-1)).abs().max() < 1e-3
    logits_with(edited.model, tokens, {"hook_embed": torch.zeros_like})
    assert torch.equal(edited.model(tokens), before)
