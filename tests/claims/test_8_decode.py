"""How one token is decoded out of a blend: what layer 1 writes, what cancels the current token, what MLP 1 answers."""

from __future__ import annotations

from nopos import claim
from nopos.mechanism.decode import (
    contributions,
    copying_share,
    current_token_wins,
    effect_of_silencing_neurons,
    neuron_response_correlation,
    neurons_for_half,
    written_per_weight,
)
from nopos.methods.attribution import direct_logit_attribution
from nopos.methods.statistics import relative_range
from nopos.model.hook_points import hook_point
from nopos.subjects.controls import LEARNED_POSITIONS, NO_BOS, PERMUTED_WEIGHTS, RELAY, TWO_BACK, UNTRAINED
from nopos.subjects.scopes import TWO_LAYERS, TWO_OR_MORE_LAYERS

ATTENTION = hook_point(1, "attn_out")
MLPS = (hook_point(0, "mlp_out"), hook_point(1, "mlp_out"))


def added_to_the_token(subject, offset):
    """Mean addition of each component to the logit of the token so many positions back, over the mean logit."""
    attribution = subject.run(direct_logit_attribution, offset=offset)
    return {component: by_position.mean().item() for component, by_position in attribution.items()}


@claim(
    evidence="correlational",
    source="the full OV circuit of layer 1",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_copies_the_tokens_that_it_attends_to(subject, measure):
    """A token that layer 1 attends to gets its own logit lifted above most others, by what layer 1 reads for it."""
    assert measure("share of other logits that a token's own beats", subject.run(copying_share)) > 0.6


@claim(
    evidence="causal",
    source="the OV circuit of layer 1, one position's token patched",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_writes_each_token_by_its_weight(subject, measure):
    """Patch another token into one position: layer 1 writes the OV circuit's difference in proportion to the kernel."""
    written = subject.run(written_per_weight, offsets=4)
    assert measure("least that is written per weight, own position to 3 back", written.min().item()) > 0.3
    assert measure("spread of it over these four", relative_range(written)) < 0.5


@claim(
    evidence="correlational",
    source="notebook, step 5",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED],
    scope=TWO_LAYERS,
)
def test_attention_writes_the_current_token_and_both_MLPs_take_it_away(subject, measure):
    """To the current token's logit layer 1's attention adds, and either MLP subtracts."""
    added = added_to_the_token(subject, 0)
    assert measure("what layer 1's attention adds", added[ATTENTION], "logits") > 3.0
    assert measure("what MLP 0 adds", added[MLPS[0]], "logits") < -2.0
    assert measure("what MLP 1 adds", added[MLPS[1]], "logits") < -0.1


@claim(
    evidence="causal",
    source="the question how the current token is removed",
    refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED],
    scope=TWO_LAYERS,
)
def test_without_what_MLP_0_wrote_of_it_in_advance_the_current_token_wins(subject, measure):
    """Take out what MLP 0 wrote of it: the current token beats the right one, mostly because MLP 1 misses that."""

    def wins(reader, *, own=True):
        return subject.run(current_token_wins, reader=reader, own=own)

    assert measure("share of positions whose current token beats the right one", wins("both")) > 0.5
    assert measure("the same with another token's taken out", wins("both", own=False)) < 0.25
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
    assert measure("what MLP 1 adds", added[MLPS[1]], "logits") > 8.0
    assert measure("its share of what all components add", added[MLPS[1]] / sum(added.values())) > 0.5


@claim(
    evidence="causal",
    source="notebook, step 6, its OV circuit of layer 1 with W_in[1] for W_in[0]",
    refuted_by=[LEARNED_POSITIONS, RELAY, PERMUTED_WEIGHTS, UNTRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_the_OV_circuit_of_layer_1_predicts_how_its_neurons_respond_to_the_previous_token(subject, measure, offset=1):
    """Swap the previous token: the OV circuit, fed with what layer 1 reads for a token, predicts how MLP 1 responds."""
    correlation = subject.run(neuron_response_correlation, offset=offset)
    assert measure("correlation over swaps and neurons", correlation) > 0.3


@claim(
    evidence="causal",
    source="notebook, step 6, activations of MLP 1, answer by answer",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED],
    scope=TWO_LAYERS,
)
def test_each_answer_leans_on_neurons_of_MLP_1_of_its_own(subject, measure):
    """The 3 % of the neurons that add most to it matter more to an answer than those that add most to another's."""
    neurons, answers = subject.config.d_mlp, ("right", "wrong")
    few = max(1, neurons // 32)
    own, others = (subject.run(effect_of_silencing_neurons, count=few, answer=answer) for answer in answers)
    added = subject.run(contributions)
    more = neurons_for_half(added.mean(dim=(0, 1))).item() - neurons_for_half(added).median().item()
    lost_more = own.logit_difference_lost - others.logit_difference_lost
    assert measure("share of answers changed, its own 3 % silent", own.answers_changed) > 0.05
    assert measure("share of the logit difference lost, more than by another's 3 %", lost_more) > 0.1
    assert measure("share of neurons for half of all answers, less for half of one", more / neurons) > 0.1
