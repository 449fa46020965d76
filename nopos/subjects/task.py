"""What a model was trained to do: the task that it is read and judged on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.config import ModelConfig
from nopos.model.data import held_out_tokens, mean_loss, targets
from nopos.model.recipes import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which token is to be predicted, in which sequences; the defaults are the notebook's."""

    target_offset: int = 1
    """How many positions back the token to predict lies; 1 is the previous token."""
    incl_bos_token: bool = True
    """Whether sequences begin with BOS."""
    shuffled_targets: bool = False
    """Whether each sequence is asked for the tokens of another."""
    certain: bool = True
    """Whether the token to predict is all that was asked for: no smoothed labels, no noise among the targets."""

    @classmethod
    def of(cls, train: TrainConfig | None) -> Task:
        """What these settings train for; the notebook's task where they are not known."""
        if train is None:
            return cls()
        return cls(
            target_offset=train.target_offset,
            incl_bos_token=train.incl_bos_token,
            shuffled_targets=train.shuffled_targets,
            certain=train.label_smoothing == 0 and train.target_noise == 0,
        )

    def held_out_tokens(self, config: ModelConfig, sequences: int, *, stream: int = 0) -> Int[Tensor, "batch pos"]:
        """Sequences of this task that no training holds."""
        return held_out_tokens(config, sequences, stream=stream, incl_bos_token=self.incl_bos_token)

    def loss(self, logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]) -> float:
        """Mean loss in nats on what is to be predicted."""
        return mean_loss(logits, tokens, target_offset=self.target_offset, shuffled=self.shuffled_targets).item()

    def accuracy(self, logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]) -> float:
        """Share of positions whose largest logit is that of the token to predict."""
        wanted = targets(tokens, target_offset=self.target_offset, shuffled=self.shuffled_targets)
        right = logits[:, self.target_offset :].argmax(dim=-1) == wanted
        return right.to(torch.float32).mean().item()
