from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.claims.scope import reasons_against
from nopos.mechanism.reading import effect_without_position_of
from nopos.methods.attention import LATE
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects import scopes
from nopos.subjects.controls import LEARNED_POSITIONS, reference
from nopos.subjects.scopes import (
    CERTAIN,
    FINDS_POSITIONS,
    IN_TWO_LAYERS,
    POSITIONS,
    READS_CODE,
    SURE_IN_TWO_LAYERS,
    TWO_LAYERS,
    TWO_OR_MORE_LAYERS,
    late_answers_without_position_of,
)
from nopos.subjects.shipped import shipped_claims
from nopos.subjects.subject import Subject

SMALL = ModelConfig(d_model=8, d_head=4, d_mlp=12, d_vocab=7, n_ctx=POSITIONS)


def of_size(**sizes):
    config = replace(SMALL, **sizes)
    return Subject("m", Checkpoint(config=config, parameters=initial_parameters(config, 0), sha256=""))


@pytest.mark.parametrize(
    ("sizes", "reasons"),
    [
        ({}, []),
        ({"n_layers": 1}, ["needs a second layer"]),
        ({"n_ctx": 2 * LATE}, ["needs 21 positions or more"]),
        ({"d_vocab": 2}, ["needs 3 tokens or more"]),
        ({"d_vocab": 3}, []),
        ({"d_model": 1}, ["needs d_model 2 or more"]),
        ({"n_layers": 3, "n_heads": 2}, []),
    ],
)
def test_a_claim_on_the_mechanism_needs_layers_positions_and_tokens(sizes, reasons):
    assert reasons_against(TWO_OR_MORE_LAYERS, of_size(**sizes)) == reasons


@pytest.mark.parametrize(("n_layers", "reasons"), [(2, []), (3, ["needs two layers, no more"])])
def test_a_claim_on_layer_1_as_the_last_needs_two_layers(n_layers, reasons):
    assert reasons_against(TWO_LAYERS, of_size(n_layers=n_layers)) == reasons


@pytest.mark.parametrize(
    ("sizes", "in_scope"),
    [
        ({"n_layers": 1}, 6),
        ({"n_layers": 3}, 38),
        ({"n_layers": 2, "n_heads": 2, "d_model": 12, "d_mlp": 5, "d_vocab": 40, "n_ctx": 100}, 45),
    ],
)
def test_so_many_claims_are_about_models_of_a_size(sizes, in_scope, monkeypatch):
    """At every size with two layers or more at least 35, whatever the heads, widths, tokens and positions: of models
    in which layer 1 finds positions by what layer 0 writes, and reads MLP 0's more.
    """
    monkeypatch.setattr(scopes, "late_answers_without_position_of", lambda _, *names: float(scopes.MLP_0 in names))
    subject = of_size(**sizes)
    about = [claim for claim in shipped_claims() if not reasons_against(claim.scope, subject)]
    assert len(about) == in_scope


def test_what_layer_1_reads_is_asked_of_a_model_that_has_it_alone():
    """One layer or too few positions are reason enough."""
    for sizes in ({"n_layers": 1}, {"n_ctx": 2 * LATE}):
        assert len(reasons_against(READS_CODE, of_size(**sizes))) == 1


FINDS = "needs layer 1 to find positions by what layer 0 writes of them"
READS = "needs layer 1 to read MLP 0's position more than attention 0's"


@pytest.mark.parametrize(
    ("both", "code", "count", "reasons"),
    [
        (0.51, 0.4, 0.3, []),
        (0.5, 0.4, 0.3, [FINDS]),
        (0.6, 0.3, 0.3, [READS]),
        (0.6, 0.3, 0.4, [READS]),
        (0.1, 0.0, 0.1, [FINDS, READS]),
    ],
)
def test_what_layer_1_reads_is_measured_in_answers(monkeypatch, both, code, count, reasons):
    """Half of them or more without what layer 0 writes of positions, and more by MLP 0's than by attention 0's."""
    lost = {(scopes.ATTENTION_0, scopes.MLP_0): both, (scopes.MLP_0,): code, (scopes.ATTENTION_0,): count}
    monkeypatch.setattr(scopes, "late_answers_without_position_of", lambda _, *names: lost[names])
    assert reasons_against(READS_CODE, of_size()) == reasons
    assert reasons_against(FINDS_POSITIONS, of_size()) == [reason for reason in reasons if reason == FINDS]


@pytest.mark.parametrize(("n_layers", "reasons"), [(2, []), (3, ["needs two layers, no more"])])
def test_a_claim_on_layer_1_as_the_last_that_finds_positions_needs_both(monkeypatch, n_layers, reasons):
    for lost, more in ((1.0, []), (0.0, [FINDS])):
        monkeypatch.setattr(scopes, "late_answers_without_position_of", lambda _, *names, lost=lost: lost)
        assert reasons_against(IN_TWO_LAYERS, of_size(n_layers=n_layers)) == more + reasons


@pytest.fixture(scope="module")
def good():
    return reference()


def test_late_answers_are_the_least_changed_tenth_of_the_second_half_on_the_other_tokens(good):
    names = (scopes.MLP_0,)
    effect = effect_without_position_of(good.model, good.other_tokens, other_tokens=good.tokens, components=names)
    tenths = effect.changed_by_tenth
    assert late_answers_without_position_of(good, *names) == min(tenths[5:].tolist())
    assert tenths[:5].min() < tenths[5:].min() < tenths[5:].max()


def test_the_reference_model_finds_positions_by_what_layer_0_writes_and_most_by_MLP_0s(good):
    assert reasons_against(READS_CODE, good) == []
    both, code, count = (
        late_answers_without_position_of(good, *names)
        for names in ((scopes.ATTENTION_0, scopes.MLP_0), (scopes.MLP_0,), (scopes.ATTENTION_0,))
    )
    assert both > 0.9
    assert 0.5 < code < both
    assert count < 0.1


def test_a_model_with_positions_of_its_own_does_not(good):
    assert reasons_against(FINDS_POSITIONS, LEARNED_POSITIONS.model_for(good)) == [FINDS]


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"target_noise": 0.1}])
def test_a_model_that_was_not_to_be_sure_is_not_asked_for_its_loss(good, change):
    assert reasons_against(CERTAIN, good) == reasons_against(SURE_IN_TWO_LAYERS, good) == []
    unsure = replace(good.checkpoint, train=replace(good.checkpoint.train, **change))
    for scope in (CERTAIN, SURE_IN_TWO_LAYERS):
        assert reasons_against(scope, Subject("unsure", unsure)) == ["needs one token to be all that was asked for"]
