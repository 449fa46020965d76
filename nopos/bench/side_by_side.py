"""Every engine side by side in one run, each in a process of its own, in turns.

A process of its own gives each engine its own peak memory, as the operating system reports it, and the state of the
allocator that a user would find. Turns spread what else the machine does over all of them alike.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nopos.bench import engines, machine
from nopos.bench.engines import Engine
from nopos.errors import TrainingError
from nopos.model.config import ModelConfig

ROUNDS = 5
SECONDS_A_TURN = 1.0


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


def compared(device: torch.device) -> dict[str, Any]:
    """Every engine's speed, and what it is measured against.

    Returns:
        `peak_flops_per_second` of a large matrix product by precision, and `engines`, a `Speed` each.
    """
    every = engines.engines(device)
    steps = {}
    times: dict[str, list[float]] = {engine.name: [] for engine in every}
    context = multiprocessing.get_context("spawn")  # a forked child would inherit our memory
    workers = {engine.name: ProcessPoolExecutor(1, context, _in_a_worker) for engine in every}
    try:
        with tqdm(total=len(every) * (ROUNDS + 1), desc="side by side", unit="turn", disable=None, leave=False) as bar:
            for engine in every:
                warm = workers[engine.name].submit(engines.seconds_for, engine, 4, device.type).result()
                steps[engine.name] = max(2, round(SECONDS_A_TURN / (warm / 4)))
                bar.update()
            for _ in range(ROUNDS):
                for engine in every:
                    turn = workers[engine.name].submit(engines.seconds_for, engine, steps[engine.name], device.type)
                    times[engine.name].append(turn.result() / steps[engine.name])
                    bar.update()
        peaks = {precision: machine.peak_flops_per_second(precision, device) for precision in ("full", "bfloat16")}
        memory = {
            name: worker.submit(machine.peak_memory_mib, device.type).result() for name, worker in workers.items()
        }
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
    of_a_step = rates(engine, step)
    models_per_second = engine.members / (settings.steps * step)
    return Speed(
        name=engine.name,
        batch_size=settings.batch_size,
        members=engine.members,
        **of_a_step,
        models_per_minute=60 * models_per_second,
        share_of_peak=of_a_step["flops_per_second"] / peaks[settings.precision],
        peak_mib=memory,
        times_the_notebook=models_per_second * notebook,
    )


def rates(engine: Engine, step: float) -> dict[str, float]:
    """What follows from the seconds of a step of all members."""
    model = engine.recipe.model
    tokens_per_second = engine.members * engine.recipe.train.batch_size * model.n_ctx / step
    return {
        "step_ms": 1e3 * step,
        "tokens_per_second": tokens_per_second,
        "flops_per_second": tokens_per_second * flops_per_token(model),
    }


def flops_per_token(model: ModelConfig) -> float:
    """Of forward and backward: each weight of a matrix, and each pair of positions, takes 2 forward and 4 backward."""
    width = model.n_heads * model.d_head
    of_layer = 4 * model.d_model * width + 2 * model.d_model * model.d_mlp + 2 * model.n_ctx * width
    return 6.0 * (model.n_layers * of_layer + model.d_model * model.d_vocab)
