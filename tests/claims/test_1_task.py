"""The task is solved, without positional embeddings, and better than any model could that does not use order."""

from __future__ import annotations

from nopos import claim, theory
from nopos.analysis.embedding import largest_spread_over_slots
from nopos.controls import (
    HALF_TRAINED,
    LEAKING_POSITIONS,
    LEARNED_POSITIONS,
    NO_BOS,
    NO_CAUSAL_MASK,
    ONE_LAYER,
    RELAY,
    SHUFFLED_TARGETS,
    TWO_BACK,
    UNTRAINED,
)


@claim(rung="correlational", source="notebook, step 5", refuted_by=[LEAKING_POSITIONS, LEARNED_POSITIONS])
def test_W_pos_is_exactly_zero(subject, measure):
    """The positional embedding is zero to the last bit, after all of training."""
    assert measure("largest absolute value in W_pos", subject.model.pos_embed.W_pos.abs().max().item()) == 0.0


@claim(rung="correlational", source="notebook, step 2", refuted_by=[LEAKING_POSITIONS, LEARNED_POSITIONS, RELAY])
def test_the_embedding_carries_no_position(subject, measure):
    """Before the first attention a token looks the same at every slot, to the last bit."""
    assert measure("largest difference between a token at two slots", largest_spread_over_slots(subject.model)) == 0.0


@claim(rung="behavioural", source="notebook, step 4", refuted_by=[UNTRAINED, HALF_TRAINED, TWO_BACK, NO_BOS])
def test_the_previous_token_is_predicted(subject, measure):
    """On tokens that no training saw, the model predicts the previous token almost without error."""
    assert measure("held-out loss", subject.loss, "nats") < 0.01
    assert measure("held-out accuracy", subject.accuracy) > 0.999


@claim(
    rung="behavioural",
    source="nopos.theory",
    refuted_by=[UNTRAINED, SHUFFLED_TARGETS, NO_CAUSAL_MASK, ONE_LAYER],
)
def test_the_loss_is_below_what_is_possible_without_order(subject, measure):
    """The loss beats every model that sees no other token, that has no causal mask, or that has one layer."""
    task = subject.config
    assert measure("loss, against no tokens seen", subject.loss, "nats") < theory.floor_without_tokens(task)
    assert measure("loss, against no causal mask", subject.loss, "nats") < theory.floor_without_causal_mask(task)
    assert measure("loss, against one causal layer", subject.loss, "nats") < theory.floor_of_one_causal_layer(task)
