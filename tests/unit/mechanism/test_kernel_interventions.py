from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism import kernel_interventions
from nopos.mechanism.kernel import scores_from_weights
from nopos.mechanism.kernel_interventions import SHIFTS, ScoreChanges, Tilts, scores_of_patched_codes, tilts
from nopos.methods.activation_patching import mean_activation
from nopos.model.data import held_out_tokens
from nopos.model.hook_points import hook_point
from tests.support.micro import folded_of, with_layer_1_attention

RESIDUAL, SCORES = hook_point(0, "resid_post"), hook_point(1, "attn.attn_scores")


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


def test_scores_of_patched_codes_by_hand(law_model, tokens):
    """Of 26 positions two are patched, 10 and 15, and each is asked by the query 7 later."""
    folded = folded_of(law_model)
    changes = scores_of_patched_codes(law_model, tokens, other_tokens=tokens, folded=folded)
    patched = [10, 15]
    assert changes.predicted.shape == changes.observed.shape == changes.random.shape == (1, len(patched) * len(SHIFTS))
    from_weights, codes = (
        scores_from_weights(folded, pos=26)[0],
        mean_activation(law_model, tokens, hook_point=RESIDUAL),
    )
    added = torch.zeros_like(codes)
    for position in patched:
        added[position] = codes[position + SHIFTS[1]] - codes[position]
    before = law_model.run_with_cache(tokens)[1][SCORES]
    with law_model.hooks([(RESIDUAL, lambda residual, hook: residual + added)]):
        after = law_model.run_with_cache(tokens)[1][SCORES]
    for number, position in enumerate(patched):
        predicted = from_weights[position + 7, position + SHIFTS[1]] - from_weights[position + 7, position]
        assert changes.predicted[0, len(patched) + number].item() == pytest.approx(predicted.item(), rel=1e-4)
        change = (after - before)[:, 0, position + 7, position].mean().item()
        assert changes.observed[0, len(patched) + number].item() == pytest.approx(change, rel=1e-3, abs=1e-5)
    assert not torch.allclose(changes.observed, changes.random)


def test_score_changes_by_hand():
    changes = ScoreChanges(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, -1.0]]))
    assert changes.random_slope == 0
    assert changes.explained == 1 - 5 / 20


@pytest.mark.parametrize("offset", [1, 2])
def test_tilts_by_hand(law_model, tokens, offset):
    other_tokens = held_out_tokens(law_model.config, 8, stream=1)
    name = "blocks.1.attn.hook_pattern"
    mean = law_model.run_with_cache(other_tokens)[1][name].mean(dim=0)
    own = law_model.run_with_cache(tokens)[1][name]
    edited = law_model.run_with_hooks(tokens, fwd_hooks=[(name, lambda pattern, hook: mean.expand_as(pattern))])
    plain = law_model(tokens)
    observed = tilts(law_model, tokens, other_tokens=other_tokens, offset=offset)
    first = offset + 1
    assert observed.harm.shape == observed.tilt.shape == (8, 26 - first)
    for batch in (0, 5):
        for position in range(first, 26):
            answer = tokens[batch, position - offset]
            others = torch.arange(plain.shape[-1]) != answer
            with_mean, with_own = (
                logits[batch, position, answer] - logits[batch, position, others].max() for logits in (edited, plain)
            )
            harm = with_mean - with_own
            (near, far), (usual_near, usual_far) = (
                (row[position - offset], row[position - first]) for row in (own[batch, 0, position], mean[0, position])
            )
            tilt = (near / far).log() - (usual_near / usual_far).log()
            torch.testing.assert_close(observed.harm[batch, position - first], harm, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(observed.tilt[batch, position - first], tilt, atol=1e-5, rtol=1e-3)
    assert observed.harm.abs().max() > 1e-3
    assert observed.tilt.abs().max() > 1e-3


def test_the_share_of_harm_by_hand():
    """The two answers that are tilted most from the previous token bear three of the four logits of harm."""
    harmed = Tilts(harm=torch.tensor([[2.0, 1.5, 1.0, -0.5]]), tilt=torch.tensor([[-3.0, 2.0, -1.0, 5.0]]))
    assert harmed.share_of_harm_tilted_away == 0.75
    assert Tilts(harm=torch.zeros(1, 4), tilt=torch.zeros(1, 4)).share_of_harm_tilted_away == 0


def test_where_content_does_not_reach_the_scores_nothing_is_tilted(law_model, tokens):
    plain = with_layer_1_attention(law_model, W_Q=0.0, b_Q=0.0)
    assert tilts(plain, tokens, other_tokens=tokens).tilt.abs().max() < 1e-5


def test_random_directions_have_the_norms_of_the_patched_ones(law_model, tokens):
    norms = []
    real = kernel_interventions.activation_with

    def recording(model, given, hook_point, edits):
        residual = torch.zeros(1, given.shape[1], 8)
        norms.append(edits[RESIDUAL](residual)[0].norm(dim=-1))
        return real(model, given, hook_point, edits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_interventions, "activation_with", recording)
        scores_of_patched_codes(law_model, tokens, other_tokens=tokens, folded=folded_of(law_model))
    assert len(norms) == 2 * len(SHIFTS)
    for patch, noise in zip(norms[::2], norms[1::2], strict=True):
        torch.testing.assert_close(patch, noise)
        assert (patch > 0).sum() == 2
    assert SHIFTS == (-6, -3, 3, 6)


def test_sequences_too_short_for_a_patch_are_one_clear_line(law_model, tokens):
    with pytest.raises(AnalysisError, match="sequences have 17 positions; this analysis needs at least 18"):
        scores_of_patched_codes(law_model, tokens[:, :17], other_tokens=tokens[:, :17], folded=folded_of(law_model))
