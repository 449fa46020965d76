"""Run a model with one activation replaced: what every ablation, cut and patch here is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from nopos.data import mean_loss
from nopos.model import NoPosTransformer

Edit = Callable[[Float[Tensor, "batch ..."]], Float[Tensor, "..."]]
"""From an activation to what replaces it; the shape must be the same or broadcast to it."""


@torch.no_grad()
def logits_with(
    model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], hook_point: str, edit: Edit
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when the activation at one hook point is replaced by `edit` of it. The model is left as it was."""

    def replace(activation: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001 - called with this name
        return edit(activation).expand_as(activation)

    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[(hook_point, replace)])
    return logits


def loss_with(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"], hook_point: str, edit: Edit) -> float:
    """Mean loss in nats on the previous token when one activation is replaced."""
    return mean_loss(logits_with(model, tokens, hook_point, edit), tokens).item()
