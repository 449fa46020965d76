"""MLP 0 turns the count into a code of position that layer 1 acts on."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.codes import (
    PLANE,
    RESIDUAL,
    effect_of_directions,
    effect_of_keeping_neurons,
    effect_of_layer_0_by_law,
    effect_of_noise_in_the_plane,
    principal_shares,
    smallest_turn,
)
from nopos.analysis.neurons import mlp_activations
from nopos.analysis.patching import effect_of_exchanging_codes, mean_code
from nopos.analysis.places import answers_to_exchanged_counts, places_of_faked_counts
from nopos.analysis.probes import position_r2, untrained_position_r2
from nopos.controls import LEARNED_POSITIONS, NO_BOS, NO_CAUSAL_MASK, RELAY, TWO_BACK, UNTRAINED

COUNT = "blocks.0.hook_attn_out"
CODE = "blocks.0.hook_mlp_out"
FAKED = (5, 10, 20, 30, 40)


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
    rung="correlational", source="Haviv 2022, before and after MLP 0", refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED]
)
def test_MLP_0_straightens_the_count(subject, measure):
    """The slot is a linear function of what MLP 0 writes, which it is not of what layer 0's attention writes."""

    def r2(hook_point):
        return subject.run(position_r2, other_tokens=subject.other_tokens, hook_point=hook_point)

    assert measure("R² of the slot after MLP 0, less that before", r2(CODE) - r2(COUNT)) > 0.08


@claim(
    rung="correlational",
    source="notebook, step 6, mean MLP activations",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
)
def test_the_neurons_of_MLP_0_follow_the_slot_more_than_the_token(subject, measure):
    """Most of the variance of MLP 0's neurons lies between slots, not between the sequences at a slot."""
    share = subject.run(mlp_activations, layer=0).share_by_slot
    assert measure("share of the variance between slots", share) > 0.5


@claim(rung="causal", source="the search for position neurons", refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED])
def test_the_code_takes_more_than_16_of_the_256_neurons_of_MLP_0_and_fewer_than_192(subject, measure):
    """Hold the means of all neurons but those that write most of the code the same in all slots: 16 are too few."""

    def changed(count):
        return subject.run(effect_of_keeping_neurons, other_tokens=subject.other_tokens, count=count).answers_changed

    assert measure("share of answers changed, 16 neurons kept", changed(16)) > 0.05
    assert measure("share of answers changed, 192 neurons kept", changed(192)) < 0.045


@claim(
    rung="correlational",
    source="principal directions of the mean code",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
)
def test_the_code_is_a_smooth_curve_in_a_plane(subject, measure):
    """Two directions hold nearly all of what the mean residual says of the slot, and it turns nowhere sharply."""
    codes = subject.run(mean_code, hook_point=RESIDUAL)
    assert (
        measure("share of the code's variance along two directions", principal_shares(codes)[:PLANE].sum().item())
        > 0.97
    )
    assert measure("smallest cosine of steps over six slots", smallest_turn(codes, stride=6)) > 0.4


@claim(
    rung="causal",
    source="the same, put in place of the code; Makelov 2023, for the noise",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
)
def test_later_layers_need_both_directions_of_the_plane_and_hardly_any_other(subject, measure):
    """With the code in its plane answers stay; not with as much noise in it as lies outside, nor with one direction."""

    def changed(analysis, **options):
        return subject.run(analysis, other_tokens=subject.other_tokens, **options).answers_changed

    in_plane = changed(effect_of_directions, count=PLANE, kept=True)
    assert measure("share of answers changed, two directions kept", in_plane) < 0.015
    assert measure("the same by as much noise in the plane", changed(effect_of_noise_in_the_plane)) > 0.15
    alone = changed(effect_of_directions, count=1, kept=True)
    assert measure("share of answers changed, one direction kept", alone) > 0.02
    without = changed(effect_of_directions, count=PLANE, kept=False)
    assert measure("share of answers changed, two directions taken away", without) > 0.6


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


@claim(rung="causal", source="counts driven by hand", refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS])
def test_slots_that_exchange_their_counts_exchange_their_places(subject, measure):
    """Exchange the counts of the slots 1 and 2 back in layer 0's pattern: the token 2 back is answered."""
    before, exchanged = subject.run(answers_to_exchanged_counts, twin=subject.folded)
    assert measure("fall of the loss on the token 2 back", before.far - exchanged.far, "nats") > 8.0
    assert measure("rise of the loss on the previous token", exchanged.near - before.near, "nats") > 3.0


@claim(
    rung="causal",
    source="counts driven by hand through the law",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_a_faked_count_is_taken_for_the_slot_it_stands_for(subject, measure):
    """Told the same count in every slot, all are where the slot of that count is."""
    faked = subject.run(places_of_faked_counts, other_tokens=subject.other_tokens, twin=subject.folded, counts=FAKED)
    assert measure("error of the places over faked counts of 5 to 40", faked.error, "slots") < 2.0


@claim(
    rung="constructive",
    source="the law of dilution, through the weights of MLP 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_layer_0_is_a_table_of_token_and_slot(subject, measure):
    """All that layer 0 writes can be looked up by token and slot in a table made of the law and the weights."""
    effect = subject.run(effect_of_layer_0_by_law, twin=subject.folded)
    assert measure("share of answers changed by the table in place", effect.answers_changed) < 0.08
    assert measure("KL by that", effect.kl, "nats") < 0.4
