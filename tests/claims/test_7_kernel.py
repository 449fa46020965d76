"""Layer 1's scores are a kernel over relative position: what it is made of, and that content in them is noise."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.mechanism.kernel import (
    effect_of_scores_from_weights,
    match_with_own_token,
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
    TWO_BACK,
    UNTRAINED,
)
from nopos.subjects.scopes import TWO_OR_MORE_LAYERS


@claim(
    evidence="correlational",
    source="Kazemnejad 2023, theorem 2: scores as content and distance",
    refuted_by=[LEARNED_POSITIONS, CONTENT_ALONE, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_scores_are_a_function_of_distance_to_within_a_few_percent(subject, measure):
    """Of what differs among a late query's near scores, position makes nearly all, and distance nearly all of that."""
    shares = subject.run(score_shares)
    assert measure("share of the variance that position makes", shares.position) > 0.97
    assert measure("share of that which distance makes", shares.distance) > 0.98


@claim(
    evidence="correlational",
    source="the question how the falls stay alike",
    refuted_by=[LEARNED_POSITIONS, RELAY, HALF_TRAINED, NO_BOS],
    scope=TWO_OR_MORE_LAYERS,
)
def test_queries_grow_as_the_falls_from_key_to_key_shrink_so_that_scores_fall_alike(subject, measure):
    """Asked by one query, keys of late positions lie closer together; a later query stretches them more."""
    falls = subject.run(score_falls)
    of_scores, of_keys = (relative_range(each) for each in (falls.of_scores, falls.of_keys))
    keys_over_scores = of_keys / max(of_scores, torch.finfo(torch.float32).eps)
    assert measure("least fall of the scores per position", falls.of_scores.min().item(), "nats") > 0.8
    assert measure("spread of the falls", of_scores) < 0.45
    assert measure("spread of the keys' falls under one query, over that", keys_over_scores) > 1.5
    assert measure("gain of the last query over that of the first late one", falls.growth) > 1.2


@claim(
    evidence="correlational",
    source="the question why the first fall is smaller",
    refuted_by=[RELAY, TWO_BACK, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_scores_its_own_position_lower_for_being_of_one_token(subject, measure):
    """Query and key of one token meet at the own position alone, and lower its score beneath what their codes say."""
    knowing, not_knowing = (subject.run(share_explained_by_weights, own_token=own_token) for own_token in (True, False))
    assert measure("what the own position's score gains by the match", subject.run(match_with_own_token), "nats") < -0.1
    assert measure("share that the weights explain, less without knowing it", knowing - not_knowing) > 0.001


@claim(
    evidence="constructive",
    source="the law of dilution, through the weights up to layer 1's QK circuit",
    refuted_by=[LEARNED_POSITIONS, RELAY, CONTENT_ALONE, NO_BOS],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_kernel_follows_from_the_weights(subject, measure):
    """Layer 1's scores, computed from weights and law with no sequence read, are those it has; put in, answers stay."""
    effect = subject.run(effect_of_scores_from_weights)
    explained = subject.run(share_explained_by_weights)
    assert measure("share of the mean near scores that they explain", explained) > 0.97
    assert measure("share of answers changed by them in place", effect.answers_changed) < 0.005
    assert measure("KL by that", effect.kl, "nats") < 0.06


@claim(
    evidence="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, NO_BOS, CONTENT_ALONE, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_a_position_with_the_code_of_another_is_scored_as_that_other(subject, measure):
    """Patch mean codes from three and six positions away: scores change as predicted, and not for random directions."""
    changes = subject.run(scores_of_patched_codes)
    assert measure("share of the changes that weights and law explain", changes.explained) > 0.95
    assert measure("size of the slope with random directions", abs(changes.random_slope)) < 0.2


@claim(
    evidence="correlational",
    source="the question why the mean pattern beats the model's own",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_content_in_layer_1_scores_harms_where_it_tilts_from_the_previous_token_to_the_one_before(
    subject, measure, offset=1
):
    """Answer by answer the model does worse than with its mean pattern, the more content tilts its scores that way."""
    answers = subject.run(tilts, offset=offset)
    share = answers.share_of_harm_tilted_away
    assert measure("rank correlation of harm and tilt", rank_correlation(answers.harm, answers.tilt)) < -0.5
    assert measure("share of the harm in the half tilted most that way", share) > 0.8
