"""Trained models: load one from a file, save one, train one."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.errors import CheckpointError, ConfigError, StorageError, TrainingError
from nopos.model.config import ModelConfig, changes, require_seed
from nopos.model.parameters import parameters_of
from nopos.model.recipes import RECIPES, Recipe, TrainConfig
from nopos.storage import files, tensor_files
from nopos.storage.state_dicts import config_shown_by
from nopos.training import compiled, fused, reference, trainer
from nopos.training.fused import Kernel
from nopos.training.member import Member

_PACKAGE = Path(__file__).parents[1]
_TRAINING_SOURCES = (
    "model/config.py", "model/recipes.py", "model/data.py", "model/parameters.py",
    "training/compiled.py", "training/ensemble.py", "training/fused.py", "training/linear.py", "training/optimizer.py",
    "training/trainer.py", "training/reference.py", "training/member.py",
    *(f"training/kernel/{path.name}" for path in compiled.files()),
)  # fmt: skip


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

    def copy(self) -> Checkpoint:
        """The same with tensors of its own; the thousands of losses cannot change and need no copy."""
        parameters = {name: value.clone() for name, value in self.parameters.items()}
        return replace(self, parameters=parameters, made_with=deepcopy(self.made_with))

    def describe(self) -> str:
        """One phrase for a table: recipe and seed, and in what the training differs from the recipe of that name."""
        if self.recipe is None or self.train is None:
            return f"weights of unknown training, {'causal' if self.config.causal else 'bidirectional'}"
        known = RECIPES.get(self.recipe, Recipe(name=self.recipe, model=self.config, train=self.train))
        changed = changes(self.config, known.model) | changes(self.train, known.train)
        but = "".join(f", but {name} {value}" for name, value in changed.items())
        return f"recipe {self.recipe}{but}, seed {self.seed}{_by_kernel(self.made_with or {})}"


def _by_kernel(made_with: Mapping[str, Any]) -> str:
    """By which kernel a model was trained, which decides its last bits; nothing where that was not written down."""
    kernel, threads = made_with.get("kernel"), made_with.get("threads")
    if kernel is None:
        return ""
    return f", kernel {kernel}" + (f" with {threads} threads" if threads is not None else "")


def load(path: Path, *, bidirectional: bool = False) -> Checkpoint:
    """Load a checkpoint of ours, or a HookedTransformer state dict of this architecture, whose shapes show its sizes.

    Args:
        path: of the weights.
        bidirectional: whether a state dict that does not show it is of a model without a causal mask.

    Raises:
        CheckpointError: the file is missing, damaged, of another shape, not finite, or not a checkpoint.
    """
    tensors, manifest, digest = tensor_files.read_checkpoint(path)
    described = (
        {"config": config_shown_by(tensors, where=str(path), bidirectional=bidirectional)}
        if manifest is None
        else _described(tensor_files.manifest_path(path), manifest)
    )
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
    tensor_files.write_checkpoint(weights, checkpoint.parameters, _manifest(checkpoint))


@dataclass(frozen=True, kw_only=True)
class Serialised:
    """A checkpoint that was trained here in bytes and plain values, for another process or a file."""

    weights: bytes
    """Of the weights file."""
    manifest: dict[str, Any]
    """All of it but the length and digest of the weights."""


def serialised(checkpoint: Checkpoint) -> Serialised:
    """The checkpoint as bytes; equal weights give equal bytes."""
    return Serialised(weights=tensor_files.serialise(checkpoint.parameters), manifest=_manifest(checkpoint))


def deserialised(name: str, given: Serialised) -> Checkpoint:
    """The checkpoint that the bytes are of.

    Raises:
        CheckpointError: they are of none; `name` is what the message calls them.
    """
    described = _described(Path(name), given.manifest)
    parameters = parameters_of(tensor_files.deserialised(name, given.weights), described["config"], where=name)
    return Checkpoint(parameters=parameters, sha256=files.sha256(given.weights), **described)


def save_serialised(given: Serialised, weights: Path) -> None:
    """Write what `serialised` has made as `save` writes it.

    Raises:
        StorageError: the folder or a file cannot be written.
    """
    tensor_files.write_serialised(weights, given.weights, given.manifest)


def _manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    assert checkpoint.train is not None
    return {
        "schema": 1,
        "recipe": checkpoint.recipe,
        "seed": checkpoint.seed,
        "model": asdict(checkpoint.config),
        "train": asdict(checkpoint.train),
        "made_with": checkpoint.made_with,
        "losses": checkpoint.losses,
    }


def train(recipe: Recipe, seed: int, device: torch.device) -> Checkpoint:
    """Train a model from scratch. On a CPU the same recipe, seed, torch and kernel give the same model.

    The fused kernel gives it with any number of threads, on one kind of processor and by one compiler; torch's with
    the same number of threads.

    Raises:
        ConfigError: the seed is not one.
        TrainingError: the loss stopped being finite, or memory ran out.
    """
    (trained,) = train_together(recipe, [seed], device)
    if isinstance(trained, TrainingError):
        raise trained
    return trained


def train_together(
    recipe: Recipe, seeds: Sequence[int], device: torch.device, *, kernel: str | None = None
) -> list[Checkpoint | TrainingError]:
    """Train a model of each seed from scratch, all at once; in place of one whose loss stopped being finite, an error.

    Args:
        recipe: of all of them.
        seeds: one for each.
        device: where they are trained.
        kernel: that trains them, `fused` or `torch`; the fused one where it can if it is None.

    Raises:
        ConfigError: a seed is not one, or the kernel cannot train there.
        TrainingError: memory ran out.
    """
    start = time.perf_counter()
    label = f"training {recipe.name}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    chosen = kernel_for(recipe, device, kernel)
    if recipe.train.why_by_the_loop is not None:
        return [_trained_by_the_loop(recipe, seed, device) for seed in seeds]
    members = trainer.train(recipe.model, recipe.train, seeds, device, label=label, kernel=chosen)
    seconds = round(time.perf_counter() - start, 1)
    made_with: dict[str, Any] = {"seconds": seconds, "together": len(seeds)}
    made_with |= deciding_bits(device, chosen)
    if chosen == "torch":
        made_with["why_not_fused"] = (
            fused.why_not(recipe.model, device, recipe.train.precision) or "torch was asked for"
        )
    return [_trained(recipe, member, device, made_with) for member in members]


def kernel_for(recipe: Recipe, device: torch.device, wanted: str | None) -> Kernel:
    """The kernel that computes a recipe's gradients: torch's where the reference loop trains.

    Raises:
        ConfigError: there is no such kernel, or the fused one is wanted where it cannot train.
    """
    reason = recipe.train.why_by_the_loop
    if reason is None:
        return fused.chosen(recipe.model, device, recipe.train.precision, wanted)
    if wanted == "fused":
        raise ConfigError(f"kernel is fused, which cannot train here: {reason}; use torch, or leave it out")
    return fused.chosen(recipe.model, device, recipe.train.precision, "torch" if wanted is None else wanted)


def _trained_by_the_loop(recipe: Recipe, seed: int, device: torch.device) -> Checkpoint | TrainingError:
    start, label = time.perf_counter(), f"training {recipe.name}, seed {seed}"
    try:
        member = reference.trained(recipe.model, recipe.train, seed, device, label=label)
    except TrainingError as error:
        return error
    made_with: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "together": 1}
    made_with |= deciding_bits(device, "torch") | {"why_not_fused": recipe.train.why_by_the_loop}
    return _trained(recipe, member, device, made_with)


def deciding_bits(device: torch.device, kernel: Kernel) -> dict[str, Any]:
    """What decides the last bits of weights beside recipe, seed, torch, device and sources."""
    if kernel == "fused":
        return {"kernel": kernel, "compiled": compiled.library().key}
    return {"kernel": kernel} | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def _trained(
    recipe: Recipe, member: Member, device: torch.device, made_with: Mapping[str, Any]
) -> Checkpoint | TrainingError:
    name = f"training {recipe.name}, seed {member.seed}"
    if member.failure is not None:
        return TrainingError(f"{name}: {member.failure}; nothing was saved")
    parameters = parameters_of(member.parameters, recipe.model, where=name)
    return made_here(recipe, member.seed, parameters, member.losses, device, made_with)


def made_here(
    recipe: Recipe,
    seed: int,
    parameters: Mapping[str, Float[Tensor, ...]],
    losses: Sequence[float],
    device: torch.device,
    made_with: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint of weights that this process trained, with what they were made with."""
    made_with = {**versions(device), **made_with}
    return Checkpoint(
        config=recipe.model, parameters=dict(parameters), sha256=files.sha256(tensor_files.serialise(parameters)),
        recipe=recipe.name, train=recipe.train, seed=seed, losses=tuple(losses), made_with=made_with,
    )  # fmt: skip


def versions(device: torch.device) -> dict[str, str]:
    """The versions and the device that a model trained here is made by."""
    return {
        "nopos": version("nopos"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "sources": sources_hash(),
    }


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


def sources_hash() -> str:
    """16 hex digits that stand for the text of every module that training runs."""
    texts = (f"{name}\n".encode() + (_PACKAGE / name).read_bytes() for name in _TRAINING_SOURCES)
    return hashlib.sha256(b"\n".join(texts)).hexdigest()[:16]
