"""Findings about a transformer without positional embeddings, as tests that can fail.

The public names are loaded when they are used, so that `nopos --help` imports neither torch nor transformer_lens.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nopos.claims.claim import claim, claim_of
    from nopos.claims.control import Control
    from nopos.claims.outcome import Controls
    from nopos.claims.run import SubjectLoader
    from nopos.claims.scope import Scope
    from nopos.claims.verdict import check
    from nopos.errors import NoposError, NotMeasurableError
    from nopos.model.config import ModelConfig
    from nopos.model.recipes import RECIPES, Recipe, TrainConfig
    from nopos.model.transformer import NoPosTransformer
    from nopos.storage.cache import load_or_train
    from nopos.storage.checkpoints import load
    from nopos.subjects.controls import CONTROLS
    from nopos.subjects.model_subject import ModelSubject
    from nopos.subjects.subject import Subject

_HOME = {
    "CONTROLS": "subjects.controls",
    "Control": "claims.control",
    "Controls": "claims.outcome",
    "ModelConfig": "model.config",
    "ModelSubject": "subjects.model_subject",
    "NoPosTransformer": "model.transformer",
    "NoposError": "errors",
    "NotMeasurableError": "errors",
    "RECIPES": "model.recipes",
    "Recipe": "model.recipes",
    "Scope": "claims.scope",
    "Subject": "subjects.subject",
    "SubjectLoader": "claims.run",
    "TrainConfig": "model.recipes",
    "check": "claims.verdict",
    "claim": "claims.claim",
    "claim_of": "claims.claim",
    "load": "storage.checkpoints",
    "load_or_train": "storage.cache",
}

__all__ = [
    "CONTROLS",
    "RECIPES",
    "Control",
    "Controls",
    "ModelConfig",
    "ModelSubject",
    "NoPosTransformer",
    "NoposError",
    "NotMeasurableError",
    "Recipe",
    "Scope",
    "Subject",
    "SubjectLoader",
    "TrainConfig",
    "check",
    "claim",
    "claim_of",
    "load",
    "load_or_train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nopos' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nopos.{_HOME[name]}"), name)
