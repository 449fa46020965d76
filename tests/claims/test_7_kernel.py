"""Layer 1's scores are a kernel over relative position: what it is made of, and that content in them is noise."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.kernel import (
    effect_of_scores_by_law,
    match_with_own_token,
    moved_scores,
    score_shares,
    score_steps,
    share_explained_by_law,
    spread,
    tilts,
)
from nopos.analysis.metrics import rank_correlation
from nopos.controls import CONTENT_ALONE, HALF_TRAINED, LEARNED_POSITIONS, NO_BOS, RELAY, TWO_BACK, UNTRAINED


@claim(
    rung="correlational",
    source="Kazemnejad 2023, theorem 2: scores as content and distance",
    refuted_by=[LEARNED_POSITIONS, CONTENT_ALONE, UNTRAINED],
)
def test_layer_1_scores_are_a_function_of_distance_to_within_a_few_percent(subject, measure):
    """Of what differs among a late query's near scores, position makes nearly all, and distance nearly all of that."""
    shares = subject.run(score_shares)
    assert measure("share of the variance that position makes", shares.position) > 0.97
    assert measure("share of that which distance makes", shares.distance) > 0.98


@claim(
    rung="correlational",
    source="the question how the steps stay alike",
    refuted_by=[LEARNED_POSITIONS, RELAY, HALF_TRAINED, NO_BOS],
)
def test_queries_grow_as_the_steps_between_keys_shrink_so_that_scores_fall_alike(subject, measure):
    """Asked by one query, keys of late slots lie closer together; the later the query, the more it stretches them."""
    steps = subject.run(score_steps)
    less_alike = spread(steps.of_keys) - 1.5 * spread(steps.of_scores)
    assert measure("least fall of the scores per slot", steps.of_scores.min().item(), "nats") > 0.8
    assert measure("spread of the falls", spread(steps.of_scores)) < 0.45
    assert measure("spread of the keys' falls under one query, less 1.5 of it", less_alike) > 0.0
    assert measure("gain of the last query over that of the first late one", steps.growth) > 1.2


@claim(
    rung="correlational", source="the question why the first step is smaller", refuted_by=[RELAY, TWO_BACK, UNTRAINED]
)
def test_layer_1_scores_its_own_slot_lower_for_being_of_one_token(subject, measure):
    """Query and key of one token meet in the own slot alone, and lower its score beneath what their codes say."""
    knowing, not_knowing = (
        subject.run(share_explained_by_law, twin=subject.folded, own_token=own_token) for own_token in (True, False)
    )
    assert measure("what the own slot's score gains by the match", subject.run(match_with_own_token), "nats") < -0.1
    assert measure("share that the law explains, less without knowing it", knowing - not_knowing) > 0.001


@claim(
    rung="constructive",
    source="the law of dilution, through the weights up to layer 1's QK circuit",
    refuted_by=[LEARNED_POSITIONS, RELAY, CONTENT_ALONE, NO_BOS],
)
def test_the_kernel_follows_from_the_weights(subject, measure):
    """Layer 1's scores, computed from weights and law with no sequence read, are those it has; put in, answers stay."""
    effect = subject.run(effect_of_scores_by_law, twin=subject.folded)
    explained = subject.run(share_explained_by_law, twin=subject.folded)
    assert measure("share of the mean near scores that they explain", explained) > 0.97
    assert measure("share of answers changed by them in place", effect.answers_changed) < 0.005
    assert measure("KL by that", effect.kl, "nats") < 0.06


@claim(
    rung="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, NO_BOS, CONTENT_ALONE, UNTRAINED],
)
def test_a_slot_with_the_code_of_another_is_scored_as_that_other(subject, measure):
    """Move mean codes by three and six slots: scores change as weights and law say, and not for random directions."""
    moved = subject.run(moved_scores, other_tokens=subject.other_tokens, twin=subject.folded)
    assert measure("share of the changes that weights and law explain", moved.explained) > 0.95
    assert measure("size of the slope with random directions", abs(moved.slope(moved.random))) < 0.2


@claim(
    rung="correlational",
    source="the question why the mean pattern beats the model's own",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
)
def test_content_in_layer_1_scores_harms_where_it_tilts_from_the_previous_token_to_the_one_before(subject, measure):
    """Answer by answer the model does worse than with its mean pattern, the more content tilts its scores that way."""
    answers = subject.run(tilts, other_tokens=subject.other_tokens)
    share = answers.share_of_harm_tilted_away
    assert measure("rank correlation of harm and tilt", rank_correlation(answers.harm, answers.tilt)) < -0.5
    assert measure("share of the harm in the half tilted most that way", share) > 0.8
