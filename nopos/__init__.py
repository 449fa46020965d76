"""Findings about a transformer without positional embeddings, as tests that can fail.

The public names are loaded when they are used, so that `nopos --help` imports neither torch nor transformer_lens.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nopos.cache import load_or_train
    from nopos.checkpoints import load
    from nopos.claims import claim
    from nopos.config import RECIPES, ModelConfig, Recipe, TrainConfig
    from nopos.controls import CONTROLS, Control
    from nopos.errors import NoposError
    from nopos.model import NoPosTransformer
    from nopos.subject import Subject

_HOME = {
    "CONTROLS": "controls",
    "Control": "controls",
    "ModelConfig": "config",
    "NoPosTransformer": "model",
    "NoposError": "errors",
    "RECIPES": "config",
    "Recipe": "config",
    "Subject": "subject",
    "TrainConfig": "config",
    "claim": "claims",
    "load": "checkpoints",
    "load_or_train": "cache",
}

__all__ = [
    "CONTROLS",
    "RECIPES",
    "Control",
    "ModelConfig",
    "NoPosTransformer",
    "NoposError",
    "Recipe",
    "Subject",
    "TrainConfig",
    "claim",
    "load",
    "load_or_train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nopos' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nopos.{_HOME[name]}"), name)
