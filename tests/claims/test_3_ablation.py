"""Which activations matter, by replacing them in the four ways that are in use.

A result of one ablation can be an artefact of it. A claim here agrees across all four where they are defined, or says
which it is about: `per_position_mean` and `resample` take content away, `global_mean` and `zero` position too. The
sets were chosen on ten models of `sprint` and two of `notebook`, and measured on the reference model after that. Of
hook points that linear maps make equal one is listed.
"""

from __future__ import annotations

import torch

from nopos import claim
from nopos.methods.ablation import KINDS, Kind, ablated
from nopos.methods.statistics import kendall_tau
from nopos.model.hook_points import EMBED, FINAL_SCALE, hook_point
from nopos.subjects import notebook
from nopos.subjects.controls import (
    CONTENT_ALONE,
    HALF_TRAINED,
    LEARNED_POSITIONS,
    PERMUTED_WEIGHTS,
    RELAY,
    TWO_BACK,
    UNTRAINED,
)
from nopos.subjects.scopes import TWO_LAYERS, TWO_OR_MORE_LAYERS

CRITICAL = (
    EMBED,
    hook_point(0, "mlp_out"),
    hook_point(0, "resid_mid"),
    hook_point(0, "resid_post"),
    hook_point(1, "attn.v"),
    hook_point(1, "resid_mid"),
)
HARMLESS = (
    hook_point(0, "ln2.scale"),
    hook_point(0, "attn.k"),
    hook_point(1, "ln1.scale"),
    hook_point(1, "ln2.scale"),
    FINAL_SCALE,
)
POSITIONAL = (hook_point(0, "attn.k"), hook_point(0, "attn.v"), hook_point(1, "attn.k"))
LAYER_1_PATTERN = hook_point(1, "attn.pattern")
PRINTED = notebook.ablation_losses()
WITHOUT_CONTENT: tuple[Kind, ...] = ("per_position_mean", "resample")
WITHOUT_POSITION: tuple[Kind, ...] = ("global_mean", "zero")


def effects(subject, kind, hook_points):
    return subject.run(ablated, kind=kind, hook_points=hook_points)


def nats_added(subject, kinds, hook_points):
    return [effect.nats_added for kind in kinds for effect in effects(subject, kind, hook_points).values()]


@claim(
    evidence="causal",
    source="notebook, step 7",
    requested="ablation ranks the critical hook points",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED, PERMUTED_WEIGHTS],
    scope=TWO_LAYERS,
)
def test_ablation_ranks_hook_points_as_the_notebook_does(subject, measure):
    """Replacing each of the 23 hook points by its mean over the batch hurts in about the order that was printed."""
    ours = {name: effect.loss for name, effect in effects(subject, "per_position_mean", tuple(PRINTED)).items()}
    assert measure("Kendall's tau with the printed losses", kendall_tau(ours, PRINTED)) > 0.65


@claim(
    evidence="causal",
    source="notebook, step 7, by all four ablations",
    refuted_by=[LEARNED_POSITIONS, TWO_BACK],
    scope=TWO_LAYERS,
)
def test_what_carries_tokens_and_codes_is_critical_and_content_in_later_scales_is_not(subject, measure):
    """Embedding, MLP 0 and layer 1's values are missed however they are ablated; all scales but the first may forget
    which sequence they are of, and layer 0's keys too.
    """
    for kind in KINDS:
        critical = effects(subject, kind, CRITICAL).values()
        lost = min(effect.logit_difference_lost for effect in critical)
        assert measure(f"fewest nats added, {kind}", min(effect.nats_added for effect in critical), "nats") > 4.0
        assert measure(f"least share of the logit difference lost, {kind}", lost) > 0.1
    for kind in WITHOUT_CONTENT:
        harmless = effects(subject, kind, HARMLESS).values()
        assert measure(f"largest KL where harmless, {kind}", max(effect.kl for effect in harmless), "nats") < 0.3


@claim(
    evidence="causal",
    source="notebook, step 7, with the two means kept apart",
    refuted_by=[LEARNED_POSITIONS, RELAY],
    scope=TWO_LAYERS,
)
def test_keys_and_layer_0_values_carry_position_more_than_content(subject, measure):
    """In both layers' keys and layer 0's values content is worth less than half of what position is worth."""
    without_content = max(nats_added(subject, WITHOUT_CONTENT, POSITIONAL))
    without_position = min(nats_added(subject, WITHOUT_POSITION, POSITIONAL))
    over_position = without_content / max(without_position, torch.finfo(torch.float32).eps)
    assert measure("fewest nats added without position", without_position, "nats") > 4.0
    assert measure("most nats added without content, over that", over_position) < 0.5


@claim(
    evidence="causal",
    source="notebook, step 7, whose row is not whole",
    refuted_by=[LEARNED_POSITIONS, RELAY, CONTENT_ALONE, HALF_TRAINED],
    scope=TWO_OR_MORE_LAYERS,
)
def test_layer_1_does_better_with_its_mean_pattern_than_with_its_own(subject, measure):
    """The mean of layer 1's pattern over the batch lowers the loss, and with any that knows no token answers stay."""
    mean = effects(subject, "per_position_mean", (LAYER_1_PATTERN,))[LAYER_1_PATTERN]
    left = mean.loss / (mean.loss - mean.nats_added)
    assert measure("share of the loss that is left, per_position_mean", left) < 0.9
    for kind in ("per_position_mean", "global_mean", "resample"):
        effect = effects(subject, kind, (LAYER_1_PATTERN,))[LAYER_1_PATTERN]
        assert measure(f"KL, {kind}", effect.kl, "nats") < 0.05
        assert measure(f"share of answers changed, {kind}", effect.answers_changed) < 0.005
