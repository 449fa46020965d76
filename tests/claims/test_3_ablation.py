"""Which activations matter, by replacing them with means: of content alone, and of content and position.

The bounds are provisional: they leave room around sprint seeds 0 to 9 and three
models of the notebook recipe.
"""

from __future__ import annotations

from nopos import claim, notebook
from nopos.analysis.ablation import ablated_losses, kendall_tau
from nopos.controls import LEARNED_POSITIONS, RELAY, TWO_BACK, UNTRAINED

CRITICAL = (
    "hook_embed",
    "blocks.0.ln2.hook_normalized",
    "blocks.0.mlp.hook_pre",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_resid_mid",
    "blocks.0.hook_resid_post",
    "blocks.1.ln1.hook_normalized",
)
HARMLESS = (
    "blocks.0.ln2.hook_scale",
    "blocks.0.attn.hook_k",
    "blocks.1.ln1.hook_scale",
    "blocks.1.ln2.hook_scale",
    "blocks.1.attn.hook_k",
)
POSITIONAL = ("blocks.0.attn.hook_k", "blocks.0.attn.hook_v", "blocks.1.attn.hook_k")
LAYER_1_PATTERN = "blocks.1.attn.hook_pattern"
PRINTED = notebook.ablation_losses()


def losses(subject, kind):
    """Loss with each hook point at its mean: all that are printed, and the pattern whose row is cut off."""
    return subject.run(
        ablated_losses, mean_tokens=subject.mean_tokens, kind=kind, hook_points=(*PRINTED, LAYER_1_PATTERN)
    )


def nats_added(subject, kind, names):
    return [losses(subject, kind)[name] - subject.loss for name in names]


@claim(rung="causal", source="notebook, step 7", refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED])
def test_ablation_ranks_hook_points_as_the_notebook_does(subject, measure):
    """Replacing each of the 23 hook points by its mean over the batch hurts in about the order that was printed."""
    ours = losses(subject, "per_position_mean")
    agreement = kendall_tau({name: ours[name] for name in PRINTED}, PRINTED)
    assert measure("Kendall's tau with the printed losses", agreement) > 0.5


@claim(rung="causal", source="notebook, step 7", refuted_by=[LEARNED_POSITIONS, TWO_BACK])
def test_the_same_hook_points_are_critical_and_harmless_as_in_the_notebook(subject, measure):
    """The embedding, MLP 0 and what layer 1 reads are missed under either mean, scales and keys not under the first."""
    for kind in ("per_position_mean", "global_mean"):
        critical = min(nats_added(subject, kind, CRITICAL))
        assert measure(f"fewest nats added where it is critical, {kind}", critical, "nats") > 5.0
    harmless = max(abs(added) for added in nats_added(subject, "per_position_mean", HARMLESS))
    assert measure("largest change where it is harmless", harmless, "nats") < 0.5


@claim(rung="causal", source="notebook, step 7, with the two means told apart", refuted_by=[LEARNED_POSITIONS, RELAY])
def test_keys_and_layer_0_values_carry_position_rather_than_content(subject, measure):
    """Both layers' keys and layer 0's values may lose what tells sequences apart, but not what tells slots apart."""
    without_content = max(nats_added(subject, "per_position_mean", POSITIONAL))
    without_position = min(nats_added(subject, "global_mean", POSITIONAL))
    assert measure("most nats added by the mean over the batch", without_content, "nats") < 1.0
    assert measure("fewest nats added by the mean over batch and position", without_position, "nats") > 3.0


@claim(rung="causal", source="notebook, step 7, where the row is cut off", refuted_by=[LEARNED_POSITIONS, RELAY])
def test_layer_1_does_better_with_its_mean_pattern_than_with_its_own(subject, measure):
    """Replacing layer 1's pattern by its mean over the batch, which knows no token, lowers the loss."""
    ratio = losses(subject, "per_position_mean")[LAYER_1_PATTERN] / subject.loss
    assert measure("loss with the mean pattern, as a share of the loss", ratio) < 0.9
