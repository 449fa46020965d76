"""All that `nopos bench` measures: the engines side by side, `sprint` from fresh seeds, and how a step grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from nopos.bench.growth import growth
from nopos.bench.machine import facts
from nopos.bench.side_by_side import compared
from nopos.model.recipes import NOTEBOOK, SPRINT
from nopos.training import trainer

TARGET = 0.006
"""Held-out loss in nats at which the notebook's loop ends."""
FRESH_SEEDS = range(10)
"""Seeds that judge `sprint`; its settings were chosen on others."""


def measure(device: torch.device) -> dict[str, Any]:
    """Everything, as one object for JSON."""
    result = compared(device)
    runs = sprints(device)
    notebook_seconds = NOTEBOOK.train.steps * result["engines"][0]["step_ms"] / 1e3
    median = statistics.median(run["seconds"] for run in runs)
    return {
        "schema": 2,
        "command": "bench",
        "environment": facts(device),
        **result,
        "sprint": {
            "target": TARGET,
            "runs": runs,
            "median_seconds": median,
            "worst_held_out_loss": max(run["held_out_loss"] for run in runs),
            "times_the_notebook": notebook_seconds / median,
        },
        "growth": growth(device),
    }


def sprints(device: torch.device, seeds: Sequence[int] = FRESH_SEEDS) -> list[dict[str, float]]:
    """Train `sprint` from each seed alone: seconds of training, and held-out loss in nats."""
    results = []
    for seed in tqdm(seeds, desc="sprint", unit="model", disable=None, leave=False):
        start = time.perf_counter()
        (member,) = trainer.train(SPRINT.model, SPRINT.train, [seed], device, label=f"sprint, seed {seed}")
        seconds = time.perf_counter() - start
        loss = trainer.held_out_loss(SPRINT.model, member.parameters)
        results.append({"seed": seed, "seconds": seconds, "held_out_loss": loss})
    return results
