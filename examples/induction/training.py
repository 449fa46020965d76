"""How a model learns: the answers of the second copy, on new sequences at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from model import AttentionOnly, Sizes
from sequences import PERIODS, has_answer, repeats


@dataclass(frozen=True)
class Recipe:
    """What a model is trained on, and for how long."""

    seed: int
    periods: range = PERIODS
    n_layers: int = 2
    steps: int = 1500
    batch: int = 64
    """Sequences in a step."""
    learning_rate: float = 3e-3
    with_silent_last_layer: bool = False
    """Whether the last layer writes nothing, so that the layers before it must do all."""


def train(recipe: Recipe, report: Callable[[str], object]) -> AttentionOnly:
    """Train a model, and report on it every 250 steps."""
    model = AttentionOnly(Sizes(n_layers=recipe.n_layers), recipe.seed)
    if recipe.with_silent_last_layer:
        model.layer(-1).W_O.requires_grad_(False).zero_()
    generator = torch.Generator().manual_seed(1_000 + recipe.seed)  # not the one that drew the weights
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, recipe.steps))
    for step in range(1, recipe.steps + 1):
        tokens, periods = repeats(recipe.batch, recipe.periods, generator)
        answered = has_answer(tokens, periods)
        logits, answers = model(tokens)[answered], tokens.roll(-1, dims=1)[answered]
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            right = (logits.argmax(dim=-1) == answers).float().mean()
            report(f"step {step:5d}  loss {loss:.4f} nats  answers right {right:.3f}")
    return model


def _share_of_rate(step: int, steps: int) -> float:
    """Of the learning rate: rising for 100 steps, falling to nothing over the last third."""
    return min(1.0, (step + 1) / 100, 3 * (steps - step) / steps)
