"""Layer 0 counts: its attention to BOS is diluted by every token that follows."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.analysis.attention import effect_of_erasing_bos_key, mean_pattern
from nopos.analysis.circuits import qk_circuit
from nopos.controls import LEARNED_POSITIONS, NO_BOS, RELAY, TWO_BACK, UNTRAINED, WITHOUT_BOS_KEY


@claim(
    rung="correlational",
    source="notebook, step 5, mean pattern of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, UNTRAINED],
)
def test_layer_0_attends_to_BOS_several_times_as_much_as_to_others_and_less_with_every_slot(subject, measure):
    """In the mean BOS gets, at every slot, several times what another key gets, and less at each slot than before."""
    pattern = subject.run(mean_pattern, layer=0)[1:]  # from slot 1 on, where there is another key
    on_bos = pattern[:, 0]
    per_other_key = pattern[:, 1:].sum(dim=1) / torch.arange(1, len(pattern) + 1)
    assert measure("least weight on BOS, over that on another key", (on_bos / per_other_key).min().item()) > 2.0
    assert measure("largest change of it from a slot to the next", on_bos.diff().max().item()) < 0.0


@claim(
    rung="correlational",
    source="notebook, step 6, QK circuit of layer 0",
    refuted_by=[LEARNED_POSITIONS, RELAY, NO_BOS, UNTRAINED],
)
def test_layer_0_QK_circuit_tells_BOS_from_tokens_and_hardly_tokens_from_each_other(subject, measure):
    """For every query token the score of BOS lies above all others, by several times what these differ by."""
    scores = qk_circuit(subject.folded, layer=0)[0, 1:]  # [query_token key_token]
    lead = (scores[:, 0] - scores[:, 1:].amax(dim=1)).min().item()
    spread = max(scores[:, 1:].std(dim=1).mean().item(), torch.finfo(scores.dtype).eps)
    assert measure("least lead of BOS over the next key, over all query tokens", lead) > 0.5
    assert measure("this lead, over the standard deviation among the others", lead / spread) > 4.0


@claim(rung="causal", source="notebook, step 6", refuted_by=[LEARNED_POSITIONS, RELAY, WITHOUT_BOS_KEY, TWO_BACK])
def test_the_count_comes_from_the_key_of_BOS(subject, measure):
    """When layer 0's key of BOS is the mean of the others', the prediction is destroyed."""
    effect = subject.run(effect_of_erasing_bos_key, layer=0)
    assert measure("nats added by erasing the key of BOS", effect.nats_added, "nats") > 4.0
