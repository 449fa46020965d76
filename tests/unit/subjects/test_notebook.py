from __future__ import annotations

from nopos.model.config import ModelConfig
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.notebook import ablation_losses, critical_and_harmless


def test_the_printed_rows_are_of_hook_points_of_the_notebooks_model():
    names = set(NoPosTransformer.initialised(ModelConfig(), 0).hook_dict)
    assert set(ablation_losses()) <= names
    assert len(ablation_losses()) == 23


def test_critical_and_harmless_hook_points_by_hand():
    """Some that the notebook prints at 11.69, 1.72 and 0.003 nats; at 0.69 and 0.30 they are neither."""
    critical, harmless = critical_and_harmless()
    assert {"hook_embed", "blocks.0.attn.hook_attn_scores", "blocks.1.ln2.hook_normalized"} < set(critical)
    assert {"blocks.1.attn.hook_k", "blocks.0.attn.hook_k", "blocks.1.ln2.hook_scale"} < set(harmless)
    neither = set(ablation_losses()) - set(critical) - set(harmless)
    assert neither == {"blocks.0.ln1.hook_scale", "blocks.0.attn.hook_v"}
    assert (len(critical), len(harmless)) == (16, 5)


def test_what_is_printed_is_handed_out_anew_each_time():
    ablation_losses().clear()
    critical_and_harmless()[0].clear()
    assert len(ablation_losses()) == 23
    assert len(critical_and_harmless()[0]) == 16
