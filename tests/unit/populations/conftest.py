from __future__ import annotations

import pytest

from nopos.model import recipes
from nopos.populations import local, work
from tests.support.engine import InProcess
from tests.support.quick_sweep import quick_calibrate, quick_check, quick_evaluate


@pytest.fixture
def real_work(monkeypatch, tiny_recipe, one_claim):
    """`nopos sweep` with a recipe called `tiny`, one claim and no other process."""
    monkeypatch.setattr(InProcess, "done", 0)
    monkeypatch.setattr(InProcess, "most", 10**9)
    monkeypatch.setattr(local, "Local", InProcess)
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    return InProcess


@pytest.fixture
def in_process(real_work, monkeypatch):
    """The same with work that takes no time, but for training."""
    monkeypatch.setattr(work, "evaluate_controls", quick_evaluate)
    monkeypatch.setattr(work, "calibrate", quick_calibrate)
    monkeypatch.setattr(work, "check_claims", quick_check)
    return real_work
