"""What is read off the folded model is true of the model."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.analysis.folding import largest_log_prob_gap
from nopos.controls import FOLDED_WITHOUT_A_BIAS


@claim(rung="behavioural", source="notebook, step 5, which never checks it", refuted_by=[FOLDED_WITHOUT_A_BIAS])
def test_the_folded_model_gives_the_same_outputs(subject, measure):
    """With LayerNorm folded into the weights, log-probabilities agree to what float64 and float32 rounding allow."""

    def gap(twin, dtype):
        return subject.run(largest_log_prob_gap, twin=twin, dtype=dtype)

    own_rounding = max(gap(subject.model, torch.float32), torch.finfo(torch.float32).eps)
    assert measure("largest gap in float64", gap(subject.folded, torch.float64), "nats") < 1e-9
    relative = gap(subject.folded, torch.float32) / own_rounding
    assert measure("largest gap in float32, over the model's own rounding", relative) < 4.0
