"""MLP 0 turns the count into a code of position that layer 1 acts on."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.neurons import mlp_activations
from nopos.analysis.patching import effect_of_exchanging_codes
from nopos.analysis.probes import position_r2, untrained_position_r2
from nopos.controls import LEARNED_POSITIONS, NO_BOS, NO_CAUSAL_MASK, RELAY, TWO_BACK, UNTRAINED

CODE = "blocks.0.hook_mlp_out"
RESIDUAL = "blocks.0.hook_resid_post"


@claim(
    rung="correlational",
    source="Haviv 2022; control task of Hewitt and Liang 2019",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
)
def test_position_can_be_read_from_what_MLP_0_writes(subject, measure):
    """A linear probe finds the slot, where it finds no arbitrary order of slots and far less in an untrained model."""
    r2 = subject.run(position_r2, other_tokens=subject.other_tokens, hook_point=CODE)
    control = subject.run(position_r2, other_tokens=subject.other_tokens, hook_point=CODE, control_task=True)
    untrained = subject.run(untrained_position_r2, other_tokens=subject.other_tokens, hook_point=CODE)
    assert measure("R² of the slot", r2) > 0.95
    assert measure("R² of the slot, less that of the control task", r2 - control) > 0.6
    assert measure("R² of the slot, less that in an untrained model", r2 - untrained) > 0.5


@claim(
    rung="correlational",
    source="notebook, step 6, mean MLP activations",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
)
def test_the_neurons_of_MLP_0_follow_the_slot_more_than_the_token(subject, measure):
    """Most of the variance of MLP 0's neurons lies between slots, not between the sequences at a slot."""
    share = subject.run(mlp_activations, layer=0).share_by_slot
    assert measure("share of the variance between slots", share) > 0.5


@claim(
    rung="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS],
)
def test_slots_that_exchange_their_mean_codes_exchange_their_places(subject, measure):
    """Exchange the mean residuals of the slots 1 and 2 back: the token 2 back is answered, the previous one no more."""
    exchange = subject.run(
        effect_of_exchanging_codes, other_tokens=subject.other_tokens, hook_point=RESIDUAL, offsets=(1, 2)
    )
    far = exchange.exchanged.far
    least = min(answers.far for answers in exchange.random) - far
    most = max(abs(answers.near - exchange.before.near) for answers in exchange.random)
    assert measure("loss on the token 2 back, codes exchanged", far, "nats") < 2.0
    assert measure("loss on the previous token, codes exchanged", exchange.exchanged.near, "nats") > 3.0
    assert measure("least difference to it with random directions", least, "nats") > 5.0
    assert measure("largest change on the previous token by them", most, "nats") < 1.5
