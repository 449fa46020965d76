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
from nopos.methods.metrics import TENTHS
from nopos.methods.neurons import mlp_activations
from nopos.methods.probes import position_r2, untrained_position_r2
from nopos.model.hook_points import hook_point
from nopos.subjects.controls import LEARNED_POSITIONS, NO_BOS, NO_CAUSAL_MASK, RELAY, TWO_BACK, UNTRAINED
from nopos.subjects.scopes import FINDS_POSITIONS, READS_CODE

COUNT, CODE, RESIDUAL = hook_point(0, "attn_out"), hook_point(0, "mlp_out"), hook_point(0, "resid_post")
HALF = TENTHS // 2
PATCHED = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the context."""


@claim(
    evidence="correlational",
    source="Haviv 2022; control task of Hewitt and Liang 2019",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_position_can_be_read_from_what_layer_0_leaves(subject, measure):
    """A linear probe finds the position, finds no arbitrary order of positions, and far less in an untrained model."""
    r2 = subject.run(position_r2, hook_point=RESIDUAL)
    control = subject.run(position_r2, hook_point=RESIDUAL, control_task=True)
    untrained = subject.run(untrained_position_r2, hook_point=RESIDUAL)
    assert measure("R² of the position", r2) > 0.95
    assert measure("R² of the position, less that of the control task", r2 - control) > 0.6
    assert measure("R² of the position, less that in an untrained model", r2 - untrained) > 0.5


@claim(
    evidence="correlational",
    source="Haviv 2022, before and after MLP 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=READS_CODE,
)
def test_MLP_0_straightens_the_count(subject, measure):
    """The position is a linear function of what MLP 0 writes, which it is not of what layer 0's attention writes."""
    before, after = (subject.run(position_r2, hook_point=name) for name in (COUNT, CODE))
    assert measure("share that MLP 0 adds of what was missing in R²", (after - before) / (1 - before)) > 0.8


@claim(
    evidence="correlational",
    source="notebook, step 6, mean MLP activations",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=READS_CODE,
)
def test_a_third_of_what_the_neurons_of_MLP_0_write_follows_the_position(subject, measure):
    """Of the variance of what MLP 0's neurons write a third or more lies between positions."""
    share = subject.run(mlp_activations, layer=0).share_by_position
    assert measure("share of the variance between positions", share) > 0.35


@claim(
    evidence="causal",
    source="the search for position neurons",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_the_code_takes_more_than_one_neuron_of_MLP_0_and_less_than_three_quarters_of_them(subject, measure):
    """With all other neurons' means the same at every position, the one that writes most of the code is too few, and
    the three quarters that do are enough.
    """
    one, most = (
        subject.run(effect_of_keeping_neurons, count=count).changed_by_tenth[1:]
        for count in (1, 3 * subject.config.d_mlp // 4)
    )
    assert measure("share of answers changed, one neuron kept", one.mean().item()) > 0.1
    assert measure("most changed in a tenth, three quarters of the neurons kept", most.max().item()) < 0.05


@claim(
    evidence="correlational",
    source="principal directions of the mean code",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_CAUSAL_MASK, UNTRAINED],
    scope=FINDS_POSITIONS,
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
    scope=FINDS_POSITIONS,
)
def test_later_layers_need_both_directions_of_the_plane_and_hardly_any_other(subject, measure):
    """With the code in its plane answers stay; not with as much noise in it as lies outside, nor with one direction."""
    in_plane, alone, without = (
        subject.run(effect_of_directions, count=count, kept=kept).changed_by_tenth
        for count, kept in ((PLANE, True), (1, True), (PLANE, False))
    )
    noisy = subject.run(effect_of_noise_in_the_plane).changed_by_tenth
    assert measure("most changed in a tenth, two directions kept", in_plane[1:].max().item()) < 0.05
    assert measure("the same by as much noise in the plane", noisy[1:].max().item()) > 0.3
    assert measure("most changed in a tenth, one direction kept", alone[1:].max().item()) > 0.09
    assert measure("least changed in a tenth of the second half, none kept", without[HALF:].min().item()) > 0.6


@claim(
    evidence="causal",
    source="Makelov 2023, for the random directions",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS],
    scope=FINDS_POSITIONS,
)
def test_positions_that_swap_their_mean_codes_are_read_for_each_other(subject, measure, offset=1):
    """Swap the mean residuals of the previous position and of the one before it: the model answers with the token
    before the previous one.
    """
    swap = subject.run(effect_of_swapping_means, hook_point=RESIDUAL, offsets=(offset, offset + 1))
    far = swap.swapped.far
    by_random = max(answers.far for answers in swap.random)
    assert measure("share of answers that are the token one further back, codes swapped", far) > 0.25
    assert measure("the same with random directions", by_random) < 0.15


@claim(
    evidence="causal",
    source="counts put in by hand",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, NO_BOS],
    scope=FINDS_POSITIONS,
)
def test_positions_that_swap_their_counts_are_read_for_each_other(subject, measure, offset=1):
    """Swap the counts of the previous position and of the one before it in layer 0's pattern: the model answers with
    the token before the previous one.
    """
    before, swapped = subject.run(answers_to_swapped_counts, offsets=(offset, offset + 1))
    assert measure("share of answers that are the token one further back, counts swapped", swapped.far) > 0.2
    assert measure("the same before", before.far) < 0.05


@claim(
    evidence="causal",
    source="counts put in by hand through the law",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
    scope=FINDS_POSITIONS,
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
    scope=FINDS_POSITIONS,
)
def test_layer_0_is_a_table_of_token_and_position(subject, measure):
    """In the second half of the positions all that layer 0 writes can be looked up by token and position in a table
    made of the law and the weights.
    """
    changed = subject.run(effect_of_the_table).changed_by_tenth[HALF:]
    assert measure("most changed in a tenth by the table in place", changed.max().item()) < 0.15
