"""The tests run with checked shapes, wherever they run: a wrong one fails where it is passed."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from jaxtyping import TypeCheckError

import nopos
from nopos.mechanism.kernel import near
from nopos.methods.attention import effect_of_knock_out, mean_weight_by_offset
from nopos.methods.probes import linear_r2
from nopos.model.data import held_out_tokens
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import MICRO

pytest.importorskip("beartype", reason="shapes are checked where the extra `test` has brought beartype")

MODULES = ["nopos", *(module.name for module in pkgutil.walk_packages(nopos.__path__, "nopos."))]


@pytest.fixture
def model():
    return NoPosTransformer.initialised(MICRO, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda model: near(torch.zeros(1, 14, 14)), id="scores without heads"),
        pytest.param(lambda model: near(torch.zeros(1, 1, 14, 14, dtype=torch.long)), id="scores that are integers"),
        pytest.param(
            lambda model: effect_of_knock_out(model, torch.zeros(4, 6), layer=1, offset=1), id="tokens that are floats"
        ),
        pytest.param(
            lambda model: mean_weight_by_offset(model, held_out_tokens(MICRO, 4)[0], layer=1), id="tokens of one axis"
        ),
        pytest.param(
            lambda model: linear_r2(torch.zeros(5, 2), torch.zeros(4), torch.zeros(5, 2), torch.zeros(5)),
            id="fewer labels than samples",
        ),
        pytest.param(lambda model: model.logits(torch.zeros(4, 6)), id="a method's tokens"),
    ],
)
def test_a_wrong_shape_is_an_error_where_it_is_passed(model, wrong):
    with pytest.raises(TypeCheckError):
        wrong(model)


@pytest.mark.usefixtures("unchecked")
def test_users_calls_are_not_checked(model):
    with pytest.raises(IndexError):
        mean_weight_by_offset(model, held_out_tokens(MICRO, 4)[0], layer=1)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_checked(name):
    """By the loader that the import hook gives a module; it wraps all functions and dataclasses."""
    loader = type(importlib.import_module(name).__spec__.loader)
    assert loader.__module__.startswith("jaxtyping"), f"{name} was imported before the hook was installed"


def test_sessions_that_pytester_runs_in_this_process_are_checked_too(pytester):
    pytester.makepyfile(
        """
        import pytest
        import torch
        from jaxtyping import TypeCheckError
        from nopos.mechanism.kernel import near

        def test_a_wrong_shape():
            with pytest.raises(TypeCheckError):
                near(torch.zeros(1, 14, 14))
        """
    )
    pytester.runpytest_inprocess("-pno:cacheprovider").assert_outcomes(passed=1)
