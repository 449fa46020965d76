"""No verdict and no measurement depends on how a function is written in weights, nor on how sure the answers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fixtures.outcomes import outcomes
from fixtures.zoo.make import CORE, path_of
from fixtures.zoo.settings import zoo_settings
from nopos.claims.outcome import Outcome
from nopos.claims.scope import reasons_against
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from nopos.storage import checkpoints
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.shipped import shipped_claims
from nopos.subjects.subject import Subject
from tests.support.gauges import GAUGES, LOGIT_SCALE, Gauge, all_of_them

SETTINGS = {setting.name: setting for setting in zoo_settings() if setting.half == "fitting"}
TWO = ["notebook", "decay-0"]
SIX = ["sprint", "decay-1", "muon-steps-800", "smoothing-0.3", "d_model-128", "n_ctx-30"]
FLIPPED = 2.5 / 320
"""Of the answers in a tenth of the positions two may fall the other way by rounding."""
ABOUT_THE_LOSS = ("held-out loss", "loss, less", "the same, without a causal mask", "the same, of one causal layer")
ABOUT_ROUNDING = ("largest gap in",)


def core(setting: str) -> Checkpoint:
    return checkpoints.load(path_of(SETTINGS[setting], 0, CORE))


def written_otherwise(checkpoint: Checkpoint, gauge: Gauge) -> Checkpoint:
    rng = torch.Generator().manual_seed(0)
    return replace(checkpoint, parameters=gauge(checkpoint.parameters, checkpoint.config, rng))


def in_scope(subject: Subject) -> dict[str, Outcome]:
    """What comes out of the claims that are about a model."""
    about = {claim.name for claim in shipped_claims() if not reasons_against(claim.scope, subject)}
    return {name: outcome for name, outcome in outcomes(subject).items() if name in about}


def values(of_claims: dict[str, Outcome]) -> dict[tuple[str, str], float]:
    """Every measurement that no loss and no rounding is in."""
    return {
        (claim, one.name): one.value
        for claim, outcome in of_claims.items()
        for one in outcome.comparisons
        if not one.name.startswith((*ABOUT_THE_LOSS, *ABOUT_ROUNDING))
    }


def assert_alike_when_written_otherwise(setting: str) -> None:
    checkpoint = core(setting)
    before = in_scope(Subject(setting, checkpoint))
    after = in_scope(Subject(setting, written_otherwise(checkpoint, all_of_them)))
    assert {claim: one.verdict for claim, one in after.items()} == {claim: one.verdict for claim, one in before.items()}
    expected, found = values(before), values(after)
    assert list(found) == list(expected)
    off = {
        name: (expected[name], value)
        for name, value in found.items()
        if value != pytest.approx(expected[name], rel=5e-3, abs=FLIPPED)
    }
    assert off == {}


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
def test_each_gauge_changes_weights_and_leaves_the_function(gauge):
    before, after = core("sprint"), written_otherwise(core("sprint"), gauge)
    changed = [name for name, value in after.parameters.items() if not torch.equal(value, before.parameters[name])]
    tokens = held_out_tokens(before.config, 8)
    logits, others = (NoPosTransformer(one.config, one.parameters).double()(tokens) for one in (before, after))
    scale = LOGIT_SCALE if gauge.__name__ == "logit_scale" else 1.0
    assert changed
    torch.testing.assert_close(others.log_softmax(-1), (scale * logits).log_softmax(-1), atol=1e-3, rtol=1e-4)


def test_measurements_without_a_loss_or_rounding_are_nearly_all():
    every = outcomes(Subject("notebook", core("notebook")))
    number = sum(len(outcome.comparisons) for outcome in every.values())
    assert number - len(values(every)) == 6
    assert number > 80


@pytest.mark.parametrize("setting", TWO)
def test_a_model_written_otherwise_gets_the_same_verdicts_and_measurements(setting):
    assert_alike_when_written_otherwise(setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SIX)
def test_so_do_models_of_other_kinds_and_sizes(setting):
    assert_alike_when_written_otherwise(setting)
