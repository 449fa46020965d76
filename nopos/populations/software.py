"""What decides the bits of a model and of what is measured on it, beside what was asked."""

from __future__ import annotations

from importlib.metadata import version

import torch

from nopos.storage import checkpoints
from nopos.subjects import shipped
from nopos.training import compiled


def made_by(device: str) -> dict[str, str]:
    """The versions and the code that make and check models here, as a sweep's identity has them."""
    return {
        **checkpoints.versions(torch.device(device)),
        "claims": shipped.checking_hash(),
        **{name: version(name) for name in ("transformer_lens", "numpy", "scipy")},
    }


def of_worker(device: str, *, fused: bool) -> dict[str, str]:
    """The same of one worker, with the compiler and processor of the kernel if it is to train with it."""
    if not fused:
        return made_by(device)
    library = compiled.loaded()
    return {**made_by(device), "kernel": library if isinstance(library, str) else library.key}
