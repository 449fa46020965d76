"""A model under test, with its task and with what the claims ask of it measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from nopos.methods.folding import fold_layer_norm, folded_config
from nopos.methods.interventions import NO_EDITS, Edit, as_hook
from nopos.model.config import ModelConfig
from nopos.model.data import HELD_OUT_SEQUENCES
from nopos.model.transformer import NoPosTransformer
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.memory import MEMORY, RememberingTransformer
from nopos.subjects.model_subject import ModelSubject
from nopos.subjects.task import Task
from nopos.subjects.tensor_state import Kind, same_tensors

SOLVED = 0.99
"""Share of held-out answers that are right above which a model solves its task, however it does so."""

ANALYSED_SEQUENCES = 64
"""Of 50 tokens each: 3,136 predictions, on which an ablation takes a fiftieth of a second."""

Fold = Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]]


class Subject(ModelSubject):
    """A no-position model, or a control, on the CPU in float32, so that bounds have one numerics, whatever trained it.

    An analysis may ask for `model`, `folded`, `tokens`, `other_tokens`, `loss_tokens` and `target_offset`, the task's.
    """

    __slots__ = ("_checkpoint", "_config", "_kept", "_task")

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
        self._config, self._task = checkpoint.config, Task.of(checkpoint.train)
        self._kept, self._checkpoint = checkpoint.copy(), checkpoint.copy()
        loss_tokens = self._task.held_out_tokens(self._config, HELD_OUT_SEQUENCES)
        models = {
            "model": RememberingTransformer(self._config, checkpoint.parameters),
            "folded": RememberingTransformer(folded_config(self._config), fold(self._config, checkpoint.parameters)),
        }
        tokens = {
            "tokens": loss_tokens[:sequences].clone(),
            "other_tokens": self._task.held_out_tokens(self._config, sequences, stream=1),
            "loss_tokens": loss_tokens,
        }
        for model in models.values():
            for hook_point, edit in interventions.items():
                model.add_perma_hook(hook_point, as_hook(edit))
            model.remember(tokens["tokens"], tokens["other_tokens"])
        data = {**tokens, "target_offset": self._task.target_offset}
        super().__init__(name, models, data, solves_the_task=lambda: self.accuracy > SOLVED)

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
    def model(self) -> RememberingTransformer:
        """The model, standing edits included."""
        return self._remembering("model")

    @property
    def folded(self) -> RememberingTransformer:
        """The folded model in float64: the same outputs from a LayerNorm without weight and bias."""
        return self._remembering("folded")

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """What analyses are made on."""
        return self._tensor("tokens")

    @property
    def other_tokens(self) -> Int[Tensor, "batch pos"]:
        """As many others: means and resampled activations come from them, and probes are fitted on them."""
        return self._tensor("other_tokens")

    @property
    def loss(self) -> float:
        """Held-out loss on the subject's own task, in nats, over more sequences than `tokens` has."""
        return self.run(_held_out, task=self._task)[0]

    @property
    def accuracy(self) -> float:
        """Share of held-out positions at which the answer is right, on the subject's own task."""
        return self.run(_held_out, task=self._task)[1]

    def loss_at(self, offset: int) -> float:
        """Held-out loss in nats on the token so many positions back, whatever the subject was trained for."""
        return self.run(_held_out, task=self._asked_at(offset))[0]

    def accuracy_at(self, offset: int) -> float:
        """Share of positions at which the token so many back has the largest logit, over the sequences of the loss."""
        return self.run(_held_out, task=self._asked_at(offset))[1]

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

    def _mend(self) -> None:
        super()._mend()
        self._checkpoint = self._kept.copy()
        for model in (self.model, self.folded):
            model.remember(self.tokens, self.other_tokens)
        self._note()

    def _reported(self, changes: Mapping[str, Mapping[Kind, str]]) -> list[str]:
        of_checkpoint = ["checkpoint"] if not same_tensors(self._checkpoint.parameters, self._kept.parameters) else []
        read = ["activations"] if self.model.was_written_into() or self.folded.was_written_into() else []
        return super()._reported(changes) + of_checkpoint + read

    def _memory(self) -> tuple[str, ...]:
        return MEMORY

    @contextmanager
    def _unchanging(self) -> Iterator[None]:
        with self.model.vouched_for(), self.folded.vouched_for():
            yield

    def _remembering(self, name: str) -> RememberingTransformer:
        model = self._models[name]
        assert isinstance(model, RememberingTransformer)
        return model

    def _asked_at(self, offset: int) -> Task:
        return replace(self._task, target_offset=offset, shuffled_targets=False)


def _held_out(model: NoPosTransformer, loss_tokens: Int[Tensor, "batch pos"], *, task: Task) -> tuple[float, float]:
    """Loss in nats and accuracy."""
    logits = model.logits(loss_tokens)
    return task.loss(logits, loss_tokens), task.accuracy(logits, loss_tokens)
