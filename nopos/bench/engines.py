"""Everything here that trains, as engines that can be timed: the notebook's loop, and the fast trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from nopos.bench import machine
from nopos.model.config import ModelConfig
from nopos.model.data import training_batches
from nopos.model.recipes import NOTEBOOK, SPRINT, Recipe, in_precision
from nopos.training import fused, reference, trainer


@dataclass(frozen=True)
class Engine:
    """Something that trains, and what it trains."""

    name: str
    recipe: Recipe
    loop: str
    """bridge (the notebook's loop over TransformerLens' own model), reference (over ours) or fast."""
    members: int = 1
    kernel: str | None = None
    """Of the fast loop; the fused one where it can if it is None."""


def engines(device: torch.device) -> list[Engine]:
    """What is compared; the notebook's loop comes first."""
    rough = in_precision(NOTEBOOK, "bfloat16")
    populations = (1, 4, 16) if device.type == "cpu" else (1, 4, 16, 64, 256)
    by_torch = [
        Engine("torch kernel, notebook", NOTEBOOK, "fast", kernel="torch"),
        Engine("torch kernel, 1 of sprint", SPRINT, "fast", kernel="torch"),
        Engine("torch kernel, 16 of sprint", SPRINT, "fast", 16, kernel="torch"),
    ]
    return [
        Engine("notebook's loop, TransformerLens", NOTEBOOK, "bridge"),
        Engine("notebook's loop, our model", NOTEBOOK, "reference"),
        Engine("fast trainer, notebook", NOTEBOOK, "fast"),
        Engine("fast trainer, notebook, bfloat16", rough, "fast"),
        *(Engine(f"fast trainer, {members} of sprint", SPRINT, "fast", members) for members in populations),
        *(by_torch if fused.chosen(SPRINT.model, device, "full") == "fused" else []),
    ]


def seconds_for(engine: Engine, steps: int, device_type: str) -> float:
    """Wall-clock of so many steps of an engine, on the notebook's data or the members' own, without its set-up.

    The set-up is what a run of one step takes, but for the step: weights are drawn and streams begun. It is run twice,
    since the first loads libraries too.
    """
    device = torch.device(device_type)
    run = _runner(engine, device)
    seconds = []
    for count in (1, 1, 1 + steps):
        machine.finish(device)
        start = time.perf_counter()
        run(count)
        machine.finish(device)
        seconds.append(time.perf_counter() - start)
    return seconds[2] - seconds[1]


def _runner(engine: Engine, device: torch.device) -> Callable[[int], object]:
    model, settings = engine.recipe.model, replace(engine.recipe.train, schedule="constant")  # of any length
    if engine.loop == "fast":
        kernel = fused.chosen(model, device, settings.precision, engine.kernel)

        def run(steps: int) -> None:
            for seeds in trainer.chunks(model, settings, range(engine.members), device, kernel):
                settled = replace(settings, steps=steps)
                trainer.train(model, settled, seeds, device, label=engine.name, kernel=kernel)

        return run
    module = bridge(model, device) if engine.loop == "bridge" else _ours(model, device)
    return lambda steps: reference.train(
        module, replace(settings, steps=steps), training_batches(model, settings, 0), label=engine.name
    )


@cache
def _ours(model: ModelConfig, device: torch.device) -> nn.Module:
    from nopos.model.transformer import NoPosTransformer

    return NoPosTransformer.initialised(model, 0).to(device)


@cache
def bridge(model: ModelConfig, device: torch.device) -> nn.Module:
    """TransformerLens 4's model of these sizes, without hooks or cache, its positions off as in step 2."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    names = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx")
    sizes = {name: getattr(model, name) for name in names}
    config = TransformerBridgeConfig(**sizes, act_fn="relu", normalization_type="LN", seed=0)
    # TransformerLens adds this method to the class when its package is imported.
    bridge: nn.Module = TransformerBridge.boot_native(config, device=device)  # type: ignore[attr-defined]
    (W_pos,) = (parameter for name, parameter in bridge.named_parameters() if name.startswith("pos."))
    W_pos.data.zero_()
    W_pos.requires_grad_(False)
    return bridge
