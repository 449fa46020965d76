"""What `nopos sweep` does: a population made and checked in a folder, or what is missing of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nopos.environment import environment
from nopos.errors import ConfigError, require_one_of
from nopos.model.config import require_int
from nopos.populations import cluster, local, on_ray, results, software, table
from nopos.populations.driver import Driver, Spent
from nopos.populations.engine import Engine
from nopos.populations.folder import Folder, opened
from nopos.populations.settings import Grid, Setting, models_of, settings_of
from nopos.populations.state import State, found_in
from nopos.storage import checkpoints
from nopos.training import compiled
from nopos.training.fused import Kernel

ENGINES = ("local", "ray")
FAILURES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    out: Path
    recipes: Sequence[str]
    seeds: range
    grid: Grid
    workers: int | None
    engine: str
    ray_address: str | None
    device: str | None
    kernel: str | None
    command: str
    """The command line itself."""


def sweep(wanted: Wanted, say: Callable[[str], None] = print) -> bool:
    """Make and check a population, or what is missing of it; whether every model was trained and checked.

    Raises:
        NoposError: an option that cannot be, a folder that is not this sweep's or cannot be written, or workers that do
            not work.
    """
    start = time.perf_counter()
    settings, kernels, device = _possible(wanted)
    identity = _identity(wanted, settings, kernels, device)
    with opened(wanted.out, identity, command=wanted.command, environment=environment()) as folder:
        state, spent = found_in(folder, models_of(settings, wanted.seeds), kernels, say), Spent(0)
        left = len(state.to_train()) + len(state.to_check())
        say(
            f"models: {len(state.models)}, which is settings: {len(settings)} by seeds: {len(wanted.seeds)}; "
            f"done: {len(state.checked)}, failed for good: {len(state.failures)}, left: {left}"
        )
        if left:
            with _engine(wanted, kernels, device, most=left) as engine:
                driver = Driver(folder, state, engine, device)
                driver.run(say)
                spent = driver.spent
        _summarise(folder, state, settings)
        return _report(folder, state, spent, time.perf_counter() - start, say)


def _engine(wanted: Wanted, kernels: Mapping[str, Kernel], device: str, *, most: int) -> AbstractContextManager[Engine]:
    """What does the work, with as many workers as are asked for and no more than have something to do."""
    if wanted.engine == "ray":
        facts = partial(software.of_worker, device, fused="fused" in kernels.values())
        return on_ray.OnRay(wanted.workers, wanted.ray_address, most=most, facts=facts)
    return local.Local(min(local.cores() if wanted.workers is None else wanted.workers, most))


def _possible(wanted: Wanted) -> tuple[list[Setting], dict[str, Kernel], str]:
    """The settings, the kernel of each and the device; a ConfigError says what cannot be."""
    if wanted.workers is not None:
        require_int("workers", wanted.workers, at_least=1)
    require_one_of("engine", wanted.engine, ENGINES)
    if wanted.engine == "ray":
        cluster.require_possible(wanted.ray_address)
    elif wanted.ray_address is not None:
        raise ConfigError(f"ray-address is {wanted.ray_address!r}; it goes with --engine ray, which is missing")
    if not wanted.recipes:
        raise ConfigError("recipe is missing; name one, such as sprint")
    settings = settings_of(wanted.recipes, wanted.grid)
    by_ray = wanted.engine == "ray"
    device = checkpoints.device_named("cpu" if by_ray and wanted.device is None else wanted.device)
    if by_ray and device.type != "cpu":
        raise ConfigError(f"device is {device.type}, and Ray's workers train on the cpu; leave out one of the two")
    kernels = {one.name: checkpoints.kernel_for(one.recipe, device, wanted.kernel) for one in settings}
    return settings, kernels, device.type


def _identity(
    wanted: Wanted, settings: Sequence[Setting], kernels: Mapping[str, Kernel], device: str
) -> dict[str, dict[str, Any]]:
    """All that decides what comes out, as JSON values."""
    asked = {
        "seeds": f"{wanted.seeds[0]}-{wanted.seeds[-1]}",
        "settings": {
            one.name: {
                "recipe": one.recipe.name,
                "kernel": kernels[one.name],
                "compiled": compiled.library().key if kernels[one.name] == "fused" else None,
                "model": asdict(one.recipe.model),
                "train": {**asdict(one.recipe.train), "betas": list(one.recipe.train.betas)},
            }
            for one in settings
        },
    }
    return {"asked": asked, "made_by": software.made_by(device)}


def _summarise(folder: Folder, state: State, settings: Sequence[Setting]) -> None:
    """Write what came out, from the ledgers alone."""
    members = []
    for model in tqdm(state.models, desc="summing up", unit="model", disable=None, leave=False):
        digest, failure = state.digests.get(model.name), state.failures.get(model.name)
        claims = folder.checked(model, digest) if digest is not None and model.name in state.checked else None
        members.append(
            results.Member(
                name=model.name,
                setting=model.setting.name,
                seed=model.seed,
                trained=digest is not None,
                failure=None if failure is None else f"{failure['during']}: {failure['reason']}",
                claims=claims or {},
            )
        )
    summary = results.summary(settings, members)
    folder.write("summary.json", summary)
    folder.write("summary.md", "\n".join(table.lines(summary)) + "\n")


def _report(folder: Folder, state: State, spent: Spent, seconds: float, say: Callable[[str], None]) -> bool:
    """Say and write down what this run took; whether every model is done."""
    size, expected, done, failed = folder.size(), len(state.models), len(state.checked), len(state.failures)
    counts = {"expected": expected, "done": done, "failed": failed}
    run = {**counts, "seconds": seconds, **asdict(spent), "bytes": size}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in run.items()}
    folder.write("cost.json", {"schema": 1, "runs": [*folder.runs(), rounded]})
    for event in state.failed()[:FAILURES_SHOWN]:
        say(f"failed: {event['model']}, {event['during']}: {event['reason']}")
    if failed > FAILURES_SHOWN:
        say(f"and {failed - FAILURES_SHOWN} more, in {folder.path / 'index.jsonl'}")
    of_workers = [
        f"{what} {taken / count:.2f} s a model"
        for what, taken, count in (
            ("training", spent.train_seconds, spent.trained),
            ("checking", spent.check_seconds, spent.checked),
        )
        if count
    ]
    splits = [f"groups split: {spent.splits}"] if spent.splits else []
    say(", ".join([f"took {seconds:.0f} s", *of_workers, f"{size / 1e6:.1f} MB", *splits]))
    say(f"expected {expected}, done {done}, failed {failed}: {folder.path / 'summary.md'}")
    return done == expected
