"""Trained models where an earlier run left them: found, or trained and put there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from nopos.environment import cache_folder
from nopos.errors import CheckpointError, DamagedCacheEntry, StorageError, TrainingError
from nopos.model.config import content_hash, overrides, require_seed
from nopos.model.recipes import Recipe
from nopos.storage import checkpoints, files
from nopos.storage.checkpoints import Checkpoint
from nopos.training import trainer
from nopos.training.fused import Kernel


def load_or_train(recipe: Recipe, seed: int, device: torch.device) -> Checkpoint:
    """The model from the cache, or trained and put there.

    Raises:
        ConfigError: the seed is not one.
        StorageError: the cache folder cannot be written.
        TrainingError: the loss stopped being finite, or memory ran out.
    """
    (found,) = load_or_train_each(recipe, [seed], device)
    if isinstance(found, TrainingError):
        raise found
    return found


def load_or_train_each(
    recipe: Recipe, seeds: Sequence[int], device: torch.device, *, kernel: str | None = None
) -> Iterator[Checkpoint | TrainingError]:
    """Each distinct seed's model from the cache, or trained and put there; in place of one that diverged, its error.

    Models are trained as many together as the machine takes, and saved as soon as those beside them are done: what a
    killed run had saved, the next one finds.

    Args:
        recipe: of all of them.
        seeds: one for each.
        device: where they are trained.
        kernel: that trains them, `fused` or `torch`; the fused one where it can if it is None.

    Raises:
        ConfigError: a seed is not one, or the kernel cannot train there.
        StorageError: the cache folder cannot be written.
        TrainingError: memory ran out.
    """
    seeds = list(dict.fromkeys(seeds))  # nobody waits for a lock of one's own
    chosen = checkpoints.kernel_for(recipe, device, kernel)
    for chunk in trainer.chunks(recipe.model, recipe.train, seeds, device, chosen):
        yield from _load_or_train_together(recipe, chunk, device, chosen)


def _load_or_train_together(
    recipe: Recipe, seeds: Sequence[int], device: torch.device, kernel: Kernel
) -> list[Checkpoint | TrainingError]:
    """Processes that want the same model wait for the one that trains it.

    Where the lock does nothing they each train, which is slow but right: the name of an entry holds the digest of its
    weights, so two writers of one file write the same. It is not read again then, since another may be writing.
    """
    folder, entries = cache_folder(), {seed: _entry_name(recipe, seed, device, kernel) for seed in seeds}
    found: dict[int, Checkpoint | TrainingError] = {}
    damage: list[str] = []

    def look(wanted: Sequence[int]) -> list[int]:
        """Take what is there; the seeds that are not."""
        for seed in wanted:
            checkpoint, problems = _cached(folder, entries[seed])
            damage.extend(problems)
            if checkpoint is not None:
                found[seed] = checkpoint
        return [seed for seed in wanted if seed not in found]

    missing = look(seeds)
    if missing:
        files.require_writable(folder)
        with ExitStack() as locks:
            for seed in sorted(missing):  # in one order everywhere, so that no two processes wait for each other
                locks.enter_context(_Lock(folder / f"{entries[seed]}.lock"))
                _sweep(folder, entries[seed])
            missing = look(missing)
            trained = checkpoints.train_together(recipe, missing, device, kernel=kernel) if missing else []
            for seed, result in zip(missing, trained, strict=True):
                if look([seed]):  # where the lock does nothing another may have been quicker
                    found[seed] = result if isinstance(result, TrainingError) else _put(folder, entries[seed], result)
    for problem in damage:  # once all is well again: a warning may be turned into an error
        warnings.warn(DamagedCacheEntry(f"{problem}; it was set aside, and the model trained again"), stacklevel=4)
    return [found[seed] for seed in seeds]


def _sweep(folder: Path, entry: str) -> None:
    """Remove what a killed run left of an entry that it was writing; whoever holds the entry's lock may."""
    for left in folder.glob(f".{entry}-*.partial"):
        left.unlink(missing_ok=True)


def _put(folder: Path, entry: str, trained: Checkpoint) -> Checkpoint:
    weights = folder / f"{entry}-{trained.sha256[:12]}.safetensors"
    checkpoints.save(trained, weights)
    return replace(trained, path=weights)


def forget(recipe: Recipe, seed: int, device: torch.device) -> None:
    """Remove a model from the cache, so that the next `load_or_train` trains."""
    kernel = checkpoints.kernel_for(recipe, device, None)
    for manifest in cache_folder().glob(f"{_entry_name(recipe, seed, device, kernel)}-*.json"):
        manifest.unlink(missing_ok=True)  # the commit record first
        manifest.with_suffix(".safetensors").unlink(missing_ok=True)


def _entry_name(recipe: Recipe, seed: int, device: torch.device, kernel: Kernel) -> str:
    """Holds all that decides the weights, the sources that training runs too: a broken trainer cannot hide here."""
    key = {
        "model": overrides(recipe.model),
        "train": overrides(recipe.train),
        "torch": torch.__version__,
        "device": device.type,
        "sources": checkpoints.sources_hash(),
        **checkpoints.deciding_bits(device, kernel),
    }
    require_seed(seed)
    return f"{recipe.name}-{seed}-{content_hash(key)}"


def _cached(folder: Path, entry: str) -> tuple[Checkpoint | None, list[str]]:
    """The entry, if a whole one is there; and what was wrong with those that had to be set aside."""
    damage: list[str] = []
    for manifest in sorted(folder.glob(f"{entry}-*.json")):
        weights = manifest.with_suffix(".safetensors")
        try:
            return checkpoints.load(weights), damage
        except CheckpointError as error:
            if not manifest.exists():
                continue  # somebody is writing it again, or set it aside before us
            damage.append(str(error))
            for path in (manifest, weights):
                with suppress(FileNotFoundError):
                    path.rename(path.with_name(f"{path.name}.damaged"))
    return None, damage


class _Lock:
    """A file lock that says so when it has to wait."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=2)
        except Timeout:
            if sys.stderr.isatty():
                print(f"nopos: waiting for the process that holds {self._lock.lock_file}", file=sys.stderr)
            self._lock.acquire()
        except OSError as error:
            raise StorageError(f"{self._lock.lock_file}: cannot be locked ({error.strerror or error})") from None

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
