"""How one token is decoded out of a blend: what layer 1 writes, what cancels the current token, what MLP 1 answers."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.mechanism.decode import (
    IN_ADVANCE,
    copying_share,
    current_token_wins,
    neuron_response_correlation,
    written_per_weight,
)
from nopos.mechanism.program import effect_of_the_program
from nopos.methods.ablation import ablated
from nopos.methods.attribution import direct_logit_attribution
from nopos.methods.statistics import relative_range
from nopos.model.hook_points import hook_point
from nopos.subjects.controls import LEARNED_POSITIONS, NO_BOS, PERMUTED_WEIGHTS, RELAY, TWO_BACK, UNTRAINED
from nopos.subjects.scopes import FINDS_POSITIONS, IN_TWO_LAYERS, SURE_IN_TWO_LAYERS, TWO_LAYERS

ATTENTION, MLP_1 = hook_point(1, "attn_out"), hook_point(1, "mlp_out")
SMALL = torch.finfo(torch.float32).eps


def added_to_the_token(subject, offset):
    """Mean addition of each component to the logit of the token so many positions back, over the mean logit."""
    attribution = subject.run(direct_logit_attribution, offset=offset)
    return {component: by_position.mean().item() for component, by_position in attribution.items()}


@claim(
    evidence="correlational",
    source="the full OV circuit of layer 1",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_1_copies_the_tokens_that_it_attends_to(subject, measure):
    """A token that layer 1 attends to gets its own logit lifted above most others, by what layer 1 reads for it."""
    assert measure("share of other logits that a token's own beats", subject.run(copying_share)) > 0.65


@claim(
    evidence="causal",
    source="the OV circuit of layer 1, one position's token patched",
    refuted_by=[RELAY, NO_BOS],
    scope=FINDS_POSITIONS,
)
def test_layer_1_writes_each_token_by_its_weight(subject, measure):
    """Patch another token into one position: layer 1 writes the OV circuit's difference in proportion to the kernel."""
    written = subject.run(written_per_weight, offsets=4)
    assert measure("least that is written per weight, own position to 3 back", written.min().item()) > 0.0
    assert measure("spread of it over these four", relative_range(written)) < 0.8


@claim(
    evidence="correlational",
    source="notebook, step 5",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK],
    scope=IN_TWO_LAYERS,
)
def test_what_layer_1_adds_of_the_current_token_is_taken_away_before_it(subject, measure):
    """Layer 1's attention lifts the current token's logit; embedding and MLP 0 lower it by half of that or more."""
    added = added_to_the_token(subject, 0)
    before = sum(added[name] for name in IN_ADVANCE)
    assert measure("what they add, over what layer 1's attention adds", before / added[ATTENTION]) < -0.5


@claim(
    evidence="causal",
    source="the question how the current token is removed",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED],
    scope=IN_TWO_LAYERS,
)
def test_without_what_was_written_of_it_in_advance_the_current_token_wins(subject, measure):
    """Take out what embedding and MLP 0 wrote of it: the current token often beats the right one, mostly because MLP 1
    misses that.
    """

    def wins(reader, *, own=True):
        return subject.run(current_token_wins, reader=reader, own=own)

    own, other = wins("both"), wins("both", own=False)
    assert measure("share of positions whose current token beats the right one", own) > 0.3
    assert measure("the same with another token's taken out, over that", other / max(own, SMALL)) < 0.6
    assert measure("share if MLP 1 alone misses it", wins("MLP 1")) > 0.2
    assert measure("share if the unembedding alone misses it", wins("unembedding")) < 0.1


@claim(
    evidence="correlational",
    source="notebook, step 5",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_LAYERS,
)
def test_MLP_1_writes_most_of_the_answer(subject, measure, offset=1):
    """Of what lifts the previous token over the mean logit, more than half comes directly from MLP 1."""
    added = added_to_the_token(subject, offset)
    assert measure("its share of what all components add", added[MLP_1] / sum(added.values())) > 0.5


@claim(
    evidence="causal",
    source="notebook, step 6, its OV circuit of layer 1 with W_in[1] for W_in[0]",
    refuted_by=[LEARNED_POSITIONS, RELAY, PERMUTED_WEIGHTS, UNTRAINED],
    scope=FINDS_POSITIONS,
)
def test_the_OV_circuit_of_layer_1_predicts_how_its_neurons_respond_to_the_previous_token(subject, measure, offset=1):
    """Swap the previous token: the OV circuit, fed with what layer 1 reads for a token, predicts how MLP 1 responds."""
    correlation = subject.run(neuron_response_correlation, offset=offset)
    assert measure("correlation over swaps and neurons", correlation) > 0.09


@claim(
    evidence="constructive",
    source="least squares from what MLP 1 reads to what it writes",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=SURE_IN_TWO_LAYERS,
)
def test_MLP_1_is_an_affine_map_of_what_it_reads(subject, measure):
    """One matrix and one vector, fitted on other tokens, can stand for MLP 1, which another's output cannot."""
    changed = subject.run(effect_of_the_program, patterns=False).changed_by_tenth[1:]
    (resampled,) = subject.run(ablated, kind="resample", hook_points=(MLP_1,)).values()
    assert measure("share of answers changed, another sequence's in place", resampled.answers_changed) > 0.7
    assert measure("most changed in a tenth by the affine map in place", changed.max().item()) < 0.05


@claim(
    evidence="constructive",
    source="all accounts at once",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=SURE_IN_TWO_LAYERS,
)
def test_law_kernel_and_affine_map_stand_for_the_model_together(subject, measure):
    """With layer 0's pattern by the law, layer 1's by the weights and MLP 1 by one affine map, answers stay."""
    patterns = subject.run(effect_of_the_program, decoding=False).changed_by_tenth[1:]
    every = subject.run(effect_of_the_program).changed_by_tenth[1:]
    assert measure("most changed in a tenth by law and kernel", patterns.max().item()) < 0.05
    assert measure("most changed in a tenth by all three", every.max().item()) < 0.15
