"""What layer 1 writes, and what MLP 1 makes of it: direct logit attribution, OV circuits and neurons."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.attribution import direct_logit_attribution
from nopos.analysis.circuits import ov_into_neurons
from nopos.analysis.embedding import mean_by_token
from nopos.analysis.metrics import correlation
from nopos.analysis.patching import response_to_swapped_token
from nopos.controls import LEARNED_POSITIONS, PERMUTED_WEIGHTS, RELAY, TWO_BACK, UNTRAINED

ATTENTION = "blocks.1.hook_attn_out"
MLPS = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


def added_to_the_token(subject, offset):
    """Mean addition of each component to the logit of the token so many slots back, over the mean logit."""
    attribution = subject.run(direct_logit_attribution, offset=offset)
    return {component: by_slot.mean().item() for component, by_slot in attribution.items()}


@claim(rung="correlational", source="notebook, step 5", refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED])
def test_MLP_1_writes_most_of_the_answer(subject, measure):
    """Of what lifts the previous token over the mean logit, more than half comes directly from MLP 1."""
    added = added_to_the_token(subject, 1)
    assert measure("what MLP 1 adds", added[MLPS[1]], "logits") > 8.0
    assert measure("its share of what all components add", added[MLPS[1]] / sum(added.values())) > 0.5


@claim(rung="correlational", source="notebook, step 5", refuted_by=[LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED])
def test_attention_writes_the_current_token_and_both_MLPs_take_it_away(subject, measure):
    """To the current token's logit layer 1's attention adds, and either MLP subtracts."""
    added = added_to_the_token(subject, 0)
    assert measure("what layer 1's attention adds", added[ATTENTION], "logits") > 3.0
    assert measure("what MLP 0 adds", added[MLPS[0]], "logits") < -2.0
    assert measure("what MLP 1 adds", added[MLPS[1]], "logits") < -0.1


@claim(
    rung="causal",
    source="notebook, step 6, its OV circuit of layer 1 with W_in[1] for W_in[0]",
    refuted_by=[LEARNED_POSITIONS, RELAY, PERMUTED_WEIGHTS, UNTRAINED],
)
def test_the_OV_circuit_of_layer_1_predicts_how_its_neurons_respond_to_the_previous_token(subject, measure):
    """Swap the previous token: the OV circuit, fed with what layer 1 reads for a token, tells how MLP 1 is moved."""
    swaps = response_to_swapped_token(
        subject.folded, subject.tokens, other_tokens=subject.other_tokens, layer=1, offset=1
    )
    reading = mean_by_token(subject.folded, subject.other_tokens, hook_point="blocks.1.ln1.hook_normalized")
    circuit = ov_into_neurons(subject.folded, layer=1, reading=reading)[0]  # [token neuron]
    predicted = circuit[swaps.after] - circuit[swaps.before]
    assert measure("correlation over swaps and neurons", correlation(predicted, swaps.response)) > 0.3
