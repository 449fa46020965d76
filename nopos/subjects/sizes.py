"""The models of one size that controls are made of: committed for the notebook's size, else from the cache or trained.

A control shows that a claim can fail on models like the subject, so it has the subject's size. By `sprint` the nine
models of a size take a minute.
"""

from __future__ import annotations

from dataclasses import replace

import psutil  # type: ignore[import-untyped]
import torch

from nopos.claims.control import Subject as AnySubject
from nopos.errors import CheckpointError, ClaimError
from nopos.model.config import ModelConfig
from nopos.model.data import HELD_OUT_SEQUENCES
from nopos.model.recipes import NOTEBOOK, SPRINT, Recipe
from nopos.storage import cache, checkpoints
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.shipped import REFERENCE, checkpoint_path
from nopos.subjects.subject import ANALYSED_SEQUENCES, Subject

CPU = torch.device("cpu")
SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx")
"""Fields of a config that are sizes."""
BASE = 750_000_000
"""Bytes of Python, torch, TransformerLens and small things."""
TIMES = 4
"""So many arrays as large as the largest there are at a time."""
KEPT = 0.3
"""Of all activations of a subject and its sixteen controls, about the share that is read and remembered."""

TRAINED: dict[str, Recipe] = {
    REFERENCE: NOTEBOOK,
    "two_back": replace(SPRINT, train=replace(SPRINT.train, target_offset=2, steps=800)),
    "learned_positions": replace(SPRINT, model=replace(SPRINT.model, positions="learned")),
    "shuffled_targets": replace(SPRINT, train=replace(SPRINT.train, shuffled_targets=True)),
    "no_causal_mask": replace(SPRINT, model=replace(SPRINT.model, causal=False)),
    "one_layer": replace(SPRINT, model=replace(SPRINT.model, n_layers=1)),
    "no_BOS": replace(SPRINT, train=replace(SPRINT.train, incl_bos_token=False)),
    "half_trained": replace(SPRINT, train=replace(SPRINT.train, steps=110)),
}
"""The recipe of each committed checkpoint; its seed is 0. Of other sizes the reference too is by `sprint`."""


def size_of(config: ModelConfig) -> ModelConfig:
    """The config of a good model of these sizes: with a causal mask, without positions."""
    return replace(config, causal=True, positions="none", normalization="LN")


def require_checkable(name: str, config: ModelConfig) -> None:
    """Look at the sizes before any work: is there something to predict, and memory for what the claims ask?

    Raises:
        CheckpointError: there is not; `name` is what the message calls the model.
    """
    if config.n_ctx < 2:
        raise CheckpointError(f"{name}: has {config.n_ctx} position; to predict the previous token it needs 2 or more")
    needed, there = memory_of(config), psutil.virtual_memory().available
    if needed > there:
        sizes = f"d_vocab {config.d_vocab}, n_ctx {config.n_ctx}, d_mlp {config.d_mlp}"
        found = f"takes about {needed / 1e9:.1f} GB of memory; {there / 1e9:.1f} are free"
        raise CheckpointError(f"{name}: to check a model of {sizes} {found}")


def memory_of(config: ModelConfig) -> int:
    """Bytes that the claims take on a model of these sizes and on its controls, about.

    Fitted to the peaks that the system gave for seven sizes (0.95 to 1.84 GB), from which it is at most a tenth away.
    """
    logits = HELD_OUT_SEQUENCES * config.n_ctx * config.d_vocab * 4
    table = config.d_vocab * config.n_ctx * (config.d_mlp + 2 * config.d_model) * 8
    circuits = config.n_heads * config.d_vocab**2 * 8
    widths = 8 * config.d_model + 2 * config.d_mlp + 3 * config.n_heads * config.n_ctx
    activations = 17 * 2 * ANALYSED_SEQUENCES * config.n_ctx * config.n_layers * widths * 4
    return BASE + TIMES * (logits + table + circuits) + round(KEPT * activations)


def described(subject: AnySubject) -> str:
    """The sizes of a subject in words: subjects for which they are equal share their controls."""
    return in_words(subject.config) if isinstance(subject, Subject) else subject.name


def in_words(config: ModelConfig) -> str:
    """The sizes of a config."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in SIZES)


def trained(name: str, size: ModelConfig) -> Checkpoint:
    """The model of that name in `TRAINED`, of this size.

    Raises:
        TrainingError: it could not be trained.
        StorageError: the cache folder cannot be written.
    """
    if size == NOTEBOOK.model:
        return checkpoints.load(checkpoint_path(name))
    return cache.load_or_train(recipe_of(name, size), 0, CPU)


def recipe_of(name: str, size: ModelConfig) -> Recipe:
    """By which the model of that name is trained where it is not committed: `sprint`, with what makes the control."""
    recipe = SPRINT if name == REFERENCE else TRAINED[name]
    of_one_layer = replace(size, n_layers=1) if name == "one_layer" else size
    model = replace(of_one_layer, causal=recipe.model.causal, positions=recipe.model.positions)
    return replace(recipe, model=model)


def good_model(size: ModelConfig) -> Checkpoint:
    """A model of this size that solves the task without positions: near misses are edits of it.

    Raises:
        ClaimError: `sprint` gives none of this size.
        TrainingError: it could not be trained.
        StorageError: the cache folder cannot be written.
    """
    found = trained(REFERENCE, size)
    if size != NOTEBOOK.model:
        good = Subject(REFERENCE, found)
        if not good.solves_the_task():
            raise ClaimError(f"sprint gives no good model of this size to make it of: its loss is {good.loss:.3f} nats")
    return found
