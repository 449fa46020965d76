"""Trained models: load one from a file, train one, or find it in the cache where an earlier run left it."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from nopos import storage
from nopos.config import RECIPES, ModelConfig, Recipe, TrainConfig, changes, content_hash, overrides, require_seed
from nopos.data import training_batches
from nopos.errors import CheckpointError, ConfigError, DamagedCacheEntry, StorageError
from nopos.model import NoPosTransformer
from nopos.parameters import parameters_of
from nopos.training import reference

_PACKAGE = Path(__file__).parent
_TRAINING_SOURCES = ("config.py", "data.py", "parameters.py", "model.py", "training/reference.py")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights of a model and where they come from; what a file that is not ours cannot tell is None."""

    config: ModelConfig
    parameters: dict[str, Float[Tensor, ...]]
    sha256: str
    """Of the weights file."""
    recipe: str | None = None
    train: TrainConfig | None = None
    seed: int | None = None
    losses: tuple[float, ...] = ()
    """Training loss in nats at each step."""
    made_with: dict[str, Any] | None = None
    """Versions, device, sources and seconds of the training."""
    path: Path | None = None
    """The weights file, once there is one."""

    def describe(self) -> str:
        """One phrase for a table: recipe and seed, and in what the training differs from the recipe of that name."""
        if self.recipe is None or self.train is None:
            return "weights of unknown training"
        known = RECIPES.get(self.recipe, Recipe(name=self.recipe, model=self.config, train=self.train))
        changed = changes(self.config, known.model) | changes(self.train, known.train)
        but = "".join(f", but {name} {value}" for name, value in changed.items())
        return f"recipe {self.recipe}{but}, seed {self.seed}"


def load(path: Path) -> Checkpoint:
    """Load a checkpoint of ours, or a HookedTransformer state dict of the notebook's shape.

    Raises:
        CheckpointError: the file is missing, damaged, of another shape, not finite, or not a checkpoint.
    """
    tensors, manifest, digest = storage.read_checkpoint(path)
    described = {"config": ModelConfig()} if manifest is None else _described(storage.manifest_path(path), manifest)
    parameters = parameters_of(tensors, described["config"], where=str(path))
    return Checkpoint(parameters=parameters, sha256=digest, path=path, **described)


def _described(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a model, as fields of a Checkpoint."""
    try:
        config, train = ModelConfig(**manifest["model"]), TrainConfig(**manifest["train"])
        recipe, seed, losses, made_with = (manifest[name] for name in ("recipe", "seed", "losses", "made_with"))
        require_seed(seed)
        losses = tuple(float(loss) for loss in losses)
        if not isinstance(recipe, str) or not isinstance(made_with, dict):
            raise TypeError("recipe must be a name and made_with an object")
        if config.normalization != "LN":
            raise ConfigError("normalization must be LN: a folded model is made from one with LayerNorm")
    except KeyError as error:
        raise CheckpointError(f"{path}: does not describe a model (it has no {error})") from None
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: does not describe a model ({error})") from None
    return {
        "config": config,
        "train": train,
        "recipe": recipe,
        "seed": seed,
        "losses": losses,
        "made_with": made_with,
    }


def save(checkpoint: Checkpoint, weights: Path) -> None:
    """Write a checkpoint that was trained here: weights first, manifest last.

    Raises:
        StorageError: the folder or a file cannot be written.
    """
    if checkpoint.train is None:
        raise StorageError(f"{weights}: only a model trained here has the history that a manifest records")
    manifest = {
        "schema": 1,
        "recipe": checkpoint.recipe,
        "seed": checkpoint.seed,
        "model": asdict(checkpoint.config),
        "train": asdict(checkpoint.train),
        "made_with": checkpoint.made_with,
        "losses": checkpoint.losses,
    }
    storage.write_checkpoint(weights, checkpoint.parameters, manifest)


def train(recipe: Recipe, seed: int, device: torch.device) -> Checkpoint:
    """Train a model from scratch. The same recipe, seed, torch and kind of device give the same model.

    Raises:
        ConfigError: the seed is not one.
        TrainingError: the loss stopped being finite.
    """
    start = time.perf_counter()
    model = NoPosTransformer.initialised(recipe.model, seed).to(device)
    batches = training_batches(recipe.model, recipe.train, seed)
    losses = reference.train(model, recipe.train, batches, label=f"training {recipe.name}, seed {seed}")
    parameters = parameters_of(model.parameter_tensors(), recipe.model, where=f"{recipe.name}, seed {seed}")
    made_with = {
        "nopos": version("nopos"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "sources": _sources_hash(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return Checkpoint(
        config=recipe.model, parameters=parameters, sha256=storage.sha256(storage.serialise(parameters)),
        recipe=recipe.name, train=recipe.train, seed=seed, losses=tuple(losses), made_with=made_with,
    )  # fmt: skip


def load_or_train(recipe: Recipe, seed: int, device: torch.device) -> Checkpoint:
    """The model from the cache, or trained and put there.

    Processes that want the same model wait for the one that trains it. Where the lock does nothing they each train,
    which is slow but right: the name of an entry holds the digest of its weights, so no two writers share a file.

    Raises:
        ConfigError: the seed is not one.
        StorageError: the cache folder cannot be written.
        TrainingError: the loss stopped being finite.
    """
    folder, entry = cache_folder(), _entry_name(recipe, seed, device)
    found, damage = _cached(folder, entry)
    if found is not None:
        return found
    storage.require_writable(folder)
    with _Lock(folder / f"{entry}.lock"):
        found, more_damage = _cached(folder, entry)
        if found is None:
            trained = train(recipe, seed, device)
            weights = folder / f"{entry}-{trained.sha256[:12]}.safetensors"
            found, _ = _cached(folder, entry)  # where the lock does nothing another may have been quicker
            if found is None:
                save(trained, weights)
                found = load(weights)
    for problem in damage + more_damage:  # once all is well again: a warning may be turned into an error
        warnings.warn(DamagedCacheEntry(f"{problem}; it was set aside, and the model trained again"), stacklevel=2)
    return found


def forget(recipe: Recipe, seed: int, device: torch.device) -> None:
    """Remove a model from the cache, so that the next `load_or_train` trains."""
    for manifest in cache_folder().glob(f"{_entry_name(recipe, seed, device)}-*.json"):
        manifest.unlink(missing_ok=True)  # the commit record first
        manifest.with_suffix(".safetensors").unlink(missing_ok=True)


def cache_folder() -> Path:
    """`NOPOS_CACHE_DIR`, or the user's cache folder for nopos."""
    named = os.environ.get("NOPOS_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_dir("nopos"))


def device_named(name: str | None) -> torch.device:
    """The device of that name; without a name CUDA where there is one, else the CPU.

    Raises:
        ConfigError: not cpu or cuda, or CUDA was asked for where there is none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; it must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no CUDA here; use cpu")
    return torch.device(name)


def _entry_name(recipe: Recipe, seed: int, device: torch.device) -> str:
    """Holds all that decides the weights, the sources that training runs too: a broken trainer cannot hide here."""
    key = {
        "model": overrides(recipe.model),
        "train": overrides(recipe.train),
        "torch": torch.__version__,
        "device": device.type,
        "sources": _sources_hash(),
    }
    require_seed(seed)
    return f"{recipe.name}-{seed}-{content_hash(key)}"


def _sources_hash() -> str:
    texts = (f"{name}\n".encode() + (_PACKAGE / name).read_bytes() for name in _TRAINING_SOURCES)
    return hashlib.sha256(b"\n".join(texts)).hexdigest()[:16]


def _cached(folder: Path, entry: str) -> tuple[Checkpoint | None, list[str]]:
    """The entry, if a whole one is there; and what was wrong with those that had to be set aside."""
    damage: list[str] = []
    for manifest in sorted(folder.glob(f"{entry}-*.json")):
        weights = manifest.with_suffix(".safetensors")
        try:
            return load(weights), damage
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
