"""Layer 1 and the previous token: what it uses, and where most of its attention goes instead."""

from __future__ import annotations

from nopos import claim
from nopos.methods.attention import (
    effect_of_keeping_only,
    effect_of_knock_out,
    mean_weight_by_offset,
    strongest_offset_share,
)
from nopos.methods.metrics import TENTHS
from nopos.subjects.controls import (
    CONTENT_ALONE,
    LEARNED_POSITIONS,
    NO_CAUSAL_MASK,
    RELAY,
    TWO_BACK,
    UNIFORM_LAYER_1,
    UNTRAINED,
)
from nopos.subjects.scopes import FINDS_POSITIONS, TWO_OR_MORE_LAYERS

HALF = TENTHS // 2


@claim(
    evidence="causal",
    source="notebook, step 6, by knocked-out attention edges",
    requested="layer 1 reads the previous token",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_needs_its_attention_to_the_previous_token(subject, measure, offset=1):
    """Knocking out layer 1's attention to the previous token changes most answers in the second half of the positions;
    to one further back nearly none from the second tenth on.
    """
    needed = subject.run(effect_of_knock_out, layer=1, offset=offset).changed_by_tenth[HALF:]
    further = [
        subject.run(effect_of_knock_out, layer=1, offset=offset + more).changed_by_tenth[1:].max().item()
        for more in (1, 2, 3)
    ]
    assert measure("least share of answers changed in a tenth of the second half", needed.min().item()) > 0.7
    assert measure("most changed in a tenth without one further back", max(further)) < 0.05


@claim(
    evidence="causal",
    source="notebook, step 6",
    refuted_by=[RELAY, TWO_BACK, UNIFORM_LAYER_1],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_needs_little_but_its_attention_to_the_previous_token(subject, measure, offset=1):
    """From the second tenth of the positions on most answers stay with all of layer 1's attention on the previous
    token; on the own token nearly all change.
    """
    on_previous = subject.run(effect_of_keeping_only, layer=1, offset=offset).changed_by_tenth[1:]
    on_own = subject.run(effect_of_keeping_only, layer=1, offset=0).changed_by_tenth[1:]
    assert measure("most changed in a tenth, all attention on the previous token", on_previous.max().item()) < 0.25
    assert measure("least changed in a tenth, all attention on the own token", on_own.min().item()) > 0.9


@claim(
    evidence="correlational",
    source="notebook, step 6",
    refuted_by=[LEARNED_POSITIONS, TWO_BACK, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_1_attends_most_to_its_own_token(subject, measure):
    """The largest weight of layer 1's attention lies on the current token rather than on the previous one."""
    share = subject.run(strongest_offset_share, layer=1, offset=0)
    assert measure("share of queries whose strongest key is their own position", share) > 0.9


@claim(
    evidence="correlational",
    source="notebook, step 5, mean pattern of layer 1",
    refuted_by=[TWO_BACK, CONTENT_ALONE, NO_CAUSAL_MASK, LEARNED_POSITIONS],
    scope=FINDS_POSITIONS,
)
def test_layer_1_attention_falls_with_each_position_back(subject, measure):
    """In the mean each of the three positions before the current one gets less weight than the next, by a seventh."""
    weight = subject.run(mean_weight_by_offset, layer=1)
    largest = max((weight[offset + 1] / weight[offset]).item() for offset in range(3))
    assert measure("largest ratio of the weights at neighbouring offsets", largest) < 0.85


@claim(
    evidence="correlational",
    source="notebook, step 6, whose plots are usually read the other way",
    refutes="layer 1 attends mostly to the previous token",
    refuted_by=[LEARNED_POSITIONS, RELAY],
    scope=FINDS_POSITIONS,
)
def test_in_no_layer_is_the_previous_token_the_strongest_key(subject, measure, offset=1):
    """In no layer do half of the queries attend to the previous token more than to any other."""
    layers = range(subject.config.n_layers)
    share = max(subject.run(strongest_offset_share, layer=layer, offset=offset) for layer in layers)
    assert measure("largest share of queries whose strongest key is the previous token", share) < 0.5
