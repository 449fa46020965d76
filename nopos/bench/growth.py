"""How a step of the fast trainer grows with batch, context, width, vocabulary and members, by each of its kernels."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from nopos.bench.engines import Engine, seconds_for
from nopos.bench.side_by_side import rates
from nopos.model.recipes import SPRINT
from nopos.training import fused

TURNS = 3
SECONDS_A_TURN = 0.4


def growing() -> list[tuple[str, int, Engine]]:
    """What grows, its size, and the engine of that size: `sprint` at batch 64 with one thing changed."""

    def engine(members: int = 1, batch: int = 64, **sizes: Any) -> Engine:
        model, train = replace(SPRINT.model, **sizes), replace(SPRINT.train, batch_size=batch)
        return Engine("growing", replace(SPRINT, model=model, train=train), "fast", members)

    return [
        *(("batch", size, engine(batch=size)) for size in (4, 16, 32, 64, 128, 256)),
        *(("context", size, engine(n_ctx=size)) for size in (10, 25, 50, 100, 200)),
        *(("width", size, engine(d_model=size, d_head=size, d_mlp=4 * size)) for size in (32, 64, 128, 256)),
        *(("heads", size, engine(n_heads=size, d_head=64 // size)) for size in (1, 2, 4)),
        *(("vocabulary", size, engine(d_vocab=size)) for size in (100, 300, 1000)),
        *(("members", size, engine(size)) for size in (1, 2, 4, 8)),
    ]


def growth(device: torch.device) -> list[dict[str, float | str]]:
    """How a step grows. Where the fused kernel trains, each is timed in turns with one of the torch kernel."""
    kernel = fused.chosen(SPRINT.model, device, "full")
    rows: list[dict[str, float | str]] = []
    for axis, size, engine in tqdm(growing(), desc="growth", unit="point", disable=None, leave=False):
        seconds = step_seconds([replace(engine, kernel=each) for each in dict.fromkeys((kernel, "torch"))], device)
        row: dict[str, float | str] = {"axis": axis, "size": size, **rates(engine, seconds[kernel])}
        if kernel == "fused":
            row["times_torch_kernel"] = seconds["torch"] / seconds["fused"]
        rows.append(row)
    return rows


def step_seconds(engines: list[Engine], device: torch.device) -> dict[str | None, float]:
    """Of a step by each engine's kernel: the median over turns."""
    steps, times = {}, {engine.kernel: list[float]() for engine in engines}
    for engine in engines:
        warm = seconds_for(engine, 2, device.type) / 2
        steps[engine.kernel] = min(20, max(2, round(SECONDS_A_TURN / max(warm, 1e-3))))
    for _ in range(TURNS):
        for engine in engines:
            count = steps[engine.kernel]
            times[engine.kernel].append(seconds_for(engine, count, device.type) / count)
    return {kernel: statistics.median(values) for kernel, values in times.items()}
