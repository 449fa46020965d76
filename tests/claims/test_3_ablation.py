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
from nopos.methods.statistics import share_above
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
from nopos.subjects.scopes import FINDS_POSITIONS, IN_TWO_LAYERS

TOKENS = (
    EMBED,
    hook_point(0, "resid_mid"),
    hook_point(0, "resid_post"),
    hook_point(1, "attn.v"),
    hook_point(1, "resid_mid"),
)
"""Where what is to be predicted passes, whatever else does."""
HARMLESS = (hook_point(0, "attn.k"), hook_point(1, "ln1.scale"), hook_point(1, "ln2.scale"), FINAL_SCALE)
POSITIONAL = (hook_point(0, "attn.k"), hook_point(1, "attn.k"))
LAYER_1_PATTERN, LAYER_1_SCORES = hook_point(1, "attn.pattern"), hook_point(1, "attn.attn_scores")
PRINTED = tuple(notebook.ablation_losses())
PRINTED_CRITICAL, PRINTED_HARMLESS = notebook.critical_and_harmless()
WITHOUT_CONTENT: tuple[Kind, ...] = ("per_position_mean", "resample")
WITHOUT_POSITION: tuple[Kind, ...] = ("global_mean", "zero")


def effects(subject, kind, hook_points):
    return subject.run(ablated, kind=kind, hook_points=hook_points)


def most_changed(effect):
    return effect.changed_by_tenth[1:].max().item()


def changed(subject, kinds, hook_points):
    return [effect.answers_changed for kind in kinds for effect in effects(subject, kind, hook_points).values()]


@claim(
    evidence="causal",
    source="notebook, step 7",
    requested="ablation ranks the critical hook points",
    refuted_by=[LEARNED_POSITIONS, RELAY, UNTRAINED, PERMUTED_WEIGHTS],
    scope=IN_TWO_LAYERS,
)
def test_ablation_ranks_the_critical_hook_points_above_the_harmless_ones(subject, measure):
    """Of the 23 hook points that were printed, each that cost over a nat loses more answers than each that cost under
    a tenth, replaced by its mean over the batch.
    """
    lost = {name: effect.answers_lost for name, effect in effects(subject, "per_position_mean", PRINTED).items()}
    above = share_above([lost[name] for name in PRINTED_CRITICAL], [lost[name] for name in PRINTED_HARMLESS])
    mean_lost = sum(lost[name] for name in PRINTED_CRITICAL) / len(PRINTED_CRITICAL)
    assert measure("share of pairs in the printed order", above) > 0.87
    assert measure("share of answers lost, mean over those that cost over a nat", mean_lost) > 0.3


@claim(
    evidence="causal",
    source="notebook, step 7, by all four ablations",
    refuted_by=[LEARNED_POSITIONS, TWO_BACK],
    scope=IN_TWO_LAYERS,
)
def test_the_stream_and_layer_1_values_are_critical_and_content_in_later_scales_is_not(subject, measure):
    """Most answers are lost when the residual stream or layer 1's values are ablated, in whichever way; all scales but
    layer 0's may forget which sequence they are of, and layer 0's keys too.
    """
    for kind in KINDS:
        assert measure(f"least share of answers changed, {kind}", min(changed(subject, [kind], TOKENS))) > 0.85
    harmless = max(changed(subject, WITHOUT_CONTENT, HARMLESS))
    assert measure("largest share of answers changed without content where harmless", harmless) < 0.05


@claim(
    evidence="causal",
    source="notebook, step 7, with the two means kept apart",
    refuted_by=[LEARNED_POSITIONS, CONTENT_ALONE],
    scope=FINDS_POSITIONS,
)
def test_keys_carry_position_more_than_content(subject, measure):
    """In both layers' keys content decides fewer than half as many answers as position does."""
    without_content = max(changed(subject, WITHOUT_CONTENT, POSITIONAL))
    without_position = min(changed(subject, WITHOUT_POSITION, POSITIONAL))
    over_position = without_content / max(without_position, torch.finfo(torch.float32).eps)
    assert measure("least share of answers changed without position", without_position) > 0.4
    assert measure("largest without content, over that", over_position) < 0.5


@claim(
    evidence="causal",
    source="notebook, step 7, whose row is not whole",
    refuted_by=[LEARNED_POSITIONS, CONTENT_ALONE, HALF_TRAINED],
    scope=FINDS_POSITIONS,
)
def test_layer_1_needs_no_pattern_of_its_own_for_each_sequence(subject, measure):
    """With a pattern for layer 1 that knows no token, or another sequence's, answers stay from the second tenth on;
    with one that knows no position most change.
    """
    alike = effects(subject, "zero", (LAYER_1_SCORES,))[LAYER_1_SCORES]
    assert measure("share of answers changed, all scores alike", alike.answers_changed) > 0.7
    for kind in ("per_position_mean", "global_mean", "resample"):
        effect = effects(subject, kind, (LAYER_1_PATTERN,))[LAYER_1_PATTERN]
        assert measure(f"most answers changed in a tenth of the positions, {kind}", most_changed(effect)) < 0.05
