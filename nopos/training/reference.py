"""The notebook's training loop (step 4), line for line, over any module: what correct training means."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from nopos.errors import TrainingError
from nopos.model.data import mean_loss
from nopos.model.recipes import TrainConfig


def train(
    model: nn.Module, config: TrainConfig, batches: Iterable[Int[Tensor, "batch pos"]], *, label: str
) -> list[float]:
    """Train the module in place, on the device that it is on.

    Args:
        model: tokens [batch pos] to logits [batch pos d_vocab].
        config: optimiser, schedule, clipping and steps.
        batches: training tokens, at least `config.steps` of them.
        label: what the progress bar calls the run.

    Returns:
        The training loss in nats at each step, taken before the step's update.

    Raises:
        TrainingError: a loss is not finite, or the tokens ran out.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.peak_lr, betas=config.betas, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, config.learning_rate_factor)
    losses: list[float] = []
    with tqdm(total=config.steps, desc=label, unit="step", disable=None, leave=False) as progress:
        for step, batch in zip(range(config.steps), batches, strict=False):
            tokens = batch.to(device)
            loss = mean_loss(
                model(tokens), tokens, target_offset=config.target_offset, shuffled=config.shuffled_targets
            )
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"{label}: the loss is {losses[-1]} at step {step}; nothing was saved")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            progress.update()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    if len(losses) < config.steps:
        raise TrainingError(f"{label}: the tokens ran out after {len(losses)} of {config.steps} steps")
    return losses
