from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.bench import engines
from nopos.model.config import ModelConfig
from nopos.model.recipes import NOTEBOOK
from nopos.training import fused

CPU = torch.device("cpu")


def test_the_notebooks_loop_comes_first_and_every_loop_is_there():
    every = engines.engines(CPU)
    assert (every[0].loop, every[0].recipe) == ("bridge", NOTEBOOK)
    assert {engine.loop for engine in every} == {"bridge", "reference", "fast"}
    of_sprint = [engine for engine in every if engine.recipe.name == "sprint"]
    assert [engine.members for engine in of_sprint if engine.kernel is None] == [1, 4, 16]
    by_torch = [engine.members for engine in of_sprint if engine.kernel == "torch"]
    assert by_torch == ([1, 16] if fused.chosen(ModelConfig(), CPU, "full") == "fused" else [])
    on_cuda = engines.engines(torch.device("cuda"))
    assert [engine.members for engine in on_cuda if engine.recipe.name == "sprint"] == [1, 4, 16, 64, 256]


@pytest.mark.parametrize("loop", ["bridge", "reference", "fast"])
def test_every_loop_runs(loop):
    engine = next(engine for engine in engines.engines(CPU) if engine.loop == loop)
    assert engines.seconds_for(replace(engine, recipe=small_batch(engine.recipe)), 2, "cpu") > 0


def small_batch(recipe):
    return replace(recipe, train=replace(recipe.train, batch_size=2))


def test_the_bridge_is_the_notebooks_model_but_for_the_bias_that_it_lacks():
    parameters = dict(engines.bridge(ModelConfig(), CPU).named_parameters())
    assert sum(value.numel() for value in parameters.values()) == 141_696  # ours has 141,996: a b_U of 300 more
    (W_pos,) = (value for name, value in parameters.items() if name.startswith("pos."))
    assert not W_pos.requires_grad
    assert (W_pos == 0).all()


def test_all_members_of_a_population_are_trained(monkeypatch, tiny_recipe):
    """Twice with one step, whose time is the set-up's, and then with one more than are timed."""
    trained = []
    monkeypatch.setattr(engines.trainer, "members_at_once", lambda *_: 2)
    monkeypatch.setattr(
        engines.trainer, "train", lambda model, train, seeds, *_, **__: trained.append((train.steps, list(seeds)))
    )
    engines.seconds_for(engines.Engine("five", tiny_recipe, "fast", 5), 3, "cpu")
    assert trained == [(steps, seeds) for steps in (1, 1, 4) for seeds in ([0, 1], [2, 3], [4])]
