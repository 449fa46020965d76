from __future__ import annotations

import json
from pathlib import Path

import pytest

from nopos.bench import timed_steps
from nopos.model.recipes import NOTEBOOK, SPRINT

ROOT = Path(__file__).parents[3]


def answer(folder, **steps):
    return timed_steps.main(json.dumps({"folder": str(folder), "device": "cpu", "steps": steps}))


@pytest.mark.slow
def test_steps_of_the_recipe_are_timed():
    taken = answer(ROOT, sprint=2)["seconds"]
    assert taken.keys() == {"sprint"}
    assert 0 < taken["sprint"] < 60


def test_only_the_steps_after_the_warm_up_count(monkeypatch):
    import nopos.training.trainer as trainer

    clock, trained = [0.0], []

    def train(model, settings, seeds, device, *, label):
        trained.append((settings.steps, settings.schedule, label))
        clock[0] += settings.steps

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(timed_steps.time, "perf_counter", lambda: clock[0])
    assert answer(ROOT, sprint=9) == {"seconds": {"sprint": 9.0}}
    assert trained == [(4, "constant", "sprint"), (9, "constant", "sprint")]


def test_a_recipe_is_found_where_any_version_keeps_it():
    assert timed_steps.recipe_named("sprint") is SPRINT
    assert timed_steps.recipe_named("notebook") is NOTEBOOK
    with pytest.raises(ImportError, match=r"none of nopos.model.recipes, nopos.config has a recipe MARATHON"):
        timed_steps.recipe_named("marathon")


def test_a_folder_without_the_package_is_an_error_and_not_timed_by_the_installed_one(tmp_path):
    assert answer(tmp_path, sprint=1) == {"error": "ImportError: there is no package nopos in it"}
