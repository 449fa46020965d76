"""Time some training steps of the `nopos` that lies in a folder; a script, which runs in a process of its own.

    PYTHONPATH=FOLDER python -P timed_steps.py '{"folder": "FOLDER", "device": "cpu", "steps": {"sprint": 40}}'

The folder may hold another version than the one that this file belongs to. So the file is run by its path, imports
nothing beside it, and asks a version only for what every version has that can train: the recipes by name, and
`nopos.training.trainer.train`. It prints one JSON object: `seconds` by recipe, or `error`, a line that says why not.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HOMES_OF_RECIPES = ("nopos.model.recipes", "nopos.config")
"""Modules that hold the recipes: that of today, and that of 0.1.0."""
WARM_UP = 4
"""Steps that every process takes first, uncounted: they load kernels and let the allocator grow."""


def main(request: str) -> dict[str, Any]:
    """Seconds of so many steps of each named recipe, or why there are none."""
    asked = json.loads(request)
    try:
        import torch

        require_package_of(Path(asked["folder"]))
        device = torch.device(asked["device"])
        return {"seconds": {name: seconds(recipe_named(name), n, device) for name, n in asked["steps"].items()}}
    except Exception as error:  # another version can fail in any way; the parent says which version it was
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def require_package_of(folder: Path) -> None:
    """Raise ImportError unless `import nopos` finds the folder's own package.

    A folder without `nopos/__init__.py` would otherwise be timed by whatever nopos is installed.
    """
    found = importlib.import_module("nopos").__file__
    if found is None or Path(found).resolve().parents[1] != folder.resolve():
        raise ImportError("there is no package nopos in it")


def recipe_named(name: str) -> Any:
    """The recipe by its name, from the first module that holds it."""
    for home in HOMES_OF_RECIPES:
        try:
            return getattr(importlib.import_module(home), name.upper())
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"none of {', '.join(HOMES_OF_RECIPES)} has a recipe {name.upper()}")


def seconds(recipe: Any, steps: int, device: Any) -> float:
    """Wall-clock of so many steps, after a warm-up; `train` brings the weights to the CPU, so a device has finished."""
    trainer = importlib.import_module("nopos.training.trainer")
    settings = replace(recipe.train, schedule="constant")  # of any length
    taken = 0.0
    for count in (WARM_UP, steps):
        start = time.perf_counter()
        trainer.train(recipe.model, replace(settings, steps=count), [0], device, label=recipe.name)
        taken = time.perf_counter() - start
    return taken


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
