"""What is read off the folded model is true of the model."""

from __future__ import annotations

import torch

from nopos import claim
from nopos.methods.folding import largest_log_prob_gap
from nopos.subjects.controls import FOLDED_WITHOUT_A_BIAS


@claim(
    evidence="behavioural",
    source="notebook, step 5, which never checks it",
    requested="the LayerNorm-folded model matches the original's outputs",
    refuted_by=[FOLDED_WITHOUT_A_BIAS],
)
def test_the_folded_model_gives_the_same_outputs(subject, measure):
    """With LayerNorm folded into the weights, log-probabilities agree to what float64 and float32 rounding allow."""
    own_gap = subject.run(largest_log_prob_gap, folded=subject.model, dtype=torch.float32)
    own_rounding = max(own_gap, torch.finfo(torch.float32).eps)
    in_float64 = subject.run(largest_log_prob_gap, dtype=torch.float64)
    in_float32 = subject.run(largest_log_prob_gap, dtype=torch.float32)
    assert measure("largest gap in float64", in_float64, "nats") < 1e-9
    assert measure("largest gap in float32, over the model's own rounding", in_float32 / own_rounding) < 4.0
