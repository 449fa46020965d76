"""Where the subjects of this project come from: the reference model, files, and recipes by way of the cache.

The pytest provider and the command line share these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from nopos.claims.run import SubjectLoader, require_named_once
from nopos.errors import ConfigError
from nopos.model.recipes import recipe_named
from nopos.storage import cache, checkpoints
from nopos.subjects.sizes import require_checkable
from nopos.subjects.subject import Subject

SLOW_MODELS = (("notebook", 0), ("sprint", 100), ("sprint", 101))
"""Recipe and seed of the models that the slow tier checks too. No bound was set from the two of `sprint`."""


def require_possible(
    *, recipe: str | None, seed: int | None, device: str | None, retrain: bool = False, slow: bool = False
) -> None:
    """Look at the options that say what is trained, before any work.

    Args:
        recipe: of a model that is named.
        seed: of that model.
        device: where to train.
        retrain: whether models are trained although the cache has them.
        slow: whether the models of the slow tier are wanted.

    Raises:
        ConfigError: an option that cannot be, or one that says how to train where no model is to be trained.
    """
    checkpoints.device_named(device)
    if seed is not None and recipe is None:
        raise ConfigError("seed is given without a recipe; name the recipe too, or leave the seed out")
    if recipe is None and not slow:
        for name, is_given in (("device", device is not None), ("retrain", retrain)):
            if is_given:
                raise ConfigError(f"{name} is given, but nothing is trained; name a recipe, or leave it out")


def named_subjects(
    files: Sequence[str],
    *,
    recipe: str | None,
    seed: int | None,
    device: str | None,
    bidirectional: bool = False,
) -> Iterator[Subject]:
    """The models that a command line names, loaded or trained one after the other.

    Args:
        files: checkpoints.
        recipe: of one more model, from the cache or trained now.
        seed: of that model; 0 if it is None.
        device: where to train it; the best there is if it is None.
        bidirectional: whether files that do not show it are of models without a causal mask.

    Raises:
        NoposError: a file is named twice, has no name, is no checkpoint of this architecture, or of a model that the
            memory is too small for, there is no such recipe or seed, or training went wrong.
    """
    if "" in files:  # which Path takes for the current folder
        raise ConfigError("checkpoint is empty; name a file")
    require_named_once(files, as_what=lambda name: Path(name).resolve())
    for name in files:
        checkpoint = checkpoints.load(Path(name), bidirectional=bidirectional)
        require_checkable(name, checkpoint.config)
        yield Subject(name, checkpoint)
    if recipe is not None:
        yield recipe_subject(recipe, seed or 0, checkpoints.device_named(device))


def slow_loaders(device: torch.device) -> list[SubjectLoader]:
    """What `pytest -m slow` checks too: models trained on this device, or found in the cache."""
    return [
        SubjectLoader(recipe_name(recipe, seed), partial(recipe_subject, recipe, seed, device), slow=True)
        for recipe, seed in SLOW_MODELS
    ]


def recipe_name(recipe: str, seed: int) -> str:
    """What a model of a recipe is called."""
    return f"{recipe} seed {seed}"


def recipe_subject(recipe: str, seed: int, device: torch.device) -> Subject:
    """A model of a recipe, from the cache or trained now."""
    return Subject(recipe_name(recipe, seed), cache.load_or_train(recipe_named(recipe), seed, device))


def forget(recipe: str, seed: int, device: torch.device) -> None:
    """Take a model out of the cache, so that it is trained again."""
    cache.forget(recipe_named(recipe), seed, device)
