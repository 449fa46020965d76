"""Layer 1 and the previous token: what it uses, and where most of its attention goes instead.

The bounds are provisional: they leave room around sprint seeds 0 to 9 and three
models of the notebook recipe.
"""

from __future__ import annotations

from nopos import claim
from nopos.analysis.attention import loss_keeping_only, loss_with_cut, strongest_offset_share
from nopos.controls import LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED


@claim(rung="causal", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK])
def test_layer_1_needs_its_attention_to_the_previous_token(subject, measure):
    """Cutting layer 1's attention to the previous token destroys the prediction; cutting 2, 3 or 4 back does not."""

    def added(offset):
        return subject.run(loss_with_cut, layer=1, offset=offset) - subject.loss

    assert measure("nats added by cutting 1 back", added(1), "nats") > 4.0
    further = max(abs(added(offset)) for offset in (2, 3, 4))
    assert measure("largest change by cutting 2, 3 or 4 back", further, "nats") < 0.1


@claim(rung="causal", source="notebook, step 6", refuted_by=[RELAY, TWO_BACK])
def test_layer_1_needs_nothing_but_its_attention_to_the_previous_token(subject, measure):
    """With all of layer 1's attention on the previous token the loss hardly moves; on its own token it is destroyed."""

    def change(offset):
        return abs(subject.run(loss_keeping_only, layer=1, offset=offset) - subject.loss)

    assert measure("change by keeping only 1 back", change(1), "nats") < 0.1
    assert measure("change by keeping only the own slot", change(0), "nats") > 5.0


@claim(rung="correlational", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, TWO_BACK, UNTRAINED])
def test_layer_1_attends_most_to_its_own_token(subject, measure):
    """The largest weight of layer 1's attention lies on the current token rather than on the previous one."""
    share = subject.run(strongest_offset_share, layer=1, offset=0)
    assert measure("share of queries whose strongest key is their own slot", share) > 0.9


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
