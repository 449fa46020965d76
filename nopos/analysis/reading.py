"""Read activations off a model, and refuse in one line what it cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer

Tokens = Int[Tensor, "batch pos"]


@torch.no_grad()
def activations(
    model: NoPosTransformer, tokens: Tokens, hook_points: Sequence[str]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """What passes each hook point.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    for name in hook_points:
        require_hook_point(model, name)
    _, cache = model.run_with_cache(tokens, names_filter=list(hook_points))
    return {name: cache[name] for name in hook_points}


def activation(model: NoPosTransformer, tokens: Tokens, hook_point: str) -> Float[Tensor, "batch ..."]:
    """What passes one hook point; see `activations`."""
    return activations(model, tokens, [hook_point])[hook_point]


def require_hook_point(model: NoPosTransformer, name: str) -> None:
    """Raise AnalysisError unless the model has the hook point."""
    if name not in model.hook_dict:
        layers = model.config.n_layers
        raise AnalysisError(f"there is no hook point {name!r}; names are as in {list(model.hook_dict)[-3]!r}, "
                            f"and layers are 0 to {layers - 1}")  # fmt: skip


def require_offset(offset: int, tokens: Tokens) -> None:
    """Raise AnalysisError unless some slot lies so many slots before another."""
    if not 0 <= offset < tokens.shape[-1]:
        raise AnalysisError(
            f"offset is {offset}; with sequences of {tokens.shape[-1]} it is 0 to {tokens.shape[-1] - 1}"
        )


def require_as_many(other_tokens: Tokens, tokens: Tokens) -> None:
    """Raise AnalysisError unless there are at least as many other sequences, and as long."""
    if len(other_tokens) < len(tokens) or other_tokens.shape[-1] != tokens.shape[-1]:
        raise AnalysisError(
            f"other_tokens are {list(other_tokens.shape)}; they must be at least as many as the tokens, "
            f"{list(tokens.shape)}, and as long"
        )


def require_slots(tokens: Tokens, at_least: int) -> None:
    """Raise AnalysisError unless sequences are long enough."""
    if tokens.shape[-1] < at_least:
        raise AnalysisError(f"sequences have {tokens.shape[-1]} slots; this analysis needs at least {at_least}")


def require_count(name: str, value: int, *, at_most: int) -> None:
    """Raise AnalysisError unless the number is from 0 to what there is."""
    if not 0 <= value <= at_most:
        raise AnalysisError(f"{name} is {value}; it is 0 to {at_most}")


def require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise AnalysisError unless the value is one of the names."""
    if value not in allowed:
        raise AnalysisError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
