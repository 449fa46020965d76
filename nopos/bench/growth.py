"""How a step of the fast trainer grows with batch, context, width and members."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from nopos.bench.engines import Engine, seconds_for
from nopos.bench.side_by_side import rates
from nopos.model.recipes import SPRINT


def growing() -> list[tuple[str, int, Engine]]:
    """What grows, its size, and the engine of that size: `sprint` at batch 64 with one thing changed."""

    def engine(members: int = 1, batch: int = 64, **sizes: Any) -> Engine:
        model, train = replace(SPRINT.model, **sizes), replace(SPRINT.train, batch_size=batch)
        return Engine("growing", replace(SPRINT, model=model, train=train), "fast", members)

    return [
        *(("batch", size, engine(batch=size)) for size in (16, 32, 64, 128, 256)),
        *(("context", size, engine(n_ctx=size)) for size in (25, 50, 100, 200)),
        *(("width", size, engine(d_model=size, d_head=size, d_mlp=4 * size)) for size in (32, 64, 128, 256)),
        *(("members", size, engine(size)) for size in (1, 2, 4, 8)),
    ]


def growth(device: torch.device) -> list[dict[str, float | str]]:
    """How a step of the fast trainer grows with batch, context, width and members."""
    steps = 20
    rows: list[dict[str, float | str]] = []
    for axis, size, engine in tqdm(growing(), desc="growth", unit="point", disable=None, leave=False):
        turns = [seconds_for(engine, steps, device.type) for _ in range(4)]
        rows.append({"axis": axis, "size": size, **rates(engine, statistics.median(turns[1:]) / steps)})
    return rows
