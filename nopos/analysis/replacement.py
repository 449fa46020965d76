"""Run a model with one activation replaced: what every ablation, cut and patch here is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from nopos.analysis.metrics import logit_difference, per_token_kl
from nopos.analysis.reading import Tokens, require_hook_point
from nopos.data import mean_loss
from nopos.model import NoPosTransformer

Edit = Callable[[Float[Tensor, "batch ..."]], Float[Tensor, "..."]]
"""From an activation to what replaces it; the shape must be the same or broadcast to it."""
NO_EDITS: Mapping[str, Edit] = {}


@dataclass(frozen=True)
class Effect:
    """What an edit does to a model's answers, on average over all slots with a previous token."""

    loss: float
    """With the edit, in nats."""
    nats_added: float
    """Loss with the edit less the loss without; negative where the edit helps."""
    kl: float
    """KL divergence in nats of the answer without the edit from the answer with it, token by token: never negative."""
    logit_difference_lost: float
    """By how much the right token's logit falls against the current token's."""
    answers_changed: float
    """Share of slots whose largest logit is another token's: blind to how sure the model is of its answers."""


class Hook(Protocol):
    """What TransformerLens calls at a hook point."""

    def __call__(self, tensor: Tensor, *, hook: HookPoint) -> Tensor: ...


def as_hook(edit: Edit) -> Hook:
    """The edit as TransformerLens calls it."""

    def replace(tensor: Tensor, *, hook: HookPoint) -> Tensor:  # noqa: ARG001 - called with this name
        return edit(tensor).expand_as(tensor)

    return replace


@torch.no_grad()
def logits_with(
    model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when the activation at each of some hook points is replaced by its edit. The model is left as it was.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=_hooks(model, edits))
    return logits


def loss_with(model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit]) -> float:
    """Mean loss in nats on the previous token when activations are replaced."""
    return mean_loss(logits_with(model, tokens, edits), tokens).item()


@torch.no_grad()
def activation_with(
    model: NoPosTransformer, tokens: Tokens, hook_point: str, edits: Mapping[str, Edit]
) -> Float[Tensor, "batch ..."]:
    """What passes one hook point when the activations at others are replaced.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    kept: list[Tensor] = []

    def keep(tensor: Tensor, *, hook: HookPoint) -> None:  # noqa: ARG001 - called with this name
        kept.append(tensor)

    require_hook_point(model, hook_point)
    model.run_with_hooks(tokens, fwd_hooks=[*_hooks(model, edits), (hook_point, keep)])
    return kept[0]


@torch.no_grad()
def effects(model: NoPosTransformer, tokens: Tokens, edits: Iterable[tuple[str, Edit]]) -> list[Effect]:
    """The effect of each edit, made alone at its hook point."""
    without = model(tokens)
    loss, difference = mean_loss(without, tokens).item(), logit_difference(without, tokens).mean().item()
    answers = without.argmax(dim=-1)

    def effect(hook_point: str, edit: Edit) -> Effect:
        edited = logits_with(model, tokens, {hook_point: edit})
        edited_loss = mean_loss(edited, tokens).item()
        return Effect(
            loss=edited_loss,
            nats_added=edited_loss - loss,
            kl=per_token_kl(without, edited).mean().item(),
            logit_difference_lost=difference - logit_difference(edited, tokens).mean().item(),
            answers_changed=(edited.argmax(dim=-1) != answers)[:, 1:].float().mean().item(),
        )

    return [effect(hook_point, edit) for hook_point, edit in edits]


def effect_of(model: NoPosTransformer, tokens: Tokens, hook_point: str, edit: Edit) -> Effect:
    """The effect of one edit; see `effects`."""
    (effect,) = effects(model, tokens, [(hook_point, edit)])
    return effect


def _hooks(
    model: NoPosTransformer, edits: Mapping[str, Edit]
) -> list[tuple[str | Callable[..., Any], Callable[..., Any]]]:
    for name in edits:
        require_hook_point(model, name)
    return [(name, as_hook(edit)) for name, edit in edits.items()]
