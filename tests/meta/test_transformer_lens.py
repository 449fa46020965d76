"""What TransformerLens itself computes on the same weights, beside what we compute."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.weight_processing import ProcessWeights

from nopos.analysis.folding import folded_config, largest_log_prob_gap
from nopos.controls import reference
from nopos.model import NoPosTransformer
from nopos.parameters import parameter_shapes


def folded_by_transformer_lens(subject, dtype):
    config = subject.config
    theirs = TransformerBridgeConfig(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        d_mlp=config.d_mlp,
        d_vocab=config.d_vocab,
        n_ctx=config.n_ctx,
        act_fn="relu",
        normalization_type="LN",
    )
    state = {name: value.to(dtype) for name, value in subject.checkpoint.parameters.items()}
    processed = ProcessWeights.process_weights(state, theirs)
    config = folded_config(config)
    return NoPosTransformer(config, {name: processed[name].to(dtype) for name in parameter_shapes(config)})


def test_folding_by_transformer_lens_is_rounded_to_float32_whatever_the_dtype_and_ours_is_not(record_property):
    """If an upgrade mends theirs, the first assertion fails and ours may go."""
    subject = reference()
    gaps = {
        name: largest_log_prob_gap(subject.model, subject.tokens, twin=twin, dtype=torch.float64)
        for name, twin in (("theirs", folded_by_transformer_lens(subject, torch.float64)), ("ours", subject.folded))
    }
    for name, gap in gaps.items():
        record_property(f"largest log-probability gap in nats, folded in float64 by {name}", gap)
    assert 1e-6 < gaps["theirs"] < 1e-2
    assert gaps["ours"] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_fold_to_the_same_function(dtype):
    subject = reference()
    theirs = folded_by_transformer_lens(subject, dtype)
    assert largest_log_prob_gap(subject.folded, subject.tokens, twin=theirs, dtype=torch.float64) < 1e-2
