"""The fast loop: what the notebook's loop does, for many models at once.

What it takes from mathematics is in `ensemble`, what from the machine in `linear` and here. What was tried beside it
and did not help stands with its numbers in `docs/training.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from nopos.errors import ConfigError, TrainingError
from nopos.model.config import ModelConfig
from nopos.model.data import HELD_OUT_SEQUENCES, held_out_tokens, training_batches
from nopos.model.parameters import initial_parameters, parameter_shapes, trainable
from nopos.model.recipes import Recipe, TrainConfig
from nopos.training import ensemble, fused
from nopos.training.fused import Kernel
from nopos.training.member import Member
from nopos.training.optimizer import Optimizer

MOST_TOGETHER = 256
"""Models in one chunk at most: a chunk is saved when all of it is done."""
FUSED_ROWS = 12800
"""So many rows (eight times 32 sequences of 50 tokens) go together by the fused kernel."""
CHECK_EVERY = 20
"""Steps from one look at the losses to the next: on CUDA a look waits for the device."""


def train(
    model: ModelConfig,
    settings: TrainConfig,
    seeds: Sequence[int],
    device: torch.device,
    *,
    label: str,
    kernel: str | None = None,
) -> list[Member]:
    """Train a model of each seed together; on a CPU each ends as it would have ended alone, to the last bit.

    Args:
        model: of all of them.
        settings: likewise.
        seeds: one for each.
        device: where they are trained.
        label: what the progress bar says, beside the kernel.
        kernel: `fused` or `torch`; the fused one where it can if it is None.

    Raises:
        ConfigError: a seed is not one, the model is folded (`LNPre`) or too short for the offset, or the kernel cannot
            train there.
        TrainingError: the models need more memory than there is.
    """
    Recipe(name=label, model=model, train=settings)  # refuses an offset that leaves nothing to predict
    if model.normalization != "LN":
        raise ConfigError(f"normalization is {model.normalization}; training needs LN")
    if settings.why_by_the_loop is not None:
        raise ConfigError(f"{settings.why_by_the_loop}, which the fast trainer does not have; use the reference loop")
    if not seeds:
        return []
    require_memory(model, settings, device, members=len(seeds), label=label)
    _keep_freed_memory()
    chosen = fused.chosen(model, device, settings.precision, kernel)
    try:
        return _train(model, settings, seeds, device, label, chosen)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(f"{label}: ran out of memory; nothing unfinished was saved") from None
        raise


def _train(
    model: ModelConfig, settings: TrainConfig, seeds: Sequence[int], device: torch.device, label: str, kernel: Kernel
) -> list[Member]:
    start = ensemble.stack([initial_parameters(model, seed, scale=settings.initial_scale) for seed in seeds])
    on_device = {name: value.to(device) for name, value in start.items() if trainable(name, model)}
    optimizer = Optimizer(on_device, settings, kernel)
    streams = [training_batches(model, settings, seed) for seed in seeds]
    losses: list[Float[Tensor, " model"]] = []
    description = f"{label}, {_named(kernel, model, device, settings)}"
    with tqdm(total=settings.steps, desc=description, unit="step", disable=None, leave=False) as progress:
        for step in range(settings.steps):
            tokens = torch.stack([next(stream) for stream in streams]).to(device)
            step_losses, gradients = ensemble.gradients(
                model,
                optimizer.parameters,
                tokens,
                target_offset=settings.target_offset,
                shuffled=settings.shuffled_targets,
                precision=settings.precision,
                kernel=kernel,
            )
            losses.append(step_losses)
            optimizer.step(gradients, settings.learning_rate_factor(step))
            progress.update()
            if step % CHECK_EVERY == 0:
                if not step_losses.isfinite().any():
                    break
                progress.set_postfix(loss=f"{step_losses.mean().item():.4f}", refresh=False)
    by_member = torch.stack(losses).T.tolist()
    ended = {name: value.cpu() for name, value in optimizer.parameters.items()}
    return [
        Member(
            seed,
            {name: ended.get(name, start[name])[row].clone() for name in parameter_shapes(model)},
            tuple(by_member[row]),
        )
        for row, seed in enumerate(seeds)
    ]


def _named(kernel: Kernel, model: ModelConfig, device: torch.device, settings: TrainConfig) -> str:
    """Which kernel trains, and why it is not the fused one if it is not."""
    reason = fused.why_not(model, device, settings.precision) if kernel == "torch" else None
    return f"{kernel} kernel" + (f" ({reason})" if reason is not None else "")


def members_at_once(model: ModelConfig, settings: TrainConfig, device: torch.device, kernel: Kernel) -> int:
    """How many models to train together: on CUDA as many as fit its memory, on a CPU as was found fastest.

    That is as many as the cache takes by torch's kernel. The fused one keeps to the cache by itself: eight of `sprint`
    together take 5.0 ms a step each on two cores, where three take 5.5 and sixteen 6.0.
    """
    if device.type == "cpu":
        together = FUSED_ROWS if kernel == "fused" else ensemble.CACHED_ROWS
        return max(1, together // (settings.batch_size * model.n_ctx))
    fitting = int(0.8 * _memory(device) // bytes_needed(model, settings, device, members=1))
    return min(max(1, fitting), MOST_TOGETHER)


def chunks(
    model: ModelConfig, settings: TrainConfig, seeds: Sequence[int], device: torch.device, kernel: Kernel
) -> Iterator[Sequence[int]]:
    """The seeds in their order, as many at a time as train together."""
    at_once = members_at_once(model, settings, device, kernel)
    for first in range(0, len(seeds), at_once):
        yield seeds[first : first + at_once]


def held_out_loss(model: ModelConfig, parameters: Mapping[str, Tensor]) -> float:
    """Mean loss in nats on the previous token in held-out sequences."""
    tokens = held_out_tokens(model, HELD_OUT_SEQUENCES)
    return ensemble.losses(model, ensemble.stack([parameters]), tokens[None]).item()


def require_memory(
    model: ModelConfig, settings: TrainConfig, device: torch.device, *, members: int, label: str
) -> None:
    """Raise TrainingError unless the machine has the memory that training so many models needs."""
    needed, there = bytes_needed(model, settings, device, members=members), _memory(device)
    if needed > there:
        raise TrainingError(
            f"{label}: needs about {needed / 2**30:.1f} GiB of memory where there are {there / 2**30:.1f} GiB; "
            "train fewer or smaller models at once"
        )


def bytes_needed(model: ModelConfig, settings: TrainConfig, device: torch.device, *, members: int) -> int:
    """An estimate, beside what Python and torch take: parameters, gradients and moments, and the rows under way."""
    numbers = sum(math.prod(shape) for shape in parameter_shapes(model).values())
    parts = ensemble.parts(settings.batch_size, model.n_ctx, device, settings.precision)
    rows = math.ceil(settings.batch_size / parts) * model.n_ctx
    per_layer = (
        12 * model.d_model + 4 * model.n_heads * model.d_head + 4 * model.d_mlp + 4 * model.n_heads * model.n_ctx
    )
    return 4 * members * (8 * numbers + rows * (model.n_layers * per_layer + 4 * model.d_vocab))


def _memory(device: torch.device) -> int:
    """Bytes that training may take: of the device's memory, or of the machine's and its container's."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next chunk
        return torch.cuda.mem_get_info(device)[0] + kept
    available: int = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return available if allowed == "max" else min(available, int(allowed))


def _keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one.

    glibc gives the blocks of a step back to the system, and the next step faults them in again page by page, a third of
    its time. From the largest block it has seen freed it learns to keep such blocks, so it is shown a large one.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
