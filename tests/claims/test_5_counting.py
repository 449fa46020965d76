"""Layer 0 counts: its attention to BOS is diluted by every token that follows."""

from __future__ import annotations

from nopos import claim
from nopos.analysis.attention import effect_of_erasing_bos_key, mean_pattern
from nopos.analysis.circuits import qk_circuit
from nopos.controls import LEARNED_POSITIONS, NO_BOS, RELAY, TWO_BACK, UNTRAINED, WITHOUT_BOS_KEY


@claim(
    rung="correlational",
    source="notebook, step 5, mean pattern of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
)
def test_layer_0_attends_to_BOS_less_with_every_slot_and_always_more_than_to_others(subject, measure):
    """In the mean the weight on BOS falls at each step, and stays several times that of a key among equals."""
    weight = subject.run(mean_pattern, layer=0)[:, 0]
    largest_step = (weight[1:] - weight[:-1]).max().item()
    assert measure("largest change of the weight on BOS from a slot to the next", largest_step) < 0.0
    assert measure("weight on BOS at the last slot, over a uniform one", weight[-1].item() * len(weight)) > 3.0


@claim(
    rung="correlational",
    source="notebook, step 6, QK circuit of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_layer_0_QK_circuit_tells_BOS_from_tokens_and_hardly_tokens_from_each_other(subject, measure):
    """For every query token the score of BOS lies above all others, by many times what these differ by."""
    scores = qk_circuit(subject.folded, layer=0)[0, 1:]  # [query_token key_token]
    lead = (scores[:, 0] - scores[:, 1:].amax(dim=1)).min().item()
    spread = scores[:, 1:].std(dim=1).mean().item()
    assert measure("least lead of BOS over the next key, over all query tokens", lead) > 0.5
    assert measure("standard deviation among the other keys' scores", spread) < 0.2


@claim(rung="causal", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, TWO_BACK])
def test_the_count_comes_from_the_key_of_BOS(subject, measure):
    """When layer 0's key of BOS is the mean of the others', the prediction is destroyed."""
    effect = subject.run(effect_of_erasing_bos_key, layer=0)
    assert measure("nats added by erasing the key of BOS", effect.nats_added, "nats") > 4.0
