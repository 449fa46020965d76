"""A model under test, with what the claims ask of it measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from nopos import storage
from nopos.analysis.folding import fold_layer_norm, folded_config
from nopos.checkpoints import Checkpoint
from nopos.config import ModelConfig
from nopos.data import held_out_tokens, mean_loss
from nopos.errors import ClaimError
from nopos.model import NoPosTransformer

HELD_OUT_SEQUENCES = 256
SOLVED = 0.1
"""Nats of held-out loss under which a model solves the task; guessing costs 5.6."""

P = ParamSpec("P")
R = TypeVar("R")
Fold = Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]]


class Subject:
    """A model on the CPU in float32, so that bounds have one numerics, whatever trained it."""

    tokens: Int[Tensor, "batch pos"]
    """What everything is measured on."""
    mean_tokens: Int[Tensor, "batch pos"]
    """Other held-out tokens, over which mean activations are taken."""

    def __init__(self, name: str, checkpoint: Checkpoint, *, fold: Fold = fold_layer_norm) -> None:
        """`fold` makes the folded twin's parameters; a control passes one that is wrong."""
        self.name = name
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self._fold = fold
        self._build()

    def _build(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}
        self.model = NoPosTransformer(self.config, self.checkpoint.parameters)
        self.folded = NoPosTransformer(folded_config(self.config), self._fold(self.config, self.checkpoint.parameters))
        """The folded twin in float64: the same outputs from a LayerNorm without weight and bias."""
        self.tokens = held_out_tokens(self.config, HELD_OUT_SEQUENCES)
        self.mean_tokens = held_out_tokens(self.config, HELD_OUT_SEQUENCES, stream=1)

    def run(
        self, analysis: Callable[Concatenate[NoPosTransformer, Tensor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The result of an analysis of this model on its held-out tokens, computed once for each set of options."""
        key = (analysis, args, tuple(sorted(kwargs.items(), key=lambda option: option[0])))
        if key not in self._results:
            self._results[key] = analysis(self.model, self.tokens, *args, **kwargs)
        return self._results[key]

    @property
    def loss(self) -> float:
        """Held-out loss on the previous token, in nats."""
        return self.run(held_out_loss)

    @property
    def accuracy(self) -> float:
        """Share of held-out slots at which the previous token has the largest logit."""
        return self.run(held_out_accuracy)

    def solves_the_task(self) -> bool:
        """Whether the model predicts the previous token, however it does so."""
        return self.loss < SOLVED

    @contextmanager
    def proven_unchanged(self) -> Iterator[None]:
        """Check that weights, twin, tokens and hooks come out as they went in; if not, mend the subject and say so.

        Raises:
            ClaimError: something was changed.
        """
        before = self._state()
        try:
            yield
        finally:
            changed = [what for what, value in self._state().items() if value != before[what]]
            if changed:
                self._build()
        if changed:
            raise ClaimError(
                f"{self.name}: a test changed its {' and '.join(changed)}; a test must leave a subject as it was"
            )

    def _state(self) -> dict[str, object]:
        hooks = [name for name, point in self.model.hook_dict.items() if point.has_hooks(dir="both")]
        tensors = {"tokens": self.tokens, "mean_tokens": self.mean_tokens}
        return {
            "weights": storage.sha256(storage.serialise(self.model.state_dict())),
            "folded twin": storage.sha256(storage.serialise(self.folded.state_dict())),
            "tokens": storage.sha256(storage.serialise(tensors)),
            "hooks": hooks,
        }


@torch.no_grad()
def held_out_loss(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"]) -> float:
    """Mean loss in nats on the previous token."""
    return mean_loss(model(tokens), tokens).item()


@torch.no_grad()
def held_out_accuracy(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"]) -> float:
    """Share of slots whose largest logit is the previous token's."""
    return (model(tokens)[:, 1:].argmax(dim=-1) == tokens[:, :-1]).float().mean().item()
