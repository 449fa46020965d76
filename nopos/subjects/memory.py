"""A model that makes an unedited forward pass over the same tokens once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.transformer import NoPosTransformer, T

LOGITS = "logits"
MEMORY = ("_kept", "_of_weights")
"""The attributes that what is remembered is put into."""


_Key = str | tuple[Callable[..., Any], int]
"""What was read: the logits, a hook point, or what an analysis with its offset says of the logits."""


class _Remembered:
    """A tensor, or what holds some, and how often each had been written into when it was kept."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._versions = self._versions_now()

    def was_written_into(self) -> bool:
        return self._versions_now() != self._versions

    def _versions_now(self) -> list[int]:
        value, held = self.value, (self.value,)
        if is_dataclass(value):
            held = tuple(getattr(value, field.name) for field in fields(value))
        elif isinstance(value, tuple):
            held = value
        return [one._version for one in held if isinstance(one, Tensor)]


class RememberingTransformer(NoPosTransformer):
    """Keeps what was read of it, for as long as its owner vouches that weights and hooks are as they were.

    An analysis reads a dozen activations of the same unedited model, and the next analysis the same again. What is
    kept is handed out itself, not as a copy: an analysis must not write into what it reads, and `was_written_into` says
    if one did.
    """

    _kept: tuple[tuple[Tensor, dict[_Key, _Remembered]], ...] = ()
    _hooks: tuple[tuple[int, ...], ...] = ()
    _of_weights: dict[Callable[[NoPosTransformer], Any], _Remembered]
    _vouched_for = False

    def remember(self, *batches: Int[Tensor, "_ _"]) -> None:
        """Forget what is kept, and keep from now on what is read on these sequences, each batch of its own size."""
        self._kept = tuple((tokens.clone(), {}) for tokens in batches)
        self._hooks, self._of_weights, self._vouched_for = hooks_of(self), {}, False

    @contextmanager
    def vouched_for(self) -> Iterator[None]:
        """Within this context no weight changes, and no hook but by edits that are undone."""
        self._vouched_for = True
        try:
            yield
        finally:
            self._vouched_for = False

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """As of any model, remembered."""
        kept = self._of(tokens)
        if LOGITS not in kept:
            kept[LOGITS] = _Remembered(super().logits(tokens))
        logits: Tensor = kept[LOGITS].value
        return logits

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "batch pos"], hook_points: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch ..."]]:
        """As of any model, remembered."""
        kept = self._of(tokens)
        missing = [name for name in hook_points if name not in kept]
        if missing:
            kept |= {name: _Remembered(value) for name, value in super().activations(tokens, missing).items()}
        return {name: kept[name].value for name in hook_points}

    def of_weights(self, analysis: Callable[[NoPosTransformer], T]) -> T:
        """As of any model, remembered."""
        if not self._is_as_remembered():
            return analysis(self)
        if analysis not in self._of_weights:
            self._of_weights[analysis] = _Remembered(analysis(self))
        kept: T = self._of_weights[analysis].value
        return kept

    def of_logits(
        self, tokens: Int[Tensor, "batch pos"], analysis: Callable[[Tensor, Tensor, int], T], target_offset: int
    ) -> T:
        """As of any model, remembered."""
        kept, key = self._of(tokens), (analysis, target_offset)
        if key not in kept:
            kept[key] = _Remembered(super().of_logits(tokens, analysis, target_offset))
        found: T = kept[key].value
        return found

    def was_written_into(self) -> bool:
        """Whether something that is remembered was changed in place, as far as torch counts such changes."""
        of_tokens = (one for _, record in self._kept for one in record.values())
        return any(one.was_written_into() for one in (*self._of_weights.values(), *of_tokens))

    def _is_as_remembered(self) -> bool:
        return self._vouched_for and hooks_of(self) == self._hooks

    def _of(self, tokens: Tensor) -> dict[_Key, _Remembered]:
        """What is kept for these tokens; an empty record that is thrown away where nothing may be kept."""
        if self._is_as_remembered():
            for known, record in self._kept:
                if known.shape == tokens.shape and torch.equal(known, tokens):
                    return record
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without memory: its weights are its own to change."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_kept", "_hooks", "_of_weights", "_vouched_for")
        }


def hooks_of(model: NoPosTransformer) -> tuple[tuple[int, ...], ...]:
    """Which hooks each hook point has: the numbers that torch gives them, each once."""
    points = model.hook_dict.values()
    return tuple(tuple(handle.hook.id for handle in (*point.fwd_hooks, *point.bwd_hooks)) for point in points)
