"""A model under test, with its task and with what the claims ask of it measured once and kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from typing import Any, TypeVar

from jaxtyping import Int
from torch import Tensor

from nopos.errors import ClaimError
from nopos.methods.folding import fold_layer_norm, folded_config
from nopos.methods.interventions import NO_EDITS, Edit, as_hook
from nopos.model.config import ModelConfig
from nopos.model.data import HELD_OUT_SEQUENCES
from nopos.model.transformer import NoPosTransformer
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.memory import MEMORY, RememberingTransformer
from nopos.subjects.snapshot import Snapshot, same_tensors
from nopos.subjects.task import Task

SOLVED = 0.1
"""Nats of held-out loss under which a model solves its task; guessing costs 5.6."""

ANALYSED_SEQUENCES = 64
"""Of 50 tokens each: 3,136 predictions, on which an ablation takes a fiftieth of a second."""

MISSING = object()
R = TypeVar("R")
Fold = Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]]


class Subject:
    """A model on the CPU in float32, so that bounds have one numerics, whatever trained it.

    Nothing of it can be replaced or added, and what is changed in place is found and mended.
    """

    __slots__ = (
        "_as_built", "_checkpoint", "_config", "_fold", "_folded", "_folded_as_built", "_interventions", "_kept",
        "_loss_tokens", "_model", "_model_as_built", "_name", "_other_tokens", "_results", "_sequences", "_task",
        "_tokens",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        fold: Fold = fold_layer_norm,
        interventions: Mapping[str, Edit] = NO_EDITS,
        sequences: int = ANALYSED_SEQUENCES,
    ) -> None:
        """Build the model and its folded counterpart.

        Args:
            name: what the subject is called.
            checkpoint: its weights, which are copied, and the training that its task follows from.
            fold: makes the folded model's parameters; a control passes one that is wrong.
            interventions: standing edits by hook point, of both models: they are part of what is under test.
            sequences: on how many analyses are made.
        """
        self._name = name
        self._config = checkpoint.config
        self._task = Task.of(checkpoint.train)
        self._fold = fold
        self._interventions = dict(interventions)
        self._sequences = sequences
        self._kept = checkpoint.copy()
        self._build()

    @property
    def name(self) -> str:
        """What the subject is called."""
        return self._name

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._config

    @property
    def task(self) -> Task:
        """What the model is read and judged on."""
        return self._task

    @property
    def checkpoint(self) -> Checkpoint:
        """Its weights and where they come from."""
        return self._checkpoint

    @property
    def model(self) -> NoPosTransformer:
        """The model, standing edits included."""
        return self._model

    @property
    def folded(self) -> NoPosTransformer:
        """The folded model in float64: the same outputs from a LayerNorm without weight and bias."""
        return self._folded

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """What analyses are made on."""
        return self._tokens

    @property
    def other_tokens(self) -> Int[Tensor, "batch pos"]:
        """As many others: means and resampled activations come from them, and probes are fitted on them."""
        return self._other_tokens

    def run(self, analysis: Callable[..., R], **options: Any) -> R:
        """The result of an analysis of this model, computed once for each set of options.

        The analysis is handed what it asks for by the names of its parameters: `model`, `folded`, `tokens`,
        `other_tokens`, `loss_tokens` and `target_offset`, the task's. An option of one of these names comes before the
        subject's own. A result is not remembered on changed weights, nor where an option is a tensor, which can change.

        Raises:
            ClaimError: an option is not hashable.
        """
        arguments = self._offered(_parameters(analysis)) | options
        if self._changed():
            return analysis(**arguments)
        key = (analysis, tuple(sorted(options.items(), key=lambda option: option[0])))
        try:
            result = self._results.get(key, MISSING)
        except TypeError as error:
            raise ClaimError(f"options of {analysis.__name__} cannot be remembered ({error}); give tuples") from None
        if result is MISSING:
            with self._model.vouched_for(), self._folded.vouched_for():
                result = analysis(**arguments)
            if not any(isinstance(option, Tensor) for option in options.values()):
                self._results[key] = result
        copied: R = deepcopy(result)  # so that nobody edits what the next one is given
        return copied

    @property
    def loss(self) -> float:
        """Held-out loss on the subject's own task, in nats, over more sequences than `tokens` has."""
        return self.run(_held_out, task=self._task)[0]

    def loss_at(self, offset: int) -> float:
        """Held-out loss in nats on the token so many positions back, whatever the subject was trained for."""
        return self.run(_held_out, task=self._asked_at(offset))[0]

    def accuracy_at(self, offset: int) -> float:
        """Share of positions at which the token so many back has the largest logit, over the sequences of the loss."""
        return self.run(_held_out, task=self._asked_at(offset))[1]

    def solves_the_task(self) -> bool:
        """Whether the model does what it was trained for, however it does so."""
        return self.loss < SOLVED

    def record(self) -> dict[str, Any]:
        """What identifies the subject in a ledger, as plain values."""
        checkpoint = self._kept
        return {
            "description": checkpoint.describe(),
            "sha256": checkpoint.sha256,
            "config": asdict(self._config),
            "recipe": checkpoint.recipe,
            "seed": checkpoint.seed,
        }

    @contextmanager
    def proven_unchanged(self) -> Iterator[None]:
        """Check that weights, folded model, tokens and hooks come out as they went in; if not, mend them and say so.

        Raises:
            ClaimError: something was changed.
        """
        try:
            yield
        finally:
            changed = self._changed()
            if changed:
                self._build()
        if changed:
            raise ClaimError(
                f"{self._name}: a test changed its {' and '.join(changed)}; a test must leave a subject as it was"
            )

    def _build(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}
        self._checkpoint = self._kept.copy()
        loss_tokens = self._task.held_out_tokens(self._config, HELD_OUT_SEQUENCES)
        self._loss_tokens = loss_tokens
        self._tokens = loss_tokens[: self._sequences].clone()
        self._other_tokens = self._task.held_out_tokens(self._config, self._sequences, stream=1)
        parameters = self._checkpoint.parameters
        self._model = RememberingTransformer(self._config, parameters)
        self._folded = RememberingTransformer(folded_config(self._config), self._fold(self._config, parameters))
        for model in (self._model, self._folded):
            for hook_point, edit in self._interventions.items():
                model.add_perma_hook(hook_point, as_hook(edit))
        self._model.remember(self._tokens, self._other_tokens)
        self._folded.remember(self._tokens, self._other_tokens)
        self._as_built = {what: _copies(tensors) for what, tensors in self._tensors().items()}
        self._model_as_built, self._folded_as_built = (
            Snapshot(model, apart_from=MEMORY) for model in (self._model, self._folded)
        )

    def _offered(self, asked: frozenset[str]) -> dict[str, Any]:
        offered = {
            "model": self._model,
            "folded": self._folded,
            "tokens": self._tokens,
            "other_tokens": self._other_tokens,
            "loss_tokens": self._loss_tokens,
            "target_offset": self._task.target_offset,
        }
        return {name: value for name, value in offered.items() if name in asked}

    def _asked_at(self, offset: int) -> Task:
        return replace(self._task, target_offset=offset, shuffled_targets=False)

    def _changed(self) -> list[str]:
        """What is no longer as it was built."""
        of_model, of_folded = self._model_as_built.changed(), self._folded_as_built.changed()
        tensors = self._tensors()
        changed = {
            "weights": "weights" in of_model,
            "folded model": "weights" in of_folded,
            **{what: not same_tensors(tensors[what], built) for what, built in self._as_built.items()},
            "hooks": "hooks" in of_model | of_folded,
            "attributes": "attributes" in of_model | of_folded,
        }
        return [what for what, is_changed in changed.items() if is_changed]

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "checkpoint": self._checkpoint.parameters,
            "tokens": {"tokens": self._tokens, "other": self._other_tokens, "of the loss": self._loss_tokens},
        }


def _held_out(model: NoPosTransformer, loss_tokens: Int[Tensor, "batch pos"], *, task: Task) -> tuple[float, float]:
    """Loss in nats and accuracy."""
    logits = model.logits(loss_tokens)
    return task.loss(logits, loss_tokens), task.accuracy(logits, loss_tokens)


@cache
def _parameters(analysis: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(analysis).parameters)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}
