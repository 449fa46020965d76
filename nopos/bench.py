"""How fast training is: every engine side by side in one run, each in a process of its own, in turns.

A process of its own gives each engine its own peak memory, as the operating system reports it, and the state of the
allocator that a user would find. Turns spread what else the machine does over all of them alike.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from nopos.config import NOTEBOOK, SPRINT, ModelConfig, Precision, Recipe, in_precision
from nopos.data import training_batches
from nopos.errors import TrainingError
from nopos.ledger import environment
from nopos.training import reference, trainer
from nopos.training.linear import linear

TARGET = 0.006
"""Held-out loss in nats at which the notebook's loop ends."""
FRESH_SEEDS = range(10)
"""Seeds that judge `sprint`; its settings were chosen on others."""
ROUNDS = 5
SECONDS_A_TURN = 1.0


@dataclass(frozen=True)
class Engine:
    """Something that trains, and what it trains."""

    name: str
    recipe: Recipe
    loop: str
    """bridge (the notebook's loop over TransformerLens' own model), reference (over ours) or fast."""
    members: int = 1


@dataclass(frozen=True)
class Speed:
    """What an engine did; rates count the tokens and steps of all its members."""

    name: str
    batch_size: int
    members: int
    step_ms: float
    """Median over the rounds of the time of one step of all members."""
    tokens_per_second: float
    models_per_minute: float
    flops_per_second: float
    """Of the matrix products that the model is defined by, whatever an engine does instead."""
    share_of_peak: float
    peak_mib: float
    """Of the engine's process, what Python and its libraries take included; on CUDA of the device's memory."""
    times_the_notebook: float
    """How many times as many models a minute as the notebook's loop."""


def engines(device: torch.device) -> list[Engine]:
    """What is compared; the notebook's loop comes first."""
    rough = in_precision(NOTEBOOK, "bfloat16")
    populations = (1, 4, 16) if device.type == "cpu" else (1, 4, 16, 64, 256)
    return [
        Engine("notebook's loop, TransformerLens", NOTEBOOK, "bridge"),
        Engine("notebook's loop, our model", NOTEBOOK, "reference"),
        Engine("fast trainer, notebook", NOTEBOOK, "fast"),
        Engine("fast trainer, notebook, bfloat16", rough, "fast"),
        *(Engine(f"fast trainer, {members} of sprint", SPRINT, "fast", members) for members in populations),
    ]


def compared(device: torch.device) -> dict[str, Any]:
    """Every engine's speed, and what it is measured against.

    Returns:
        `peak_flops_per_second` of a large matrix product by precision, and `engines`, a `Speed` each.
    """
    every = engines(device)
    steps = {}
    times: dict[str, list[float]] = {engine.name: [] for engine in every}
    context = multiprocessing.get_context("spawn")  # a forked child would inherit our memory
    workers = {engine.name: ProcessPoolExecutor(1, context, _in_a_worker) for engine in every}
    try:
        with tqdm(total=len(every) * (ROUNDS + 1), desc="side by side", unit="turn", disable=None, leave=False) as bar:
            for engine in every:
                warm = workers[engine.name].submit(seconds_for, engine, 4, device.type).result()
                steps[engine.name] = max(2, round(SECONDS_A_TURN / (warm / 4)))
                bar.update()
            for _ in range(ROUNDS):
                for engine in every:
                    turn = workers[engine.name].submit(seconds_for, engine, steps[engine.name], device.type)
                    times[engine.name].append(turn.result() / steps[engine.name])
                    bar.update()
        peaks = {precision: peak_flops_per_second(precision, device) for precision in ("full", "bfloat16")}
        memory = {name: worker.submit(peak_memory_mib, device.type).result() for name, worker in workers.items()}
    except BrokenProcessPool:
        raise TrainingError("an engine's process died; nothing was measured (was memory short?)") from None
    finally:
        for worker in workers.values():
            worker.shutdown(cancel_futures=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = every[0]
    notebook = first.recipe.train.steps * medians[first.name]  # seconds for a model
    speeds = [_speed(engine, medians[engine.name], memory[engine.name], peaks, notebook) for engine in every]
    return {"peak_flops_per_second": peaks, "engines": [asdict(speed) for speed in speeds]}


def _in_a_worker() -> None:
    """Leave Ctrl-C and progress bars to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives


def _speed(engine: Engine, step: float, memory: float, peaks: dict[str, float], notebook: float) -> Speed:
    settings = engine.recipe.train
    rates = _rates(engine, step)
    models_per_second = engine.members / (settings.steps * step)
    return Speed(
        name=engine.name,
        batch_size=settings.batch_size,
        members=engine.members,
        **rates,
        models_per_minute=60 * models_per_second,
        share_of_peak=rates["flops_per_second"] / peaks[settings.precision],
        peak_mib=memory,
        times_the_notebook=models_per_second * notebook,
    )


def _rates(engine: Engine, step: float) -> dict[str, float]:
    """What follows from the seconds of a step of all members."""
    model = engine.recipe.model
    tokens_per_second = engine.members * engine.recipe.train.batch_size * model.n_ctx / step
    return {
        "step_ms": 1e3 * step,
        "tokens_per_second": tokens_per_second,
        "flops_per_second": tokens_per_second * flops_per_token(model),
    }


def flops_per_token(model: ModelConfig) -> float:
    """Of forward and backward: each weight of a matrix, and each pair of slots, takes 2 forward and 4 backward."""
    width = model.n_heads * model.d_head
    of_layer = 4 * model.d_model * width + 2 * model.d_model * model.d_mlp + 2 * model.n_ctx * width
    return 6.0 * (model.n_layers * of_layer + model.d_model * model.d_vocab)


def seconds_for(engine: Engine, steps: int, device_type: str) -> float:
    """Wall-clock of so many steps of an engine, on the notebook's data or the members' own."""
    device = torch.device(device_type)
    run = _runner(engine, device)
    _finish(device)
    start = time.perf_counter()
    run(steps)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _runner(engine: Engine, device: torch.device) -> Callable[[int], object]:
    model, settings = engine.recipe.model, replace(engine.recipe.train, schedule="constant")  # of any length
    if engine.loop == "fast":

        def run(steps: int) -> None:
            for seeds in trainer.chunks(model, settings, range(engine.members), device):
                trainer.train(model, replace(settings, steps=steps), seeds, device, label=engine.name)

        return run
    module = bridge(model, device) if engine.loop == "bridge" else _ours(model, device)
    return lambda steps: reference.train(
        module, replace(settings, steps=steps), training_batches(model, settings, 0), label=engine.name
    )


@cache
def _ours(model: ModelConfig, device: torch.device) -> nn.Module:
    from nopos.model import NoPosTransformer

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


def peak_flops_per_second(precision: Precision, device: torch.device) -> float:
    """What the machine reaches at large square products, by the function that training uses."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    size, launches = (8192, 10) if device.type == "cuda" else (1024, 1)
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn((1, size, size), generator=source).to(device, dtype) for _ in range(2))
    bias = torch.zeros((1, size), dtype=dtype, device=device)
    rates = []
    for _ in range(50):
        _finish(device)
        start = time.perf_counter()
        for _ in range(launches):
            linear(left, right, bias)
        _finish(device)
        rates.append(2 * size**3 * launches / (time.perf_counter() - start))
    return max(rates)


def peak_memory_mib(device_type: str) -> float:
    """Largest resident memory of this process so far, or on CUDA the most that its tensors took of the device's."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    bytes_a_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_a_unit / 2**20


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
        rows.append({"axis": axis, "size": size, **_rates(engine, statistics.median(turns[1:]) / steps)})
    return rows


def facts(device: torch.device) -> dict[str, Any]:
    """What the ledger says of machine and software, and what speed depends on besides."""
    return {
        **environment(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        described = Path("/proc/cpuinfo").read_text()
        return next(line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def measure(device: torch.device) -> dict[str, Any]:
    """Everything, as one object for JSON."""
    result = compared(device)
    runs = sprints(device)
    notebook_seconds = NOTEBOOK.train.steps * result["engines"][0]["step_ms"] / 1e3
    median = statistics.median(run["seconds"] for run in runs)
    return {
        "schema": 1,
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
