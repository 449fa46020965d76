from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.claims.scope import reasons_against
from nopos.methods.attention import LATE
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.scopes import POSITIONS, TWO_LAYERS, TWO_OR_MORE_LAYERS
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
        ({"n_layers": 1}, 5),
        ({"n_layers": 3}, 37),
        ({"n_layers": 2, "n_heads": 2, "d_model": 12, "d_mlp": 5, "d_vocab": 40, "n_ctx": 100}, 44),
    ],
)
def test_so_many_claims_are_about_models_of_a_size(sizes, in_scope):
    """At every size with two layers or more at least 35, whatever the heads, widths, tokens and positions."""
    subject = of_size(**sizes)
    assert sum(not reasons_against(claim.scope, subject) for claim in shipped_claims()) == in_scope
