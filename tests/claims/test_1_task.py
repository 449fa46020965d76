"""The task is solved, without positional embeddings, and better than any model could that does not use order."""

from __future__ import annotations

from nopos import claim
from nopos.methods.embedding import largest_spread_over_positions
from nopos.model.handwritten import floor_of_one_causal_layer, floor_without_causal_mask, floor_without_tokens
from nopos.subjects.controls import (
    HALF_TRAINED,
    LEAKING_POSITIONS,
    LEARNED_POSITIONS,
    NO_BOS,
    NO_CAUSAL_MASK,
    ONE_LAYER,
    SHUFFLED_TARGETS,
    TWO_BACK,
    UNTRAINED,
)
from nopos.subjects.scopes import CERTAIN


@claim(
    evidence="correlational",
    source="notebook, step 5",
    requested="W_pos stays zero",
    refuted_by=[LEAKING_POSITIONS, LEARNED_POSITIONS],
)
def test_W_pos_is_exactly_zero(subject, measure):
    """The positional embedding is zero to the last bit, after all of training."""
    assert measure("largest absolute value in W_pos", subject.model.pos_embed.W_pos.abs().max().item()) == 0.0


@claim(evidence="correlational", source="notebook, step 2", refuted_by=[LEAKING_POSITIONS, LEARNED_POSITIONS])
def test_the_embedding_carries_no_position(subject, measure):
    """Before the first attention a token looks the same at every position, to the last bit."""
    spread = subject.run(largest_spread_over_positions)
    assert measure("largest difference between a token at two positions", spread) == 0.0


@claim(evidence="behavioural", source="notebook, step 4", refuted_by=[UNTRAINED, HALF_TRAINED, TWO_BACK, NO_BOS])
def test_the_previous_token_is_predicted(subject, measure, offset=1):
    """On tokens that no training saw, the previous token has the largest logit nearly everywhere."""
    assert measure("held-out accuracy", subject.accuracy_at(offset)) > 0.999


@claim(
    evidence="behavioural",
    source="notebook, step 4",
    requested="the loss is under a threshold",
    refuted_by=[UNTRAINED, HALF_TRAINED, TWO_BACK, NO_BOS],
    scope=CERTAIN,
)
def test_the_loss_is_under_a_fiftieth_of_a_nat(subject, measure, offset=1):
    """On tokens that no training saw, the model is nearly certain of the previous token."""
    assert measure("held-out loss", subject.loss_at(offset), "nats") < 0.02


@claim(
    evidence="behavioural",
    source="nopos.model.handwritten",
    refuted_by=[UNTRAINED, SHUFFLED_TARGETS, NO_CAUSAL_MASK, ONE_LAYER],
)
def test_the_loss_is_below_what_is_possible_without_order(subject, measure, offset=1):
    """The loss beats every model that sees no other token, that has no causal mask, or that has one layer."""
    sizes, loss = subject.config, subject.loss_at(offset)
    assert measure("loss, less the floor without tokens", loss - floor_without_tokens(sizes), "nats") < 0.0
    assert measure("the same, without a causal mask", loss - floor_without_causal_mask(sizes), "nats") < 0.0
    assert measure("the same, of one causal layer", loss - floor_of_one_causal_layer(sizes), "nats") < 0.0
