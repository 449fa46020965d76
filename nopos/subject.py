"""A model under test, with what the claims ask of it measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from nopos import storage
from nopos.analysis.folding import fold_layer_norm, folded_config
from nopos.analysis.replacement import NO_EDITS, Edit, as_hook
from nopos.checkpoints import Checkpoint
from nopos.config import ModelConfig
from nopos.data import HELD_OUT_SEQUENCES, held_out_tokens, mean_loss
from nopos.errors import ClaimError
from nopos.model import NoPosTransformer

SOLVED = 0.1
"""Nats of held-out loss under which a model solves the task; guessing costs 5.6."""

ANALYSED_SEQUENCES = 64
"""Of 50 tokens each: 3,136 predictions, on which an ablation takes a fiftieth of a second."""

P = ParamSpec("P")
R = TypeVar("R")
Fold = Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]]


class Subject:
    """A model on the CPU in float32, so that bounds have one numerics, whatever trained it."""

    tokens: Int[Tensor, "batch pos"]
    """What analyses are made on."""
    other_tokens: Int[Tensor, "batch pos"]
    """As many other held-out tokens: means and resampled activations come from them, and probes are fitted on them."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        fold: Fold = fold_layer_norm,
        interventions: Mapping[str, Edit] = NO_EDITS,
    ) -> None:
        """Build the model and its twin.

        Args:
            name: what the subject is called.
            checkpoint: its weights; copied.
            fold: makes the folded twin's parameters; a control passes one that is wrong.
            interventions: standing edits by hook point, of model and twin: they are part of what is under test.
        """
        self.name = name
        self.config = checkpoint.config
        self._fold = fold
        self._interventions = dict(interventions)
        self._kept = deepcopy(checkpoint)
        self._build()

    def _build(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}
        self.checkpoint = deepcopy(self._kept)
        self.model = NoPosTransformer(self.config, self.checkpoint.parameters)
        self.folded = NoPosTransformer(folded_config(self.config), self._fold(self.config, self.checkpoint.parameters))
        """The folded twin in float64: the same outputs from a LayerNorm without weight and bias."""
        for model in (self.model, self.folded):
            for hook_point, edit in self._interventions.items():
                model.add_perma_hook(hook_point, as_hook(edit))
        self._loss_tokens = held_out_tokens(self.config, HELD_OUT_SEQUENCES)
        self.tokens = self._loss_tokens[:ANALYSED_SEQUENCES].clone()
        self.other_tokens = held_out_tokens(self.config, ANALYSED_SEQUENCES, stream=1)

    def run(
        self, analysis: Callable[Concatenate[NoPosTransformer, Tensor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The result of an analysis of this model on its held-out tokens, computed once for each set of options.

        Raises:
            ClaimError: an option is not hashable.
        """
        return self._run(analysis, self.tokens, *args, **kwargs)

    @property
    def loss(self) -> float:
        """Held-out loss on the previous token, in nats, over more sequences than `tokens` has."""
        return self._run(held_out_loss, self._loss_tokens)

    @property
    def accuracy(self) -> float:
        """Share of slots at which the previous token has the largest logit, over the same sequences as `loss`."""
        return self._run(held_out_accuracy, self._loss_tokens)

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

    def _run(
        self,
        analysis: Callable[Concatenate[NoPosTransformer, Tensor, P], R],
        tokens: Tensor,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        key = (
            self._weights(),
            tokens is self.tokens,
            analysis,
            args,
            tuple(sorted(kwargs.items(), key=lambda option: option[0])),
        )
        try:
            known = key in self._results
        except TypeError as error:
            raise ClaimError(f"options of {analysis.__name__} cannot be remembered ({error}); give tuples") from None
        if not known:
            self._results[key] = analysis(self.model, tokens, *args, **kwargs)
        return deepcopy(self._results[key])  # so that nobody edits what the next one is given

    def _state(self) -> dict[str, object]:
        models = (self.model, self.folded)
        tokens = {"tokens": self.tokens, "other_tokens": self.other_tokens, "of the loss": self._loss_tokens}
        return {
            "weights": self._weights(),
            "folded twin": _digest(_tensors(self.folded)),
            "checkpoint": _digest(self.checkpoint.parameters),
            "tokens": _digest(tokens),
            "hooks": [
                (point.name, len(point.fwd_hooks), len(point.bwd_hooks))
                for model in models
                for point in model.hook_dict.values()
            ],
        }

    def _weights(self) -> str:
        return _digest(_tensors(self.model))


def _tensors(model: NoPosTransformer) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return storage.sha256(storage.serialise(tensors))


@torch.no_grad()
def held_out_loss(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"]) -> float:
    """Mean loss in nats on the previous token."""
    return mean_loss(model(tokens), tokens).item()


@torch.no_grad()
def held_out_accuracy(model: NoPosTransformer, tokens: Int[Tensor, "batch pos"]) -> float:
    """Share of slots whose largest logit is the previous token's."""
    return (model(tokens)[:, 1:].argmax(dim=-1) == tokens[:, :-1]).float().mean().item()
