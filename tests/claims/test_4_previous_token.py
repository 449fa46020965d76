"""Layer 1 and the previous token: what it uses, and where most of its attention goes instead."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.attention import (
    effect_of_cutting,
    effect_of_keeping_only,
    mean_weight_by_offset,
    strongest_offset_share,
)
from nopos.controls import (
    CONTENT_ALONE,
    LEARNED_POSITIONS,
    NO_CAUSAL_MASK,
    RELAY,
    TWO_BACK,
    UNIFORM_LAYER_1,
    UNTRAINED,
)


@claim(rung="causal", source="notebook, step 6, by a renormalised cut", refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK])
def test_layer_1_needs_its_attention_to_the_previous_token(subject, measure):
    """Cutting layer 1's attention to the previous token destroys the prediction; cutting 2, 3 or 4 back does not."""

    def cut(offset):
        return subject.run(effect_of_cutting, layer=1, offset=offset)

    assert measure("nats added by cutting 1 back", cut(1).nats_added, "nats") > 4.0
    further = max(cut(offset).kl for offset in (2, 3, 4))
    assert measure("largest KL by cutting 2, 3 or 4 back", further, "nats") < 0.05
    changed = max(cut(offset).answers_changed for offset in (2, 3, 4))
    assert measure("largest share of answers changed by that", changed) < 0.005


@claim(rung="causal", source="notebook, step 6", refuted_by=[RELAY, TWO_BACK, UNIFORM_LAYER_1])
def test_layer_1_needs_nothing_but_its_attention_to_the_previous_token(subject, measure):
    """With all of layer 1's attention on the previous token every answer stays; on its own token all are destroyed."""

    def keep_only(offset):
        return subject.run(effect_of_keeping_only, layer=1, offset=offset)

    assert measure("KL, keeping only 1 back", keep_only(1).kl, "nats") < 0.1
    assert measure("share of answers changed, keeping only 1 back", keep_only(1).answers_changed) < 0.025
    assert measure("nats added, keeping only the own slot", keep_only(0).nats_added, "nats") > 5.0


@claim(rung="correlational", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, TWO_BACK, UNTRAINED])
def test_layer_1_attends_most_to_its_own_token(subject, measure):
    """The largest weight of layer 1's attention lies on the current token rather than on the previous one."""
    share = subject.run(strongest_offset_share, layer=1, offset=0)
    assert measure("share of queries whose strongest key is their own slot", share) > 0.9


@claim(
    rung="correlational",
    source="notebook, step 5, mean pattern of layer 1",
    refuted_by=[TWO_BACK, CONTENT_ALONE, NO_CAUSAL_MASK, LEARNED_POSITIONS],
)
def test_layer_1_attention_falls_by_more_than_a_third_with_each_slot_back(subject, measure):
    """In the mean, each of the three slots before the current one gets under two thirds of the weight of the next."""
    weight = subject.run(mean_weight_by_offset, layer=1)
    largest = max((weight[offset + 1] / weight[offset]).item() for offset in range(3))
    assert measure("largest ratio of the weights at neighbouring offsets", largest) < 2 / 3


@claim(
    rung="correlational",
    source="notebook, step 6, as its plots are usually read",
    expect="refuted",
    holds_on=[LEARNED_POSITIONS, RELAY],
)
def test_the_strongest_key_of_some_layer_is_the_previous_token(subject, measure):
    """Some layer attends to the previous token more than to any other: what "reads the previous token" suggests."""
    share = max(subject.run(strongest_offset_share, layer=layer, offset=1) for layer in range(subject.config.n_layers))
    assert measure("largest share of queries whose strongest key is 1 back", share) > 0.5
