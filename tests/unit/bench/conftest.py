from __future__ import annotations

from dataclasses import replace

import pytest

from nopos.bench import engines, growth, run, side_by_side
from nopos.bench.engines import Engine


@pytest.fixture
def tiny_bench(monkeypatch, micro, tiny_recipe):
    """All that `nopos bench` does, with models that train in a blink."""
    tiny = Engine("tiny", tiny_recipe, "fast")
    rough = replace(tiny_recipe, train=replace(tiny_recipe.train, precision="bfloat16"))
    every = [tiny, replace(tiny, name="three", members=3), Engine("rough", rough, "fast")]
    monkeypatch.setattr(engines, "engines", lambda _: every)
    monkeypatch.setattr(side_by_side, "ROUNDS", 2)
    monkeypatch.setattr(side_by_side, "SECONDS_A_TURN", 0.02)
    monkeypatch.setattr(run, "SPRINT", tiny_recipe)
    monkeypatch.setattr(growth, "growing", lambda: [("batch", 2, tiny), ("width", 16, tiny)])
