"""Layer 1's scores are a kernel over relative position: what it is made of, and that content in them is noise."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.mechanism.kernel import (
    effect_of_scores_from_weights,
    score_falls,
    score_shares,
    share_explained_by_weights,
)
from nopos.mechanism.kernel_interventions import scores_of_patched_codes, tilts
from nopos.methods.statistics import rank_correlation, relative_range
from nopos.subjects.controls import (
    CONTENT_ALONE,
    HALF_TRAINED,
    LEARNED_POSITIONS,
    NO_BOS,
    RELAY,
    UNTRAINED,
)
from nopos.subjects.scopes import FINDS_POSITIONS


@claim(
    evidence="correlational",
    source="Kazemnejad 2023, theorem 2: scores as content and distance",
    refuted_by=[LEARNED_POSITIONS, CONTENT_ALONE, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_1_scores_are_a_function_of_distance_to_within_a_few_percent(subject, measure):
    """Of what differs among a late query's near scores, position makes nearly all, and distance nearly all of that."""
    shares = subject.run(score_shares)
    assert measure("share of the variance that position makes", shares.position) > 0.97
    assert measure("share of that which distance makes", shares.distance) > 0.98


@claim(
    evidence="correlational",
    source="the question how the falls stay alike",
    refuted_by=[LEARNED_POSITIONS, HALF_TRAINED, NO_BOS],
    scope=FINDS_POSITIONS,
)
def test_later_queries_make_up_for_keys_that_lie_closer_together_so_that_scores_fall_alike(subject, measure):
    """Asked by one query, keys of late positions fall unalike; asked by queries of their own they fall alike."""
    falls = subject.run(score_falls)
    of_scores, of_keys = (relative_range(each) for each in (falls.of_scores, falls.of_keys))
    keys_over_scores = of_keys / max(of_scores, torch.finfo(torch.float32).eps)
    assert measure("spread of the falls", of_scores) < 0.45
    assert measure("spread of the keys' falls under one query, over that", keys_over_scores) > 1.2


@claim(
    evidence="constructive",
    source="the law of dilution, through the weights up to layer 1's QK circuit",
    refuted_by=[LEARNED_POSITIONS, RELAY, CONTENT_ALONE, NO_BOS],
    scope=FINDS_POSITIONS,
)
def test_the_kernel_follows_from_the_weights(subject, measure):
    """Layer 1's scores, computed from weights and law with no sequence read, are those it has; put in, answers stay."""
    changed = subject.run(effect_of_scores_from_weights).changed_by_tenth
    explained = subject.run(share_explained_by_weights)
    assert measure("share of the mean near scores that they explain", explained) > 0.9
    assert measure("most changed in a tenth by them in place", changed.max().item()) < 0.05


@claim(
    evidence="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, NO_BOS, CONTENT_ALONE, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_a_position_with_the_code_of_another_is_scored_as_that_other(subject, measure):
    """Patch mean codes from three and six positions away: scores change as predicted, and not for random directions."""
    changes = subject.run(scores_of_patched_codes)
    assert measure("share of the changes that weights and law explain", changes.explained) > 0.85
    assert measure("size of the slope with random directions", abs(changes.random_slope)) < 0.2


@claim(
    evidence="correlational",
    source="the question why the mean pattern beats the model's own",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_content_in_layer_1_scores_harms_where_it_tilts_from_the_previous_token_to_the_one_before(
    subject, measure, offset=1
):
    """Answer by answer the model does worse than with its mean pattern, the more content tilts its scores that way."""
    answers = subject.run(tilts, offset=offset)
    share = answers.share_of_harm_tilted_away
    assert measure("rank correlation of harm and tilt", rank_correlation(answers.harm, answers.tilt)) < -0.4
    assert measure("share of the harm in the half tilted most that way", share) > 0.8
