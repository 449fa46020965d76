"""Preflight: a claim about an edit that reaches nothing would be empty, so each edit must reach the output."""

from __future__ import annotations

import pytest
import torch

from fixtures.shipped_claims import outcomes, shipped_claims
from nopos.analysis.replacement import logits_with
from nopos.controls import CONTENT_ALONE, UNIFORM_LAYER_1, WITHOUT_BOS_KEY, reference
from nopos.model import NoPosTransformer


@pytest.fixture(scope="module")
def edited():
    """All hook points that the claims edit, seen while they are evaluated, and the subject afterwards."""
    seen, subject = set(), reference()
    real = NoPosTransformer.run_with_hooks
    with pytest.MonkeyPatch.context() as patch:

        def recording(model, *arguments, fwd_hooks=(), **options):
            seen.update(name for name, _ in fwd_hooks)
            return real(model, *arguments, fwd_hooks=fwd_hooks, **options)

        patch.setattr(NoPosTransformer, "run_with_hooks", recording)
        verdicts = {name: outcome.verdict for name, outcome in outcomes(subject).items()}
    assert verdicts == {name: claim.expect for name, claim in shipped_claims().items()}
    return seen, subject


def test_the_claims_edit_what_the_notebook_edits_and_all_four_kinds_of_edit_are_seen(edited):
    seen, subject = edited
    assert seen <= set(subject.model.hook_dict)
    assert len(seen) > 23
    assert {"blocks.0.attn.hook_k", "blocks.1.attn.hook_pattern", "blocks.0.hook_resid_post"} <= seen


def test_every_edit_of_a_claim_reaches_the_output_and_its_removal_restores_it_bit_for_bit(edited):
    seen, subject = edited
    model, tokens = subject.model, subject.tokens[:4]
    before = model(tokens)
    for name in sorted(seen):
        source = torch.Generator().manual_seed(0)

        def jolt(activation, source=source):
            return activation * (1 + torch.rand(activation.shape, generator=source))

        assert (logits_with(model, tokens, name, jolt) - before).abs().max() > 1e-3, name
        assert torch.equal(model(tokens), before), name


def test_no_hook_survives_the_claims(edited):
    _, subject = edited
    for model in (subject.model, subject.folded):
        assert not any(point.has_hooks(dir="both") for point in model.hook_dict.values())


@pytest.mark.parametrize("control", [WITHOUT_BOS_KEY, CONTENT_ALONE, UNIFORM_LAYER_1], ids=lambda control: control.name)
def test_a_standing_edit_changes_the_output_of_model_and_twin_alike_and_survives_other_edits(control):
    plain, edited = reference(), control.build()
    tokens = edited.tokens[:4]
    before = edited.model(tokens)
    assert (before - plain.model(tokens)).abs().max() > 1
    assert (edited.folded(tokens).log_softmax(-1) - before.double().log_softmax(-1)).abs().max() < 1e-3
    logits_with(edited.model, tokens, "hook_embed", torch.zeros_like)
    assert torch.equal(edited.model(tokens), before)
