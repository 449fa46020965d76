from __future__ import annotations

import pytest
import torch

from nopos.mechanism.count import PATTERN, dilution_of_queries, pattern_of_counts, true_counts
from nopos.mechanism.kernel import scores_from_weights
from nopos.mechanism.program import SCORES, affine_map_of_mlp, effect_of_the_program
from nopos.methods.metrics import logits_changed, readout
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from nopos.subjects.controls import reference
from tests.support.micro import folded_of


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 40)


@pytest.fixture
def other_tokens(law_model):
    return held_out_tokens(law_model.config, 40, stream=1)


@pytest.fixture
def all_active(law_model):
    """All neurons of MLP 1 are always active, so that it is an affine map."""
    parameters = law_model.parameter_tensors()
    parameters["blocks.1.mlp.b_in"] = parameters["blocks.1.mlp.b_in"] + 20
    return NoPosTransformer(law_model.config, parameters)


def test_an_MLP_whose_neurons_are_all_active_is_its_affine_map(all_active, tokens, other_tokens):
    fitted, mlp = affine_map_of_mlp(all_active, other_tokens), all_active.block(1).mlp
    read = all_active.run_with_cache(tokens)[1]["blocks.1.ln2.hook_normalized"]
    torch.testing.assert_close(fitted(read), mlp(read), atol=1e-4, rtol=1e-4)
    # what it reads sums to zero after LayerNorm's weight is undone, so one direction of the matrix is free
    effect = effect_of_the_program(
        all_active, tokens, other_tokens=other_tokens, folded=folded_of(all_active), patterns=False
    )
    assert effect.logits_changed < 1e-4


def test_an_MLP_that_is_none_is_missed_by_its_affine_map(law_model, tokens, other_tokens):
    effect = effect_of_the_program(
        law_model, tokens, other_tokens=other_tokens, folded=folded_of(law_model), patterns=False
    )
    assert effect.logits_changed > 5e-4


def test_law_and_kernel_are_put_in_together(law_model, tokens, other_tokens):
    folded = folded_of(law_model)
    by_law = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
    scores = scores_from_weights(folded, pos=26).float()
    hooks = [(PATTERN, lambda value, hook: by_law), (SCORES, lambda value, hook: scores.expand_as(value))]
    edited = law_model.run_with_hooks(tokens, fwd_hooks=hooks)
    expected = logits_changed(readout(law_model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_the_program(law_model, tokens, other_tokens=other_tokens, folded=folded, decoding=False)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-5


def test_nothing_put_in_changes_nothing(law_model, tokens, other_tokens):
    options = {"other_tokens": other_tokens, "folded": folded_of(law_model)}
    effect = effect_of_the_program(law_model, tokens, **options, patterns=False, decoding=False)
    assert (effect.answers_changed, effect.logits_changed) == (0, 0)


def test_the_affine_map_reads_what_the_patterns_leave(law_model, tokens, other_tokens):
    """All three at once are not the sum of each alone: MLP 1 is asked about what it reads then."""
    folded = folded_of(law_model)
    fitted = affine_map_of_mlp(law_model, other_tokens)
    by_law = pattern_of_counts(dilution_of_queries(folded, tokens), true_counts(tokens))
    scores = scores_from_weights(folded, pos=26).float()
    read = {}

    def keep(value, hook):
        read["normalized"] = value

    hooks = [
        (PATTERN, lambda value, hook: by_law),
        (SCORES, lambda value, hook: scores.expand_as(value)),
        ("blocks.1.ln2.hook_normalized", keep),
        ("blocks.1.hook_mlp_out", lambda value, hook: fitted(read["normalized"])),
    ]
    edited = law_model.run_with_hooks(tokens, fwd_hooks=hooks)
    expected = logits_changed(readout(law_model(tokens), tokens), readout(edited, tokens))
    effect = effect_of_the_program(law_model, tokens, other_tokens=other_tokens, folded=folded)
    assert effect.logits_changed == pytest.approx(expected, rel=1e-3)


def test_of_the_reference_model_nearly_every_answer_stays():
    good = reference()
    effect = good.run(effect_of_the_program)
    assert effect.answers_changed < 0.02
