"""The numbers that the notebook prints whole, from `fixtures/notebook.json`."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from nopos.subjects.shipped import FIXTURES


@cache
def _printed() -> dict[str, Any]:
    printed: dict[str, Any] = json.loads((FIXTURES / "notebook.json").read_text())
    return printed


def first_batch() -> list[list[int]]:
    """The printed 2 x 50 batch (step 3)."""
    return list(_printed()["first_batch"])


def example_losses() -> tuple[list[float], float]:
    """The printed losses of the four random predictions, to four decimals, and their mean (step 3)."""
    example = _printed()["loss_example"]
    return list(example["per_token"]), float(example["mean"])


def training_losses() -> dict[int, float]:
    """Training loss in nats at each step that is printed whole (step 4)."""
    return {int(step): loss for step, loss in _printed()["training_losses"].items()}


def ablation_losses() -> dict[str, float]:
    """Loss in nats with each hook point's activation replaced by its per-position mean, the rows printed (step 7)."""
    return dict(_printed()["per_position_mean_ablation"])


def critical_and_harmless() -> tuple[list[str], list[str]]:
    """The hook points whose printed ablation costs over a nat, and those for which it costs under a tenth of one."""
    losses = ablation_losses()
    return [name for name, loss in losses.items() if loss > 1], [name for name, loss in losses.items() if loss < 0.1]
