"""MLP 0 turns the count into a position code that layer 1 acts on."""

from __future__ import annotations

from nopos import claim
from nopos.mechanism.decoded_position import answers_to_swapped_counts, of_patched_counts
from nopos.mechanism.layer_0_table import effect_of_the_table
from nopos.mechanism.position_code import (
    PLANE,
    effect_of_directions,
    effect_of_keeping_neurons,
    effect_of_noise_in_the_plane,
    position_codes,
    principal_shares,
    smallest_turn,
)
from nopos.methods.activation_patching import effect_of_swapping_means
from nopos.methods.neurons import mlp_activations
from nopos.methods.probes import position_r2, untrained_position_r2
from nopos.model.hook_points import hook_point
from nopos.subjects.controls import LEARNED_POSITIONS, NO_BOS, NO_CAUSAL_MASK, RELAY, TWO_BACK, UNTRAINED
from nopos.subjects.scopes import TWO_OR_MORE_LAYERS

COUNT, CODE, RESIDUAL = hook_point(0, "attn_out"), hook_point(0, "mlp_out"), hook_point(0, "resid_post")
PATCHED = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the context."""


@claim(
    evidence="correlational",
    source="Haviv 2022; control task of Hewitt and Liang 2019",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_position_can_be_read_from_what_MLP_0_writes(subject, measure):
    """A linear probe finds the position, finds no arbitrary order of positions, and far less in an untrained model."""
    r2 = subject.run(position_r2, hook_point=CODE)
    control = subject.run(position_r2, hook_point=CODE, control_task=True)
    untrained = subject.run(untrained_position_r2, hook_point=CODE)
    assert measure("R² of the position", r2) > 0.95
    assert measure("R² of the position, less that of the control task", r2 - control) > 0.6
    assert measure("R² of the position, less that in an untrained model", r2 - untrained) > 0.5


@claim(
    evidence="correlational",
    source="Haviv 2022, before and after MLP 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_MLP_0_straightens_the_count(subject, measure):
    """The position is a linear function of what MLP 0 writes, which it is not of what layer 0's attention writes."""
    before, after = (subject.run(position_r2, hook_point=name) for name in (COUNT, CODE))
    assert measure("R² of the position after MLP 0, less that before", after - before) > 0.08


@claim(
    evidence="correlational",
    source="notebook, step 6, mean MLP activations",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_neurons_of_MLP_0_follow_the_position_more_than_the_token(subject, measure):
    """Most of the variance of MLP 0's neurons lies between positions, not between the sequences at a position."""
    share = subject.run(mlp_activations, layer=0).share_by_position
    assert measure("share of the variance between positions", share) > 0.5


@claim(
    evidence="causal",
    source="the search for position neurons",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_code_takes_more_than_a_sixteenth_of_the_neurons_of_MLP_0_and_less_than_three_quarters(subject, measure):
    """With all other neurons' means the same at every position, the sixteenth that writes most of the code is too few,
    and the three quarters that do are enough.
    """
    counts = (subject.config.d_mlp // 16, 3 * subject.config.d_mlp // 4)
    few, most = (subject.run(effect_of_keeping_neurons, count=count).answers_changed for count in counts)
    assert measure("share of answers changed, a sixteenth of the neurons kept", few) > 0.05
    assert measure("share of answers changed, three quarters of the neurons kept", most) < 0.045


@claim(
    evidence="correlational",
    source="principal directions of the mean code",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_code_is_a_smooth_curve_in_a_plane(subject, measure):
    """Two directions hold nearly all of what the mean residual says of the position, and it turns nowhere sharply."""
    codes = subject.run(position_codes)
    in_plane = principal_shares(codes)[:PLANE].sum().item()
    assert measure("share of the code's variance along two directions", in_plane) > 0.97
    turn = smallest_turn(codes, stride=subject.config.n_ctx // 8)
    assert measure("smallest cosine of chords over an eighth of the positions", turn) > 0.4


@claim(
    evidence="causal",
    source="the same, put in place of the code; Makelov 2023, for the noise",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_later_layers_need_both_directions_of_the_plane_and_hardly_any_other(subject, measure):
    """With the code in its plane answers stay; not with as much noise in it as lies outside, nor with one direction."""
    in_plane, alone, without = (
        subject.run(effect_of_directions, count=count, kept=kept).answers_changed
        for count, kept in ((PLANE, True), (1, True), (PLANE, False))
    )
    noisy = subject.run(effect_of_noise_in_the_plane).answers_changed
    assert measure("share of answers changed, two directions kept", in_plane) < 0.02
    assert measure("the same by as much noise in the plane", noisy) > 0.15
    assert measure("share of answers changed, one direction kept", alone) > 0.02
    assert measure("share of answers changed, two directions taken away", without) > 0.6


@claim(
    evidence="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS],
    scope=TWO_OR_MORE_LAYERS,
)
def test_positions_that_swap_their_mean_codes_are_read_for_each_other(subject, measure, offset=1):
    """Swap the mean residuals of the previous position and of the one before it: the model answers with the token
    before the previous one.
    """
    swap = subject.run(effect_of_swapping_means, hook_point=RESIDUAL, offsets=(offset, offset + 1))
    far = swap.swapped.far
    least = min(answers.far for answers in swap.random) - far
    most = max(abs(answers.near - swap.before.near) for answers in swap.random)
    assert measure("loss on the token one further back, codes swapped", far, "nats") < 2.0
    assert measure("loss on the previous token, codes swapped", swap.swapped.near, "nats") > 3.0
    assert measure("least difference to it with random directions", least, "nats") > 5.0
    assert measure("largest change on the previous token by them", most, "nats") < 1.5


@claim(
    evidence="causal",
    source="counts put in by hand",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS],
    scope=TWO_OR_MORE_LAYERS,
)
def test_positions_that_swap_their_counts_are_read_for_each_other(subject, measure, offset=1):
    """Swap the counts of the previous position and of the one before it in layer 0's pattern: the model answers with
    the token before the previous one.
    """
    before, swapped = subject.run(answers_to_swapped_counts, offsets=(offset, offset + 1))
    assert measure("fall of the loss on the token one further back", before.far - swapped.far, "nats") > 8.0
    assert measure("rise of the loss on the previous token", swapped.near - before.near, "nats") > 3.0


@claim(
    evidence="causal",
    source="counts put in by hand through the law",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_a_patched_count_is_decoded_as_the_position_it_stands_for(subject, measure):
    """With the same count patched into every position, all are decoded as the position of that count."""
    counts = tuple(int(share * subject.config.n_ctx) for share in PATCHED)
    patched = subject.run(of_patched_counts, counts=counts)
    assert measure("error of decoded positions over counts of a tenth to four fifths", patched.error, "positions") < 2.0


@claim(
    evidence="constructive",
    source="the law of dilution, through the weights of MLP 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_0_is_a_table_of_token_and_position(subject, measure):
    """All that layer 0 writes can be looked up by token and position in a table made of the law and the weights."""
    effect = subject.run(effect_of_the_table)
    assert measure("share of answers changed by the table in place", effect.answers_changed) < 0.08
    assert measure("KL by that", effect.kl, "nats") < 0.4
