"""Run a model with activations replaced: what every ablation, knock-out and patch here is made of.

A run with edits begins at the first layer that one of them lies in, from what the unedited model hands to that layer,
and ends where it has reached what is read; the numbers are those of a whole forward pass, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from nopos.methods.activations import Tokens, activation
from nopos.methods.metrics import by_tenth, logits_changed, readout
from nopos.model.hook_points import EMBED, POS_EMBED, hook_point, layer_of, stop_after
from nopos.model.transformer import NoPosTransformer

Edit = Callable[[Float[Tensor, "batch ..."]], Float[Tensor, "..."]]
"""From an activation to what replaces it; the shape must be the same or broadcast to it."""
NO_EDITS: Mapping[str, Edit] = {}


@dataclass(frozen=True)
class Effect:
    """What an edit does to a model's answers, over all positions with something to predict."""

    changed_by_position: Float[Tensor, " predicted"]
    """Share of sequences in which the largest logit is another token's: blind to how sure the answers are."""
    pos: int
    """Positions of the context, those with nothing to predict too."""
    answers_lost: float
    """Share of answers that are right without the edit and wrong with it."""
    logits_changed: float
    """By which share of themselves; see `logits_changed`."""

    @property
    def answers_changed(self) -> float:
        """Share of all positions whose largest logit is another token's."""
        return self.changed_by_position.mean().item()

    @property
    def changed_by_tenth(self) -> Float[Tensor, " tenth"]:
        """The same in each tenth of the context."""
        return by_tenth(self.changed_by_position, pos=self.pos)


@runtime_checkable
class Hook(Protocol):
    """What TransformerLens calls at a hook point."""

    def __call__(self, tensor: Tensor, *, hook: HookPoint) -> Tensor: ...


def as_hook(edit: Edit) -> Hook:
    """The edit as TransformerLens calls it."""
    return partial(_replace, edit)


def _replace(edit: Edit, tensor: Tensor, *, hook: HookPoint) -> Tensor:  # noqa: ARG001 - called with this name
    return edit(tensor).expand_as(tensor)


def _keep(kept: list[Tensor], tensor: Tensor, *, hook: HookPoint) -> None:  # noqa: ARG001 - likewise
    kept.append(tensor)


@torch.no_grad()
def logits_with(
    model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits when the activation at each of some hook points is replaced by its edit. The model is left as it was.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    return _run(model, tokens, edits)


@torch.no_grad()
def activation_with(
    model: NoPosTransformer, tokens: Tokens, hook_point: str, edits: Mapping[str, Edit]
) -> Float[Tensor, "batch ..."]:
    """What passes one hook point when the activations at others, or its own, are replaced.

    Raises:
        AnalysisError: the model has no such hook point.
    """
    kept: list[Tensor] = []
    model.require_hook_point(hook_point)
    _run(model, tokens, edits, read=(hook_point, partial(_keep, kept)))
    return kept[0]


def effect_of_edits(
    model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit], *, target_offset: int = 1
) -> Effect:
    """The effect of several edits made at once."""
    before = model.of_logits(tokens, readout, target_offset)
    after = readout(logits_with(model, tokens, edits), tokens, target_offset)
    return Effect(
        changed_by_position=(before.largest != after.largest).float().mean(dim=0),
        pos=tokens.shape[-1],
        answers_lost=(before.right & ~after.right).float().mean().item(),
        logits_changed=logits_changed(before, after),
    )


@torch.no_grad()
def effects(
    model: NoPosTransformer, tokens: Tokens, edits: Iterable[tuple[str, Edit]], *, target_offset: int = 1
) -> list[Effect]:
    """The effect of each edit, made alone at its hook point.

    Args:
        target_offset: how many positions back the token lies that the model is to predict.
    """
    return [effect_of_edits(model, tokens, {name: edit}, target_offset=target_offset) for name, edit in edits]


def effect_of(
    model: NoPosTransformer, tokens: Tokens, hook_point: str, edit: Edit, *, target_offset: int = 1
) -> Effect:
    """The effect of one edit; see `effects`."""
    (effect,) = effects(model, tokens, [(hook_point, edit)], target_offset=target_offset)
    return effect


def _run(
    model: NoPosTransformer,
    tokens: Tokens,
    edits: Mapping[str, Edit],
    *,
    read: tuple[str, Callable[..., None]] | None = None,
) -> Tensor:
    """Logits with the edits made; or, where something is read, what the pass returns that ends behind it."""
    for name in edits:
        model.require_hook_point(name)
    start = min((_first_changed_layer(model, name) for name in edits), default=model.config.n_layers)
    if read is not None:
        start = min(start, _layer(model, read[0]))
    stop = None if read is None else stop_after([read[0]])
    if start == 0:
        entering, beginning = tokens, None
    else:
        before = hook_point(start - 1, "resid_post")
        entering, beginning = activation(model, tokens, before).clone(), start  # an edit may work in place
        if before in edits:
            entering = edits[before](entering).expand_as(entering)
    hooks: list[tuple[str, Callable[..., object]]] = [(name, as_hook(edit)) for name, edit in edits.items()]
    if read is not None:
        hooks.append(read)
    return model.run_with_hooks(entering, fwd_hooks=hooks, start_at_layer=beginning, stop_at_layer=stop)  # type: ignore[arg-type]


def _layer(model: NoPosTransformer, name: str) -> int:
    """The layer that a hook point lies in, `n_layers` standing for what follows the last."""
    layer = layer_of(name)
    if layer is not None:
        return layer
    return 0 if name in (EMBED, POS_EMBED) else model.config.n_layers


def _first_changed_layer(model: NoPosTransformer, name: str) -> int:
    """The first layer of which an edit at this hook point changes anything."""
    layer = _layer(model, name)
    return layer + 1 if name.endswith("hook_resid_post") else layer
