"""Time of some steps of each engine that `nopos bench` compares, by pytest-benchmark's own clock and table.

Ratios within a run can be compared; whether training became slower is for `nopos bench --against COMMIT` to say.
"""

from __future__ import annotations

import pytest
import torch

from nopos.bench import engines, run

CPU = torch.device("cpu")
STEPS = {32: 20, 256: 4}


@pytest.mark.parametrize("engine", engines.engines(CPU), ids=lambda engine: engine.name)
def test_steps(benchmark, engine):
    settings, steps = engine.recipe.train, STEPS[engine.recipe.train.batch_size]
    benchmark.pedantic(engines.seconds_for, args=(engine, steps, "cpu"), rounds=5, warmup_rounds=1)
    step = benchmark.stats.stats.median / steps
    benchmark.extra_info["step_ms"] = 1e3 * step
    benchmark.extra_info["tokens_per_second"] = engine.members * settings.batch_size * engine.recipe.model.n_ctx / step


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("engine", engines.engines(torch.device("cuda")), ids=lambda engine: engine.name)
def test_steps_on_cuda(benchmark, engine):
    benchmark.pedantic(engines.seconds_for, args=(engine, 100, "cuda"), rounds=5, warmup_rounds=1)


def test_a_sprint_from_start_to_end(benchmark):
    result = benchmark.pedantic(run.sprints, args=(CPU, [0]), rounds=3)
    benchmark.extra_info["held_out_loss"] = result[0]["held_out_loss"]
    assert result[0]["held_out_loss"] < run.TARGET
